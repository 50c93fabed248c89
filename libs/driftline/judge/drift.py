"""
How far a window's distributions stand from the reference that came with the model. Counts in, plain numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid

ROWS_MIN = 200  # below this many observations a distance is mostly chance: PSI of 10 bins then averages 9 / 200
PSI_LIMIT = 0.2
HELD_WINDOWS, HELD_OF = 2, 3  # an alarm stands when so many of the last so many windows were beyond the limit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reference:
    """
    What a model was trained on: for each feature the inner edges of its bins and the rows in each, the missing ones last;
    the counts of its scores in equal bins; and how much more than binomial its daily errors scatter (`dispersion`, at least 1).

    Bin i holds edges[i - 1] <= value < edges[i]. `lowest` and `highest` bound what training saw, where the bundle says so.
    """

    edges: Mapping[str, Floats]
    counts: Mapping[str, Sequence[int]]
    score_counts: Sequence[int]
    dispersion: float = 1.0
    lowest: Mapping[str, float] | None = None
    highest: Mapping[str, float] | None = None

    @classmethod
    def of(cls, reference: Mapping[str, Any], dispersion: float) -> Reference:
        """From a bundle's manifest. Raises Invalid when counts and edges of a feature do not fit."""
        edges = {name: np.asarray(values, np.float64) for name, values in reference["edges"].items()}
        for name, values in edges.items():
            if len(reference["counts"][name]) != len(values) + 2:
                raise Invalid(f"the reference of {name!r} has {len(values)} edges but {len(reference['counts'][name])} counts")
        bounds = [reference.get(name) for name in ("lowest", "highest")]
        return cls(edges, reference["counts"], reference["score_counts"], max(1.0, dispersion), *bounds)

    @property
    def bounded(self) -> bool:
        """Whether the bundle says between which values training was."""
        return self.lowest is not None and self.highest is not None

    def bins(self, feature: str, values: npt.NDArray[np.float32]) -> list[int]:
        """How many of `values` fall into each bin of `feature`; NaN is counted last, as missing."""
        edges = self.edges[feature]
        present = values[~np.isnan(values)]
        counts = np.bincount(np.searchsorted(edges, present, side="right"), minlength=len(edges) + 1)
        return [*counts.tolist(), len(values) - len(present)]

    def outside(self, feature: str, values: npt.NDArray[np.float32]) -> int:
        """How many of `values` training never reached, below or above; 0 where the bundle keeps no bounds."""
        if self.lowest is None or self.highest is None:
            return 0
        return int(np.count_nonzero((values < self.lowest[feature]) | (values > self.highest[feature])))


def psi(expected: Sequence[int], observed: Sequence[int], rows_min: int = ROWS_MIN) -> float | None:
    """
    Population stability index of two histograms over the same bins; None with fewer than `rows_min` observations.

    Half a row is added to every bin, so that an empty one does not decide alone.
    """
    if sum(observed) < rows_min or sum(expected) == 0:
        return None
    p, q = _shares(expected), _shares(observed)
    return float(np.sum((q - p) * np.log(q / p)))


def js(expected: Sequence[int], observed: Sequence[int], rows_min: int = ROWS_MIN) -> float | None:
    """Jensen-Shannon divergence in bits, 0 to 1, with the smoothing and the minimum of `psi`."""
    if sum(observed) < rows_min or sum(expected) == 0:
        return None
    p, q = _shares(expected), _shares(observed)
    middle = 0.5 * (p + q)
    return float(0.5 * np.sum(p * np.log2(p / middle)) + 0.5 * np.sum(q * np.log2(q / middle)))


def _shares(counts: Sequence[int]) -> Floats:
    smoothed = np.asarray(counts, np.float64) + 0.5
    return np.asarray(smoothed / smoothed.sum(), np.float64)


def held(last: Sequence[bool]) -> bool:
    """Whether an alarm stands, given for each of the last windows, oldest first, whether it was beyond the limit."""
    return sum(last[-HELD_OF:]) >= HELD_WINDOWS
