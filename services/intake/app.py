"""
The intake process: reads the upstream topics, writes the pipeline's log. In a declared replay it goes only as far as the clock
topic says; live it goes as far as the wall clock and what every source has shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from driftline.clock import Clock
from driftline.contracts.messages import ClockRecord, Writer, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal, Recoverable
from driftline.logs import log
from driftline.metrics import metric
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Refused
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import LogReader, Sink, Source, committed_metadata, describe
from driftline.stream.process import Ops, Process
from driftline.stream.records import Encoder, Polled

from .core import FOREVER, UPSTREAM, Intake, Origin
from .parse import Parser

EMIT_MAX = 4_000
WAITING_MAX = 50_000  # records of one source that wait for the others
POLL_MAX = 5_000


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    pipeline: str
    registry: str
    kafka: str = "127.0.0.1:9092"
    replay: bool = False
    pii_key: str = ""
    dead_letters_max: int = 10_000
    ops_port: int = 0
    run_dir: str = ""


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far the log may go now: to `until`, with every source complete at its end; ticks name `deployment`."""

    until: int
    ticks_to: int
    clock_ms: int
    deployment: int
    ends: dict[Origin, int]


class Upstream:
    """One partition of one upstream topic, read ahead by a task of its own into a queue of bounded length."""

    def __init__(self, source: Source, origin: Origin, topic: str, wake: asyncio.Event) -> None:
        self.source = source
        self.origin = origin
        self.topic = topic
        self.position = 0  # what was handed to the merge
        self._queue: deque[Polled] = deque()
        self._queued = 0
        self._wake = wake
        self._room = asyncio.Event()

    async def pump(self) -> None:
        """Read ahead, for ever."""
        while True:
            while self._queued >= WAITING_MAX:
                self._room.clear()
                await self._room.wait()
            polled = await self.source.poll(POLL_MAX, 1_000)
            if polled is not None:
                self._queue.append(polled)
                self._queued += len(polled)
                self._wake.set()

    def take(self, end: int) -> Polled | None:
        """The next records below offset `end`."""
        if not self._queue or self._queue[0].offsets[0] >= end:
            return None
        polled = self._queue.popleft()
        below = sum(offset < end for offset in polled.offsets)
        if below < len(polled):
            self._queue.appendleft(polled.part(below, len(polled)))
            polled = polled.part(0, below)
        self._queued -= len(polled)
        self._room.set()
        self.position = polled.offsets[-1] + 1
        return polled


