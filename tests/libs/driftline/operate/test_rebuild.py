"""
State made anew from the log: the real services fold seeded flights on a real broker and a real store, their state is lost or spoilt, and
what the command does about it is compared with what they had.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from redis.asyncio import Redis

from driftline.clock import SystemClock
from driftline.contracts.avro import Codec, column
from driftline.contracts.messages import Source as Log
from driftline.contracts.messages import Writer
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Recoverable, Rejected
from driftline.features.murmur2 import partitions_of
from driftline.local.stack import Stack
from driftline.models.bundle import generate_keys
from driftline.operate import rows as rows_module
from driftline.operate.addresses import Addresses, environment_of
from driftline.operate.rebuild import STATEFUL, Job, Orders, Rebuilt, forget, jobs_of, rebuild_partition, wirings_of
from driftline.pipeline import Pipeline, load_pipeline
from driftline.settings import read
from driftline.stream.batch import Column, Messages, Varlen
from driftline.stream.kafka import LogReader, Publisher, Sink, Source, committed_metadata, ensure_topics
from driftline.stream.ledger import ALONE, LEDGER, TRIES, decoded, prefix_of
from driftline.stream.operators import group_of
from driftline.stream.records import Encoder
from driftline.stream.store import Store

ROOT = Path(__file__).parents[4]
START_MS = 1_356_998_400_000
HOUR_MS = 3_600_000
PARTITIONS = 2
AIRPORTS, CARRIERS = ["EWR", "JFK", "LGA"], ["UA", "AA", "B6"]


def flight(draw: np.random.Generator, number: int, asked: int) -> list[tuple[int, int, dict[str, Any]]]:
    """A flight, its departure and its arrival: number of the stream, when it is visible, the record."""
    id, tail, delay = f"F{number:06}", f"N{draw.integers(0, 12)}", int(draw.integers(-20, 60))
    origin, destination = draw.choice(AIRPORTS, 2, replace=False).tolist()
    line = {"flight_id": id, "tail": tail, "origin": origin, "destination": destination, "carrier": str(draw.choice(CARRIERS))}
    departs = asked + HOUR_MS
    departed, arrived = departs + 60_000 * delay, departs + 2 * HOUR_MS + 60_000 * delay
    asks = {"asked_at": asked, "departs_at": departs, "scheduled_departure": int(draw.integers(0, 2400)), "duration_min": 120}
    return [
        (0, asked, {**line, **asks}),
        (1, departed, {**line, "departed_at": departed, "departure_delay_min": delay}),
        (
            2,
            arrived,
            {**line, "arrived_at": arrived, "scheduled_departure": asks["scheduled_departure"], "arrival_delay_min": delay},
        ),
    ]


@dataclass
class Loop:
    """A pipeline of its own with the stateful services, in this process, and what intake would have put on its log."""

    addresses: Addresses
    pipeline: Pipeline
    environment: dict[str, str]
    published: int = 0
    ticked: int = field(default=START_MS // 600_000 - 1)

    @property
    def topics(self) -> Topics:
        return Topics.of(self.pipeline)

    async def publish(self, days: range, seed: int = 1, a_day: int = 40) -> None:
        """The flights of some days, in visible order, with ticks between them, broadcast to every partition as intake does."""
        draw = np.random.default_rng([seed, days.start])
        records = []
        for number in range(days.start * a_day, days.stop * a_day):
            records += flight(draw, number, START_MS + number * 24 * HOUR_MS // a_day)
        publisher = Publisher(self.addresses.kafka, self.topics, Registry(self.addresses.registry), Writer.INTAKE, SystemClock())
        ordered = sorted(records, key=lambda record: record[1])
        until = START_MS + days.stop * 24 * HOUR_MS
        for partition in range(PARTITIONS):
            await publisher.send(*self._messages(ordered, partition, until), partition=partition)
        self.published += len(ordered)
        self.ticked = until // self.pipeline.tick_ms
        await publisher.stop()

    def _messages(self, records: Sequence[tuple[int, int, dict[str, Any]]], partition: int, until: int) -> list[Messages]:
        tick_ms = self.pipeline.tick_ms
        numbers = np.arange(self.ticked + 1, until // tick_ms + 1)
        visible = np.array([record[1] for record in records], np.int64)
        keys = Varlen.of(record["tail"] for _, _, record in records)
        streams = self.pipeline.streams
        bodies = [self._body(streams[stream].schema, record) for stream, _, record in records]
        zeros = np.zeros(len(records), np.int64)
        places = np.argsort(np.concatenate([numbers * tick_ms * 2, visible * 2 + 1]), kind="stable")
        order = np.empty(len(places), np.int64)
        order[places] = np.arange(len(places))
        event: dict[str, Column] = {
            "source": np.array([Log.UPSTREAM + stream for stream, _, _ in records], np.int64),
            "partition": zeros,
            "offset": self.published + np.arange(len(records)),
            "index": zeros,
            "event_offset": zeros - 1,
            "id": Varlen.of(record["flight_id"] for _, _, record in records),
            "key": keys,
            "time": visible,
            "visible": visible,
            "home": partitions_of(keys, PARTITIONS) == partition,
            "body": Varlen.of(bodies),
        }
        ticks = np.zeros(len(numbers), np.int64)
        tick: dict[str, Column] = {
            "source": ticks,
            "partition": ticks,
            "offset": numbers,
            "index": ticks,
            "event_offset": ticks - 1,
            "time": numbers * tick_ms,
            "deployment": ticks,
        }
        n = len(numbers)
        return [Messages("events", "tick", None, tick, order[:n]), Messages("events", "event", keys, event, order[n:])]

    @staticmethod
    def _body(schema: Any, record: dict[str, Any]) -> bytes:
        return Codec(schema).encode({one["name"]: column(one["type"], [record[one["name"]]]) for one in schema["fields"]})[0]

    async def run(self) -> None:
        """Feature, inference, labeler and drift, until each stands at the end of its log."""
        parts: list[Any] = []
        for service in ("feature", "inference", "labeler", "drift"):
            module = importlib.import_module(f"services.{service}.app")
            parts += module.build(read(module.Settings, self.environment), SystemClock())._parts
        tasks = [asyncio.create_task(part.run()) for part in parts]
        consumer = AIOKafkaConsumer(bootstrap_servers=self.addresses.kafka)
        await consumer.start()
        try:
            async with asyncio.timeout(120):
                times = 0
                while times < 2:
                    assert [task for task in tasks if task.done() and task.exception()] == []
                    await asyncio.sleep(0.2)
                    with contextlib.suppress(Recoverable):  # a new cluster has no coordinator yet
                        times = times + 1 if await self.at_end(consumer) else 0
        finally:
            await consumer.stop()
            for part in parts:
                part.stop()
            await asyncio.gather(*tasks)

    async def at_end(self, consumer: AIOKafkaConsumer) -> bool:
        """Whether everything that is there was taken, from the events to the last report. What moves early is asked for first."""
        answered = await committed_metadata(self.addresses.kafka, f"{self.pipeline.name}-inference")
        stands = {}
        client = Redis.from_url(self.addresses.redis)
        for wiring in (wiring for service in STATEFUL for wiring in self.wirings(service)):
            for number in range(PARTITIONS if wiring.reads.partitioned else 1):
                ledger = await client.get(prefix_of(group_of(wiring, self.pipeline), number) + b"ledger")
                stands[wiring.service, TopicPartition(wiring.reads.name, number)] = 0 if ledger is None else decoded(ledger).next
        await client.aclose()
        stands |= {("inference", TopicPartition(*at)): offset for at, (offset, _) in answered.items()}
        ends = await consumer.end_offsets([at for _, at in stands])
        return len(stands) == 11 and all(position >= ends[at] for (_, at), position in stands.items())

    def wirings(self, service: str) -> list[Any]:
        return wirings_of(service, self.pipeline, self.addresses)

    async def store(self) -> dict[bytes, bytes]:
        """All that the store has of this pipeline, under its names without the pipeline's."""
        client = Redis.from_url(self.addresses.redis)
        name = self.pipeline.name.encode()
        try:
            keys = sorted({key async for key in client.scan_iter(match=b"{" + name + b"-*")})
            return {key: await client.get(key) for key in keys}
        finally:
            await client.aclose()

    async def lose(self, *keys: bytes) -> None:
        """Delete `keys`; all of this pipeline's when none is named."""
        client = Redis.from_url(self.addresses.redis)
        if lost := keys or list(await self.store()):
            await client.delete(*lost)
        await client.aclose()

    async def put(self, key: bytes, value: bytes) -> None:
        client = Redis.from_url(self.addresses.redis)
        await client.set(key, value)
        await client.aclose()

    async def rebuild(self, *services: str, partition: int | None = None, **orders: bool) -> list[Rebuilt]:
        """As the command does, one partition after the other."""
        found = []
        for job in await jobs_of(self.addresses, self.pipeline, services or STATEFUL, partition):
            wiring = next(one for one in self.wirings(job.service) if one.service == job.operator)
            found.append(await rebuild_partition(self.addresses, wiring, self.pipeline, job, Orders(**orders), lambda _at, _of: None))
        return found

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The real command."""
        command = [sys.executable, "-m", "driftline", "rebuild", self.pipeline.name, *arguments]
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=280, check=False, cwd=self.addresses.run_dir
        )


async def records_of(addresses: Addresses, topic: Topic) -> dict[int, list[dict[str, Any]]]:
    """First copies by partition, in order, as dicts."""
    reader = LogReader(addresses.kafka, topic, Registry(addresses.registry))
    await reader.start()
    try:
        found: dict[int, list[dict[str, Any]]] = {}
        for number, batch in (await reader.read_to()).items():
            told = [
                (offset, {"kind": name, **record})
                for name, table in batch.tables.items()
                for offset, record in zip(table.offsets.tolist(), table.records(), strict=True)
            ]
            found[number] = [record for _, record in sorted(told, key=lambda one: one[0])]
        return found
    finally:
        await reader.stop()


async def a_loop(stack: Stack, folder: Path, patch: pytest.MonkeyPatch) -> Loop:
    """The flights pipeline under a name of its own, as a folder of its own, so that processes find it too."""
    name = f"r{uuid4().hex[:8]}"
    declared = folder / "pipelines" / name
    declared.mkdir(parents=True)
    for place in (ROOT / "pipelines" / "flights").iterdir():
        if place.suffix in (".py", ".avsc"):
            (declared / place.name).write_text(place.read_text().replace('"flights",\n    owner', f'"{name}",\n    owner'))
    _, public = generate_keys(folder / "keys" / name)
    settings = {
        **{f"DRIFTLINE_{server}": stack.environment()[f"DRIFTLINE_{server}"] for server in ("KAFKA", "REDIS", "REGISTRY")},
        "DRIFTLINE_PIPELINES": str(folder / "pipelines"),
        "DRIFTLINE_RUN_DIR": str(folder),
        "DRIFTLINE_MODEL_STORE": str(folder / "models"),
        "DRIFTLINE_MODEL_PUBLIC_KEY": str(public),
    }
    for variable, value in settings.items():
        patch.setenv(variable, value)
    pipeline = load_pipeline(name)
    addresses = Addresses(*(settings[f"DRIFTLINE_{server}"] for server in ("KAFKA", "REDIS", "REGISTRY")), folder)
    await ensure_topics(addresses.kafka, Topics.of(pipeline), PARTITIONS)
    return Loop(addresses, pipeline, environment_of(addresses, name))


@pytest.fixture(scope="module")
def folded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loop, dict[bytes, bytes]]]:
    """Four days of flights, folded once, and what the store had of them then."""

    async def prepared(patch: pytest.MonkeyPatch) -> tuple[Loop, dict[bytes, bytes]]:
        loop = await a_loop(stack, tmp_path_factory.mktemp("rebuild"), patch)
        await loop.publish(range(4))
        await loop.run()
        return loop, await loop.store()

    with pytest.MonkeyPatch.context() as patch:
        yield asyncio.run(prepared(patch))


@pytest.fixture
async def loop(folded: tuple[Loop, dict[bytes, bytes]]) -> Loop:
    """The folded flights, with the store as it was after them. For tests that leave the topics as they are."""
    loop, store = folded
    await loop.lose()
    for key, value in store.items():
        await loop.put(key, value)
    return loop


@pytest.fixture
async def own_loop(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Three days of flights, folded for one test alone."""
    loop = await a_loop(stack, tmp_path, monkeypatch)
    await loop.publish(range(3))
    await loop.run()
    return loop


