"""A graph says what the trained model says, on any row, in any batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.declaration import LightGBM, Logistic
from driftline.errors import Invalid
from driftline.models.onnx import Session
from driftline.models.recipes import describe, fit, invariant, parity, recipe_of, round_down

RECIPES = [LightGBM(trees=30, leaf_rows_min=20), Logistic()]


def rows(n=3000, seed=1):
    """
    Five features on different scales: smooth with holes, coarse, never missing, always missing, and large. The label depends
    on the first two.
    """
    chance = np.random.default_rng(seed)
    matrix = chance.normal(size=(n, 5)).astype(np.float32)
    matrix[:, 1] = np.round(matrix[:, 1] * 2) / 10
    matrix[:, 4] = matrix[:, 4] * 1000 + 20_000
    labels = (chance.random(n) < 1 / (1 + np.exp(-(matrix[:, 0] + 5 * matrix[:, 1] - 0.5)))).astype(np.int64)
    matrix[chance.random(n) < 0.1, 0] = np.nan
    matrix[:, 3] = np.nan
    return matrix, labels


def with_holes(matrix):
    """Missing values where training saw none, whole rows of them, zeros, and values that training never saw."""
    holes = matrix.copy()
    holes[::3, 2] = np.nan
    holes[::7] = np.nan
    holes[::5, 1] = 0.0
    holes[::11] *= 1e6
    return holes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_every_recipe_exports_what_it_trained(recipe):
    """
    Within 1e-5 on each row, those among them with missing values that training never saw.
    """
    matrix, labels = rows()
    fitted = fit(recipe, matrix, labels, 7)
    session = Session(fitted.onnx())
    assert parity(fitted, session, matrix) <= 1e-5
    assert parity(fitted, session, with_holes(matrix)) <= 1e-5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_every_recipe_scores_a_row_the_same_in_any_batch(recipe):
    """
    Byte for byte, alone and among others.
    """
    matrix, labels = rows()
    session = Session(fit(recipe, matrix, labels, 7).onnx())
    assert invariant(session, with_holes(matrix[:600]))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_every_recipe_gives_the_same_bytes_again(recipe):
    """
    Or nothing could be reproduced.
    """
    matrix, labels = rows()
    assert fit(recipe, matrix, labels, 7).onnx() == fit(recipe, matrix.copy(), labels, 7).onnx()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_every_recipe_learns_and_leaves_its_input_alone(recipe):
    """
    Scores of positives lie above those of negatives, and the rows are as before.
    """
    matrix, labels = rows()
    before = matrix.tobytes()
    scores = fit(recipe, matrix, labels, 7).predict(matrix)
    assert scores[labels == 1].mean() > scores[labels == 0].mean()
    assert matrix.tobytes() == before


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_refused(recipe, label):
    """
    There is nothing to tell apart.
    """
    with pytest.raises(Invalid, match="one class"):
        fit(recipe, np.zeros((10, 2), np.float32), np.full(10, label), 7)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_a_recipe_can_be_read_back_from_its_description(recipe):
    """
    As a manifest keeps it.
    """
    assert recipe_of(describe(recipe)) == recipe


def test_a_recipe_of_an_unknown_kind_is_refused():
    """
    A manifest of a later version is not guessed at.
    """
    with pytest.raises(Invalid, match="oracle"):
        recipe_of({"kind": "oracle"})


def test_trees_without_a_split_still_make_a_graph():
    """
    Where no leaf could be large enough, the model is the base rate.
    """
    matrix, labels = rows(100)
    fitted = fit(LightGBM(trees=3, leaf_rows_min=1000), matrix, labels, 7)
    session = Session(fitted.onnx())
    assert parity(fitted, session, matrix) <= 1e-5
    assert session.score(matrix)[0] == pytest.approx(labels.mean(), abs=1e-4)


def test_a_rounded_threshold_splits_floats_as_the_double_did():
    """
    The case that plain rounding gets wrong: the nearest float32 lies above the threshold.
    """
    threshold = 0.1  # float32(0.1) is larger
    assert float(np.float32(threshold)) > threshold
    assert round_down(threshold) == np.nextafter(np.float32(0.1), np.float32(0))


@given(st.floats(-1e40, 1e40), st.floats(width=32, allow_nan=False))
def test_no_float_falls_on_another_side_of_a_rounded_threshold(threshold, value):
    """
    For any double and any float32.
    """
    with np.errstate(over="ignore"):
        above = np.nextafter(round_down(threshold), np.float32(np.inf))
    for near in (np.float32(value), round_down(threshold), above):
        assert (float(near) <= threshold) == bool(near <= round_down(threshold))


def test_a_graph_that_is_not_the_model_is_found_out():
    """
    The proof refuses another model's graph, and one that gives no number.
    """
    matrix, labels = rows()
    one = fit(LightGBM(trees=20, leaf_rows_min=20), matrix, labels, 7)
    other = fit(LightGBM(trees=10, leaf_rows_min=20), matrix, labels, 7)
    assert parity(one, Session(other.onnx()), matrix) > 1e-3
