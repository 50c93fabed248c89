"""
The join itself, compiled: what arrives and how time moves, one step after the other, over what is held.

Of all that is held only what may be due within a batch is put in line: the lines are heaps that live as long as one call.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from driftline.compiled import njit, numba, types
from driftline.features.texts import hash_of, same
from driftline.stream.batch import Ints

ANSWER = np.dtype(
    [
        ("number", "i8"),  # of its arrival; number // SEGMENT is its segment
        ("event_offset", "i8"),
        ("index", "i8"),
        ("asked", "i8"),
        ("due", "i8"),  # settled by the first tick after
        ("told", "i8"),  # visible time of the outcome that gave the label
        ("start", "i8"),  # of its texts: id, key, slices, encoded as on the answer, and its trace context, empty where it has none
        ("score", "f4"),
        ("id_bytes", "i4"),
        ("key_bytes", "i4"),
        ("slices_bytes", "i4"),
        ("who", "i4"),  # code of its arm
        ("flags", "<i2"),  # these two were one number of four bytes before there were trace contexts: rows of then are read as without any
        ("traceparent_bytes", "<i2"),
        ("label", "i4"),
        ("revision", "i4"),
    ]
)
OUTCOME = np.dtype(
    [
        ("number", "i8"),
        ("visible", "i8"),
        ("epoch", "i8"),  # the feature service's last tick before it
        ("forget", "i8"),  # forgotten by the first tick after
        ("start", "i8"),
        ("id_bytes", "i4"),
        ("who", "i4"),  # code of its origin
        ("label", "i8"),
    ]
)
UNSETTLED, EXCLUDED = -2, -1
NEVER = -1
ARRIVED_ANSWER, ARRIVED_OUTCOME, MOVED = 0, 1, 2  # steps
BY_SILENCE, BY_LIMIT = -1, -2  # origins of a label that no outcome gave
JOINED, EXPIRED, LEFT_OUT, REVISED, EARLY, ORPHAN, LIMIT, ORPHAN_LIMIT = range(8)
TOTALS = ("joined", "expired", "excluded", "revised", "early", "orphan", "limit", "orphan_limit")


class Table(NamedTuple):
    """Records of one kind; which are held, which have changed; chains of those whose ids have one hash, newest first; their texts."""

    records: npt.NDArray[Any]
    live: npt.NDArray[np.bool_]
    touched: npt.NDArray[np.bool_]
    next: Ints
    heads: Ints
    data: npt.NDArray[np.uint8]


class Rules(NamedTuple):
    """What the pipeline declares of its label; times in ms, `silent` the label that silence gives."""

    horizon: int
    revisions: int
    kept: int
    silent: int
    held_max: int


class Examples(NamedTuple):
    """Labels that were given: offset and time of what caused each, the answer's place, and by whom, as the code of an origin."""

    offset: Ints
    known: Ints
    place: Ints
    label: Ints
    revision: Ints
    origin: Ints


_I1, _B1 = types.int64[::1], types.boolean[::1]
_HELD = {
    kind: types.NamedTuple((numba.from_dtype(record)[::1], _B1, _B1, _I1, _I1, types.uint8[::1]), Table)  # type: ignore[no-untyped-call]
    for kind, record in (("answers", ANSWER), ("outcomes", OUTCOME))
}
_RULES = types.NamedUniTuple(types.int64, len(Rules._fields), Rules)  # type: ignore[no-untyped-call]


@njit(cache=True, nogil=True)
def _bucket(table: Table, place: int) -> int:
    record = table.records[place]
    h: int = hash_of(table.data, record.start, record.start + record.id_bytes)
    return h & (len(table.heads) - 1)


@njit(cache=True, nogil=True)
def _hold(table: Table, place: int) -> None:
    bucket = _bucket(table, place)
    table.next[place] = table.heads[bucket]
    table.heads[bucket] = place
    table.live[place] = True


@njit([types.void(held) for held in _HELD.values()], cache=True, nogil=True)
def chain(table: Table) -> None:
    """Find all that is held by its id from now on."""
    table.heads[:] = -1
    for place in range(len(table.records)):
        if table.live[place]:
            _hold(table, place)


@njit(cache=True, nogil=True)
def _with_id(table: Table, data: Any, start: int, end: int) -> list[int]:
    """The places of what is held with this id, in order of arrival."""
    found = [0 for _ in range(0)]
    place = table.heads[hash_of(data, start, end) & (len(table.heads) - 1)]
    while place >= 0:
        record = table.records[place]
        if table.live[place] and same(table.data, record.start, record.start + record.id_bytes, data, start, end):
            found.append(place)
        place = table.next[place]
    found.reverse()
    return found


@njit(cache=True, nogil=True)
def _line(answers: Table, place: int) -> tuple[int, int, int, int, int]:
    """Where an answer is in line: by when it is due, the oldest first."""
    record = answers.records[place]
    return record.due, record.asked, record.event_offset, record.index, place


