"""
Messages as dicts, to and from the bytes on a log, by fastavro: none of driftline's own encoding takes part in the checks.
"""

from __future__ import annotations

import functools
import io
import math
import struct
from typing import Any

import fastavro

from driftline.contracts.messages import MESSAGES, schema

from .world import REGISTRY

Fields = dict[str, Any]
HEADER = ("writer", "source", "partition", "offset", "index")


@functools.cache
def _parsed(message: str) -> tuple[Any, bytes]:
    declared = schema(message)
    number = REGISTRY.register(f"driftline.{declared['name']}", declared)
    return fastavro.parse_schema(_without_times(declared)), struct.pack(">bI", 0, number)


def _without_times(kind: Any) -> Any:
    """The same schema with times as the numbers that they are on the log."""
    if isinstance(kind, dict):
        return {key: _without_times(value) for key, value in kind.items() if key != "logicalType"}
    return [_without_times(part) for part in kind] if isinstance(kind, list) else kind


@functools.cache
def _by_number() -> dict[bytes, tuple[str, Any]]:
    return {_parsed(message)[1]: (message, _parsed(message)[0]) for message in MESSAGES}


def encoded(message: str, fields: Fields) -> bytes:
    """One message as it lies on a log."""
    parsed, prefix = _parsed(message)
    out = io.BytesIO()
    out.write(prefix)
    fastavro.schemaless_writer(out, parsed, fields)
    return out.getvalue()


def decoded(value: bytes | None) -> Fields | None:
    """The message with its fields, its kind under `message`; None for what is no message of ours."""
    found = _by_number().get((value or b"")[:5])
    if found is None or value is None:
        return None
    try:
        fields = fastavro.schemaless_reader(io.BytesIO(value[5:]), found[1], None)
    except Exception:  # hostile bytes raise anything
        return None
    assert isinstance(fields, dict)
    for name in ("score",):
        if name in fields and math.isnan(fields[name]):
            fields[name] = "nan"
    return {"message": found[0], **fields}


@functools.cache
def body_schema(key: tuple[str, str]) -> Any:
    """The schema of a stream of a pipeline, by the names of both, times as numbers."""
    from .world import pipeline

    stream = next(one for one in pipeline(key[0]).streams if one.name == key[1])
    return fastavro.parse_schema(_without_times(dict(stream.schema)))


def body(pipeline: str, stream: str, fields: Fields) -> bytes:
    """One record of a stream in Avro, without a frame."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, body_schema((pipeline, stream)), fields)
    return out.getvalue()


def body_fields(pipeline: str, stream: str, data: bytes) -> Fields:
    """The inverse of `body`."""
    fields = fastavro.schemaless_reader(io.BytesIO(data), body_schema((pipeline, stream)), None)
    assert isinstance(fields, dict)
    return fields


def lane(fields: Fields) -> tuple[int, int, int]:
    """Writer, source, partition."""
    return fields["writer"], fields["source"], fields["partition"]


def single(x: float) -> float:
    """The nearest float of four bytes."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])
