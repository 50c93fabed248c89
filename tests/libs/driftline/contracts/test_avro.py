"""
Columns and bytes agree with fastavro, an independent reader and writer, and with a plain decoder that is written here again,
strictly by the specification.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from driftline.contracts.avro import BUFFERS_MAX, Codec, column, explain, flat_type, frame, pack_strings, schema_id_of, unpack_strings, warm
from driftline.contracts.messages import schema
from driftline.errors import Invalid
from driftline.stream.batch import Varlen, take

# The first text that hypothesis makes takes seconds on a busy machine.
PATIENTLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TIMESTAMP = {"type": "long", "logicalType": "timestamp-millis"}
STRINGS = {"type": "array", "items": "string"}
PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=100),
    "string": st.text(max_size=70),
}
SMALL = {"long": st.integers(-(2**53), 2**53)}  # all that a nullable column, which is of floats, can tell apart


def kinds() -> st.SearchStrategy[Any]:
    """Types that have a column."""
    plain = st.sampled_from([*PRIMITIVES, TIMESTAMP, STRINGS, {"type": "string"}])
    return plain | plain.map(lambda kind: ["null", kind]) | plain.map(lambda kind: [kind, "null"])


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type."""
    if isinstance(kind, list):
        (other,) = (one for one in kind if one != "null")
        name = other["type"] if isinstance(other, dict) else other
        return st.none() | SMALL.get(name, values(other))
    if kind == STRINGS:
        return st.lists(st.text(max_size=5), max_size=4)
    return PRIMITIVES[kind["type"] if isinstance(kind, dict) else kind]


