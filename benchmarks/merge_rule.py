"""
Intake's rule, written again: from what the upstream topics hold and what the clock said, the one log that must come out. The flights
pipeline in replay; plain Python, fastavro, and nothing of driftline.

Each source partition keeps its order: a record counts as visible when the newest before it was, if that is later. A clock record opens the
log up to its time, for what lies below its end offsets. Within what it opens records go by that time, then stream, partition, offset;
a tick goes before everything at its time. Whatever was opened by an earlier clock record comes before.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import fastavro

TICK_MS = 600_000
AHEAD_MAX_MS = 5 * 60_000
TIME_MAX_MS = 4_102_444_800_000
UPSTREAM = 16
TICK = 0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "flights"


@dataclass(frozen=True)
class Stream:
    """What the pipeline declares of an upstream topic; all of them are broadcast."""

    number: int
    topic: str
    file: str
    id: str
    key: str
    time: str
    visible: str

    def fields(self) -> dict[str, Any]:
        """The schema without logical types, so that times stay numbers."""
        schema: dict[str, Any] = json.loads((PIPELINE / self.file).read_text())
        return plain(schema)


STREAMS = (
    Stream(0, "flights", "flight.v1.avsc", "flight_id", "tail", "asked_at", "asked_at"),
    Stream(1, "departures", "departure.v1.avsc", "flight_id", "tail", "departed_at", "departed_at"),
    Stream(2, "arrivals", "arrival.v1.avsc", "flight_id", "tail", "arrived_at", "arrived_at"),
    Stream(3, "weather", "weather.v1.avsc", "report_id", "origin", "hour", "published_at"),
)


def plain(schema: Any) -> Any:
    """A schema in which every logical type is what it is made of."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if isinstance(schema, dict):
        if "logicalType" in schema:
            return schema["type"]
        return {name: plain(one) if name in ("type", "fields", "items") else one for name, one in schema.items()}
    return schema


@dataclass(frozen=True, eq=False)
class Taken:
    """A record that must be on the log."""

    stream: int
    partition: int
    offset: int
    id: str
    key: str
    time: int
    visible: int
    body: bytes
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """A record that must be among the dead letters."""

    topic: str
    partition: int
    offset: int
    reason: str
    value: bytes


@dataclass(frozen=True)
class ClockRecord:
    """Up to `until` everything is there, up to the end offsets by (topic, partition); ticks name the deployment."""

    until: int
    deployment: int
    ends: Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Tick:
    """A tick that must be on every partition."""

    number: int
    deployment: int


class Reader:
    """Reads the records of one stream as intake must."""

    def __init__(self, stream: Stream, schemas: Any) -> None:
        self._stream = stream
        self._schemas = schemas
        self._wanted = fastavro.parse_schema(stream.fields())
        kinds = {"string": str, "int": int, "long": int}
        self._types = {field["name"]: kinds.get(str(field["type"]), object) for field in stream.fields()["fields"]}
        self._times = {
            field["name"]
            for field in json.loads((PIPELINE / stream.file).read_text())["fields"]
            if isinstance(field["type"], dict) and field["type"].get("logicalType")
        }

    def read(self, value: bytes) -> tuple[dict[str, Any] | None, str]:
        """The fields, or None and the reason."""
        if not value:
            return None, "undecodable"
        fields, reason = self._avro(value) if value[0] == 0 and len(value) >= 5 else self._json(value)
        if fields is None:
            return None, reason
        stream = self._stream
        if not fields[stream.id]:
            return None, "missing_id"
        if not fields[stream.key]:
            return None, "contract"
        if not all(0 <= fields[name] < TIME_MAX_MS for name in (stream.time, stream.visible)):
            return None, "bad_time"
        return fields, ""

    def body(self, fields: Mapping[str, Any]) -> bytes:
        """Avro by the stream's schema."""
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._wanted, dict(fields))
        return out.getvalue()

    def _avro(self, value: bytes) -> tuple[dict[str, Any] | None, str]:
        schema = self._schemas.get(int.from_bytes(value[1:5], "big"))
        if schema is None:
            return None, "schema"
        stream = io.BytesIO(value[5:])
        try:
            fields = fastavro.schemaless_reader(stream, schema, None)
        except Exception:  # whatever fastavro raises at bytes that are no record
            return None, "undecodable"
        return (dict(fields), "") if stream.tell() == len(value) - 5 else (None, "undecodable")  # type: ignore[call-overload]

    def _json(self, value: bytes) -> tuple[dict[str, Any] | None, str]:
        try:
            told = json.loads(value)
        except ValueError:
            return None, "undecodable"
        if not isinstance(told, dict):
            return None, "contract"
        fields: dict[str, Any] = {}
        for name, kind in self._types.items():
            if name not in told:
                return None, "missing_id" if name == self._stream.id else "contract"
            value = fields[name] = self._number(told[name]) if name in self._times else told[name]
            if type(value) is not kind:
                return None, "contract"
        return fields, ""

    def _number(self, value: Any) -> Any:
        """A time in RFC 3339 as milliseconds; a number as it is."""
        return (datetime.fromisoformat(value) - EPOCH) // timedelta(milliseconds=1) if isinstance(value, str) else value


