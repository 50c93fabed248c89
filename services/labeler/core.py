"""
Join answers with what became of them: one example an answer, once its horizon has passed, and a revision when the truth
comes later still.

The journal has two writers, and nothing says how their messages interleave. So an outcome is never joined when it arrives:
everything between two ticks of a writer belongs to one *epoch*, named by the tick before it, and at each move of the
journal's time to t exactly the epochs before t of both writers are joined. What comes out is then the same, in the same
order, whichever writer was ahead. At a move to t:

1. outcomes of epochs before t take effect: one that is newer than what labelled an answer, and says otherwise, revises it;
2. answers whose horizon ended before t are settled, by (asked, event offset, index): the newest outcome that was visible
   within the horizon gives the label, or silence does, as the pipeline declares;
3. outcomes older than a horizon, that no answer waits for, are forgotten, as orphans when none had their id; and answers
   that no outcome may revise any more.

"Before t" is strict, because a tick at t comes before what is visible at t.

What waits, and how it is stored, is in `waiting`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from driftline.contracts.messages import Source
from driftline.errors import Invalid
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Column, Effects, Messages, Refused, Table, Varlen
from driftline.stream.journal import Tick, ticks_of

from .waiting import (
    ANSWERS,
    META,
    NEVER,
    OUTCOMES,
    SEGMENT,
    UNSETTLED,
    Answers,
    AnswerSegment,
    Arm,
    Meta,
    Outcome,
    Outcomes,
    Pointer,
    ranges,
)

ROW_FORMAT = 1
EXCLUDED = -1
SILENCE, LIMIT = "silence", "limit"
ANSWER_FIELDS = ("id", "key", "event_offset", "index", "visible", "score", "flags", "slices")
OUTCOME_FIELDS = ("id", "visible", "label", "origin")
SILENT_LABEL = {"positive": 1, "negative": 0, "excluded": EXCLUDED}

Columns = Mapping[str, Sequence[Any]]


class Labeler:
    """
    The core of the labeler over one partition of the journal. See `driftline.stream.batch.Core` for what each method may do.

    Gauges: `waiting`, `waiting_max`, `outcomes_held`, `orphans`, `coverage`, and `totals` since the beginning. Answers were joined,
    expired (silence spoke), excluded, revised, or given up at the limit; outcomes came early (no answer yet), stayed orphans, or
    were forgotten at the limit (orphan_limit).
    """

    def __init__(self, pipeline: Pipeline, partition: int) -> None:
        if pipeline.label is None:
            raise Invalid(f"pipeline {pipeline.name!r} declares no label, so there is nothing for the labeler to do")
        self._partition = partition
        self._horizon = pipeline.label.horizon_ms
        self._revisable = pipeline.label.revisions_ms
        self._silent = SILENT_LABEL[pipeline.label.if_silent]
        self.waiting_max = pipeline.label.waiting_max
        self._loaded: Meta | None = None
        self._missing: set[bytes] = {META}
        # Kept a horizon longer than settled in any case, so that an outcome finds its answer when it is itself forgotten.
        self._answers = Answers(max(self._horizon, self._revisable))
        self._outcomes = Outcomes()

    @property
    def _meta(self) -> Meta:
        if self._loaded is None:
            raise Invalid("the labeler's state was not loaded")
        return self._loaded

    @property
    def waiting(self) -> int:
        """Answers held, those that may only be revised included."""
        return len(self._answers.pointers)

    @property
    def outcomes_held(self) -> int:
        """Outcomes held."""
        return len(self._outcomes.outcomes)

    @property
    def totals(self) -> Mapping[str, int]:
        """How many answers and outcomes ended in which way, since the beginning."""
        return self._loaded.totals if self._loaded else {}

    @property
    def orphans(self) -> int:
        """Outcomes that no answer was found for within the horizon."""
        return self.totals.get("orphan", 0)

    @property
    def coverage(self) -> float | None:
        """The share of settled answers whose label was told, not taken from silence; None before the first."""
        joined, expired = self.totals.get("joined", 0), self.totals.get("expired", 0)
        return joined / (joined + expired) if joined + expired else None

    def unfit(self, batch: Batch) -> Sequence[Refused]:
        outcomes = batch["outcome"]
        if outcomes is None:
            return ()
        bad = (outcomes["label"] < 0) | (outcomes["label"] > 1)
        return [Refused(offset, "contract", '"label" is neither 0 nor 1') for offset in outcomes.offsets[bad].tolist()]

    def needs(self, batch: Batch) -> Sequence[bytes]:
        return sorted(self._missing)

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        for key, row in rows.items():
            self._missing.discard(key)
            if key == META:
                self._load_meta(row)
            elif row is None:
                raise Invalid(f"the labeler's row {key!r} of partition {self._partition} is gone: driftline rebuild labeler")
            elif key.startswith(ANSWERS):
                self._answers.load(msgspec.msgpack.decode(row, type=AnswerSegment))
            else:
                self._outcomes.load(msgspec.msgpack.decode(row, type=list[Outcome]), self._now)

    def _load_meta(self, row: bytes | None) -> None:
        meta = Meta() if row is None else msgspec.msgpack.decode(row, type=Meta)
        self._loaded = meta
        for prefix, spans in ((ANSWERS, meta.answer_segments), (OUTCOMES, meta.outcome_segments)):
            self._missing.update(b"%s%d" % (prefix, segment) for first, last in spans for segment in range(first, last + 1))

    @property
    def _now(self) -> int:
        return _time_of(self._meta.time.now)

    def touches(self, batch: Batch) -> int:
        answers, outcomes = (len(table) if (table := batch[name]) else 0 for name in ("answer", "outcome"))
        ends = [tick.time for _, _, tick in ticks_of(batch["tick"])]
        until = max(ends, default=NEVER)
        revised = min(outcomes + len(self._outcomes.fresh), len(self._answers.next)) if ends else 0
        due = sum(1 for time in chain(self._answers.next.values(), self._outcomes.next.values()) if time < until)
        return 1 + answers // SEGMENT + outcomes // SEGMENT + 4 + revised + due

    def step(self, batch: Batch) -> Effects:
        examples, ticks = _Examples(), []
        answers, outcomes = _Arrivals(batch["answer"], ANSWER_FIELDS), _Arrivals(batch["outcome"], OUTCOME_FIELDS)
        arms = _arms_of(batch["answer"])
        for offset, writer, tick in ticks_of(batch["tick"]):
            self._take_answers(answers.until(offset), answers.columns, arms, examples)
            self._take_outcomes(outcomes.until(offset), outcomes.columns)
            moved = self._meta.time.take(writer, tick)
            if moved:
                examples.caused_by(offset, moved.time)
                self._move_to(moved.time, examples)
                ticks.append((offset, moved))
        self._take_answers(answers.until(batch.next_offset), answers.columns, arms, examples)
        self._take_outcomes(outcomes.until(batch.next_offset), outcomes.columns)
        counts = {"applied": answers.taken + outcomes.taken, "tick": len(batch["tick"] or ())}
        return Effects(self._changed(), [*examples.messages(), *_tick_messages(ticks)], counts=counts)

    # What arrives is only put down.

    def _take_answers(self, some: Iterable[tuple[int, int]], columns: Columns, arms: Sequence[Arm], examples: _Examples) -> None:
        epoch = _time_of(self._meta.time.inference)
        for at, offset in some:
            self._answers.add(self._pointer(columns, at, epoch), arms[at])
            self._meta.answers += 1
            if len(self._answers.pointers) > self.waiting_max:
                self._give_up_oldest(offset, examples)

    def _pointer(self, columns: Columns, at: int, epoch: int) -> Pointer:
        asked = columns["visible"][at]
        return Pointer(
            self._meta.answers,
            columns["id"][at],
            columns["key"][at],
            columns["event_offset"][at],
            columns["index"][at],
            asked,
            max(asked + self._horizon, epoch),
            columns["score"][at],
            0,
            columns["flags"][at],
            columns["slices"][at],
        )

    def _give_up_oldest(self, offset: int, examples: _Examples) -> None:
        pointer = self._answers.oldest()
        if pointer.label == UNSETTLED:
            pointer.label = EXCLUDED
            examples.caused_by(offset, max(self._now, pointer.asked))
            examples.add(pointer, self._answers.arm(pointer), LIMIT)
        self._count("limit")
        self._answers.remove(pointer)

    def _take_outcomes(self, some: Iterable[tuple[int, int]], columns: Columns) -> None:
        epoch = _time_of(self._meta.time.feature)
        for at, _ in some:
            visible = columns["visible"][at]
            forget = max(visible + self._horizon, epoch)
            told = (columns["label"][at], columns["origin"][at].decode())
            self._outcomes.add(Outcome(self._meta.outcomes, columns["id"][at], visible, epoch, forget, *told))
            self._meta.outcomes += 1
            if len(self._outcomes.outcomes) > self.waiting_max:
                self._outcomes.forget_oldest()
                self._count("orphan_limit")

    # Time moves, and what has come by then is joined.

    def _move_to(self, time: int, examples: _Examples) -> None:
        for outcome in self._outcomes.take_fresh(time):
            answers = self._answers.with_id(outcome.id)
            if not answers:
                self._count("early")
            for pointer in answers:
                if pointer.label != UNSETTLED:
                    self._revise(pointer, outcome, examples)
        for pointer in self._answers.take_due(time):
            self._settle(pointer, time, examples)
        for outcome in self._outcomes.take_old(time):
            self._let_go(outcome)
        self._answers.drop_old(time)

    def _settle(self, pointer: Pointer, time: int, examples: _Examples) -> None:
        known = [outcome for outcome in self._outcomes.with_id(pointer.id) if outcome.epoch < time]
        deadline = pointer.asked + self._horizon
        in_time = [outcome for outcome in known if outcome.visible <= deadline]
        if in_time:
            newest = max(in_time, key=lambda outcome: (outcome.visible, outcome.number))
            pointer.label, pointer.told, origin = newest.label, newest.visible, newest.origin
        else:
            pointer.label, origin = self._silent, SILENCE
        self._count("joined" if in_time else "excluded" if self._silent == EXCLUDED else "expired")
        examples.add(pointer, self._answers.arm(pointer), origin)
        self._answers.settled(pointer)
        for outcome in known:
            if outcome.visible > deadline:
                self._revise(pointer, outcome, examples)

    def _revise(self, pointer: Pointer, outcome: Outcome, examples: _Examples) -> None:
        """Let `outcome` speak for an answer that has its label already."""
        if outcome.visible < pointer.told or outcome.visible > pointer.asked + self._horizon + self._revisable:
            return
        self._answers.told(pointer, outcome.visible)
        if outcome.label != pointer.label:
            pointer.label, pointer.revision = outcome.label, pointer.revision + 1
            self._count("revised")
            examples.add(pointer, self._answers.arm(pointer), outcome.origin)

    def _let_go(self, outcome: Outcome) -> None:
        """An outcome is a horizon old: forget it, unless an answer asked after it still waits."""
        answers = self._answers.with_id(outcome.id)
        waiting = [pointer.due for pointer in answers if pointer.label == UNSETTLED]
        if waiting:
            self._outcomes.keep(outcome, max(waiting))
            return
        self._outcomes.forget(outcome)
        if not answers:
            self._count("orphan")

    def _count(self, what: str) -> None:
        self._meta.totals[what] = self._meta.totals.get(what, 0) + 1

    def _changed(self) -> dict[bytes, bytes | None]:
        rows = dict(chain(self._answers.changed(), self._outcomes.changed()))
        self._meta.answer_segments = ranges(self._answers.next)
        self._meta.outcome_segments = ranges(self._outcomes.next)
        rows[META] = msgspec.msgpack.encode(self._meta, order="sorted")
        return rows


class _Arrivals:
    """The messages of one kind in a batch as lists, given out once, in the log's order."""

    def __init__(self, table: Table | None, fields: Sequence[str]) -> None:
        self._offsets: list[int] = table.offsets.tolist() if table else []
        self.columns = {name: table[name].tolist() for name in fields} if table else {}
        self.taken = 0

    def until(self, end: int) -> Iterable[tuple[int, int]]:
        """Place and offset of each message before `end` that was not given out yet."""
        while self.taken < len(self._offsets) and self._offsets[self.taken] < end:
            self.taken += 1
            yield self.taken - 1, self._offsets[self.taken - 1]


