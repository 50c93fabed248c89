"""The gate: what it lets through, and what it refuses with which words. All data is made by hand, so no verdict hangs on luck."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from driftline.declaration import Gate
from driftline.errors import Invalid
from driftline.judge.gate import Holdout, Proof, base_rate_gate, challenge, holm, p_worse, upper_bound

GATE = Gate("log_loss", on="7d", rows_min=100, positives_min=20)
PROVEN = Proof(parity=1e-7, rows=1000, invariant=True)
ROWS_A_DAY = 100


def holdout(champion=(0.3, 0.7), challenger=(0.2, 0.8), days=7, wobble=0.0, positives=0.4):
    """
    Days of equal rows, a fixed share of them positive. A model gives its first score to negatives, its second to positives;
    `wobble` moves the challenger's scores apart on even days and together on odd ones.
    """
    labels = np.tile((np.arange(ROWS_A_DAY) < positives * ROWS_A_DAY).astype(np.int64), days)
    day = np.repeat(np.arange(days), ROWS_A_DAY)
    sway = np.where(day % 2 == 0, wobble, -wobble)
    ours = np.where(labels == 1, challenger[1] + sway, challenger[0] - sway).astype(np.float32)
    theirs = np.where(labels == 1, champion[1], champion[0]).astype(np.float32)
    return Holdout(labels, day, theirs, ours)


def failed(verdict):
    return {check.name for check in verdict.checks if check.passed is False}


def test_a_clearly_better_challenger_is_accepted():
    """
    Better on every day, so that the bound is below zero.
    """
    verdict = challenge(GATE, holdout(), PROVEN, refresh=False)
    assert verdict.accepted
    assert failed(verdict) == set()
    assert "against" in verdict.reason


def test_an_equal_challenger_is_refused():
    """
    No difference is no reason to change a model.
    """
    verdict = challenge(GATE, holdout(challenger=(0.3, 0.7)), PROVEN, refresh=False)
    assert failed(verdict) == {"bound"}


def test_a_challenger_that_is_better_on_some_days_only_is_refused():
    """
    A better mean is not enough when the days disagree.
    """
    rows = holdout(challenger=(0.29, 0.71), wobble=0.1)
    verdict = challenge(GATE, rows, PROVEN, refresh=False)
    assert "bound" in failed(verdict)


def test_a_scheduled_refresh_with_a_slightly_better_mean_is_accepted():
    """
    A refresh need not prove itself better: its bound may reach up to the margin.
    """
    rows = holdout(challenger=(0.2995, 0.7005), wobble=0.001)
    assert failed(challenge(GATE, rows, PROVEN, refresh=False)) == {"bound"}
    assert challenge(GATE, rows, PROVEN, refresh=True).accepted


def test_a_scheduled_refresh_with_a_worse_mean_is_refused():
    """
    Within the margin, but on the wrong side of zero.
    """
    verdict = challenge(GATE, holdout(challenger=(0.3005, 0.6995)), PROVEN, refresh=True)
    assert failed(verdict) == {"bound"}


def test_too_few_rows_and_positives_are_refused_by_name():
    """
    Both minima are lines of the table.
    """
    strict = Gate(rows_min=10_000, positives_min=5_000)
    verdict = challenge(strict, holdout(), PROVEN, refresh=False)
    assert failed(verdict) == {"rows", "positives"}
    assert "700 rows, at least 10000 are needed" in verdict.reason


def test_no_rows_at_all_are_refused_and_not_an_error():
    """
    An empty holdout ends in a verdict like any other.
    """
    nothing = np.empty(0)
    verdict = challenge(GATE, Holdout(nothing, nothing, nothing, nothing), PROVEN, refresh=False)
    assert {"rows", "positives", "bound", "auc", "calibration"} <= failed(verdict)
    assert all(line["value"] is None or np.isfinite(line["value"]) for line in verdict.to_dict()["checks"])


def test_one_day_bounds_nothing():
    """
    A single day has no spread to judge by.
    """
    assert upper_bound(np.array([-0.5]), 0.95).upper == float("inf")
    assert "bound" in failed(challenge(GATE, holdout(days=1), PROVEN, refresh=False))


def test_the_bound_is_the_one_sided_t_bound():
    """
    Six degrees of freedom at 95 %: 1.9432 standard errors above the mean.
    """
    days = np.array([1.0, 2, 3, 4, 5, 6, 7])
    error = np.std(days, ddof=1) / np.sqrt(7)
    assert upper_bound(days, 0.95).upper == pytest.approx(4 + 1.943180 * error, abs=1e-5)


def test_a_challenger_that_ranks_worse_is_refused_even_with_a_better_log_loss():
    """
    The champion ranks perfectly but is badly calibrated; the challenger is the other way round.
    """
    labels = np.tile(np.array([1, 1, 0, 0, 0] * 20), 7)
    days = np.repeat(np.arange(7), ROWS_A_DAY)
    theirs = np.where(labels == 1, 0.02, 0.01).astype(np.float32)
    ours = np.tile(np.array([0.8, 0.25, 0.3, 0.2, 0.2] * 20, np.float32), 7)
    verdict = challenge(GATE, Holdout(labels, days, theirs, ours), PROVEN, refresh=False)
    assert failed(verdict) == {"auc"}


def test_calibration_outside_its_limits_is_refused_unless_the_champion_is_no_better():
    """
    Far too many promised: refused against a calibrated champion, not against one that is worse still.
    """
    high = holdout(champion=(0.05, 0.95), challenger=(0.5, 0.9))
    assert "calibration" in failed(challenge(GATE, high, PROVEN, refresh=False))
    worse_still = holdout(champion=(0.7, 0.9), challenger=(0.5, 0.9))
    assert "calibration" not in failed(challenge(GATE, worse_still, PROVEN, refresh=False))


@pytest.mark.parametrize(
    ("proof", "name"),
    [
        (Proof(parity=2e-5, rows=10, invariant=True), "parity"),
        (Proof(parity=float("inf"), rows=10, invariant=True), "parity"),
        (Proof(parity=0.0, rows=10, invariant=False), "batch_invariance"),
    ],
)
def test_a_graph_that_is_not_the_model_is_refused(proof, name):
    """
    However good the scores are.
    """
    assert failed(challenge(GATE, holdout(), proof, refresh=False)) == {name}


def sliced(worse):
    """A challenger better as a whole, and on one airport of four worse by `worse` in its scores."""
    rows = holdout(champion=(0.3, 0.7), challenger=(0.1, 0.9), days=14)
    airports = np.tile(np.repeat(["EWR", "JFK", "LGA", "SWF"], 25), 14)
    labels = np.tile(np.arange(ROWS_A_DAY) % 5 < 2, 14).astype(np.int64)
    jitter = np.where(rows.days % 2 == 0, 0.001, -0.001)
    ours = np.where(labels == 1, 0.9, 0.1)
    ours = np.where(airports == "SWF", np.where(labels == 1, 0.7 - worse, 0.3 + worse) + jitter, ours)
    theirs = np.where(labels == 1, 0.7, 0.3)
    return Holdout(labels, rows.days, theirs.astype(np.float32), ours.astype(np.float32), {"origin": airports.tolist()})


def test_a_slice_that_is_surely_worse_stops_a_better_model_and_is_named():
    """
    The whole gains, one airport loses more than the margin.
    """
    verdict = challenge(GATE, sliced(0.15), PROVEN, refresh=False)
    assert failed(verdict) == {"slices"}
    assert "origin=SWF" in verdict.reason


def test_a_slice_that_is_worse_by_less_than_the_margin_does_not():
    """
    Slices are noisy: a little worse is not surely worse.
    """
    assert challenge(GATE, sliced(0.005), PROVEN, refresh=False).accepted


def test_holm_rejects_step_by_step_and_stops_at_the_first_that_holds():
    """
    Each further hypothesis is tested a little less strictly; one that holds shields all above it.
    """
    assert holm([0.04, 0.001, 0.012], 0.05) == [True, True, True]
    assert holm([0.06, 0.001, 0.03], 0.05) == [False, True, False]
    assert holm([0.04, 0.03, 0.02], 0.05) == [False, False, False]
    assert holm([], 0.05) == []


def test_a_slice_without_any_spread_is_worse_or_it_is_not():
    """
    Days that agree exactly leave no doubt either way.
    """
    assert p_worse(np.full(5, 0.03), 0.02) == 0.0
    assert p_worse(np.full(5, 0.01), 0.02) == 1.0


def test_a_first_model_must_beat_the_base_rate_on_the_days_ahead():
    """
    Better than always saying the share of positives: accepted. The same as that: refused.
    """
    rows = holdout()
    rates = np.full(len(rows), 0.4)
    accepted = base_rate_gate(GATE, dataclasses.replace(rows, champion=rates), PROVEN, matured=(700, 280))
    assert accepted.accepted
    assert "forward-chained" in accepted.reason
    refused = base_rate_gate(GATE, dataclasses.replace(rows, champion=rates, challenger=rates), PROVEN, matured=(700, 280))
    assert failed(refused) == {"bound"}


def test_the_evidence_is_plain_and_rounded():
    """
    The text of a verdict on the log does not depend on the last bits of a machine.
    """
    told = challenge(GATE, holdout(), PROVEN, refresh=False, cost_ratio=1.23456789).to_dict()
    assert told["accepted"] is True
    assert {line["name"]: line["value"] for line in told["checks"]}["cost"] == 1.234568
    assert told["metrics"]["challenger"]["rows"] == 700.0


def test_a_gate_by_another_metric_is_refused_when_it_is_declared():
    """
    Only what is implemented can be asked for.
    """
    with pytest.raises(Invalid, match="log_loss"):
        Gate("accuracy")
