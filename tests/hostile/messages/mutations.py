"""
Good messages made bad, in every way that we could think of: bytes that changed, JSON and Avro that says what it must not, and
messages that decode well and are absurd all the same. Chance comes with a seed.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import fastavro

from driftline.contracts.messages import schema

FRAME_BYTES = 5
GIANT_BYTES = 1 << 20
GIANT_SHARE = 0.02  # of what may be giant, so that a run is not all copying
ABSURD_TIMES = (0, -1, -(2**63), 2**63 - 1, 253_402_300_799_000, -62_135_596_800_000, 1_700_000_000, 4_102_444_800_000, 2**53)
ABSURD_OFFSETS = (-1, -(2**62), 2**62, 2**63 - 1, 2**48)
ABSURD_NUMBERS = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 2.0, -0.5)
ABSURD_INTS = (-1, -2, 2, 8, 2**31 - 1, -(2**31))


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a log, without its place."""

    key: bytes | None
    value: bytes | None


def _flat(kind: Any) -> Any:
    """A schema without logical types, so that times stay the numbers that they are."""
    if isinstance(kind, list):
        return [_flat(one) for one in kind]
    if isinstance(kind, dict):
        if "logicalType" in kind:
            return kind["type"]
        return {name: _flat(value) if name in ("type", "items", "fields") else value for name, value in kind.items()}
    return kind


@cache
def _parsed(message: str) -> Any:
    return fastavro.parse_schema(_flat(schema(message)))


