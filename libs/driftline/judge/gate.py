"""
Champion against challenger on the same later, matured rows: a table of checks, and the verdict with its reasons.

Rows of one day share their weather and their mistakes, so a row is not an observation here: a day is. The log loss of the
challenger less that of the champion is averaged within each day, and a t bound is put on the mean of the days. Row-wise
intervals accept equal models far more often than they say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from driftline.declaration import Gate
from driftline.judge import quality

Floats = npt.NDArray[np.float64]

CALIBRATION = (0.8, 1.25)  # observed over expected
PARITY_MAX = 1e-5  # between what was trained and what is served, on any row
SLICE_MARGIN = 0.02  # nats by which a slice may be worse before the test asks whether it surely is
SLICE_ROWS_MIN = 200
SLICE_DAYS_MIN = 3
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Holdout:
    """
    Rows that neither model was trained on, with both models' probabilities. `days` numbers the block of each row. Where there is no
    champion, its place is taken by the base rate that was known before each row's day.
    """

    labels: npt.NDArray[Any]
    days: npt.NDArray[Any]
    champion: npt.NDArray[Any]
    challenger: npt.NDArray[Any]
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Proof:
    """What was shown of the exported graph: the largest difference from the trained model, and that no batch changes bytes."""

    parity: float
    rows: int
    invariant: bool


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. `passed` is None for what is only reported."""

    name: str
    passed: bool | None
    value: float | None
    limit: str
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """The line as JSON takes it."""
        return {"name": self.name, "passed": self.passed, "value": plain(self.value), "limit": self.limit, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted only when no check failed. `reason` says why in words, for people."""

    accepted: bool
    reason: str
    checks: tuple[Check, ...]
    metrics: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """As evidence: floats rounded, so that the text is the same on any machine."""
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "checks": [check.to_dict() for check in self.checks],
            "metrics": {who: {name: plain(value) for name, value in measures.items()} for who, measures in self.metrics.items()},
        }


@dataclass(frozen=True, slots=True)
class Bound:
    """The mean of the days' differences, and the one-sided upper t bound on it. Infinite with fewer than two days."""

    mean: float
    upper: float
    days: int


def plain(value: float | None) -> float | None:
    """A float as evidence carries it: six digits, None for what is not finite."""
    return round(float(value), DIGITS) if value is not None and math.isfinite(value) else None


def day_means(values: Floats, days: npt.NDArray[Any]) -> Floats:
    """The mean of `values` within each day that has any, in ascending order of days."""
    _, day = np.unique(days, return_inverse=True)
    day = day.reshape(-1)
    return np.asarray(np.bincount(day, weights=values) / np.bincount(day), np.float64)


def upper_bound(differences: Floats, confidence: float) -> Bound:
    """The one-sided upper t bound, at `confidence`, on the mean of independent day differences."""
    n = len(differences)
    mean = float(differences.mean()) if n else float("nan")
    if n < 2:  # one day has no spread to judge by
        return Bound(mean, float("inf"), n)
    spread = float(differences.std(ddof=1)) / math.sqrt(n)
    return Bound(mean, mean + float(stdtrit(n - 1, confidence)) * spread, n)


def p_worse(differences: Floats, margin: float) -> float:
    """The p-value of "the mean difference is at most `margin`": small when the slice is surely worse than that."""
    n = len(differences)
    excess = float(differences.mean()) - margin
    spread = float(differences.std(ddof=1)) / math.sqrt(n)
    if spread == 0:
        return 0.0 if excess > 0 else 1.0
    return float(stdtr(n - 1, -excess / spread))


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects, so that any false rejection has probability `alpha` at most."""
    rejected = [False] * len(p_values)
    for step, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        if p_values[at] > alpha / (len(p_values) - step):
            break
        rejected[at] = True
    return rejected


def challenge(gate: Gate, holdout: Holdout, proof: Proof, *, refresh: bool, cost_ratio: float | None = None) -> Verdict:
    """
    Judge a challenger. `refresh` is for a scheduled retrain: it need not prove itself better, only not worse than the
    gate's refresh margin, with a better mean. `cost_ratio` (challenger's size over champion's) is reported, never judged.
    """
    metrics = {
        "champion": quality.summary(holdout.labels, holdout.champion),
        "challenger": quality.summary(holdout.labels, holdout.challenger),
    }
    bound = _bound(gate, holdout)
    checks = (
        *_enough(gate, len(holdout), int(np.count_nonzero(holdout.labels))),
        _better(gate, bound, refresh),
        _ranks_as_well(gate, metrics),
        _calibrated(metrics),
        *_proven(proof),
        _no_slice_worse(gate, holdout),
        Check("cost", None, cost_ratio, "reported", "size of the graph, challenger over champion"),
    )
    detail = (
        f"log loss {metrics['challenger']['log_loss']:.4f} against {metrics['champion']['log_loss']:.4f} on {bound.days} days "
        f"(difference {bound.mean:+.4f}, {gate.confidence:.0%} bound {bound.upper:+.4f})"
    )
    return _verdict(checks, detail, metrics)


def base_rate_gate(gate: Gate, ahead: Holdout, proof: Proof, *, matured: tuple[int, int]) -> Verdict:
    """
    Judge a first model, which has no champion to beat: on forward-chained days its log loss must be below that of saying the
    base rate (`ahead.champion`). `matured` is the number of rows and of positives that it was trained on.
    """
    metrics = {
        "base_rate": quality.summary(ahead.labels, ahead.champion),
        "challenger": quality.summary(ahead.labels, ahead.challenger),
    }
    bound = _bound(gate, ahead)
    checks = (*_enough(gate, *matured), _better(gate, bound, refresh=False), *_proven(proof))
    detail = (
        f"log loss {metrics['challenger']['log_loss']:.4f} against {metrics['base_rate']['log_loss']:.4f} of the base rate on "
        f"{bound.days} forward-chained days (difference {bound.mean:+.4f}, {gate.confidence:.0%} bound {bound.upper:+.4f})"
    )
    return _verdict(checks, detail, metrics)


def _differences(holdout: Holdout) -> Floats:
    """By row, the challenger's log loss less the champion's."""
    return quality.log_losses(holdout.labels, holdout.challenger) - quality.log_losses(holdout.labels, holdout.champion)


def _bound(gate: Gate, holdout: Holdout) -> Bound:
    return upper_bound(day_means(_differences(holdout), holdout.days), gate.confidence)


def _verdict(checks: tuple[Check, ...], detail: str, metrics: Mapping[str, Mapping[str, float]]) -> Verdict:
    failed = [check for check in checks if check.passed is not None and not check.passed]
    reason = "; ".join(check.detail for check in failed) if failed else detail
    return Verdict(not failed, reason, checks, metrics)


def _enough(gate: Gate, rows: int, positives: int) -> Iterator[Check]:
    for name, value, least in (("rows", rows, gate.rows_min), ("positives", positives, gate.positives_min)):
        yield Check(name, value >= least, float(value), f">= {least}", f"{value} {name}, at least {least} are needed")


def _better(gate: Gate, bound: Bound, refresh: bool) -> Check:
    limit = gate.refresh_margin if refresh else 0.0
    passed = bound.upper < limit and (bound.mean < 0 or not refresh)
    words = f"the day-mean log loss differs by {bound.mean:+.4f} on {bound.days} days, upper bound {bound.upper:+.4f}"
    needed = f"below {limit:+.4f}" + (" with a better mean" if refresh else "")
    return Check("bound", passed, bound.upper, needed, f"{words}; {needed} is needed")


def _ranks_as_well(gate: Gate, metrics: Mapping[str, Mapping[str, float]]) -> Check:
    champion, challenger = metrics["champion"]["auc"], metrics["challenger"]["auc"]
    lost = champion - challenger
    words = f"AUC {challenger:.4f} against {champion:.4f}, it may be lower by {gate.auc_margin}"
    return Check("auc", lost <= gate.auc_margin, challenger, f"champion's less {gate.auc_margin}", words)


def _calibrated(metrics: Mapping[str, Mapping[str, float]]) -> Check:
    ours, theirs = metrics["challenger"]["observed_over_expected"], metrics["champion"]["observed_over_expected"]
    low, high = CALIBRATION
    passed = low <= ours <= high or (ours > 0 and _miscalibration(ours) <= _miscalibration(theirs))
    words = f"observed over expected is {ours:.3f} (champion's {theirs:.3f}), {low} to {high} or no worse than the champion's is needed"
    return Check("calibration", passed, ours, f"{low} to {high}, or no worse than the champion's", words)


def _miscalibration(ratio: float) -> float:
    """Twice too high is as bad as twice too low; what has no ratio is worst."""
    return abs(math.log(ratio)) if ratio > 0 else float("inf")


def _proven(proof: Proof) -> Iterator[Check]:
    words = f"the graph differs from the trained model by up to {proof.parity:.2g} on {proof.rows} rows"
    yield Check("parity", proof.parity <= PARITY_MAX, proof.parity, f"<= {PARITY_MAX:g}", words)
    yield Check("batch_invariance", proof.invariant, None, "same bytes", "the score of a row changes with the batch it is in")


def _no_slice_worse(gate: Gate, holdout: Holdout) -> Check:
    tested = list(_slices(holdout, _differences(holdout)))
    rejected = holm([p for _, _, p in tested], 1 - gate.confidence)
    worse = [f"{name} ({mean:+.4f})" for (name, mean, _), surely in zip(tested, rejected, strict=True) if surely]
    words = f"{len(worse)} of {len(tested)} slices are worse by more than {SLICE_MARGIN}: {', '.join(worse)}"
    return Check("slices", not worse, float(len(worse)), f"none worse by {SLICE_MARGIN}", words)


def _slices(holdout: Holdout, differences: Floats) -> Iterator[tuple[str, float, float]]:
    """Name, mean difference of its days, and p-value of each slice that has enough rows and days to be judged."""
    for name, column in holdout.slices.items():
        values = np.asarray(column, np.str_)
        for value in np.unique(values):
            mine = values == value
            means = day_means(differences[mine], holdout.days[mine])
            if np.count_nonzero(mine) >= SLICE_ROWS_MIN and len(means) >= SLICE_DAYS_MIN:
                yield f"{name}={value}", float(means.mean()), p_worse(means, SLICE_MARGIN)
