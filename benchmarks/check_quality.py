"""
Did the loop gain anything? AUC and log loss of what was served against the frozen first champion on the same flights, from its first
answer to the end, with intervals by blocks of days: flights of one day share their weather and are no independent witnesses.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from independent import DAY_MS, START_MS, Floats, Ints, Schemas, Stack, auc, auc_by_days, checks, finish, log_losses, parser
from logs import Served, read_served
from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Pairs:
    """What was served and what the frozen model said, on the same flights, with the label and the day they were asked."""

    loop: Floats
    frozen: Floats
    labels: Ints
    days: Ints
    without_frozen: int
    degraded: int


def pairs_of(served: Served) -> Pairs:
    """
    The flights from the first answer of the first model on that have a label. The frozen model's score is its shadow's, or, while it was
    champion or part of it, what was served.
    """
    order = sorted(served.answers, key=lambda flight: (served.answers[flight].asked, served.answers[flight].event_offset, flight))
    first = next((at for at, flight in enumerate(order) if served.answers[flight].digest), len(order))
    if first == len(order):
        raise SystemExit("no model has answered yet")
    frozen = served.answers[order[first]].digest
    mine = [flight for flight in order[first:] if served.labels.get(flight, -1) >= 0]
    both = [flight for flight in mine if frozen in served.scores.get(flight, {}) and served.answers[flight].digest]
    return Pairs(
        np.array([served.answers[flight].score for flight in both], np.float64),
        np.array([served.scores[flight][frozen] for flight in both], np.float64),
        np.array([served.labels[flight] for flight in both], np.int64),
        np.array([(served.answers[flight].asked - START_MS) // DAY_MS for flight in both], np.int64),
        sum(frozen not in served.scores.get(flight, {}) for flight in mine),
        sum(not served.answers[flight].digest for flight in mine),
    )


def log_loss_interval(pairs: Pairs) -> dict[str, float]:
    """Mean of the days' mean differences, loop less frozen, with Student's interval over days."""
    differences = log_losses(pairs.labels, pairs.loop) - log_losses(pairs.labels, pairs.frozen)
    _, day = np.unique(pairs.days, return_inverse=True)
    means = np.bincount(day, weights=differences) / np.bincount(day)
    half = student.ppf(0.5 + CONFIDENCE / 2, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return {"mean": float(means.mean()), "low": float(means.mean() - half), "high": float(means.mean() + half), "days": len(means)}


def auc_interval(pairs: Pairs, resamples: int, seed: int) -> dict[str, float]:
    """Difference of the AUCs, loop less frozen, with the percentile interval of a paired bootstrap over whole days."""
    loop_wins, counts = auc_by_days(pairs.labels, pairs.loop, pairs.days)
    frozen_wins, _ = auc_by_days(pairs.labels, pairs.frozen, pairs.days)
    n = len(counts)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)
    gained = np.einsum("ri,ij,rj->r", weights, loop_wins - frozen_wins, weights, optimize=True)
    drawn = gained / np.einsum("ri,ij,rj->r", weights, counts, weights, optimize=True)
    low, high = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return {"mean": float((loop_wins - frozen_wins).sum() / counts.sum()), "low": float(low), "high": float(high), "resamples": resamples}


def measure(pairs: Pairs, resamples: int, seed: int) -> dict[str, Any]:
    """All figures."""
    return {
        "rows": len(pairs.labels),
        "base_rate": float(pairs.labels.mean()),
        "auc_loop": auc(pairs.labels, pairs.loop),
        "auc_frozen": auc(pairs.labels, pairs.frozen),
        "log_loss_loop": float(log_losses(pairs.labels, pairs.loop).mean()),
        "log_loss_frozen": float(log_losses(pairs.labels, pairs.frozen).mean()),
        "auc_gain": auc_interval(pairs, resamples, seed),
        "log_loss_difference": log_loss_interval(pairs),
        "rows_without_frozen_score": pairs.without_frozen,
        "rows_without_model": pairs.degraded,
    }


def main(arguments: list[str]) -> int:
    """Exit status 0 when the loop gained at least what is asked, and the intervals leave out nothing gained."""
    options = parser(__doc__)
    options.add_argument("--gain-min", type=float, default=0.02, help="gain in AUC that is asked, beyond chance; below 0: none")
    options.add_argument("--resamples", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=7)
    chosen = options.parse_args(arguments)
    stack = Stack.read(chosen.stack)
    figures = measure(pairs_of(read_served(stack, chosen.pipeline, Schemas(stack.registry))), chosen.resamples, chosen.seed)
    gain, loss = figures["auc_gain"], figures["log_loss_difference"]
    violations = checks(
        (gain["mean"] >= chosen.gain_min, f"the loop's AUC is better by {gain['mean']:.4f} only, {chosen.gain_min} is asked"),
        (gain["low"] > 0 or chosen.gain_min < 0, f"the interval of the AUC's gain reaches {gain['low']:.4f}"),
        (loss["high"] < 0 or chosen.gain_min < 0, f"the interval of the log loss' difference reaches {loss['high']:.4f}"),
        (figures["rows_without_frozen_score"] == 0, f"{figures['rows_without_frozen_score']} flights have no score of the frozen model"),
        (figures["rows_without_model"] == 0, f"{figures['rows_without_model']} flights were answered without a model after the first"),
    )
    return finish(figures, violations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
