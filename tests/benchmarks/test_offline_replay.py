"""The replayed rules: what has matured, what triggers, when the chart alarms, when the gate refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from independent import DAY_MS, HORIZON_MS, START_MS
from offline_replay import Model, Questions, Replay, Rules, challenge, dispersion, replay, trigger_of, watch

RULES = Rules()


class Constant:
    """A booster that says the same of everything."""

    def __init__(self, score: float) -> None:
        self.score = score

    def predict(self, matrix: np.ndarray, **_: object) -> np.ndarray:
        return np.full(len(matrix), self.score)


def model(score: float = 0.3) -> Model:
    return Model(Constant(score), 14, 1.0)  # type: ignore[arg-type]  # it predicts, which is all that is asked of it


def questions(days: int, each: int = 100, seed: int = 1, slope: float = 2.0) -> Questions:
    """Questions evenly over each day, whose first feature tells of the label."""
    chance = np.random.default_rng(seed)
    n = days * each
    matrix = chance.normal(size=(n, 3)).astype(np.float32)
    labels = (chance.random(n) < 1 / (1 + np.exp(1 - slope * matrix[:, 0]))).astype(np.int64)
    asked = START_MS + np.arange(n) * (DAY_MS // each)
    return Questions(matrix, labels, asked)


def test_only_what_is_older_than_the_horizon_has_matured():
    """
    In the morning of the third day that is the first half of the first; its last instant settles with the next tick, as in the labeler.
    """
    assert questions(3).matured(START_MS + 2 * DAY_MS) == 50
    assert HORIZON_MS == 36 * 3_600_000


@pytest.mark.parametrize(
    ("changes", "rows", "day", "wanted"),
    [
        ({"champion": None}, 0, 13, None),
        ({"champion": None}, 0, 14, "first"),
        ({"alarm": True}, 0, 26, None),
        ({"alarm": True}, 0, 27, "quality"),
        ({}, 149, 30, None),
        ({}, 150, 30, "new_labels"),
        ({"alarm": True}, 150, 30, "quality"),
        ({}, 0, 47, None),
        ({}, 0, 48, "schedule"),
    ],
)
def test_triggers_follow_their_rules(changes, rows, day, wanted):
    """
    The first on day 14; later none within the cooldown, quality before new labels before the schedule.
    """
    state = Replay(**{"champion": model(), "last_attempt": 20, "last_rows": 100, **changes})
    assert wanted == trigger_of(state, rows, day, RULES)


def test_chart_alarms_when_the_world_is_worse_than_expected():
    """
    A model that expects 30 % where 60 % come late is beyond the limit after few cohorts, a right one is not.
    """
    played = replace(questions(20), labels=(np.arange(2_000) % 10 < 6).astype(np.int64))
    wrong, right = Replay(champion=model(0.3), serves_from=2), Replay(champion=model(0.6), serves_from=2)
    for day in range(5, 20):
        watch(played, np.full(2_000, 0.3), wrong, day, RULES)
        watch(played, np.full(2_000, 0.6), right, day, RULES)
    assert (wrong.alarm, right.alarm) == (True, False)


def test_a_cohort_that_another_model_answered_is_not_charted():
    """
    The chart of a champion begins with the first day that was wholly its own.
    """
    state = Replay(champion=model(0.3), serves_from=9)
    watch(questions(20), np.full(2_000, 0.9), state, 11, RULES)
    assert (state.high, state.low) == (0.0, 0.0)


def test_a_challenger_that_learned_beats_one_that_knows_nothing():
    """
    Against a constant, a model that reads the feature passes every check.
    """
    played = questions(30, each=1_000)
    _, told = challenge(played, Replay(champion=model(0.3)), 30, "quality", RULES)
    assert (told["accepted"], told["failed"]) == (True, [])


def test_too_few_rows_are_refused():
    """
    Seven days of a hundred questions are no 5,000 rows, however good the model.
    """
    _, told = challenge(questions(30), Replay(champion=model(0.3)), 30, "quality", replace(RULES, rows_min=5_000))
    assert "enough" in told["failed"]


def test_dispersion_is_at_least_one():
    """
    Days that scatter less than chance would are no reason for a tighter chart.
    """
    labels, scores = np.array([0, 1, 0, 1]), np.full(4, 0.5)
    assert dispersion(labels, scores, np.array([0, 0, 1, 1])) == 1.0


def test_no_score_before_the_first_model_and_one_for_every_question_after():
    """
    The first model answers from the day that it was trained on, loop and frozen alike.
    """
    played = questions(17, each=400)
    served, frozen, state = replay(played, RULES)
    assert (played.days < 14).tolist() == np.isnan(served).tolist()
    assert served[played.days >= 14].tolist() == frozen[played.days >= 14].tolist()
    assert [(one["day"], one["trigger"]) for one in state.attempts] == [(14, "first")]
