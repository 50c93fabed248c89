"""
Avro by column: n records in one buffer to arrays and back, in compiled loops, with nothing done per message in Python.

A value is read strictly by the specification, because what is let in here is written on again for other readers: no
overlong or oversized numbers, booleans of 0 or 1, text in UTF-8, block sizes that are true, and nothing left over. Whatever
the bytes are, a record is either decoded whole or marked bad; nothing outside its own bytes is read.

Every number passes through one array of 64-bit cells (fields, n): an integer as it is, a float or double as its bits, a
string as its start, with its end in a second array of the same shape, where -1 marks a null.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, cast

import fastavro
import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid
from driftline.stream.batch import Column, Ints, Varlen

Octets = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Schema = Mapping[str, Any]

# Compiled into `avro_loops`, whose cache on disk does not know this file: change both, or the old numbers stay.
BOOLEAN, INT, LONG, FLOAT, DOUBLE, BYTES, STRING, STRINGS = range(8)
CODES = {"boolean": BOOLEAN, "int": INT, "long": LONG, "float": FLOAT, "double": DOUBLE, "bytes": BYTES, "string": STRING}
FIXED_BYTES = {FLOAT: 4, DOUBLE: 8, BOOLEAN: 1}
NEVER = -1  # the branch of null, in a field that cannot be null
INT_MAX = 2**31 - 1
BUFFERS_MAX = 12
FRAME = struct.Struct(">bI")
NO_OCTETS: Octets = np.zeros(0, np.uint8)
MISFITS = {
    INT: "of more than 32 bits",
    STRING: "null, no valid UTF-8, or outside its buffer",
    BYTES: "null, or outside its buffer",
    STRINGS: "null, no array of strings, or outside its buffer",
}


@cache
def _loops() -> Any:
    """The compiled loops, imported when the first codec is made: who only wants the types need not wait for numba."""
    from driftline.contracts import avro_loops

    return avro_loops


# ---- framing, and arrays of strings ---------------------------------------------------------------------------------------


def frame(schema_id: int) -> bytes:
    """The five bytes that Confluent's framing puts before a value."""
    return FRAME.pack(0, schema_id)


def schema_id_of(value: bytes) -> int:
    """The schema id in a framed value. Raises Invalid when `value` is not framed."""
    if len(value) < FRAME.size or value[0] != 0:
        raise Invalid("the value is not in Confluent's framing (a zero byte and a schema id of four bytes)")
    return int(FRAME.unpack_from(value)[1])


def pack_strings(values: Sequence[str]) -> bytes:
    """`values` as Avro encodes an array of strings. Repeated values cost a look-up."""
    return _packed(tuple(values))


@lru_cache(maxsize=65_536)
def _packed(values: tuple[str, ...]) -> bytes:
    texts = [value.encode() for value in values]
    block = [_varint(len(texts)), *(_varint(len(text)) + text for text in texts)] if texts else []
    return b"".join([*block, b"\0"])


def _varint(value: int) -> bytes:
    """A length or count, never negative, as Avro writes a long."""
    left, octets = value << 1, bytearray()
    while left > 0x7F:
        octets.append(left & 0x7F | 0x80)
        left >>= 7
    octets.append(left)
    return bytes(octets)


@lru_cache(maxsize=65_536)
def unpack_strings(data: bytes) -> tuple[str, ...]:
    """The strings in an array as Avro encodes it, in whatever blocks. Raises Invalid when it is none."""
    stream = io.BytesIO(data)
    try:
        values = cast("list[str]", fastavro.schemaless_reader(stream, {"type": "array", "items": "string"}, None))
    except Exception as error:  # fastavro raises many kinds; any of them says the same
        raise Invalid(f"not an Avro array of strings ({type(error).__name__})") from None
    if stream.tell() != len(data):
        raise Invalid("not an Avro array of strings alone: bytes are left over")
    return tuple(values)


