"""
How good a set of probabilities was, once the labels are known. Arrays in, numbers out; NaN where a number has no meaning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PROBABILITY_MIN = 1e-7  # a float32 score can be exactly 0 or 1; one such mistake must not cost infinitely much


def log_losses(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> Floats:
    """The log loss of each row, in nats. Labels are 0 or 1."""
    p = np.clip(scores.astype(np.float64), PROBABILITY_MIN, 1 - PROBABILITY_MIN)
    return np.asarray(-np.log(np.where(labels.astype(np.bool_), p, 1 - p)), np.float64)


def log_loss(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """The mean log loss."""
    return float(log_losses(labels, scores).mean()) if len(labels) else float("nan")


def brier(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """The mean squared difference between probability and label."""
    return float(np.mean((scores.astype(np.float64) - labels) ** 2)) if len(labels) else float("nan")


def auc(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """
    The probability that a positive scores above a negative, ties counting half: the rank statistic, with averaged ranks.
    NaN unless there are both.
    """
    positives = int(np.count_nonzero(labels))
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    ranks = (last_rank - (counts - 1) / 2)[which.reshape(-1)]
    rank_sum = float(ranks[labels.astype(np.bool_)].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def average_precision(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Precision averaged over recall, one step for each distinct score. NaN without a positive."""
    positives = int(np.count_nonzero(labels))
    if positives == 0:
        return float("nan")
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    ranked = scores[order]
    hits = np.cumsum(labels[order].astype(np.float64))
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # where a run of equal scores ends
    precision = hits[ends] / (ends + 1)
    return float(np.sum(np.diff(hits[ends], prepend=0.0) * precision) / positives)


def observed_over_expected(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Positives that came over positives that the probabilities promised: 1 is calibrated. NaN when none were promised."""
    expected = float(scores.astype(np.float64).sum())
    return float(np.sum(labels)) / expected if expected > 0 else float("nan")


def dispersion(labels: npt.NDArray[Any], scores: npt.NDArray[Any], blocks: npt.NDArray[Any]) -> float:
    """
    How much more a block's positives vary than independent rows would: the mean over blocks of (O - E)^2 / sum p(1 - p),
    never below 1. Rows of one day share their weather, so a chart with the textbook variance would cry wolf.
    """
    p = scores.astype(np.float64)
    _, block = np.unique(blocks, return_inverse=True)
    block = block.reshape(-1)
    residual = np.bincount(block, weights=labels - p)
    variance = np.bincount(block, weights=p * (1 - p))
    told = variance > 0
    return max(1.0, float(np.mean(residual[told] ** 2 / variance[told]))) if told.any() else 1.0


def summary(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> dict[str, float]:
    """Every measure of this page by name."""
    return {
        "rows": float(len(labels)),
        "positives": float(np.count_nonzero(labels)),
        "log_loss": log_loss(labels, scores),
        "auc": auc(labels, scores),
        "average_precision": average_precision(labels, scores),
        "brier": brier(labels, scores),
        "observed_over_expected": observed_over_expected(labels, scores),
    }
