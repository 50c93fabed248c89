"""What is known of questions by their ids, without a broker and without a clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from driftline.errors import Rejected
from services.gateway.core import Book, Limits, Standing


def answer(id: str, score: float = 0.5) -> SimpleNamespace:
    return SimpleNamespace(id=id, score=score)


def book(answers_max: int = 10, waiting_max: int = 2) -> Book[SimpleNamespace]:
    return Book(Limits(answers_max, waiting_max, given_up_s=60.0))


def test_a_question_is_new_then_asked_then_answered() -> None:
    """
    And stays answered with what was said first.
    """
    kept = book()
    assert [kept.ask("a", 0.0), kept.ask("a", 1.0)] == [Standing.NEW, Standing.ASKED]
    assert kept.is_waiting("a")
    kept.take([answer("a", 0.1), answer("a", 0.9)])
    assert kept.ask("a", 2.0) is Standing.ANSWERED
    assert (kept.answer("a").score, kept.waiting, kept.is_waiting("a")) == (0.1, 0, False)


def test_no_more_may_wait_than_the_limit_until_one_is_answered_or_given_up() -> None:
    """
    What was turned away is not noted; what waits is not turned away by it.
    """
    kept = book(waiting_max=2)
    kept.ask("a", 0.0)
    kept.ask("b", 30.0)
    with pytest.raises(Rejected):
        kept.ask("c", 59.0)
    assert not kept.is_waiting("c")
    assert kept.ask("c", 60.0) is Standing.NEW
    assert [kept.is_waiting(id) for id in "abc"] == [False, True, True]
    kept.take([answer("b")])
    assert kept.ask("d", 61.0) is Standing.NEW


def test_what_was_not_published_after_all_is_published_when_it_comes_again() -> None:
    """
    Its place is free at once.
    """
    kept = book(waiting_max=1)
    kept.ask("a", 0.0)
    kept.forget(["a", "nobody"])
    assert kept.ask("a", 0.0) is Standing.NEW


def test_the_oldest_answers_go_where_there_are_too_many() -> None:
    """
    Whoever asks for one again asks the loop, which knows its id.
    """
    kept = book(answers_max=2)
    kept.take([answer("a"), answer("b"), answer("c")])
    assert (kept.kept, kept.answer("a"), kept.answer("c").id) == (2, None, "c")


def test_the_newest_answers_come_first() -> None:
    """
    As many as there are, at most as many as are asked for; one that came again keeps its place.
    """
    kept = book()
    kept.take([answer("a"), answer("b"), answer("c"), answer("a")])
    assert [[one.id for one in kept.newest(n)] for n in (2, 9)] == [["c", "b"], ["c", "b", "a"]]
