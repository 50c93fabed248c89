"""
Upstream records to columns, in JSON or in Avro, checked by the contract of their stream. Bad ones come back with the reason.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any

import fastavro
import msgspec
import numpy as np

from driftline.contracts import traceparent
from driftline.contracts.avro import Codec, explain
from driftline.errors import Invalid
from driftline.features.upstream import Contract
from driftline.pipeline import Stream
from driftline.stream.batch import Column, Ints, Refused, Varlen, distinct, take
from driftline.stream.records import FRAME_BYTES, SCHEMAS_MAX, Polled, SchemaRegistry, schema_ids

VALUE_BYTES_MAX = 512 << 10
INT_MAX, LONG_MAX = 2**31 - 1, 2**63 - 1

Reader = Callable[[Varlen], tuple[dict[str, Column], np.ndarray]]  # of n bodies: their columns, and the mask (n,) of the bad ones

JSON_TYPES: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "int": Annotated[int, msgspec.Meta(ge=-INT_MAX - 1, le=INT_MAX)],
    "long": Annotated[int, msgspec.Meta(ge=-LONG_MAX - 1, le=LONG_MAX)],
    "float": float,
    "double": float,
    "timestamp-millis": Annotated[datetime, msgspec.Meta(tz=True)] | Annotated[int, msgspec.Meta(ge=-LONG_MAX - 1, le=LONG_MAX)],
}
WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """
    n good records of one upstream partition, in its order. Times are milliseconds UTC; `bodies` is Avro by the stream's schema; `traces`
    are as `Polled` has them.
    """

    offsets: Ints
    times: Ints
    visible: Ints
    ids: Varlen
    keys: Varlen
    bodies: Varlen
    traces: Varlen | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, index: Any) -> Arrived:
        """The records at `index` (positions, mask or slice)."""
        return Arrived(
            self.offsets[index],
            self.times[index],
            self.visible[index],
            self.ids.take(index),
            self.keys.take(index),
            self.bodies.take(index),
            traceparent.taken(self.traces, index),
        )


class Parser:
    """
    Parses one upstream topic, JSON and Confluent-framed Avro alike, record by record told apart by the frame.

    `names` are text fields that become parts of keys in the store and on the log (of entities, slices), beside id and key.
    """

    def __init__(self, stream: Stream, registry: SchemaRegistry, pii_key: bytes, names: Collection[str] = ()) -> None:
        self._stream = stream
        self._registry = registry
        self._contract = Contract(stream, pii_key, names)
        self._body = Codec(stream.schema)
        self._fields = {field["name"]: _kind(field["type"]) for field in stream.schema["fields"]}
        self._json = msgspec.json.Decoder(_struct(stream))
        self._writers: dict[int, Reader | str] = {}

    def parse(self, polled: Polled, clock_ms: int) -> tuple[Arrived, list[Refused]]:
        """Everything good in `polled`, in order, and everything else with its reason. `clock_ms` is the pipeline's clock."""
        polled, refused = _of_size(polled)
        formats = schema_ids(polled.values)
        parts = []
        found = distinct(formats)
        for schema_id in found:
            mine = polled if len(found) == 1 else polled.take(formats == schema_id)
            columns, offsets, bad = self._avro(mine, schema_id) if schema_id >= 0 else self._from_json(mine)
            refused += bad
            if len(offsets):
                arrived, bad = self._checked(offsets, columns, clock_ms)
                refused += bad
                parts.append(arrived)
        arrived = _in_order(parts)
        if polled.traces is not None:
            arrived = replace(arrived, traces=polled.traces.take(np.searchsorted(polled.offsets, arrived.offsets)))
        return arrived, refused

    def _from_json(self, polled: Polled) -> tuple[dict[str, Column], Ints, list[Refused]]:
        good, kept, refused = [], [], []
        for offset, value in zip(polled.offsets.tolist(), polled.values.tolist(), strict=True):
            try:
                good.append(self._json.decode(value))
                kept.append(offset)
            except (msgspec.ValidationError, msgspec.DecodeError) as error:
                refused.append(self._json_refusal(offset, error))
            except (UnicodeDecodeError, RecursionError):
                refused.append(Refused(offset, "undecodable", "the value is not valid JSON"))
        values = zip(*map(msgspec.structs.astuple, good), strict=True)
        columns = {name: _column(kind, column) for (name, kind), column in zip(self._fields.items(), values, strict=False)}
        return columns, np.array(kept, np.int64), refused

    def _json_refusal(self, offset: int, error: Exception) -> Refused:
        if not isinstance(error, msgspec.ValidationError):
            return Refused(offset, "undecodable", "the value is not valid JSON")
        words = str(error)
        missing = re.search(r"missing required field `(.+?)`", words)
        if missing:
            reason = "missing_id" if missing[1] == self._stream.id else "contract"
            return Refused(offset, reason, f'"{missing[1]}" is missing; {self._stream.schema["name"]} asks for it')
        field = re.search(r"at `\$\.(.+?)`", words)
        got = re.search(r"got `(.+?)`", words)
        if field and got:
            told = WORDS.get(got[1], got[1])
            return Refused(offset, "contract", f'"{field[1]}" is {told}; {self._stream.schema["name"]} says {self._fields.get(field[1])}')
        return Refused(offset, "contract", words if field else "the value is not an object of the stream's fields")

    def _avro(self, polled: Polled, schema_id: int) -> tuple[dict[str, Column], Ints, list[Refused]]:
        if schema_id not in self._writers:
            if len(self._writers) >= SCHEMAS_MAX:
                self._writers = {known: reader for known, reader in self._writers.items() if not isinstance(reader, str)}
            self._writers[schema_id] = self._reader_of(schema_id)
        reader = self._writers[schema_id]
        if isinstance(reader, str):
            return {}, polled.offsets[:0], [Refused(offset, "schema", reader) for offset in polled.offsets.tolist()]
        values = polled.values
        bodies = Varlen(values.data, values.starts + FRAME_BYTES, values.ends)
        columns, bad = reader(bodies)
        if not bad.any():
            return {name: columns[name] for name in self._fields}, polled.offsets, []
        schema = self._registry.schema(schema_id)
        refused = [Refused(int(polled.offsets[at]), "undecodable", explain(schema, bodies[at])) for at in np.flatnonzero(bad).tolist()]
        if bad.all():
            return {}, polled.offsets[:0], refused
        return {name: take(columns[name], ~bad) for name in self._fields}, polled.offsets[~bad], refused

    def _reader_of(self, schema_id: int) -> Reader | str:
        """How to read records that were written by that schema; or why they cannot be."""
        try:
            writer = self._registry.schema(schema_id)
        except Invalid:
            return f"schema id {schema_id} is not known to the registry"
        if writer.get("type") != "record":
            return f"schema id {schema_id} is no record"
        if not _ends(writer):
            return f"schema id {schema_id} lets a few bytes stand for a record of any size, so it is not read"
        try:
            codec = Codec(writer)
            kinds = {field["name"]: _kind(field["type"]) for field in writer["fields"]}
            if codec.flat and all(kinds.get(name) == kind for name, kind in self._fields.items()):
                return codec.decode
            return self._resolving(writer)
        except Exception as error:  # whatever a library raises at somebody's schema means one thing: it cannot be read by
            return f"schema id {schema_id} cannot be read by ({type(error).__name__})"

    def _resolving(self, writer: dict[str, Any]) -> Reader:
        """Another version of the schema: resolved record by record, as Avro's rules say."""
        written, wanted = fastavro.parse_schema(writer), fastavro.parse_schema(dict(self._stream.schema))

        def read(bodies: Varlen) -> tuple[dict[str, Column], np.ndarray]:
            records: list[dict[str, Any] | None] = []
            for body in bodies:
                try:
                    record: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(body), written, wanted)  # type: ignore
                except Exception:  # whatever a decoder may raise at hostile bytes means one thing: undecodable
                    records.append(None)
                else:
                    records.append(record if self._fits(record) else None)
            good = [record for record in records if record is not None]
            bad = np.array([record is None for record in records], np.bool_)
            spread = np.cumsum(~bad) - 1
            columns = {
                name: take(_column(kind, [record[name] for record in good]), np.maximum(spread, 0))
                for name, kind in self._fields.items()
                if good
            }
            return columns, bad

        return read

    def _fits(self, record: Mapping[str, Any]) -> bool:
        """Whether whole numbers are of the size that their type has; fastavro does not look."""
        whole = {"int": INT_MAX, "long": LONG_MAX, "timestamp-millis": LONG_MAX}
        found = [(record[name], whole.get(kind.rstrip("?"), 0)) for name, kind in self._fields.items()]
        return all(-most - 1 <= value <= most for value, most in found if most and isinstance(value, int))

    def _checked(self, offsets: Ints, columns: Mapping[str, Column], clock_ms: int) -> tuple[Arrived, list[Refused]]:
        taken, refused = self._contract.check(offsets, columns, clock_ms)
        bodies = self._body.encode(taken.columns)
        return Arrived(offsets[taken.places], taken.times, taken.visible, taken.ids, taken.keys, bodies), refused


