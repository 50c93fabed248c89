"""
Polled records to a `Batch`, and `Messages` to records: the border between bytes on a log and columns in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import msgspec
import numpy as np

from driftline.compiled import READ_BYTES, READ_INTS, numba
from driftline.contracts import traceparent
from driftline.contracts.avro import Codec, column, frame, unpack_strings
from driftline.contracts.bounds import Bounds, Declared
from driftline.contracts.messages import schema as message_schema
from driftline.contracts.messages import versions
from driftline.contracts.topics import Topic
from driftline.errors import Invalid
from driftline.stream.batch import Batch, Column, Ints, Messages, Refused, Table, Varlen, distinct, take

FRAME_BYTES = 5
SCHEMAS_MAX = 1_000  # ids that are remembered, of those that strangers make up too
Lane = int
Coordinate = tuple[int, int]  # offset and index within a lane


class SchemaRegistry(Protocol):
    """What is needed of a registry; `contracts.registry` has the real one and one in memory."""

    def register(self, subject: str, schema: dict[str, Any]) -> int: ...

    def schema(self, schema_id: int) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Polled:
    """
    Consecutive records of one partition by column, offsets ascending. A null key or value starts at -1. `traces` has what their headers say
    of traces (`contracts.traceparent`), and is None where none says anything.
    """

    offsets: Ints
    keys: Varlen
    values: Varlen
    timestamps: Ints
    traces: Varlen | None = None

    @classmethod
    def of(cls, offsets: Sequence[int], keys: Sequence[bytes | None], values: Sequence[bytes | None], timestamps: Sequence[int]) -> Polled:
        """Records that somebody has one by one."""
        return cls(np.array(offsets, np.int64), Varlen.optional(keys), Varlen.optional(values), np.array(timestamps, np.int64))

    @classmethod
    def concat(cls, parts: Sequence[Polled]) -> Polled:
        """Several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.offsets for part in parts]),
            Varlen.concat([part.keys for part in parts]),
            Varlen.concat([part.values for part in parts]),
            np.concatenate([part.timestamps for part in parts]),
            traceparent.joined([(part.traces, len(part)) for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def first(self) -> int:
        """The offset of the first record."""
        return int(self.offsets[0])

    @property
    def last(self) -> int:
        """The offset of the last record."""
        return int(self.offsets[-1])

    def take(self, index: Any) -> Polled:
        """The records at `index` (positions, mask or slice)."""
        traces = traceparent.taken(self.traces, index)
        return Polled(self.offsets[index], self.keys.take(index), self.values.take(index), self.timestamps[index], traces)

    def part(self, start: int, stop: int) -> Polled:
        """The records from place `start` to place `stop`, exclusive."""
        return self.take(slice(start, stop))

    def below(self, offset: int) -> int:
        """How many records are below `offset`."""
        return int(np.searchsorted(self.offsets, offset))

    def trace_id(self, offset: int) -> str | None:
        """The trace that the record at `offset` belongs to."""
        told = self.traces.get(self.below(offset)) if self.traces is not None else None
        return None if told is None else traceparent.trace_id(told)

    def anchor(self, next_offset: int) -> tuple[int, int, int]:
        """Offset, timestamp and CRC of the last record below `next_offset`: what a log must still hold to be the same log."""
        at = self.below(next_offset) - 1
        return int(self.offsets[at]), int(self.timestamps[at]), crc(self.values[at])


def crc(value: bytes | None) -> int:
    """CRC-32 of a value; a tombstone counts as empty."""
    return zlib.crc32(value or b"")


class Decoder:
    """
    Turns polled records of one topic into columns, each record by the schema that its frame names.

    Any published version of a message that the topic may hold is accepted; anything else is refused with its reason, and so is
    what no service can have said (`contracts.bounds`). What an older version has not had, has its default: so what becomes of a message
    does not depend on which others came with it.
    """

    def __init__(self, topic: Topic, registry: SchemaRegistry, pipeline: Declared | None = None) -> None:
        self._registry = registry
        self._messages = topic.messages
        self._bounds = Bounds.of(topic, pipeline)
        self._codecs: dict[int, tuple[str, Codec] | None] = {}

    def decode(self, partition: int, polled: Polled) -> tuple[Batch, list[Refused]]:
        """Split `polled` by kind of message; what cannot be taken comes back refused, by offset."""
        values, offsets, timestamps = polled.values, polled.offsets, polled.timestamps
        ids = schema_ids(values)
        tables: dict[str, Table] = {}
        refused: list[Refused] = []
        for schema_id in distinct(ids):
            mine = np.flatnonzero(ids == schema_id)
            found = self._codec(schema_id)
            if found is None:
                refused += [Refused(int(offsets[i]), *_unframed(schema_id)) for i in mine]
                continue
            message, codec = found
            columns, bad = codec.decode(Varlen(values.data, values.starts[mine] + FRAME_BYTES, values.ends[mine]))
            columns |= _defaults(message, columns, len(mine))
            table = Table(message, offsets[mine], columns)
            if bad.any():
                refused += [Refused(int(offsets[i]), "undecodable", codec.explain(values[i][FRAME_BYTES:])) for i in mine[bad].tolist()]
                table, mine = table.take(~bad), mine[~bad]
            table = self._within_bounds(table, timestamps[mine], partition, refused)
            if len(table):
                tables[message] = _joined([tables[message], table]) if message in tables else table
        return Batch(partition, polled.first, polled.last + 1, tables), sorted(refused, key=lambda one: one.offset)

    def _within_bounds(self, table: Table, timestamps: Ints, partition: int, refused: list[Refused]) -> Table:
        """What of `table` can have been said; the rest is added to `refused`, each with the first thing that is wrong with it."""
        good = np.ones(len(table), np.bool_)
        for fault in self._bounds.faults(table, timestamps, partition):
            if fault.bad.any():
                refused += [Refused(offset, fault.reason, fault.detail) for offset in table.offsets[fault.bad & good].tolist()]
                good &= ~fault.bad
        return table if good.all() else table.take(good)

    def _codec(self, schema_id: int) -> tuple[str, Codec] | None:
        if schema_id < 0:
            return None
        if schema_id not in self._codecs:
            if len(self._codecs) >= SCHEMAS_MAX:
                self._codecs = {known: codec for known, codec in self._codecs.items() if codec is not None}
            try:
                schema = self._registry.schema(schema_id)
            except Invalid:
                schema = {}
            message = next((message for message in self._messages if _is_version_of(message, schema)), None)
            self._codecs[schema_id] = (message, Codec(schema)) if message else None
        return self._codecs[schema_id]


def _defaults(message: str, there: Mapping[str, Column], n: int) -> dict[str, Column]:
    """The columns of the newest version of `message` that are not `there` and have a default, n times."""
    return {name: take(one, np.zeros(n, np.int64)) for name, one in _default(message).items() if name not in there}


@cache
def _default(message: str) -> dict[str, Column]:
    """One value of each field that has a default."""
    return {field["name"]: column(field["type"], [field["default"]]) for field in message_schema(message)["fields"] if "default" in field}


def _is_version_of(message: str, schema: Mapping[str, Any]) -> bool:
    """
    Whether `schema` has every field of a published version of `message`, of the same type. The name alone would not tell: the
    registry is shared, and other people have records that are called Event.
    """
    fields = {field["name"]: field["type"] for field in schema.get("fields", ())}
    for version in versions(message):
        ours = message_schema(message, version)
        named = (schema.get("name"), schema.get("namespace")) == (ours["name"], ours["namespace"])
        if named and all(fields.get(field["name"]) == field["type"] for field in ours["fields"]):
            return True
    return False


@numba.njit(numba.int64[::1](READ_BYTES, READ_INTS, READ_INTS), cache=True, nogil=True)
def _schema_ids(data, starts, ends):  # type: ignore[no-untyped-def]  # compiled by numba
    ids = np.full(len(starts), -1, np.int64)
    for i in range(len(starts)):
        at = starts[i]
        if at >= 0 and ends[i] - at >= FRAME_BYTES and data[at] == 0:
            ids[i] = np.int64(data[at + 1]) << 24 | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 8 | np.int64(data[at + 4])
    return ids


def schema_ids(values: Varlen) -> Ints:
    """The schema id that the frame of each value names: -1 where there is no frame."""
    ids: Ints = _schema_ids(values.data, np.ascontiguousarray(values.starts), np.ascontiguousarray(values.ends))
    return ids


def _unframed(schema_id: int) -> tuple[str, str]:
    if schema_id < 0:
        return "undecodable", "the value is not in Confluent's framing (a zero byte and a schema id of four bytes)"
    return "schema", f"schema id {schema_id} is not known to the registry, or is no schema of this topic"


def joined(batches: Sequence[Batch]) -> Batch:
    """Consecutive batches of one partition as one."""
    tables: dict[str, Table] = {}
    for name in dict.fromkeys(name for batch in batches for name in batch.tables):
        parts = [batch.tables[name] for batch in batches if name in batch.tables]
        tables[name] = _joined(parts) if len(parts) > 1 else parts[0]
    return Batch(batches[0].partition, batches[0].first_offset, batches[-1].next_offset, tables)


def _joined(parts: Sequence[Table]) -> Table:
    """Tables of one message as one, in the log's order; of different versions, the fields that all have are kept."""
    offsets = np.concatenate([part.offsets for part in parts])
    names = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    table = Table(parts[0].message, offsets, {name: _concatenated([part[name] for part in parts]) for name in names})
    return table if (offsets[1:] > offsets[:-1]).all() else table.take(np.argsort(offsets, kind="stable"))


def _concatenated(columns: Sequence[Any]) -> Column:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    if not isinstance(columns[0], Varlen):
        return [value for column in columns for value in column]
    return Varlen.concat(columns)


@numba.njit("Tuple((b1[::1], i8[::1], i8[::1]))(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1])", cache=True)
def _advance(lanes, offsets, indexes, last_offsets, last_indexes):  # type: ignore[no-untyped-def]  # compiled by numba
    """Walk the log's order; a coordinate is fresh when it is above the last one taken from its lane."""
    fresh = np.zeros(len(lanes), np.bool_)
    last_offsets, last_indexes = last_offsets.copy(), last_indexes.copy()
    for i in range(len(lanes)):
        lane = lanes[i]
        if offsets[i] > last_offsets[lane] or (offsets[i] == last_offsets[lane] and indexes[i] > last_indexes[lane]):
            fresh[i] = True
            last_offsets[lane] = offsets[i]
            last_indexes[lane] = indexes[i]
    return fresh, last_offsets, last_indexes


def drop_seen(batch: Batch, seen: Mapping[Lane, Coordinate]) -> tuple[Batch, dict[Lane, Coordinate]]:
    """
    Drop every message whose coordinate is not above the last one taken from its lane (writer, source, partition).

    Returns what is fresh, and `seen` with the batch counted in.
    """
    tables = list(batch.tables.values())
    if not tables:
        return batch, dict(seen)
    lanes = np.concatenate([lane_of(table["writer"], table["source"], table["partition"]) for table in tables])
    log_order = np.argsort(np.concatenate([table.offsets for table in tables]), kind="stable")
    names = distinct(lanes)
    last = [seen.get(name, (-1, -1)) for name in names]
    fresh, offsets, indexes = _advance(
        np.searchsorted(names, lanes)[log_order],
        np.concatenate([table["offset"] for table in tables])[log_order],
        np.concatenate([table["index"] for table in tables])[log_order],
        np.array([offset for offset, _ in last], np.int64),
        np.array([index for _, index in last], np.int64),
    )
    after = dict(seen) | dict(zip(names, zip(offsets.tolist(), indexes.tolist(), strict=True), strict=True))
    if fresh.all():
        return batch, after
    keep = np.empty(len(fresh), np.bool_)
    keep[log_order] = fresh
    cuts = np.cumsum([len(table) for table in tables])[:-1]
    kept = {table.message: table.take(mine) for table, mine in zip(tables, np.split(keep, cuts), strict=True) if mine.any()}
    return replace(batch, tables=kept), after


def lane_of(writer: Any, source: Any, partition: Any) -> Any:
    """One number for (writer, source, partition); the arguments are integers or arrays of them."""
    return (writer << 48) | (source << 24) | partition


class Encoder:
    """
    Turns `Messages` into keys and values for one writer. Registers the schemas when it is made.
    """

    def __init__(
        self, topics: Mapping[str, Topic], registry: SchemaRegistry, writer: int, json_topics: frozenset[str] = frozenset()
    ) -> None:
        self._writer = writer
        self._json = json_topics
        self._frames: dict[str, tuple[Codec, bytes]] = {}
        for message in {message for topic in topics.values() for message in topic.messages}:
            schema = message_schema(message)
            self._frames[message] = Codec(schema), frame(registry.register(f"driftline.{schema['name']}", schema))

    def values(self, messages: Messages, partition: int) -> Varlen:
        """The values of `messages`, header filled in: one a message, in listed order."""
        n = len(messages)
        columns = {"writer": np.full(n, self._writer, np.int64), "partition": np.full(n, partition, np.int64), **messages.columns}
        columns |= _defaults(messages.message, columns, n)
        if messages.topic in self._json:
            return Varlen.of(_json_lines(messages.message, columns))
        codec, prefix = self._frames[messages.message]
        return codec.encode(columns, prefix)


JSON_LEFT_OUT = ("source", "partition", "offset", "index", "writer")


def _json_lines(message: str, columns: Mapping[str, Column]) -> list[bytes]:
    """For ten-line clients: one JSON object a message. They know a copy by partition and `event_offset` alone."""
    fields = [field for field in message_schema(message)["fields"] if field["name"] not in JSON_LEFT_OUT]
    names = [field["name"] for field in fields]
    plain = [_json_column(columns[field["name"]], field["type"]) for field in fields]
    encode = msgspec.json.Encoder().encode
    return [encode(dict(zip(names, values, strict=True))) for values in zip(*plain, strict=True)]


def _json_column(column: Column, kind: Any) -> Sequence[Any]:
    if isinstance(column, Varlen) and isinstance(kind, list):
        return column.optional_texts()
    if isinstance(column, np.ndarray):
        numbers: list[Any] = (np.round(column.astype(np.float64), 6) if column.dtype.kind == "f" else column).tolist()
        return numbers
    values = column.tolist() if isinstance(column, Varlen) else column
    if isinstance(kind, dict) and kind["type"] == "array":
        return [unpack_strings(value) if isinstance(value, bytes) else value for value in values]
    return [value.decode() if isinstance(value, bytes) else value for value in values]
