"""
Plays a pipeline's upstream applications: a day of messages, then the clock, then it waits for the loop, then the next day. So what is
on the logs depends on the seed alone, never on how fast a machine is.

The loop is through with a day when drift's report for it is on control, every retrain command of that report is answered on
summaries, and rollout has answered control's last record. The next clock record names the highest deployment seen by then.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from msgspec import Struct

from driftline.access import kafka_client
from driftline.clock import Clock, SystemClock
from driftline.contracts.messages import ClockRecord, Deployment, End, Release, Report, Source, Trained, Writer, as_messages, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import DriftlineError, Fatal
from driftline.local.faults import DUPLICATE, REASONS, Declared, Outgoing, plan_faults, with_faults
from driftline.logs import log, set_up
from driftline.pipeline import Pipeline, Stream, load_pipeline
from driftline.settings import read
from driftline.stream.connect import connect
from driftline.stream.kafka import Publisher, create_topics
from driftline.stream.records import Decoder, Polled

DAY_MS = 86_400_000
FETCH_WAIT_MS = 20
PATIENCE_S = 300.0  # how long the loop may take for one day, a training included, before the play is given up
HOLD_POLL_S = 0.05
REPORT_FILE = "player.json"
FOLLOWED = ("report", "release", "trained", "deployment")


class Settings(Struct, frozen=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    registry: str
    kafka: str = "127.0.0.1:9092"
    run_dir: str = ".driftline"


@dataclass(frozen=True, slots=True)
class Play:
    """
    What to play: `days` days from `start` on, upstream topics of `partitions` partitions, chance by `seed`.

    Before a day (number from 0) in `holds` the player makes the file `hold-<day>` in the run dir, and waits until somebody has
    removed it: for whoever must do something at a certain time of the log.
    """

    days: int
    seed: int = 7
    partitions: int = 2
    start: date = date(2013, 1, 1)
    holds: tuple[int, ...] = ()
    faults: bool = True


class Applications(Protocol):
    """What a pipeline's upstream.py makes: frames by topic in ascending `visible` (ms), and how they are published."""

    topics: Mapping[str, pl.DataFrame]
    left_out: int

    def is_json(self, topic: str) -> bool: ...

    def keys(self, topic: str, records: pl.DataFrame) -> list[bytes | None]: ...

    def encode(self, topic: str, records: pl.DataFrame, schema: Mapping[str, Any], schema_id: int) -> list[bytes]: ...


