"""
What the loop has said, from Kafka to Parquet: predictions, answers, rows, outcomes or examples of a range of a topic, without copies.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import schema
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Invalid, Recoverable
from driftline.features.row import RowLayout
from driftline.operate.addresses import Addresses
from driftline.operate.fold import RECORDS_MAX
from driftline.operate.history import FOREVER
from driftline.operate.parquet import Folder, instants
from driftline.operate.predictions import Prediction
from driftline.operate.proof import SILENCE_MS
from driftline.pipeline import Pipeline
from driftline.stream.batch import Column, Ints, Table, Varlen
from driftline.stream.kafka import Source, describe
from driftline.stream.records import Coordinate, Decoder, Lane, Polled, drop_seen

# What can be had, and of which topic and kind of message it is.
KINDS: Mapping[str, tuple[str, str]] = {
    "predictions": ("predictions", "prediction"),
    "answers": ("journal", "answer"),
    "outcomes": ("journal", "outcome"),
    "examples": ("examples", "example"),
    "rows": ("features", "row"),
}
LEFT_OUT = ("source", "offset", "writer")  # of the header: what made the message, of use to the loop alone


@dataclass(frozen=True, slots=True)
class Range:
    """Which messages of the topic are wanted: of one partition or of all, from one offset to before another."""

    partition: int | None = None
    first: int = 0
    end: int = FOREVER


@dataclass
class Exported:
    """How many messages were written, by partition, and what was left out."""

    written: dict[int, int] = field(default_factory=dict)
    copies: int = 0
    unreadable: int = 0

    def lines(self, kind: str, topic: str) -> list[str]:
        """For whoever gave the command."""
        total = f"{sum(self.written.values()):,} {kind} of {topic}"
        by_partition = ", ".join(f"[{partition}] {n:,}" for partition, n in self.written.items())
        left_out = f"; {self.copies:,} copies left out" if self.copies else ""
        lines = [f"{total} ({by_partition}){left_out}"]
        return [*lines, f"{self.unreadable:,} could not be read: driftline dead-letters"] if self.unreadable else lines


async def export(
    addresses: Addresses, pipeline: Pipeline, kind: str, wanted: Range, folder: Folder, told: Callable[[int, int], None], *, wide: bool
) -> Exported:
    """
    Write what there is now. `told` hears how many records are behind, and of how many.

    Raises Invalid for a kind or a partition that there is not, Recoverable when the servers do not answer.
    """
    if kind not in KINDS:
        raise Invalid(f"there are no {kind} to export; there are {', '.join(KINDS)}")
    topic, message = Topics.of(pipeline)[KINDS[kind][0]], KINDS[kind][1]
    count = (await describe(addresses.kafka, [topic.name])).partitions[topic.name]
    if wanted.partition is not None and not 0 <= wanted.partition < count:
        raise Invalid(f"there is no partition {wanted.partition}; {topic.name} has {count}")
    if wanted.partition is None and count > 1 and (wanted.first, wanted.end) != (0, FOREVER):
        raise Invalid(f"offsets are of one partition, and {topic.name} has {count}: say which with --partition")
    found = Exported()
    reader = _Json(found) if kind == "predictions" and pipeline.predictions == "json" else _Avro(addresses, pipeline, topic, message, found)
    for partition in range(count) if wanted.partition is None else [wanted.partition]:
        found.written[partition] = 0
        async for polled in _records(addresses.kafka, topic, partition, wanted, told):
            frame = reader.frame(partition, polled)
            if frame is not None:
                found.written[partition] += frame.height
                folder.add(frame if not wide else frame.with_columns(_by_feature(frame, pipeline.layout)))
    return found


async def _records(kafka: str, topic: Topic, partition: int, wanted: Range, told: Callable[[int, int], None]) -> AsyncIterator[Polled]:
    source = Source(kafka, topic.name, partition)
    await source.start()
    try:
        start, end = await source.bounds()
        first, end = max(start, wanted.first), min(end, wanted.end)
        at = first
        source.seek(first)
        while at < end:
            polled = await source.poll(RECORDS_MAX, SILENCE_MS)
            if polled is None:
                raise Recoverable(f"{topic.name}[{partition}] goes on to {end}, but nothing arrives from {at} on")
            at = polled.last + 1
            told(min(at, end) - first, end - first)
            if len(mine := polled.part(0, polled.below(end))):
                yield mine
    finally:
        await source.stop()


class _Avro:
    """Messages in Avro to frames."""

    def __init__(self, addresses: Addresses, pipeline: Pipeline, topic: Topic, message: str, found: Exported) -> None:
        self._decoder = Decoder(topic, Registry(addresses.registry), pipeline)
        self._message, self._found = message, found
        self._fields = [one for one in schema(message)["fields"] if one["name"] not in LEFT_OUT]
        self._seen: dict[int, Mapping[Lane, Coordinate]] = {}

    def frame(self, partition: int, polled: Polled) -> pl.DataFrame | None:
        """The first copies among `polled`; None where there are none of this kind."""
        batch, refused = self._decoder.decode(partition, polled)
        fresh, self._seen[partition] = drop_seen(batch, self._seen.get(partition, {}))
        self._found.copies += len(batch) - len(fresh)
        self._found.unreadable += len(refused)
        table = fresh[self._message]
        if table is None:
            return None
        return pl.DataFrame([*_places(partition, table.offsets), *(_series(one["name"], one["type"], table) for one in self._fields)])


class _Json:
    """Predictions in JSON to frames."""

    def __init__(self, found: Exported) -> None:
        self._decode = msgspec.json.Decoder(Prediction).decode
        self._found = found
        self._last: dict[int, int] = {}

    def frame(self, partition: int, polled: Polled) -> pl.DataFrame | None:
        """The first copies among `polled`: each event has one prediction, and they are in order."""
        kept: list[tuple[int, Prediction]] = []
        for offset, value in zip(polled.offsets.tolist(), polled.values.tolist(), strict=True):
            try:
                one = self._decode(value)
            except msgspec.DecodeError:
                self._found.unreadable += 1
                continue
            if one.event_offset > self._last.get(partition, -1):
                kept.append((offset, one))
                self._last[partition] = one.event_offset
            else:
                self._found.copies += 1
        return self._framed(partition, kept) if kept else None

    def _framed(self, partition: int, kept: Sequence[tuple[int, Prediction]]) -> pl.DataFrame:
        fields = [one for one in schema("prediction")["fields"] if one["name"] not in (*LEFT_OUT, "index", "partition")]
        columns = {one["name"]: [getattr(prediction, one["name"]) for _, prediction in kept] for one in fields}
        offsets = np.array([offset for offset, _ in kept], np.int64)
        return pl.DataFrame([*_places(partition, offsets), *(_plain(one["name"], one["type"], columns[one["name"]]) for one in fields)])


def _places(partition: int, offsets: Ints) -> Iterator[pl.Series]:
    """Where each message is on its topic."""
    yield pl.repeat(partition, len(offsets), dtype=pl.Int32, eager=True).alias("topic_partition")
    yield pl.Series("topic_offset", offsets)


def _series(name: str, kind: Any, table: Table) -> pl.Series:
    column: Column = table[name]
    if not isinstance(column, Varlen):
        return _plain(name, kind, column)
    values: Sequence[Any] = column.tolist()
    if kind == "bytes":
        return pl.Series(name, values, pl.Binary)
    if isinstance(kind, list):
        return _plain(name, kind, column.optional_texts())
    return _plain(name, kind, column.texts() if kind == "string" else [list(unpack_strings(value)) for value in values])


TYPES: Mapping[str, pl.DataType] = {
    '"string"': pl.String(),
    '["null", "string"]': pl.String(),
    '"int"': pl.Int32(),
    '"long"': pl.Int64(),
    '"float"': pl.Float32(),
    '"boolean"': pl.Boolean(),
    '{"items": "string", "type": "array"}': pl.List(pl.String()),
}


def _plain(name: str, kind: Any, values: Any) -> pl.Series:
    if isinstance(kind, dict) and kind.get("logicalType") == "timestamp-millis":
        return instants(name, np.asarray(values, np.int64))
    return pl.Series(name, values).cast(TYPES[json.dumps(kind, sort_keys=True)])


def _by_feature(frame: pl.DataFrame, layout: RowLayout) -> list[pl.Series]:
    """A column for each feature of the packed rows; null where a row is of another definition, or where there is none."""
    if "row" not in frame.columns:
        raise Invalid("--wide is for rows and answers: the others hold no features")
    fits = ((frame["layout"] == layout.version) & (frame["row"].bin.size() == layout.row_bytes)).to_numpy()
    matrix: npt.NDArray[np.float32] = layout.matrix(Varlen.of(frame["row"].filter(fits).to_list()))
    places = np.full(frame.height, len(matrix), np.int64)
    places[fits] = np.arange(len(matrix))
    columns = [pl.Series(name, matrix[:, at]).extend_constant(None, 1) for at, name in enumerate(layout.names)]
    return [column.gather(places) for column in columns]
