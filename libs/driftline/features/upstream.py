"""
What a record of an upstream topic has to be, by column: times that can be, an id and a key, numbers that can be kept, names of some
length; personal fields become tokens. Who takes records in, from a topic or from a file, takes and refuses the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from driftline.contracts.bounds import NAME_BYTES_MAX, TIME_MS_MAX, TIME_MS_MIN
from driftline.definition import type_of
from driftline.errors import Fatal
from driftline.pipeline import Pipeline, Stream
from driftline.stream.batch import Column, Ints, Refused, Varlen, take

Bools = npt.NDArray[np.bool_]

FUTURE_MS_MAX = 5 * 60_000
PAST_MS_MAX = 3_653 * 86_400_000  # ten years: seconds that were sent for milliseconds are of January 1970
EXACT_MAX = 2**53  # of a whole number that may be null: its column is one of doubles
TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """
    The records that are good: their places among those that were looked at, ascending, and their columns by the stream's schema, personal
    fields as tokens. Times are milliseconds UTC.
    """

    places: Ints
    columns: Mapping[str, Column]
    ids: Varlen
    keys: Varlen
    times: Ints
    visible: Ints


def names_of(pipeline: Pipeline) -> set[str]:
    """Text fields that become parts of keys in the store and on the log, of entities and slices, beside id and key."""
    return {*pipeline.slices, *(field for view in pipeline.views for field in view.by)}


class Contract:
    """
    What is asked of the records of one stream. `names` are fields whose values are kept short, beside id and key.

    Raises Fatal when the stream has personal fields and there is no key for their tokens.
    """

    def __init__(self, stream: Stream, pii_key: bytes, names: Collection[str] = ()) -> None:
        if stream.pii and not pii_key:
            raise Fatal(f"DRIFTLINE_PII_KEY is not set, and {stream.topic} has personal fields: {', '.join(stream.pii)}")
        self._stream = stream
        self._types = {field["name"]: type_of(field["type"]) for field in stream.schema["fields"]}
        self._pii_key = pii_key
        self._names = sorted({stream.id, stream.key, *names} & self._types.keys())

    def check(self, offsets: Ints, given: Mapping[str, Column], clock_ms: int | None) -> tuple[Taken, list[Refused]]:
        """
        Everything good among n records with these `offsets`, in order, and everything else with its reason. `clock_ms` is the pipeline's
        clock, where there is one.
        """
        stream = self._stream
        columns = {name: self._tokens(given[name]) if name in stream.pii else given[name] for name in self._types}
        ids, keys = texts_of(columns[stream.id]), texts_of(columns[stream.key])
        times, visible = np.asarray(columns[stream.time], np.int64), np.asarray(columns[stream.visible], np.int64)
        checks = [
            (ids.ends <= ids.starts, "missing_id", f'"{stream.id}" is empty'),
            (keys.ends <= keys.starts, "contract", f'"{stream.key}", the key, is empty'),
            (_absurd(times) | _absurd(visible), "bad_time", f'"{stream.time}" or "{stream.visible}" is not between 1970 and 2100'),
            *self._against(clock_ms, visible),
            *self._unfit(columns),
        ]
        good = np.ones(len(offsets), np.bool_)
        refused = []
        for bad, reason, detail in checks:
            if bad.any():
                refused += [Refused(int(offset), reason, detail) for offset in offsets[bad & good]]
                good &= ~bad
        if good.all():
            return Taken(np.arange(len(offsets)), columns, ids, keys, times, visible), refused
        kept = {name: take(column, good) for name, column in columns.items()}
        return Taken(np.flatnonzero(good), kept, ids.take(good), keys.take(good), times[good], visible[good]), refused

    def _against(self, clock_ms: int | None, visible: Ints) -> Iterator[tuple[Bools, str, str]]:
        if clock_ms is not None:
            name = self._stream.visible
            yield visible < clock_ms - PAST_MS_MAX, "bad_time", f'"{name}" is more than ten years behind the pipeline\'s clock'
            yield visible > clock_ms + FUTURE_MS_MAX, "future", f'"{name}" is more than five minutes ahead of the pipeline\'s clock'

    def _unfit(self, columns: Mapping[str, Column]) -> Iterator[tuple[Bools, str, str]]:
        """Values of the right type that would do harm further on: no numbers, numbers that cannot be kept, names without end."""
        for name, kind in self._types.items():
            values, plain = columns[name], kind.rstrip("?")
            if not isinstance(values, np.ndarray):
                continue
            if plain in ("float", "double"):
                yield (np.isinf(values) if kind.endswith("?") else ~np.isfinite(values)), "contract", f'"{name}" is no finite number'
            elif kind.endswith("?"):
                yield np.abs(values) > EXACT_MAX, "contract", f'"{name}" is beyond 2**53, so it cannot be kept exactly where it may be null'
        for name in self._names:
            text = texts_of(columns[name])
            yield text.ends - text.starts > NAME_BYTES_MAX, "too_large", f'"{name}" is of more than {NAME_BYTES_MAX} bytes'

    def _tokens(self, column: Column) -> Varlen:
        """A keyed hash instead of each value: the same token for the same value, and no way back without the key."""
        values = column.tolist() if isinstance(column, Varlen) else [str(value).encode() for value in column]
        return Varlen.of(hmac.new(self._pii_key, value, hashlib.sha256).hexdigest()[: 2 * TOKEN_BYTES] for value in values)


def texts_of(column: Column) -> Varlen:
    """A text column as it is; numbers as text."""
    return column if isinstance(column, Varlen) else Varlen.of(str(value) for value in np.asarray(column).tolist())


def _absurd(times: Ints) -> Bools:
    return (times < TIME_MS_MIN) | (times >= TIME_MS_MAX)