@dataclass
class Expected:
    """The log as it must be, without what is said by partition: records and ticks in order, and what must be refused."""

    log: list[Taken | Tick]
    refused: list[Refusal]


def opened(clock: Sequence[ClockRecord], place: tuple[str, int]) -> list[int]:
    """By clock record, the end of a source partition."""
    return [record.ends.get(place, 0) for record in clock]


def expected(upstream: Mapping[tuple[str, int], Sequence[tuple[int, bytes]]], clock: Sequence[ClockRecord], schemas: Any) -> Expected:
    """`upstream` has offset and value of every record by (topic, partition), in order."""
    keyed: list[tuple[tuple[int, int, int, int, int, int], Taken | Tick]] = []
    refused: list[Refusal] = []
    for stream in STREAMS:
        reader = Reader(stream, schemas)
        for (topic, partition), records in sorted(upstream.items()):
            if topic == stream.topic:
                _merge(stream, reader, partition, records, clock, keyed, refused)
    first = min((time for (_, time, *_), _ in keyed), default=0)
    keyed += _ticks(clock, first)
    keyed.sort(key=lambda one: one[0])
    return Expected([one for _, one in keyed], refused)


def _merge(
    stream: Stream,
    reader: Reader,
    partition: int,
    records: Sequence[tuple[int, bytes]],
    clock: Sequence[ClockRecord],
    keyed: list[tuple[tuple[int, int, int, int, int, int], Taken | Tick]],
    refused: list[Refusal],
) -> None:
    ends, newest, covered, goes = opened(clock, (stream.topic, partition)), 0, 0, 0
    for offset, value in records:
        while covered < len(clock) and ends[covered] <= offset:
            covered += 1
        if covered == len(clock):
            return  # nobody has said yet that it is complete so far
        fields, reason = reader.read(value)
        if fields is not None and fields[stream.visible] > clock[covered].until + AHEAD_MAX_MS:
            fields, reason = None, "future"
        if fields is None:
            refused.append(Refusal(stream.topic, partition, offset, reason, value))
            continue
        visible = fields[stream.visible]
        newest = max(newest, visible)
        goes = max(goes, covered)
        while goes < len(clock) and clock[goes].until <= newest:
            goes += 1
        if goes == len(clock):
            return
        told = Taken(
            stream.number,
            partition,
            offset,
            fields[stream.id],
            fields[stream.key],
            fields[stream.time],
            visible,
            reader.body(fields),
            fields,
        )
        keyed.append(((goes, newest, 1, stream.number, partition, offset), told))


def _ticks(clock: Sequence[ClockRecord], first: int) -> list[tuple[tuple[int, int, int, int, int, int], Taken | Tick]]:
    """From the last tick before the first record on, every one, in what the first clock record opens that reaches it."""
    found: list[tuple[tuple[int, int, int, int, int, int], Taken | Tick]] = []
    number = first // TICK_MS
    for at, record in enumerate(clock):
        while number * TICK_MS <= record.until:
            found.append(((at, number * TICK_MS, 0, 0, 0, number), Tick(number, record.deployment)))
            number += 1
    return found


@cache
def murmur2(key: bytes) -> int:
    """The hash by which Kafka's Java client places keys, as an unsigned number of 32 bits without its sign."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ len(key)) & mask
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = h * m & mask ^ k
    rest = key[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return (h ^ (h >> 15)) & 0x7FFFFFFF