def record_of(types: list[Any]) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": f"f{n}", "type": kind} for n, kind in enumerate(types)]}


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A flat schema and some records of it."""
    types = draw(st.lists(kinds(), min_size=1, max_size=6))
    rows = draw(st.lists(st.tuples(*map(values, types)), max_size=5))
    return record_of(types), [{f"f{n}": value for n, value in enumerate(row)} for row in rows]


def without_logical_types(kind: Any) -> Any:
    return "long" if kind == TIMESTAMP else [without_logical_types(one) for one in kind] if isinstance(kind, list) else kind


def plain(parsed: dict[str, Any]) -> dict[str, Any]:
    """For fastavro, which makes dates of timestamps."""
    return parsed | {"fields": [field | {"type": without_logical_types(field["type"])} for field in parsed["fields"]]}


def by_fastavro(parsed: dict[str, Any], row: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(plain(parsed)), row)
    return stream.getvalue()


def read_by_fastavro(parsed: dict[str, Any], value: bytes) -> Any:
    """The record, or None where `value` is none exactly."""
    stream = io.BytesIO(value)
    try:
        row = fastavro.schemaless_reader(stream, fastavro.parse_schema(plain(parsed)), None)
    except Exception:
        return None
    return row if stream.tell() == len(value) else None


class Strict:
    """The specification again, as plainly as can be: raises ValueError on anything that it does not allow."""

    def __init__(self, value: bytes) -> None:
        self.value, self.at = value, 0

    def take(self, length: int) -> bytes:
        if not 0 <= length <= len(self.value) - self.at:
            raise ValueError
        self.at += length
        return self.value[self.at - length : self.at]

    def long(self) -> int:
        bits = 0
        for place in range(10):
            (octet,) = self.take(1)
            bits |= (octet & 0x7F) << 7 * place
            if octet < 0x80:
                if bits >= 2**64:
                    raise ValueError
                return (bits >> 1) ^ -(bits & 1)
        raise ValueError

    def strings(self) -> list[str]:
        found: list[str] = []
        while count := self.long():
            size = self.long() if count < 0 else None
            end = None if size is None else self.at + size
            if size is not None and (size < 0 or self.at + size > len(self.value)):
                raise ValueError
            if abs(count) > len(self.value):
                raise ValueError
            found += [self.take(self.long()).decode() for _ in range(abs(count))]
            if end not in (None, self.at):
                raise ValueError
        return found

    def read(self, kind: Any) -> Any:
        if isinstance(kind, list):
            branch = self.long()
            if branch not in (0, 1):
                raise ValueError
            return None if kind[branch] == "null" else self.read(kind[branch])
        if kind == STRINGS:
            return self.strings()
        name = kind["type"] if isinstance(kind, dict) else kind
        if name in ("int", "long"):
            number = self.long()
            if name == "int" and not -(2**31) <= number < 2**31:
                raise ValueError
            return number
        if name == "boolean":
            return {b"\0": False, b"\1": True}[self.take(1)]
        if name in ("float", "double"):
            size, code = (4, "<f") if name == "float" else (8, "<d")
            return struct.unpack(code, self.take(size))[0]
        octets = self.take(self.long())
        return octets.decode() if name == "string" else octets


def read_strictly(parsed: dict[str, Any], value: bytes) -> Any:
    """The record, or None where `value` is none."""
    reader = Strict(value)
    try:
        row = {field["name"]: reader.read(field["type"]) for field in parsed["fields"]}
    except (ValueError, KeyError):
        return None
    return row if reader.at == len(value) else None


def listed(kind: Any, given: Any) -> list[Any]:
    """A column as Python values, without the code under test."""
    inner = next(one for one in kind if one != "null") if isinstance(kind, list) else kind
    name = inner["type"] if isinstance(inner, dict) else inner
    if isinstance(given, Varlen):
        read = {"bytes": bytes, "array": lambda value: list(unpack_strings(value))}.get(name, bytes.decode)
        return [None if start < 0 else read(given[place]) for place, start in enumerate(given.starts.tolist())]
    if isinstance(kind, list):
        whole = {"boolean": bool, "int": int, "long": int}.get(name, float)
        return [None if math.isnan(value) else whole(value) for value in given.tolist()]
    return given.tolist()


def rows_of(parsed: dict[str, Any], columns: dict[str, Any]) -> list[dict[str, Any]]:
    lists = {field["name"]: listed(field["type"], columns[field["name"]]) for field in parsed["fields"]}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def columns_of(parsed: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {field["name"]: column(field["type"], [row[field["name"]] for row in rows]) for field in parsed["fields"]}


@PATIENTLY
@given(tables())
def test_columns_become_the_bytes_that_fastavro_writes(table):
    """
    For any flat schema, nullable fields and empty batches included.
    """
    parsed, rows = table
    assert [by_fastavro(parsed, row) for row in rows] == Codec(parsed).encode(columns_of(parsed, rows)).tolist()


@PATIENTLY
@given(tables())
def test_what_fastavro_writes_becomes_columns(table):
    """
    For any flat schema, and none of the records is marked bad.
    """
    parsed, rows = table
    columns, bad = Codec(parsed).decode(Varlen.of(by_fastavro(parsed, row) for row in rows))
    assert rows == rows_of(parsed, columns)
    assert not bad.any()
    assert len(bad) == len(rows)


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
    """A flat schema, good records of it, and the same with bytes changed, added and cut off."""
    parsed, rows = draw(tables().filter(lambda table: len(table[1]) > 0))
    good = [by_fastavro(parsed, row) for row in rows]
    damaged = []
    for value in good:
        octets = bytearray(value)
        for _ in range(draw(st.integers(0, 3))):
            place = draw(st.integers(0, len(octets)))
            end = place + draw(st.integers(0, 2))
            octets[place:end] = draw(st.binary(max_size=3) | st.sampled_from([b"\xff" * 9 + b"\x01", b"\x01", b"\x80" * 12, b"\x80\x00"]))
        damaged.append(bytes(octets))
    return parsed, good, damaged


def same(one: Any, other: Any) -> bool:
    """Equal, where a null of a number is NaN, and a NaN equal to itself."""
    if one is None or other is None or isinstance(one, float) or isinstance(other, float):
        return repr(math.nan if one is None else one) == repr(math.nan if other is None else other) or one == other
    return bool(one == other)


@PATIENTLY
@given(spoilt())
def test_a_record_is_bad_exactly_when_the_specification_does_not_allow_it(case):
    """
    Whatever bytes there are, in the middle of others: as the plain decoder above says, in mask and in values.
    """
    parsed, good, damaged = case
    batch = [value for pair in zip(good, damaged, strict=True) for value in pair]
    assume(sum(map(len, batch)) < 5_000)
    columns, bad = Codec(parsed).decode(Varlen.of(batch))
    expected = [read_strictly(parsed, value) for value in batch]
    assert [row is None for row in expected] == bad.tolist()
    for row, wanted in zip(rows_of(parsed, {name: take(one, ~bad) for name, one in columns.items()}), filter(None, expected), strict=True):
        big = [name for name, value in wanted.items() if type(value) is int and abs(value) > 2**53]
        assert all(same(row[name], wanted[name]) for name in row if name not in big)


@PATIENTLY
@given(spoilt())
def test_nothing_is_let_in_that_fastavro_would_not_read_alike(case):
    """
    What fastavro cannot read exactly is bad, and what is good reads the same in both.
    """
    parsed, _, damaged = case
    columns, bad = Codec(parsed).decode(Varlen.of(damaged))
    rows = iter(rows_of(parsed, {name: take(one, ~bad) for name, one in columns.items()}))
    for value, is_bad in zip(damaged, bad.tolist(), strict=True):
        theirs = read_by_fastavro(parsed, value)
        if theirs is None:
            assert is_bad
        elif not is_bad:
            ours = next(rows)
            big = [name for name, one in theirs.items() if type(one) is int and abs(one) > 2**53]
            assert all(same(ours[name], theirs[name]) for name in ours if name not in big)


@PATIENTLY
@given(st.binary(max_size=60))
def test_no_bytes_whatever_stop_the_decoder(value):
    """
    Noise is bad or good, and never an error, for each of our own schemas and in arrays, whose counts may be anything.
    """
    for message in ("answer", "dead_letter", "tick", "deployment"):
        codec = Codec(schema(message))
        columns, bad = codec.decode(Varlen.of([value]))
        assert (len(columns), len(bad)) == (len(codec.fields), 1)


@pytest.mark.parametrize(
    ("kind", "octets"),
    [
        ("long", b"\xff" * 10 + b"\x01"),  # eleven bytes
        ("long", b"\xff" * 9 + b"\x03"),  # more than 64 bits
        ("long", b"\x80"),
        ("int", b"\x80\x80\x80\x80\x10"),  # 2**31
        ("boolean", b"\x02"),
        ("string", b"\x01"),  # a length of -1
        ("string", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"),  # a length of 2**63 - 1
        ("string", b"\x04\xc3("),
        ("string", b"\x06\xed\xa0\x80"),  # a surrogate
        ("string", b"\x04\xc0\x80"),  # overlong
        ("string", b"\x08\xf4\x90\x80\x80"),  # above U+10FFFF
        ("string", b"\x02\xc3"),  # cut within a character
        (["null", "string"], b"\x04\x02a"),
        (["null", "string"], b"\x01\x02a"),
        (STRINGS, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"),  # 2**63 - 1 strings
        (STRINGS, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00"),  # -2**63, which has no opposite
        (STRINGS, b"\x01\x06\x02a\x00"),  # a block that says it is longer
        (STRINGS, b"\x02\x02a"),  # no end
        ("float", b"\0\0\0"),
        ("double", b"\0" * 7),
        ("bytes", b""),
        ("long", b"\0\0"),  # left over
    ],
)
def test_a_bad_record_among_good_ones_is_marked_alone(kind, octets):
    """
    Good neighbours keep their values; the bad one holds zeros; the words name the field and nothing of the payload.
    """
    good = {"boolean": True, "int": 7, "long": 7, "float": 0.5, "double": 0.5, "bytes": b"ok", "string": "ok"}
    value = ["ok"] if kind == STRINGS else "ok" if isinstance(kind, list) else good[kind]
    parsed = record_of([kind])
    right = by_fastavro(parsed, {"f0": value})
    columns, bad = Codec(parsed).decode(Varlen.of([right, octets, right]))
    assert bad.tolist() == [False, True, False]
    given_back = columns["f0"]
    if isinstance(given_back, Varlen):
        assert (given_back[0], given_back[1], given_back[2]) == (given_back[0], b"", given_back[0])
    else:
        assert [value, 0, value] == given_back.tolist()
    words = explain(parsed, octets)
    assert "field f0" in words or "left over" in words


def test_blocks_with_their_size_are_read():
    """
    A writer may give an array in several blocks, each with its size before it.
    """
    octets = b"\x01\x04\x02a\x02\x02b\x00"
    columns, bad = Codec(record_of([STRINGS])).decode(Varlen.of([octets]))
    assert not bad.any()
    assert unpack_strings(columns["f0"][0]) == ("a", "b")


def test_values_are_read_within_their_own_bytes():
    """
    A record whose bytes end early is bad although its neighbour's bytes would complete it; so is one outside the buffer.
    """
    data = Varlen.of([b"\x06abc"]).data
    starts, ends = np.array([0, 0, 2, -1, 3]), np.array([4, 3, 9, 2, 2])
    _, bad = Codec(record_of(["string"])).decode(Varlen(data, starts, ends))
    assert bad.tolist() == [False, True, True, True, True]


def test_columns_have_the_types_that_a_table_promises():
    """
    int64, float32, float64, bool, strings without a copy; a nullable integer is a float.
    """
    types = ["int", TIMESTAMP, "float", "double", "boolean", ["null", "long"], ["null", "boolean"], ["null", "float"]]
    codec = Codec(record_of([*types, "string"]))
    octets = codec.encode({name: [1] if name != "f8" else ["x"] for name in codec.fields})
    columns, _ = codec.decode(octets)
    expected = ["int64", "int64", "float32", "float64", "bool", "float64", "float64", "float32"]
    assert expected == [columns[f"f{n}"].dtype.name for n in range(8)]
    assert columns["f8"].data is octets.data


def test_floats_keep_every_bit():
    """
    Infinities, denormals, signed zeros and NaN come back as they went.
    """
    bits = np.array([0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF], np.uint32)
    codec = Codec(record_of(["float", "double"]))
    singles = bits.view(np.float32)
    columns, bad = codec.decode(codec.encode({"f0": singles, "f1": singles.astype(np.float64)}))
    assert bits.tolist() == columns["f0"].view(np.uint32).tolist()
    assert singles.astype(np.float64).tobytes() == columns["f1"].tobytes()
    assert not bad.any()


def test_a_prefix_goes_before_every_record():
    """
    The frame of a schema id, from which the id is read again.
    """
    framed = Codec(record_of(["string"])).encode({"f0": ["a", "bc"]}, frame(258)).tolist()
    assert framed == [b"\0\0\0\1\2\x02a", b"\0\0\0\1\2\x04bc"]
    assert [schema_id_of(value) for value in framed] == [258, 258]


def test_what_is_not_framed_has_no_id():
    """
    JSON on a topic of Avro is told from it.
    """
    for value in (b"", b"\0\0\0", b'{"a":1}'):
        with pytest.raises(Invalid, match="framing"):
            schema_id_of(value)


@pytest.mark.parametrize(
    ("kind", "given_column", "words"),
    [
        ("int", np.array([2**31]), "more than 32 bits"),
        ("int", np.array([0.5]), "float64 given for an integer"),
        (["null", "int"], np.array([0.5]), "not whole"),
        (["null", "long"], np.array([1e19]), "more than 64 bits"),
        ("string", Varlen.of([b"\xff"]), "UTF-8"),
        ("string", Varlen(np.zeros(1, np.uint8), np.array([-1]), np.array([-1])), "null"),
        ("string", Varlen(np.zeros(1, np.uint8), np.array([0]), np.array([2])), "outside its buffer"),
        ("string", [None], "null"),
        ("long", [None], "does not fit"),
        ("long", ["secret"], "does not fit"),
        ("string", np.array([1]), "numbers given for a string"),
        ("float", Varlen.of([b"1"]), "strings given for a number"),
        ("boolean", np.array([2]), "not all true or false"),
        (STRINGS, [b"\x02"], "array"),
    ],
)
def test_what_would_not_decode_again_is_not_written(kind, given_column, words):
    """
    The words name record and field, and hold nothing of the value.
    """
    with pytest.raises(Invalid, match=r"R\.f0") as caught:
        Codec(record_of([kind])).encode({"f0": given_column})
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_any_number_of_fields_may_lie_in_buffers_of_their_own():
    """
    More of them than a compiled loop takes at once are written in turns; the words about a wrong one still name it.
    """
    kinds = [["null", "string"] if place % 3 else "long" for place in range(6 * BUFFERS_MAX)]
    codec = Codec(record_of(kinds))
    columns = {
        name: np.array([place, -place]) if kind == "long" else Varlen.optional([f"value {place}", None])
        for place, (name, kind) in enumerate(zip(codec.fields, kinds, strict=True))
    }
    decoded, bad = codec.decode(codec.encode(columns))
    assert not bad.any()
    assert all(_plain_values(decoded[name]) == _plain_values(columns[name]) for name in codec.fields)
    last = codec.fields[-1]
    with pytest.raises(Invalid, match=rf"R\.{last}: value 1 is null, no valid UTF-8"):
        codec.encode({**columns, last: Varlen.of([b"good", b"\xff"])})


def _plain_values(given):
    return [given.get(at) for at in range(len(given))] if isinstance(given, Varlen) else given.tolist()


def test_a_missing_or_uneven_column_is_refused_by_name():
    """
    Columns that are no field, though, may be there.
    """
    codec = Codec(record_of(["int", "int"]))
    with pytest.raises(Invalid, match="R: no column f1"):
        codec.encode({"f0": [1]})
    with pytest.raises(Invalid, match="f1 not of the length of f0, which is 1"):
        codec.encode({"f0": [1], "f1": []})
    assert len(codec.encode({"f0": [1], "f1": [2], "other": "x"})) == 1


def test_an_empty_batch_is_encoded_and_decoded():
    """
    No records make no bytes, and the columns are there all the same.
    """
    codec = Codec(schema("answer"))
    columns, bad = codec.decode(Varlen.of([]))
    assert (0, len(codec.fields)) == (len(bad), len(columns))
    assert codec.encode(columns, frame(1)).tolist() == []


def test_records_within_records_are_lists_and_the_rest_columns():
    """
    The control plane's messages decode one by one, to the same kinds of column where a field has one.
    """
    codec = Codec(schema("clock"))
    ends = [[{"topic": "a", "partition": 0, "offset": 7}], []]
    header = {name: [1, 2] for name in codec.fields[:6]}
    octets = codec.encode({**header, "time": [5, 6], "deployment": [0, 0], "ends": ends, "last": [False, True]}).tolist()
    columns, bad = codec.decode(Varlen.of([octets[0], octets[1] + b"x", octets[0][:-3]]))
    assert bad.tolist() == [False, True, True]
    assert not codec.flat
    assert columns["time"].tolist() == [5, 0, 0]
    assert [ends[0], None, None] == columns["ends"]
    assert "bytes that are no Clock" in codec.explain(octets[0][:-3])


def test_a_record_within_a_record_that_does_not_fit_is_refused():
    """
    The words name the message and hold nothing of the value.
    """
    codec = Codec(schema("clock"))
    columns = {name: [0] for name in codec.fields} | {"ends": [[{"topic": "secret"}]], "last": [True]}
    with pytest.raises(Invalid, match="Clock: a record does not fit") as caught:
        codec.encode(columns)
    assert "secret" not in str(caught.value)


@PATIENTLY
@given(st.lists(st.text(max_size=200), max_size=80))
def test_strings_are_packed_as_avro_packs_them(texts):
    """
    And come back as they were.
    """
    assert by_fastavro(record_of([STRINGS]), {"f0": texts}) == pack_strings(texts)
    assert tuple(texts) == unpack_strings(pack_strings(texts))


def test_what_is_no_array_of_strings_is_refused():
    """
    Bytes cut off, and bytes left over.
    """
    for octets in (b"", b"\x02\x04a", b"\0\0"):
        with pytest.raises(Invalid, match="array of strings"):
            unpack_strings(octets)


def test_words_for_a_bad_record_hold_nothing_of_it():
    """
    They name the field, its type and how many bytes there are.
    """
    parsed = record_of(["string", TIMESTAMP])
    assert explain(parsed, b"\x0csecret\x80") == "field f1 is no timestamp-millis, or is cut off (8 bytes in all)"
    assert explain(parsed, b"\x0csecret\x02secret") == "bytes are left over after the last field of R"
    assert explain(parsed, b"\x0csecret\x02") == "the record decodes"


def test_types_without_a_column_are_told_apart():
    """
    Enums, maps, wider unions and arrays of anything else are the control plane's.
    """
    others = [
        {"type": "enum", "name": "E", "symbols": ["A"]},
        {"type": "map", "values": "string"},
        ["null", "string", "long"],
        ["null", "null"],
        {"type": "array", "items": "long"},
        {"type": "fixed", "name": "F", "size": 4},
        "R",
    ]
    assert [None] * len(others) == [flat_type(kind) for kind in others]


def test_only_records_have_a_codec():
    """
    Anything else is refused in words.
    """
    for parsed in ({"type": "string"}, {}, ["null", "string"]):
        with pytest.raises(Invalid, match="must be a record"):
            Codec(parsed)


def test_warming_runs_every_loop():
    """
    After it, no record has to wait for a compiler.
    """
    warm()
