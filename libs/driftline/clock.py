"""The only place that asks what time it is. Cores never do: their time is on the log."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC, by the wall."""

    def monotonic_s(self) -> float:
        """Seconds that never go back, from an arbitrary start."""


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that a test moves."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms

    def advance(self, ms: int) -> None:
        """Move both clocks on by `ms` milliseconds."""
        self._now_ms += ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._now_ms / 1000
