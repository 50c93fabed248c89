"""
Merge the upstream topics onto the pipeline's one log, by visible time, with ticks in between.

What each source partition sent stays in its order, for consumers tell a copy by the offset: a record that comes out of order in
its own partition waits for nobody and holds nobody back; it goes as if it were as new as the newest before it. Ties go by
declared stream, partition, offset. A tick goes before everything at or after its time. (KIP-353 describes the rule by which
sources with a backlog are waited for.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from driftline.contracts import traceparent
from driftline.contracts.messages import Source
from driftline.features.murmur2 import partitions_of
from driftline.pipeline import Pipeline
from driftline.stream.batch import Column, Ints, Messages, Varlen, distinct
from driftline.stream.parse import Arrived, join

UPSTREAM = 16  # the first source number of upstream streams
FOREVER = 2**62
FIRST_TICKS_MAX = 1_000_000  # how far behind the clock a pipeline's time may begin: 58 days of ticks of five seconds
Origin = tuple[int, int]  # number of the stream, partition of its topic
NOBODY = (-1, -1)
ORIGIN_BITS = 32  # the place of a partition in an origin that is written as one number


@dataclass(frozen=True, slots=True)
class Emitted:
    """
    A stretch of the merged log: messages for every partition, and where the pipeline stands when they are acked.

    `taken` counts the records by origin, `late` those that came after a tick that should have followed them.
    """

    messages: Sequence[Messages]
    taken: Mapping[Origin, int]
    ticks: int
    late: int

    def __len__(self) -> int:
        return sum(self.taken.values()) + self.ticks

    def traces(self, origin: Origin) -> tuple[Ints, list[Varlen]]:
        """Offsets and trace contexts of the records of one source, each once; nothing where none has any."""
        offsets, traces = [np.zeros(0, np.int64)], []
        for one in self.messages:
            if traceparent.NAME in one.columns:
                named = [np.asarray(one.columns[name]) for name in ("source", "partition", "home", "offset")]
                mine = (named[0] == UPSTREAM + origin[0]) & (named[1] == origin[1]) & named[2]
                offsets.append(named[3][mine])
                traces.append(traceparent.column_of(one).take(mine))
        return np.concatenate(offsets), traces


class _Queue:
    """What one source partition sent and the log has not yet, each record with the time that it is merged by."""

    def __init__(self, newest: int) -> None:
        self.newest = newest  # the running maximum of visible time: where this source stands
        self.sent = newest  # the same for what is on the log
        self._parts: list[tuple[Arrived, Ints]] = []

    def add(self, arrived: Arrived) -> None:
        if len(arrived):
            sort_times = np.maximum.accumulate(np.maximum(arrived.visible, self.newest))
            self.newest = int(sort_times[-1])
            self._parts.append((arrived, sort_times))

    def __len__(self) -> int:
        return sum(len(arrived) for arrived, _ in self._parts)

    @property
    def held_bytes(self) -> int:
        """What the records that wait take of memory."""
        return sum(len(arrived.bodies.data) for arrived, _ in self._parts)

    def before(self, bound: int, most: int) -> tuple[Arrived, Ints] | None:
        """The first `most` of what is merged before `bound`, still waiting."""
        parts: list[tuple[Arrived, Ints]] = []
        for arrived, times in self._parts:
            n = min(int(np.searchsorted(times, bound)), most)
            if not n:
                break
            parts.append((arrived.take(slice(0, n)), times[:n]))
            most -= n
        return (join([arrived for arrived, _ in parts]), np.concatenate([times for _, times in parts])) if parts else None

    def drop(self, n: int) -> None:
        """The first `n` are on the log."""
        while n:
            arrived, times = self._parts.pop(0)
            gone = min(n, len(arrived))
            self.sent = int(times[gone - 1])
            if gone < len(arrived):
                self._parts.insert(0, (arrived.take(slice(gone, None)), times[gone:]))
            n -= gone

    def first_offset(self) -> int | None:
        """Offset of the first record that waits."""
        return int(self._parts[0][0].offsets[0]) if self._parts else None


class Intake:
    """
    The merge. Give it what arrived (`add`), then take stretches of the log (`emit`); owns nothing that a restart must find again
    but `tick`, the last tick sent, and `newest`, the running maximum of each source: both travel in the committed offsets.
    """

    def __init__(
        self, pipeline: Pipeline, partitions: int, origins: Sequence[Origin], tick: int | None, newest: Mapping[Origin, int]
    ) -> None:
        self._streams = pipeline.streams
        self._tick_ms = pipeline.tick_ms
        self._partitions = partitions
        self._queues = {origin: _Queue(newest.get(origin, 0)) for origin in origins}
        self.tick = tick

    def add(self, origin: Origin, arrived: Arrived) -> None:
        """Take what one source partition sent, in its order."""
        self._queues[origin].add(arrived)

    def waiting(self, origin: Origin) -> int:
        """How many records of that source are not on the log yet."""
        return len(self._queues[origin])

    def held_bytes(self, origin: Origin) -> int:
        """How much of memory they take."""
        return self._queues[origin].held_bytes

    def standing(self, origin: Origin, read_to: int) -> tuple[int, int]:
        """What a restart must know of a source: the offset up to which all is on the log, and the newest time up to there."""
        queue = self._queues[origin]
        first = queue.first_offset()
        return (read_to, queue.newest) if first is None else (first, queue.sent)

    def bound(self, complete: Callable[[Origin], bool], until: int) -> int:
        """Up to when, exclusive, the log can go: as far as every source that is not complete has been read."""
        return min([until, *(queue.newest for origin, queue in self._queues.items() if not complete(origin))])

    def holder(self, complete: Callable[[Origin], bool], until: int) -> Origin:
        """
        The first of the sources that hold the log at `bound`. Ties go by source, so of the records at the bound itself those of
        the sources up to this one may go: or else a source with more records of one time than may wait would wait for itself.
        """
        bound = self.bound(complete, until)
        holding = [origin for origin, queue in self._queues.items() if not complete(origin) and queue.newest == bound]
        return min(holding) if holding and bound < until else NOBODY

    def emit(
        self,
        bound: int,
        ticks_to: int | None,
        deployment: int,
        limit: int,
        *,
        holder: Origin = NOBODY,
        clock_ms: int = FOREVER,
        known: Mapping[Origin, int] | None = None,
    ) -> Emitted:
        """
        The next stretch: at most `limit` records merged before `bound` (at it, too, from sources up to `holder`), and the ticks, at
        most `limit`, that belong between them; behind the last of them ticks up to `ticks_to`, unless it is None (sources are still
        being read) or more records wait before `bound`. No tick is beyond `clock_ms`, though a record may be. The log stops before the
        first record that is not below the offset that `known` has for its source: another source may hold an older one.
        """
        most = limit
        bounds = {origin: bound + (origin <= holder) for origin in self._queues}
        found = [(origin, part) for origin, queue in self._queues.items() if (part := queue.before(bounds[origin], limit + 1)) is not None]
        merged = _Merged.of(found)
        limit = min(limit, merged.known(known)) if known is not None else limit
        more = len(merged) > limit
        following = int(merged.times[limit]) if more else ticks_to
        merged = merged.head(limit)
        ticks, cut = self._ticks(merged, following, clock_ms, most)
        if cut:
            merged = merged.head(int(np.searchsorted(merged.times, (int(ticks[-1]) + 1) * self._tick_ms)))
        late = self._late(merged, ticks)
        messages = [one for to in range(self._partitions) for one in self._messages(merged, ticks, deployment, to)]
        taken = merged.counts()
        for origin, n in taken.items():
            self._queues[origin].drop(n)
        if len(ticks):
            self.tick = int(ticks[-1])
        return Emitted(messages, taken, len(ticks), late)

    def _ticks(self, merged: _Merged, following: int | None, clock_ms: int, limit: int) -> tuple[Ints, bool]:
        """
        The numbers of the ticks to send now, and whether `limit` cut them, as after a long silence. The very first of a pipeline is
        the last one before its first record, unless that is so old that its ticks would flood the log: it goes before time began.
        """
        reached = following if following is not None else int(merged.times[-1]) if len(merged) else None
        if reached is None:
            return np.zeros(0, np.int64), False
        reached = min(reached, clock_ms)
        first = min(reached, int(merged.times[0])) if len(merged) else reached
        start = self.tick + 1 if self.tick is not None else first // self._tick_ms
        if self.tick is None and clock_ms < FOREVER:
            start = max(start, clock_ms // self._tick_ms - FIRST_TICKS_MAX)
        end = reached // self._tick_ms + 1
        return np.arange(start, min(end, start + limit), dtype=np.int64), end > start + limit

    def _late(self, merged: _Merged, ticks: Ints) -> int:
        """How many records follow a tick that they should have preceded."""
        newest_tick = int(ticks[-1]) if len(ticks) else self.tick or 0
        before = np.maximum(np.minimum(merged.times // self._tick_ms, newest_tick), self.tick or 0)
        return int((merged.arrived.visible < before * self._tick_ms).sum())

    def _messages(self, merged: _Merged, ticks: Ints, deployment: int, to: int) -> list[Messages]:
        places = np.searchsorted(merged.times, ticks * self._tick_ms)
        out = [_tick_messages(ticks, self._tick_ms, deployment, 2 * places, to)]
        if len(merged):
            homes = partitions_of(merged.arrived.keys, self._partitions)
            everywhere = np.array([stream.broadcast for stream in self._streams], np.bool_)[merged.streams]
            mine = np.flatnonzero((homes == to) | everywhere)
            out.append(merged.messages(mine, homes[mine] == to, to))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class _Merged:
    """Records of all sources in the log's order."""

    arrived: Arrived
    times: Ints  # by which they are merged
    streams: Ints
    partitions: Ints

    @classmethod
    def of(cls, found: Sequence[tuple[Origin, tuple[Arrived, Ints]]]) -> _Merged:
        if not found:
            none = np.zeros(0, np.int64)
            return cls(Arrived(none, none, none, Varlen.of([]), Varlen.of([]), Varlen.of([])), none, none, none)
        arrived = join([part for _, (part, _) in found])
        times = np.concatenate([times for _, (_, times) in found])
        streams = np.concatenate([np.full(len(times), origin[0], np.int64) for origin, (_, times) in found])
        partitions = np.concatenate([np.full(len(times), origin[1], np.int64) for origin, (_, times) in found])
        order = np.lexsort((arrived.offsets, partitions, streams, times))
        return cls(arrived.take(order), times[order], streams[order], partitions[order])

    def __len__(self) -> int:
        return len(self.times)

    def head(self, n: int) -> _Merged:
        return self if len(self) <= n else _Merged(self.arrived.take(slice(0, n)), self.times[:n], self.streams[:n], self.partitions[:n])

    def known(self, offsets: Mapping[Origin, int]) -> int:
        """How many come before the first that is not below its source's offset."""
        unknown = np.zeros(len(self), np.bool_)
        for (stream, partition), end in offsets.items():
            unknown |= (self.streams == stream) & (self.partitions == partition) & (self.arrived.offsets >= end)
        return int(np.argmax(unknown)) if unknown.any() else len(self)

    def counts(self) -> dict[Origin, int]:
        numbers = self.streams << ORIGIN_BITS | self.partitions
        return {(number >> ORIGIN_BITS, number & ~(-1 << ORIGIN_BITS)): int((numbers == number).sum()) for number in distinct(numbers)}

    def messages(self, index: Ints, home: np.ndarray, to: int) -> Messages:
        records = self.arrived.take(index)
        columns: dict[str, Column] = {
            "source": UPSTREAM + self.streams[index],
            "partition": self.partitions[index],
            "offset": records.offsets,
            "index": np.zeros(len(index), np.int64),
            "event_offset": np.full(len(index), -1, np.int64),
            "id": records.ids,
            "key": records.keys,
            "time": records.times,
            "visible": records.visible,
            "home": home,
            "body": records.bodies,
        }
        if records.traces is not None:
            columns[traceparent.NAME] = records.traces
        return Messages("events", "event", records.keys, columns, 2 * index + 1, to)


def _tick_messages(ticks: Ints, tick_ms: int, deployment: int, order: Ints, to: int) -> Messages:
    n = len(ticks)
    columns = {
        "source": np.full(n, Source.TICK, np.int64),
        "partition": np.zeros(n, np.int64),
        "offset": ticks,
        "index": np.zeros(n, np.int64),
        "event_offset": np.full(n, -1, np.int64),
        "time": ticks * tick_ms,
        "deployment": np.full(n, deployment, np.int64),
    }
    return Messages("events", "tick", None, columns, order.astype(np.int64), to)
