"""
Secrets and marked personal values sent through every path, on secured servers, with every service: none of them is found anywhere behind
intake, with a model that was trained of them. PERSONAL_VALUES says how many people there are.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from running import Site, until
from secured import USER, Secured, secret_file
from visitors import Browser, Visitor, looked_at

from driftline.contracts.registry import Registry
from driftline.contracts.topics import SERVICES
from driftline.local.server import HOST
from driftline.models.bundle import generate_keys
from driftline.operate.dead_letters import Letter, letters_in, pii_key
from driftline.operate.tokens import GIVEN, new_token
from driftline.stream.dead_letters import unseal
from driftline.stream.kafka import LogReader

PEOPLE = int(os.environ.get("PERSONAL_VALUES", "10000"))
FAULTY_EACH = 20  # one record in so many is refused
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
pytestmark = pytest.mark.timeout(900)


class Marked:
    """Values that nobody has but these people, and how to find them, as they are or in another dress."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self.mark = uuid4().hex[:12]
        self.secrets = secrets

    def person(self, number: int) -> dict[str, str]:
        return {"card": f"card-{self.mark}-{number}", "holder": f"Holder {self.mark} {number}"}

    def needles(self) -> dict[str, list[bytes]]:
        """By what was marked: the bytes to look for. Base64 depends on where the value begins, so the middle of all three is sought."""
        return {name: list(_dresses(value)) for name, value in {"a person": self.mark, **_named(self.secrets)}.items()}


def _named(secrets: Sequence[str]) -> dict[str, str]:
    return {f"secret {number}": secret for number, secret in enumerate(secrets)}


def _dresses(value: str) -> Iterator[bytes]:
    raw = value.encode()
    yield from {raw, raw.upper(), raw.hex().encode(), value.encode("utf-16-le")}
    for shift in range(3):
        yield base64.b64encode(bytes(shift) + raw)[4:-4]


def payments(marked: Marked, now_ms: int) -> tuple[list[bytes], int, list[bytes]]:
    """
    One payment of each person within six days, how many of them break the contract, each in another way, and the chargebacks: of large
    amounts, most of them, so that there is something to learn.
    """
    chance, values, faulty, told = random.Random(7), [], 0, []
    first, span = now_ms - 6 * DAY_MS, 6 * DAY_MS - 8 * HOUR_MS
    for number in range(PEOPLE):
        person, paid_at, amount = marked.person(number), first + number * span // PEOPLE, 1.5 + number % 10
        payment = {"payment_id": f"p{number}", **person, "paid_at": paid_at, "amount": amount}
        if not number % FAULTY_EACH:
            faulty += 1
            values.append(chance.choice(FAULTS)(payment))
            continue
        values.append(json.dumps(payment).encode())
        if amount > 8 and number % 7:
            told.append(
                json.dumps({"payment_id": f"p{number}", "card": person["card"], "told_at": paid_at + 5 * HOUR_MS, "loss": 20}).encode()
            )
    return values, faulty, told


FAULTS = (
    lambda payment: json.dumps(payment).encode()[:-1],
    lambda payment: json.dumps(payment | {"amount": payment["holder"]}).encode(),
    lambda payment: json.dumps(payment | {"paid_at": payment["card"]}).encode(),
    lambda payment: json.dumps({name: value for name, value in payment.items() if name != "payment_id"}).encode(),
    lambda payment: json.dumps(payment | {"paid_at": payment["paid_at"] + 200 * DAY_MS}).encode(),
    lambda payment: payment["holder"].encode(),
    lambda payment: b"\0\0\0\0\1" + payment["card"].encode(),
)


async def everything_on(broker: str) -> dict[str, list[bytes]]:
    """All that any topic of the broker holds: keys, values, headers."""
    admin, consumer = AIOKafkaAdminClient(bootstrap_servers=broker), AIOKafkaConsumer(bootstrap_servers=broker, enable_auto_commit=False)
    await admin.start()
    await consumer.start()
    found: dict[str, list[bytes]] = {}
    for told in await admin.describe_topics(await admin.list_topics()):
        topic = told["topic"]
        places = [TopicPartition(topic, one["partition"]) for one in told["partitions"]]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        found[topic] = []
        while [one for one in places if await consumer.position(one) < ends[one]]:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for one in records:
                    found[topic] += [one.key or b"", one.value or b"", *(value for _, value in one.headers)]
    await consumer.stop()
    await admin.close()
    return found


def everything_in(port: int, password: str) -> list[bytes]:
    """All keys and values of the store."""
    with redis.Redis(HOST, port, username=USER, password=password) as client:
        keys = list(client.scan_iter(count=10_000))
        return [*keys, *(value or b"" for key in keys for value in [client.get(key)])]


