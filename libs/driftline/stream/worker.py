"""
The loop: one partition, one micro-batch at a time. Send, wait for the acks, then commit.

The laws that it keeps, and why they are enough:

1. State is a function of (log, offset). The ledger, written together with the rows, says up to which offset they are folded; so
   whoever goes on from a ledger makes the same rows and the same messages as anyone else who did, or will, from there.
2. Messages are acked before the ledger moves. A crash in between repeats a batch: its messages are sent again, equal, with the
   same coordinates, and consumers drop them by lane. A crash before leaves nothing that is not made again.
3. The ledger is compared and set. A process that was paused, and came back after another had taken over, cannot write; what it
   still sends are copies of what the other has sent or will send.
4. After any error nothing in memory is trusted: core, producer and position are dropped, and the partition is acquired again.
5. A message is applied when its coordinate is above the last one of its lane, and `seen` moves with the ledger; copies, whoever
   made them, are dropped.

An operator without state has no ledger. It passes coordinates on, and its group's offset, committed after the acks, is enough:
what it repeats is dropped downstream.

A record that kills the process, before anything could be said about it, is found by counting: each attempt to go on from a place is
noted where the place is (beside the ledger, or in the metadata of the committed offset) until there is progress. From the third on,
batches are halved and the partitions of the process take turns, until the process dies with that one record in hand and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from driftline.clock import Clock
from driftline.contracts.traceparent import trace_ids
from driftline.errors import Fatal, Invalid, Recoverable
from driftline.logs import log
from driftline.metrics import Series, distribution, metric
from driftline.stream.batch import Batch, Core, Effects, Refused, Rows, sifted
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import SILENCE_S, Cluster, Sink, Source, let_go
from driftline.stream.ledger import Declined, Entry, Fenced, Ledger
from driftline.stream.records import Coordinate, Decoder, Lane, Polled, drop_seen
from driftline.stream.tracing import Tracing
from driftline.stream.turns import Turns

ROWS_MAX = 4_000
BYTES_MAX = 2 << 20
ROW_BYTES_UNKNOWN = 4 << 10  # what a row may have, until the first commit has shown it
TRIES_BEFORE_CAUTION = 2
ALONE_MAX = 2  # deaths with one record alone in hand, after which it is set aside
IDLE_CHECK_S = 1.0
MARK_EVERY_S = 1.0  # with a ledger, for lag tools
MARK_ALONE_EVERY_S = 0.1  # without: what is not committed is made again by the next process
END_CHECK_S = 5.0
POLL_MS = 500
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Operator:
    """What one operator is made of; the worker makes a fresh set for each partition, and again after each failure."""

    service: str
    pipeline: str
    topic: str
    group: str
    digest: str
    row_format: int
    cluster: Cluster
    core: Callable[[int], Core]
    source: Callable[[int], Source]
    sink: Callable[[int], Sink]
    ledger: Callable[[int], Ledger] | None
    decoder: Decoder
    dead_letters: DeadLetters
    before: Callable[[Batch], Awaitable[None]] | None = None  # wait until the core can take this batch
    observe: Callable[[int, Core, Effects], None] | None = None  # after each commit: the service's own metrics
    records_max: int = 4_000
    turns: Turns = field(default_factory=Turns)  # of all the partitions of the process
    tracing: Tracing | None = None


class Worker:
    """Runs an operator over one partition, until stopped."""

    def __init__(self, operator: Operator, partition: int, clock: Clock) -> None:
        self._operator = operator
        self._partition = partition
        self._clock = clock
        self._stopping = asyncio.Event()
        self._labels = {"pipeline": operator.pipeline, "service": operator.service, "topic": operator.topic}
        where = {**self._labels, "partition": str(partition)}
        self._lag = metric("driftline_lag_messages").labels(**where)
        self._age = metric("driftline_lag_seconds").labels(**where)
        self._progress = metric("driftline_progress_timestamp_seconds").labels(**where)
        self._is_ready = metric("driftline_partition_ready").labels(**where)
        self._moved_at = clock.monotonic_s()
        self._position = 0
        self._session: _Session | None = None
        self.ready = False
        self.refused = ""  # why this partition must not go on

    async def run(self) -> None:
        """
        Go on until `stop`. A Recoverable fault makes it acquire again, after a pause; a Fatal one ends this partition alone.
        """
        failures = 0
        while not self._stopping.is_set():
            before = self._position
            session = _Session(self._operator, self._partition, self._clock)
            try:
                await session.acquire()
                self._session = session
                self._tell_ready(True)
                await self._go_on(session)
                await session.forgive()
            except asyncio.CancelledError:  # another partition failed
                await session.forgive()
                raise
            except Recoverable as fault:
                session.tell(fault)
                failures = 0 if self._position > before else failures + 1
                log.warning("acquiring again", **self._labels, partition=self._partition, because=str(fault))
                await session.forgive()
                await self._pause(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            except Fatal as fault:
                self.refused = str(fault)
                log.error("partition refused", **self._labels, partition=self._partition, because=self.refused)
                return
            finally:
                self._tell_ready(False)
                self._session = None
                await session.close()

    async def _go_on(self, session: _Session) -> None:
        while not self._stopping.is_set():
            taken = await session.round()
            self._position = session.position
            if taken or not self.behind:
                self._moved_at = self._clock.monotonic_s()
            self._observe(session)
        await session.mark()

    def _tell_ready(self, ready: bool) -> None:
        self.ready = ready
        self._is_ready.set(ready)

    def _observe(self, session: _Session) -> None:
        now_ms = self._clock.now_ms()
        self._lag.set(max(0, session.end - session.position))
        self._age.set((now_ms - session.applied_ms) / 1000 if self.behind else 0)
        self._progress.set((now_ms - 1000 * self.stalled_s()) / 1000)

    @property
    def behind(self) -> bool:
        """True when the log holds what was not applied yet; asked while a batch is in hand, too."""
        return self._session is not None and self._session.position < self._session.end

    def stalled_s(self) -> float:
        """For how long this partition has been behind without moving: alive but not moving is a failure."""
        return self._clock.monotonic_s() - self._moved_at if self.behind or not self.ready else 0.0

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def stop(self) -> None:
        """Finish the batch in hand, then leave."""
        self._stopping.set()


class _Notes:
    """
    The attempts of an operator without a ledger, as a ledger counts them: in the metadata of its committed offset, "tries alone", which the
    next offset wipes out.
    """

    def __init__(self, source: Source, position: Callable[[], int]) -> None:
        self._source = source
        self._position = position

    async def count_try(self) -> int:
        return (await self._count(1, 0))[0]

    async def count_alone(self) -> int:
        return (await self._count(0, 1))[1]

    async def _count(self, tries: int, alone: int) -> tuple[int, int]:
        noted = [int(word) for word in (await self._source.note()).split()] or [0, 0]
        counted = noted[0] + tries, noted[1] + alone
        await self._source.mark(self._position(), f"{counted[0]} {counted[1]}")
        return counted

    async def clear_tries(self) -> None:
        await self._source.mark(self._position())


class _Session:
    """One partition from one acquisition to the next failure. All that must not survive a failure lives here."""

    def __init__(self, operator: Operator, partition: int, clock: Clock) -> None:
        self._operator = operator
        self._partition = partition
        self._clock = clock
        self._core = operator.core(partition)
        self._source = operator.source(partition)
        self._sink = operator.sink(partition)
        self._ledger = operator.ledger(partition) if operator.ledger else None
        self._attempts = self._ledger or _Notes(self._source, lambda: self.position)
        self._seen: Mapping[Lane, Coordinate] = {}
        self._records_max = operator.records_max
        self._tries = 0
        self._row_bytes: float = ROW_BYTES_UNKNOWN  # of a row, in the last commit
        self._end = 0  # as last asked for
        self._idle_since = self._marked_at = self._heard_at = self._ended_at = clock.monotonic_s()
        self._marked = -1
        self._committing = False
        self.position = 0
        self.applied_ms = clock.now_ms()  # timestamp of the last record applied
        self._count = {
            outcome: metric("driftline_messages_total").labels(
                pipeline=operator.pipeline, service=operator.service, topic=operator.topic, outcome=outcome
            )
            for outcome in ("applied", "duplicate", "late", "dead_lettered", "tick", "broadcast")
        }
        self._spent = {
            stage: metric("driftline_step_duration_seconds").labels(pipeline=operator.pipeline, service=operator.service, stage=stage)
            for stage in ("decode", "open", "step", "send", "commit")
        }
        self._sizes = metric("driftline_batch_messages").labels(pipeline=operator.pipeline, service=operator.service)
        where = {"pipeline": operator.pipeline, "service": operator.service, "topic": operator.topic}
        self._read = metric("driftline_messages_read_total").labels(**where)
        self._hops = distribution("driftline_hop_duration_seconds").labels(**where)
        self._commits = {} if operator.ledger is None else commits_of(operator)

    @property
    def end(self) -> int:
        """The log's end as last heard."""
        return max(self._end, self._source.end() or 0)

    async def acquire(self) -> None:
        """Find out where to go on, and refuse if this log, this state or this definition is another than was left here."""
        await self._source.start()
        await self._sink.start()
        # In this order, because another process may still be at work here: what is asked for later is never behind what was told
        # before. A ledger that is read after the log's end may be beyond it, and an offset is committed behind its ledger.
        committed = await self._source.committed()
        entry = await self._open_ledger()
        start, end = await self._source.bounds()
        self._end = end
        if self._ledger is None:
            self.position = start if committed is None else committed
        else:
            if entry is None and committed is not None:
                raise Fatal(self._worded("the store has no ledger, but the group has a committed offset: the state was lost"))
            if entry is not None:
                await self._verify(entry, start, end)
                self._seen = entry.seen
            self.position = start if entry is None else entry.next
            if entry is None:
                self._marked = start  # an offset is committed only where there is a ledger, or the next start would miss it
        if not start <= self.position <= end:
            raise Fatal(self._worded(f"offset {self.position} is outside the log, which holds {start} to {end}"))
        if self.position < end:  # where nothing waits, nothing can have stopped the process
            await self._take_care()
        self._source.seek(self.position)

    async def _open_ledger(self) -> Entry | None:
        try:
            return await self._ledger.open() if self._ledger is not None else None
        except Invalid as fault:
            raise Fatal(self._worded(str(fault))) from fault

    async def _verify(self, entry: Entry, start: int, end: int) -> None:
        mine = self._entry(entry.next, entry.seen, entry.anchor)
        for name, what in (
            ("cluster", "the Kafka cluster"),
            ("partitions", "the number of partitions"),
            ("digest", "the definition"),
            ("row_format", "the row format"),
        ):
            if getattr(entry, name) != getattr(mine, name):
                raise Fatal(self._worded(f"{what} is {getattr(mine, name)}, but the state was made with {getattr(entry, name)}"))
        if entry.anchor is None or not start <= entry.anchor[0] < end:
            if entry.next > end:
                raise Fatal(
                    self._worded(f"the ledger stands at {entry.next}, beyond the log's end {end}: the log was truncated or made anew")
                )
            return
        self._source.seek(entry.anchor[0])
        polled = await self._source.poll(1, 10_000)
        if polled is None:
            raise Recoverable("the last applied record could not be read")
        if polled.anchor(polled.first + 1) != entry.anchor:
            raise Fatal(self._worded(f"the record at {entry.anchor[0]} is not the one that was applied: this is another log"))

    def tell(self, fault: Recoverable) -> None:
        """Count it where another process moved the ledger, and where the store would not commit or did not say whether it has."""
        if isinstance(fault, Fenced):
            self._commits["fenced"].inc()
        elif isinstance(fault, Declined):
            self._commits["refused"].inc()
        elif self._committing:
            self._commits["unknown"].inc()

    def _worded(self, fault: str) -> str:
        where = f"{self._operator.topic}[{self._partition}]"
        if self._ledger is None:
            group = self._operator.group
            return f"{where}: {fault}. What is gone was never answered; to go on with what is there, reset the offset of the group {group}"
        return f"{where}: {fault}. Rebuild it from the log: driftline rebuild {self._operator.pipeline} --partition {self._partition}"

    async def _take_care(self) -> None:
        """After two tries without progress halve the batches, so that a record that kills the process is alone at last."""
        self._tries = await self._attempts.count_try()
        halvings = max(0, self._tries - TRIES_BEFORE_CAUTION)
        self._records_max = max(1, self._operator.records_max >> min(halvings, 60))
        self._operator.turns.suspect(self, halvings > 0)

    async def forgive(self) -> None:
        """A fault that the process lived to see is no crash: do not hold it against the next record."""
        if self._tries:
            with contextlib.suppress(Recoverable):
                await self._attempts.clear_tries()

    async def _is_poison(self) -> bool:
        """
        A single record with which the process died before, with no other in hand. The count of tries alone would not do: all
        partitions of a process die together.
        """
        if self._tries <= TRIES_BEFORE_CAUTION or self._records_max > 1:
            return False
        if await self._attempts.count_alone() <= ALONE_MAX:
            return False
        await asyncio.sleep(IDLE_CHECK_S)  # another process may have it in hand: by then it has moved on, or is dead
        if self._ledger is not None:
            await self._ledger.check()
        elif await self._source.committed() != self.position:
            raise Recoverable("another process went on from here")
        return True

    async def round(self) -> int:
        """Poll and apply once. How many records that were."""
        polled = await self._source.poll(self._records_max, POLL_MS)
        if polled is None:
            await self._idle()
            return 0
        self._idle_since = self._heard_at = self._clock.monotonic_s()
        async with self._operator.turns.taken():
            if await self._is_poison():
                await self._give_up(polled)
            else:
                await self._take(polled)
        return len(polled)

    async def _take(self, polled: Polled) -> None:
        self._sizes.observe(len(polled))
        with self._timed("decode"):
            batch, refused = sifted(self._core, *self._operator.decoder.decode(self._partition, polled))
        if self._operator.before is not None:
            await self._operator.before(batch)
        while True:
            part = self._cut(batch)
            mine = [one for one in refused if part.first_offset <= one.offset < part.next_offset]
            began = self._clock.monotonic_s()
            await self._apply(part, mine, polled)
            if self._operator.tracing is not None:
                self._operator.tracing.batch(self._operator.topic, part, self._clock.monotonic_s() - began, self._clock.now_ms())
            if part.next_offset == batch.next_offset:
                self._records_max = min(2 * self._records_max, self._operator.records_max)
                return
            batch = batch.tail(part.next_offset)

    def _cut(self, batch: Batch) -> Batch:
        """As much of `batch` as one commit may carry."""
        if self._ledger is None:
            return batch
        rows = min(ROWS_MAX, BYTES_MAX / self._row_bytes)
        while len(batch) > 1 and self._core.touches(batch) > rows:
            batch = batch.head(len(batch) // 2)
        return batch

    async def _apply(self, batch: Batch, undecoded: Sequence[Refused], polled: Polled) -> None:
        fresh, seen = drop_seen(batch, self._seen) if self._ledger is not None else (batch, self._seen)
        with self._timed("open"):
            await self._load(fresh)
        with self._timed("step"):
            effects = self._core.step(fresh) if len(fresh) else Effects()
        if effects.refused and self._ledger is not None:  # what was refused has not taken its coordinate
            _, seen = drop_seen(batch.without(effects.refused), self._seen)
        refused = [*undecoded, *effects.refused]
        letters = self._operator.dead_letters.of(self._operator.topic, self._partition, polled, refused)
        now_ms = self._clock.now_ms()
        with self._timed("send"):
            await self._sink.send([*effects.messages, *letters], self._partition, now_ms)
        if self._ledger is not None:
            state = Rows.of(effects.state)
            entry = self._entry(batch.next_offset, seen, polled.anchor(batch.next_offset))
            self._committing = True
            with self._timed("commit"):
                await self._ledger.commit(entry, state)
            if len(state):
                self._row_bytes = int(state.rows.lengths.sum()) / len(state)
            self._committing = False
            self._commits["applied"].inc()
        traces = trace_ids(batch, [one.offset for one in refused])
        self._operator.dead_letters.sent(self._operator.topic, self._partition, refused, traces)
        self._seen = seen
        self.position = batch.next_offset
        first, end = polled.below(batch.first_offset), polled.below(batch.next_offset)
        self.applied_ms = int(polled.timestamps[end - 1])
        await self._progress()
        self._read.inc(end - first)
        self._hops.observe(np.maximum(self._clock.now_ms() - polled.timestamps[first:end], 0) / 1000)  # a sender's clock may be ahead
        self._tally(effects, len(batch) - len(fresh), len(refused))

    async def _load(self, batch: Batch) -> None:
        """Give the core the rows that it lacks, each read together with the ledger; a core may ask again for what a row names."""
        while keys := self._core.needs(batch) if len(batch) else ():
            if self._ledger is None:
                raise Fatal(f"{self._operator.service} asks for state but keeps no ledger")
            for at in range(0, len(keys), ROWS_MAX):
                some = keys[at : at + ROWS_MAX]
                rows = dict(zip(some, await self._ledger.rows(some), strict=True))
                try:
                    self._core.load(rows)
                except (Invalid, msgspec.MsgspecError) as fault:
                    raise Fatal(self._worded(f"a row of the store cannot be read: {fault}")) from fault

    async def _give_up(self, polled: Polled) -> None:
        """The first record has crashed the process time and again: set it aside, raw."""
        offset = polled.first
        batch = Batch(self._partition, offset, offset + 1, {})
        await self._apply(batch, [Refused(offset, "poison", "stopped the process time and again")], polled)

    async def _progress(self) -> None:
        due = self._clock.monotonic_s() - self._marked_at > (MARK_ALONE_EVERY_S if self._ledger is None else MARK_EVERY_S)
        if self._tries:
            self._tries = 0  # in the store the commit has cleared them, or the offset that is marked now does
            self._operator.turns.suspect(self, False)
            due = True
        if due:
            await self.mark()

    async def _idle(self) -> None:
        """Nothing came: see whether the ledger is still ours, and tell the group where we are."""
        now = self._clock.monotonic_s()
        if now - self._idle_since < IDLE_CHECK_S:
            return
        self._idle_since = now
        if self._ledger is not None:
            await self._ledger.check()
        await self.mark()
        if now - self._ended_at < END_CHECK_S:
            return
        self._ended_at = now
        self._end = await self._source.end_now()
        if self.position >= self._end:
            self._heard_at = now
        elif now - self._heard_at > SILENCE_S:
            raise Recoverable(f"the log goes on to {self._end}, but nothing arrives from {self.position} on")

    async def mark(self) -> None:
        """Commit the group's offset: where there is a ledger, for lag tools only."""
        if self.position != self._marked:
            await self._source.mark(self.position)
            self._marked, self._marked_at = self.position, self._clock.monotonic_s()

    def _entry(self, next_offset: int, seen: Mapping[Lane, Coordinate], anchor: tuple[int, int, int] | None) -> Entry:
        operator = self._operator
        return Entry(
            next_offset, dict(seen), anchor, operator.cluster.id, dict(operator.cluster.partitions), operator.digest, operator.row_format
        )

    def _tally(self, effects: Effects, copies: int, refused: int) -> None:
        for outcome, n in effects.counts.items():
            self._count[outcome].inc(n)
        self._count["duplicate"].inc(copies)
        self._count["dead_lettered"].inc(refused)

        if self._operator.observe is not None:
            self._operator.observe(self._partition, self._core, effects)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = self._clock.monotonic_s()
        yield
        self._spent[stage].observe(self._clock.monotonic_s() - began)

    async def close(self) -> None:
        """Let go of everything; what was not acked is forgotten."""
        self._operator.turns.suspect(self, False)
        for stop in (self._source.stop, self._sink.stop, *([self._ledger.close] if self._ledger else [])):
            await let_go(stop, service=self._operator.service, partition=self._partition)


def commits_of(operator: Operator) -> dict[str, Series]:
    """The counters of an operator's commits by result, all at 0 from the start, or else the first one that is fenced were no rise."""
    counter = metric("driftline_ledger_commits_total")
    return {
        result: counter.labels(pipeline=operator.pipeline, service=operator.service, result=result)
        for result in ("applied", "fenced", "refused", "unknown")
    }