def load_applications(folder: Path, days: int, start: date) -> Applications:
    """Run `read_upstream` of the upstream.py in a pipeline's folder. Raises Fatal when there is none."""
    place = folder / "upstream.py"
    spec = importlib.util.spec_from_file_location(f"{folder.name}_upstream", place)
    if not place.exists() or spec is None or spec.loader is None:
        raise Fatal(f"{place} does not exist, so there is nothing to play for {folder.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return cast(Applications, module.read_upstream(days, start))


@dataclass(slots=True)
class Lot:
    """What goes to one partition in one day, in order."""

    topic: str
    partition: int
    messages: list[Outgoing] = field(default_factory=list)


class Script:
    """
    Turns frames into messages, day by day: sliced by visible time, encoded, made wrong here and there, given a partition.

    Keyed messages go by CRC-32 of the key, as librdkafka places them, the others round-robin: never by the pipeline's key.
    """

    def __init__(self, streams: Sequence[Stream], applications: Applications, play: Play, schema_ids: Mapping[str, int]) -> None:
        self._streams = streams
        self._applications = applications
        self._play = play
        self._schema_ids = schema_ids
        self._start_ms = int(datetime.combine(play.start, datetime.min.time(), UTC).timestamp()) * 1000
        self._visible = {stream.topic: applications.topics[stream.topic]["visible"].to_numpy() for stream in streams}
        self._turn = dict.fromkeys(self._visible, 0)
        json_topics = [stream.topic for stream in streams if applications.is_json(stream.topic)]
        avro_topics = [stream.topic for stream in streams if not applications.is_json(stream.topic)]
        self._faults = plan_faults(play.days, json_topics, avro_topics, play.seed) if play.faults else {}

    def day_end_ms(self, day: int) -> int:
        """When day number `day`, from 0, is over."""
        return self._start_ms + (day + 1) * DAY_MS

    def lots(self, day: int) -> list[Lot]:
        """The messages of one day. Call it for one day after the other: round-robin goes on from day to day."""
        return [lot for stream in self._streams for lot in self._of(stream, day) if lot.messages]

    def _of(self, stream: Stream, day: int) -> list[Lot]:
        topic, end_ms = stream.topic, self.day_end_ms(day)
        first, end = np.searchsorted(self._visible[topic], (end_ms - DAY_MS, end_ms))
        records = self._applications.topics[topic].slice(first, end - first)
        values = self._applications.encode(topic, records, stream.schema, self._schema_ids.get(topic, 0))
        keys, ids = self._applications.keys(topic, records), records[stream.id].to_list()
        messages = [Outgoing(*one) for one in zip(keys, values, ids, strict=True)]
        if self._play.faults:
            chance = np.random.default_rng([self._play.seed, day, stream.number])
            kinds = [kind for broken_topic, kind in self._faults.get(day, ()) if broken_topic == topic]
            messages = with_faults(messages, kinds, Declared(stream.schema, stream.id, stream.visible), end_ms, chance)
        return self._placed(topic, messages)

    def _placed(self, topic: str, messages: Sequence[Outgoing]) -> list[Lot]:
        lots = [Lot(topic, partition) for partition in range(self._play.partitions)]
        for message in messages:
            if message.key is None:
                self._turn[topic] += 1
            place = self._turn[topic] if message.key is None else zlib.crc32(message.key)
            lots[place % len(lots)].messages.append(message)
        return lots


@dataclass(slots=True)
class Day:
    """What one day took: seconds until published, then until each party had answered."""

    day: str
    messages: int
    deployment: int
    publish_s: float = 0.0
    report_s: float = 0.0
    trainer_s: float = 0.0
    rollout_s: float = 0.0


@dataclass(slots=True)
class Story:
    """What was played, for the report: counts by topic, what was wrong on purpose and where it lies, how long what was waited for."""

    published: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    duplicate_ids: dict[str, list[str]] = field(default_factory=dict)
    broken: list[dict[str, Any]] = field(default_factory=list)
    days: list[Day] = field(default_factory=list)
    finished: bool = False

    def add(self, lot: Lot, first_offset: int) -> None:
        """The messages of `lot` are on the log, the first at `first_offset`."""
        self.published[lot.topic] += len(lot.messages)
        for at, message in enumerate(lot.messages):
            if message.fault == DUPLICATE:
                self.duplicates[lot.topic] += 1
                self.duplicate_ids.setdefault(lot.topic, []).append(message.id)
            elif message.fault:
                place = {"topic": lot.topic, "partition": lot.partition, "offset": first_offset + at}
                self.broken.append({"kind": message.fault, "reason": REASONS[message.fault], "id": message.id, **place})

    def to_dict(self, play: Play, applications: Applications) -> dict[str, Any]:
        """For JSON. `real` is what was published less second copies and broken ones; the waits are sums over all days, and maxima."""
        broken_by_topic = Counter(one["topic"] for one in self.broken)
        parties = ("publish_s", "report_s", "trainer_s", "rollout_s")
        waits = {name: [getattr(day, name) for day in self.days] for name in parties}
        return {
            "start": play.start.isoformat(),
            "days": play.days,
            "seed": play.seed,
            "partitions": play.partitions,
            "finished": self.finished,
            "left_out": applications.left_out,
            "messages": sum(self.published.values()),
            "published": dict(self.published),
            "real": {topic: n - self.duplicates[topic] - broken_by_topic[topic] for topic, n in self.published.items()},
            "duplicates": dict(self.duplicates),
            "duplicate_ids": self.duplicate_ids,
            "broken": self.broken,
            "broken_by_kind": dict(Counter(one["kind"] for one in self.broken)),
            "broken_by_reason": dict(Counter(one["reason"] for one in self.broken)),
            "waited_s": {name: round(sum(values), 3) for name, values in waits.items()},
            "waited_longest_s": {name: round(max(values, default=0.0), 3) for name, values in waits.items()},
            "played": [_rounded(day) for day in self.days],
        }


def _rounded(day: Day) -> dict[str, Any]:
    values = {name: getattr(day, name) for name in Day.__slots__}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


class Loop:
    """What the loop has answered so far: follows control, summaries and deployments with one consumer of no group."""

    def __init__(self, kafka: str, topics: Topics, registry: Registry) -> None:
        self._decoders = {topic.name: Decoder(topic, registry) for topic in (topics.control, topics.summaries, topics.deployments)}
        self._at = {name: TopicPartition(name, 0) for name in self._decoders}
        self._control = self._at[topics.control.name]
        self._kafka = kafka
        self._consumer = AIOKafkaConsumer(
            **kafka_client(kafka), enable_auto_commit=False, auto_offset_reset="none", fetch_max_wait_ms=FETCH_WAIT_MS
        )
        self.retrains: dict[int, tuple[str, ...]] = {}  # ids of the commands by end of the report that raised them
        self.trained: dict[str, str] = {}  # digest of the model, or nothing, by id of the command
        self.released: set[str] = set()  # ids of commands whose model is on control
        self.answered = -1  # the last record of control that rollout has answered
        self.version = 0

    async def start(self) -> None:
        """Connect and stand at the start of the topics."""
        await connect(self._consumer, self._kafka)
        self._consumer.assign(list(self._at.values()))
        for at, offset in (await self._consumer.beginning_offsets(list(self._at.values()))).items():
            self._consumer.seek(at, offset)

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def follow(self) -> None:
        """Take in what has arrived; returns after a second when nothing has."""
        for at, records in (await self._consumer.getmany(timeout_ms=1_000)).items():
            polled = Polled.of(*([getattr(record, name) for record in records] for name in ("offset", "key", "value", "timestamp")))
            batch, _ = self._decoders[at.topic].decode(at.partition, polled)
            for table in batch.tables.values():
                if table.message == "deployment":
                    answers = zip(table["source"].tolist(), table["offset"].tolist(), strict=True)
                    self.answered = max([self.answered, *(offset for source, offset in answers if source == Source.CONTROL)])
                if table.message in FOLLOWED:
                    for fact in facts(table):
                        self._take(fact)

    def _take(self, fact: Report | Release | Trained | Deployment) -> None:
        if isinstance(fact, Report):
            self.retrains[fact.end] = fact.retrains
        elif isinstance(fact, Release):
            self.released.add(fact.command)
        elif isinstance(fact, Trained):
            self.trained[fact.id] = fact.digest
        else:
            self.version = max(self.version, fact.version)

    def unanswered(self, end_ms: int) -> list[str]:
        """
        Which commands of the report at `end_ms` the trainer still owes an answer. A trained model is answered when its release is on
        control too: the two topics do not arrive in order.
        """
        return [one for one in self.retrains[end_ms] if one not in self.trained or (self.trained[one] and one not in self.released)]

    async def control_end(self) -> int:
        """The end of control, asked now."""
        return (await self.end_offsets([self._control]))[self._control]

    async def end_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The ends of partitions of any topics, asked now."""
        ends: dict[TopicPartition, int] = await self._consumer.end_offsets(list(places))
        return ends


class Player:
    """Plays day by day until the end; then days without questions until every answer has matured and is reported on."""

    def __init__(self, settings: Settings, pipeline: Pipeline, applications: Applications, play: Play, clock: Clock) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._applications = applications
        self._play = play
        self._clock = clock
        self._registry = Registry(settings.registry)
        self._topics = Topics.of(pipeline)
        self._loop = Loop(settings.kafka, self._topics, self._registry)
        self._publisher = Publisher(settings.kafka, self._topics, self._registry, Writer.PLAYER, client=f"{pipeline.name}-player")
        self._producer = AIOKafkaProducer(
            **kafka_client(settings.kafka), enable_idempotence=True, acks="all", linger_ms=0, max_batch_size=1 << 20
        )
        self._ends: dict[tuple[str, int], int] = {}
        self.story = Story()

    async def run(self) -> None:
        """Play it all. Raises Fatal when the loop does not answer; whatever happens, the run dir gets its player.json."""
        try:
            script = Script(self._pipeline.streams, self._applications, self._play, self._register())
            await self._start()
            await self._days(script)
            self.story.finished = True
        finally:
            write_json(Path(self._settings.run_dir) / REPORT_FILE, self.story.to_dict(self._play, self._applications))
            for part in (self._producer, self._publisher, self._loop):
                await part.stop()

    def _register(self) -> dict[str, int]:
        streams = [stream for stream in self._pipeline.streams if not self._applications.is_json(stream.topic)]
        return {stream.topic: self._registry.register(f"{stream.topic}-value", dict(stream.schema)) for stream in streams}

    async def _start(self) -> None:
        names = [stream.topic for stream in self._pipeline.streams]
        await create_topics(self._settings.kafka, [NewTopic(name, self._play.partitions, 1) for name in names])
        await asyncio.gather(connect(self._producer, self._settings.kafka), self._publisher.start(), self._loop.start())
        places = [TopicPartition(name, partition) for name in names for partition in range(self._play.partitions)]
        self._ends = {(at.topic, at.partition): end for at, end in (await self._loop.end_offsets(places)).items()}

    async def _days(self, script: Script) -> None:
        days = self._play.days + drain_days(self._pipeline)
        prepared = asyncio.create_task(asyncio.to_thread(script.lots, 0))
        for day in range(days):
            lots = await prepared
            await self._hold(day)
            end_ms = script.day_end_ms(day)
            told = Day(day_name(end_ms), sum(len(lot.messages) for lot in lots), self._loop.version)
            self.story.days.append(told)
            started = self._clock.monotonic_s()
            await self._publish(lots)
            await self._tell_time(end_ms, last=day == days - 1)
            told.publish_s = self._clock.monotonic_s() - started
            prepared = asyncio.create_task(asyncio.to_thread(script.lots, day + 1))
            await self._barrier(end_ms, told)
            log.info("day played", day=told.day, messages=told.messages, deployment=self._loop.version)
        await prepared

    async def _hold(self, day: int) -> None:
        if day in self._play.holds:
            place = Path(self._settings.run_dir) / f"hold-{day}"
            place.touch()
            while place.exists():
                await asyncio.sleep(HOLD_POLL_S)

    async def _publish(self, lots: Sequence[Lot]) -> None:
        sent = [(part, await self._producer.send_batch(batch, part.topic, partition=part.partition)) for part, batch in self._batches(lots)]
        for part, acked in sent:
            offset = (await acked).offset
            self.story.add(part, offset)
            self._ends[part.topic, part.partition] = offset + len(part.messages)

    def _batches(self, lots: Sequence[Lot]) -> list[tuple[Lot, Any]]:
        """Each lot in as many batches as it takes, each with the part of the lot that is in it."""
        now_ms = self._clock.now_ms()
        out: list[tuple[Lot, Any]] = []
        for lot in lots:
            batch, part = self._producer.create_batch(), Lot(lot.topic, lot.partition)
            for message in lot.messages:
                if batch.append(timestamp=now_ms, key=message.key, value=message.value) is None:
                    out.append((part, batch))
                    batch, part = self._producer.create_batch(), Lot(lot.topic, lot.partition)
                    batch.append(timestamp=now_ms, key=message.key, value=message.value)
                part.messages.append(message)
            out.append((part, batch))
        return out

    async def _tell_time(self, end_ms: int, last: bool) -> None:
        ends = tuple(End(topic, partition, offset) for (topic, partition), offset in self._ends.items())
        record = ClockRecord(end_ms, self._loop.version, ends, last)
        await self._publisher.send(
            as_messages(
                "clock", "clock", [record], source=Source.CLOCK, offsets=[end_ms // self._pipeline.tick_ms], indexes=[0], partition=0
            )
        )

    async def _barrier(self, end_ms: int, told: Day) -> None:
        """Wait until the loop is through with the day; note how long who took."""
        started = self._clock.monotonic_s()
        deadline = started + PATIENCE_S
        while end_ms not in self._loop.retrains:
            await self._follow(deadline, f"drift's report for {told.day}")
        reported = self._clock.monotonic_s()
        while unanswered := self._loop.unanswered(end_ms):
            await self._follow(deadline, f"the trainer's answer to {', '.join(unanswered)}")
        trained = self._clock.monotonic_s()
        last = await self._loop.control_end() - 1
        while self._loop.answered < last:
            await self._follow(deadline, f"rollout's answer to {self._topics.control.name}@{last}")
        told.report_s, told.trainer_s = reported - started, trained - reported
        told.rollout_s = self._clock.monotonic_s() - trained

    async def _follow(self, deadline: float, awaited: str) -> None:
        if self._clock.monotonic_s() > deadline:
            raise Fatal(f"{self._pipeline.name}: {awaited} did not come within {PATIENCE_S:.0f} s; see the logs of that service")
        await self._loop.follow()


def drain_days(pipeline: Pipeline) -> int:
    """How many days without questions it takes until the last answer has matured and a report has told of it."""
    horizon_ms = pipeline.label.horizon_ms if pipeline.label else 0
    return -(-(horizon_ms + pipeline.window_ms) // DAY_MS)


def day_name(end_ms: int) -> str:
    """The date of the day that ends at `end_ms`."""
    return datetime.fromtimestamp((end_ms - DAY_MS) / 1000, UTC).date().isoformat()


def write_json(place: Path, value: Mapping[str, Any]) -> None:
    """Write at once or not at all."""
    part = place.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(place)


async def play_pipeline(settings: Settings, name: str, play: Play, clock: Clock) -> Story:
    """Play pipeline `name` until the end, or until SIGTERM or SIGINT; then the story says it is not finished."""
    pipeline = load_pipeline(name)
    player = Player(settings, pipeline, load_applications(pipeline.folder, play.days, play.start), play, clock)
    playing = asyncio.create_task(player.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, playing.cancel)
    await asyncio.wait([playing])
    if not playing.cancelled():
        playing.result()
    return player.story


def parse_arguments(arguments: Sequence[str]) -> tuple[str, Play]:
    """The pipeline's name and what to play of it, from a command line."""
    parser = argparse.ArgumentParser(prog="python -m driftline.local.player", description="Plays a pipeline's upstream applications.")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--days", type=int, default=212)
    parser.add_argument("--start", type=date.fromisoformat, default=Play(0).start, help="first day, as 2013-01-01")
    parser.add_argument("--start-seed", "--seed", dest="seed", type=int, default=7, help="chance begins here")
    parser.add_argument("--partitions", type=int, default=2, help="of each upstream topic")
    parser.add_argument("--hold", type=int, action="append", default=[], metavar="DAY", help="wait before it until hold-DAY is removed")
    parser.add_argument("--no-faults", action="store_true", help="send nothing twice and nothing broken")
    chosen = parser.parse_args(arguments)
    return chosen.pipeline, Play(chosen.days, chosen.seed, chosen.partitions, chosen.start, tuple(chosen.hold), not chosen.no_faults)


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 after the whole play or a SIGTERM, 1 with words on standard error otherwise."""
    name, play = parse_arguments(arguments)
    set_up(service="player", pipeline=name)
    try:
        asyncio.run(play_pipeline(read(Settings, os.environ), name, play, SystemClock()))
    except DriftlineError as error:
        print(f"player: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
