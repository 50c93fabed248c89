"""
A pipeline's views as flat arrays of integers, which the kernels of `tiles` walk without asking Python anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from driftline.features import tiles
from driftline.features.packing import Layout
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
# What the words of a tile tell, and where the aggregates without tiles have the time before the newest: for `_likely_equal`.
NUMBER, VALUE = range(2)
TOLD = {
    tiles.COUNT: (NUMBER,),
    tiles.SUM: (NUMBER, VALUE),
    tiles.MEAN: (NUMBER, VALUE),
    tiles.MIN: (VALUE,),
    tiles.MAX: (VALUE,),
    tiles.STD: (NUMBER, VALUE),
}
BEFORE = {tiles.LAST: 2, tiles.SINCE: 2, tiles.EWMA: 3}
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
    - `layouts`: the words of an entity of each view, then those of a memory of ids for each stream.
    """

    aggregates: Ints
    runs: Ints
    first_runs: Ints
    features: Ints
    terms: Ints
    streams: Ints
    ages: Ints
    layouts: tuple[Layout, ...]
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
        self._layouts: list[Layout] = []

    def plan(self) -> Plan:
        pipeline = self._pipeline
        for view in range(len(pipeline.views)):
            self._lay_out(view)
        runs = sorted(self._runs)
        features, terms = self._features()
        memories = [Layout.memory(stream.duplicates_max) for stream in pipeline.streams]
        columns = [1 + number.column for number in self._numbers.values()]
        return Plan(
            aggregates=_matrix(self._rows, tiles.AGGREGATE_FIELDS),
            runs=_matrix(runs, 4),
            first_runs=np.searchsorted([run[0] for run in runs], np.arange(len(pipeline.streams) + 1)).astype(np.int64),
            features=_matrix(features, 3),
            terms=_matrix(terms, 2),
            streams=_matrix([[one.lateness_ms, one.duplicates_ms, one.duplicates_max] for one in pipeline.streams], 3),
            ages=len(pipeline.layout.names) + np.arange(len(pipeline.views), dtype=np.int64),
            layouts=(*self._layouts, *memories),
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
        layout = Layout.plain(np.concatenate(parts))
        layout.like[tiles.FIRST] = tiles.NEWEST
        for _, of_view, first, end in self._runs:
            if of_view == view_number:
                _liken(layout, self._rows[first:end])
        self._layouts.append(layout)

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


def _likely_equal(rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, object]]:
    """
    Words of the aggregates over one stream, each with what it tells: those that tell the same are mostly equal, though nothing may rest on
    it. Where a condition is counted, or values are told apart, there is nothing of that kind.
    """
    for row in rows:
        at, kind, column = row[tiles.AT], row[tiles.KIND], row[tiles.COLUMN]
        if kind == tiles.DISTINCT or (kind in (tiles.COUNT, tiles.SINCE) and column >= 0):
            continue
        yield at, tiles.NEWEST
        if kind in BEFORE:
            yield at + BEFORE[kind], tiles.PREVIOUS
        for tile in range(1 + row[tiles.KEPT] if row[tiles.CELL] else 0):
            for word, told in enumerate(TOLD[kind], at + 1 + tile * row[tiles.CELL]):
                yield word, (told, column if told == VALUE else 0, row[tiles.HOP], row[tiles.KEPT], tile)


def _liken(layout: Layout, rows: Sequence[Sequence[int]]) -> None:
    """Name for each word of the aggregates over one stream the first one that tells the same."""
    first: dict[object, int] = {}
    for word, told in _likely_equal(rows):
        if told in first:
            layout.like[word] = first[told]
        else:
            first[told] = word
            layout.like[word] = told if isinstance(told, int) else tiles.NONE
    for row in rows:
        if row[tiles.KIND] == tiles.DISTINCT:
            layout.most[row[tiles.AT]] = row[tiles.KEPT]


def _matrix(rows: Sequence[Sequence[int]], width: int) -> Ints:
    return np.array(rows, np.int64).reshape(len(rows), width)
