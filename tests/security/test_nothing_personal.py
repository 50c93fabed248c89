"""
Secrets and marked personal values sent through every path, on secured servers, with every service: none of them is found anywhere behind
intake. PERSONAL_VALUES says how many people there are (a thousand; ten thousand take a minute more).
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
import urllib.error
import urllib.request
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

from driftline.contracts.registry import Registry
from driftline.contracts.topics import SERVICES
from driftline.local.server import HOST
from driftline.models.bundle import generate_keys
from driftline.operate.dead_letters import Letter, letters_in, pii_key
from driftline.stream.dead_letters import unseal
from driftline.stream.kafka import LogReader

PEOPLE = int(os.environ.get("PERSONAL_VALUES", "1000"))
FAULTY_EACH = 20  # one record in so many is refused
HOUR_MS = 3_600_000
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


def payments(marked: Marked, now_ms: int) -> tuple[list[bytes], int]:
    """One payment of each person, and how many of them break the contract, each in another way."""
    chance, values, faulty = random.Random(7), [], 0
    for number in range(PEOPLE):
        person = marked.person(number)
        payment = {"payment_id": f"p{number}", **person, "paid_at": now_ms + number % 1000, "amount": 2.5}
        if number % FAULTY_EACH:
            values.append(json.dumps(payment).encode())
            continue
        faulty += 1
        values.append(chance.choice(FAULTS)(payment))
    return values, faulty


FAULTS = (
    lambda payment: json.dumps(payment).encode()[:-1],
    lambda payment: json.dumps(payment | {"amount": payment["holder"]}).encode(),
    lambda payment: json.dumps(payment | {"paid_at": payment["card"]}).encode(),
    lambda payment: json.dumps({name: value for name, value in payment.items() if name != "payment_id"}).encode(),
    lambda payment: json.dumps(payment | {"paid_at": payment["paid_at"] + 200 * HOUR_MS}).encode(),
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


def asked(url: str, body: bytes | None = None) -> bytes:
    """What the gateway answers, an error included: head and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=60) as answer:
            return str(answer.headers).encode() + bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return str(error.headers).encode() + error.read()


def through_the_gateway(site: Site, marked: Marked, now_ms: int) -> list[bytes]:
    """Answers to people's own payments, good and faulty, and to whoever looks at them afterwards."""
    door = json.loads((site.folder / "gateway.json").read_text())["http"]
    url = f"{door}/v1/{site.name}"
    good = [{"payment_id": f"g{n}", **marked.person(n), "paid_at": now_ms, "amount": 1.0} for n in range(20)]
    told = [asked(f"{url}/score?timeout_s=30", json.dumps(one).encode()) for one in good[:3]]
    told.append(asked(f"{url}/score/batch?timeout_s=30", json.dumps(good).encode()))
    told += [asked(f"{url}/score", fault(good[0] | {"payment_id": "f1"})) for fault in FAULTS]
    told.append(asked(f"{url}/score/batch", b"[" + b",".join(fault(good[0]) for fault in FAULTS[:5]) + b"]"))
    paths = ["status", "models", "deployments", "reports", "retrains", "dead-letters", "predictions/g0", "events/g0", "events/p1"]
    return told + [asked(f"{url}/{path}") for path in paths] + [asked(f"{door}/openapi.json")]


async def by_command(site: Site) -> list[bytes]:
    """What an operator's screen shows without asking for what records hold."""
    said = []
    for words in (
        ["status", site.name],
        ["trace", "p1", "-p", site.name],
        ["dead-letters", site.name, "show"],
        ["audit", site.name, "--chain"],
    ):
        done = await site.command(*words)
        said.append((done.stdout + done.stderr).encode())
    return said


async def test_no_secret_and_nothing_personal_is_found_behind_intake(secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Topics behind intake, the store, logs, metrics, dead letters, files, the gateway's answers, commands: 0 found. Refused records are
    sealed, and who has the key can open them.
    """
    for name, value in secured.environment.items():
        monkeypatch.setenv(name, value)
    key = uuid4().hex + uuid4().hex
    marked = Marked([*secured.secrets, key])
    site = settled(secured, tmp_path, key)
    await site.create()
    values, faulty = payments(marked, int(time.time() * 1000) - 3 * 24 * HOUR_MS)
    with ExitStack() as running:
        for service in SERVICES:
            running.enter_context(site.process(service))
        for service in SERVICES:
            await until(lambda service=service: site.is_ready(service))
        await site.put(site.payments, values)
        told_at = int(time.time() * 1000) - 2 * 24 * HOUR_MS
        charged = [{"payment_id": f"p{n}", "card": marked.person(n)["card"], "told_at": told_at, "loss": 20} for n in range(1, PEOPLE, 10)]
        await site.put(site.told, [json.dumps(one).encode() for one in charged])
        await until(lambda: all_answered(site, PEOPLE - faulty))
        await until(lambda: site.records(site.topics.examples))
        answers = through_the_gateway(site, marked, int(time.time() * 1000))
        screens = await by_command(site)
        metrics = [site.ops(service, path).encode() for service in SERVICES for path in ("/metrics", "/readyz")]
    topics = await everything_on(secured.broker.address)
    letters = await letters_of(site)
    upstream = {name: topics.pop(name) for name in (site.payments, site.told)}
    places: Mapping[str, Sequence[bytes]] = {
        **topics,
        "the store": everything_in(secured.store_port, secured.redis_password),
        "answers": answers,
        "screens": screens,
        "metrics": metrics,
        "logs and files": [place.read_bytes() for place in tmp_path.rglob("*") if place.is_file() and place.suffix != ".secret"],
    }
    assert found_in(upstream, marked)["a person"] >= PEOPLE, "nothing was marked"
    assert {name for name in busy(site) if not places[name]} == set()
    assert sum(len(held) for held in topics.values()) > 4 * PEOPLE
    assert {name: found for name, held in places.items() if (found := found_in({name: held}, marked))} == {}
    opened_by_the_key(letters, faulty, marked, key)


def settled(secured: Secured, folder: Path, key: str) -> Site:
    """The pipeline with every setting that a service may need; secrets in files."""
    generate_keys(folder / "keys")
    made = Site(
        secured.environment,
        folder,
        PII_KEY_FILE=secret_file(folder / "pii.secret", key),
        MODEL_STORE=str(folder / "models"),
        MODEL_PUBLIC_KEY=str(folder / "keys" / "model-public.pem"),
        MODEL_PRIVATE_KEY=str(folder / "keys" / "model-private.pem"),
        GATEWAY_OPEN="loopback",
        HTTP_PORT="0",
    )
    (folder / "models").mkdir()
    return made


async def all_answered(site: Site, n: int) -> bool:
    return len(await site.records(site.topics.predictions)) >= n


def busy(site: Site) -> set[str]:
    """Where something has to be, or else nothing was searched."""
    topics = site.topics
    kinds = (topics.events, topics.features, topics.predictions, topics.journal, topics.dead_letters, topics.examples)
    return {topic.name for topic in kinds} | {"the store", "answers", "screens", "metrics", "logs and files"}


def found_in(places: Mapping[str, Sequence[bytes]], marked: Marked) -> Counter[str]:
    """How often each marked thing is there."""
    held = [one.lower() for values in places.values() for one in values]
    found: Counter[str] = Counter()
    for name, dresses in marked.needles().items():
        found[name] = sum(one.count(dress.lower()) for one in held for dress in dresses)
    return +found


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
