"""
The events of a batch, decoded by the schemas of their streams: what the fold reads of each, whose entities it concerns, and what is
asked and told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.contracts.avro import Codec
from driftline.contracts.messages import Source
from driftline.features import readings, texts
from driftline.features.plan import Plan
from driftline.pipeline import Direct, Pipeline, Stream
from driftline.stream.batch import Column, Ints, Refused, Table, Varlen, take

Bools = npt.NDArray[np.bool_]

UNDECODABLE = -1  # as a stream


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """The entities of one kind that records at `places` are about; their slots go into a `column` of the matrix of slots."""

    kind: int
    column: int
    places: Ints
    keys: Varlen

    def take(self, renumbered: Ints) -> Lookup:
        """Those of the records that are kept, by their new places; -1 says which are not."""
        places = renumbered[self.places]
        kept = places >= 0
        return Lookup(self.kind, self.column, places[kept], self.keys.take(kept))


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """What is asked: the places of the questions, their rows (n, F + V) with only their own inputs filled in, and their slices."""

    places: Ints
    rows: npt.NDArray[np.float32]
    slices: Varlen

    def take(self, renumbered: Ints) -> Questions:
        """As `Lookup.take`."""
        places = renumbered[self.places]
        kept = places >= 0
        return Questions(places[kept], self.rows[kept], self.slices.take(kept))


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What is told: the places of the outcomes, the ids of the questions that they answer, and their labels."""

    places: Ints
    ids: Varlen
    labels: Ints

    def take(self, renumbered: Ints) -> Outcomes:
        """As `Lookup.take`."""
        places = renumbered[self.places]
        kept = places >= 0
        return Outcomes(places[kept], self.ids.take(kept), self.labels[kept])


@dataclass(frozen=True, eq=False)
class Events:
    """
    n events in the order of the log: the table that they came in, stream (UNDECODABLE where the body is not its record), values (n, C),
    and hash of the id. Questions and outcomes are those at home in this partition.
    """

    table: Table
    stream: Ints
    codes: Ints
    values: npt.NDArray[np.float64]
    lookups: tuple[Lookup, ...]
    questions: Questions
    outcomes: Outcomes
    refused: Mapping[int, Refused]

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def home(self) -> Bools:
        """Which are in their key's own partition."""
        return np.asarray(self.table["home"], np.bool_)

    def at(self, offsets: Ints) -> Events | None:
        """The events at these offsets (ascending); None unless all of them are here."""
        mine = self.table.offsets
        places = np.minimum(np.searchsorted(mine, offsets), len(mine) - 1)
        if len(mine) == 0 or not np.array_equal(mine[places], offsets):
            return None
        return self if len(offsets) == len(mine) else self._take(places)

    def _take(self, places: Ints) -> Events:
        renumbered = np.full(len(self), -1, np.int64)
        renumbered[places] = np.arange(len(places))
        return Events(
            self.table.take(places),
            self.stream[places],
            self.codes[places],
            self.values[places],
            tuple(lookup.take(renumbered) for lookup in self.lookups),
            self.questions.take(renumbered),
            self.outcomes.take(renumbered),
            self.refused,
        )


