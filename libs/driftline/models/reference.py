"""
What the inputs and scores of a model looked like when it was trained: the histograms that drift is measured against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid

FEATURE_BINS = 10
SCORE_BINS = 20


class Reference(TypedDict):
    """
    Counts of the training rows by bin. `edges` are inner edges, ascending: bin i holds edge[i-1] <= x < edge[i], so that k
    edges make k + 1 bins; one count more, the last, is for missing values. A feature that hardly varies has fewer bins.
    `lowest` and `highest` bound what training saw; both are 0 for a feature that was always missing.
    """

    edges: dict[str, list[float]]
    counts: dict[str, list[int]]
    lowest: dict[str, float]
    highest: dict[str, float]
    score_edges: list[float]
    score_counts: list[int]


def bin_counts(values: npt.NDArray[np.float32], edges: Sequence[float]) -> list[int]:
    """How many of `values` fall into each bin, the missing ones last."""
    missing = np.isnan(values)
    bins = np.searchsorted(np.asarray(edges, np.float64), values[~missing].astype(np.float64), side="right")
    return [*np.bincount(bins, minlength=len(edges) + 1).tolist(), int(missing.sum())]


def quantile_edges(values: npt.NDArray[np.float32], bins: int) -> list[float]:
    """
    Inner edges that share the present values out evenly, each one of the values themselves. The smallest value is no edge,
    since nothing lies below it.
    """
    present = np.sort(values[~np.isnan(values)])
    if not len(present):
        return []
    positions = [len(present) * step // bins for step in range(1, bins)]
    return sorted({float(present[at]) for at in positions} - {float(present[0])})


def make_reference(names: Sequence[str], matrix: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> Reference:
    """The reference of training rows `matrix` (n, F), named by column, and of the out-of-time scores of the model."""
    edges = {name: quantile_edges(matrix[:, at], FEATURE_BINS) for at, name in enumerate(names)}
    score_edges = [step / SCORE_BINS for step in range(1, SCORE_BINS)]
    bounds = {name: _bounds(matrix[:, at]) for at, name in enumerate(names)}
    return Reference(
        edges=edges,
        counts={name: bin_counts(matrix[:, at], edges[name]) for at, name in enumerate(names)},
        lowest={name: low for name, (low, _) in bounds.items()},
        highest={name: high for name, (_, high) in bounds.items()},
        score_edges=score_edges,
        score_counts=bin_counts(scores, score_edges),
    )


def _bounds(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    present = values[~np.isnan(values)]
    return (float(present.min()), float(present.max())) if len(present) else (0.0, 0.0)


def refuse_misfit(reference: Reference, names: Sequence[str]) -> None:
    """Raises Invalid when `reference` is not about just these features, or its bins are none."""
    tables: tuple[Mapping[str, object], ...] = (reference["edges"], reference["counts"], reference["lowest"], reference["highest"])
    if any(set(table) != set(names) for table in tables):
        raise Invalid("the reference of the manifest is about other features than the manifest names")
    histograms = [(reference["edges"][name], reference["counts"][name]) for name in names]
    for edges, counts in [*histograms, (reference["score_edges"], reference["score_counts"])]:
        if sorted(set(edges)) != edges or len(counts) != len(edges) + 2 or min(counts) < 0:
            raise Invalid("the reference of the manifest has edges out of order, or counts that do not fit them")


def medians(names: Sequence[str], matrix: npt.NDArray[np.float32]) -> Mapping[str, float | None]:
    """The middle present value of each column, one of the values themselves; None for a column that is always missing."""
    found: dict[str, float | None] = {}
    for at, name in enumerate(names):
        present = np.sort(matrix[:, at][~np.isnan(matrix[:, at])])
        found[name] = float(present[(len(present) - 1) // 2]) if len(present) else None
    return found
