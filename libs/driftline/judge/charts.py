"""
Charts that read one number a block and say when the process has left its course. Each is a plain value that can be stored.

Only `Cusum` may raise a retrain command: its false alarms are set by calculation (`cusum_limit`). The others are evidence,
because on a healthy model they alarm on most days.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

LIMIT_PRECISION = 1e-6
CHAIN_STATES = 100  # run lengths to within 0.1 %


class Signal(msgspec.Struct, frozen=True):
    """A limit was passed: by which value, which limit, and on which side (high or low)."""

    value: float
    limit: float
    side: str


class Chart(Protocol):
    def update(self, value: float) -> Signal | None:
        """Take the next block's number. A signal when, with it, the chart stands beyond its limit."""


class Shewhart(msgspec.Struct):
    """
    Each value alone against fixed limits, in standard deviations. Shewhart, "Economic Control of Quality" (1931).
    """

    limit: float = 3.0

    def update(self, value: float) -> Signal | None:
        if abs(value) <= self.limit:
            return None
        return Signal(value, math.copysign(self.limit, value), "high" if value > 0 else "low")


class Cusum(msgspec.Struct):
    """
    Two-sided cumulative sums of standard deviations, each with the allowance `k`. Page, "Continuous inspection schemes" (1954).

    It keeps signalling while a sum stands above the limit; whoever wants silence builds a new one.
    """

    k: float
    limit: float
    high: float = 0.0
    low: float = 0.0

    def update(self, value: float) -> Signal | None:
        self.high = max(0.0, self.high + value - self.k)
        self.low = max(0.0, self.low - value - self.k)
        if max(self.high, self.low) <= self.limit:
            return None
        return Signal(self.high, self.limit, "high") if self.high >= self.low else Signal(self.low, self.limit, "low")


class PageHinkley(msgspec.Struct):
    """
    Cumulative distance from the running mean, upwards. Page (1954), Hinkley (1971), as used on streams by Gama et al. (2004).
    """

    tolerance: float = 0.05
    limit: float = 10.0
    blocks_min: int = 5
    count: int = 0
    mean: float = 0.0
    sum: float = 0.0
    lowest: float = 0.0

    def update(self, value: float) -> Signal | None:
        self.count += 1
        self.mean += (value - self.mean) / self.count
        self.sum += value - self.mean - self.tolerance
        self.lowest = min(self.lowest, self.sum)
        distance = self.sum - self.lowest
        return Signal(distance, self.limit, "high") if self.count >= self.blocks_min and distance > self.limit else None


class Adwin(msgspec.Struct):
    """
    A window that drops its old part when the means of two parts differ by more than chance explains.

    Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing" (2007), equation 3.1 with the normal bound,
    over all cuts of a plain list: blocks are few, so their exponential histogram is not needed.
    """

    delta: float = 0.002
    values_max: int = 400
    part_min: int = 5
    values: list[float] = msgspec.field(default_factory=list)

    def update(self, value: float) -> Signal | None:
        self.values = [*self.values, value][-self.values_max :]
        found: Signal | None = None
        while (cut := self._cut()) is not None:
            before, after = np.mean(self.values[:cut]), np.mean(self.values[cut:])
            found = Signal(float(after - before), 0.0, "high" if after > before else "low")
            self.values = self.values[cut:]
        return found

    def _cut(self) -> int | None:
        n = len(self.values)
        if n < 2 * self.part_min:
            return None
        values = np.asarray(self.values)
        cuts = np.arange(self.part_min, n - self.part_min + 1)
        sums = np.cumsum(values)
        gaps = np.abs(sums[cuts - 1] / cuts - (sums[-1] - sums[cuts - 1]) / (n - cuts))
        harmonic = 1.0 / (1.0 / cuts + 1.0 / (n - cuts))
        chance = math.log(2.0 * math.log(n) / self.delta)
        bounds = np.sqrt(2.0 / harmonic * values.var() * chance) + 2.0 / (3.0 * harmonic) * chance
        beyond = gaps - bounds
        best = int(np.argmax(beyond))
        return int(cuts[best]) if beyond[best] > 0 else None


def cusum_run_length(k: float, limit: float, states: int = CHAIN_STATES) -> float:
    """
    Blocks until a one-sided `Cusum` of standard normal numbers signals, on average.

    A Markov chain over `states` equal steps of the sum: Brook and Evans, "An approach to the probability distribution of
    cusum run length" (1972).
    """
    step = 2.0 * limit / (2 * states - 1)
    edges = (np.arange(-states, states) + 0.5) * step + k
    below = np.array([0.5 * (1.0 + math.erf(edge / math.sqrt(2.0))) for edge in edges])
    # below[j - i + states] is the chance to land at or below the upper edge of state j from the middle of state i.
    i, j = np.ogrid[:states, :states]
    upper = below[j - i + states]
    moves = np.where(j == 0, upper, upper - below[j - i + states - 1])
    return float(_solved(np.eye(states) - moves, np.ones(states))[0])


def _solved(matrix: Matrix, right: Matrix) -> Matrix:
    """
    Gauss's elimination, which needs no pivots where all rows add up to more than 0. LAPACK would wake the threads of its BLAS for it: on
    busy processors each of the first calls then costs a hundred times the sum.
    """
    left = np.column_stack([matrix, right])
    for place in range(len(right) - 1):
        left[place + 1 :, place:] -= np.outer(left[place + 1 :, place] / left[place, place], left[place, place:])
    found = np.zeros(len(right))
    for place in range(len(right) - 1, -1, -1):
        found[place] = (left[place, -1] - left[place, place + 1 : -1] @ found[place + 1 :]) / left[place, place]
    return found


@lru_cache(maxsize=64)
def cusum_limit(k: float, run_length: float) -> float:
    """
    The limit at which a two-sided `Cusum` of standard normal numbers signals once in `run_length` blocks on average.

    Each side runs twice as long (Van Dobben de Bruyn, 1968). Found by halving.
    """
    low, high = 0.0, 2.0
    while cusum_run_length(k, high) < 2.0 * run_length:
        high *= 2.0
    while high - low > LIMIT_PRECISION:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if cusum_run_length(k, middle) < 2.0 * run_length else (low, middle)
    return 0.5 * (low + high)