# ---- types and columns ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flat:
    """A type that has a column: its code, and the branch of null in its union (NEVER where it cannot be null)."""

    code: int
    null: int = NEVER

    @property
    def nullable(self) -> bool:
        return self.null != NEVER


def flat_type(kind: Any) -> Flat | None:
    """
    How a field of type `kind` lies in a column; None when it does not: nested records, maps, enums, other unions.

    Logical types are those of the number below: a timestamp-millis is an integer.
    """
    if isinstance(kind, list):
        others = [one for one in kind if one != "null"]
        below = flat_type(others[0]) if len(kind) == 2 and len(others) == 1 else None
        return Flat(below.code, kind.index("null")) if below else None
    if isinstance(kind, Mapping):
        if kind["type"] == "array":
            return Flat(STRINGS) if _plain_type(kind["items"]) == "string" else None
        kind = kind["type"]
    return Flat(CODES[kind]) if isinstance(kind, str) and kind in CODES else None


def _plain_type(kind: Any) -> Any:
    """`kind` without its logical types, through and through: fastavro would make dates and decimals of them."""
    if isinstance(kind, list):
        return [_plain_type(one) for one in kind]
    if not isinstance(kind, Mapping):
        return kind
    plain = {name: value for name, value in kind.items() if name != "logicalType"}
    for name in ("type", "items", "values"):
        if name in plain:
            plain[name] = _plain_type(plain[name])
    if "fields" in plain:
        plain["fields"] = [_plain_type(field) for field in plain["fields"]]
    return plain["type"] if set(plain) == {"type"} else plain


def column(kind: Any, values: Sequence[Any]) -> Column:
    """
    Python values of the Avro type `kind` as the column that `Codec` takes and gives; None is null. A list where the type has
    no column. Raises Invalid when a value does not fit.
    """
    flat = flat_type(kind)
    if flat is None:
        return list(values)
    try:
        return _array(flat, values) if flat.code < BYTES else _varlen(flat, values)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise Invalid(f"a value does not fit the type {kind!r}: {type(error).__name__}") from error


def _array(flat: Flat, values: Sequence[Any]) -> npt.NDArray[Any]:
    if flat.nullable or flat.code in (FLOAT, DOUBLE):
        values = [np.nan if value is None else value for value in values]
    return np.array(values, _dtype(flat)) if values else np.zeros(0, _dtype(flat))


def _dtype(flat: Flat) -> npt.DTypeLike:
    if flat.code == FLOAT:
        return np.float32
    if flat.code == DOUBLE or flat.nullable:
        return np.float64
    return np.bool_ if flat.code == BOOLEAN else np.int64


def _varlen(flat: Flat, values: Sequence[Any]) -> Varlen:
    octets = [pack_strings(value) if flat.code == STRINGS and not isinstance(value, bytes | None) else value for value in values]
    return Varlen.optional(octets)


def _values(kind: Any, column: Column) -> Sequence[Any]:
    """A column as Python values, the way back from `column`."""
    flat = flat_type(kind)
    if isinstance(column, Varlen):
        present = (column.starts >= 0).tolist()
        given = iter(column.take(column.starts >= 0).tolist())
        read = _reader(flat.code if flat else BYTES)
        return [read(next(given)) if here else None for here in present]
    if isinstance(column, np.ndarray):
        listed: list[Any] = column.tolist()
        if flat and flat.nullable:
            whole: Callable[[Any], Any] = {BOOLEAN: bool, INT: int, LONG: int}.get(flat.code, float)
            return [None if value != value else whole(value) for value in listed]  # noqa: PLR0124 - only NaN differs from itself
        return listed
    return column


def _reader(code: int) -> Callable[[bytes], Any]:
    if code == STRING:
        return bytes.decode
    return (lambda value: list(unpack_strings(value))) if code == STRINGS else bytes


# ---- the codec ------------------------------------------------------------------------------------------------------------


