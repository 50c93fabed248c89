"""Intake on a real broker: a replay that is cut off, live mode, and upstream topics as other people write them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from prometheus_client import REGISTRY

from driftline.clock import SystemClock
from driftline.contracts.messages import ClockRecord, Deployment, End, Source, Writer, as_messages
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal, Recoverable
from driftline.features.murmur2 import partitions_of
from driftline.pipeline import load_pipeline
from driftline.stream import kafka as client
from driftline.stream.batch import Batch, Messages, Varlen
from driftline.stream.kafka import LogReader, Publisher, ensure_topics
from driftline.stream.records import Polled
from services.intake import app
from services.intake.app import IntakePart, Settings

TICK_MS = 1_000
START = 1_700_000_000_000
PARTITIONS = 2  # of the log
DECLARATION = """
from driftline import Pipeline, Stream, View, f

payments = Stream("payment.v1.avsc", topic="{name}-payments", id="payment_id", key="card", time="paid_at")
prices = Stream("price.v1.avsc", topic="{name}-prices", id="price_id", key="shop", time="set_at")
spent = View(of=payments, by="card", payments_1h=f.count(payments, "1h"))
level = View(of=prices, by="shop", broadcast=True, price=f.last("price", within="1h"))
pipeline = Pipeline("{name}", owner="tests@example.org", question=payments, inputs=[spent, level], tick="1s")
"""
TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMAS = {
    "payment": {"payment_id": "string", "card": "string", "shop": "string", "paid_at": TIME},
    "price": {"price_id": "string", "shop": "string", "set_at": TIME, "price": "double"},
}


def payment(number: int, at_ms: int) -> bytes:
    return json.dumps({"payment_id": f"p{number}", "card": f"c{number % 7}", "shop": "s1", "paid_at": at_ms}).encode()


def price(number: int, at_ms: int) -> bytes:
    return json.dumps({"price_id": f"q{number}", "shop": "s1", "set_at": at_ms, "price": 1.5}).encode()


@dataclass
class Upstream:
    """A pipeline of two streams, its topics, and the intake that reads them."""

    kafka: str
    folder: Path
    name: str = field(default_factory=lambda: f"i{uuid4().hex[:8]}")
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)

    def __post_init__(self) -> None:
        place = self.folder / self.name
        place.mkdir()
        (place / "pipeline.py").write_text(DECLARATION.format(name=self.name))
        for name, fields in SCHEMAS.items():
            schema = {"type": "record", "name": name.title(), "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}
            (place / f"{name}.v1.avsc").write_text(json.dumps(schema))
        self.pipeline = load_pipeline(self.name, self.folder)
        self.topics = Topics.of(self.pipeline)
        self.payments, self.prices = (stream.topic for stream in self.pipeline.streams)

    async def create(self) -> None:
        await ensure_topics(self.kafka, self.topics, PARTITIONS)
        large = {"max.message.bytes": str(8 << 20)}
        async with admin(self.kafka) as broker:
            await broker.create_topics([NewTopic(self.payments, 2, 1, topic_configs=large), NewTopic(self.prices, 1, 1)])

    async def put(self, topic: str, partition: int, *values: bytes | None) -> None:
        """Append as an application would, one after the other."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka, max_request_size=8 << 20, enable_idempotence=True)
        async with asyncio.timeout(60):  # an idempotent one may wait for its epoch for ever (aiokafka's issue 1017)
            await producer.start()
            for value in values:
                await producer.send_and_wait(topic, value, key=b"any", partition=partition)
            await producer.stop()

    async def publish(self, writer: Writer, *messages: Messages) -> None:
        publisher = Publisher(self.kafka, self.topics, self.registry, writer)
        await publisher.start()
        await publisher.send(*messages)
        await publisher.stop()

    def intake(self, *, replay: bool = False) -> IntakePart:
        settings = Settings(pipeline=self.name, registry="", kafka=self.kafka, replay=replay)
        return IntakePart(settings, self.pipeline, self.topics, self.registry, SystemClock())  # type: ignore[arg-type]  # in memory

    async def read(self, topic: Topic) -> dict[int, Batch]:
        reader = LogReader(self.kafka, topic, self.registry)
        await reader.start()
        try:
            return await reader.read_to()
        finally:
            await reader.stop()

    async def log(self) -> dict[int, list[tuple[Any, ...]]]:
        """First copies on each partition, in order: ("tick", number, deployment) or (id, whether at home)."""
        return {partition: in_order(batch) for partition, batch in (await self.read(self.topics.events)).items()}

    async def letters(self) -> list[tuple[str, int, str]]:
        """(topic, offset, reason) of every dead letter."""
        batches = await self.read(self.topics.dead_letters)
        records = [record for batch in batches.values() for record in batch.tables["dead_letter"].records()]
        return [(record["topic"], record["offset"], record["reason"]) for record in records]


