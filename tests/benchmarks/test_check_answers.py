"""The checker of answers and labels, fed one fault of each kind that it must find."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import polars as pl
import pytest
from check_answers import compare, labels_of, questions
from independent import HORIZON_MS, Truth
from logs import Served

ASKED_MS = 1_357_031_700_000


def answer(question: str, *, shadow: bool = False, digest: str = "d1") -> dict:
    visible = datetime.fromtimestamp(ASKED_MS / 1000, UTC)
    told = {"id": question, "visible": visible, "shadow": shadow, "digest": digest, "arm": "frozen" if shadow else "champion"}
    return {**told, "event_offset": 5, "row": b"", "score": 0.25, "deployment": 1, "flags": 0}


def example(question: str, label: int, *, revision: int = 0, origin: str = "arrivals") -> dict:
    return {"id": question, "label": label, "revision": revision, "origin": origin}


RIGHT = {"A": (0, "arrivals"), "B": (1, "silence")}


def served() -> Served:
    """Both flights answered once, with a shadow beside one of them, and labelled right."""
    told = Served()
    told.add_answer(0, answer("A"))
    told.add_answer(0, answer("A", shadow=True, digest="d0"))
    told.add_answer(1, answer("B"))
    for fields in (example("A", 0), example("A", 0), example("B", 1, origin="silence")):
        told.add_example(fields)
    return told


def violations(told: Served, predicted: dict[str, int] | None = None) -> str:
    return "; ".join(compare(RIGHT, told, {"A": 1, "B": 1} if predicted is None else predicted)[1])


def test_a_complete_run_violates_nothing():
    """
    Answered once, predicted once, labels true: all figures say two of two.
    """
    figures, found = compare(RIGHT, served(), {"A": 1, "B": 1})
    assert found == []
    assert tuple(figures[name] for name in ("asked", "answered", "lost", "repeated", "examples_equal_to_truth")) == (2, 2, 0, 0, 2)


def test_a_lost_answer_is_found():
    """
    A flight without an answer on the journal.
    """
    told = served()
    del told.answers["A"]
    assert "1 flights were not answered" in violations(told)


def test_a_second_answer_is_found():
    """
    Two answers that are no copies of one another, for one flight.
    """
    told = served()
    told.add_answer(0, answer("A"))
    assert "1 flights were answered more than once" in violations(told)


def test_an_answer_to_no_question_is_found():
    """
    As a broken message would cause that was taken for a flight.
    """
    told = served()
    told.add_answer(0, answer("A-future-0"))
    assert "about no flight that was asked" in violations(told)


@pytest.mark.parametrize("predicted", [{"A": 1}, {"A": 1, "B": 2}])
def test_a_prediction_that_is_missing_or_double_is_found(predicted):
    """
    The applications get one prediction a flight, not none and not two.
    """
    assert "1 flights do not have exactly one prediction" in violations(served(), predicted)


def test_a_missing_example_is_found():
    """
    Every flight is labelled once its horizon has passed.
    """
    told = served()
    del told.labels["B"]
    assert "1 flights have no example" in violations(told)


def test_a_wrong_label_is_found_on_a_shadow_too():
    """
    The served arm's example is right, the shadow's is not.
    """
    told = served()
    told.add_example(example("A", 1))
    assert "1 examples are not the truth" in violations(told)


def test_a_label_told_by_the_wrong_one_is_found():
    """
    Silence must be silence: a cancelled flight cannot have arrived.
    """
    told = served()
    told.origins["B"] = "arrivals"
    assert "told by another" in violations(told)


def test_a_higher_revision_supersedes():
    """
    The newest revision is what is compared.
    """
    told = served()
    told.add_example(example("A", 1, revision=1))
    assert (1, {1}) == (told.labels["A"], told.every_label["A"])
    told.add_example(example("A", 0, revision=0))
    assert told.labels["A"] == 1


def test_truth_counts_what_came_in_time_and_silence_as_late():
    """
    Fifteen minutes are late; never, or after the horizon, is silence.
    """
    frame = pl.DataFrame(
        {
            "id": ["on time", "late", "never", "too late"],
            "asked": [ASKED_MS] * 4,
            "arrived": [ASKED_MS + 1, ASKED_MS + HORIZON_MS, None, ASKED_MS + HORIZON_MS + 1],
            "arrival_delay": [14, 15, None, 5],
        }
    )
    right = labels_of(Truth(frame, pl.DataFrame()))
    assert right == {"on time": (0, "arrivals"), "late": (1, "arrivals"), "never": (1, "silence"), "too late": (1, "silence")}


def test_upstream_messages_are_told_apart():
    """
    First copies of real flights, second ones, broken ones and those of no known flight.
    """
    values = [json.dumps({"flight_id": one}).encode() for one in ("A", "A", "A-future-0")] + [b'{"flight_id":"B', b"{}"]
    found, counts = questions(values, RIGHT)
    assert ({"A"}, {"first": 1, "repeated": 1, "unknown": 2, "unreadable": 1}) == (found, dict(counts))