def _of_size(polled: Polled) -> tuple[Polled, list[Refused]]:
    """The records that have a value of a size that is taken, and the others with the reason."""
    sizes = polled.values.lengths
    good = (sizes > 0) & (sizes <= VALUE_BYTES_MAX)
    if good.all():
        return polled, []
    refused = [
        Refused(offset, "too_large", f"{size} bytes; at most {VALUE_BYTES_MAX} are taken")
        if size
        else Refused(offset, "undecodable", "the record has no value")
        for offset, size in zip(polled.offsets[~good].tolist(), sizes[~good].tolist(), strict=True)
    ]
    return polled.take(good), refused


def _ends(schema: Any, within: frozenset[str] = frozenset()) -> bool:
    """
    Whether what is written by `schema` ends soon: it contains itself nowhere, and its lists and maps have no items of no bytes. By
    others a short record may nest or repeat without limit, which a decoder in C does not survive.
    """
    if isinstance(schema, list):
        return all(_ends(part, within) for part in schema)
    if not isinstance(schema, dict):
        return schema not in within
    kind = schema.get("type")
    if kind in ("array", "map"):
        items = schema.get("items", schema.get("values"))
        return _ends(items, within) and (kind == "map" or _takes_bytes(items))
    if kind in ("record", "error"):
        name = str(schema.get("name"))
        inside = within | {name, f"{schema.get('namespace', '')}.{name}", name.rpartition(".")[2]}
        return all(_ends(field.get("type"), inside) for field in schema.get("fields", ()) if isinstance(field, dict))
    return _ends(kind, within) if isinstance(kind, dict | list) else True