@njit(cache=True, nogil=True)
def _forget(table: Table, place: int) -> None:
    table.live[place] = False
    table.touched[place] = True


@njit(cache=True, nogil=True)
def _revise(answers: Table, place: int, outcomes: Table, by: int, rules: Rules, known: tuple[int, int], found: Any, totals: Ints) -> None:
    """Let an outcome speak for an answer that has its label already."""
    answer, outcome = answers.records[place], outcomes.records[by]
    if outcome.visible < answer.told or outcome.visible > answer.asked + rules.horizon + rules.revisions:
        return
    answer.told = outcome.visible
    answers.touched[place] = True
    if outcome.label != answer.label:
        answer.label, answer.revision = outcome.label, answer.revision + 1
        totals[REVISED] += 1
        found.append((known[0], known[1], place, np.int64(answer.label), np.int64(answer.revision), np.int64(outcome.who)))


@njit(cache=True, nogil=True)
def _settle(answers: Table, place: int, outcomes: Table, rules: Rules, known: tuple[int, int], found: Any, totals: Ints) -> None:
    """Give an answer its label: that of the newest outcome that was visible in time, or silence's."""
    answer = answers.records[place]
    deadline = answer.asked + rules.horizon
    told = _with_id(outcomes, answers.data, answer.start, answer.start + answer.id_bytes)
    newest = -1
    for by in told:
        outcome = outcomes.records[by]
        if outcome.epoch < known[1] and outcome.visible <= deadline and (newest < 0 or outcome.visible >= outcomes.records[newest].visible):
            newest = by
    if newest >= 0:
        answer.label, answer.told = outcomes.records[newest].label, outcomes.records[newest].visible
        origin = np.int64(outcomes.records[newest].who)
        totals[JOINED] += 1
    else:
        answer.label = rules.silent
        origin = np.int64(BY_SILENCE)
        totals[LEFT_OUT if rules.silent == EXCLUDED else EXPIRED] += 1
    answers.touched[place] = True
    found.append((known[0], known[1], place, np.int64(answer.label), np.int64(answer.revision), origin))
    for by in told:
        if outcomes.records[by].epoch < known[1] and outcomes.records[by].visible > deadline:
            _revise(answers, place, outcomes, by, rules, known, found, totals)


@njit(cache=True, nogil=True)
def _let_go(answers: Table, outcomes: Table, place: int, old: Any, totals: Ints) -> None:
    """An outcome is a horizon old: forget it, unless an answer asked after it still waits."""
    outcome = outcomes.records[place]
    asked = _with_id(answers, outcomes.data, outcome.start, outcome.start + outcome.id_bytes)
    until = np.int64(NEVER)
    for one in asked:
        if answers.records[one].label == UNSETTLED:
            until = max(until, answers.records[one].due)
    if until != NEVER:
        outcome.forget = until
        outcomes.touched[place] = True
        heappush(old, (until, place))
        return
    _forget(outcomes, place)
    if len(asked) == 0:
        totals[ORPHAN] += 1


@njit(cache=True, nogil=True)
def _lined_up(answers: Table, rules: Rules, last: int, crowded: bool) -> tuple[Any, Any]:
    """Heaps of the answers held that may be settled, or dropped, by `last`; of all where the limit may be reached."""
    nobody: Any = (np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0))
    due, settled = [nobody for _ in range(0)], [nobody for _ in range(0)]
    for place in range(len(answers.records)):
        if answers.live[place]:
            answer = answers.records[place]
            if answer.label == UNSETTLED:
                if crowded or answer.due < last:
                    due.append(_line(answers, place))
            elif crowded or answer.due < last - rules.kept:
                settled.append(_line(answers, place))
    heapify(due)
    heapify(settled)
    return due, settled


@njit(cache=True, nogil=True)
def _told(outcomes: Table, now: int, last: int, crowded: bool) -> tuple[Any, Any]:
    """A heap of the outcomes held that may be forgotten by `last`, and in order of arrival those that have taken no effect by `now`."""
    old, fresh = [(np.int64(0), np.int64(0)) for _ in range(0)], [np.int64(0) for _ in range(0)]
    for place in range(len(outcomes.records)):
        if outcomes.live[place]:
            outcome = outcomes.records[place]
            if crowded or outcome.forget < last:
                old.append((outcome.forget, np.int64(place)))
            if outcome.epoch >= now:
                fresh.append(np.int64(place))
    heapify(old)
    return old, fresh