async def by_the_model(site: Site, scorer: Visitor, person: Mapping[str, str]) -> str:
    """The id of a new payment that the model has scored; empty where the deployment is not in force yet."""
    id = uuid4().hex
    payment = {"payment_id": id, **person, "paid_at": int(time.time() * 1000), "amount": 9.5}
    answer = scorer.ask(f"/v1/{site.name}/score?timeout_s=30", json.dumps(payment).encode())
    return id if answer.fact["model"] else ""


def asked(site: Site, scorer: Visitor, marked: Marked) -> None:
    """People's own payments, several and faulty ones."""
    url, now_ms = f"/v1/{site.name}", int(time.time() * 1000)
    good = [{"payment_id": f"g{n}", **marked.person(n), "paid_at": now_ms, "amount": 1.0} for n in range(20)]
    scorer.ask(f"{url}/score/batch?timeout_s=30", json.dumps(good).encode())
    for fault in FAULTS:
        scorer.ask(f"{url}/score", fault(good[0] | {"payment_id": "f1"}))
    scorer.ask(f"{url}/score/batch", b"[" + b",".join(fault(good[0]) for fault in FAULTS[:5]) + b"]")


def asked_by_name(site: Site, visitor: Visitor, person: Mapping[str, str]) -> None:
    """Addresses that hold what should not be there. An answer may repeat it to who asked; nothing else may."""
    for path in (f"features/spent/{person['card']}", f"events/{person['card']}", f"predictions/{person['card']}", person["card"]):
        visitor.ask(f"/v1/{site.name}/{path}")


async def by_command(site: Site, scored: str) -> list[bytes]:
    """What an operator's screen shows without asking for what records hold."""
    asked = (
        ["status", site.name],
        ["trace", scored, "-p", site.name],
        ["dead-letters", site.name, "show"],
        ["audit", site.name, "--chain"],
    )
    done = await asyncio.gather(*(site.command(*words) for words in asked))
    return [(one.stdout + one.stderr).encode() for one in done]


async def champion(site: Site, viewer: Visitor) -> str:
    """The name of the model that is in force; empty before there is one."""
    return next((arm["model"] for arm in viewer.ask(f"/v1/{site.name}/deployments").fact["now"]["arms"]), "")


def test_what_is_marked_is_found_in_whatever_dress():
    """
    As it is, in capitals, in hexadecimal, in two bytes a letter, in base64 from wherever it begins; and nothing else is.
    """
    marked = Marked(["a secret of some length"])
    card = marked.person(7)["card"]
    dressed = [card.encode(), card.upper().encode(), card.encode().hex().encode(), card.encode("utf-16-le")]
    dressed += [base64.b64encode(bytes(before) + card.encode()) for before in range(3)]
    assert [set(found_in({"a place": [one]}, marked)) for one in dressed] == [{"a person"}] * 7
    assert set(found_in({"a place": [b"it is a SECRET of some length"]}, marked)) == {"secret 0"}
    assert set(found_in({"a place": [b"a person", b"a secret of no length"]}, marked)) == set()


