"""
What features are made of: fields and conditions, aggregates over windows of a view's streams, and inputs taken from the question.

Nothing is looked up here. An expression remembers what was written and where, so that `driftline check` can point at it.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as attribute
from types import FrameType
from typing import Any

from driftline.errors import Invalid

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
DURATION = re.compile(r"(\d+)\s*(ms|s|m|h|d|w)(?:\s+ago)?")


def duration_ms(text: str | int) -> int:
    """Milliseconds of a duration as it is written: `"15m"`, `"1h"`, `"7d"`, `"60m ago"`. Raises Invalid for anything else."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise Invalid(f'{text!r} is no duration. Write a whole number and a unit (ms, s, m, h, d, w), as in "90m" or "7d"')
    return int(match[1]) * UNITS_MS[match[2]]


def duration_text(ms: int) -> str:
    """A duration in words: `7 days`, `90 minutes`."""
    words = (("day", 86_400_000), ("hour", 3_600_000), ("minute", 60_000), ("second", 1_000), ("millisecond", 1))
    for word, unit in words:
        if ms % unit == 0:
            return f"{ms // unit} {word}{'' if ms // unit == 1 else 's'}"
    return f"{ms} milliseconds"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: file, line and the words themselves."""

    file: str
    line: int
    text: str


def place() -> Place:
    """The place in the pipeline file that is being executed: that of the nearest caller outside this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == "driftline":
        frame = frame.f_back
    if frame is None:
        return Place("", 0, "")
    return Place(frame.f_code.co_filename, frame.f_lineno, _source_of(frame))


def _source_of(frame: FrameType) -> str:
    """The text of the call that `frame` is at, on one line; the whole line where Python was told to keep no columns."""
    positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    first, last, start, end = positions
    if first is None or last is None or start is None or end is None:
        return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    lines = [line.encode() for line in linecache.getlines(frame.f_code.co_filename)[first - 1 : last]]
    if not lines:
        return ""
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return " ".join(line.decode(errors="replace").strip() for line in lines)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A field of a stream; comparing it with a value gives a Condition."""

    stream: Any  # the Stream of the declaration
    name: str
    place: Place = attribute(default_factory=place)

    def __ge__(self, value: float) -> Condition:
        return Condition(self.stream, self.name, ">=", value)

    def __gt__(self, value: float) -> Condition:
        return Condition(self.stream, self.name, ">", value)

    def __le__(self, value: float) -> Condition:
        return Condition(self.stream, self.name, "<=", value)

    def __lt__(self, value: float) -> Condition:
        return Condition(self.stream, self.name, "<", value)

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]  # an expression, not a truth
        return Condition(self.stream, self.name, "==", value)

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]  # an expression, not a truth
        return Condition(self.stream, self.name, "!=", value)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise Invalid(f"{self.name} is a field, not a value: compare it with one, as in {self.name} >= 15")


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """A comparison of a field with a constant. It holds for no record in which the field is null, nor does its contrary."""

    stream: Any
    field: str
    op: str
    value: object
    place: Place = attribute(default_factory=place)

    def __bool__(self) -> bool:
        raise Invalid(f"{self.field} {self.op} {self.value} is a condition, not a truth: give it to f.rate or to a label, whole")


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A numeric field, kept within bounds. `stream` is None where only the view says which stream has the field."""

    stream: Any
    field: str
    low: float
    high: float
    place: Place = attribute(default_factory=place)


Value = str | Field | Clip


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """
    One function over a window, as written. `what` is a stream, a field, a clipped field or a condition; None is the only stream of the
    view. Times are milliseconds; `most` bounds what `distinct` remembers.
    """

    function: str
    what: Any
    window_ms: int
    ending_ms: int = 0
    ready_after_ms: int = 0
    most: int = 0
    place: Place = attribute(default_factory=place)

    def __add__(self, other: Aggregate | Combination) -> Combination:
        return Combination(((1.0, self), *terms_of(other, 1.0)), self.place)

    def __sub__(self, other: Aggregate | Combination) -> Combination:
        return Combination(((1.0, self), *terms_of(other, -1.0)), self.place)


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """A sum of aggregates of one view, each with its sign; missing when one of them is."""

    terms: tuple[tuple[float, Aggregate], ...]
    place: Place

    def __add__(self, other: Aggregate | Combination) -> Combination:
        return Combination((*self.terms, *terms_of(other, 1.0)), self.place)

    def __sub__(self, other: Aggregate | Combination) -> Combination:
        return Combination((*self.terms, *terms_of(other, -1.0)), self.place)


def terms_of(expression: Aggregate | Combination, sign: float = 1.0) -> Iterator[tuple[float, Aggregate]]:
    """The aggregates of a feature with their signs. Raises Invalid for what is no aggregate."""
    if isinstance(expression, Aggregate):
        yield sign, expression
    elif isinstance(expression, Combination):
        yield from ((sign * each, aggregate) for each, aggregate in expression.terms)
    else:
        raise Invalid(f"{expression!r} is no aggregate; only aggregates can be added and subtracted")


