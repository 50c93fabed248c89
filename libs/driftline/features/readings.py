"""
What is read of decoded records: numbers for aggregates, keys for entities, conditions, and inputs that the question itself brings.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from driftline.features import texts
from driftline.pipeline import Condition, Direct, Reading
from driftline.stream.batch import Column, Ints, Varlen

Floats = npt.NDArray[np.float64]

MINUTE_MS = 60_000
DAY_MINUTES = 1_440
CALENDAR_MS_MIN, CALENDAR_MS_MAX = -62_000_000_000_000, 253_000_000_000_000  # years 6 to 9987: those that `datetime` knows
EPOCH_WEEKDAY = 3  # 1970 began on a Thursday

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def number(column: Column, reading: Reading) -> Floats:
    """What an aggregate reads: the field within its bounds, or 1 and 0 for its condition; NaN where the field is null."""
    if reading.condition is not None:
        return holds(column, reading.condition)
    return np.clip(np.asarray(column, np.float64), reading.low, reading.high)


def code(column: Column, reading: Reading) -> Ints:
    """A number that tells values apart; 0 where the field is null."""
    return texts.hashes(column) if isinstance(column, Varlen) else texts.codes(number(column, reading))


def holds(column: Column, condition: Condition) -> Floats:
    """1 where the condition holds, 0 where it does not, NaN where the field is null."""
    compare = COMPARE[condition.op]
    if isinstance(column, Varlen):
        wanted = texts.hashes(Varlen.of([str(condition.value)]))[0]
        return np.where(column.starts < 0, np.nan, compare(texts.hashes(column), wanted))
    values = np.asarray(column, np.float64)
    return np.where(np.isnan(values), np.nan, compare(values, float(condition.value)))


def text(column: Column) -> Varlen:
    """A key as text: whole numbers are written out, null stays null."""
    if isinstance(column, Varlen):
        return column
    values = np.asarray(column)
    if values.dtype != np.float64:
        return texts.decimals(values.astype(np.int64))
    missing = np.isnan(values)
    written = texts.decimals(np.where(missing, 0.0, values).astype(np.int64))
    return Varlen(written.data, np.where(missing, -1, written.starts), written.ends)


def entity(columns: Mapping[str, Column], by: Sequence[str]) -> Varlen:
    """The key of each record's entity; null where one of its fields is."""
    return texts.joined([text(columns[field]) for field in by])


def direct(column: Column, wanted: Direct) -> Floats:
    """An input of the question; NaN where the field is null."""
    values = np.asarray(column, np.float64)
    if wanted.function == "value":
        return values
    missing = ~((values >= CALENDAR_MS_MIN) & (values < CALENDAR_MS_MAX))  # null, or no day of a calendar
    local = _local_minutes(np.where(missing, 0.0, values).astype(np.int64), wanted.zone)
    whole = local % DAY_MINUTES if wanted.function == "minute_of_day" else (local // DAY_MINUTES + EPOCH_WEEKDAY) % 7
    return np.where(missing, np.nan, whole.astype(np.float64))


def _local_minutes(times_ms: Ints, zone: str) -> Ints:
    """Minutes since 1970 on the clock of `zone`."""
    minutes, places = np.unique(times_ms // MINUTE_MS, return_inverse=True)
    offsets = np.array([_offset_min(zone, minute) for minute in minutes.tolist()], np.int64)
    return (minutes + offsets)[places]


@lru_cache(maxsize=1 << 16)
def _offset_min(zone: str, minute: int) -> int:
    """How far the clock of `zone` is ahead of UTC in that minute."""
    offset = datetime.fromtimestamp(minute * 60, ZoneInfo(zone)).utcoffset()
    return 0 if offset is None else int(offset.total_seconds() // 60)
