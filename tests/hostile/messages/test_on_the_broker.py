"""Intake and feature as processes on a real broker, mutants among good records: what comes out, what is set aside, what stops."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from mutations import Mutations, Record

from driftline.cli import app
from driftline.contracts.messages import schema
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import DriftlineError
from driftline.pipeline import load_pipeline
from driftline.stream.dead_letters import REASONS
from driftline.stream.kafka import LogReader, ensure_topics
from tests.processes import service as running_service

PATIENCE_S = 240.0
pytestmark = pytest.mark.timeout(900)  # processes of Python start and stop a dozen times, on machines that others use too
MUTANTS, STRANGE, GOOD, EARLY = 3_000, 400, 200, 14
FUTURE_MS = 5 * 60_000
KEY = bytes(range(32)).hex()
SURE = ("tombstone", "empty value", "no frame", "random bytes", "truncated", "bytes appended", "wrong schema id")
DECLARATION = """
from driftline import Pipeline, Stream, View, f

payments = Stream("payment.v1.avsc", topic="{name}-payments", id="payment_id", key="card", time="paid_at")
spent = View(of=payments, by="card", payments_1h=f.count(payments, "1h"), amount_1h=f.sum("amount", "1h"))
pipeline = Pipeline("{name}", owner="tests@example.org", question=payments, inputs=[spent], tick="1s")
"""
FIELDS = {"payment_id": "string", "card": "string", "paid_at": {"type": "long", "logicalType": "timestamp-millis"}, "amount": "double"}


def payment(id: str, at_ms: int) -> bytes:
    return json.dumps({"payment_id": id, "card": "c1", "paid_at": at_ms, "amount": 2.5}).encode()


def now_ms() -> int:
    return int(time.time() * 1000)


class Site:
    """A pipeline of its own on the shared servers, and its services as processes."""

    def __init__(self, kafka: str, redis: str, registry: str, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.name = f"h{uuid4().hex[:8]}"
        place = folder / self.name
        place.mkdir()
        (place / "pipeline.py").write_text(DECLARATION.format(name=self.name))
        fields = [{"name": name, "type": kind, "pii": name == "card"} for name, kind in FIELDS.items()]
        (place / "payment.v1.avsc").write_text(json.dumps({"type": "record", "name": "Payment", "fields": fields}))
        self.topics = Topics.of(load_pipeline(self.name, folder))
        self.payments = f"{self.name}-payments"
        self.registry = Registry(registry)
        servers = {"KAFKA": kafka, "REDIS": redis, "REGISTRY": registry, "PIPELINES": str(folder), "RUN_DIR": str(folder), "PII_KEY": KEY}
        self.environment = {**os.environ, **{f"DRIFTLINE_{name}": value for name, value in servers.items()}}

    async def create(self) -> None:
        await ensure_topics(self.kafka, self.topics, 1)
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        await admin.create_topics([NewTopic(self.payments, 1, 1, topic_configs={"max.message.bytes": str(4 << 20)})])
        await admin.close()

    @contextmanager
    def process(self, service: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """`driftline run`, asked to drain at the end, and killed when it does not."""
        with running_service(service, self.name, {**self.environment, **settings}, self.folder) as process:
            yield process

    async def put(self, topic: str, records: Sequence[Record]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka, max_request_size=4 << 20, enable_idempotence=True)
        await producer.start()
        for record in records:
            await producer.send(topic, record.value, key=record.key, partition=0)
        await producer.stop()

    async def records(self, topic: Any) -> list[dict[str, Any]]:
        """First copies of everything on a topic of ours."""
        reader = LogReader(self.kafka, topic, self.registry)
        await reader.start()
        batches = await reader.read_to()
        await reader.stop()
        return [record for batch in batches.values() for table in batch.tables.values() for record in table.records()]

    async def rows(self) -> Counter[str]:
        """How often each question was answered with a row."""
        return Counter(one["id"] for one in await self.records(self.topics.features) if "row" in one)

    def ops(self, service: str, path: str) -> str:
        address = json.loads((self.folder / f"{service}.json").read_text())["ops"]
        with urllib.request.urlopen(f"{address}{path}", timeout=5) as response:
            return str(response.read().decode())

    async def is_ready(self, service: str) -> bool:
        try:
            await asyncio.to_thread(self.ops, service, "/readyz")
        except (OSError, urllib.error.URLError, ValueError):
            return False
        return True

    def sums(self, service: str, topic: str) -> tuple[float, float]:
        """Read, and accounted for."""
        found = {"driftline_messages_read": 0.0, "driftline_messages": 0.0}
        for family in text_string_to_metric_families(self.ops(service, "/metrics")):
            for sample in family.samples:
                if family.name in found and sample.labels["topic"] == topic and sample.name.endswith("_total"):
                    found[family.name] += sample.value
        return found["driftline_messages_read"], found["driftline_messages"]

    async def letters(self, *arguments: str, pii_key: str = KEY) -> tuple[int, str]:
        """`driftline dead-letters` for this pipeline, as the command line runs it: exit status, and what it said."""
        environment = {**self.environment, "DRIFTLINE_PII_KEY": pii_key}
        done = await asyncio.to_thread(CliRunner().invoke, app, ["dead-letters", self.name, *arguments], env=environment)
        said = done.output + (str(done.exception) if isinstance(done.exception, DriftlineError) else "")
        return done.exit_code, said


async def until(what: Callable[[], Awaitable[Any]]) -> None:
    """Ask time and again until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not await what():
            await asyncio.sleep(0.3)


