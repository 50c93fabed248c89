"""What a report says of a window, number by number."""

from __future__ import annotations

from typing import Any

import pytest

from driftline.judge.drift import Reference
from driftline.judge.summaries import SCORE_BINS, UNIT, AnswersSummary, Arm, ExamplesSummary, Inputs, Pairs, Quality, SliceQuality
from services.drift.report import beyond, inputs_of, missing_without_model, models_of, newest_champion, quality_of, rounded, scores_of


def histogram(at: int, rows: int) -> list[int]:
    return [rows if place == at else 0 for place in range(SCORE_BINS)]


def arm(role: str, digest: str, deployment: int = 3, rows: int = 300, at: int = 5, **fields: Any) -> Arm:
    total = round(rows * (at + 0.5) / SCORE_BINS / UNIT)
    return Arm(role, f"model-{digest}", digest, deployment, 0, rows, scores=histogram(at, rows), total=total, **fields)


def window(*arms: Arm, **inputs: Inputs) -> AnswersSummary:
    return AnswersSummary({f"{one.role}|{one.digest}": one for one in arms}, inputs)


@pytest.fixture
def reference(references: Any) -> Reference:
    found: Reference = references("one")
    return found


def test_inputs_are_compared_with_what_the_model_was_trained_on(reference: Reference) -> None:
    """
    PSI, missing now and then; out of range only where the bundle keeps bounds.
    """
    same = Inputs(1_000, {"delay": [400, 300, 300, 0], "wind": [0, 500, 500]})
    inputs = inputs_of(same, reference)
    assert inputs["delay"]["psi"] == pytest.approx(0.0, abs=1e-6)
    assert inputs["wind"]["psi"] > 1
    assert (inputs["wind"]["missing"], inputs["wind"]["missing_at_training"], inputs["wind"]["out_of_range"]) == (0.5, 0.0, None)


def test_window_without_rows_has_no_inputs(reference: Reference) -> None:
    """
    Nothing was asked, nothing is said.
    """
    assert inputs_of(Inputs(), reference) == {}
    assert missing_without_model(window()) == {}


def test_missing_rates_are_told_without_a_model() -> None:
    """
    Even the first weeks say whether inputs arrive.
    """
    found = missing_without_model(AnswersSummary(inputs={"": Inputs(10, {"delay": [6, 4]})}))
    assert found == {"delay": {"missing": 0.4}}


def test_champion_is_the_one_of_the_newest_deployment() -> None:
    """
    On the day of the switch both have served.
    """
    champion = newest_champion(window(arm("champion", "one", 3), arm("champion", "two", 4), arm("frozen", "zero", 4)))
    assert champion is not None
    assert champion.digest == "two"


def test_shadow_is_compared_on_the_rows_that_both_scored() -> None:
    """
    Difference of the means, PSI and alert rates come from pairs.
    """
    pairs = Pairs(250, round(-25 / UNIT), round(100 / UNIT), 10, 40, histogram(3, 250), histogram(7, 250))
    found = models_of(window(arm("champion", "one"), arm("candidate", "two", pairs=pairs)))["two"]
    assert (found["n"], found["nan"], found["role"], found["paired_n"]) == (300, 0, "candidate", 250)
    assert (found["paired_mean_difference"], found["paired_champion_mean"]) == (pytest.approx(-0.1), pytest.approx(0.4))
    assert (found["paired_alert_rate"], found["paired_champion_alert_rate"]) == (0.04, 0.16)
    assert found["psi_vs_champion"] > 1


def test_canary_without_pairs_is_compared_by_distribution() -> None:
    """
    Its keys are drawn by hash, so the champion's rows are like its own.
    """
    found = models_of(window(arm("champion", "one"), arm("canary", "two", at=15)))
    assert found["two"]["psi_vs_champion"] > 1
    assert found["two"]["paired_mean_difference"] is None
    assert found["one"]["psi_vs_champion"] is None


def test_model_in_two_roles_is_one_model_with_the_newer_role() -> None:
    """
    The candidate that became canary during the window.
    """
    found = models_of(window(arm("champion", "one"), arm("candidate", "two", 3, invalid=3, alerts=10), arm("canary", "two", 4, rows=100)))[
        "two"
    ]
    assert (found["role"], found["roles"], found["n"], found["nan"]) == ("canary", ["canary", "candidate"], 400, 3)
    assert found["alert_rate"] == pytest.approx(10 / 397)


def test_answers_without_a_model_are_no_model() -> None:
    """
    The fallback is not judged.
    """
    assert models_of(window(arm("none", ""))) == {}


def test_scores_are_compared_with_those_of_training(reference: Reference) -> None:
    """
    Evenly spread then, all in one bin now.
    """
    found = scores_of(arm("champion", "one"), reference)
    assert found["psi"] > 1
    assert found["mean"] == pytest.approx(0.275)


def test_quality_of_a_cohort_is_told_by_model_and_slice() -> None:
    """
    Log loss, calibration, residual with dispersion, and the same for each value of each slice.
    """
    slices = {"origin": {"EWR": SliceQuality(40, 10, round(8 / UNIT), round(20 / UNIT))}}
    sums = {"expected": round(50 / UNIT), "variance": round(25 / UNIT), "log_loss": round(60 / UNIT), "brier": round(20 / UNIT)}
    cohort = ExamplesSummary({"champion|one": Quality("champion", "flights-1", "one", 100, 0, 60, slices=slices, **sums)})
    found = next(quality_of(77, cohort, lambda digest: 4.0))
    assert (found["cohort"], found["digest"], found["role"], found["n"], found["positives"]) == (77, "one", "champion", 100, 60)
    assert (found["log_loss"], found["brier"], found["o_over_e"]) == (pytest.approx(0.6), pytest.approx(0.2), pytest.approx(1.2))
    assert found["z"] == pytest.approx(1.0)
    assert found["slices"]["origin"]["EWR"] == {"n": 40, "positives": 10, "log_loss": pytest.approx(0.5), "o_over_e": pytest.approx(1.25)}


def test_subjects_without_enough_rows_are_neither_beyond_nor_within() -> None:
    """
    A quiet night must not end an alarm.
    """
    assert beyond({"delay": {"psi": 0.3}, "wind": {"psi": None}, "sky": {"missing": 0.1}}, {"psi": 0.1}) == {
        "input:delay": True,
        "score": False,
    }


def test_text_of_a_report_is_stable() -> None:
    """
    Six digits, and nothing that JSON cannot say.
    """
    assert rounded({"a": [0.12345678, float("nan")], "b": {"c": 1, "d": True, "e": "x", "f": None}}) == {
        "a": [0.123457, None],
        "b": {"c": 1, "d": True, "e": "x", "f": None},
    }
