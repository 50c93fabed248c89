"""The script by itself, and the whole player against a real broker with a loop that a test plays."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from driftline.clock import SystemClock
from driftline.contracts.messages import ClockRecord, Deployment, Release, Report, Source, Trained, Writer, as_messages, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Fatal
from driftline.local import player as player_module
from driftline.local.faults import DUPLICATE
from driftline.local.player import DAY_MS, Loop, Lot, Play, Player, Script, Settings, drain_days, load_applications, parse_arguments
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.kafka import LogReader, Publisher, ensure_topics

ROOT = Path(__file__).resolve().parents[4]
START = date(2013, 3, 9)
START_MS = int(datetime(2013, 3, 9, tzinfo=UTC).timestamp()) * 1000


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("flights", ROOT / "pipelines")


@pytest.fixture(scope="module")
def applications(pipeline):
    return load_applications(pipeline.folder, 2, START)


def script(pipeline: Pipeline, applications: Any, **play: Any) -> Script:
    return Script(pipeline.streams, applications, Play(**{"days": 2, "start": START, **play}), {"arrivals": 1, "weather": 2})


def test_each_day_has_what_became_visible_in_it(pipeline, applications):
    """
    The days of the play, and those after it until the last flight has landed, hold every record once.
    """
    played = script(pipeline, applications, faults=False)
    lots = [lot for day in range(4) for lot in played.lots(day)]
    counts = Counter[str]()
    for lot in lots:
        counts[lot.topic] += len(lot.messages)
    assert {topic: frame.height for topic, frame in applications.topics.items()} == dict(counts)
    first = {message.id for lot in played.lots(0) if lot.topic == "flights" for message in lot.messages}
    visible = applications.topics["flights"].filter(pl.col("flight_id").is_in(list(first)))["visible"]
    assert visible.min() >= START_MS and visible.max() < START_MS + DAY_MS


def test_partitions_are_the_applications_own(pipeline, applications):
    """
    Keyed messages lie by CRC-32 of a key that is not the pipeline's, the others in turn; so one tail is in both partitions.
    """
    lots = script(pipeline, applications, faults=False).lots(0)
    keyed = [(lot.partition, message.key) for lot in lots if lot.topic == "flights" for message in lot.messages]
    assert all(zlib.crc32(key) % 2 == partition for partition, key in keyed)
    sizes = [len(lot.messages) for lot in lots if lot.topic == "departures"]
    assert len(sizes) == 2 and abs(sizes[0] - sizes[1]) <= 1


def test_same_seed_plays_the_same_bytes(pipeline, applications):
    """
    Two players with one seed publish the same messages, another seed other faults.
    """
    played = [script(pipeline, applications, seed=seed).lots(0) for seed in (7, 7, 8)]
    assert played[0] == played[1] != played[2]


def test_faults_come_on_top(pipeline, applications):
    """
    With faults there is more to send; what is real among it is the same.
    """
    clean = script(pipeline, applications, faults=False).lots(0)
    spoiled = script(pipeline, applications).lots(0)

    def real(lots: list[Lot]) -> set[tuple[str, bytes]]:
        return {(lot.topic, message.value) for lot in lots for message in lot.messages if not message.fault}

    assert real(clean) == real(spoiled)
    assert any(message.fault == DUPLICATE for lot in spoiled for message in lot.messages)


def test_drain_lasts_a_horizon_and_a_window(pipeline):
    """
    36 hours until the last answer has matured, a day until it is reported on: three days.
    """
    assert drain_days(pipeline) == 3


def test_command_line_is_read_whole():
    """
    What the demo passes is what is played.
    """
    told = parse_arguments(["--pipeline", "flights", "--days", "70", "--start-seed", "9", "--partitions", "4", "--hold", "30"])
    assert ("flights", Play(70, 9, 4, holds=(30,))) == told


def test_a_folder_without_upstream_is_refused(tmp_path):
    """
    Only a pipeline with an upstream.py can be played.
    """
    with pytest.raises(Fatal, match=r"upstream\.py does not exist"):
        load_applications(tmp_path, 1, START)


# ---- against a real broker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Renamed:
    """The flights of two days, on topics that are this test's alone."""

    inner: Any
    suffix: str

    @property
    def left_out(self) -> int:
        return int(self.inner.left_out)

    @property
    def topics(self) -> dict[str, pl.DataFrame]:
        return {topic + self.suffix: frame.head(400) for topic, frame in self.inner.topics.items()}

    def is_json(self, topic: str) -> bool:
        return bool(self.inner.is_json(topic.removesuffix(self.suffix)))

    def keys(self, topic: str, records: pl.DataFrame) -> list[bytes | None]:
        return list(self.inner.keys(topic.removesuffix(self.suffix), records))

    def encode(self, topic: str, records: pl.DataFrame, schema: Any, schema_id: int) -> list[bytes]:
        return list(self.inner.encode(topic.removesuffix(self.suffix), records, schema, schema_id))