@pytest.fixture
async def site(kafka: str, redis_url: str, registry_url: str, tmp_path: Path) -> Site:
    made = Site(kafka, redis_url, registry_url, tmp_path)
    await made.create()
    return made


def mixed(site: Site, chance: random.Random) -> list[Record]:
    """Good payments, and mutants of others."""
    mutations = Mutations(chance, {})
    records = [Record(b"k", payment(f"good{n}", now_ms())) for n in range(GOOD)]
    records += [mutations.of(Record(b"k", payment(f"victim{n}", now_ms())))[1] for n in range(MUTANTS)]
    chance.shuffle(records)
    return records


async def strange(site: Site, chance: random.Random) -> list[Record]:
    """What a stranger might put on the pipeline's own log."""
    ids = {site.registry.register(f"driftline.{schema(name)['name']}", schema(name)): name for name in ("event", "tick")}
    events = [one for one, name in ids.items() if name == "event"]
    mutations = Mutations(chance, ids)
    good = Record(b"k", b"\0" + events[0].to_bytes(4, "big") + b"\x20\x00\x00\x00\x01\x02\x02a\x02b\x02\x02\x01\x00")
    found = [mutations.kinds[SURE[n % len(SURE)]](good) for n in range(STRANGE)]
    return [one for one in found if one.value != good.value]


async def test_services_stay_up_and_the_good_ones_come_out(site: Site):
    """
    On the upstream topic and on the pipeline's own log; what was refused is listed, shown and replayed, and the counts add up.
    """
    chance = random.Random(5)
    with ExitStack() as running:
        for service in ("intake", "feature"):
            running.enter_context(site.process(service))
        records = mixed(site, chance)
        await site.put(site.payments, records)
        await until(lambda: _all_rows(site, "good", GOOD))
        strangers = await strange(site, chance)
        await site.put(site.topics.events.name, strangers)
        await site.put(site.payments, [Record(b"k", payment(f"after{n}", now_ms())) for n in range(20)])
        await until(lambda: _all_rows(site, "after", 20))
        await until(lambda: site.is_ready("intake"))
        await until(lambda: site.is_ready("feature"))
        rows = await site.rows()
        assert {id: n for id, n in rows.items() if id.startswith(("good", "after")) and n != 1} == {}
        letters = await site.records(site.topics.dead_letters)
        by_topic = Counter(one["topic"] for one in letters)
        assert {one["reason"] for one in letters} <= set(REASONS)
        assert by_topic[site.payments] >= MUTANTS / 2
        read, accounted = site.sums("intake", site.payments)
        assert read == accounted == len(records) + 20
        assert by_topic[site.payments] == len(records) + 20 - await _events(site)
        await until(lambda: _adds_up(site))
        await _looked_at(site, by_topic)
        await _replayed(site)