class Mutations:
    """Mutants of the records of one topic. `kinds` names every way to make one; `of` makes one."""

    def __init__(self, chance: random.Random, messages: Mapping[int, str], bodies: Callable[[], bytes] | None = None) -> None:
        """`messages` says which schema ids are which messages of ours; without any, records are those of an upstream application."""
        self._chance = chance
        self._messages = messages
        self.kinds: dict[str, Callable[[Record], Record]] = {
            "bit flip": self._bit_flip,
            "truncated": self._truncated,
            "bytes appended": self._appended,
            "huge length": self._huge_length,
            "wrong schema id": self._wrong_schema_id,
            "no frame": self._no_frame,
            "tombstone": lambda record: Record(record.key, None),
            "empty value": lambda record: Record(record.key, b""),
            "empty key": lambda record: Record(b"", self._bit_flip(record).value),
            "giant key": self._giant_key,
            "giant value": self._giant_value,
            "random bytes": lambda record: Record(record.key, chance.randbytes(chance.randrange(1, 200))),
            "invalid UTF-8": self._invalid_text,
            "deep nesting": self._deep,
        }
        if messages:
            self.kinds |= {
                "absurd coordinate": self._coordinate,
                "absurd time": self._time,
                "absurd number": self._number,
                "absurd text": self._text,
                "unknown deployment": self._deployment,
                "row of another length": self._row,
                "tick ahead or backwards": self._tick,
                "body of another shape": self._body,
            }
        else:
            self.kinds |= {
                "wrong type": self._wrong_type,
                "NaN or infinity": self._not_finite,
                "absurd date": self._date,
                "duplicated key": self._duplicated,
                "number of 10,000 digits": self._digits,
                "field missing": self._missing,
            }
        self._names = list(self.kinds)

    def of(self, record: Record) -> tuple[str, Record]:
        """A mutant, and which kind it is."""
        kind = self._chance.choice(self._names)
        return kind, self.kinds[kind](record)

    # Bytes.

    def _bit_flip(self, record: Record) -> Record:
        value = bytearray(record.value or b"\0")
        for _ in range(self._chance.choice((1, 1, 1, 2, 8))):
            value[self._chance.randrange(len(value))] ^= 1 << self._chance.randrange(8)
        return Record(record.key, bytes(value))

    def _truncated(self, record: Record) -> Record:
        value = record.value or b""
        return Record(record.key, value[: self._chance.randrange(max(1, len(value)))])

    def _appended(self, record: Record) -> Record:
        return Record(record.key, (record.value or b"") + self._chance.randbytes(self._chance.randrange(1, 64)))

    def _huge_length(self, record: Record) -> Record:
        value = record.value or b""
        at = self._chance.randrange(min(FRAME_BYTES, len(value)), len(value) + 1)
        length = self._chance.choice((b"\xfe\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x80" * 12, b"\x01"))
        return Record(record.key, value[:at] + length + value[at:])

    def _wrong_schema_id(self, record: Record) -> Record:
        other = self._chance.choice((*self._messages, 0, 1, 2, 99_999, 2**31 - 1, self._chance.randrange(2**32)))
        return Record(record.key, b"\0" + other.to_bytes(4, "big") + (record.value or b"")[FRAME_BYTES:])

    def _no_frame(self, record: Record) -> Record:
        return Record(record.key, self._chance.choice((b"\x01", b"\0", b"\0\0\0\0", b"{}", b"[]", b"null", b"0", b'""', b"\xef\xbb\xbf{}")))

    def _giant(self) -> int:
        return GIANT_BYTES if self._chance.random() < GIANT_SHARE else self._chance.choice((1_025, 4_096, 70_000))

    def _giant_key(self, record: Record) -> Record:
        return Record(b"k" * self._giant(), self._truncated(record).value)

    def _giant_value(self, record: Record) -> Record:
        return Record(record.key, (record.value or b"")[:FRAME_BYTES] + b"\x7b" * self._giant())

    def _invalid_text(self, record: Record) -> Record:
        value = record.value or b""
        at = self._chance.randrange(min(FRAME_BYTES + 6, len(value)), len(value) + 1)
        bad = self._chance.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"))
        return Record(record.key, value[:at] + bad + value[at + len(bad) :])

    def _deep(self, record: Record) -> Record:
        depth = self._chance.choice((100, 1_000, 20_000))
        opening, closing = self._chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
        nested = opening * depth + b"1" + closing * depth
        if self._messages:
            return self._with_body(record, nested)
        return Record(record.key, self._told(record, nested))

    # JSON of an upstream application.

    def _told(self, record: Record, value: bytes) -> bytes:
        """The JSON of the record with one field replaced by the text `value`."""
        fields = self._fields(record)
        name = self._chance.choice(list(fields))
        parts = [json.dumps(key).encode() + b":" + (value if key == name else json.dumps(told).encode()) for key, told in fields.items()]
        return b"{" + b",".join(parts) + b"}"

    def _fields(self, record: Record) -> dict[str, Any]:
        try:
            told = json.loads(record.value or b"")
        except ValueError:
            told = None  # it is Avro
        return told if isinstance(told, dict) and told else {"flight_id": "x", "tail": "y"}

    def _wrong_type(self, record: Record) -> Record:
        return Record(
            record.key, self._told(record, self._chance.choice((b"null", b"true", b"[]", b"{}", b'"12,50"', b"1.5", b'""', b"-0")))
        )

    def _not_finite(self, record: Record) -> Record:
        return Record(
            record.key, self._told(record, self._chance.choice((b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e308")))
        )

    def _date(self, record: Record) -> Record:
        dates = (
            *(str(time) for time in ABSURD_TIMES),
            str(2**64),
            str(10**30),
            '"0001-01-01T00:00:00+23:59"',
            '"9999-12-31T23:59:59-23:59"',
        )
        texts = (
            '"0000-01-01T00:00:00Z"',
            '"-001-01-01T00:00:00Z"',
            '"2023-02-30T00:00:00Z"',
            '"2023-11-14T22:13:20"',
            '"99999-01-01T00:00:00Z"',
        )
        fields = self._fields(record)
        name = self._chance.choice([name for name in fields if name.endswith("_at") or name == "hour"] or list(fields))
        told = self._chance.choice(dates + texts)
        parts = [json.dumps(key) + ":" + (told if key == name else json.dumps(value)) for key, value in fields.items()]
        return Record(record.key, ("{" + ",".join(parts) + "}").encode())

    def _duplicated(self, record: Record) -> Record:
        told = self._told(record, b"null")
        return Record(record.key, told[:-1] + b"," + self._told(record, b'"again"')[1:])

    def _digits(self, record: Record) -> Record:
        return Record(record.key, self._told(record, self._chance.choice((b"9" * 10_000, b"0." + b"9" * 10_000, b"-" + b"1" * 10_000))))

    def _missing(self, record: Record) -> Record:
        fields = self._fields(record)
        del fields[self._chance.choice(list(fields))]
        return Record(record.key, json.dumps(fields).encode())

    # Messages of ours that decode well.

    def _changed(self, record: Record, change: Callable[[dict[str, Any]], None]) -> Record:
        """The record with fields changed, or with a bit flipped where there is nothing to change or no room for it."""
        value = record.value or b""
        message = self._messages.get(int.from_bytes(value[1:FRAME_BYTES], "big"))
        if message is None:
            return self._bit_flip(record)
        told = fastavro.schemaless_reader(io.BytesIO(value[FRAME_BYTES:]), _parsed(message), None)
        out = io.BytesIO()
        try:
            change(told)
            fastavro.schemaless_writer(out, _parsed(message), told)
        except (KeyError, IndexError, OverflowError, ValueError, TypeError):
            return self._bit_flip(record)
        changed = value[:FRAME_BYTES] + out.getvalue()
        return self._bit_flip(record) if changed == value else Record(record.key, changed)

    def _coordinate(self, record: Record) -> Record:
        name = self._chance.choice(("source", "partition", "offset", "index", "event_offset", "writer"))
        large = name in ("offset", "event_offset")
        told = self._chance.choice(ABSURD_OFFSETS if large else (-1, 1 << 16, 1 << 24, 2**31 - 1, -(2**31), 99))
        return self._changed(record, lambda fields: fields.update({name: told}))

    def _one_of(self, fields: dict[str, Any], names: tuple[str, ...], told: Any) -> None:
        fields[self._chance.choice([name for name in names if name in fields])] = told

    def _time(self, record: Record) -> Record:
        told = self._chance.choice((*ABSURD_TIMES, 2**62, -5))
        return self._changed(record, lambda fields: self._one_of(fields, ("time", "visible", "asked", "known", "start", "end"), told))

    def _number(self, record: Record) -> Record:
        def change(fields: dict[str, Any]) -> None:
            numbers = [name for name in ("score", "share", "fallback_score") if name in fields]
            ints = [name for name in ("label", "flags", "revision", "answer_index", "version", "rows", "deployment") if name in fields]
            name = self._chance.choice(numbers + ints)
            fields[name] = self._chance.choice(ABSURD_NUMBERS if name in numbers else ABSURD_INTS)

        return self._changed(record, change)

    def _text(self, record: Record) -> Record:
        told = self._chance.choice(("", "\0", "x" * 1_025, "../../etc/passwd", "\U0010ffff", "x" * self._giant()))
        names = ("id", "key", "layout", "arm", "model", "digest", "origin", "kind", "action", "salt", "outcome", "trigger", "verdict")
        return self._changed(record, lambda fields: self._one_of(fields, names, told))

    def _deployment(self, record: Record) -> Record:
        told = self._chance.choice((-1, 77, 2**31 - 1))
        return self._changed(record, lambda fields: self._one_of(fields, ("deployment", "version"), told))

    def _row(self, record: Record) -> Record:
        told = self._chance.choice((b"", b"\0", b"\xff" * 7, b"\0" * 400, b"\0\0\x80\x7f" * 50))

        def change(fields: dict[str, Any]) -> None:
            self._one_of(fields, ("row", "body"), told if isinstance(fields.get("row", fields.get("body")), bytes) else "{}")

        return self._changed(record, change)

    def _tick(self, record: Record) -> Record:
        def change(fields: dict[str, Any]) -> None:
            by = self._chance.choice((1, -1)) * self._chance.choice((1_000, 10**6, 10**9))
            name = self._chance.choice(("both", "time", "offset"))
            fields["time"] += by * 600_000 if name != "offset" else 0
            fields["offset"] += by if name != "time" else 0

        return self._changed(record, change)

    def _with_body(self, record: Record, text: bytes) -> Record:
        def change(fields: dict[str, Any]) -> None:
            name = "body" if "body" in fields else "evidence"
            fields[name] = text if isinstance(fields[name], bytes) else text.decode()

        return self._changed(record, change)

    def _body(self, record: Record) -> Record:
        """Free JSON where there is some, with one value deep inside changed."""

        def change(fields: dict[str, Any]) -> None:
            name = "body" if "body" in fields else "evidence"
            told = json.loads(fields[name])
            self._spoil(told)
            fields[name] = json.dumps(told)

        return self._changed(record, change)

    def _spoil(self, told: Any) -> None:
        while True:
            at = self._chance.choice(list(told) if isinstance(told, dict) else range(len(told)))
            if not isinstance(told[at], dict | list) or not told[at] or self._chance.random() < 0.2:
                told[at] = self._chance.choice((None, "text", -1, 1.5, 10**30, [], {}, [1, 2], {"n": "x"}, True, 2**62))
                return
            told = told[at]
