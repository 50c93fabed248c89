"""The page says what was run, what was wrong, and what was not run."""

from __future__ import annotations

from typing import Any

from report import WANTED, page, wrong

TRIAL = {"dose": "kill", "service": "feature", "how": "after_ack", "whole": False, "recovery_s": 0.5, "told": {}}
KNOWN_DOSES = {"kill", "pause", "join", "cut", "flush", "proxy", "overload"}


def result(part: str, trials: list[dict[str, Any]], violations: list[str], lost: str = "") -> dict[str, Any]:
    figures = {"asked": 1_000, "predicted_once": 1_000, "lost": 0, "repeated": {"features": 7}, "violations": violations, "seconds": 3.0}
    return {
        "part": part,
        "command": f"make faults --part {part}",
        "began": "2026-01-01T00:00:00+00:00",
        "seconds": {"all_s": 60.0},
        "machine": {"cpus": 2, "cpu": "a", "memory_gib": 8, "system": "Linux", "python": "3.11.7"},
        "fed": {"day": 9, "messages": 5_000},
        "mix": {},
        "lost": lost,
        "exits": [],
        "trials": trials,
        "checks": {"check_log.py": figures},
    }


def line(text: str, words: str) -> str:
    return next(one for one in text.splitlines() if one.startswith(f"| {words}"))


def test_what_was_not_run_is_said_to_be_not_run():
    """
    A dose that no part has given is named all the same.
    """
    text = page([result("kills", [TRIAL] * 3, [])])
    assert line(text, "kill -9 of feature") == "| kill -9 of feature | 200 | 3 | 0 | `make faults --part kills` |"
    assert text.count("**not run**") == len(WANTED)  # all but feature, and the upstream's faults
    assert {dose for dose, *_ in WANTED} == KNOWN_DOSES


def test_a_violation_and_a_play_that_broke_off_are_on_the_page():
    """
    In words, and counted at the doses of that play.
    """
    broken = result("kills", [TRIAL], ["rows differ"], lost="feature did not come back")
    assert wrong(broken) == ["the play could not go on: feature did not come back", "rows differ"]
    text = page([broken])
    assert "| 200 | 1 | 2 |" in text
    assert "- kills: rows differ" in text


def test_memory_that_grows_under_overload_is_a_violation():
    """
    A queue without a limit would show there. The trainer's memory is that of its window of examples.
    """
    grown = {**TRIAL, "dose": "overload", "told": {"memory_grown_mb": {"labeler": 300, "drift": 10, "trainer": 500}}}
    assert wrong(result("overload", [grown], [])) == ["under overload of feature labeler grew by 300 MB"]


def test_recovery_is_told_by_who_was_killed_and_how_much_of_it():
    """
    Percentiles of the trials that were measured; how many were not is visible.
    """
    slow = [{**TRIAL, "whole": True, "recovery_s": seconds} for seconds in (1.0, 2.0, 3.0)]
    text = page([result("kills", [TRIAL, {**TRIAL, "recovery_s": None}, *slow], [])])
    assert line(text, "feature | the worker alone") == "| feature | the worker alone | 2 | 1 | 0.50 s | 0.50 s |"
    assert line(text, "feature | all of it") == "| feature | all of it | 3 | 3 | 2.00 s | 2.90 s |"
