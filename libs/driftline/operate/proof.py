"""
Whether what a fold makes is what is on the topics: each message, in its lane, key and value byte for byte.

The topic is read beside the fold, first copies only, as a consumer would take them. Within a lane both sides ascend, so each message
meets its counterpart at the head of two queues, and neither side has to lie in memory whole.

Where a log no longer begins at its first record, two things cannot be proved and are counted as such: what looks further back than the
log does, and what the topic itself has let go.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from driftline.contracts.avro import schema_id_of
from driftline.contracts.messages import Source as Log
from driftline.contracts.topics import Topic
from driftline.errors import Recoverable
from driftline.stream.batch import Messages, Table
from driftline.stream.kafka import Source
from driftline.stream.records import Coordinate, Decoder, Encoder, Lane, Polled, SchemaRegistry, drop_seen, lane_of

RECORDS_MAX = 20_000
SILENCE_MS = 10_000
TOLD_MAX = 20


class Sent(NamedTuple):
    """A message, by its place in its lane; `cause` is the offset of its cause on the operator's own log, -1 where only the lane knows."""

    place: Coordinate
    cause: int
    key: bytes | None
    value: bytes


class Lined:
    """Messages of one lane that wait for their counterparts, ascending, by column: thousands meet theirs in one comparison of lists."""

    def __init__(self) -> None:
        self._columns: tuple[list[Any], ...] = ([], [], [], [])  # as the fields of Sent
        self._at = 0

    def __len__(self) -> int:
        return len(self._columns[0]) - self._at

    def add(self, places: Sequence[Coordinate], causes: Sequence[int], keys: Sequence[bytes | None], values: Sequence[bytes]) -> None:
        """At the end of the line; what has left its front is let go."""
        for mine, new in zip(self._columns, (places, causes, keys, values), strict=True):
            del mine[: self._at]
            mine.extend(new)
        self._at = 0

    def head(self) -> Coordinate:
        """The place of the first."""
        place: Coordinate = self._columns[0][self._at]
        return place

    def pop(self) -> Sent:
        """Take the first."""
        self._at += 1
        return Sent(*(column[self._at - 1] for column in self._columns))

    def pop_equal(self, other: Lined) -> int:
        """Let go of as many as are the same at the front of both, if that is all of the shorter. How many."""
        n = min(len(self), len(other))
        mine, others = slice(self._at, self._at + n), slice(other._at, other._at + n)
        for column in (0, 2, 3):  # causes follow from places
            if self._columns[column][mine] != other._columns[column][others]:
                return 0
        self._at += n
        other._at += n
        return n


@dataclass
class Findings:
    """What came out: messages proved equal by topic, how many could not be proved, and the differences, the first ones in words."""

    equal: Counter[str] = field(default_factory=Counter)
    unproved: int = 0
    later: int = 0  # on the topic already, though caused by what was not folded: made again by the service, and dropped as copies
    differing: int = 0
    told: list[str] = field(default_factory=list)

    def differs(self, words: str) -> None:
        """One more difference."""
        self.differing += 1
        if len(self.told) < TOLD_MAX:
            self.told.append(words)

    def add(self, other: Findings) -> None:
        """Those of another topic."""
        self.equal += other.equal
        self.unproved += other.unproved
        self.later += other.later
        self.differing += other.differing
        self.told = [*self.told, *other.told][:TOLD_MAX]


@dataclass(frozen=True, slots=True)
class Scope:
    """Of one operator's partition: who writes, caused by which log, and from where to where on it anything can be proved."""

    writer: int
    source: int
    partition: int
    start: int  # of the operator's own log
    goal: int


