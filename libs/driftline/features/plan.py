"""
A pipeline's views as flat arrays of integers, which the kernels of `tiles` walk without asking Python anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from driftline.features import tiles
from driftline.pipeline import Aggregate, Pipeline, Reading, View
from driftline.stream.batch import Ints

TILES = 12
EXTRA_TILES_MAX = 12

WINDOWED = {
    "count": tiles.COUNT,
    "sum": tiles.SUM,
    "mean": tiles.MEAN,
    "rate": tiles.MEAN,
    "min": tiles.MIN,
    "max": tiles.MAX,
    "std": tiles.STD,
}
CELL_WORDS = {tiles.COUNT: 1, tiles.SUM: 2, tiles.MEAN: 2, tiles.MIN: 1, tiles.MAX: 1, tiles.STD: 3}
OTHERS = {"last": tiles.LAST, "seconds_since": tiles.SINCE, "ewma": tiles.EWMA, "distinct": tiles.DISTINCT}


@dataclass(frozen=True, slots=True)
class Number:
    """One number that is read of each record of a stream: `column` is its place in the matrix of values, `coded` asks for a code."""

    stream: int
    column: int
    reading: Reading
    coded: bool


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """
    What the kernels need to know of a pipeline.

    - `aggregates` (A, tiles.AGGREGATE_FIELDS), those of one view and stream side by side;
    - `runs` (R, 4): stream, view, first and end of its aggregates; those of stream s from `first_runs[s]` to `first_runs[s + 1]`;
    - `features` (F, 3): column of the row, first and end of its terms; `terms` (T, 2): aggregate, sign;
    - `streams` (S, 3): lateness and duplicate horizon in ms, most ids;
    - `ages` (V,): column of the row for each view;
    - `empty`: an entity's words before its first record, for each view, then an empty memory of ids for each stream.
    """

    aggregates: Ints
    runs: Ints
    first_runs: Ints
    features: Ints
    terms: Ints
    streams: Ints
    ages: Ints
    empty: tuple[Ints, ...]
    numbers: tuple[Number, ...]
    columns: int
    width: int

    @classmethod
    def of(cls, pipeline: Pipeline) -> Plan:
        """Compile `pipeline`."""
        return _Compiler(pipeline).plan()


class _Compiler:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._rows: list[list[int]] = []
        self._runs: list[list[int]] = []
        self._places: dict[tuple[int, Aggregate], int] = {}
        self._numbers: dict[tuple[int, Reading, bool], Number] = {}
        self._empty: list[Ints] = []

    def plan(self) -> Plan:
        pipeline = self._pipeline
        for view in range(len(pipeline.views)):
            self._lay_out(view)
        runs = sorted(self._runs)
        features, terms = self._features()
        memories = [_empty_memory(stream.duplicates_max) for stream in pipeline.streams]
        columns = [1 + number.column for number in self._numbers.values()]
        return Plan(
            aggregates=_matrix(self._rows, tiles.AGGREGATE_FIELDS),
            runs=_matrix(runs, 4),
            first_runs=np.searchsorted([run[0] for run in runs], np.arange(len(pipeline.streams) + 1)).astype(np.int64),
            features=_matrix(features, 3),
            terms=_matrix(terms, 2),
            streams=_matrix([[one.lateness_ms, one.duplicates_ms, one.duplicates_max] for one in pipeline.streams], 3),
            ages=len(pipeline.layout.names) + np.arange(len(pipeline.views), dtype=np.int64),
            empty=(*self._empty, *memories),
            numbers=tuple(self._numbers.values()),
            columns=max(columns, default=0),
            width=pipeline.layout.width,
        )

    def _lay_out(self, view_number: int) -> None:
        """Find a place in the entity's words for every aggregate of a view, those of one stream side by side."""
        view = self._pipeline.views[view_number]
        lateness_ms = max(stream.lateness_ms for stream in view.of)
        words = tiles.HEADER_WORDS
        parts: list[Ints] = [np.full(tiles.HEADER_WORDS, tiles.NEVER, np.int64)]
        for stream in view.of:
            first = len(self._rows)
            for aggregate in _distinct(view, stream.number):
                self._places[view_number, aggregate] = len(self._rows)
                row, part = self._aggregate(view_number, aggregate, words, lateness_ms)
                self._rows.append(row)
                parts.append(part)
                words += len(part)
            self._runs.append([stream.number, view_number, first, len(self._rows)])
        self._empty.append(np.concatenate(parts))

    def _aggregate(self, view: int, aggregate: Aggregate, at: int, lateness_ms: int) -> tuple[list[int], Ints]:
        kind = WINDOWED.get(aggregate.function, OTHERS.get(aggregate.function, -1))
        hop_ms = max(1, aggregate.window_ms // TILES)
        cell = CELL_WORDS.get(kind, 0)
        kept = _tiles_kept(aggregate, hop_ms, lateness_ms) if cell else aggregate.most
        row = [0] * tiles.AGGREGATE_FIELDS
        row[tiles.KIND], row[tiles.VIEW], row[tiles.AT] = kind, view, at
        row[tiles.COLUMN] = self._column(aggregate, coded=kind == tiles.DISTINCT)
        row[tiles.WINDOW], row[tiles.HOP], row[tiles.ENDING] = aggregate.window_ms, hop_ms, aggregate.ending_ms
        row[tiles.KEPT], row[tiles.CELL], row[tiles.READY] = kept, cell, aggregate.ready_after_ms
        return row, tiles.empty_aggregate(kind, kept, cell)

    def _column(self, aggregate: Aggregate, coded: bool) -> int:
        """The place of what is read among the values of a record; -1 where the record itself is counted."""
        if aggregate.reading is None:
            return -1
        key = (aggregate.stream, aggregate.reading, coded)
        if key not in self._numbers:
            place = sum(number.stream == aggregate.stream for number in self._numbers.values())
            self._numbers[key] = Number(aggregate.stream, place, aggregate.reading, coded)
        return self._numbers[key].column

    def _features(self) -> tuple[list[list[int]], list[list[int]]]:
        """The features of all views in the order of the row."""
        features: list[list[int]] = []
        terms: list[list[int]] = []
        column = 0
        for value in self._pipeline.inputs:
            if not isinstance(value, View):
                column += 1
                continue
            view = self._pipeline.views.index(value)
            for feature in value.features:
                first = len(terms)
                terms += [[self._places[view, aggregate], int(sign)] for sign, aggregate in feature.terms]
                features.append([column, first, len(terms)])
                column += 1
        return features, terms


def _distinct(view: View, stream: int) -> Iterator[Aggregate]:
    """The aggregates of a view over one stream, each once, in the order of the file."""
    every = [aggregate for feature in view.features for _, aggregate in feature.terms]
    yield from (aggregate for aggregate in dict.fromkeys(every) if aggregate.stream == stream)


def _tiles_kept(aggregate: Aggregate, hop_ms: int, lateness_ms: int) -> int:
    """Enough for the window, the offset, the newest tile, and for a question that is as late as records may be (by a window, at most)."""
    return TILES + 1 + -(-aggregate.ending_ms // hop_ms) + min(-(-lateness_ms // hop_ms), EXTRA_TILES_MAX)


def _empty_memory(most: int) -> Ints:
    words = np.zeros(tiles.MEMORY_HEADER_WORDS + tiles.MEMORY_WORDS * most, np.int64)
    words[tiles.MEMORY_NEWEST] = tiles.NEVER
    return words


def _matrix(rows: Sequence[Sequence[int]], width: int) -> Ints:
    return np.array(rows, np.int64).reshape(len(rows), width)
