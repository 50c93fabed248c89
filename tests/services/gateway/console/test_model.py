"""The page of the model: who is compared with whom, how sure one can be, and what may be done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driftline.contracts.messages import Arm, Deployment, Release, Report
from driftline.operate.models import History
from driftline.operate.tokens import Holder, Role
from driftline.pipeline import load_pipeline
from services.gateway.console import model

DAY = 86_400_000
NONE = Deployment.none()
CHAMPION, CANARY = Arm("champion", "m-1", "1" * 64, 0.75), Arm("canary", "m-2", "2" * 64, 0.25)
CANDIDATE, FROZEN = Arm("candidate", "m-2", "2" * 64, 0.0), Arm("frozen", "m-0", "0" * 64, 0.0)
APPROVER = Holder("ann", frozenset({Role.APPROVER}))
OPERATOR = Holder("bob", frozenset({Role.OPERATOR}))


def released(name: str, digest: str, verdict: str = "accepted", **evidence: Any) -> Release:
    """As the trainer would have it."""
    return Release(name, digest, verdict, "because", False, DAY, "quality", "c", "trainer", evidence)


RELEASES = [released("m-1", "1" * 64), released("m-2", "2" * 64)]
CANARY_NOW = replace(NONE, version=4, state="canary", arms=(CHAMPION, CANARY), shadows=(CANDIDATE,))
WAITING = replace(NONE, version=3, move="awaiting_approval", state="awaiting_approval", reason="m-2 waits", arms=(CHAMPION,))


def quality(digest: str, day: int, log_loss: float, n: int = 100) -> dict[str, Any]:
    """One matured day."""
    return {"digest": digest, "cohort": day * DAY, "n": n, "log_loss": log_loss, "auc": 0.7, "o_over_e": 1.0}


def test_the_challenger_is_the_canary_the_candidate_or_who_waits() -> None:
    """
    Never a frozen one; and nobody where there is none.
    """
    shadow = replace(CANARY_NOW, state="shadow", arms=(CHAMPION,), shadows=(FROZEN, CANDIDATE))
    idle = replace(shadow, state="idle", shadows=(FROZEN,))
    found = [model.sides(History(RELEASES, [WAITING], now))[1] for now in (CANARY_NOW, shadow, WAITING, idle)]
    assert [(one.role, one.model) if one else None for one in found] == [
        ("canary", "m-2"),
        ("candidate", "m-2"),
        ("candidate", "m-2"),
        None,
    ]


def test_days_are_what_is_counted() -> None:
    """
    The mean of three days with its bounds by Student's t; one day has none; of two roles on one day the larger counts.
    """
    body = {"quality": [quality("1", 1, 0.4), quality("1", 2, 0.5), quality("1", 2, 9.9, n=5), quality("1", 3, 0.6), quality("2", 1, 0.3)]}
    days = model.days_of([Report(0, DAY, (), body)], "1")
    assert [one["log_loss"] for one in days.values()] == [0.4, 0.5, 0.6]
    found = model.interval([0.4, 0.5, 0.6])
    assert found is not None
    assert (found.mean, found.high, found.low) == (
        pytest.approx(0.5),
        pytest.approx(0.5 + 0.1686, abs=1e-4),
        pytest.approx(0.3314, abs=1e-4),
    )
    assert model.interval([0.4]) is None


def test_measures_stand_side_by_side() -> None:
    """
    A dash for a challenger that has none yet.
    """
    body = {
        "quality": [quality("1" * 64, day, 0.5 + day / 100) for day in (1, 2, 3)],
        "models": {"1" * 64: {"n": 1_000, "mean": 0.2, "nan": 0}},
    }
    champion, challenger = model.sides(History(RELEASES, [], CANARY_NOW))
    found = {one.name: (one.champion, one.challenger) for one in model.measures([Report(0, DAY, (), body)], champion, challenger)}
    assert found["Log loss"] == ("0.5200 ± 0.0169", "–")
    assert (found["Matured days"], found["Answers"], found["No number"]) == (("3", "0"), ("1,000", "–"), ("0", "–"))


@pytest.mark.parametrize("words", ["the day-mean log loss differs by -0.0200 on 7 days", "on 7 days (difference -0.0200, 95% bound)"])
def test_the_difference_that_the_gate_judged_by_is_drawn(words: str) -> None:
    """
    From its mean, which the gate has in words, and its bound: an interval on a line with zero.
    """
    bound = {"name": "bound", "passed": True, "value": -0.005, "limit": "below +0.0000", "detail": words}
    (found,) = model.judged(History([released("m-2", "2" * 64, checks=[bound])], [], NONE))
    assert found.difference is not None and found.scale is not None
    assert (found.difference.low, found.difference.high) == (pytest.approx(-0.035), -0.005)
    assert 0 < found.scale.low < found.scale.mean < found.scale.high < found.scale.zero < 100


def test_a_release_without_evidence_has_no_interval() -> None:
    """
    As one that was offered past the gate.
    """
    (found,) = model.judged(History([released("m-2", "2" * 64)], [], NONE))
    assert (found.checks, found.difference, found.scale) == ((), None, None)


def test_the_way_of_a_candidate_shows_where_it_is() -> None:
    """
    What is behind it, where it is, what is ahead; nothing where there is no candidate.
    """
    flights = load_pipeline("flights", Path(__file__).parents[4] / "pipelines")
    assert [one.state for one in model.steps(flights, CANARY_NOW)] == ["done", "now", "ahead"]
    assert [one.state for one in model.steps(flights, replace(CANARY_NOW, state="idle", arms=(CHAMPION,)))] == ["ahead"] * 3


def test_buttons_are_for_what_makes_sense_now_and_for_whoever_may() -> None:
    """
    Approve while one waits, promote while one is on trial, by an approver; the rest by an operator.
    """

    def usable(now: Deployment, holder: Holder) -> list[str]:
        return [one.path for one in model.actions(History([], [], now), holder) if one.sensible and one.allowed]

    assert usable(WAITING, APPROVER) == ["approve"]
    assert usable(CANARY_NOW, APPROVER) == ["promote"]
    assert usable(CANARY_NOW, OPERATOR) == ["pause", "rollback"]
    assert usable(replace(CANARY_NOW, state="canary, paused"), OPERATOR) == ["resume", "rollback"]
    assert usable(NONE, OPERATOR) == usable(NONE, APPROVER) == []


def test_the_answer_to_a_command_is_told_in_words() -> None:
    """
    Moved, refused with the reason, or not answered yet.
    """
    moved, refused = replace(NONE, move="canary", reason="more keys"), replace(NONE, reason="there is no candidate")
    found = [model.answer(one, "promote-17") for one in (moved, refused, None)]
    assert [one[0] if one else "" for one in found] == ["moved", "refused", "waiting"]
    assert found[1] == ("refused", "promote changed nothing: there is no candidate")
    assert model.answer(None, "") is None
