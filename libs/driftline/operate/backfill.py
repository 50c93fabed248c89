"""
Feature rows of the past, from files with the records of every stream, into a folder of Parquet files. (`backfill_log` makes the same folder
from the pipeline's log.)

It is the fold that serves, not another one: files are read by intake's contract, and folded by the feature service's views
(`driftline.features`). State stays in memory, so neither store nor service is touched.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from driftline.compiled import READ_INTS, njit, types
from driftline.errors import Invalid
from driftline.features import tiles
from driftline.features.events import Reader
from driftline.features.row import Matrix, RowLayout
from driftline.features.texts import mix
from driftline.features.upstream import Contract, names_of
from driftline.features.views import Views
from driftline.operate.csv_files import as_parquet
from driftline.operate.history import FOREVER, Order, Refusals, Stretch, merged, sources_of
from driftline.operate.parquet import Folder, ParquetFiles, instants, packed
from driftline.pipeline import Pipeline, Stream
from driftline.stream.batch import Ints

SECOND_SEED = np.uint64(0x9E3779B97F4A7C15)

_SUMS = types.UniTuple(types.uint64, 2)  # type: ignore[no-untyped-call]  # numba has no types of its own
_READ_ROWS = types.Array(types.uint32, 2, "C", readonly=True)


@dataclass(frozen=True, slots=True)
class Span:
    """Which rows are wanted: those of questions visible in [from_ms, to_ms), and on a log those at [from_offset, to_offset)."""

    from_ms: int = 0
    to_ms: int = FOREVER
    from_offset: int = 0
    to_offset: int = FOREVER

    def holds(self, offsets: Ints, visible: Ints) -> npt.NDArray[np.bool_]:
        """Which of these are wanted."""
        of_time = (visible >= self.from_ms) & (visible < self.to_ms)
        wanted: npt.NDArray[np.bool_] = of_time & (offsets >= self.from_offset) & (offsets < self.to_offset)
        return wanted


@dataclass
class Backfilled:
    """What came of it; `events` are the records that were read, those that were refused included."""

    events: int = 0
    rows: int = 0
    became: Counter[str] = field(default_factory=Counter)  # of events: duplicate, late, refused
    told: list[str] = field(default_factory=list)
    sums: tuple[int, int] = (0, 0)

    @property
    def digest(self) -> str:
        """The same for the same rows of the same ids, in whatever order and however they were cut. It finds accidents, not forgers."""
        return "".join(f"{one:016x}" for one in self.sums)

    def lines(self, pipeline: str, seconds: float) -> list[str]:
        """For whoever gave the command."""
        counts = ", ".join(f"{self.became[name]:,} {name}" for name in ("duplicate", "late", "refused"))
        rate = f"{self.events / max(seconds, 1e-9):,.0f} events/s"
        return [
            *self.told,
            f"{pipeline}: {self.events:,} events ({counts}), {self.rows:,} rows in {seconds:.1f} s: {rate}",
            f"digest of the rows: {self.digest}",
        ]


# ---- rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n rows and what is told of each: where its event is, its id (and the hash of that) and key, its times."""

    partitions: Ints
    offsets: Ints
    ids: pl.Series
    codes: Ints
    keys: pl.Series
    times: Ints
    visible: Ints
    numbers: Matrix

    def take(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """Those that are kept; itself where that is all."""
        if kept.all():
            return self
        return Rows(
            self.partitions[kept],
            self.offsets[kept],
            self.ids.filter(kept),
            self.codes[kept],
            self.keys.filter(kept),
            self.times[kept],
            self.visible[kept],
            self.numbers[kept],
        )


Columns = Callable[[Rows], Sequence[pl.Series]]


def wide(layout: RowLayout) -> Columns:
    """A column for each feature."""
    return lambda rows: [pl.Series(name, rows.numbers[:, at], pl.Float32) for at, name in enumerate(layout.names)]


class RowWriter:
    """Puts wanted rows into the folder, each followed by what `more` says of it, and counts them in."""

    def __init__(self, folder: Folder, pipeline: Pipeline, span: Span, found: Backfilled, more: Sequence[Columns] = ()) -> None:
        self._folder, self._layout, self._span, self._found, self._more = folder, pipeline.layout, span, found, more

    def add(self, rows: Rows) -> None:
        """Some more."""
        rows = rows.take(self._span.holds(rows.offsets, rows.visible))
        found, n = self._found, len(rows.offsets)
        numbers = np.ascontiguousarray(rows.numbers, np.float32)
        more = _sums(rows.codes, numbers.view(np.uint32))
        found.sums = tuple((one + int(other)) % 2**64 for one, other in zip(found.sums, more, strict=True))  # type: ignore[assignment]
        found.rows += n
        columns: list[Any] = [
            pl.Series("partition", rows.partitions, pl.Int32),
            pl.Series("offset", rows.offsets),
            rows.ids.alias("id"),
            rows.keys.alias("key"),
            instants("time", rows.times),
            instants("visible", rows.visible),
            pl.repeat(self._layout.version, n, dtype=pl.String, eager=True).alias("layout"),
            packed(numbers),
        ]
        columns += [column for columns_of in self._more for column in columns_of(rows)]
        self._folder.add(pl.DataFrame(columns))


@njit(_SUMS(READ_INTS, _READ_ROWS), cache=True, nogil=True)
def _sums(codes: Ints, rows: npt.NDArray[np.uint32]) -> tuple[Any, Any]:
    """Two hashes of each id with its row, each added up."""
    first, second = np.uint64(0), np.uint64(0)
    for i in range(len(codes)):
        one = mix(np.uint64(codes[i]))
        other = mix(one ^ SECOND_SEED)
        for j in range(rows.shape[1]):
            one = mix(one ^ np.uint64(rows[i, j]))
            other = mix(other ^ np.uint64(rows[i, j]))
        first += one
        second += other
    return first, second


# ---- from files -----------------------------------------------------------------------------------------------------------


def places_of(pipeline: Pipeline, words: Sequence[str]) -> dict[Stream, list[str]]:
    """
    The files of each stream, of `TOPIC=PATH` or `STREAM=PATH`, and of a path alone where there is one stream. Several of one stream are the
    partitions of its topic, in their order. Raises Invalid when a stream has none.
    """
    names = {name: stream for stream in pipeline.streams for name in (stream.name, stream.topic)}
    places: dict[Stream, list[str]] = defaultdict(list)
    for word in words:
        name, equals, path = word.partition("=")
        if equals and name in names:
            places[names[name]].append(path)
        elif len(pipeline.streams) == 1:
            places[pipeline.streams[0]].append(word)
        else:
            topics = ", ".join(stream.topic for stream in pipeline.streams)
            raise Invalid(f"--file {word}: whose records are these? Write STREAM=PATH; the streams are {topics}")
    for stream in pipeline.streams:
        if stream not in places:
            raise Invalid(f"{stream.topic} has no files, and every row depends on its records: add --file {stream.topic}=PATH")
    return places


def backfill_files(
    pipeline: Pipeline,
    places: Mapping[Stream, Sequence[str]],
    folder: Folder,
    span: Span,
    order: Order,
    pii_key: bytes,
    told: Callable[[int, int], None],
    more: Sequence[Columns] = (),
) -> Backfilled:
    """
    Fold all records of all files. `told` hears how many events are behind, and of how many.

    Raises Invalid, Rejected and Fatal as its parts do, before anything is in `folder`'s place.
    """
    refusals, found = Refusals(), Backfilled()
    with tempfile.TemporaryDirectory(dir=folder.partial, prefix="sorted-") as runs:
        files = [
            (stream, number, ParquetFiles(as_parquet(path, stream, Path(runs, f"csv-{stream.number}-{number}")), stream, path))
            for stream, paths in places.items()
            for number, path in enumerate(paths)
        ]
        total = sum(one.rows for _, _, one in files)
        sources = [
            source
            for stream, number, one in files
            for source in sources_of(stream, number, one, Contract(stream, pii_key, names_of(pipeline)), order, refusals, Path(runs))
        ]
        fold, writer = _Fold(pipeline, found), RowWriter(folder, pipeline, span, found, more)
        for stretch in merged(sources, pipeline.question):
            writer.add(fold.take(stretch))
            found.events += stretch.read
            told(found.events, total)
    found.events, found.told = total, refusals.lines()
    found.became["refused"] = len(refusals)
    told(total, total)
    return found


class _Fold:
    """The pipeline's views, which are of one partition: rows do not depend on how many there are."""

    def __init__(self, pipeline: Pipeline, found: Backfilled) -> None:
        self._views = Views(pipeline)
        self._reader = Reader(pipeline, self._views.plan)
        self._found = found

    def take(self, stretch: Stretch) -> Rows:
        """The rows of the next stretch. An entity that was never seen begins with nothing, as in the service."""
        events = self._reader.read(stretch.table, stretch.stream, stretch.records, {})
        if new := list(self._views.absent(events)):
            self._views.entities.add(new, [None] * len(new))
        folded = self._views.fold(events)
        became = {"duplicate": folded.became == tiles.DUPLICATE, "late": folded.became == tiles.LATE}
        self._found.became.update({name: int(mask.sum()) for name, mask in became.items()})
        places, asked = events.questions.places, stretch.asked
        times, visible = stretch.table["time"][places], stretch.table["visible"][places]
        rows = Rows(asked.partitions, asked.positions, asked.ids, events.codes[places], asked.keys, times, visible, folded.rows)
        return rows.take(~became["duplicate"][places])
