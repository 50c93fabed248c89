"""
Why a score is what it is, for one row and any model: what the score would be if one feature had the middle value that training saw.

That is ablation against a typical row, one feature at a time (Robnik-Šikonja and Kononenko, "Explaining Classifications For Individual
Instances", 2008, with one typical value in the place of all), as inference finds the reasons of an alert, there by whole views. Each
effect is exact: the same graph scores the changed row. They do not add up to the score, for features act together.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Scorer(Protocol):
    """A model, as far as it must be known here; `models.bundle.Model` is one."""

    @property
    def medians(self) -> npt.NDArray[np.float32]: ...

    def score(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...


def effects(model: Scorer, row: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.float64]]:
    """
    The score of `row`, float32 (F,), and by how much each feature raises it over what its training median would give, float64 (F,).
    NaN where the model gave no number. A missing value has an effect too: that of not knowing.
    """
    changed = np.tile(row, (len(row) + 1, 1))
    at = np.arange(len(row))
    changed[at + 1, at] = model.medians
    scores = model.score(changed).astype(np.float64)
    return float(scores[0]), scores[0] - scores[1:]
