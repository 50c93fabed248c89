"""
A row is packed once and read everywhere as the same numbers.
"""

from __future__ import annotations

import numpy as np
import pytest

from driftline.errors import Invalid
from driftline.features.row import RowLayout
from driftline.stream.batch import Varlen

LAYOUT = RowLayout("v1", ("a", "b", "c"), ("card", "shop"), (0, 1, -1))
FEATURES = np.array([[1.5, np.nan, -3.0], [4.0, 5.0, 6.0]], np.float32)
AGES = np.array([[10.0, np.nan], [20.0, 30.0]], np.float32)


def test_features_and_ages_come_back_as_they_were_packed() -> None:
    """
    Packing and reading are inverse, missing values included.
    """
    rows = LAYOUT.pack(FEATURES, AGES)
    np.testing.assert_array_equal(LAYOUT.matrix(rows), FEATURES)
    np.testing.assert_array_equal(LAYOUT.ages(rows), AGES)
    assert rows[0] == np.array([1.5, np.nan, -3.0, 10.0, np.nan], "<f4").tobytes()


@pytest.mark.parametrize("before", [b"", b"x", b"12345678"])
def test_rows_are_read_wherever_they_lie_in_a_buffer(before: bytes) -> None:
    """
    Rows between other bytes, aligned or not, end to end or apart, give the same numbers.
    """
    packed = LAYOUT.pack(FEATURES, AGES).tolist()
    apart = Varlen.of([before, packed[0], b"??", packed[1]]).take(np.array([1, 3]))
    together = Varlen.of([before, *packed]).take(np.array([1, 2]))
    for rows in (apart, together):
        np.testing.assert_array_equal(LAYOUT.matrix(rows), FEATURES)


def test_rows_end_to_end_are_not_copied() -> None:
    """
    Reading a poll's rows costs nothing when they lie as they were packed.
    """
    rows = LAYOUT.pack(FEATURES, AGES)
    assert np.shares_memory(LAYOUT.matrix(rows), rows.data)


def test_no_rows_are_a_matrix_of_no_rows() -> None:
    """
    An empty batch has the right shape.
    """
    assert LAYOUT.matrix(Varlen.of([])).shape == (0, 3)


def test_a_row_of_another_version_is_refused() -> None:
    """
    Another length means another definition, in both directions.
    """
    with pytest.raises(Invalid, match="a row of version v1 has 20 bytes; one has 16"):
        LAYOUT.matrix(Varlen.of([bytes(20), bytes(16)]))
    with pytest.raises(Invalid, match="has 5 numbers"):
        LAYOUT.pack(FEATURES, AGES[:, :1])