@dataclass
class World:
    """A broker's address, a pipeline under a name of its own, and what is played of it."""

    kafka: str
    registry_url: str
    pipeline: Pipeline
    applications: Renamed
    folder: Path

    @property
    def topics(self) -> Topics:
        return Topics.of(self.pipeline)

    def player(self, **play: Any) -> Player:
        settings = Settings(registry=self.registry_url, kafka=self.kafka, run_dir=str(self.folder))
        return Player(settings, self.pipeline, self.applications, Play(**{"days": 2, "start": START, **play}), SystemClock())

    def story(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "player.json").read_text()))


@pytest.fixture
async def world(kafka, registry_url, pipeline, applications, tmp_path) -> World:
    suffix = f"-{uuid.uuid4().hex[:8]}"
    streams = tuple(replace(stream, topic=stream.topic + suffix) for stream in pipeline.streams)
    made = World(kafka, registry_url, replace(pipeline, name=f"play{suffix}", streams=streams), Renamed(applications, suffix), tmp_path)
    await ensure_topics(kafka, made.topics, 2)
    return made


class Puppet:
    """
    Plays drift, trainer and rollout: for each clock record a report; for the second day's a retrain command too, answered with a
    release and, after it, with a trained model; for every record of control a deployment.
    """

    def __init__(self, world: World, *, silent: str = "") -> None:
        registry = Registry(world.registry_url)
        self._silent = silent
        self._clock = LogReader(world.kafka, world.topics.clock, registry)
        writers = {"drift": Writer.DRIFT, "trainer": Writer.TRAINER, "rollout": Writer.ROLLOUT}
        self._say = {name: Publisher(world.kafka, world.topics, registry, writer) for name, writer in writers.items()}
        self._version = self._controls = 0
        self.clocks: list[ClockRecord] = []

    async def run(self) -> None:
        await self._clock.start()
        try:
            for publisher in self._say.values():
                await publisher.start()
            while True:
                for batch in await self._clock.next(0.1):
                    for table in batch.tables.values():
                        for record in facts(table):
                            self.clocks.append(record)
                            await self._answer(record)
        finally:
            for part in (self._clock, *self._say.values()):
                await part.stop()

    async def _answer(self, clock: ClockRecord) -> None:
        number = len(self.clocks)
        commands = ("train-me",) if number == 2 else ()
        await self._send("drift", "control", [Report(clock.time - DAY_MS, clock.time, commands, {})], number)
        await self._move("nothing")
        if commands and self._silent != "trainer":
            trained = Trained("train-me", "first", "accepted", "", clock.time, 1, "m-1", "d1")
            await self._send("trainer", "summaries", [trained], number, source=Source.RETRAIN)
            await asyncio.sleep(0.3)  # the release may come later than the word of it
            release = Release("m-1", "d1", "accepted", "", True, 0, "first", "train-me", "trainer", {})
            await self._send("trainer", "control", [release], number, source=Source.RETRAIN)
            await self._move("champion")

    async def _move(self, move: str) -> None:
        self._version += move != "nothing"
        told = Deployment(self._version, move, "idle", "", 0, (), (), "", 0.5)
        if self._silent != "rollout":
            await self._send("rollout", "deployments", [told], self._controls, source=Source.CONTROL)
        self._controls += 1

    async def _send(self, who: str, topic: str, told: list[Any], offset: int, source: int = Source.SUMMARIES) -> None:
        await self._say[who].send(as_messages(topic, told[0].message, told, source=source, offsets=[offset], indexes=[0], partition=0))


