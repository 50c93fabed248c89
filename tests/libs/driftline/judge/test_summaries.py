"""Summaries add up to the same bytes in any order, and hold enough for the metrics that are made of them."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.judge.summaries import (
    SCORE_BINS,
    UNIT,
    AnswersSummary,
    Arm,
    ExamplesSummary,
    Inputs,
    Pairs,
    Quality,
    SliceQuality,
    added,
    counted,
    encoded,
    fixed,
    label_bins,
    log_losses,
    score_bins,
)

COUNT = st.integers(0, 1_000)
SUM = st.integers(-(10**12), 10**12)
BINS = st.lists(COUNT, min_size=SCORE_BINS, max_size=SCORE_BINS)
SPARSE = st.dictionaries(st.integers(0, 399).map(str), COUNT, max_size=5)
PAIRS = st.builds(Pairs, COUNT, SUM, SUM, COUNT, COUNT, BINS, BINS)


def arms(key: str) -> st.SearchStrategy[Arm]:
    role, digest = key.split("|")
    return st.builds(Arm, st.just(role), st.just("m"), st.just(digest), COUNT, COUNT, COUNT, COUNT, COUNT, SUM, BINS, PAIRS)


def keyed(keys: list[str], of: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={key: of(key) for key in keys})


INPUTS = st.builds(
    Inputs,
    COUNT,
    st.fixed_dictionaries({}, optional={"delay": st.lists(COUNT, min_size=4, max_size=4)}),
    st.fixed_dictionaries({}, optional={"delay": COUNT}),
)
SLICES = st.fixed_dictionaries(
    {}, optional={"origin": st.dictionaries(st.sampled_from(["EWR", "JFK"]), st.builds(SliceQuality, COUNT, COUNT, SUM, SUM))}
)


def qualities(key: str) -> st.SearchStrategy[Quality]:
    role, digest = key.split("|")
    sums = [COUNT, COUNT, COUNT, SUM, SUM, SUM, SUM]
    return st.builds(Quality, st.just(role), st.just("m"), st.just(digest), *sums, SPARSE, SPARSE, SLICES)


KEYS = ["champion|a", "canary|b", "frozen|c"]
ANSWERS = st.builds(AnswersSummary, keyed(KEYS, arms), keyed(["a", "b", ""], lambda _: INPUTS))
EXAMPLES = st.builds(ExamplesSummary, keyed(KEYS, qualities), COUNT, COUNT, COUNT, COUNT)


@given(
    st.lists(ANSWERS | EXAMPLES, min_size=3, max_size=3).filter(lambda some: len({type(one) for one in some}) == 1),
    st.permutations(range(3)),
)
def test_summaries_add_up_to_the_same_bytes_in_any_order_and_grouping(some: list[Any], order: list[int]) -> None:
    """
    Addition is associative and commutative, to the byte.
    """
    one, two, three = some
    together = encoded(one + two + three)
    assert encoded(one + (two + three)) == together
    assert encoded(reduce(add, (some[at] for at in order))) == together


@given(ANSWERS | EXAMPLES)
def test_empty_summary_changes_nothing(summary: Any) -> None:
    """
    A partition that saw nothing adds nothing.
    """
    assert encoded(summary + type(summary)()) == encoded(summary)


@given(ANSWERS | EXAMPLES)
def test_summary_survives_its_encoding(summary: Any) -> None:
    """
    What goes through the log is what was counted.
    """
    assert msgspec.json.decode(encoded(summary), type=type(summary)) == summary


def test_adding_edits_neither_side() -> None:
    """
    A sum is a new value.
    """
    one, other = AnswersSummary(inputs={"a": Inputs(1, {"x": [1, 0]})}), AnswersSummary(inputs={"a": Inputs(2, {"x": [0, 2]})})
    assert (one + other).inputs["a"] == Inputs(3, {"x": [1, 2]})
    assert (one.inputs["a"].bins, other.inputs["a"].bins) == ({"x": [1, 0]}, {"x": [0, 2]})


def test_newest_deployment_and_first_answer_are_kept() -> None:
    """
    The extremes of an arm survive, whichever partition had them.
    """
    one, other = Arm("champion", "m", "a", deployment=3, since=50), Arm("champion", "m", "a", deployment=4, since=20)
    assert ((one + other).deployment, (one + other).since) == (4, 20)


def test_counts_of_different_models_cannot_be_added() -> None:
    """
    A mix-up of keys is an error, not a number.
    """
    with pytest.raises(ValueError, match="'a' and 'b'"):
        added("a", "b")


@given(st.lists(st.floats(0, 1, width=32), max_size=50), st.integers(0, 50))
def test_sum_does_not_depend_on_where_it_is_cut(values: list[float], cut: int) -> None:
    """
    Fixed-point sums of parts add up to the sum of the whole, exactly.
    """
    whole = np.array(values, np.float64)
    assert fixed(whole[:cut]) + fixed(whole[cut:]) == fixed(whole)
    assert fixed(whole) * UNIT == pytest.approx(whole.sum(), abs=1e-6)


def quality_of(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Quality:
    places = label_bins(scores)
    return Quality(
        "champion",
        "m",
        "a",
        len(scores),
        positives=int(labels.sum()),
        positive_bins=counted(places[labels == 1]),
        negative_bins=counted(places[labels == 0]),
    )


def test_auc_of_bins_is_that_of_ranks() -> None:
    """
    The area from bins is within a thousandth of the area from every pair.
    """
    draw = np.random.default_rng(11)
    scores = draw.beta(2, 6, 3_000)
    labels = (draw.random(3_000) < scores).astype(np.int64)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    exact = np.mean(positives[:, None] > negatives[None, :])
    assert quality_of(scores, labels).auc == pytest.approx(exact, abs=1e-3)


def test_auc_needs_both_labels() -> None:
    """
    With positives alone there is nothing to rank.
    """
    assert quality_of(np.array([0.2, 0.8]), np.array([1, 1])).auc is None


def test_residual_is_in_binomial_deviations() -> None:
    """
    Sixty positives where fifty were expected of a hundred even chances are two deviations.
    """
    quality = Quality("champion", "m", "a", 100, positives=60, expected=round(50 / UNIT), variance=round(25 / UNIT))
    assert quality.z == pytest.approx(2.0)
    assert Quality("champion", "m", "a").z is None


def test_log_loss_of_certain_errors_is_finite() -> None:
    """
    A probability of 0 for what happened costs much, not infinity.
    """
    losses = log_losses(np.array([0.0, 1.0, 0.5]), np.array([1, 0, 1]))
    assert np.isfinite(losses).all()
    assert losses[2] == pytest.approx(np.log(2))


def test_every_probability_has_a_bin() -> None:
    """
    The ends belong to the first and last bins.
    """
    assert score_bins(np.array([0.0, 0.05, 0.999, 1.0])).tolist() == [0, 1, 19, 19]
    assert label_bins(np.array([0.0, 1.0])).tolist() == [0, 399]


def test_a_model_told_under_two_names_is_added_all_the_same() -> None:
    """
    Its digest is what counts. A name that one bit made another must not stop the counting.
    """
    one, other = Arm("champion", "flights-1", "d", 1, 5, rows=2), Arm("champion", "fnights-1", "d", 1, 4, rows=3)
    assert (one + other) == (other + one)
    assert ((one + other).rows, (one + other).model) == (5, "flights-1")
    cohorts = [Quality("champion", name, "d", 4) for name in ("flights-1", "fnights-1")]
    assert (cohorts[0] + cohorts[1]).rows == 8