class Codec:
    """
    Records of one schema to columns and back. Raises Invalid when `schema` is no record.

    `flat` schemas, whose fields are all of types that have a column (`flat_type`), are done in compiled loops; the others, of
    the control plane, record by record. The columns are the same for both: integers int64, floats float32, doubles float64,
    booleans bool, strings, bytes and arrays of strings `Varlen`, fields of other types lists. Null is NaN for numbers, so that
    a nullable integer or boolean is a float64 column (exact to 2**53), and a start of -1 in a `Varlen`.
    """

    def __init__(self, schema: Schema) -> None:
        if not isinstance(schema, Mapping) or schema.get("type") != "record":
            raise Invalid("an Avro schema of a message must be a record")
        self.schema = schema
        self.fields: tuple[str, ...] = tuple(field["name"] for field in schema["fields"])
        self._kinds: dict[str, Any] = {field["name"]: field["type"] for field in schema["fields"]}
        flats = [flat_type(kind) for kind in self._kinds.values()]
        self._flats = [flat for flat in flats if flat]
        self.flat = len(self._flats) == len(flats)
        self._codes = np.array([flat.code for flat in self._flats], np.int64)
        self._nulls = np.array([flat.null for flat in self._flats], np.int64)
        self._groups = _groups(self._codes, self._nulls) if self.flat else []
        self._parsed = None if self.flat else fastavro.parse_schema(_plain_type(schema))
        if self.flat:
            _loops()

    def decode(self, data: Varlen) -> tuple[dict[str, Column], Bools]:
        """
        Columns of all n values, and the mask (n,) of those that do not decode exactly. Those hold zeros (None in a list).
        Strings are slices of `data`'s own buffer.
        """
        if not self.flat:
            return self._decode_singly(data)
        cells, stops, faults = self._decode(data)
        columns = {
            name: _as_column(flat, data.data, cells[place], stops[place])
            for place, (name, flat) in enumerate(zip(self.fields, self._flats, strict=True))
        }
        return columns, faults > 0

    def _decode(self, data: Varlen) -> tuple[Ints, Ints, Ints]:
        shape = len(self.fields), len(data)
        cells, stops, faults = np.empty(shape, np.int64), np.empty(shape, np.int64), np.zeros(len(data), np.int64)
        starts, ends = np.ascontiguousarray(data.starts), np.ascontiguousarray(data.ends)
        _loops().decode(np.ascontiguousarray(data.data), starts, ends, self._codes, self._nulls, cells, stops, faults)
        return cells, stops, faults

    def encode(self, columns: Mapping[str, Column], prefix: bytes = b"") -> Varlen:
        """
        The n records in one buffer, each after `prefix`. Columns that are no field are ignored; lists are taken for columns.

        Raises Invalid, naming the field, when a column is missing, of another length or type, or holds a value that would not
        decode again.
        """
        if missing := [name for name in self.fields if name not in columns]:
            raise Invalid(f"{self.schema['name']}: no column {', '.join(missing)}")
        n = len(columns[self.fields[0]]) if self.fields else 0
        if uneven := [name for name in self.fields if len(columns[name]) != n]:
            raise Invalid(f"{self.schema['name']}: {', '.join(uneven)} not of the length of {self.fields[0]}, which is {n}")
        if not self.flat:
            return self._encode_singly(columns, prefix)
        cells, stops = np.empty((len(self.fields), n), np.int64), np.zeros((len(self.fields), n), np.int64)
        data = [self._lay(place, columns[name], cells[place], stops[place]) for place, name in enumerate(self.fields)]
        sizes = np.full(n, len(prefix), np.int64)
        for group in self._groups:
            field, record = _loops().measure(*group.of(data, cells, stops), sizes)
            if field >= 0:
                name = self.fields[group.fields.start + field]
                raise Invalid(f"{self.schema['name']}.{name}: value {record} is {MISFITS[int(group.codes[field])]}")
        ends = np.cumsum(sizes)
        starts = ends - sizes
        out, places = np.empty(int(ends[-1]) if n else 0, np.uint8), starts.copy()
        _loops().write_prefix(np.frombuffer(prefix, np.uint8), out, places)
        for group in self._groups:
            _loops().write(*group.of(data, cells, stops), out, places)
        return Varlen(out, starts, ends)

    def _lay(self, place: int, given: Column, cells: Ints, stops: Ints) -> Octets:
        """Put a column into the cells of its field, and return the buffer that these point into."""
        flat, name = self._flats[place], self.fields[place]
        try:
            return _lay(flat, given if isinstance(given, Varlen | np.ndarray) else column(self._kinds[name], given), cells, stops)
        except Invalid as error:
            raise Invalid(f"{self.schema['name']}.{name}: {error}") from error

    def _decode_singly(self, data: Varlen) -> tuple[dict[str, Column], Bools]:
        records = [self._record(value) for value in data.tolist()]
        bad = np.fromiter((record is None for record in records), np.bool_, len(records))
        columns = {}
        for name, kind in self._kinds.items():
            zero = _zero(kind)
            columns[name] = column(kind, [zero if record is None else record[name] for record in records])
        return columns, bad

    def _record(self, value: bytes) -> dict[str, Any] | None:
        stream = io.BytesIO(value)
        try:
            record = cast("dict[str, Any]", fastavro.schemaless_reader(stream, self._parsed, None))  # type: ignore[arg-type]
        except Exception:  # fastavro raises many kinds; any of them says that the record does not decode
            return None
        return record if stream.tell() == len(value) and self._fits(record) else None

    def _fits(self, record: dict[str, Any]) -> bool:
        """Whether the integers are of the size that their type has; fastavro does not look."""
        ints = [record[name] for name, kind in self._kinds.items() if kind == "int"]
        return all(-INT_MAX - 1 <= value <= INT_MAX for value in ints)

    def _encode_singly(self, columns: Mapping[str, Column], prefix: bytes) -> Varlen:
        values = [_values(self._kinds[name], columns[name]) for name in self.fields]
        out = []
        for row in zip(*values, strict=True):
            stream = io.BytesIO(prefix)
            stream.seek(len(prefix))
            try:
                fastavro.schemaless_writer(stream, self._parsed, dict(zip(self.fields, row, strict=True)))  # type: ignore[arg-type]
            except Exception as error:  # fastavro raises many kinds, and puts values into their words
                raise Invalid(f"{self.schema['name']}: a record does not fit the schema ({type(error).__name__})") from None
            out.append(stream.getvalue())
        return Varlen.of(out)

    def explain(self, value: bytes) -> str:
        """Why `value` does not decode, in words that hold nothing of it."""
        if not self.flat:
            good = self._record(value) is not None
            return "the record decodes" if good else f"{len(value)} bytes that are no {self.schema['name']}"
        fault = int(self._decode(Varlen.of([value]))[2][0])
        if fault == 0:
            return "the record decodes"
        if fault > len(self.fields):
            return f"bytes are left over after the last field of {self.schema['name']}"
        name = self.fields[fault - 1]
        return f"field {name} is no {_spelt(self._kinds[name])}, or is cut off ({len(value)} bytes in all)"


