"""
What drift counted in the newest windows, all partitions together: the inputs of each model by bin, and its matured answers by score.

Reports tell distances; whoever wants to see the distributions themselves finds them here. Of each kind the newest windows are kept.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from driftline.judge.summaries import LABEL_BINS, LOGIT_MAX, AnswersSummary, ExamplesSummary, Inputs, Quality
from driftline.stream.batch import Batch

WINDOWS_MAX = 60
ANSWERS, EXAMPLES = "answers", "examples"
GROUPS = 10  # of the probability, in a reliability diagram

Counts = TypeVar("Counts", Inputs, Quality)


@dataclass(frozen=True, slots=True)
class Group:
    """Matured answers of about one score: how many, what was predicted on average, and how many were positive."""

    rows: int
    positives: int
    predicted: float

    @property
    def observed(self) -> float:
        """The share of positives."""
        return self.positives / self.rows

    @property
    def bounds(self) -> tuple[float, float]:
        """What the share may as well be, 95 %, if rows were independent: Wilson's interval (1927)."""
        z = 1.96
        middle = (self.observed + z * z / (2 * self.rows)) / (1 + z * z / self.rows)
        half = z / (1 + z * z / self.rows) * math.sqrt(self.observed * (1 - self.observed) / self.rows + z * z / (4 * self.rows**2))
        return max(0.0, middle - half), min(1.0, middle + half)


class Windows:
    """
    Fed with batches of `<p>-summaries`, by one thread at a time. A partition's windows come in order, so one that is not after its last is
    a copy. What cannot be read, or added, is passed over: drift puts it among the dead letters.
    """

    def __init__(self) -> None:
        self._inputs: dict[int, dict[str, Inputs]] = {}
        self._quality: dict[int, dict[str, Quality]] = {}
        self._last: dict[tuple[str, int], int] = {}

    def take(self, batch: Batch) -> None:
        """What a batch adds."""
        table = batch["summary"]
        if table is None:
            return
        partitions, starts = table["partition"].tolist(), table["start"].tolist()
        for kind, partition, start, body in zip(table["kind"].texts(), partitions, starts, table["body"].tolist(), strict=True):
            if start > self._last.get((kind, partition), -1):
                self._last[kind, partition] = start
                self._add(kind, start, body)

    def _add(self, kind: str, start: int, body: bytes) -> None:
        try:
            if kind == ANSWERS:
                _join(self._inputs.setdefault(start, {}), msgspec.json.decode(body, type=AnswersSummary).inputs)
            elif kind == EXAMPLES:
                models = msgspec.json.decode(body, type=ExamplesSummary).models
                for one in models.values():
                    list(_groups(one))  # raises where a bin is none
                _join(self._quality.setdefault(start, {}), {name: replace(one, slices={}) for name, one in models.items()})
        except (msgspec.DecodeError, ValueError, TypeError, ArithmeticError):
            return
        for kept in (self._inputs, self._quality):
            for oldest in sorted(kept)[:-WINDOWS_MAX]:
                del kept[oldest]

    def inputs(self, digest: str, newest: int) -> Inputs:
        """The rows that a model was served in the newest windows in which it was served any."""
        found = [self._inputs[start][digest] for start in sorted(self._inputs) if digest in self._inputs[start]]
        return functools.reduce(operator.add, [one for one in found if one.rows][-newest:], Inputs())

    def reliability(self, role: str, digest: str, newest: int) -> list[Group]:
        """Matured answers of a model in a role, of the newest windows, grouped by score; groups without any are left out."""
        name = f"{role}|{digest}"
        found = [self._quality[start][name] for start in sorted(self._quality) if name in self._quality[start]]
        return list(_groups(functools.reduce(operator.add, found[-newest:]))) if found else []


def _join(kept: dict[str, Counts], found: dict[str, Counts]) -> None:
    for name, one in found.items():
        kept[name] = kept[name] + one if name in kept else one


def _groups(quality: Quality) -> Iterator[Group]:
    """The bins are of the log odds; each is put, by its middle, into one of equal groups of the probability."""
    rows, positives, total = [0] * GROUPS, [0] * GROUPS, [0.0] * GROUPS
    for place in sorted(quality.positive_bins.keys() | quality.negative_bins.keys(), key=int):
        probability = 1 / (1 + math.exp(LOGIT_MAX - (int(place) + 0.5) * 2 * LOGIT_MAX / LABEL_BINS))
        group, positive = min(int(probability * GROUPS), GROUPS - 1), quality.positive_bins.get(place, 0)
        here = positive + quality.negative_bins.get(place, 0)
        rows[group] += here
        positives[group] += positive
        total[group] += here * probability
    for group in range(GROUPS):
        if rows[group]:
            yield Group(rows[group], positives[group], total[group] / rows[group])