def without_tries(store: dict[bytes, bytes]) -> dict[bytes, Any]:
    """Rows as bytes; ledgers decoded, because the order of `seen` means nothing."""
    return {key: decoded(row) if key.endswith(b":ledger") else row for key, row in store.items() if not key.endswith(b":tries")}


async def test_state_that_was_lost_altogether_is_restored_byte_for_byte(loop: Loop):
    """
    Every row and every ledger of all five operators, and each message on the topics is proved to be what the fold makes.
    """
    before = without_tries(await loop.store())
    assert len(before) > 100
    await loop.lose()
    rebuilt = await loop.rebuild()
    assert [(one.written, one.differing, one.unproved) for one in rebuilt] == [(True, 0, 0)] * 9
    proved = {kind for one in rebuilt for kind in one.equal}
    assert proved == {"features", "journal", "examples", "summaries", "control"}
    assert before == without_tries(await loop.store())


async def test_the_services_go_on_as_if_nothing_had_been_lost(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Beside a loop on the same log that lost nothing: the same rows in the store, and the same messages on the topics.
    """
    found = []
    for loses in (False, True):
        loop = await a_loop(stack, tmp_path / str(loses), monkeypatch)
        await loop.publish(range(3))
        await loop.run()
        if loses:
            await loop.lose()
            await loop.rebuild()
        await loop.publish(range(3, 5))
        await loop.run()
        name, store = loop.pipeline.name.encode(), await loop.store()
        feature = {key.replace(name, b"name"): row for key, row in store.items() if b"-feature:" in key and b":ledger" not in key}
        topics = [loop.topics.features, loop.topics.examples, loop.topics.control]
        found.append((feature, [await contents(loop, topic) for topic in topics]))
    assert len(found[0][0]) > 50 and all(found[0][1])
    assert found[0] == found[1]


async def contents(loop: Loop, topic: Topic) -> list[Any]:
    """What is told on a topic, without places on logs that have two writers, and without the pipeline's name."""
    left_out = {"offset", "index"} if topic.kind != "features" else set()
    records = [
        (number, {name: value for name, value in record.items() if name not in left_out})
        for number, some in (await records_of(loop.addresses, topic)).items()
        for record in some
    ]
    return sorted(repr(record).replace(loop.pipeline.name, "name") for record in records)


async def test_a_message_that_says_otherwise_is_found_and_nothing_is_written(own_loop: Loop):
    """
    A row on the topic that the log does not give: named with its coordinate, and the store stays empty until it is forced.
    """
    loop = own_loop
    await loop.publish(range(3, 4))
    await swap_a_row(loop)
    await loop.run()
    before = await loop.store()
    lost = [key for key in before if b"-feature:" in key]
    await loop.lose(*lost)
    first, second = await loop.rebuild("feature")
    assert (second.differing, second.written) == (1, False)
    assert "another is on the topic" in second.told[0] and f"{loop.topics.features.name}[1]: caused by events[1]@" in second.told[0]
    assert (first.differing, first.written) == (0, True)
    assert not any(b"-feature:1" in key for key in await loop.store())
    refused = loop.command("--service", "feature", "--partition", "1")
    assert refused.returncode == 1 and "another is on the topic" in refused.stdout
    forced = loop.command("--service", "feature", "--partition", "1", "--force")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    restored = await loop.store()
    assert {key: restored[key] for key in lost if b":ledger" not in key} == {key: before[key] for key in lost if b":ledger" not in key}


async def swap_a_row(loop: Loop) -> None:
    """Write the first new row of partition 1 before the service does, with zeros for numbers: its own is then a copy."""
    folded = [one for one in (await records_of(loop.addresses, loop.topics.features))[1] if one["kind"] == "row"]
    events = (await records_of(loop.addresses, loop.topics.events))[1]
    offset = next(
        at
        for at, one in enumerate(events)
        if at > folded[-1]["event_offset"] and one["kind"] == "event" and one["home"] and one["source"] == Log.UPSTREAM
    )
    event, like = events[offset], folded[-1]
    texts = ("id", "key", "layout")
    columns: dict[str, Column] = {name: Varlen.of([str(event.get(name, like[name]))]) for name in texts}
    columns |= {name: np.array([event[name]], np.int64) for name in ("time", "visible")}
    columns |= {"source": np.array([Log.EVENTS]), "offset": np.array([offset]), "index": np.array([0]), "event_offset": np.array([offset])}
    columns |= {"deployment": np.array([0]), "slices": Varlen.of([b"\x00"]), "row": loop.pipeline.layout.pack_whole(whole_row(loop))}
    topics = loop.topics.by_kind()
    registry = Registry(loop.addresses.registry)
    sink = Sink(loop.addresses.kafka, topics, Encoder(topics, registry, Writer.FEATURE), "test")
    await sink.start()
    await sink.send([Messages("features", "row", columns["key"], columns, np.array([offset]))], 1, 0)
    await sink.stop()


def whole_row(loop: Loop) -> Any:
    return np.zeros((1, loop.pipeline.layout.width), np.float32)


async def test_a_row_that_is_spoilt_in_the_store_is_found_and_mended(loop: Loop):
    """
    A dry run tells how many rows differ and leaves them; the rebuild puts them right, and after it there is nothing to do.
    """
    before = await loop.store()
    key = next(key for key in before if b"-feature:0}:aircraft:" in key)
    await loop.put(key, before[key][:-1] + bytes([before[key][-1] ^ 0xFF]))
    (looked,) = await loop.rebuild("feature", partition=0, dry_run=True)
    assert (looked.stored, looked.written, looked.stands(Orders(dry_run=True))) == (1, False, False)
    assert (await loop.store())[key] != before[key]
    (mended,) = await loop.rebuild("feature", partition=0)
    assert (mended.stored, mended.written) == (1, True)
    assert without_tries(before) == without_tries(await loop.store())
    (again,) = await loop.rebuild("feature", partition=0)
    assert (again.stored, again.written, again.note) == (0, False, "nothing to write")


async def test_how_often_a_record_was_tried_is_no_row(loop: Loop):
    """
    Counts that lie beside the rows are compared with nothing, and gone when the state is made anew: progress was made.
    """
    prefix = prefix_of(f"{loop.pipeline.name}-feature", 0)
    counts = [prefix + TRIES, prefix + ALONE]
    for count in counts:
        await loop.put(count, b"4")
    (looked,) = await loop.rebuild("feature", partition=0, dry_run=True)
    assert looked.stored == 0
    await loop.lose(prefix + LEDGER)
    (rebuilt,) = await loop.rebuild("feature", partition=0)
    assert (rebuilt.stored, rebuilt.written) == (0, True)
    assert not (await loop.store()).keys() & set(counts)


async def test_a_ledger_that_cannot_be_read_is_rebuilt_up_to_the_committed_offset(loop: Loop):
    """
    The offset is committed behind the ledger, so all below it was sent.
    """
    before = await loop.store()
    key = next(key for key in before if key.endswith(b"-labeler:1}:ledger"))
    await loop.put(key, b"rubbish")
    (rebuilt,) = await loop.rebuild("labeler", partition=1)
    assert rebuilt.written and rebuilt.position == decoded(before[key]).next
    assert without_tries(before) == without_tries(await loop.store())


async def test_a_rebuild_that_was_interrupted_leaves_no_ledger(loop: Loop, monkeypatch: pytest.MonkeyPatch):
    """
    Some rows are there and no ledger, so the service refuses; run again, the rebuild leaves nothing of the first.
    """
    before = without_tries(await loop.store())
    key = next(key for key in before if key.endswith(b"-feature:0}:ledger"))
    spoilt = next(key for key in before if b"-feature:0}:aircraft:" in key)
    await loop.put(spoilt, b"spoilt")
    monkeypatch.setattr(rows_module, "KEYS_AT_ONCE", 10)
    written = rows_module.Rows._guarded

    async def dies(self: rows_module.Rows, *writes: Any) -> None:
        if any(word.endswith(b":ledger") for command in writes for word in command):
            raise Recoverable("killed here")
        await written(self, *writes)

    monkeypatch.setattr(rows_module.Rows, "_guarded", dies)
    with pytest.raises(Recoverable):
        await loop.rebuild("feature", partition=0)
    assert key not in await loop.store()
    with pytest.raises(AssertionError):  # a part of the services ended: it refused
        await refused_run(loop)
    monkeypatch.setattr(rows_module.Rows, "_guarded", written)
    await loop.rebuild("feature", partition=0)
    assert without_tries(await loop.store()) == before


async def refused_run(loop: Loop) -> None:
    module = importlib.import_module("services.feature.app")
    (part,) = module.build(read(module.Settings, loop.environment), SystemClock())._parts
    task = asyncio.create_task(part.run())
    while not part.ready:
        await asyncio.sleep(0.05)
    part.stop()
    await task
    assert part.refused == ""


async def test_of_two_rebuilds_at_once_one_stops_and_the_state_is_whole(loop: Loop, monkeypatch: pytest.MonkeyPatch):
    """
    The later takes the claim, and what the earlier still writes is refused.
    """
    before = without_tries(await loop.store())
    spoilt = next(key for key in before if b"-feature:0}:aircraft:" in key)
    await loop.put(spoilt, b"spoilt")
    written, begun = rows_module.Rows._guarded, []

    async def overtaken(self: rows_module.Rows, *writes: Any) -> None:
        if not begun:
            begun.append(True)
            await loop.rebuild("feature", partition=0)
        await written(self, *writes)

    monkeypatch.setattr(rows_module.Rows, "_guarded", overtaken)
    with pytest.raises(Rejected, match="another rebuild"):
        await loop.rebuild("feature", partition=0)
    assert without_tries(await loop.store()) == before


async def test_one_partition_can_be_rebuilt_alone(loop: Loop):
    """
    The others stay lost.
    """
    before = without_tries(await loop.store())
    await loop.lose()
    done = loop.command("--service", "feature", "--partition", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {key: row for key, row in before.items() if b"-feature:1}" in key}
    assert expected == without_tries(await loop.store())
    assert f"{loop.pipeline.name}-feature[1]" in done.stdout and "written" in done.stdout


async def test_the_command_rebuilds_everything_in_processes_of_its_own(loop: Loop):
    """
    All services when none is named; the last line says what was proved.
    """
    before = without_tries(await loop.store())
    await loop.lose()
    done = loop.command()
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == without_tries(await loop.store())
    assert " 0 differ" in done.stdout.splitlines()[-1]


async def test_a_log_that_no_longer_begins_at_its_start_is_proved_as_far_as_it_goes(own_loop: Loop):
    """
    Rows whose windows reach behind the log's start cannot be proved, and are not called different.
    """
    loop = own_loop
    topic = loop.topics.events.name
    admin = AIOKafkaAdminClient(bootstrap_servers=loop.addresses.kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=200)})
    await admin.close()
    (rebuilt,) = await loop.rebuild("feature", partition=0, dry_run=True)
    assert rebuilt.unproved > 0
    assert rebuilt.differing == 0


