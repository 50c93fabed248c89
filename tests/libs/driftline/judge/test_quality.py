"""How good probabilities were: against slow and plain versions of the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.judge import quality

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=40)


def as_arrays(pairs):
    labels = np.array([label for label, _ in pairs])
    return labels, np.array([score / 6 for _, score in pairs], np.float32)


@given(rows)
def test_auc_is_the_share_of_pairs_in_the_right_order_ties_counting_half(pairs):
    """
    The rank statistic equals counting all pairs of a positive and a negative.
    """
    labels, scores = as_arrays(pairs)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    if not len(positives) or not len(negatives):
        assert np.isnan(quality.auc(labels, scores))
        return
    won = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert quality.auc(labels, scores) == pytest.approx(np.mean(won))


@given(rows)
def test_average_precision_takes_one_step_for_each_distinct_score(pairs):
    """
    Equal scores enter together, so the order of ties cannot matter.
    """
    labels, scores = as_arrays(pairs)
    if not labels.any():
        assert np.isnan(quality.average_precision(labels, scores))
        return
    expected, recall = 0.0, 0.0
    for limit in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= limit
        reached = labels[taken].sum() / labels.sum()
        expected += (reached - recall) * labels[taken].mean()
        recall = reached
    assert quality.average_precision(labels, scores) == pytest.approx(expected)


def test_log_loss_of_a_sure_mistake_is_finite():
    """
    A float32 score may be exactly 0 or 1, and one such mistake must not decide a whole day.
    """
    assert np.isfinite(quality.log_loss(np.array([1, 0]), np.array([0.0, 1.0], np.float32)))


def test_log_loss_and_brier_of_a_known_case():
    """
    Half and half costs the logarithm of two, and a quarter.
    """
    labels, scores = np.array([1, 0]), np.array([0.5, 0.5], np.float32)
    assert quality.log_loss(labels, scores) == pytest.approx(np.log(2))
    assert quality.brier(labels, scores) == pytest.approx(0.25)


def test_observed_over_expected_is_one_when_as_many_came_as_were_promised():
    """
    Two positives where the probabilities add up to two.
    """
    assert quality.observed_over_expected(np.array([1, 1, 0, 0]), np.full(4, 0.5)) == 1.0


def test_what_has_no_rows_has_no_quality():
    """
    An empty window gives NaN, not an error and not a zero.
    """
    nothing = np.empty(0)
    summary = quality.summary(nothing, nothing)
    assert (summary.pop("rows"), summary.pop("positives")) == (0.0, 0.0)
    assert all(np.isnan(value) for value in summary.values())


def test_dispersion_is_one_or_more_and_grows_when_days_move_together():
    """
    Days that are all positive or all negative vary far more than rows by themselves would.
    """
    scores, days = np.full(200, 0.5), np.repeat(np.arange(10), 20)
    steady = np.tile([0, 1], 100)
    together = (days % 2 == 0).astype(np.int64)
    assert quality.dispersion(steady, scores, days) == 1.0
    assert quality.dispersion(together, scores, days) == pytest.approx(20.0)