@dataclass(frozen=True, slots=True, eq=False)
class Direct:
    """An input that is taken from the question itself. `zone` is empty where the function has none."""

    function: str
    field: str
    zone: str = ""
    name: str = ""
    place: Place = attribute(default_factory=place)


def clip(field: str | Field, low: float, high: float) -> Clip:
    """The field, at least `low` and at most `high`. Null stays null."""
    if not low < high:
        raise Invalid(f"f.clip keeps a value between {low} and {high}, which is empty: the lower bound comes first")
    stream, name = (field.stream, field.name) if isinstance(field, Field) else (None, field)
    return Clip(stream, name, float(low), float(high))


def count(what: Any = None, window: str | int | None = None, *, ending: str | int = 0, ready_after: str | int = 0) -> Aggregate:
    """
    How many records of a stream, or how many for which a condition holds; 0 when none. `f.count("24h")` counts those of the view's
    only stream. `ending="60m ago"` moves the window back; `ready_after` keeps it missing until the entity has been known for so long.
    """
    if window is None:
        what, window = None, what
    return _windowed("count", what, window, ending, ready_after)


def sum(value: Value, window: str | int, *, ending: str | int = 0, ready_after: str | int = 0) -> Aggregate:
    """The sum of a field; 0 when there is none. Null is left out, here and below."""
    return _windowed("sum", value, window, ending, ready_after)


def mean(value: Value, window: str | int, *, ending: str | int = 0, ready_after: str | int = 0) -> Aggregate:
    """The mean of a field; missing when there is none, here and below."""
    return _windowed("mean", value, window, ending, ready_after)


def min(value: Value, window: str | int, *, ending: str | int = 0, ready_after: str | int = 0) -> Aggregate:
    """The smallest value of a field."""
    return _windowed("min", value, window, ending, ready_after)


def max(value: Value, window: str | int, *, ending: str | int = 0, ready_after: str | int = 0) -> Aggregate:
    """The largest value of a field."""
    return _windowed("max", value, window, ending, ready_after)


def std(value: Value, window: str | int, *, ending: str | int = 0, ready_after: str | int = 0) -> Aggregate:
    """The standard deviation of a field, by the number of its values: 0 for one value."""
    return _windowed("std", value, window, ending, ready_after)


def rate(condition: Condition, window: str | int, *, ending: str | int = 0, ready_after: str | int = 0) -> Aggregate:
    """The share of records for which a condition holds."""
    if not isinstance(condition, Condition):
        raise Invalid(f"f.rate takes a condition, as in arrivals.delay_min >= 15, not {condition!r}")
    return _windowed("rate", condition, window, ending, ready_after)


def last(value: Value, *, within: str | int, ready_after: str | int = 0) -> Aggregate:
    """The newest value of a field, if it is not older than `within`: exact, not by tiles."""
    return _windowed("last", value, within, 0, ready_after)


def seconds_since(what: Any, *, within: str | int, ready_after: str | int = 0) -> Aggregate:
    """Seconds since the newest record of a stream, or since the newest for which a condition holds, if within `within`: exact."""
    return _windowed("seconds_since", what, within, 0, ready_after)


def distinct(value: Value, window: str | int, *, most: int = 64, ready_after: str | int = 0) -> Aggregate:
    """
    How many different values a field had; 0 when none. The `most` values that were seen last are remembered, so it never says more;
    a field of text is told apart by a 64-bit hash.
    """
    if not 1 <= most <= 4096:
        raise Invalid(f"f.distinct remembers between 1 and 4096 values, not {most}")
    return Aggregate("distinct", value, duration_ms(window), 0, duration_ms(ready_after), most)


def ewma(value: Value, half_life: str | int, *, ready_after: str | int = 0) -> Aggregate:
    """The mean of a field over all time, a value counting half as much with each `half_life` that it is older than the newest."""
    return _windowed("ewma", value, half_life, 0, ready_after)


def value(field: str, *, name: str = "") -> Direct:
    """A number or a boolean of the question itself."""
    return Direct("value", field, "", name)


def minute_of_day(field: str, *, zone: str = "UTC", name: str = "") -> Direct:
    """Minutes since midnight on the clock of `zone`, 0 to 1439, of a timestamp of the question."""
    return Direct("minute_of_day", field, zone, name)


def weekday(field: str, *, zone: str = "UTC", name: str = "") -> Direct:
    """Day of the week in `zone`, Monday 0 to Sunday 6, of a timestamp of the question."""
    return Direct("weekday", field, zone, name)


def _windowed(function: str, what: Any, window: str | int | None, ending: str | int, ready_after: str | int) -> Aggregate:
    if window is None:
        raise Invalid(f'f.{function} needs a window, as in "24h"')
    return Aggregate(function, what, duration_ms(window), duration_ms(ending), duration_ms(ready_after))
