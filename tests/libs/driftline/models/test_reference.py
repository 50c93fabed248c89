"""The histograms that come with a model."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from driftline.models.reference import FEATURE_BINS, SCORE_BINS, bin_counts, make_reference, medians, quantile_edges

columns = some.arrays(np.float32, st.integers(0, 60), elements=st.floats(-100, 100, width=32) | st.just(float("nan")))


@given(columns)
def test_every_value_is_counted_in_one_bin_and_the_missing_ones_last(values):
    """
    The counts add up to the rows, whatever repeats or is missing.
    """
    edges = quantile_edges(values, FEATURE_BINS)
    counts = bin_counts(values, edges)
    assert sorted(set(edges)) == edges
    assert len(counts) == len(edges) + 2
    assert sum(counts) == len(values)
    assert counts[-1] == np.isnan(values).sum()


@given(columns)
def test_no_present_bin_of_the_training_rows_is_empty(values):
    """
    Each edge is one of the values, and none is the smallest, so that every bin holds some training row.
    """
    edges = quantile_edges(values, FEATURE_BINS)
    present = np.count_nonzero(~np.isnan(values))
    assert all(count > 0 for count in bin_counts(values, edges)[:-1]) or not present


def test_quantile_bins_share_distinct_values_out_evenly():
    """
    A hundred different values make ten bins of ten.
    """
    values = np.random.default_rng(1).permutation(100).astype(np.float32)
    assert bin_counts(values, quantile_edges(values, FEATURE_BINS)) == [10] * 10 + [0]


def test_a_reference_names_every_feature_and_counts_scores_in_equal_bins():
    """
    Features have bins and bounds of their own, scores have twenty between 0 and 1.
    """
    matrix = np.array([[1, np.nan], [2, np.nan], [3, np.nan]], np.float32)
    reference = make_reference(("a", "b"), matrix, np.array([0.0, 0.5, 1.0], np.float32))
    assert reference["edges"] == {"a": [2.0, 3.0], "b": []}
    assert reference["counts"] == {"a": [1, 1, 1, 0], "b": [0, 3]}
    assert (reference["lowest"], reference["highest"]) == ({"a": 1.0, "b": 0.0}, {"a": 3.0, "b": 0.0})
    assert len(reference["score_edges"]) == SCORE_BINS - 1
    assert reference["score_counts"] == [1] + [0] * 9 + [1] + [0] * 8 + [1, 0]


def test_a_median_is_one_of_the_values_and_none_where_all_are_missing():
    """
    Ablation puts back a value that really occurred.
    """
    matrix = np.array([[4, np.nan], [1, np.nan], [np.nan, np.nan], [9, np.nan], [2, np.nan]], np.float32)
    assert medians(("a", "b"), matrix) == {"a": 2.0, "b": None}
