"""
What is known of questions by their ids: asked here and waiting, or answered. So a question that comes again is not asked again, and
gets the answer that it had.

Both memories have a limit. A question that is never answered, for intake or feature dropped it, is given up after a while, or it
would take the place of others for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Generic, Protocol, TypeVar

from driftline.errors import Rejected


class Named(Protocol):
    """An answer, as far as it must be known here."""

    @property
    def id(self) -> str: ...


Answer = TypeVar("Answer", bound=Named)


class Standing(Enum):
    """What is to be done with a question."""

    ANSWERED = "answered"  # nothing: the answer is known
    ASKED = "asked"  # wait: it was published and is not answered yet
    NEW = "new"  # publish it


@dataclass(frozen=True, slots=True)
class Limits:
    """How many answers are remembered, how many questions may wait for theirs, and for how long."""

    answers_max: int
    waiting_max: int
    given_up_s: float


class Book(Generic[Answer]):
    """The two memories. It reads no clock: `now_s` are seconds that never go back."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._waiting: OrderedDict[str, float] = OrderedDict()  # by id: when it is given up

    @property
    def kept(self) -> int:
        """Answers remembered."""
        return len(self._answers)

    @property
    def waiting(self) -> int:
        """Questions published and not answered."""
        return len(self._waiting)

    def answer(self, id: str) -> Answer | None:
        """The answer to a question, while it is remembered."""
        return self._answers.get(id)

    def newest(self, n: int) -> list[Answer]:
        """The newest answers, the newest first."""
        return list(islice(reversed(self._answers.values()), n))

    def ask(self, id: str, now_s: float) -> Standing:
        """Note that a question comes in. Raises Rejected, noting nothing, when too many wait already."""
        if id in self._answers:
            return Standing.ANSWERED
        if id in self._waiting:
            return Standing.ASKED
        while self._waiting and next(iter(self._waiting.values())) <= now_s:
            self._waiting.popitem(last=False)
        if len(self._waiting) >= self._limits.waiting_max:
            raise Rejected(f"{self._limits.waiting_max} questions wait for their answers already: is the loop running?")
        self._waiting[id] = now_s + self._limits.given_up_s
        return Standing.NEW

    def is_waiting(self, id: str) -> bool:
        """Whether the question was published here and is not answered yet."""
        return id in self._waiting

    def forget(self, ids: Iterable[str]) -> None:
        """They were not published after all: whoever asks again publishes them."""
        for id in ids:
            self._waiting.pop(id, None)

    def take(self, answers: Iterable[Answer]) -> None:
        """Answers as they appear; of those that appear twice the first stays. The oldest go where there are too many."""
        for answer in answers:
            self._answers.setdefault(answer.id, answer)
            self._waiting.pop(answer.id, None)
        while len(self._answers) > self._limits.answers_max:
            self._answers.popitem(last=False)