@asynccontextmanager
async def playing_along(puppet: Puppet) -> AsyncIterator[Puppet]:
    task = asyncio.create_task(puppet.run())
    try:
        yield puppet
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def read_all(world: World, topic: str) -> list[Any]:
    """Every record of an upstream topic, partition after partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=world.kafka, enable_auto_commit=False, auto_offset_reset="none")
    await consumer.start()
    try:
        places = [TopicPartition(topic, partition) for partition in range(2)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, 0)
        records: list[Any] = []
        while len(records) < sum(ends.values()):
            for found in (await consumer.getmany(timeout_ms=500)).values():
                records += found
        return records
    finally:
        await consumer.stop()


async def test_player_moves_the_clock_a_day_at_a_time_and_names_what_rollout_said(world):
    """
    Two days and three of drain; the deployment that the second day's training brought is named from the third record on, although its
    release came after the trainer's word; the last record says so.
    """
    async with playing_along(Puppet(world)) as puppet:
        await asyncio.wait_for(world.player().run(), 60)
    assert [START_MS + day * DAY_MS for day in range(1, 6)] == [clock.time for clock in puppet.clocks]
    assert [clock.deployment for clock in puppet.clocks] == [0, 0, 1, 1, 1]
    assert [clock.last for clock in puppet.clocks] == [False] * 4 + [True]


async def test_clock_records_give_the_ends_of_all_that_was_published(world):
    """
    The ends of the last record are the ends of the topics, and what was published is what is told.
    """
    async with playing_along(Puppet(world)) as puppet:
        await asyncio.wait_for(world.player().run(), 60)
    for topic in world.applications.topics:
        records = await read_all(world, topic)
        ends = {end.partition: end.offset for end in puppet.clocks[-1].ends if end.topic == topic}
        assert len(records) == sum(ends.values()) == world.story()["published"][topic]


async def test_wrongs_lie_where_the_report_says(world):
    """
    Each broken message is found at its partition and offset; each second copy has the value of the first.
    """
    async with playing_along(Puppet(world)):
        await asyncio.wait_for(world.player().run(), 60)
    story = world.story()
    assert story["broken"] and story["finished"]
    for topic, frame in world.applications.topics.items():
        records = {(record.partition, record.offset): record for record in await read_all(world, topic)}
        wrong = [one for one in story["broken"] if one["topic"] == topic]
        for one in wrong:
            record = records[one["partition"], one["offset"]]
            assert one["id"].encode() in (record.key or b"") or one["kind"] in ("truncated_avro", "unknown_schema") or record.value
        values = Counter(record.value for record in records.values())
        assert story["duplicates"].get(topic, 0) == sum(n - 1 for n in values.values())
        assert frame.height == story["real"][topic] == len(values) - len(wrong)


async def test_player_waits_while_it_is_held(world):
    """
    Before a held day nothing of it is told until the file is removed.
    """
    async with playing_along(Puppet(world)) as puppet:
        playing = asyncio.create_task(world.player(holds=(1,)).run())
        place = world.folder / "hold-1"
        async with asyncio.timeout(30):
            while not place.exists():
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert len(puppet.clocks) == 1
        place.unlink()
        await asyncio.wait_for(playing, 60)
    assert len(puppet.clocks) == 5


@pytest.mark.parametrize(("silent", "words"), [("trainer", "train-me"), ("rollout", "rollout's answer")])
async def test_player_gives_up_on_a_loop_that_does_not_answer(world, monkeypatch, silent, words):
    """
    The wait has a limit, the error names who is silent, and the report is written all the same.
    """
    monkeypatch.setattr(player_module, "PATIENCE_S", 3.0)
    async with playing_along(Puppet(world, silent=silent)):
        with pytest.raises(Fatal, match=words):
            await asyncio.wait_for(world.player().run(), 60)
    assert not world.story()["finished"]


async def test_an_unanswered_command_keeps_the_loop_waiting():
    """
    A trained model counts as answered only when its release is on control; a refusal without a model needs none.
    """
    loop = Loop.__new__(Loop)
    loop.retrains, loop.trained, loop.released = {1: ("a", "b", "c")}, {"a": "digest", "b": ""}, set()
    assert loop.unanswered(1) == ["a", "c"]
    loop.released.add("a")
    assert loop.unanswered(1) == ["c"]


LANDING = {
    "type": "record",
    "name": "Landing",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "landed_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "delay_min", "type": "int"},
    ],
}
PIPELINE = """
from driftline import Pipeline, Stream, f

landings = Stream("landing.v1.avsc", topic="{name}-in", id="id", key="id", time="landed_at")
pipeline = Pipeline("{name}", owner="nobody@example.org", question=landings, inputs=[f.value("delay_min")])
"""
UPSTREAM = """
import polars as pl


class Landings:
    topics = {{"{name}-in": pl.DataFrame({{"id": ["a"], "landed_at": [{start}], "delay_min": [3], "visible": [{start}]}})}}
    left_out = 0

    def is_json(self, topic):
        return True

    def keys(self, topic, records):
        return [None] * records.height

    def encode(self, topic, records, schema, schema_id):
        return [b"{{}}"] * records.height


def read_upstream(days, start):
    return Landings()
"""


def write_pipeline(folder: Path, name: str) -> Path:
    """A pipeline of one stream and its upstream application; returns the folder of pipelines."""
    place = folder / "pipelines" / name
    place.mkdir(parents=True)
    (place / "landing.v1.avsc").write_text(json.dumps(LANDING))
    (place / "pipeline.py").write_text(PIPELINE.format(name=name))
    (place / "upstream.py").write_text(UPSTREAM.format(name=name, start=START_MS))
    return place.parent


async def test_sigterm_ends_the_process_cleanly(kafka, registry_url, tmp_path):
    """
    Told to stop while it waits, it leaves with status 0 and a report that says unfinished.
    """
    name = f"landings-{uuid.uuid4().hex[:8]}"
    pipelines = write_pipeline(tmp_path, name)
    environment = {
        **os.environ,
        "DRIFTLINE_KAFKA": kafka,
        "DRIFTLINE_REGISTRY": registry_url,
        "DRIFTLINE_RUN_DIR": str(tmp_path),
        "DRIFTLINE_PIPELINES": str(pipelines),
        "PYTHONPATH": f"{ROOT / 'libs'}{os.pathsep}{ROOT}",
    }
    await ensure_topics(kafka, Topics.of(load_pipeline(name, pipelines)), 2)
    arguments = ["-m", "driftline.local.player", "--pipeline", name, "--days", "1", "--start", "2013-03-09", "--hold", "0"]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(120):
            while not (tmp_path / "hold-0").exists():
                assert process.returncode is None, await process.communicate()
                await asyncio.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors
    assert not json.loads((tmp_path / "player.json").read_text())["finished"]
