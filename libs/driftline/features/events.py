"""
Events as the fold takes them: what it reads of each record, whose entities it concerns, and what is asked and told.

Records come from a log, as Avro bodies (`Decoder`), or by column already, as from a file (`Reader`): their events are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    """What is asked: the places of the questions, their rows (n, F + V) with only their own inputs filled in, and each of their slices."""

    places: Ints
    rows: npt.NDArray[np.float32]
    slices: tuple[Varlen, ...]

    def take(self, renumbered: Ints) -> Questions:
        """As `Lookup.take`."""
        places = renumbered[self.places]
        kept = places >= 0
        return Questions(places[kept], self.rows[kept], tuple(one.take(kept) for one in self.slices))


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


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Records of one stream by column, as its schema has them, and their places among all events, ascending."""

    stream: Stream
    places: Ints
    columns: Mapping[str, Column]

    def take(self, kept: Bools) -> Records:
        """Those that are kept; itself where that is all."""
        if kept.all():
            return self
        return Records(self.stream, self.places[kept], {name: take(column, kept) for name, column in self.columns.items()})


class Reader:
    """Makes `Events` of records by column, for one pipeline."""

    def __init__(self, pipeline: Pipeline, plan: Plan) -> None:
        self._pipeline = pipeline
        self._plan = plan

    def read(self, table: Table, stream: Ints, streams: Iterable[Records], refused: Mapping[int, Refused]) -> Events:
        """
        The n events of `table`, of which each record's `id`, `key`, `time`, `visible` and `home` are used. `stream` has the number of each
        one's stream, or UNDECODABLE, and `streams` the good records of each stream.
        """
        values = np.full((len(table), self._plan.columns), np.nan)
        lookups: list[Lookup] = []
        questions, outcomes = self._nothing_asked(), Outcomes(np.zeros(0, np.int64), Varlen.of([]), np.zeros(0, np.int64))
        for records in streams:
            home = np.asarray(table["home"], np.bool_)[records.places]
            at_home = records.take(home)
            self._read(records, values)
            lookups += self._lookups(table, records, home)
            if records.stream is self._pipeline.question:
                questions = self._questions(at_home)
            if self._pipeline.label is not None and records.stream is self._pipeline.label.of:
                outcomes = self._outcomes(at_home)
        return Events(table, stream, texts.hashes(table["id"]), values, tuple(lookups), questions, outcomes, refused)

    def _read(self, records: Records, values: npt.NDArray[np.float64]) -> None:
        """Fill in what aggregates read of the records of one stream."""
        for number in self._plan.numbers:
            if number.stream == records.stream.number:
                column = records.columns[number.reading.field]
                read: npt.NDArray[Any] = readings.code(column, number.reading) if number.coded else readings.number(column, number.reading)
                values[records.places, number.column] = read.view(np.float64)

    def _lookups(self, table: Table, records: Records, home: Bools) -> Iterator[Lookup]:
        """
        The entities that these records are folded into, and, for questions at home, asked of; last, the memories of their ids.

        A copy that was broadcast is not folded by a view that lives in the key's own partition.
        """
        views, stream, places = self._pipeline.views, records.stream, records.places
        for number, view in enumerate(views):
            folds = stream in view.of
            if not folds and stream is not self._pipeline.question:
                continue
            keys = readings.entity(records.columns, view.by)
            if folds and view.broadcast:
                yield Lookup(number, number, places, keys)
            else:
                yield Lookup(number, number, places[home], keys.take(home))
        yield Lookup(len(views) + stream.number, len(views), places, table["key"].take(places))

    def _nothing_asked(self) -> Questions:
        return Questions(np.zeros(0, np.int64), np.zeros((0, self._plan.width), np.float32), ())

    def _questions(self, asked: Records) -> Questions:
        rows = np.full((len(asked.places), self._plan.width), np.nan, np.float32)
        at = 0
        for value in self._pipeline.inputs:
            if isinstance(value, Direct):
                rows[:, at] = readings.direct(asked.columns[value.field], value)
            at += 1 if isinstance(value, Direct) else len(value.features)
        return Questions(asked.places, rows, tuple(readings.text(asked.columns[name]) for name in self._pipeline.slices))

    def _outcomes(self, told: Records) -> Outcomes:
        """A record in which the field of the condition is null tells nothing."""
        label = self._pipeline.label
        if label is None:
            return Outcomes(told.places[:0], Varlen.of([]), told.places[:0])
        says = readings.holds(told.columns[label.when.field], label.when)
        known = ~np.isnan(says)
        ids = readings.text(told.columns[self._pipeline.question.id])
        return Outcomes(told.places[known], ids.take(known), says[known].astype(np.int64))


class Decoder:
    """Makes `Events` of a table with bodies in Avro, for one pipeline."""

    def __init__(self, pipeline: Pipeline, plan: Plan) -> None:
        self._pipeline = pipeline
        self._reader = Reader(pipeline, plan)
        self._codecs = [Codec(dict(stream.schema)) for stream in pipeline.streams]

    def decode(self, table: Table) -> Events:
        """All events of `table`; those that are no record of their stream are named in `refused`."""
        stream = np.asarray(table["source"], np.int64) - Source.UPSTREAM
        refused = self._of_no_stream(table, stream)
        decoded = []
        for one in self._pipeline.streams:
            records, bad = self._bodies(table, one, stream)
            undecodable = records.places[bad]
            stream[undecodable] = UNDECODABLE
            refused |= {int(offset): self._refusal(one, table, int(offset)) for offset in table.offsets[undecodable]}
            decoded.append(records.take(~bad))
        return self._reader.read(table, stream, decoded, refused)

    def _of_no_stream(self, table: Table, stream: Ints) -> dict[int, Refused]:
        known = (stream >= 0) & (stream < len(self._pipeline.streams))
        words = f"its source is none of the streams of the pipeline {self._pipeline.name}"
        refused = {int(offset): Refused(int(offset), "contract", words) for offset in table.offsets[~known]}
        stream[~known] = UNDECODABLE
        return refused

    def _bodies(self, table: Table, stream: Stream, numbers: Ints) -> tuple[Records, Bools]:
        places = np.flatnonzero(numbers == stream.number)
        columns, bad = self._codecs[stream.number].decode(table["body"].take(places))
        return Records(stream, places, columns), bad

    def _refusal(self, stream: Stream, table: Table, offset: int) -> Refused:
        body = table["body"][int(np.searchsorted(table.offsets, offset))]
        return Refused(offset, "undecodable", self._codecs[stream.number].explain(body))
