"""
Whether what a fold makes is what is on the topics: each message, in its lane, key and value byte for byte.

The topic is read beside the fold, first copies only, as a consumer would take them. Within a lane both sides ascend, so each message
meets its counterpart at the head of two queues, and neither side has to lie in memory whole.

Where a log no longer begins at its first record, two things cannot be proved and are counted as such: what looks further back than the
log does, and what the topic itself has let go.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
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
        self._made: dict[Lane, deque[Sent]] = defaultdict(deque)
        self._found: dict[Lane, deque[Sent]] = defaultdict(deque)
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
        for lane, sent in self._places(messages):
            self._made[lane].append(sent)
            self._last[lane] = sent.place
        self._meet()
        while self._position < self._end and any(self._made[lane] for lane in self._made):
            await self._read()
            self._meet()

    async def finish(self) -> Findings:
        """Everything was made: what is left on either side has no counterpart."""
        while self._position < self._end:
            await self._read()
            self._meet()
        for lane, queue in self._made.items():
            while queue:
                self._missing(lane, queue.popleft())
        for lane, queue in self._found.items():
            while queue:
                self._extra(lane, queue.popleft())
        return self.findings

    def _places(self, messages: Sequence[Messages]) -> list[tuple[Lane, Sent]]:
        """The messages as they would be sent, each with its lane, in the order of sending."""
        scope = self._scope
        made: list[tuple[int, Lane, Sent]] = []
        for one in messages:
            columns = one.columns
            partitions = columns.get("partition", np.full(len(one), scope.partition, np.int64))
            lanes = lane_of(scope.writer, np.asarray(columns["source"]), np.asarray(partitions)).tolist()
            places = zip(np.asarray(columns["offset"]).tolist(), np.asarray(columns["index"]).tolist(), strict=True)
            keys = [None] * len(one) if one.keys is None else one.keys.tolist()
            order = one.order.tolist()
            for lane, place, cause, key, value in zip(lanes, places, order, keys, self._encoder.values(one, scope.partition), strict=True):
                made.append((cause, lane, Sent(place, cause, key, value)))
        made.sort(key=lambda one: one[0])
        return [(lane, sent) for _, lane, sent in made]

    async def _read(self) -> None:
        polled = await self._source.poll(RECORDS_MAX, SILENCE_MS)
        if polled is None:
            raise Recoverable(f"{self._where} goes on to {self._end}, but nothing arrives from {self._position} on")
        self._position = polled.offsets[-1] + 1
        batch, _ = self._decoder.decode(self._scope.partition, polled)
        mine = {name: table.take(self._is_mine(table)) for name, table in batch.tables.items()}
        fresh, self._seen = drop_seen(type(batch)(batch.partition, batch.first_offset, batch.next_offset, mine), self._seen)
        for lane, sent in self._firsts(list(fresh.tables.values()), polled):
            self._found[lane].append(sent)
            self._first.setdefault(lane, sent.place)

    def _is_mine(self, table: Table) -> Any:
        """Messages of this writer about this partition; a partition that all write to, such as that of summaries, has others' too."""
        partition = self._scope.partition
        return (table["writer"] == self._scope.writer) & ((table["source"] == Log.TICK) | (table["partition"] == partition))

    def _firsts(self, tables: Sequence[Table], polled: Polled) -> list[tuple[Lane, Sent]]:
        offsets = np.asarray(polled.offsets, np.int64)
        found: list[tuple[int, Lane, Sent]] = []
        for table in tables:
            ats = np.searchsorted(offsets, table.offsets).tolist()
            lanes = lane_of(table["writer"], table["source"], table["partition"]).tolist()
            causes = np.where(table["source"] == self._scope.source, table["offset"], -1).tolist()
            places = zip(table["offset"].tolist(), table["index"].tolist(), strict=True)
            for at, lane, cause, place in zip(ats, lanes, causes, places, strict=True):
                found.append((at, lane, Sent(place, cause, polled.keys[at], polled.values[at] or b"")))
        found.sort(key=lambda one: one[0])
        return [(lane, sent) for _, lane, sent in found]

    def _meet(self) -> None:
        for lane, made in self._made.items():
            found = self._found[lane]
            while made and found:
                if made[0].place == found[0].place:
                    self._compare(lane, made.popleft(), found.popleft())
                elif made[0].place < found[0].place:
                    self._missing(lane, made.popleft())
                else:
                    self._extra(lane, found.popleft())

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
        batch, _ = self._decoder.decode(0, Polled([0], [None], [value], [0]))
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