class _Examples:
    """The examples of one step, gathered by row and sent by column."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int, int, str, Pointer, int, int, Arm]] = []
        self._index: Counter[int] = Counter()
        self._offset, self._known = NEVER, NEVER

    def caused_by(self, offset: int, known: int) -> None:
        """What is added from here on was caused by the record at `offset`, at time `known`."""
        self._offset, self._known = offset, known

    def add(self, pointer: Pointer, arm: Arm, origin: str) -> None:
        """`pointer` has its label. Label and revision are copied: both may change again within the step."""
        offset = self._offset
        self._found.append((offset, self._index[offset], self._known, origin, pointer, pointer.label, pointer.revision, arm))
        self._index[offset] += 1

    def messages(self) -> list[Messages]:
        if not self._found:
            return []
        offsets, indexes, known, origins, pointers, labels, revisions, arms = zip(*self._found, strict=True)
        keys = Varlen.of(pointer.key for pointer in pointers)
        columns: dict[str, Column] = {
            "source": np.full(len(offsets), Source.JOURNAL, np.int64),
            "offset": _ints(offsets),
            "index": _ints(indexes),
            "event_offset": _ints(pointer.event_offset for pointer in pointers),
            "id": Varlen.of(pointer.id for pointer in pointers),
            "key": keys,
            "asked": _ints(pointer.asked for pointer in pointers),
            "known": _ints(known),
            "label": _ints(labels),
            "origin": Varlen.of(origins),
            "revision": _ints(revisions),
            "answer_index": _ints(pointer.index for pointer in pointers),
            "deployment": _ints(arm.deployment for arm in arms),
            "arm": Varlen.of(arm.arm for arm in arms),
            "share": np.array([arm.share for arm in arms], np.float32),
            "shadow": np.array([arm.shadow for arm in arms], np.bool_),
            "model": Varlen.of(arm.model for arm in arms),
            "digest": Varlen.of(arm.digest for arm in arms),
            "score": np.array([pointer.score for pointer in pointers], np.float32),
            "flags": _ints(pointer.flags for pointer in pointers),
            "slices": Varlen.of(pointer.slices for pointer in pointers),
        }
        return [Messages("examples", "example", keys, columns, _ints(offsets))]


def _arms_of(table: Table | None) -> list[Arm]:
    """Who gave each answer of a batch; one object for all answers of one arm."""
    if table is None:
        return []
    known: dict[tuple[Any, ...], Arm] = {}
    columns = [table[name].tolist() for name in Arm.__struct_fields__]
    found = []
    for fields in zip(*columns, strict=True):
        if fields not in known:
            deployment, arm, share, shadow, model, digest = fields
            known[fields] = Arm(deployment, arm.decode(), share, shadow, model.decode(), digest.decode())
        found.append(known[fields])
    return found


def _tick_messages(ticks: Sequence[tuple[int, Tick]]) -> list[Messages]:
    if not ticks:
        return []
    zeros = np.zeros(len(ticks), np.int64)
    columns = {
        "source": zeros + int(Source.TICK),
        "partition": zeros,
        "offset": _ints(tick.number for _, tick in ticks),
        "index": zeros,
        "event_offset": zeros - 1,
        "time": _ints(tick.time for _, tick in ticks),
        "deployment": _ints(tick.deployment for _, tick in ticks),
    }
    return [Messages("examples", "tick", None, columns, _ints(offset for offset, _ in ticks))]


def _ints(values: Iterable[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.fromiter(values, np.int64)


def _time_of(tick: Tick | None) -> int:
    return NEVER if tick is None else tick.time