def _zero(kind: Any) -> Any:
    """What a bad record holds in a field of type `kind`."""
    flat = flat_type(kind)
    if flat is None:
        return None
    return {STRINGS: (), STRING: "", BYTES: b""}.get(flat.code, 0)


def _spelt(kind: Any) -> str:
    if isinstance(kind, list):
        return " or ".join(map(_spelt, kind))
    if isinstance(kind, Mapping):
        return f"array of {_spelt(kind['items'])}" if kind["type"] == "array" else str(kind.get("logicalType", kind["type"]))
    return str(kind)


def _as_column(flat: Flat, data: Octets, cells: Ints, stops: Ints) -> Column:
    if flat.code >= BYTES:
        return Varlen(data, cells, stops)
    if flat.code == FLOAT:
        values: npt.NDArray[Any] = cells.astype(np.uint32).view(np.float32)
    elif flat.code == DOUBLE:
        values = cells.view(np.float64)
    else:
        values = cells.astype(_dtype(flat)) if flat.code == BOOLEAN or flat.nullable else cells
    return np.where(stops == -1, values.dtype.type(np.nan), values) if flat.nullable else values


# ---- columns to cells: for all fields at once, because to call a compiled loop for each costs more than one record does -------


@dataclass(frozen=True, slots=True)
class _Group:
    """Consecutive fields of which no more than BUFFERS_MAX lie in buffers: so many can be handed to a compiled loop."""

    fields: slice
    codes: Ints
    nulls: Ints
    buffers: Ints  # of each field, the number of its buffer among those of the group
    sized: Sequence[int]  # the fields that have one, by their places among all

    def of(self, data: Sequence[Octets], cells: Ints, stops: Ints) -> tuple[Any, ...]:
        """What the loops take of this group."""
        buffers = [data[place] for place in self.sized]
        buffers += [NO_OCTETS] * (BUFFERS_MAX - len(buffers))
        return tuple(buffers), self.buffers, self.codes, self.nulls, cells[self.fields], stops[self.fields]


