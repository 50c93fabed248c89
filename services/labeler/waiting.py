"""
What waits in the labeler: answers for their outcome, outcomes for their answer. In memory by column, and as rows of the store.

Both lie in segments of `SEGMENT` in order of arrival, one row each, so that a batch appends to the last segment of a kind and
rewrites the few that its ticks settle; an outcome that comes before it is needed never touches its answer's row. One small
row names the live segments, from which memory is rebuilt without a scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid
from driftline.features import texts
from driftline.stream.batch import Ints, Varlen
from driftline.stream.journal import JournalTime

from .joining import ANSWER, OUTCOME, UNSETTLED, Table, chain

SEGMENT = 256
META = b"meta"
ANSWERS, OUTCOMES = b"w:", b"o:"
FIRST_RECORDS, FIRST_BYTES = 1 << 10, 1 << 16
SPARE = 1 << 10  # records that may lie dead, beside as many as live, before room is made


class Arm(msgspec.Struct, frozen=True, array_like=True):
    """Who gave an answer."""

    deployment: int
    arm: str
    share: float
    shadow: bool
    model: str
    digest: str


N = TypeVar("N", Arm, str)


class AnswerSegment(msgspec.Struct, array_like=True):
    """A state row of answers: who gave them, in order of first use, the records of `ANSWER`, and their texts one after the other."""

    names: list[Arm]
    records: bytes
    texts: bytes


class OutcomeSegment(msgspec.Struct, array_like=True):
    """A state row of outcomes: who told them, the records of `OUTCOME`, their ids."""

    names: list[str]
    records: bytes
    texts: bytes


class Meta(msgspec.Struct):
    """The row from which all others are found. Segments are given as ranges [first, last]."""

    time: JournalTime = msgspec.field(default_factory=JournalTime)
    answers: int = 0  # arrived since the beginning
    outcomes: int = 0
    answer_segments: list[tuple[int, int]] = msgspec.field(default_factory=list)
    outcome_segments: list[tuple[int, int]] = msgspec.field(default_factory=list)
    totals: dict[str, int] = msgspec.field(default_factory=dict)


class Kind(NamedTuple):
    """How one kind of records is kept: their fields, their texts, as fields `<text>_bytes` that lie one after the other, and their rows."""

    record: npt.DTypeLike
    texts: tuple[str, ...]
    prefix: bytes
    segment: type[AnswerSegment] | type[OutcomeSegment]


ANSWER_KIND = Kind(ANSWER, ("id", "key", "slices", "traceparent"), ANSWERS, AnswerSegment)
OUTCOME_KIND = Kind(OUTCOME, ("id",), OUTCOMES, OutcomeSegment)


class Held(Generic[N]):
    """
    The records of one kind, in order of arrival. A *place* stands for one until the next call of `changed`; what has left memory lies
    dead until then or longer. `names` are Arms or origins, one for each code in the field `who`.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.names: list[N] = []
        self._codes: dict[N, int] = {}
        self._count = 0  # records in memory, the dead included
        self._bytes = 0
        self._records = np.zeros(FIRST_RECORDS, kind.record)
        self._data = np.zeros(FIRST_BYTES, np.uint8)
        self._rebuilt(np.zeros(0, np.int64))

    @property
    def records(self) -> npt.NDArray[Any]:
        """All records in memory; `live` says which of them are held."""
        return self._records[: self._count]

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Which records are held."""
        return self._live[: self._count]

    @property
    def segments(self) -> Ints:
        """The segments of what is held."""
        return self.segments_of(self.live)

    def segments_of(self, which: npt.NDArray[np.bool_]) -> Ints:
        """The segments of what is held of some records, given as a mask."""
        of = self.records["number"][self.live & which] // SEGMENT
        return of[np.diff(of, prepend=-1) > 0]

    def __len__(self) -> int:
        return int(np.count_nonzero(self.live))

    def table(self) -> Table:
        """All of it, for compiled code, which may change it."""
        return Table(self.records, self.live, self._touched[: self._count], self._next[: self._count], self._heads, self._data)

    def code(self, name: N) -> int:
        """The code of `name`, from now on if it has none."""
        if name not in self._codes:
            self._codes[name] = len(self.names)
            self.names.append(name)
        return self._codes[name]

    def append(self, fields: Mapping[str, Any], columns: Sequence[Varlen]) -> Ints:
        """The places of records that arrive: not held yet, that is for who lets them in."""
        n = len(columns[0])
        sizes = [column.ends - column.starts for column in columns]
        ends = self._bytes + np.cumsum(sum(sizes))
        at = ends - sum(sizes)
        self._reserve(n, int(sum(size.sum() for size in sizes)))
        new = self._records[self._count : self._count + n]
        new["start"] = at
        for name, values in fields.items():
            new[name] = values
        for name, column, size in zip(self._kind.texts, columns, sizes, strict=True):
            new[f"{name}_bytes"] = size
            texts.write(self._data, at, column)
            at = at + size
        self._count, self._bytes = self._count + n, int(ends[-1]) if n else self._bytes
        return np.arange(self._count - n, self._count)

    def text(self, name: str, places: Ints) -> Varlen:
        """One of the texts of each of these records."""
        records = self._records[places]
        starts = records["start"].copy()
        for before in self._kind.texts[: self._kind.texts.index(name)]:
            starts += records[f"{before}_bytes"]
        return texts.compact(Varlen(self._data, starts, starts + records[f"{name}_bytes"]))

    def load(self, row: bytes) -> None:
        """Take a stored segment; when all have come, `loaded` has to be called. Raises Invalid when it is none."""
        segment = msgspec.msgpack.decode(row, type=self._kind.segment)
        size = np.dtype(self._kind.record).itemsize
        if len(segment.records) % size:
            raise Invalid(f"its records are not of {size} bytes each")
        records = np.frombuffer(segment.records, self._kind.record).copy()
        sizes = self._sizes(records)
        ends = np.cumsum(sizes)
        fits = len(records) > 0 and (sizes >= 0).all() and ends[-1] == len(segment.texts) and np.array_equal(records["start"], ends - sizes)
        if not fits or records["who"].min() < 0 or records["who"].max() >= len(segment.names):
            raise Invalid("its parts do not fit together")
        names: Sequence[Any] = segment.names  # of the kind that is held here
        codes = np.array([self.code(name) for name in names])
        records["who"] = codes[records["who"]]
        records["start"] += self._bytes
        self._reserve(len(records), len(segment.texts))
        self._records[self._count : self._count + len(records)] = records
        self._live[self._count : self._count + len(records)] = True
        self._data[self._bytes : self._bytes + len(segment.texts)] = np.frombuffer(segment.texts, np.uint8)
        self._count, self._bytes = self._count + len(records), self._bytes + len(segment.texts)

    def loaded(self) -> None:
        """All segments have come, in whatever order."""
        self._rebuilt(np.argsort(self.records["number"]))

    def changed(self) -> Iterator[tuple[bytes, bytes | None]]:
        """The rows of all segments that changed since the last call; None for those that ended. Makes room when much is dead."""
        of = self.records["number"] // SEGMENT
        first = of[0] if len(of) else 0
        is_changed = np.zeros(of[-1] - first + 1 if len(of) else 0, np.bool_)
        is_changed[of[self._touched[: self._count]] - first] = True
        places = np.flatnonzero(self.live & is_changed[of - first])
        changed = first + np.flatnonzero(is_changed)
        records, data = self._apart(places)
        bounds = np.searchsorted(of[places], [changed, changed + 1])
        for segment, first, end in zip(changed.tolist(), *bounds.tolist(), strict=True):
            row = self._row(records[first:end], data) if end > first else None
            yield b"%s%d" % (self._kind.prefix, segment), row
        self._touched[: self._count] = False
        live = np.flatnonzero(self.live)
        if self._count > 2 * len(live) + SPARE:
            self._rebuilt(live)

    def _row(self, records: npt.NDArray[Any], data: npt.NDArray[np.uint8]) -> bytes:
        """
        The row of these records. It has the names that they use alone: which others the segment has had would tell where the log was cut
        into batches, and a row is a function of the log.
        """
        codes, firsts = texts.groups(records["who"])
        names = [self.names[code] for code in records["who"][firsts].tolist()]
        records["who"] = codes
        start, end = records["start"][0], records["start"][-1] + self._sizes(records[-1:])[0]
        records["start"] -= start
        return msgspec.msgpack.encode((names, records.tobytes(), data[start:end].tobytes()))

    def _sizes(self, records: npt.NDArray[Any]) -> Ints:
        """How many bytes of text each has."""
        return sum((records[f"{name}_bytes"] for name in self._kind.texts), np.zeros(len(records), np.int64))

    def _apart(self, places: Ints) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """A copy of the records at `places`, with their texts in a buffer of their own."""
        records = self._records[places]
        sizes = self._sizes(records)
        starts = records["start"].copy()
        column = texts.compact(Varlen(self._data, starts, starts + sizes))
        records["start"] = column.starts
        return records, column.data

    def _rebuilt(self, places: Ints) -> None:
        """Keep the records at `places`, in this order, all of them held, and nothing else; with names that are used."""
        records, data = self._apart(places)
        codes, firsts = texts.groups(records["who"])
        names = [self.names[code] for code in records["who"][firsts].tolist()]
        records["who"] = codes
        self.names, self._codes = names, {name: code for code, name in enumerate(names)}
        self._count, self._bytes = len(records), len(data)
        room = max(FIRST_RECORDS, len(records))
        self._records = np.concatenate([records, np.zeros(room - len(records), records.dtype)])
        self._data = np.concatenate([data, np.zeros(max(FIRST_BYTES - len(data), 0), np.uint8)])
        self._live = np.arange(room) < len(records)
        self._touched, self._next = np.zeros(room, np.bool_), np.zeros(room, np.int64)
        self._chain(room)

    def _chain(self, room: int) -> None:
        self._heads = np.full(2 << (room - 1).bit_length(), -1, np.int64)
        chain(self.table())

    def _reserve(self, records: int, size: int) -> None:
        """Room for so many more, by doubling."""
        before = len(self._records)
        while self._count + records > len(self._records):
            self._records, self._live, self._touched, self._next = (
                np.concatenate([one, np.zeros_like(one)]) for one in (self._records, self._live, self._touched, self._next)
            )
        while self._bytes + size > len(self._data):
            self._data = np.concatenate([self._data, np.zeros_like(self._data)])
        if len(self._records) > before:
            self._chain(len(self._records))


def next_of_answers(records: npt.NDArray[Any], kept_ms: int) -> Ints:
    """The earliest time at which a tick changes each answer."""
    return np.where(records["label"] == UNSETTLED, records["due"], records["due"] + kept_ms)


def ranges(segments: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges [first, last]: live segments are nearly all consecutive."""
    ranges: list[tuple[int, int]] = []
    for segment in sorted(segments):
        if ranges and ranges[-1][1] == segment - 1:
            ranges[-1] = (ranges[-1][0], segment)
        else:
            ranges.append((segment, segment))
    return ranges