def _takes_bytes(schema: Any) -> bool:
    """Whether every value of `schema` takes a byte at least; of types that are only named here it is not known."""
    if isinstance(schema, dict):
        if schema.get("type") == "record":
            return any(_takes_bytes(field.get("type")) for field in schema.get("fields", ()) if isinstance(field, dict))
        return bool(schema.get("size", 1)) and _takes_bytes(schema.get("type"))
    return isinstance(schema, list) or schema in (
        "boolean",
        "int",
        "long",
        "float",
        "double",
        "bytes",
        "string",
        "array",
        "map",
        "enum",
        "fixed",
    )


def _kind(avro: Any) -> str:
    """The name of a field's type: `string`, `double`, `timestamp-millis`, with a question mark where it may be null."""
    if isinstance(avro, list):
        return _kind(next(part for part in avro if part != "null")) + "?"
    return str(avro.get("logicalType", avro["type"])) if isinstance(avro, dict) else str(avro)


def _struct(stream: Stream) -> type[msgspec.Struct]:
    """A type that msgspec checks JSON by; fields that it does not know are passed over, for upstream may add some."""
    fields: list[Any] = []
    for field in stream.schema["fields"]:
        kind = _kind(field["type"])
        wanted = JSON_TYPES[kind.rstrip("?")]
        fields.append((field["name"], wanted | None, None) if kind.endswith("?") else (field["name"], wanted))
    return msgspec.defstruct(str(stream.schema["name"]), fields, kw_only=True, frozen=True)


def _column(kind: str, values: Sequence[Any]) -> Column:
    """Python values of one field as a column; null is NaN in a number, and a start of -1 in a text."""
    plain = kind.rstrip("?")
    if plain == "string":
        return Varlen.optional(values)
    if plain == "timestamp-millis":
        values = [round(value.timestamp() * 1000) if isinstance(value, datetime) else value for value in values]
    if kind.endswith("?") or plain in ("float", "double"):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array(values, np.bool_ if plain == "boolean" else np.int64)


def _in_order(parts: Sequence[Arrived]) -> Arrived:
    """Records of several formats, back in the order of their partition."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.zeros(0, np.int64)
        return Arrived(none, none, none, Varlen.of([]), Varlen.of([]), Varlen.of([]))
    return join(parts).take(np.argsort(np.concatenate([part.offsets for part in parts]), kind="stable"))


def join(parts: Sequence[Arrived]) -> Arrived:
    """Records of several arrivals as one, in the listed order."""
    return Arrived(
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.visible for part in parts]),
        Varlen.concat([part.ids for part in parts]),
        Varlen.concat([part.keys for part in parts]),
        Varlen.concat([part.bodies for part in parts]),
        traceparent.joined([(part.traces, len(part)) for part in parts]),
    )
