"""Why a score is what it is: by what it would be with one feature as usual."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from driftline.models.why import effects

Matrix = npt.NDArray[np.float32]


class Product:
    """A model whose two features act together, and whose third does nothing."""

    medians = np.array([1, 2, 3], np.float32)

    def score(self, matrix: Matrix) -> Matrix:
        return matrix[:, 0] * matrix[:, 1]


def test_an_effect_is_what_the_score_would_lose() -> None:
    """
    Exact for each; they need not add up, and what the model does not look at has none.
    """
    score, found = effects(Product(), np.array([4, 5, 9], np.float32))
    assert score == 20.0
    assert found.tolist() == [20 - 1 * 5, 20 - 4 * 2, 0]


def test_a_typical_row_has_no_effects() -> None:
    """
    Nothing in it is unusual.
    """
    assert effects(Product(), Product.medians)[1].tolist() == [0, 0, 0]


def test_where_the_model_gives_no_number_there_is_none() -> None:
    """
    Nor is one made up; with the median in the place of the missing value there is a score, and still no difference.
    """
    score, found = effects(Product(), np.array([np.nan, 5, 9], np.float32))
    assert np.isnan(score) and np.isnan(found).all()
    assert effects(Product(), np.array([1, 5, 9], np.float32))[0] == pytest.approx(5)