class Decoder:
    """Makes `Events` of a table, for one pipeline."""

    def __init__(self, pipeline: Pipeline, plan: Plan) -> None:
        self._pipeline = pipeline
        self._plan = plan
        self._codecs = [Codec(dict(stream.schema)) for stream in pipeline.streams]

    def decode(self, table: Table) -> Events:
        """All events of `table`; those that are no record of their stream are named in `refused`."""
        n = len(table)
        stream = np.asarray(table["source"], np.int64) - Source.UPSTREAM
        values = np.full((n, self._plan.columns), np.nan)
        refused = self._of_no_stream(table, stream)
        lookups: list[Lookup] = []
        questions, outcomes = self._nothing_asked(), Outcomes(np.zeros(0, np.int64), Varlen.of([]), np.zeros(0, np.int64))
        for one in self._pipeline.streams:
            places, columns, bad = self._bodies(table, one, stream)
            stream[places[bad]] = UNDECODABLE
            refused |= {int(offset): self._refusal(one, table, int(offset)) for offset in table.offsets[places[bad]]}
            if bad.any():
                places, columns = places[~bad], {name: take(column, ~bad) for name, column in columns.items()}
            home = np.asarray(table["home"], np.bool_)[places]
            self._read(one, places, columns, values)
            lookups += self._lookups(one, table, places, columns, home)
            if one is self._pipeline.question:
                questions = self._questions(places[home], {name: take(column, home) for name, column in columns.items()})
            if self._pipeline.label is not None and one is self._pipeline.label.of:
                outcomes = self._outcomes(places[home], {name: take(column, home) for name, column in columns.items()})
        return Events(table, stream, texts.hashes(table["id"]), values, tuple(lookups), questions, outcomes, refused)

    def _of_no_stream(self, table: Table, stream: Ints) -> dict[int, Refused]:
        known = (stream >= 0) & (stream < len(self._pipeline.streams))
        words = f"its source is none of the streams of the pipeline {self._pipeline.name}"
        refused = {int(offset): Refused(int(offset), "contract", words) for offset in table.offsets[~known]}
        stream[~known] = UNDECODABLE
        return refused

    def _bodies(self, table: Table, stream: Stream, numbers: Ints) -> tuple[Ints, dict[str, Column], Bools]:
        places = np.flatnonzero(numbers == stream.number)
        columns, bad = self._codecs[stream.number].decode(table["body"].take(places))
        return places, columns, bad

    def _refusal(self, stream: Stream, table: Table, offset: int) -> Refused:
        body = table["body"][int(np.searchsorted(table.offsets, offset))]
        return Refused(offset, "undecodable", self._codecs[stream.number].explain(body))

    def _read(self, stream: Stream, places: Ints, columns: Mapping[str, Column], values: npt.NDArray[np.float64]) -> None:
        """Fill in what aggregates read of the records of one stream."""
        for number in self._plan.numbers:
            if number.stream == stream.number:
                column = columns[number.reading.field]
                read: npt.NDArray[Any] = readings.code(column, number.reading) if number.coded else readings.number(column, number.reading)
                values[places, number.column] = read.view(np.float64)

    def _lookups(self, stream: Stream, table: Table, places: Ints, columns: Mapping[str, Column], home: Bools) -> Iterator[Lookup]:
        """
        The entities that these records are folded into, and, for questions at home, asked of; last, the memories of their ids.

        A copy that was broadcast is not folded by a view that lives in the key's own partition.
        """
        views = self._pipeline.views
        for number, view in enumerate(views):
            folds = stream in view.of
            if not folds and stream is not self._pipeline.question:
                continue
            keys = readings.entity(columns, view.by)
            if folds and view.broadcast:
                yield Lookup(number, number, places, keys)
            else:
                yield Lookup(number, number, places[home], keys.take(home))
        yield Lookup(len(views) + stream.number, len(views), places, table["key"].take(places))

    def _nothing_asked(self) -> Questions:
        return Questions(np.zeros(0, np.int64), np.zeros((0, self._plan.width), np.float32), Varlen.of([]))

    def _questions(self, places: Ints, columns: Mapping[str, Column]) -> Questions:
        rows = np.full((len(places), self._plan.width), np.nan, np.float32)
        at = 0
        for value in self._pipeline.inputs:
            if isinstance(value, Direct):
                rows[:, at] = readings.direct(columns[value.field], value)
            at += 1 if isinstance(value, Direct) else len(value.features)
        return Questions(places, rows, texts.arrays([readings.text(columns[name]) for name in self._pipeline.slices], len(places)))

    def _outcomes(self, places: Ints, columns: Mapping[str, Column]) -> Outcomes:
        """A record in which the field of the condition is null tells nothing."""
        label = self._pipeline.label
        if label is None:
            return Outcomes(places[:0], Varlen.of([]), places[:0])
        says = readings.holds(columns[label.when.field], label.when)
        told = ~np.isnan(says)
        return Outcomes(places[told], readings.text(columns[self._pipeline.question.id]).take(told), says[told].astype(np.int64))
