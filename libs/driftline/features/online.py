"""
What the views say of entities *now*, from their rows in the store: the same function that answers questions in the fold, in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.compiled import READ_BYTES, njit, types
from driftline.errors import Invalid
from driftline.features.packing import FAULTS, LENGTH, READABLE, START, TABLE, Layouts, unpack_all
from driftline.features.plan import Plan
from driftline.features.tiles import NONE, evaluate
from driftline.pipeline import Pipeline
from driftline.stream.batch import Ints

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Features (n, F) and ages of the views in seconds (n, V), placed as `RowLayout` says; NaN where missing or not asked for."""

    features: Matrix
    ages: Matrix


_I1, _I2, _F1 = types.int64[::1], types.int64[:, ::1], types.float64[::1]
_ANSWERS = types.Tuple((types.float32[:, ::1], types.int64, types.int64))  # type: ignore[no-untyped-call]  # numba has no types of its own


@njit(
    _ANSWERS(READ_BYTES, _I1, _I1, _I1, types.int64, types.int64, _I1, _F1, _I2, _I2, _I2, _I1, types.int64, _I1, _I1, _I1, _I2),
    nogil=True,
    cache=True,
)
def _answers(
    data: npt.NDArray[np.uint8],
    lengths: Ints,
    asks: Ints,
    kinds: Ints,
    n_asks: int,
    asked: int,
    words: Ints,
    numbers: Any,
    aggregates: Ints,
    features: Ints,
    terms: Ints,
    ages: Ints,
    width: int,
    empty: Ints,
    like: Ints,
    most: Ints,
    of_kinds: Ints,
) -> tuple[Matrix, int, int]:
    """
    Read entities, one behind the other in `data` (a length of NONE: unknown), and evaluate them. Returns the first row that cannot be read,
    too, and what is wrong with it. There is room for all of them in `words`, whose memory `numbers` is.
    """
    n = len(lengths)
    base, starts, ends = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    n_words, faults, table = np.zeros(n, np.int64), np.zeros(n, np.int64), np.empty(TABLE, np.int64)
    slots, rows = np.full((n_asks, len(ages)), NONE, np.int64), np.full((n_asks, width), np.nan, np.float32)
    room, at = 0, 0
    for i in range(n):
        slots[asks[i], kinds[i]] = i
        base[i], starts[i] = room, at if lengths[i] != NONE else NONE
        layout, length = of_kinds[kinds[i], START], of_kinds[kinds[i], LENGTH]
        if lengths[i] == NONE:
            words[room : room + length] = empty[layout : layout + length]
        room += length
        at += max(lengths[i], 0)
        ends[i] = at
    unpack_all(data, starts, ends, words, numbers, base, kinds, empty, like, most, of_kinds, table, n_words, faults)
    for i in range(n):
        if faults[i] != READABLE:
            return rows, i, faults[i]
    evaluate(words, numbers, base, slots, aggregates, features, terms, ages, asked, rows)
    return rows, NONE, READABLE


class Evaluation:
    """The views of a pipeline, and how to answer from their rows."""

    def __init__(self, pipeline: Pipeline) -> None:
        plan = Plan.of(pipeline)
        self._names = [view.name for view in pipeline.views]
        self._kinds = {name: kind for kind, name in enumerate(self._names)}
        self._features = len(pipeline.layout.names)
        layouts = Layouts.of(plan.layouts)
        self._plan: tuple[Any, ...] = (plan.aggregates, plan.features, plan.terms, plan.ages, plan.width)
        self._layouts: tuple[Any, ...] = (layouts.empty, layouts.like, layouts.most, layouts.kinds)
        self._longest = max(len(layout.empty) for layout in plan.layouts[: len(self._names)])
        self._words = np.empty(0, np.int64)  # where rows are unpacked: memory of its own each time takes longer than all the rest

    def kind(self, view: str) -> int:
        """The number of a view. Raises Invalid when there is none of that name."""
        try:
            return self._kinds[view]
        except KeyError:
            raise Invalid(f"there is no view {view!r}; there are {', '.join(self._names)}") from None

    def answers(self, rows: Sequence[bytes | None], asks: Ints, kinds: Ints, n: int, asked_ms: int) -> Answers:
        """
        What `n` questions at `asked_ms` find: of each row (None: unknown), the number of its question (`asks`), and the kind of its view.
        Raises Invalid for a row that cannot be read.
        """
        data = np.frombuffer(b"".join([row or b"" for row in rows]), np.uint8)
        lengths = np.array([NONE if row is None else len(row) for row in rows], np.int64)
        if len(self._words) < len(rows) * self._longest:
            self._words = np.empty(len(rows) * self._longest, np.int64)
        words = self._words, self._words.view(np.float64)
        found, bad, fault = _answers(data, lengths, asks, kinds, n, asked_ms, *words, *self._plan, *self._layouts)
        if bad != NONE:
            raise Invalid(f"a row of the view {self._names[kinds[bad]]} {FAULTS[fault]}: it is damaged")
        return Answers(found[:, : self._features], found[:, self._features :])
