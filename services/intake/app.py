"""
The intake process: reads the upstream topics, writes the pipeline's log. In a declared replay it goes only as far as the clock
topic says; live it goes as far as the wall clock and what every source has shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from driftline.clock import Clock
from driftline.contracts.bounds import PARTITIONS_MAX
from driftline.contracts.messages import ClockRecord, Writer, facts
from driftline.contracts.messages import Source as ClockSource
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal, Recoverable
from driftline.features.upstream import names_of
from driftline.logs import log
from driftline.metrics import distribution, metric
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Batch, Ints, Refused
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import (
    SILENCE_S,
    Ends,
    LogReader,
    Publisher,
    SetAside,
    Sink,
    Source,
    committed_metadata,
    describe,
    let_go,
    letters_lately,
)
from driftline.stream.letterbox import Letterbox
from driftline.stream.parse import Parser
from driftline.stream.process import Ops, Process
from driftline.stream.records import Encoder, Polled
from driftline.stream.tracing import tracing_of

from .core import FOREVER, UPSTREAM, Emitted, Intake, Origin

EMIT_MAX = 4_000
WAITING_MAX = 50_000  # records of one source that wait for the others
WAITING_BYTES_MAX = 64 << 20
POLL_MAX = 5_000
POLL_MS = 100  # behind what was read: the marker of its transaction is there, and says no more than that the offset moves
IDLE_POLL_MS = 1_000
PARSED_AT_ONCE_MAX = 200  # records: a millisecond or two, which a thread would not be worth
MARK_EVERY_S = 0.1  # how often offsets are committed at most
MARK_AGAIN_S = 30.0  # and how often without news: what a process that was replaced has committed behind its successor is put right
TELL_EVERY_S = 1.0  # how often the metrics hear how far sources are behind
ROUND_EVERY_S = 0.01  # how often the ends are asked for at most, live: what comes between goes on together (docs/decisions/0021)
COUNT_EVERY_S = 30.0  # how often the partitions of all topics are counted again
PII_KEY_BYTES = 32


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    pipeline: str
    registry: str
    kafka: str = "127.0.0.1:9092"
    replay: bool = False
    pii_key: str = ""
    dead_letters_max: int = 10_000
    ops_host: str = "127.0.0.1"
    ops_port: int = 0
    run_dir: str = ""


@dataclass(frozen=True, slots=True)
class Horizon:
    """
    How far the log may go now: to `until`, with every source complete at its end; ticks name `deployment`. Live, only what had been
    read (`known`) when the ends were asked for may go: what arrived later may be newer than what another source held by then.
    """

    until: int
    ticks_to: int
    clock_ms: int
    deployment: int
    ends: dict[Origin, int]
    known: dict[Origin, int] | None = None


class Upstream:
    """One partition of one upstream topic, read ahead by a task of its own into a queue of bounded length."""

    def __init__(self, source: Source, origin: Origin, topic: str, wake: asyncio.Event) -> None:
        self.source = source
        self.origin = origin
        self.topic = topic
        self.position = 0  # up to where all was handed to the merge
        self._polled_to = 0  # the same for the queue, with what is no record
        self._queue: deque[Polled] = deque()
        self._queued = self._queued_bytes = 0
        self._stamps: deque[tuple[Ints, Ints]] = deque()  # offsets and timestamps of what the merge was given and is not on the log
        self._wake = wake
        self._room = asyncio.Event()

    async def pump(self) -> None:
        """Read ahead, for ever."""
        idle = False
        while True:
            while self._queued >= WAITING_MAX or self._queued_bytes >= WAITING_BYTES_MAX:
                self._room.clear()
                await self._room.wait()
            polled = await self.source.poll(POLL_MAX, IDLE_POLL_MS if idle else POLL_MS)
            position = await self.source.position()
            idle = polled is None and position <= self._polled_to
            if polled is not None:
                self._queue.append(polled)
                self._queued += len(polled)
                self._queued_bytes += _size(polled)
            if position > self._polled_to:
                self._polled_to = position
                self._wake.set()

    @property
    def known(self) -> int:
        """The offset up to which all was read, though it may wait in the queue."""
        return max(self.position, self._polled_to)

    @property
    def given(self) -> int:
        """The offset up to which all was handed to the merge, what is no record passed over."""
        return self.position if self._queue else self.known

    def read_to(self, end: int) -> bool:
        """True when everything below offset `end` was handed to the merge."""
        return self.given >= end

    def take(self, end: int) -> Polled | None:
        """The next records below offset `end`."""
        if not self._queue or self._queue[0].first >= end:
            return None
        polled = self._queue.popleft()
        below = polled.below(end)
        if below < len(polled):
            self._queue.appendleft(polled.part(below, len(polled)))
            polled = polled.part(0, below)
        self._queued -= len(polled)
        self._queued_bytes -= _size(polled)
        self._room.set()
        self.position = polled.last + 1
        self._stamps.append((polled.offsets, polled.timestamps))
        return polled

    def left(self, offset: int) -> list[Ints]:
        """The timestamps of the records below `offset`, which wait no longer; each is given once."""
        gone = []
        while self._stamps and self._stamps[0][0][0] < offset:
            offsets, stamps = self._stamps.popleft()
            below = int(np.searchsorted(offsets, offset))
            gone.append(stamps[:below])
            if below < len(offsets):
                self._stamps.appendleft((offsets[below:], stamps[below:]))
        return gone

    @property
    def oldest_ms(self) -> int | None:
        """The timestamp of the oldest record that was read and waits; None when none does."""
        if self._stamps:
            return int(self._stamps[0][1][0])
        return int(self._queue[0].timestamps[0]) if self._queue else None


def _size(polled: Polled) -> int:
    return int(polled.values.lengths.sum())


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
        self._parsers = [Parser(stream, registry, settings.pii_key.encode(), names_of(pipeline)) for stream in pipeline.streams]
        self._upstreams: dict[Origin, Upstream] = {}
        self._horizons: LogReader | None = None
        self._clock_records: deque[Horizon] = deque()
        self._deployments: LogReader | None = None
        self._deployment = 0
        self._ends: Ends | None = None
        sealed = [stream.topic for stream in pipeline.streams if stream.pii]
        key = _letter_key(settings.pii_key) if sealed else b""
        self._letters = DeadLetters(pipeline.name, "intake", UPSTREAM, settings.dead_letters_max, key=key, sealed=sealed)
        self._partitions: Mapping[str, int] = {}  # of each topic, as this session found them
        self._counted_at = 0.0
        self._counting: asyncio.Task[Mapping[str, int]] | None = None
        self._heard_at = 0.0
        self._waiting_since: float | None = None  # for what a source holds and does not give
        self._marked: dict[Origin, tuple[int, str]] = {}  # what was committed for each source
        self._marked_at = 0.0
        self._marked_all_at = clock.monotonic_s()
        self._told_at = 0.0
        self._round_at = 0.0
        self._tracing = tracing_of("intake", pipeline.name)
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
                self._tell_ready(False)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def stop(self) -> None:
        """Finish the stretch in hand, then leave."""
        self._stopping = True
        self._wake.set()

    def _tell_ready(self, ready: bool) -> None:
        self.ready = ready
        where = {"pipeline": self._pipeline.name, "service": "intake", "topic": self._topics.events.name, "partition": "all"}
        metric("driftline_partition_ready").labels(**where).set(ready)

    def stalled_s(self) -> float:
        """For how long a source has not given what it holds."""
        return 0.0 if self._waiting_since is None else self._clock.monotonic_s() - self._waiting_since

    async def _session(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            written = {"events": self._topics.events, "dead-letters": self._topics.dead_letters}
            encoder = await asyncio.to_thread(Encoder, written, self._registry, Writer.INTAKE)
            sink = Sink(self._settings.kafka, written, encoder, self._group)
            stack.push_async_callback(let_go, sink.stop)
            await sink.start()
            self._letters.begin(await letters_lately(self._settings.kafka, self._topics, self._clock))
            intake = await self._connect(stack)
            pumps = [asyncio.create_task(upstream.pump()) for upstream in self._upstreams.values()]
            if self._deployments is not None:
                pumps.append(asyncio.create_task(self._heed(self._deployments)))
            stack.push_async_callback(_cancel, pumps)
            stack.push_async_callback(self._stop_counting)
            self._tell_ready(True)
            self._marked.clear()
            while not self._stopping:
                _raise_failed(pumps)
                await self._count_again()
                await self._mark_at_times(intake)
                horizon = await self._horizon(intake)
                if horizon is not None:
                    await self._go_to(horizon, intake, sink, pumps)
            await self._mark(intake)

    async def _connect(self, stack: contextlib.AsyncExitStack) -> Intake:
        """Stand where the committed offsets say, with the last tick and each source's newest time from their metadata."""
        streams = self._pipeline.streams
        self._partitions, self._counted_at = await self._count_partitions(), self._clock.monotonic_s()
        marks = await committed_metadata(self._settings.kafka, self._group)
        missing = [stream.topic for stream in streams if not self._partitions.get(stream.topic)]
        if wide := [name for name, count in self._partitions.items() if count > PARTITIONS_MAX]:
            raise Fatal(f"{', '.join(wide)}: more than {PARTITIONS_MAX} partitions, and each has a place in every ledger downstream")
        if missing:
            raise Recoverable(f"the upstream topics {', '.join(missing)} do not exist yet")
        origins = [(stream.number, partition) for stream in streams for partition in range(self._partitions[stream.topic])]
        ticks, newest = [], {}
        self._ends = Ends(self._settings.kafka, committed_only=True)
        stack.push_async_callback(let_go, self._ends.stop)
        await self._ends.start()
        for origin in origins:
            topic = streams[origin[0]].topic
            source = Source(self._settings.kafka, topic, origin[1], group=self._group, committed_only=True)
            stack.push_async_callback(let_go, source.stop)
            await source.start()
            upstream = Upstream(source, origin, topic, self._wake)
            offset, metadata = marks.get((topic, origin[1]), (None, ""))
            start, end = await source.bounds()
            upstream.position = start if offset is None else offset
            if not start <= upstream.position <= end:
                raise Fatal(
                    f"{topic}[{origin[1]}]: intake stands at offset {offset}, but the log holds {start} to {end}: records are gone that "
                    f"were never read. To go on with what is there, reset the offsets of the group {self._group} on it to the earliest"
                )
            source.seek(upstream.position)
            if metadata:
                told = json.loads(metadata)
                self._refuse_other_placement(told.get("partitions"))
                ticks.append(told["tick"])
                newest[origin] = told["newest"]
            self._upstreams[origin] = upstream
        await self._follow(stack)
        return Intake(self._pipeline, self._partitions[self._topics.events.name], origins, max(ticks, default=None), newest)

    async def _count_partitions(self) -> Mapping[str, int]:
        topics = [*(stream.topic for stream in self._pipeline.streams), self._topics.events.name]
        return (await describe(self._settings.kafka, topics)).partitions

    async def _count_again(self) -> None:
        """Raises Recoverable when a topic has other partitions by now: the next session reads all of them."""
        now = self._clock.monotonic_s()
        if self._counting is None and now - self._counted_at > COUNT_EVERY_S:
            self._counted_at = now
            self._counting = asyncio.create_task(self._count_partitions())  # beside the merge: it takes connections of its own
        if self._counting is not None and self._counting.done():
            counting, self._counting = self._counting, None
            found = await counting
            changed = [topic for topic, count in found.items() if count != self._partitions[topic]]
            if changed:
                raise Recoverable(f"{', '.join(changed)} has other partitions than before")

    async def _stop_counting(self) -> None:
        counting, self._counting = self._counting, None
        await _cancel([counting] if counting is not None else [])

    def _refuse_other_placement(self, before: int | None) -> None:
        """Raises Fatal when keys would from now on be placed elsewhere than those on the log."""
        events = self._topics.events.name
        if before not in (None, self._partitions[events]):
            raise Fatal(
                f"{events} has {self._partitions[events]} partitions, but its keys are placed among {before}: a key would be in two of "
                f"them. The number cannot be changed in place: start the pipeline under a new name, with as many as it needs"
            )

    async def _follow(self, stack: contextlib.AsyncExitStack) -> None:
        """In a replay follow the clock; live follow the deployments, of which the newest is in force."""
        topic: Topic = self._topics.clock if self._settings.replay else self._topics.deployments
        reader = LogReader(
            self._settings.kafka, topic, self._registry, wait_ms=IDLE_POLL_MS, set_aside=self._letterbox(stack), pipeline=self._pipeline
        )
        stack.push_async_callback(let_go, reader.stop)
        await reader.start()
        self._clock_records.clear()
        self._horizons, self._deployments = (reader, None) if self._settings.replay else (None, reader)
        if not self._settings.replay:
            self._take_deployments((await reader.read_to()).values())

    def _letterbox(self, stack: contextlib.AsyncExitStack) -> SetAside | None:
        """For records of the clock, which only intake reads. What is wrong with a deployment, inference tells."""
        if not self._settings.replay:
            return None
        letters = DeadLetters(self._pipeline.name, "intake", ClockSource.CLOCK, self._settings.dead_letters_max)
        kafka, clock = self._settings.kafka, self._clock
        publisher = Publisher(kafka, self._topics, self._registry, Writer.INTAKE, clock, client=f"{self._group}-letters")
        stack.push_async_callback(let_go, publisher.stop)
        return Letterbox(letters, publisher, self._topics.clock, kafka, self._topics, clock).put

    async def _horizon(self, intake: Intake) -> Horizon | None:
        return await (self._replay_horizon(intake) if self._settings.replay else self._live_horizon())

    async def _replay_horizon(self, intake: Intake) -> Horizon | None:
        """
        The next clock record that is not passed yet: its ticks are not all there, or something below its ends is to be read again, for
        whether that is too far ahead is judged by this record's time, whenever it is read.
        """
        if self._horizons is None:
            raise Fatal("the clock is not being read")
        if not self._clock_records:
            for batch in await self._horizons.next(0.5):
                self._clock_records += [self._horizon_of(record) for record in facts(batch.tables["clock"])]
        if not self._clock_records:
            return None
        horizon = self._clock_records.popleft()
        passed = intake.tick is not None and (intake.tick + 1) * self._pipeline.tick_ms > horizon.until
        read = all(upstream.read_to(horizon.ends[origin]) for origin, upstream in self._upstreams.items())
        return None if passed and read else horizon

    def _horizon_of(self, record: ClockRecord) -> Horizon:
        numbers = {stream.topic: stream.number for stream in self._pipeline.streams}
        if record.time % self._pipeline.tick_ms:
            raise Fatal(f"{self._topics.clock.name}: the time {record.time} is no multiple of the pipeline's tick")
        told = {(numbers[end.topic], end.partition): end.offset for end in record.ends if end.topic in numbers}
        ends = {origin: told.get(origin, 0) for origin in self._upstreams}
        return Horizon(record.time, record.time, record.time, record.deployment, ends)

    async def _live_horizon(self) -> Horizon:
        """Wait for something to arrive or the next tick to be due; then ask every source how far it goes."""
        tick_ms = self._pipeline.tick_ms
        due_s = (tick_ms - self._clock.now_ms() % tick_ms) / 1000
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min(due_s, 1.0))
        await asyncio.sleep(self._round_at + ROUND_EVERY_S - self._clock.monotonic_s())
        self._round_at = self._clock.monotonic_s()
        self._wake.clear()
        now_ms, known = self._clock.now_ms(), {origin: upstream.known for origin, upstream in self._upstreams.items()}
        if self._ends is None:
            raise Fatal("nobody can be asked for the ends of the sources")
        asked = await self._ends.now([(upstream.topic, upstream.origin[1]) for upstream in self._upstreams.values()])
        ends = dict(zip(self._upstreams, asked, strict=True))
        return Horizon(FOREVER, now_ms, now_ms, self._deployment, ends, known)

    async def _heed(self, deployments: LogReader) -> None:
        """
        Keep to the deployments as they come, for ever. Beside the merge, because after a silence the reader asks for the topic's end, and
        the broker answers that behind the fetch which waits on the same connection.
        """
        while True:
            self._take_deployments(await deployments.next(IDLE_POLL_MS / 1000))

    def _take_deployments(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._deployment = max([self._deployment, *(deployment.version for deployment in facts(batch.tables["deployment"]))])

    async def _go_to(self, horizon: Horizon, intake: Intake, sink: Sink, pumps: Sequence[asyncio.Task[None]]) -> None:
        """Emit stretch by stretch until every source is read to its end and nothing below the horizon waits."""

        def complete(origin: Origin) -> bool:
            return self._upstreams[origin].read_to(horizon.ends[origin])

        while not self._stopping:
            _raise_failed(pumps)
            read = await self._read(horizon, intake, sink)
            done = all(map(complete, self._upstreams))
            bound, holder = intake.bound(complete, horizon.until), intake.holder(complete, horizon.until)
            ticks_to = horizon.ticks_to if done else None
            emitted = intake.emit(
                bound, ticks_to, horizon.deployment, EMIT_MAX, holder=holder, clock_ms=horizon.clock_ms, known=horizon.known
            )
            if len(emitted):
                began = self._clock.monotonic_s()
                await sink.send(emitted.messages, 0, self._clock.now_ms())
                self._trace(emitted, self._clock.monotonic_s() - began)
                self._tally(emitted.taken, emitted.late)
                self._tell_hops(emitted.taken, intake)
            self._tell_lags(horizon, intake)
            await self._mark_at_times(intake)
            if len(emitted) or read or done:
                self._waiting_since = None
            elif self._knows_more(horizon):  # or else a backlog of more than may wait would wait for itself
                self._wake.set()
                return
            else:
                await self._wait()
            waiting = any(map(intake.waiting, self._upstreams))
            if done and (not len(emitted) or (not waiting and len(emitted) < EMIT_MAX)):  # else there may be more up to the horizon
                if waiting:  # what was not known yet is known now
                    self._wake.set()
                return

    def _knows_more(self, horizon: Horizon) -> bool:
        """Whether something was read since the ends were asked for: asked again, it may go."""
        known = horizon.known
        return known is not None and any(upstream.known > known[origin] for origin, upstream in self._upstreams.items())

    async def _wait(self) -> None:
        """Until something arrives, for a moment. Raises Recoverable when nothing has for too long: a consumer may have gone deaf."""
        if self._waiting_since is None:
            self._waiting_since = self._heard_at = self._clock.monotonic_s()
        if self._clock.monotonic_s() - self._heard_at > SILENCE_S:
            self._heard_at = self._clock.monotonic_s()
            raise Recoverable("a source holds more than was read, and does not give it")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), 0.2)
        self._wake.clear()

    async def _read(self, horizon: Horizon, intake: Intake, sink: Sink) -> int:
        """Hand what has arrived to the merge; what cannot be taken goes to the dead letters. Returns how many were read."""
        read = 0
        for origin, upstream in self._upstreams.items():
            while intake.waiting(origin) < WAITING_MAX and intake.held_bytes(origin) < WAITING_BYTES_MAX:
                polled = upstream.take(horizon.ends[origin])
                if polled is None:
                    break
                parse = self._parsers[origin[0]].parse
                in_thread = len(polled) > PARSED_AT_ONCE_MAX
                arrived, refused = (
                    await asyncio.to_thread(parse, polled, horizon.clock_ms) if in_thread else parse(polled, horizon.clock_ms)
                )
                intake.add(origin, arrived)
                await self._refuse(upstream, polled, refused, sink)
                read += len(polled)
        return read

    async def _refuse(self, upstream: Upstream, polled: Polled, refused: Sequence[Refused], sink: Sink) -> None:
        letters = self._letters.of(upstream.topic, upstream.origin[1], polled, refused, source=UPSTREAM + upstream.origin[0])
        if letters:
            await sink.send(letters, 0, self._clock.now_ms())
            told = {one.offset: polled.trace_id(one.offset) for one in refused}
            self._letters.sent(upstream.topic, upstream.origin[1], refused, {offset: trace for offset, trace in told.items() if trace})
            self._count("dead_lettered", upstream.topic, len(refused))

    async def _mark(self, intake: Intake) -> None:
        """
        Commit, for each source of which there is news, and at times for all, the offset up to which all is on the log, with the last
        tick and the source's newest time.
        """
        self._marked_at = self._clock.monotonic_s()
        if intake.tick is None:
            return
        if self._marked_at - self._marked_all_at > MARK_AGAIN_S:
            self._marked_all_at = self._marked_at
            self._marked.clear()
        standing = {origin: intake.standing(origin, upstream.position) for origin, upstream in self._upstreams.items()}
        same = {"tick": intake.tick, "partitions": self._partitions[self._topics.events.name]}
        marks = {origin: (offset, json.dumps({**same, "newest": newest})) for origin, (offset, newest) in standing.items()}
        news = {origin: mark for origin, mark in marks.items() if mark != self._marked.get(origin)}
        await asyncio.gather(*(self._upstreams[origin].source.mark(*mark) for origin, mark in news.items()))
        self._marked |= news

    async def _mark_at_times(self, intake: Intake) -> None:
        """What is on the log and not committed is sent again by the next process: some copies, for a request less a stretch."""
        if self._clock.monotonic_s() - self._marked_at > MARK_EVERY_S:
            await self._mark(intake)

    def _tally(self, taken: Mapping[Origin, int], late: int) -> None:
        if taken:
            metric("driftline_batch_messages").labels(pipeline=self._pipeline.name, service="intake").observe(sum(taken.values()))
        for origin, n in taken.items():
            self._count("applied", self._upstreams[origin].topic, n)
        metric("driftline_merge_late_total").labels(pipeline=self._pipeline.name).inc(late)

    def _trace(self, emitted: Emitted, seconds: float) -> None:
        """A span for each source of a stretch, the copies of broadcast records left out."""
        if self._tracing is None:
            return
        for origin, n in emitted.taken.items():
            offsets, traces = emitted.traces(origin)
            if traces:
                topic, between = self._upstreams[origin].topic, (min(offsets), max(offsets))
                self._tracing.span(topic, origin[1], between, n, traces, seconds, self._clock.now_ms())

    def _tell_hops(self, origins: Iterable[Origin], intake: Intake) -> None:
        now_ms = self._clock.now_ms()
        for origin in origins:
            upstream = self._upstreams[origin]
            offset, _ = intake.standing(origin, upstream.position)
            hops = distribution("driftline_hop_duration_seconds").labels(
                pipeline=self._pipeline.name, service="intake", topic=upstream.topic
            )
            for stamps in upstream.left(offset):
                hops.observe(np.maximum(now_ms - stamps, 0) / 1000)  # a sender's clock may be ahead

    def _tell_lags(self, horizon: Horizon, intake: Intake) -> None:
        """How far each source is behind, at times; in a replay behind the clock's last record."""
        now_s = self._clock.monotonic_s()
        if now_s - self._told_at < TELL_EVERY_S:
            return
        self._told_at, now_ms = now_s, self._clock.now_ms()
        self._tell_hops(self._upstreams, intake)  # of what was refused too, after which nothing may come for long
        for origin, upstream in self._upstreams.items():
            where = {"pipeline": self._pipeline.name, "service": "intake", "topic": upstream.topic, "partition": str(origin[1])}
            offset, _ = intake.standing(origin, upstream.given)
            oldest_ms = upstream.oldest_ms
            metric("driftline_lag_messages").labels(**where).set(max(0, horizon.ends[origin] - offset))
            metric("driftline_lag_seconds").labels(**where).set(0 if oldest_ms is None else (now_ms - oldest_ms) / 1000)
            metric("driftline_progress_timestamp_seconds").labels(**where).set(now_ms / 1000 - self.stalled_s())

    def _count(self, outcome: str, topic: str, n: int) -> None:
        labels = {"pipeline": self._pipeline.name, "service": "intake", "topic": topic}
        metric("driftline_messages_read_total").labels(**labels).inc(n)
        metric("driftline_messages_total").labels(**labels, outcome=outcome).inc(n)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    left = set(tasks)
    while left:  # told again, where a client has swallowed it
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)
    await asyncio.gather(*tasks, return_exceptions=True)


def _letter_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < PII_KEY_BYTES:
        raise Fatal(f"DRIFTLINE_PII_KEY must be hexadecimal, of at least {PII_KEY_BYTES} bytes: openssl rand -hex {PII_KEY_BYTES}")
    return key[:PII_KEY_BYTES]


def _raise_failed(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
            raise Fatal("a source ended by itself")


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline = load_pipeline(settings.pipeline)
    part = IntakePart(settings, pipeline, Topics.of(pipeline), Registry(settings.registry), clock)
    return Process(
        "intake", [part], Ops("intake", settings.ops_port, Path(settings.run_dir) if settings.run_dir else None, settings.ops_host)
    )
