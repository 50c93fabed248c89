"""
The records of all streams of a pipeline, from files, in the order in which intake would have put them on the log: by visible time, ties by
declared stream, partition, position. (services/intake/core.py has the same rule for records that come as they happen.)

A source is one partition of a stream's topic. As in intake its records stay in their order: one that is visible before another ahead of
it goes as if it were as new as that one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl

from driftline.errors import Rejected
from driftline.features.events import Records
from driftline.features.upstream import Contract, Taken
from driftline.operate.parquet import ParquetFiles, columns_of, faults, sorted_runs, texts_of
from driftline.pipeline import Stream
from driftline.stream.batch import Column, Ints, Refused, Table, Varlen, take

BLOCK_ROWS = 1 << 17  # that are in memory at once, of all sources together
SOURCE_ROWS_MIN = 1 << 13
FOREVER = 2**62
Rank = tuple[int, int, int]  # how ties go: number of the stream, of its partition, of a stretch of it that was sorted


class Order(Enum):
    """What to make of a source in which a record is visible before one ahead of it."""

    REFUSE = "refuse"
    ARRIVED = "arrived"  # this is how they came: go on as intake would
    SORT = "sort"


@dataclass
class Refusals:
    """What could not be taken: how many, and where the first was, by source, reason and words."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, source: str, refused: Sequence[Refused]) -> None:
        """Some more of one source."""
        for one in refused:
            kind = source, one.reason, one.detail
            self.counts[kind] += 1
            self.first.setdefault(kind, one.offset)

    def __len__(self) -> int:
        return self.counts.total()

    def lines(self) -> list[str]:
        """One a kind."""
        return [
            f"{source}: {n:,} refused ({reason}): {detail}; the first is record {self.first[source, reason, detail]:,}"
            for (source, reason, detail), n in self.counts.most_common()
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """
    Good records of a source that are not folded yet: their fields, the time that each is merged by (ascending), and what is told of each.
    Its id and key are there as the fold takes them and as they are written.
    """

    columns: dict[str, Column]
    times: Ints
    about: Table  # id, key, time, visible; the offsets are positions in the source
    ids: pl.Series
    keys: pl.Series

    def __len__(self) -> int:
        return len(self.times)

    def part(self, start: int, stop: int) -> Held:
        """Those from place `start` to place `stop`, exclusive."""
        if (start, stop) == (0, len(self)):
            return self
        places = np.arange(start, stop)
        columns = {name: take(column, places) for name, column in self.columns.items()}
        return Held(columns, self.times[start:stop], self.about.take(places), self.ids[start:stop], self.keys[start:stop])


class Source:
    """
    One source: `held` has what was read of it and is not folded. Raises Rejected when its records are not in order and nothing was said
    about that.
    """

    def __init__(self, stream: Stream, rank: Rank, files: ParquetFiles, contract: Contract, order: Order, refusals: Refusals) -> None:
        self.stream, self.rank = stream, rank
        self.held: Held | None = None
        self.newest = 0  # the running maximum of visible time: where this source stands
        self.exhausted = False
        self._files, self._contract, self._order, self._refusals = files, contract, order, refusals

    def open(self, rows_max: int) -> None:
        """Begin to read, so many records at a time."""
        self._blocks = self._files.blocks(rows_max)

    def load(self) -> int:
        """Hold something, if there is anything left. Returns how many records were read for that."""
        read = 0
        while self.held is None and not self.exhausted:
            block = next(self._blocks, None)
            if block is None:
                self.exhausted = True
            else:
                read += len(block[0])
                self._hold(*block)
        return read

    def let_go(self, n: int) -> Held:
        """The first `n` of what is held."""
        if self.held is None:
            raise ValueError(f"{self._files.path}: nothing is held")
        some, rest = self.held.part(0, n), self.held.part(n, len(self.held)) if n < len(self.held) else None
        self.held = rest
        return some

    def _hold(self, positions: Ints, frame: pl.DataFrame) -> None:
        good = np.ones(frame.height, np.bool_)
        for bad, words in faults(frame, self.stream):
            self._refuse([Refused(position, "contract", words) for position in positions[bad & good].tolist()])
            good &= ~bad
        if not good.all():
            positions, frame = positions[good], frame.filter(good)
        taken, refused = self._contract.check(positions, columns_of(frame, self.stream), None)
        self._refuse(refused)
        if len(taken.places):
            self._keep(positions[taken.places], frame if not refused else frame[taken.places], taken)

    def _keep(self, positions: Ints, frame: pl.DataFrame, taken: Taken) -> None:
        times = np.maximum.accumulate(np.maximum(taken.visible, self.newest))
        late = times != taken.visible
        if self._order is Order.REFUSE and late.any():
            raise Rejected(self._words_of_order(int(np.argmax(late)), positions, taken.visible, times))
        self.newest = int(times[-1])
        columns: dict[str, Column] = {"id": taken.ids, "key": taken.keys, "time": taken.times, "visible": taken.visible}
        about, stream = Table("event", positions, columns), self.stream
        ids, keys = (
            texts_of(frame[name], text, tokens=name in stream.pii) for name, text in ((stream.id, taken.ids), (stream.key, taken.keys))
        )
        self.held = Held(dict(taken.columns), times, about, ids, keys)

    def _refuse(self, refused: Sequence[Refused]) -> None:
        self._refusals.add(self._files.path, refused)

    def _words_of_order(self, at: int, positions: Ints, visible: Ints, times: Ints) -> str:
        return (
            f"{self._files.path}: record {int(positions[at]):,} is visible at {_told(int(visible[at]))}, and one before it at "
            f"{_told(int(times[at]))}.\n"
            "  --sort puts the records in order first.\n"
            "  --as-arrived keeps the order, if it is that in which they came to the topic: intake's rule for such records holds then."
        )


def _told(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def sources_of(
    stream: Stream, number: int, files: ParquetFiles, contract: Contract, order: Order, refusals: Refusals, folder: Path
) -> list[Source]:
    """A source; sorted on request, by stretches that fit into memory: each is a file in `folder` then, and they are merged like sources."""
    if order is not Order.SORT:
        return [Source(stream, (stream.number, number, 0), files, contract, order, refusals)]
    runs = sorted_runs(files, stream, folder / f"{stream.number}-{number}")
    return [Source(stream, (stream.number, number, run), one, contract, order, refusals) for run, one in enumerate(runs)]


# ---- merged ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """About each question of a stretch, in the order of the log: from which source it is, as which of its records."""

    partitions: Ints
    positions: Ints
    ids: pl.Series
    keys: pl.Series


NOBODY = Asked(np.zeros(0, np.int64), np.zeros(0, np.int64), pl.Series([], dtype=pl.String), pl.Series([], dtype=pl.String))


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Consecutive events of the log: all of them as a table, the stream of each, the records of each stream. For it `read` were read."""

    table: Table
    stream: Ints
    records: list[Records]
    asked: Asked
    read: int


def merged(sources: Sequence[Source], question: Stream) -> Iterator[Stretch]:
    """All records of all sources."""
    sources = sorted(sources, key=lambda source: source.rank)
    for source in sources:
        source.open(max(SOURCE_ROWS_MIN, BLOCK_ROWS // len(sources)))
    while True:
        read = sum(source.load() for source in sources)
        parts = _next(sources)
        if not parts:
            return
        yield _stretch(parts, question, read)


def _next(sources: Sequence[Source]) -> list[tuple[Source, Held]]:
    """
    What can go now: everything up to where the first source stands that may have more; at that very time, only sources up to this one,
    for its next records may be of it too.
    """
    bound = min((source.newest for source in sources if not source.exhausted), default=FOREVER)
    holder = next((number for number, source in enumerate(sources) if not source.exhausted and source.newest == bound), -1)
    parts = []
    for number, source in enumerate(sources):
        if source.held is not None:
            n = int(np.searchsorted(source.held.times, bound, side="right" if number <= holder else "left"))
            if n:
                parts.append((source, source.let_go(n)))
    return parts


def _stretch(parts: Sequence[tuple[Source, Held]], question: Stream, read: int) -> Stretch:
    """Parts are listed as ties go, so a sort by time that leaves ties as they are puts their records in order."""
    times = np.concatenate([held.times for _, held in parts])
    order = np.argsort(times, kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    ends = np.cumsum([len(held) for _, held in parts])
    together = {"home": np.ones(len(order), np.bool_)} | {
        name: _taken([held.about[name] for _, held in parts], order) for name in ("id", "key", "time", "visible")
    }
    numbers = np.concatenate([np.full(len(held), source.stream.number, np.int64) for source, held in parts])
    records, asked = [], NOBODY
    for stream, group in groupby(range(len(parts)), key=lambda at: parts[at][0].stream):
        mine = list(group)
        of_stream = places[ends[mine[0]] - len(parts[mine[0]][1]) : ends[mine[-1]]]
        ascending = np.argsort(of_stream, kind="stable")
        some = [parts[at] for at in mine]
        columns = {name: _taken([held.columns[name] for _, held in some], ascending) for name in stream.types}
        records.append(Records(stream, of_stream[ascending], columns))
        if stream is question:
            asked = _asked(some, ascending)
    return Stretch(Table("event", np.arange(len(order)), together), numbers[order], records, asked, read)


def _asked(parts: Sequence[tuple[Source, Held]], order: Ints) -> Asked:
    partitions = [np.full(len(held), source.rank[1], np.int64) for source, held in parts]
    positions = [held.about.offsets for _, held in parts]
    ids, keys = pl.concat([held.ids for _, held in parts]), pl.concat([held.keys for _, held in parts])
    if len(parts) > 1:
        ids, keys = ids[order], keys[order]
    return Asked(np.concatenate(partitions)[order], np.concatenate(positions)[order], ids, keys)


def _taken(columns: Sequence[Column], order: Ints) -> Column:
    """Columns one after the other, and in that order; a single one is in order already."""
    if len(columns) == 1:
        return columns[0]
    texts = [column for column in columns if isinstance(column, Varlen)]
    return take(Varlen.concat(texts) if texts else np.concatenate([np.asarray(column) for column in columns]), order)