@njit(cache=True, nogil=True)
def _give_up_oldest(answers: Table, due: Any, settled: Any, offset: int, now: int, found: Any, totals: Ints) -> None:
    from_settled = len(settled) > 0 and (len(due) == 0 or settled[0] < due[0])
    place = heappop(settled)[-1] if from_settled else heappop(due)[-1]
    answer = answers.records[place]
    if answer.label == UNSETTLED:
        answer.label = EXCLUDED
        found.append((offset, max(now, answer.asked), place, np.int64(EXCLUDED), np.int64(answer.revision), np.int64(BY_LIMIT)))
    totals[LIMIT] += 1
    _forget(answers, place)


@njit(cache=True, nogil=True)
def _take_effect(answers: Table, outcomes: Table, by: int, rules: Rules, known: tuple[int, int], found: Any, totals: Ints) -> None:
    """The epoch of an outcome is over: it may revise what has its label."""
    outcome = outcomes.records[by]
    asked = _with_id(answers, outcomes.data, outcome.start, outcome.start + outcome.id_bytes)
    if len(asked) == 0:
        totals[EARLY] += 1
    for place in asked:
        if answers.records[place].label != UNSETTLED:
            _revise(answers, place, outcomes, by, rules, known, found, totals)


@njit(cache=True, nogil=True)
def _settle_due(
    answers: Table, outcomes: Table, due: Any, settled: Any, rules: Rules, known: tuple[int, int], found: Any, totals: Ints
) -> None:
    """Settle what is due, the answer first that was asked first."""
    settling: Any = [(np.int64(0), np.int64(0), np.int64(0), np.int64(0)) for _ in range(0)]
    while len(due) > 0 and due[0][0] < known[1]:
        _, asked, event_offset, index, place = heappop(due)
        heappush(settling, (asked, event_offset, index, place))
    while len(settling) > 0:
        place = heappop(settling)[-1]
        _settle(answers, place, outcomes, rules, known, found, totals)
        heappush(settled, _line(answers, place))


@njit(
    types.Tuple((types.int64[:, ::1], _I1))(_HELD["answers"], _HELD["outcomes"], _RULES, types.int64, _I1, _I1, _I1, _I1),  # type: ignore[no-untyped-call]
    cache=True,
    nogil=True,
)
def join(
    answers: Table, outcomes: Table, rules: Rules, now: int, steps: Ints, places: Ints, offsets: Ints, times: Ints
) -> tuple[Ints, Ints]:
    """
    Take the steps of a batch, in the log's order: an answer or an outcome arrives, its place in `places`, or the journal's time moves,
    from `now` on, to one of `times`. Returns the columns of `Examples`, and how often each of TOTALS happened.
    """
    last: Any = np.int64(NEVER)
    waiting: Any = np.count_nonzero(answers.live)
    told: Any = np.count_nonzero(outcomes.live)
    for at in range(len(steps)):
        if steps[at] == MOVED:
            last = max(last, times[at])
    due, settled = _lined_up(answers, rules, last, waiting + len(steps) > rules.held_max)
    old, fresh = _told(outcomes, now, last, told + len(steps) > rules.held_max)
    found = [(np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)) for _ in range(0)]
    totals = np.zeros(len(TOTALS), np.int64)
    taken = 0  # of `fresh`
    for at in range(len(steps)):
        place, offset = places[at], offsets[at]
        if steps[at] == ARRIVED_ANSWER:
            _hold(answers, place)
            answers.touched[place] = True
            heappush(due, _line(answers, place))
            waiting += 1
            if waiting > rules.held_max:
                _give_up_oldest(answers, due, settled, offset, now, found, totals)
                waiting -= 1
        elif steps[at] == ARRIVED_OUTCOME:
            _hold(outcomes, place)
            outcomes.touched[place] = True
            heappush(old, (outcomes.records[place].forget, place))
            fresh.append(place)
            told += 1
            if told > rules.held_max:
                _forget(outcomes, heappop(old)[-1])
                totals[ORPHAN_LIMIT] += 1
                told -= 1
        else:
            now = times[at]
            while taken < len(fresh) and (not outcomes.live[fresh[taken]] or outcomes.records[fresh[taken]].epoch < now):
                if outcomes.live[fresh[taken]]:
                    _take_effect(answers, outcomes, fresh[taken], rules, (offset, now), found, totals)
                taken += 1
            _settle_due(answers, outcomes, due, settled, rules, (offset, now), found, totals)
            while len(old) > 0 and old[0][0] < now:
                by = heappop(old)[-1]
                _let_go(answers, outcomes, by, old, totals)
                told -= 0 if outcomes.live[by] else 1
            while len(settled) > 0 and settled[0][0] < now - rules.kept:
                _forget(answers, heappop(settled)[-1])
                waiting -= 1
    columns = np.empty((6, len(found)), np.int64)
    for at in range(len(found)):
        one = found[at]
        columns[0, at], columns[1, at], columns[2, at] = one[0], one[1], one[2]
        columns[3, at], columns[4, at], columns[5, at] = one[3], one[4], one[5]
    return columns, totals