class IntakePart:
    """Runs the merge until stopped."""

    def __init__(self, settings: Settings, pipeline: Pipeline, topics: Topics, registry: Registry, clock: Clock) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._topics = topics
        self._registry = registry
        self._clock = clock
        self._group = f"{pipeline.name}-intake"
        self._wake = asyncio.Event()
        self._stopping = False
        self._parsers = [Parser(stream, registry, settings.pii_key.encode()) for stream in pipeline.streams]
        self._upstreams: dict[Origin, Upstream] = {}
        self._horizons: LogReader | None = None
        self._clock_records: deque[Horizon] = deque()
        self._deployments: LogReader | None = None
        self._deployment = 0
        sealed = [stream.topic for stream in pipeline.streams if stream.pii]
        key = bytes.fromhex(settings.pii_key)[:32] if sealed else b""
        self._letters = DeadLetters(pipeline.name, "intake", UPSTREAM, settings.dead_letters_max, key=key, sealed=sealed)
        self.ready = False

    async def run(self) -> None:
        """Go on until `stop`; after a fault outside start again from what was committed."""
        while not self._stopping:
            try:
                await self._session()
            except Recoverable as fault:
                log.warning("intake starts again", because=str(fault))
                await asyncio.sleep(0.5)
            finally:
                self.ready = False

    def stop(self) -> None:
        """Finish the stretch in hand, then leave."""
        self._stopping = True
        self._wake.set()

    async def _session(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            encoder = Encoder({"events": self._topics.events, "dead-letters": self._topics.dead_letters}, self._registry, Writer.INTAKE)
            sink = Sink(self._settings.kafka, self._topics.by_kind(), encoder, self._group)
            stack.push_async_callback(sink.stop)
            await sink.start()
            intake = await self._connect(stack)
            pumps = [asyncio.create_task(upstream.pump()) for upstream in self._upstreams.values()]
            stack.push_async_callback(_cancel, pumps)
            self.ready = True
            while not self._stopping:
                _raise_failed(pumps)
                horizon = await self._horizon(intake)
                if horizon is not None:
                    await self._go_to(horizon, intake, sink)

    async def _connect(self, stack: contextlib.AsyncExitStack) -> Intake:
        """Stand where the committed offsets say, with the last tick and each source's newest time from their metadata."""
        streams = self._pipeline.streams
        counts = await describe(self._settings.kafka, [*(stream.topic for stream in streams), self._topics.events.name])
        marks = await committed_metadata(self._settings.kafka, self._group)
        missing = [stream.topic for stream in streams if not counts.partitions.get(stream.topic)]
        if missing:
            raise Recoverable(f"the upstream topics {', '.join(missing)} do not exist yet")
        origins = [(stream.number, partition) for stream in streams for partition in range(counts.partitions[stream.topic])]
        ticks, newest = [], {}
        for origin in origins:
            topic = streams[origin[0]].topic
            source = Source(self._settings.kafka, topic, origin[1], group=self._group, wait_ms=50)
            stack.push_async_callback(source.stop)
            await source.start()
            upstream = Upstream(source, origin, topic, self._wake)
            offset, metadata = marks.get((topic, origin[1]), (None, ""))
            upstream.position = (await source.bounds())[0] if offset is None else offset
            source.seek(upstream.position)
            if metadata:
                told = json.loads(metadata)
                ticks.append(told["tick"])
                newest[origin] = told["newest"]
            self._upstreams[origin] = upstream
        await self._follow(stack)
        return Intake(self._pipeline, counts.partitions[self._topics.events.name], origins, max(ticks, default=None), newest)

    async def _follow(self, stack: contextlib.AsyncExitStack) -> None:
        """In a replay follow the clock; live follow the deployments, of which the newest is in force."""
        topic: Topic = self._topics.clock if self._settings.replay else self._topics.deployments
        reader = LogReader(self._settings.kafka, topic, self._registry, wait_ms=500)
        stack.push_async_callback(reader.stop)
        await reader.start()
        self._clock_records.clear()
        self._horizons, self._deployments = (reader, None) if self._settings.replay else (None, reader)

    async def _horizon(self, intake: Intake) -> Horizon | None:
        return await (self._replay_horizon(intake) if self._settings.replay else self._live_horizon())

    async def _replay_horizon(self, intake: Intake) -> Horizon | None:
        """The next clock record that is not passed yet."""
        if self._horizons is None:
            raise Fatal("the clock is not being read")
        if not self._clock_records:
            for batch in await self._horizons.next(0.5):
                self._clock_records += [self._horizon_of(record) for record in facts(batch.tables["clock"])]
        if not self._clock_records:
            return None
        horizon = self._clock_records.popleft()
        passed = intake.tick is not None and (intake.tick + 1) * self._pipeline.tick_ms > horizon.until
        return None if passed else horizon

    def _horizon_of(self, record: ClockRecord) -> Horizon:
        numbers = {stream.topic: stream.number for stream in self._pipeline.streams}
        told = {(numbers[end.topic], end.partition): end.offset for end in record.ends if end.topic in numbers}
        ends = {origin: told.get(origin, 0) for origin in self._upstreams}
        return Horizon(record.time, record.time, record.time, record.deployment, ends)

    async def _live_horizon(self) -> Horizon:
        """Wait for something to arrive or the next tick to be due; then ask every source how far it goes."""
        tick_ms = self._pipeline.tick_ms
        due_s = (tick_ms - self._clock.now_ms() % tick_ms) / 1000
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min(due_s, 1.0))
        self._wake.clear()
        now_ms = self._clock.now_ms()
        asked = await asyncio.gather(*(upstream.source.end_now() for upstream in self._upstreams.values()))
        ends = dict(zip(self._upstreams, asked, strict=True))
        await self._read_deployments()
        return Horizon(FOREVER, now_ms, now_ms, self._deployment, ends)

    async def _read_deployments(self) -> None:
        if self._deployments is None:
            raise Fatal("the deployments are not being read")
        for batch in await self._deployments.next(0):
            self._deployment = max([self._deployment, *(deployment.version for deployment in facts(batch.tables["deployment"]))])

    async def _go_to(self, horizon: Horizon, intake: Intake, sink: Sink) -> None:
        """Emit stretch by stretch until every source is read to its end and nothing below the horizon waits."""

        def complete(origin: Origin) -> bool:
            return self._upstreams[origin].position >= horizon.ends[origin]

        while not self._stopping:
            refused = await self._read(horizon, intake, sink)
            done = all(map(complete, self._upstreams))
            bound = intake.bound(complete, horizon.until)
            emitted = intake.emit(bound, horizon.ticks_to if done else None, horizon.deployment, EMIT_MAX)
            if len(emitted):
                await sink.send(emitted.messages, 0, self._clock.now_ms())
                self._tally(emitted.taken, emitted.late)
            if len(emitted) or refused:
                await self._mark(intake)
            if done and not len(emitted):
                return
            if not len(emitted) and not refused:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), 0.2)
                self._wake.clear()

    async def _read(self, horizon: Horizon, intake: Intake, sink: Sink) -> int:
        """Hand what has arrived to the merge; what cannot be taken goes to the dead letters."""
        count = 0
        for origin, upstream in self._upstreams.items():
            while intake.waiting(origin) < WAITING_MAX and (polled := upstream.take(horizon.ends[origin])) is not None:
                arrived, refused = self._parsers[origin[0]].parse(polled, horizon.clock_ms)
                intake.add(origin, arrived)
                await self._refuse(upstream, polled, refused, sink)
                self._count("read", upstream.topic, len(polled))
                count += len(refused)
        return count

    async def _refuse(self, upstream: Upstream, polled: Polled, refused: Sequence[Refused], sink: Sink) -> None:
        letters = self._letters.of(upstream.topic, upstream.origin[1], polled, refused, source=UPSTREAM + upstream.origin[0])
        if letters:
            await sink.send(letters, 0, self._clock.now_ms())
            self._letters.sent(upstream.topic, refused)
            self._count("dead_lettered", upstream.topic, len(refused))

    async def _mark(self, intake: Intake) -> None:
        """Commit, for each source, the offset up to which all is on the log, with the last tick and the source's newest time."""
        if intake.tick is None:
            return
        standing = {origin: intake.standing(origin, upstream.position) for origin, upstream in self._upstreams.items()}
        notes = {origin: json.dumps({"tick": intake.tick, "newest": newest}) for origin, (_, newest) in standing.items()}
        await asyncio.gather(*(upstream.source.mark(standing[origin][0], notes[origin]) for origin, upstream in self._upstreams.items()))

    def _tally(self, taken: Mapping[Origin, int], late: int) -> None:
        for origin, n in taken.items():
            self._count("applied", self._upstreams[origin].topic, n)
        metric("driftline_merge_late_total").labels(pipeline=self._pipeline.name).inc(late)

    def _count(self, outcome: str, topic: str, n: int) -> None:
        labels = {"pipeline": self._pipeline.name, "service": "intake", "topic": topic}
        if outcome == "read":
            metric("driftline_messages_read_total").labels(**labels).inc(n)
        else:
            metric("driftline_messages_total").labels(**labels, outcome=outcome).inc(n)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _raise_failed(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
            raise Fatal("a source ended by itself")


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline = load_pipeline(settings.pipeline)
    part = IntakePart(settings, pipeline, Topics.of(pipeline), Registry(settings.registry), clock)
    return Process("intake", [part], Ops("intake", settings.ops_port, Path(settings.run_dir) if settings.run_dir else None))
