"""Distances of a window from its reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.errors import Invalid
from driftline.judge.drift import Reference, held, js, psi

COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=12)


def reference(**changes: object) -> Reference:
    return Reference.of({"edges": {"delay": [0.0, 10.0]}, "counts": {"delay": [5, 5, 5, 1]}, "score_counts": [1] * 20, **changes}, 4.9)


def test_psi_of_a_known_shift_is_its_textbook_value() -> None:
    """
    From even halves to one in four and three in four: (0.25) ln 1.5 + (-0.25) ln 0.5, but for the smoothing.
    """
    expected = 0.25 * np.log(1.5) - 0.25 * np.log(0.5)
    assert psi([500_000, 500_000], [750_000, 250_000]) == pytest.approx(expected, abs=1e-4)


@given(COUNTS)
def test_same_distribution_has_no_distance(counts: list[int]) -> None:
    """
    A histogram is at distance 0 from itself.
    """
    assert psi(counts, counts, rows_min=0) in (None, pytest.approx(0.0))
    assert js(counts, counts, rows_min=0) in (None, pytest.approx(0.0))


@given(st.data())
def test_distances_are_finite_and_js_is_at_most_one(data: st.DataObject) -> None:
    """
    Empty bins on either side make no infinity.
    """
    one = data.draw(COUNTS)
    other = data.draw(st.lists(st.integers(0, 10_000), min_size=len(one), max_size=len(one)))
    distance, divergence = psi(one, other, rows_min=0), js(one, other, rows_min=0)
    assert distance is None or 0.0 <= distance < 100.0
    assert divergence is None or -1e-12 <= divergence <= 1.0


def test_too_few_rows_have_no_distance() -> None:
    """
    Below the minimum of samples nothing is said.
    """
    assert psi([100, 100], [99, 100]) is None
    assert js([100, 100], [99, 100]) is None
    assert psi([100, 100], [100, 100]) is not None


def test_bins_are_those_of_the_bundle() -> None:
    """
    A value on an edge belongs to the bin above it, NaN is counted last.
    """
    values = np.array([-1.0, 0.0, 9.9, 10.0, np.nan], np.float32)
    assert reference().bins("delay", values) == [1, 2, 1, 1]


def test_values_that_training_never_reached_are_counted_where_the_bundle_keeps_bounds() -> None:
    """
    Below the lowest or above the highest is outside; missing is not.
    """
    values = np.array([-31.0, 5.0, 241.0, np.nan], np.float32)
    bounded = reference(lowest={"delay": -30.0}, highest={"delay": 240.0})
    assert bounded.outside("delay", values) == 2
    assert reference().outside("delay", values) == 0


def test_dispersion_is_never_less_than_binomial() -> None:
    """
    A model whose days happened to scatter less than chance gets no tighter chart for it.
    """
    plain = {"edges": {}, "counts": {}, "score_counts": []}
    assert Reference.of(plain, 0.3).dispersion == 1.0
    assert reference().dispersion == 4.9


def test_reference_whose_counts_do_not_fit_its_edges_is_refused() -> None:
    """
    Two edges make three bins and one for missing.
    """
    with pytest.raises(Invalid, match="delay"):
        reference(counts={"delay": [1, 2, 3]})


@pytest.mark.parametrize(
    ("last", "stands"), [([True], False), ([True, True], True), ([True, False, True], True), ([True, True, False, False], False)]
)
def test_alarm_stands_for_two_windows_of_three(last: list[bool], stands: bool) -> None:
    """
    One window beyond the limit raises nothing, and one within it ends nothing.
    """
    assert held(last) is stands
