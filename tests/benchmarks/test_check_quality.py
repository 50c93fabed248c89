"""Who is better, by blocks of days: the pairs, the exact AUC of a resample, and the intervals."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from check_quality import Pairs, auc_interval, log_loss_interval, measure, pairs_of
from independent import DAY_MS, START_MS, auc, auc_by_days, log_losses
from logs import Served
from sklearn.metrics import log_loss, roc_auc_score


def drawn(seed: int, days: int = 30, each: int = 60, noise: float = 1.0) -> Pairs:
    """A loop that sees the truth through less noise than the frozen model does."""
    chance = np.random.default_rng(seed)
    n = days * each
    truth = chance.normal(size=n)
    labels = (chance.random(n) < 1 / (1 + np.exp(-truth))).astype(np.int64)
    loop, frozen = (1 / (1 + np.exp(-(truth + chance.normal(size=n) * spread))) for spread in (0.1, noise))
    return Pairs(np.round(loop, 2), np.round(frozen, 2), labels, np.repeat(np.arange(days), each), 0, 0)


def test_auc_and_log_loss_equal_those_of_scikit_learn():
    """
    Ties among the scores included.
    """
    pairs = drawn(1)
    scores = np.clip(pairs.loop, 0.01, 0.99)
    assert roc_auc_score(pairs.labels, scores) == pytest.approx(auc(pairs.labels, scores), abs=1e-12)
    assert log_loss(pairs.labels, scores) == pytest.approx(log_losses(pairs.labels, scores).mean(), abs=1e-12)


def test_auc_of_a_resample_of_days_is_exact():
    """
    The matrices by pairs of days give what the repeated rows themselves give.
    """
    pairs = drawn(2, days=5)
    wins, counts = auc_by_days(pairs.labels, pairs.loop, pairs.days)
    weights = np.array([2, 0, 1, 1, 1])
    again = np.repeat(np.arange(len(pairs.labels)), weights[pairs.days])
    assert auc(pairs.labels[again], pairs.loop[again]) == pytest.approx(weights @ wins @ weights / (weights @ counts @ weights), abs=1e-12)


def test_intervals_hold_the_means_and_leave_out_zero_for_a_clear_gain():
    """
    A model with ten times less noise is better beyond doubt.
    """
    told = measure(drawn(3, noise=1.5), 400, 7)
    assert 0 < told["auc_gain"]["low"] < told["auc_gain"]["mean"] < told["auc_gain"]["high"]
    assert told["log_loss_difference"]["high"] < 0
    assert told["auc_loop"] - told["auc_frozen"] == pytest.approx(told["auc_gain"]["mean"], abs=1e-12)


def test_a_model_against_itself_has_gained_nothing():
    """
    Equal scores have a difference of exactly zero, with an interval of no width.
    """
    pairs = drawn(4)
    same = Pairs(pairs.loop, pairs.loop, pairs.labels, pairs.days, 0, 0)
    assert tuple(auc_interval(same, 100, 1)[name] for name in ("mean", "low", "high")) == (0.0, 0.0, 0.0)
    assert tuple(log_loss_interval(same)[name] for name in ("mean", "low", "high")) == (0.0, 0.0, 0.0)


def served() -> Served:
    """Three days: none without a model, then the first model alone, then another with the first as its shadow."""
    told = Served()
    for day, question, champion, shadow in ((0, "A", "", ""), (1, "B", "d1", ""), (2, "C", "d2", "d1"), (2, "D", "d2", "")):
        visible = datetime.fromtimestamp((START_MS + day * DAY_MS) / 1000, UTC)
        told_by = {"id": question, "visible": visible, "event_offset": day, "row": b"", "deployment": 0, "flags": 0, "arm": ""}
        told.add_answer(0, {**told_by, "digest": champion, "shadow": False, "score": 0.3})
        if shadow:
            told.add_answer(0, {**told_by, "digest": shadow, "shadow": True, "score": 0.6})
        told.add_example({"id": question, "label": 1, "revision": 0, "origin": "arrivals"})
    return told


def test_pairs_begin_with_the_first_model_and_follow_its_shadow():
    """
    While it is champion the frozen model's score is the served one; after that its shadow's.
    """
    pairs = pairs_of(served())
    assert (pairs.loop.tolist(), pairs.frozen.tolist(), pairs.days.tolist()) == ([0.3, 0.3], [0.3, 0.6], [1, 2])


def test_a_flight_that_the_frozen_model_did_not_score_is_counted():
    """
    It cannot be compared, and is told.
    """
    assert pairs_of(served()).without_frozen == 1


def test_no_model_yet_is_said_in_words():
    """
    A stack that has only degraded answers has no quality to measure.
    """
    with pytest.raises(SystemExit, match="no model"):
        pairs_of(Served())