async def test_what_remembers_from_the_logs_start_on_needs_the_start(own_loop: Loop):
    """
    Drift's charts go back to the first summary: without it the command refuses, and says that it can be forced.
    """
    loop = own_loop
    admin = AIOKafkaAdminClient(bootstrap_servers=loop.addresses.kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(loop.topics.summaries.name, 0): RecordsToDelete(before_offset=2)})
    await admin.close()
    wiring = loop.wirings("drift")[-1]
    job = Job("drift", wiring.service, 0, frozenset())
    with pytest.raises(Rejected, match="--force"):
        await rebuild_partition(loop.addresses, wiring, loop.pipeline, job, Orders(), lambda _at, _of: None)


async def test_a_record_that_was_given_up_is_left_out(loop: Loop):
    """
    A record that had stopped the process went to the dead letters instead of the state: it is not folded now either.
    """
    wiring = loop.wirings("feature")[0]
    events = (await records_of(loop.addresses, loop.topics.events))[0]
    offset = next(at for at, one in enumerate(events) if one["kind"] == "event" and one["home"])
    job = Job("feature", "feature", 0, frozenset([offset]))
    rebuilt = await rebuild_partition(loop.addresses, wiring, loop.pipeline, job, Orders(dry_run=True), lambda _at, _of: None)
    assert any(f"events[0]@{offset}/0: on the topic, but not made" in words for words in rebuilt.told)