def _groups(codes: Ints, nulls: Ints) -> list[_Group]:
    sized = np.flatnonzero(codes >= BYTES).tolist()
    groups = []
    for start, stop in pairwise([0, *sized[BUFFERS_MAX::BUFFERS_MAX], len(codes)]):
        has_buffer = codes[start:stop] >= BYTES
        buffers = np.where(has_buffer, np.cumsum(has_buffer) - 1, 0)
        mine = [place for place in sized if start <= place < stop]
        groups.append(_Group(slice(start, stop), codes[start:stop], nulls[start:stop], buffers, mine))
    return groups


def _lay(flat: Flat, given: Column, cells: Ints, stops: Ints) -> Octets:
    if isinstance(given, Varlen):
        if flat.code < BYTES:
            raise Invalid("strings given for a number")
        cells[:] = given.starts
        stops[:] = np.where(given.starts < 0, -1, given.ends) if flat.nullable else given.ends
        return np.ascontiguousarray(given.data)
    if flat.code >= BYTES or not isinstance(given, np.ndarray):
        raise Invalid("numbers given for a string")
    if flat.nullable and given.dtype.kind == "f":
        absent = np.isnan(given)
        stops[absent] = -1
        given = np.where(absent, 0, given)
    cells[:] = _bits(flat, given)
    return NO_OCTETS


def _bits(flat: Flat, given: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What goes into the cells of numbers of which none is null."""
    kind = given.dtype.kind
    if flat.code == BOOLEAN:
        if kind != "b" and (kind != "f" or not np.isin(given, (0, 1)).all()):
            raise Invalid("not all true or false")
        return given
    if flat.code in (FLOAT, DOUBLE):
        if kind not in "fiu":
            raise Invalid(f"{given.dtype} given for a float or double")
        return given.astype(np.float32).view(np.int32) if flat.code == FLOAT else given.astype(np.float64).view(np.int64)
    if kind == "i":
        return given
    if kind not in ("uf" if flat.nullable else "u"):
        raise Invalid(f"{given.dtype} given for an integer")
    with np.errstate(invalid="ignore"):  # what is too large for an integer is found below
        values = given.astype(np.int64)
    if not (values == given).all():
        raise Invalid("a number that is not whole, or of more than 64 bits, given for an integer")
    return values


def explain(schema: Schema, value: bytes) -> str:
    """Why `value` is no record of `schema`, in words for a dead letter: never anything of the payload."""
    return Codec(schema).explain(value)


def warm() -> None:
    """Run every compiled loop once, so that what follows neither compiles nor loads: call it before joining a group."""
    fields: list[dict[str, Any]] = [{"name": name, "type": ["null", name]} for name in CODES]
    fields += [{"name": name.upper(), "type": name} for name in CODES]
    codec = Codec({"type": "record", "name": "Warm", "fields": fields})
    codec.decode(codec.encode({field["name"]: column(field["type"], [_zero(field["type"])]) for field in fields}))