async def _all_rows(site: Site, begins: str, n: int) -> bool:
    return sum(id.startswith(begins) for id in await site.rows()) == n


async def _events(site: Site) -> int:
    """How many records of the upstream topic are on the log."""
    return sum("body" in one for one in await site.records(site.topics.events))


async def _adds_up(site: Site) -> bool:
    read, accounted = site.sums("feature", site.topics.events.name)
    return read == accounted > GOOD


async def _looked_at(site: Site, by_topic: Counter[str]) -> None:
    """The commands, as an operator gives them."""
    status, listed = await site.letters()
    assert status == 0, listed
    assert {line.split()[0] for line in listed.splitlines()[1:]} == by_topic.keys()
    assert "feature" in listed and "undecodable" in listed
    status, wrong = await site.letters("replay", "--reason", "missing_id", "--since", "1h", "--wait-s", "120")
    assert (status, wrong.startswith("0 of "), "refused again" in wrong) == (1, True, True), wrong


async def _replayed(site: Site) -> None:
    """Payments of a time that is not yet: shown, and replayed once it is."""
    since = datetime.now(UTC).isoformat()
    due_ms = now_ms() + 15_000
    await site.put(site.payments, [Record(b"k", payment(f"early{n}", due_ms + FUTURE_MS)) for n in range(EARLY)])
    chosen = ("--reason", "future", "--since", since)
    await until(lambda: _told(site, chosen, f" {EARLY} "))
    _, shown = await site.letters("show", *chosen, "--newest", "1")
    assert "early" not in shown
    place = shown.split()[0]
    status, one = await site.letters("show", place, "--payload")
    assert (status, '"payment_id": "early' in one) == (0, True), one
    status, locked = await site.letters("show", place, "--payload", pii_key="")
    assert (status, "DRIFTLINE_PII_KEY" in locked, "early" in locked) == (1, True, False)
    assert (await site.letters("replay", *chosen, "--dry-run"))[1].startswith(f"{EARLY} of {EARLY} would be sent again")
    await asyncio.sleep(max(0.0, (due_ms - now_ms()) / 1000 + 1))  # until their time is less than five minutes ahead
    assert await site.letters("replay", *chosen, "--wait-s", "120") == (0, f"{EARLY} of {EARLY} accepted now\n")


async def _told(site: Site, chosen: Sequence[str], words: str) -> bool:
    return words in (await site.letters(*chosen))[1]


async def test_the_limit_of_dead_letters_holds_through_restarts(site: Site):
    """
    The service ends with words that say what to do; started again and again it writes nothing more; a larger limit lets it go on.
    """
    limit = {"DRIFTLINE_DEAD_LETTERS_MAX": "20"}
    with site.process("intake", **limit) as intake:
        await site.put(site.payments, [Record(None, b"{broken")] * 15)
        await until(lambda: _letters(site, 15))
        await site.put(site.payments, [Record(None, b"{broken")] * 15)
        assert await asyncio.to_thread(intake.wait, PATIENCE_S) == 1
    assert "DRIFTLINE_DEAD_LETTERS_MAX" in (site.folder / "intake.log").read_text()
    for _ in range(2):
        with site.process("intake", **limit) as intake:
            assert await asyncio.to_thread(intake.wait, PATIENCE_S) == 1
    assert await _letters(site, 15)
    with site.process("intake", DRIFTLINE_DEAD_LETTERS_MAX="100"):
        await until(lambda: _letters(site, 30))


async def _letters(site: Site, n: int) -> bool:
    return len(await site.records(site.topics.dead_letters)) == n