class _Answers:
    """A service's HTTP server that says it is not ready: it runs all the same."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            await writer.drain()
            writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def stop(self) -> None:
        if self._server:
            self._server.close()


@pytest.mark.parametrize("way", ["rebuild", "forget"])
async def test_a_service_that_runs_is_refused_even_when_it_is_not_ready(place: Any, way: str):
    """
    A process whose one partition was refused is not ready, and works on the others.
    """
    server = _Answers()
    ops = await server.start()
    (place.addresses.run_dir / "feature.json").write_bytes(msgspec.json.encode({"ops": ops}))
    with pytest.raises(Rejected, match="feature is running"):
        if way == "rebuild":
            await jobs_of(place.addresses, place.pipeline, ["feature"], None)
        else:
            await forget(place.addresses, place.pipeline, ["feature"], None)
    server.stop()


async def committed(loop: Loop, group: str) -> int | None:
    source = Source(loop.addresses.kafka, loop.topics.events.name, 0, group=group)
    await source.start()
    try:
        return await source.committed()
    finally:
        await source.stop()


async def test_forgotten_state_is_gone_with_its_committed_offset(own_loop: Loop):
    """
    Ledger, rows and the group's offset of the service that was named, nobody else's; the service folds it all again, the same.
    """
    loop = own_loop
    before = without_tries(await loop.store())
    forgotten = await forget(loop.addresses, loop.pipeline, ["feature"], None)
    assert [(one.partition, one.rows > 50, one.note) for one in forgotten] == [(0, True, "forgotten"), (1, True, "forgotten")]
    left = await loop.store()
    assert left and not any(b"-feature:" in key for key in left)
    assert await committed(loop, f"{loop.pipeline.name}-feature") is None
    (nothing,) = await loop.rebuild("feature", partition=0)
    assert "nothing was folded yet" in nothing.note
    await loop.run()
    after = without_tries(await loop.store())
    rows = {key: row for key, row in before.items() if b"-feature:" in key}
    assert rows == {key: row for key, row in after.items() if b"-feature:" in key}


async def test_forgetting_that_is_interrupted_leaves_what_the_service_refuses(loop: Loop, monkeypatch: pytest.MonkeyPatch):
    """
    The offset is the last to go: rows that are half deleted are never taken for a new partition.
    """
    asked = Store.ask
    deletes: list[int] = []

    async def dies(self: Store, *commands: Any, on: int | None = None) -> Any:
        deletes.extend(len(command) for command in commands if command[0] == b"DEL")
        if len(deletes) > 1:
            raise Recoverable("killed here")
        return await asked(self, *commands, on=on)

    monkeypatch.setattr(Store, "ask", dies)
    with pytest.raises(Recoverable):
        await forget(loop.addresses, loop.pipeline, ["feature"], 0)
    monkeypatch.setattr(Store, "ask", asked)
    with pytest.raises(AssertionError, match="the state was lost"):
        await refused_run(loop)


def test_every_operator_that_keeps_state_can_be_rebuilt() -> None:
    """
    The services of which the command knows are those whose wirings have a row format.
    """
    wired = {place.parent.name for place in (ROOT / "services").glob("*/app.py") if "row_format=" in place.read_text()}
    assert wired == set(STATEFUL)