def in_order(batch: Batch) -> list[tuple[Any, ...]]:
    found: list[tuple[int, tuple[Any, ...]]] = []
    if (ticks := batch["tick"]) is not None:
        found += [(at, ("tick", one["offset"], one["deployment"])) for at, one in zip(ticks.offsets.tolist(), ticks.records(), strict=True)]
    if (events := batch["event"]) is not None:
        found += [(at, (one["id"], one["home"])) for at, one in zip(events.offsets.tolist(), events.records(), strict=True)]
    return [what for _, what in sorted(found)]


@contextlib.asynccontextmanager
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    broker = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def running(part: IntakePart) -> AsyncIterator[asyncio.Task[None]]:
    """Let it run, then let it drain."""
    task = asyncio.create_task(part.run())
    try:
        yield task
    finally:
        part.stop()
        await task


async def until(found: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """What `found`, asked time and again, gives as soon as it gives something."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not (answer := await found()):
        assert asyncio.get_running_loop().time() < deadline, "it did not come"
        await asyncio.sleep(0.1)
    return answer


@pytest.fixture
async def upstream(kafka: str, tmp_path: Path) -> Upstream:
    made = Upstream(kafka, tmp_path)
    await made.create()
    return made


# ---- replay

STEPS = 6


def history(upstream: Upstream) -> dict[tuple[str, int], list[tuple[int, str, bytes]]]:
    """By topic and partition: (visible, id, value), ascending, with many ties."""
    paid = [(START + 97 * n // 5 * 5, f"p{n}", payment(n, START + 97 * n // 5 * 5)) for n in range(120)]
    priced = [(START + 305 * n, f"q{n}", price(n, START + 305 * n)) for n in range(40)]
    return {(upstream.payments, 0): paid[::2], (upstream.payments, 1): paid[1::2], (upstream.prices, 0): priced}


async def declare(upstream: Upstream, told: dict[tuple[str, int], list[tuple[int, str, bytes]]]) -> int:
    """Publish the records and, in steps of two seconds, a clock; the step's number is the deployment in force. Returns its end."""
    for (topic, partition), records in told.items():
        await upstream.put(topic, partition, *(value for _, _, value in records))
    steps = []
    for step in range(1, STEPS + 1):
        time = START + 2_000 * step
        ends = tuple(End(topic, partition, sum(at < time for at, _, _ in records)) for (topic, partition), records in told.items())
        steps.append(ClockRecord(time, step, ends, step == STEPS))
    numbers = list(range(STEPS))
    at: dict[str, Any] = {"source": Source.CLOCK, "offsets": numbers, "indexes": [0] * STEPS, "partition": 0, "to": 0}
    await upstream.publish(Writer.PLAYER, as_messages("clock", ClockRecord.message, steps, **at))
    return START + 2_000 * STEPS


def expected(upstream: Upstream, told: dict[tuple[str, int], list[tuple[int, str, bytes]]], end: int) -> dict[int, list[tuple[Any, ...]]]:
    """The one log that follows from `told`, written down without any of intake's code."""
    rows = []
    for (topic, partition), records in told.items():
        number = 0 if topic == upstream.payments else 1
        rows += [(at, number, partition, offset, name, value) for offset, (at, name, value) in enumerate(records) if at < end]
    logs: dict[int, list[tuple[Any, ...]]] = {partition: [] for partition in range(PARTITIONS)}
    for partition, log in logs.items():
        tick = START // TICK_MS
        for at, number, _, _, name, value in sorted(rows):
            while tick * TICK_MS <= at:
                log.append(("tick", tick, deployment(tick)))
                tick += 1
            fields = json.loads(value)
            home = int(partitions_of(Varlen.of([fields["card" if number == 0 else "shop"]]), PARTITIONS)[0]) == partition
            if home or number == 1:
                log.append((name, home))
        log += [("tick", late, deployment(late)) for late in range(tick, end // TICK_MS + 1)]
    return logs


def deployment(tick: int) -> int:
    """What the clock says for it: the first step that reaches it."""
    return max(1, -(-(tick * TICK_MS - START) // 2_000))


async def complete(upstream: Upstream, end: int) -> bool:
    log = await upstream.log()
    return len(log) == PARTITIONS and all(any(one[:2] == ("tick", end // TICK_MS) for one in records) for records in log.values())


async def test_a_replay_gives_the_one_log(upstream: Upstream):
    """
    Records by visible time, ties by stream, partition and offset, ticks before what is not earlier, each with its deployment.
    """
    told = history(upstream)
    end = await declare(upstream, told)
    async with running(upstream.intake(replay=True)):
        await until(lambda: complete(upstream, end))
    assert expected(upstream, told, end) == await upstream.log()


async def test_a_restart_judges_a_record_by_the_clock_record_that_covers_it(upstream: Upstream):
    """
    What was too far ahead when it was read is refused again after a restart, though the clock has gone on meanwhile.
    """
    minute_ms, first, second = 60_000, START + 10_000, START + 430_000
    ahead = [START, first + 2 * minute_ms, first + 6 * minute_ms]  # on the log at once, later, and never
    await upstream.put(upstream.payments, 0, *(payment(n, at) for n, at in enumerate(ahead)))
    ends = (End(upstream.payments, 0, 3), End(upstream.payments, 1, 0), End(upstream.prices, 0, 0))
    for number, time in enumerate((first, second)):
        told = [ClockRecord(time, number, ends, number == 1)]
        at: dict[str, Any] = {"source": Source.CLOCK, "offsets": [number], "indexes": [0], "partition": 0, "to": 0}
        await upstream.publish(Writer.PLAYER, as_messages("clock", ClockRecord.message, told, **at))
        async with running(upstream.intake(replay=True)):
            await until(lambda time=time: complete(upstream, time))
            await asyncio.sleep(0.5)
    assert await ids(upstream) == {"p0", "p1"}
    assert await upstream.letters() == [(upstream.payments, 2, "future")]


class Killed(Exception):
    """As kill -9 would: nothing after it happens."""


@pytest.fixture
def dying_sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """
    The fifth send reaches one partition only, and the process dies of it; the next one dies at its sixth, and so on, so that one of them
    lives long enough. The list counts the deaths.
    """
    deaths: list[int] = []

    class DiesHalfway(client.Sink):
        sends = 0

        async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
            self.sends += 1
            if self.sends == 5 + len(deaths):
                await super().send([one for one in messages if one.to == len(deaths) % PARTITIONS], partition, now_ms)
                deaths.append(self.sends)
                raise Killed
            return await super().send(messages, partition, now_ms)

    monkeypatch.setattr(app, "Sink", DiesHalfway)
    return deaths


async def test_a_replay_that_is_killed_while_only_some_partitions_have_their_records_gives_the_same_log(
    upstream: Upstream, dying_sink: list[int], monkeypatch: pytest.MonkeyPatch
):
    """
    Started again from what was committed, as often as it takes; first copies are the log of an unbroken run, nothing in between lost.
    """
    monkeypatch.setattr(app, "EMIT_MAX", 17)
    told = history(upstream)
    end = await declare(upstream, told)
    while not await complete(upstream, end):
        task = asyncio.create_task(upstream.intake(replay=True).run())
        with contextlib.suppress(TimeoutError, Killed):
            await asyncio.wait_for(task, 5)
    assert expected(upstream, told, end) == await upstream.log()
    assert len(dying_sink) > 1


async def test_what_a_replaced_process_commits_behind_its_successor_is_put_right(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    Though nothing is new: or what was read long ago might be deleted, and the next start would take it for lost.
    """
    monkeypatch.setattr(app, "MARK_AGAIN_S", 0.5)
    told = history(upstream)
    end = await declare(upstream, told)
    group, place = f"{upstream.name}-intake", TopicPartition(upstream.payments, 0)

    async def committed(offset: int) -> bool:
        return (await client.committed_metadata(upstream.kafka, group))[place.topic, place.partition][0] == offset

    async with running(upstream.intake(replay=True)):
        await until(lambda: complete(upstream, end))
        last = len(told[upstream.payments, 0])
        await until(lambda: committed(last))
        replaced = client.Source(upstream.kafka, *place, group=group)
        await replaced.start()
        await replaced.mark(last - 1, (await client.committed_metadata(upstream.kafka, group))[place.topic, place.partition][1])
        await replaced.stop()
        await until(lambda: committed(last))


async def test_a_source_that_fails_while_it_is_waited_for_is_connected_again(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    The merge waits for the records of a source, and hears of it when that source will give none.
    """
    faults: list[str] = []

    class Fails(client.Source):
        async def poll(self, records_max: int, timeout_ms: int) -> Any:
            if not faults and self._where.startswith(upstream.prices):
                await asyncio.sleep(1.0)  # the others are read by now, and the merge waits for this one
                faults.append(self._where)
                raise Recoverable("the connection was lost")
            return await super().poll(records_max, timeout_ms)

    monkeypatch.setattr(app, "Source", Fails)
    told = history(upstream)
    end = await declare(upstream, told)
    async with running(upstream.intake(replay=True)):
        await until(lambda: complete(upstream, end))
    assert faults and expected(upstream, told, end) == await upstream.log()


async def test_more_records_of_one_time_than_may_wait_do_not_hold_the_log(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    As of a table that is published once a day: the source that holds the log goes on by itself.
    """
    monkeypatch.setattr(app, "WAITING_MAX", 20)
    monkeypatch.setattr(app, "POLL_MAX", 10)
    told = history(upstream)
    told[upstream.prices, 0] = [(START + 3_000, f"q{n}", price(n, START + 3_000)) for n in range(90)]
    end = await declare(upstream, told)
    async with running(upstream.intake(replay=True)):
        await until(lambda: complete(upstream, end))
    assert expected(upstream, told, end) == await upstream.log()


# ---- live


def now_ms() -> int:
    return SystemClock().now_ms()


async def ids(upstream: Upstream) -> set[str]:
    return {one[0] for log in (await upstream.log()).values() for one in log if one[0] != "tick"}


async def test_live_records_flow_ticks_follow_the_clock_and_broken_ones_are_set_aside(upstream: Upstream):
    """
    Each record at home where murmur2 puts its key; every tick once, on every partition, without a gap; none before its time.
    """
    async with running(upstream.intake()) as task:
        for n in range(30):
            await upstream.put(upstream.payments, n % 2, payment(n, now_ms()))
        await upstream.put(upstream.payments, 0, b"{broken", None)
        await upstream.put(upstream.prices, 0, price(0, now_ms()))
        await until(lambda: has(upstream, {"p29", "q0"}))
        await upstream.put(upstream.payments, 1, b"{broken")  # alone, and nothing after it
        await asyncio.sleep(3.0)
        assert not task.done()
        whole = {"pipeline": upstream.name, "service": "intake", "topic": f"{upstream.name}-events", "partition": "all"}
        assert REGISTRY.get_sample_value("driftline_partition_ready", whole) == 1
    assert REGISTRY.get_sample_value("driftline_partition_ready", whole) == 0
    counted = {"pipeline": upstream.name, "service": "intake", "topic": upstream.payments}
    assert REGISTRY.get_sample_value("driftline_hop_duration_seconds_count", counted) == 33  # the refused too
    assert REGISTRY.get_sample_value("driftline_messages_read_total", counted) == 33
    settled = {
        how: REGISTRY.get_sample_value("driftline_messages_total", {**counted, "outcome": how}) for how in ("applied", "dead_lettered")
    }
    assert settled == {"applied": 30, "dead_lettered": 3}
    assert [REGISTRY.get_sample_value("driftline_lag_messages", {**counted, "partition": one}) for one in ("0", "1")] == [0, 0]
    assert [REGISTRY.get_sample_value("driftline_lag_seconds", {**counted, "partition": one}) for one in ("0", "1")] == [0, 0]
    log = await upstream.log()
    cards = {n: int(partitions_of(Varlen.of([f"c{n % 7}"]), PARTITIONS)[0]) for n in range(30)}
    for partition, records in log.items():
        mine = {f"p{n}" for n, home in cards.items() if home == partition}
        assert {name for name, home in pairs(records) if home} - {"q0"} == mine
        ticks = [one[1] for one in records if one[0] == "tick"]
        assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))
        assert len(ticks) >= 3 and ticks[-1] * TICK_MS <= now_ms()
    assert sum(("q0", True) in records for records in log.values()) == 1
    assert [
        (upstream.payments, 15, "undecodable"),
        (upstream.payments, 15, "undecodable"),
        (upstream.payments, 16, "undecodable"),
    ] == sorted(await upstream.letters())


async def test_live_a_backlog_of_more_than_may_wait_does_not_wait_for_itself(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    Only what was read when the ends were asked for may go: so they are asked for again, long before the backlog is read to its end.
    """
    monkeypatch.setattr(app, "WAITING_MAX", 20)
    monkeypatch.setattr(app, "POLL_MAX", 10)
    monkeypatch.setattr(app, "SILENCE_S", 3_600.0)  # a new session would help itself out
    for n in range(200):
        await upstream.put(upstream.payments, 0, payment(n, now_ms()))
    async with running(upstream.intake()):
        await until(lambda: has(upstream, {f"p{n}" for n in range(200)}))


async def test_live_a_source_whose_end_is_told_late_lets_nothing_overtake(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    What arrives between the asking of one source's end and of another's is not emitted before what the first one held by then.
    """
    armed: list[bool] = []

    class Late(app.Ends):
        async def now(self, places: Sequence[tuple[str, int]]) -> list[int]:
            found = {}
            for place in sorted(places, key=lambda one: one[0] == upstream.prices):
                if armed and place[0] == upstream.prices:  # the ends of the others are told
                    armed.clear()
                    await upstream.put(upstream.payments, 0, payment(1, now_ms()))
                    await asyncio.sleep(0.01)
                    await upstream.put(upstream.prices, 0, price(1, now_ms()))
                    await asyncio.sleep(0.5)  # both are read meanwhile
                (found[place],) = await super().now([place])
            return [found[place] for place in places]

    monkeypatch.setattr(app, "Ends", Late)
    async with running(upstream.intake()):
        await upstream.put(upstream.payments, 0, payment(0, now_ms()))
        await until(lambda: has(upstream, {"p0"}))
        armed.append(True)
        await until(lambda: has(upstream, {"p1", "q1"}))
    log = await upstream.log()
    order = next(names for records in log.values() if "p1" in (names := [one[0] for one in records]))
    assert order.index("p1") < order.index("q1")


class Endless:
    """A source that always has ten records more, of a hundred bytes each."""

    def __init__(self) -> None:
        self.at = 0

    async def poll(self, records_max: int, timeout_ms: int) -> Polled:
        await asyncio.sleep(0)
        offsets, self.at = range(self.at, self.at + 10), self.at + 10
        return Polled.of(offsets, [b"any"] * 10, [b"x" * 100] * 10, [1] * 10)

    async def position(self) -> int:
        return self.at


@pytest.mark.parametrize("limit", [{"WAITING_MAX": 40}, {"WAITING_BYTES_MAX": 4_000}])
async def test_a_source_that_is_faster_than_the_merge_is_read_ahead_no_further_than_may_wait(
    limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    """
    Records or bytes, whichever there are too many of; and on when some were taken.
    """
    for name, most in limit.items():
        monkeypatch.setattr(app, name, most)
    source = Endless()
    ahead = app.Upstream(source, (0, 0), "payments", asyncio.Event())  # type: ignore[arg-type]
    pump = asyncio.create_task(ahead.pump())
    for taken in (0, 10, 20):
        if taken:
            assert len(ahead.take(1_000_000) or ()) == 10
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert source.at == 40 + taken
    pump.cancel()


def pairs(records: list[tuple[Any, ...]]) -> list[tuple[str, bool]]:
    return [(one[0], one[1]) for one in records if one[0] != "tick"]


async def has(upstream: Upstream, names: set[str]) -> bool:
    return names <= await ids(upstream)


async def test_ticks_go_on_after_a_restart_and_name_the_deployment_in_force(upstream: Upstream):
    """
    No tick is left out or sent twice; and none names "no model" because the deployments were not read yet.
    """
    facts = [Deployment(version, "step", "canary", "", START, (), (), "", 0.5) for version in (3, 3)]  # a copy, as after a crash
    at: dict[str, Any] = {"source": Source.CONTROL, "indexes": [0], "partition": 0, "to": 0}
    for fact in facts:
        await upstream.publish(Writer.ROLLOUT, as_messages("deployments", Deployment.message, [fact], offsets=[3], **at))
    for n in range(2):
        async with running(upstream.intake()):
            await upstream.put(upstream.payments, 0, payment(n, now_ms()))
            await until(lambda n=n: has(upstream, {f"p{n}"}))
    for records in (await upstream.log()).values():
        ticks = [one for one in records if one[0] == "tick"]
        assert [number for _, number, _ in ticks] == list(range(ticks[0][1], ticks[0][1] + len(ticks)))
        assert {version for _, _, version in ticks} == {3}


async def test_a_copy_of_a_deployment_that_arrives_alone_stops_nobody(upstream: Upstream):
    """
    The rollout sends one again after a crash, and intake reads on.
    """
    fact = Deployment(4, "step", "canary", "", START, (), (), "", 0.5)
    at: dict[str, Any] = {"source": Source.CONTROL, "offsets": [4], "indexes": [0], "partition": 0, "to": 0}
    async with running(upstream.intake()):
        for n in range(2):
            await upstream.publish(Writer.ROLLOUT, as_messages("deployments", Deployment.message, [fact], **at))
            await upstream.put(upstream.payments, 0, payment(n, now_ms()))
            await until(lambda n=n: has(upstream, {f"p{n}"}))
        await asyncio.sleep(1.5)


async def test_deployments_that_are_slow_to_read_hold_no_record_up(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    After a silence their reader asks for the topic's end, and the broker answers that behind the fetch that waits on the same connection.
    """
    asked = asyncio.Event()

    class Slow(LogReader):
        async def next(self, timeout_s: float = 0.2) -> list[Batch]:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(app, "LogReader", Slow)
    async with running(upstream.intake()):
        await upstream.put(upstream.payments, 0, payment(0, now_ms()))
        await until(lambda: has(upstream, {"p0"}))
    assert asked.is_set()


async def test_a_deployment_that_comes_while_records_flow_is_in_force_from_then_on(upstream: Upstream):
    """
    Ticks name it.
    """
    fact = Deployment(5, "step", "canary", "", START, (), (), "", 0.5)
    at: dict[str, Any] = {"source": Source.CONTROL, "offsets": [5], "indexes": [0], "partition": 0, "to": 0}

    async def named() -> bool:
        return {5} == {records[-1][2] for records in (await upstream.log()).values() if records and records[-1][0] == "tick"}

    async with running(upstream.intake()):
        await upstream.put(upstream.payments, 0, payment(0, now_ms()))
        await until(lambda: has(upstream, {"p0"}))
        await upstream.publish(Writer.ROLLOUT, as_messages("deployments", Deployment.message, [fact], **at))
        await until(named)


async def test_a_record_that_is_too_large_for_us_is_set_aside_and_its_neighbours_go_on(upstream: Upstream):
    """
    Upstream's topics may hold larger records than ours; the letter keeps as much as fits.
    """
    await upstream.put(upstream.payments, 0, payment(0, now_ms()), b'{"payment_id": "' + b"x" * (3 << 20) + b'"}', payment(1, now_ms()))
    async with running(upstream.intake()):
        await until(lambda: has(upstream, {"p0", "p1"}))
    assert [(upstream.payments, 1, "too_large")] == await upstream.letters()


async def test_what_a_transaction_took_back_is_not_read_and_its_marker_holds_nobody_back(upstream: Upstream):
    """
    An upstream topic ends with what is no record; the other sources go on.
    """
    producer = AIOKafkaProducer(bootstrap_servers=upstream.kafka, transactional_id=f"{upstream.name}-shop")
    await producer.start()
    async with producer.transaction():
        await producer.send(upstream.payments, payment(0, now_ms()), partition=0)
    with contextlib.suppress(Killed):
        async with producer.transaction():
            await producer.send(upstream.payments, payment(1, now_ms()), partition=0)
            raise Killed
    await producer.stop()
    await upstream.put(upstream.prices, 0, price(0, now_ms()))
    async with running(upstream.intake()):
        await until(lambda: has(upstream, {"p0", "q0"}))
        await upstream.put(upstream.payments, 0, payment(2, now_ms()))
        await until(lambda: has(upstream, {"p2"}))
    assert await ids(upstream) == {"p0", "q0", "p2"}


async def test_records_that_were_deleted_before_they_were_read_are_told_of(upstream: Upstream):
    """
    Upstream kept them for too short: intake stops and names what to do, instead of trying for ever.
    """
    await upstream.put(upstream.payments, 0, payment(0, now_ms()))
    async with running(upstream.intake()):
        await until(lambda: has(upstream, {"p0"}))
        await asyncio.sleep(0.5)
    await upstream.put(upstream.payments, 0, *(payment(n, now_ms()) for n in range(1, 4)))
    async with admin(upstream.kafka) as broker:
        await broker.delete_records({TopicPartition(upstream.payments, 0): RecordsToDelete(before_offset=3)})
    with pytest.raises(Fatal, match="reset the offsets"):
        await asyncio.wait_for(upstream.intake().run(), 20)


async def test_a_drain_leaves_the_offsets_where_the_log_is(upstream: Upstream):
    """
    What is started after it repeats nothing.
    """
    async with running(upstream.intake()):
        await upstream.put(upstream.payments, 0, *(payment(n, now_ms()) for n in range(5)))
        await until(lambda: has(upstream, {"p4"}))
    for n in range(2):
        async with running(upstream.intake()):
            await upstream.put(upstream.prices, 0, price(n, now_ms()))
            await until(lambda n=n: has(upstream, {f"q{n}"}))
    reader = LogReader(upstream.kafka, upstream.topics.events, upstream.registry)
    await reader.start()
    await reader.read_to()
    await reader.stop()
    assert reader.copies == 0


async def grow(upstream: Upstream, topic: str, partitions: int) -> None:
    """Give a topic more partitions."""
    async with admin(upstream.kafka) as broker:
        await broker.create_partitions({topic: NewPartitions(partitions)})


async def grown_while_it_runs(upstream: Upstream) -> None:
    """What comes to a partition that is new is read, by a session that is."""
    async with running(upstream.intake()):
        await upstream.put(upstream.payments, 0, payment(0, now_ms()))
        await until(lambda: has(upstream, {"p0"}))
        await grow(upstream, upstream.payments, 3)
        await asyncio.sleep(1.0)
        await upstream.put(upstream.payments, 2, payment(1, now_ms()))
        await until(lambda: has(upstream, {"p0", "p1"}))


async def test_partitions_that_an_upstream_topic_is_given_are_read_without_a_restart(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    Whoever grows a topic tells nobody.
    """
    monkeypatch.setattr(app, "COUNT_EVERY_S", 0.5)
    await grown_while_it_runs(upstream)


async def test_a_client_that_does_not_close_holds_up_nobody(upstream: Upstream, monkeypatch: pytest.MonkeyPatch):
    """
    The next session begins without it, and a drain ends.
    """
    monkeypatch.setattr(app, "COUNT_EVERY_S", 0.5)
    monkeypatch.setattr(client, "LET_GO_S", 0.2)

    class Stuck(app.Source):
        async def stop(self) -> None:
            await super().stop()
            await asyncio.sleep(60)

    monkeypatch.setattr(app, "Source", Stuck)
    await grown_while_it_runs(upstream)


async def test_a_log_that_was_given_partitions_is_refused(upstream: Upstream):
    """
    The same key would be in two partitions: what is folded for it would be half of the truth.
    """
    async with running(upstream.intake()):
        await upstream.put(upstream.payments, 0, payment(0, now_ms()))
        await until(lambda: has(upstream, {"p0"}))
        await until(lambda: committed(upstream, upstream.payments))
    await grow(upstream, upstream.topics.events.name, PARTITIONS + 1)
    with pytest.raises(Fatal, match=f"has {PARTITIONS + 1} partitions, but its keys are placed among {PARTITIONS}"):
        await asyncio.wait_for(upstream.intake().run(), 30)


async def committed(upstream: Upstream, topic: str) -> bool:
    """True when the group has committed an offset on `topic`."""
    return any(name == topic for name, _ in await client.committed_metadata(upstream.kafka, f"{upstream.name}-intake"))
