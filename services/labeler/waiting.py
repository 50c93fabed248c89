"""
What waits in the labeler: answers for their outcome, outcomes for their answer. In memory, and as rows of the store.

Both lie in segments of `SEGMENT` in order of arrival, one row each, so that a batch appends to the last segment of a kind and
rewrites the few that its ticks settle; an outcome that comes before it is needed never touches its answer's row. One small
row names the live segments, from which memory is rebuilt without a scan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Any

import msgspec

from driftline.stream.journal import JournalTime

SEGMENT = 256
META = b"meta"
ANSWERS, OUTCOMES = b"w:", b"o:"
UNSETTLED = -2
NEVER = -1


class Arm(msgspec.Struct, frozen=True, array_like=True):
    """Who gave an answer."""

    deployment: int
    arm: str
    share: float
    shadow: bool
    model: str
    digest: str


class Pointer(msgspec.Struct, array_like=True, gc=False):
    """An answer that waits for its label, or that may still be revised."""

    number: int  # of its arrival; number // SEGMENT is its segment
    id: bytes
    key: bytes
    event_offset: int
    index: int
    asked: int
    due: int  # settled by the first tick after
    score: float
    arm: int  # place among its segment's arms
    flags: int
    slices: bytes  # as on the answer, encoded
    label: int = UNSETTLED
    revision: int = 0
    told: int = NEVER  # visible time of the outcome that gave the label


class Outcome(msgspec.Struct, array_like=True, gc=False):
    """What somebody told of a question."""

    number: int
    id: bytes
    visible: int
    epoch: int  # the feature service's last tick before it
    forget: int  # forgotten by the first tick after
    label: int
    origin: str


class AnswerSegment(msgspec.Struct, array_like=True):
    """A state row of answers."""

    arms: list[Arm]
    pointers: list[Pointer]


class Meta(msgspec.Struct):
    """The row from which all others are found. Segments are given as ranges [first, last]."""

    time: JournalTime = msgspec.field(default_factory=JournalTime)
    answers: int = 0  # arrived since the beginning
    outcomes: int = 0
    answer_segments: list[tuple[int, int]] = msgspec.field(default_factory=list)
    outcome_segments: list[tuple[int, int]] = msgspec.field(default_factory=list)
    totals: dict[str, int] = msgspec.field(default_factory=dict)


class Answers:
    """Answers in memory: by number, by id, by when they are due, and which segments changed."""

    def __init__(self, kept_ms: int) -> None:
        self._kept_ms = kept_ms
        self.pointers: dict[int, Pointer] = {}
        self.arms: dict[int, list[Arm]] = {}
        self._dirty: set[int] = set()
        self.next: dict[int, int] = {}  # by live segment, the earliest time at which a tick changes it
        self._ids: dict[bytes, list[int]] = {}
        # Both ordered by (due, asked, event offset, index): the oldest answer is at the front, settled ones first.
        self._due: list[tuple[int, int, int, int, int]] = []
        self._settled: list[tuple[int, int, int, int, int]] = []

    def add(self, pointer: Pointer, arm: Arm) -> None:
        """Hold an answer that has just arrived."""
        segment = pointer.number // SEGMENT
        arms = self.arms.setdefault(segment, [])
        if arm not in arms:
            arms.append(arm)
        pointer.arm = arms.index(arm)
        self._hold(pointer)
        self._dirty.add(segment)

    def load(self, row: AnswerSegment) -> None:
        """Hold the answers of a stored segment."""
        segment = row.pointers[0].number // SEGMENT
        self.arms[segment] = row.arms
        self.next[segment] = min(map(self._next_of, row.pointers))
        for pointer in row.pointers:
            self._hold(pointer)

    def _hold(self, pointer: Pointer) -> None:
        self.pointers[pointer.number] = pointer
        self._ids.setdefault(pointer.id, []).append(pointer.number)
        heappush(self._due if pointer.label == UNSETTLED else self._settled, _place(pointer))

    def _next_of(self, pointer: Pointer) -> int:
        return pointer.due if pointer.label == UNSETTLED else pointer.due + self._kept_ms

    def arm(self, pointer: Pointer) -> Arm:
        """Who gave the answer."""
        return self.arms[pointer.number // SEGMENT][pointer.arm]

    def with_id(self, id: bytes) -> list[Pointer]:
        """The answers held to one question, in order of arrival."""
        return [self.pointers[number] for number in sorted(self._ids.get(id, ()))]

    def take_due(self, time: int) -> list[Pointer]:
        """Answers due before `time`, in the order in which they are settled."""
        found = [self.pointers[place[-1]] for place in _popped(self._due, time)]
        return sorted(found, key=lambda pointer: (pointer.asked, pointer.event_offset, pointer.index, pointer.number))

    def settled(self, pointer: Pointer) -> None:
        """The answer has its label; it is held for revisions."""
        heappush(self._settled, _place(pointer))
        self._dirty.add(pointer.number // SEGMENT)

    def told(self, pointer: Pointer, visible: int) -> None:
        """An outcome visible at that time has spoken for a settled answer."""
        pointer.told = visible
        self._dirty.add(pointer.number // SEGMENT)

    def drop_old(self, time: int) -> None:
        """Forget settled answers that nothing may revise from `time` on."""
        for place in _popped(self._settled, time - self._kept_ms):
            self._forget(self.pointers[place[-1]])

    def oldest(self) -> Pointer:
        """The answer that was asked first, of those held."""
        places = [heap[0] for heap in (self._settled, self._due) if heap]
        return self.pointers[min(places)[-1]]

    def remove(self, pointer: Pointer) -> None:
        """Forget the oldest answer."""
        heappop(self._settled if self._settled and self._settled[0][-1] == pointer.number else self._due)
        self._forget(pointer)

    def _forget(self, pointer: Pointer) -> None:
        del self.pointers[pointer.number]
        numbers = self._ids[pointer.id]
        numbers.remove(pointer.number)
        if not numbers:
            del self._ids[pointer.id]
        self._dirty.add(pointer.number // SEGMENT)

    def changed(self) -> Iterator[tuple[bytes, bytes | None]]:
        """The rows of all segments that changed since the last call; None for those that ended."""
        for segment in sorted(self._dirty):
            held = _of_segment(self.pointers, segment)
            if held:
                self.next[segment] = min(map(self._next_of, held))
                self.arms[segment] = _used(self.arms[segment], held)
                yield b"%s%d" % (ANSWERS, segment), msgspec.msgpack.encode(AnswerSegment(self.arms[segment], held))
            else:
                self.next.pop(segment, None)
                del self.arms[segment]
                yield b"%s%d" % (ANSWERS, segment), None
        self._dirty.clear()


class Outcomes:
    """Outcomes in memory: by number, by id, those of epochs that are not over, and when to forget them."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.fresh: deque[int] = deque()  # numbers; some may be forgotten already
        self.next: dict[int, int] = {}
        self._ids: dict[bytes, list[int]] = {}
        self._old: list[tuple[int, int]] = []
        self._dirty: set[int] = set()

    def add(self, outcome: Outcome) -> None:
        """Hold an outcome that has just arrived."""
        self._hold(outcome)
        self.fresh.append(outcome.number)
        self._dirty.add(outcome.number // SEGMENT)

    def load(self, row: list[Outcome], now: int) -> None:
        """Hold the outcomes of a stored segment; those of epochs from `now` on have taken no effect yet."""
        for outcome in row:
            self._hold(outcome)
        self.next[row[0].number // SEGMENT] = min(outcome.forget for outcome in row)
        self.fresh = deque(sorted([*self.fresh, *(outcome.number for outcome in row if outcome.epoch >= now)]))

    def _hold(self, outcome: Outcome) -> None:
        self.outcomes[outcome.number] = outcome
        self._ids.setdefault(outcome.id, []).append(outcome.number)
        heappush(self._old, (outcome.forget, outcome.number))

    def with_id(self, id: bytes) -> list[Outcome]:
        """The outcomes held of one question, in order of arrival."""
        return [self.outcomes[number] for number in sorted(self._ids.get(id, ()))]

    def take_fresh(self, time: int) -> list[Outcome]:
        """Outcomes of the epochs that end at `time`, in the log's order."""
        found = []
        while self.fresh and ((outcome := self.outcomes.get(self.fresh[0])) is None or outcome.epoch < time):
            self.fresh.popleft()
            if outcome is not None:
                found.append(outcome)
        return found

    def take_old(self, time: int) -> list[Outcome]:
        """Outcomes to forget before `time`; each must be forgotten, or kept for longer."""
        return [self.outcomes[number] for _, number in _popped(self._old, time)]

    def keep(self, outcome: Outcome, until: int) -> None:
        """Hold `outcome` up to the first tick after `until`."""
        outcome.forget = until
        heappush(self._old, (until, outcome.number))
        self._dirty.add(outcome.number // SEGMENT)

    def forget_oldest(self) -> None:
        """Drop the outcome that is first in line."""
        self.forget(self.outcomes[heappop(self._old)[1]])
        while self.fresh and self.fresh[0] not in self.outcomes:
            self.fresh.popleft()

    def forget(self, outcome: Outcome) -> None:
        """Drop an outcome that is no longer in line to be forgotten."""
        del self.outcomes[outcome.number]
        numbers = self._ids[outcome.id]
        numbers.remove(outcome.number)
        if not numbers:
            del self._ids[outcome.id]
        self._dirty.add(outcome.number // SEGMENT)

    def changed(self) -> Iterator[tuple[bytes, bytes | None]]:
        """The rows of all segments that changed since the last call; None for those that ended."""
        for segment in sorted(self._dirty):
            held = _of_segment(self.outcomes, segment)
            if held:
                self.next[segment] = min(outcome.forget for outcome in held)
            else:
                self.next.pop(segment, None)
            yield b"%s%d" % (OUTCOMES, segment), msgspec.msgpack.encode(held) if held else None
        self._dirty.clear()


def _place(pointer: Pointer) -> tuple[int, int, int, int, int]:
    return pointer.due, pointer.asked, pointer.event_offset, pointer.index, pointer.number


def _used(arms: list[Arm], held: Iterable[Pointer]) -> list[Arm]:
    """
    The arms of these answers alone, in order of first use. Which others the segment has had, and has forgotten by now, would tell where the
    log was cut into batches, and a row is a function of the log.
    """
    places: dict[int, int] = {}
    for pointer in held:
        pointer.arm = places.setdefault(pointer.arm, len(places))
    return [arms[place] for place in places]


def _popped(heap: list[Any], time: int) -> list[Any]:
    """All entries of `heap` whose first field is before `time`, in order, and no longer in it."""
    found = []
    while heap and heap[0][0] < time:
        found.append(heappop(heap))
    return found


def _of_segment(held: Mapping[int, Any], segment: int) -> list[Any]:
    return [held[number] for number in range(segment * SEGMENT, (segment + 1) * SEGMENT) if number in held]


def ranges(segments: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges [first, last]: live segments are nearly all consecutive."""
    ranges: list[tuple[int, int]] = []
    for segment in sorted(segments):
        if ranges and ranges[-1][1] == segment - 1:
            ranges[-1] = (ranges[-1][0], segment)
        else:
            ranges.append((segment, segment))
    return ranges