class Proof:
    """Compares what is made for one partition of one topic with what is there. Every method that reads raises Recoverable."""

    def __init__(self, kafka: str, topic: Topic, to: int, registry: SchemaRegistry, encoder: Encoder, scope: Scope) -> None:
        self.topic = topic
        self._where = f"{topic.name}[{to}]"
        self._source = Source(kafka, topic.name, to)
        self._decoder = Decoder(topic, registry)
        self._encoder = encoder
        self._scope = scope
        self._made: dict[Lane, Lined] = defaultdict(Lined)
        self._found: dict[Lane, Lined] = defaultdict(Lined)
        self._first: dict[Lane, Coordinate] = {}  # on the topic
        self._last: dict[Lane, Coordinate] = {}  # made so far
        self._seen: Mapping[Lane, Coordinate] = {}
        self._start = self._position = self._end = 0
        self.proves_from = scope.start  # what earlier records cause may look further back than the log does
        self.findings = Findings()

    async def start(self) -> None:
        """Connect; what is there at this moment is what is compared."""
        await self._source.start()
        self._start, self._end = await self._source.bounds()
        self._position = self._start
        self._source.seek(self._start)

    async def stop(self) -> None:
        """Disconnect."""
        await self._source.stop()

    async def take(self, messages: Sequence[Messages]) -> None:
        """What a step made for this topic; the topic is read on until each message has met its own, or its end."""
        self._line_up(messages)
        self._meet()
        while self._position < self._end and any(self._made.values()):
            await self._read()
            self._meet()

    async def finish(self) -> Findings:
        """Everything was made: what is left on either side has no counterpart."""
        while self._position < self._end:
            await self._read()
            self._meet()
        for lane, queue in self._made.items():
            while queue:
                self._missing(lane, queue.pop())
        for lane, queue in self._found.items():
            while queue:
                self._extra(lane, queue.pop())
        return self.findings

    def _line_up(self, messages: Sequence[Messages]) -> None:
        """The messages as they would be sent, each in its lane. Lanes are kinds of message, or share one in ascending order."""
        scope = self._scope
        for one in sorted(messages, key=lambda one: int(one.order[0])):
            n, columns = len(one), one.columns
            partitions = np.asarray(columns.get("partition", np.full(n, scope.partition, np.int64)))
            lanes = lane_of(scope.writer, np.asarray(columns["source"]), partitions)
            keys = [None] * n if one.keys is None else one.keys.tolist()
            values = self._encoder.values(one, scope.partition).tolist()
            places = _places(np.asarray(columns["offset"]), np.asarray(columns["index"]))
            self._add(self._made, lanes, places, one.order.tolist(), keys, values)
            for lane in np.unique(lanes).tolist():
                self._last[lane] = max(self._last.get(lane, (-1, -1)), places[int(np.flatnonzero(lanes == lane)[-1])])

    @staticmethod
    def _add(
        to: dict[Lane, Lined],
        lanes: Any,
        places: Sequence[Coordinate],
        causes: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes],
    ) -> None:
        known = np.unique(lanes).tolist()
        for lane in known:
            if len(known) == 1:
                to[lane].add(places, causes, keys, values)
            else:
                mine = np.flatnonzero(lanes == lane).tolist()
                to[lane].add(
                    [places[at] for at in mine], [causes[at] for at in mine], [keys[at] for at in mine], [values[at] for at in mine]
                )

    async def _read(self) -> None:
        polled = await self._source.poll(RECORDS_MAX, SILENCE_MS)
        if polled is None:
            raise Recoverable(f"{self._where} goes on to {self._end}, but nothing arrives from {self._position} on")
        self._position = polled.last + 1
        batch, _ = self._decoder.decode(self._scope.partition, polled)
        mine = {name: table.take(self._is_mine(table)) for name, table in batch.tables.items()}
        fresh, self._seen = drop_seen(type(batch)(batch.partition, batch.first_offset, batch.next_offset, mine), self._seen)
        for table in fresh.tables.values():
            self._take_found(table, polled)

    def _is_mine(self, table: Table) -> Any:
        """Messages of this writer about this partition; a partition that all write to, such as that of summaries, has others' too."""
        partition = self._scope.partition
        return (table["writer"] == self._scope.writer) & ((table["source"] == Log.TICK) | (table["partition"] == partition))

    def _take_found(self, table: Table, polled: Polled) -> None:
        ats = np.searchsorted(polled.offsets, table.offsets)
        lanes = lane_of(table["writer"], table["source"], table["partition"])
        causes = np.where(table["source"] == self._scope.source, table["offset"], -1).tolist()
        places = _places(table["offset"], table["index"])
        for lane in np.unique(lanes).tolist():
            self._first.setdefault(lane, places[int(np.flatnonzero(lanes == lane)[0])])
        self._add(self._found, lanes, places, causes, [polled.keys.get(at) for at in ats.tolist()], polled.values.take(ats).tolist())

    def _meet(self) -> None:
        for lane, made in self._made.items():
            found = self._found[lane]
            while made and found:
                equal = made.pop_equal(found)
                self.findings.equal[self.topic.kind] += equal
                if not equal:
                    self._meet_singly(lane, made, found)

    def _meet_singly(self, lane: Lane, made: Lined, found: Lined) -> None:
        """Somewhere in what both sides hold there is a difference: find it."""
        for _ in range(min(len(made), len(found))):
            if made.head() == found.head():
                self._compare(lane, made.pop(), found.pop())
            elif made.head() < found.head():
                self._missing(lane, made.pop())
            else:
                self._extra(lane, found.pop())

    def _compare(self, lane: Lane, made: Sent, found: Sent) -> None:
        if made.key == found.key and (made.value == found.value or self._same_in_another_version(made.value, found.value)):
            self.findings.equal[self.topic.kind] += 1
        elif made.cause < self.proves_from:
            self.findings.unproved += 1
        else:
            self.findings.differs(f"{self._caused(lane, made)}: another is on the topic")

    def _same_in_another_version(self, made: bytes, found: bytes) -> bool:
        """Messages of two versions of a schema: the fields that both have."""
        if schema_id_of(made) == schema_id_of(found):
            return False
        ours, theirs = (self._record(value) for value in (made, found))
        return bool(ours and theirs) and all(repr(ours[name]) == repr(theirs[name]) for name in ours.keys() & theirs.keys())

    def _record(self, value: bytes) -> dict[str, Any]:
        batch, _ = self._decoder.decode(0, Polled.of([0], [None], [value], [0]))
        return next((table.records()[0] for table in batch.tables.values()), {})

    def _missing(self, lane: Lane, made: Sent) -> None:
        expired = self._start > 0 and (lane not in self._first or made.place < self._first[lane])
        if expired or made.cause < self.proves_from:
            self.findings.unproved += 1
        else:
            self.findings.differs(f"{self._caused(lane, made)}: made, but not on the topic")

    def _extra(self, lane: Lane, found: Sent) -> None:
        own = found.cause >= 0
        if found.cause >= self._scope.goal or (not own and found.place > self._last.get(lane, (-1, -1))):
            self.findings.later += 1
        elif self._scope.start > 0 and (not own or found.cause < self.proves_from):
            self.findings.unproved += 1
        else:
            self.findings.differs(f"{self._caused(lane, found)}: on the topic, but not made")

    def _caused(self, lane: Lane, sent: Sent) -> str:
        source, partition = Log(lane >> 24 & 0xFFFFFF).name.lower(), lane & 0xFFFFFF
        return f"{self._where}: caused by {source}[{partition}]@{sent.place[0]}/{sent.place[1]}"


def _places(offsets: Any, indexes: Any) -> list[Coordinate]:
    return list(zip(offsets.tolist(), indexes.tolist(), strict=True))