async def test_no_secret_and_nothing_personal_is_found_behind_intake(secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Topics behind intake, the registry's among them, the store, models, logs, metrics, dead letters, files, commands, all that the gateway
    and its console tell anybody: 0 found, with a model that was trained of it and scores. Refused records are sealed, and who has the
    key can open them.
    """
    for name, value in secured.environment.items():
        monkeypatch.setenv(name, value)
    key = uuid4().hex + uuid4().hex
    tokens = {role: new_token(f"the-{role}", [role]) for role in GIVEN}
    marked = Marked([*secured.secrets, key, *(token for token, _ in tokens.values())])
    site = settled(secured, tmp_path, key, [line for _, line in tokens.values()])
    await site.create()
    values, faulty, told = payments(marked, int(time.time() * 1000))
    await site.put(site.payments, values)
    await site.put(site.told, told)
    with ExitStack() as running:
        processes = [running.enter_context(site.process(service)) for service in SERVICES]
        for service in SERVICES:
            await until(lambda service=service: site.is_ready(service))
        door = json.loads((site.folder / "gateway.json").read_text())["http"]
        programs = {role: Visitor(door, token) for role, (token, _) in tokens.items()}
        visitors = [*programs.values(), Visitor(door), *(Browser(door, token) for token, _ in tokens.values()), Browser(door)]
        model = await until(lambda: champion(site, programs["viewer"]))
        await until(lambda: all_answered(site, PEOPLE - faulty))
        scored = await until(lambda: by_the_model(site, programs["scorer"], marked.person(1)))
        asked(site, programs["scorer"], marked)
        programs["operator"].ask(f"/v1/{site.name}/models/pause", b'{"reason": "to look around"}')
        asked_by_name(site, Visitor(door, tokens["viewer"][0]), marked.person(1))
        looked_at(visitors, site.name, named(site, model, [scored, "p9"]))
        screens = await by_command(site, scored)
        metrics = [site.ops(service, path).encode() for service in SERVICES for path in ("/metrics", "/readyz")]
        for process in processes:
            process.terminate()  # all at once: each drains for a while
    topics = await everything_on(secured.broker.address)
    letters = await letters_of(site)
    upstream = {name: topics.pop(name) for name in (site.payments, site.told)}
    answers = [told for visitor in visitors for told in visitor.told]
    places: Mapping[str, Sequence[bytes]] = {
        **topics,
        "the store": everything_in(secured.store_port, secured.redis_password),
        "answers": [part for told in answers for part in (told.path.encode(), told.head, told.body)],
        "screens": screens,
        "metrics": metrics,
        "models": [place.read_bytes() for place in (tmp_path / "models").rglob("*") if place.is_file()],
        "logs and files": [place.read_bytes() for place in tmp_path.rglob("*") if place.is_file() and place.suffix != ".secret"],
    }
    assert found_in(upstream, marked)["a person"] >= PEOPLE, "nothing was marked"
    assert {name for name in busy(site) if not places.get(name)} == set()
    assert sum(len(held) for held in topics.values()) > 4 * PEOPLE
    seen_by_all(site, visitors, model, scored)
    assert {name: found for name, held in places.items() if (found := found_in({name: held}, marked))} == {}
    opened_by_the_key(letters, faulty, marked, key)


def settled(secured: Secured, folder: Path, key: str, tokens: Sequence[str]) -> Site:
    """The pipeline with every setting that a service may need; secrets in files."""
    generate_keys(folder / "keys")
    made = Site(
        secured.environment,
        folder,
        tick="10s",
        PII_KEY_FILE=secret_file(folder / "pii.secret", key),
        MODEL_STORE=str(folder / "models"),
        MODEL_PUBLIC_KEY=str(folder / "keys" / "model-public.pem"),
        MODEL_PRIVATE_KEY=str(folder / "keys" / "model-private.pem"),
        TOKENS_FILE=secret_file(folder / "tokens", "\n".join(tokens)),
        HTTP_PORT="0",
    )
    (folder / "models").mkdir()
    return made


async def all_answered(site: Site, n: int) -> bool:
    return len(await site.records(site.topics.predictions)) >= n


def named(site: Site, model: str, ids: Sequence[str]) -> dict[str, Sequence[str]]:
    """Values for what the gateway's paths name."""
    return {"id": ids, "name": [model], "model": [site.name, model], "version": ["1"], "view": ["spent"], "key": ["nobody"]}


def seen_by_all(site: Site, visitors: Sequence[Visitor], model: str, scored: str) -> None:
    """Who has a token was told what the model said of the event, and of no error of ours; strangers were told nothing of it."""
    for visitor in visitors:
        telling = {told.path for told in visitor.told if told.status == 200 and model.encode() in told.body}
        path = f"/{site.name}/events/{scored}" if isinstance(visitor, Browser) else f"/v1/{site.name}/events/{scored}"
        assert (path in telling) == bool(visitor.token)
        assert [told.path for told in visitor.told if told.status >= 500] == []


def busy(site: Site) -> set[str]:
    """Where something has to be, or else nothing was searched."""
    topics = {topic.name for kind, topic in site.topics.by_kind().items() if kind != "clock"}
    return {*topics, "_schemas", "the store", "answers", "screens", "metrics", "models", "logs and files"}


def found_in(places: Mapping[str, Sequence[bytes]], marked: Marked) -> Counter[str]:
    """How often each marked thing is there."""
    held = b"\n".join(one for values in places.values() for one in values).lower()
    return +Counter({name: sum(held.count(dress.lower()) for dress in dresses) for name, dresses in marked.needles().items()})


async def letters_of(site: Site) -> list[Letter]:
    reader = LogReader(site.kafka, site.topics.dead_letters, Registry(site.environment["DRIFTLINE_REGISTRY"]))
    await reader.start()
    batches = await reader.read_to()
    await reader.stop()
    return [letter for batch in batches.values() for letter in letters_in(batch)]


def opened_by_the_key(letters: Sequence[Letter], faulty: int, marked: Marked, key: str) -> None:
    """Sealed all of them, of every kind, and whole under the key."""
    assert len(letters) == faulty
    assert {letter.sealed for letter in letters} == {True}
    assert {letter.reason for letter in letters} >= {"undecodable", "contract", "missing_id", "future"}
    opened = [unseal(letter.value or b"", pii_key({"DRIFTLINE_PII_KEY": key})) for letter in letters]
    assert [one for one in opened if marked.mark.encode() not in one] == []
