"""Numbers as people read them, each with its unit; a dash for what is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

NONE = "–"
STEPS_S = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))


def number(value: Any, digits: int = 0) -> str:
    """With thousands apart, and so many digits behind the point."""
    return f"{value:,.{digits}f}" if known(value) else NONE


def signed(value: Any, digits: int = 3) -> str:
    """With its sign, for differences."""
    return f"{value:+,.{digits}f}".replace("-", "−") if known(value) else NONE


def share(value: Any, digits: int = 1) -> str:
    """A part of one, in per cent."""
    return f"{100 * value:,.{digits}f} %" if known(value) else NONE


def rate(value: Any) -> str:
    """So many a second."""
    return NONE if not known(value) else f"{value:,.0f}/s" if value >= 10 or value == 0 else f"{value:,.1f}/s"


def span(seconds: Any) -> str:
    """How long: in the largest unit of which there are two, or one exactly."""
    if not known(seconds):
        return NONE
    for unit_s, unit in STEPS_S:
        if seconds >= 2 * unit_s or seconds == unit_s:
            return f"{seconds / unit_s:,.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:,.1f} s" if 0 < seconds < 10 else f"{seconds:,.0f} s"


def value(found: Any) -> str:
    """A feature's value: four digits that count; `missing` where there is none."""
    if not known(found):
        return "missing"
    return f"{found:,.0f}" if abs(found) >= 10_000 else f"{found:,.4g}"


def moment(time_ms: Any, *, seconds: bool = False) -> str:
    """A time in UTC."""
    if not known(time_ms) or not time_ms:
        return NONE
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def day(time_ms: Any) -> str:
    """A date in UTC."""
    return moment(time_ms)[:10]


def plural(n: int, one: str, many: str = "") -> str:
    """1 event, 2 events."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def known(found: Any) -> TypeGuard[float]:
    """Whether this is a number."""
    return isinstance(found, int | float) and math.isfinite(found)


FILTERS: Mapping[str, Any] = {
    "number": number,
    "signed": signed,
    "share": share,
    "rate": rate,
    "span": span,
    "value": value,
    "moment": moment,
    "day": day,
}
