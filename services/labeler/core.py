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

from collections.abc import Mapping, Sequence
from itertools import chain

import msgspec
import numpy as np

from driftline.contracts import traceparent
from driftline.contracts.messages import Source, Writer
from driftline.errors import Invalid
from driftline.features import texts
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Column, Effects, Ints, Messages, Refused, Table, Varlen
from driftline.stream.journal import Passage, Ticks

from .joining import (
    ARRIVED_ANSWER,
    ARRIVED_OUTCOME,
    BY_LIMIT,
    BY_SILENCE,
    EXCLUDED,
    MOVED,
    NEVER,
    TOTALS,
    UNSETTLED,
    Examples,
    Rules,
    join,
)
from .waiting import ANSWER_KIND, ANSWERS, META, OUTCOME_KIND, OUTCOMES, SEGMENT, Arm, Held, Meta, next_of_answers, ranges

ROW_FORMAT = 2
ORIGINS = {BY_SILENCE: "silence", BY_LIMIT: "limit"}
SILENT_LABEL = {"positive": 1, "negative": 0, "excluded": EXCLUDED}
NOBODY = np.zeros(0, np.int64)


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
        horizon, revisions = pipeline.label.horizon_ms, pipeline.label.revisions_ms
        self.waiting_max = pipeline.label.waiting_max
        # Kept a horizon longer than settled in any case, so that an outcome finds its answer when it is itself forgotten.
        self._rules = Rules(horizon, revisions, max(horizon, revisions), SILENT_LABEL[pipeline.label.if_silent], self.waiting_max)
        self._loaded: Meta | None = None
        self._missing: set[bytes] = {META}
        self._answers: Held[Arm] = Held(ANSWER_KIND)
        self._outcomes: Held[str] = Held(OUTCOME_KIND)

    @property
    def _meta(self) -> Meta:
        if self._loaded is None:
            raise Invalid("the labeler's state was not loaded")
        return self._loaded

    @property
    def waiting(self) -> int:
        """Answers held, those that may only be revised included."""
        return len(self._answers)

    @property
    def outcomes_held(self) -> int:
        """Outcomes held."""
        return len(self._outcomes)

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
                continue
            if row is None:
                raise Invalid(f"the labeler's row {key!r} of partition {self._partition} is gone: driftline rebuild labeler")
            held = self._answers if key.startswith(ANSWERS) else self._outcomes
            held.load(row)
        if not self._missing:
            self._answers.loaded()
            self._outcomes.loaded()

    def _load_meta(self, row: bytes | None) -> None:
        meta = Meta() if row is None else msgspec.msgpack.decode(row, type=Meta)
        self._loaded = meta
        for prefix, spans in ((ANSWERS, meta.answer_segments), (OUTCOMES, meta.outcome_segments)):
            self._missing.update(b"%s%d" % (prefix, segment) for first, last in spans for segment in range(first, last + 1))

    @property
    def _now(self) -> int:
        tick = self._loaded.time.now if self._loaded else None
        return NEVER if tick is None else tick.time

    def touches(self, batch: Batch) -> int:
        answers, outcomes = (len(table) if (table := batch[name]) else 0 for name in ("answer", "outcome"))
        bound = 1 + answers // SEGMENT + outcomes // SEGMENT + 4
        for held, arrived in ((self._answers, answers), (self._outcomes, outcomes)):
            bound += max(0, len(held) + arrived - self.waiting_max)  # one may be given up for each that is too many
        ticks = batch["tick"]
        if ticks is None:
            return bound
        until, waiting, told = ticks["time"].max(), self._answers, self._outcomes
        fresh = np.count_nonzero(told.live & (told.records["epoch"] >= self._now))
        revised = min(outcomes + int(fresh), len(waiting.segments))
        due = waiting.segments_of(next_of_answers(waiting.records, self._rules.kept) < until)
        return bound + revised + len(due) + len(told.segments_of(told.records["forget"] < until))

    def step(self, batch: Batch) -> Effects:
        now, passage = self._now, self._meta.time.take(batch["tick"])
        answers = self._arrived_answers(batch["answer"], passage)
        outcomes = self._arrived_outcomes(batch["outcome"], passage)
        moves = passage.moves
        steps = _in_order(
            (ARRIVED_ANSWER, _offsets(batch["answer"]), answers, NOBODY),
            (ARRIVED_OUTCOME, _offsets(batch["outcome"]), outcomes, NOBODY),
            (MOVED, moves.offsets, NOBODY, moves.times),
        )
        found, totals = join(self._answers.table(), self._outcomes.table(), self._rules, now, *steps)
        for what, count in zip(TOTALS, totals.tolist(), strict=True):
            if count:
                self._meta.totals[what] = self._meta.totals.get(what, 0) + count
        messages = [*self._messages(Examples(*found)), *_tick_messages(moves)]
        counts = {"applied": len(answers) + len(outcomes), "tick": len(batch["tick"] or ())}
        return Effects(self._changed(), messages, counts=counts)

    # What arrives is only put down.

    def _arrived_answers(self, table: Table | None, passage: Passage) -> Ints:
        """The places of the answers of a batch."""
        if table is None:
            return NOBODY
        arms, firsts = texts.groups(*(table[name] for name in Arm.__struct_fields__))
        codes = np.array([self._answers.code(arm) for arm in _arms(table.take(firsts))])
        asked = table["visible"]
        fields = {
            "number": self._meta.answers + np.arange(len(table)),
            "event_offset": table["event_offset"],
            "index": table["index"],
            "asked": asked,
            "due": np.maximum(asked + self._rules.horizon, passage.epochs(Writer.INFERENCE, table.offsets)),
            "told": NEVER,
            "score": table["score"],
            "who": codes[arms],
            "flags": table["flags"],
            "label": UNSETTLED,
            "revision": 0,
        }
        self._meta.answers += len(table)
        traces = traceparent.column_of(table).null_as_empty()
        return self._answers.append(fields, [table["id"], table["key"], table["slices"], traces])

    def _arrived_outcomes(self, table: Table | None, passage: Passage) -> Ints:
        """The places of the outcomes of a batch."""
        if table is None:
            return NOBODY
        origins, firsts = texts.groups(table["origin"])
        codes = np.array([self._outcomes.code(origin) for origin in table["origin"].take(firsts).texts()])
        epochs = passage.epochs(Writer.FEATURE, table.offsets)
        fields = {
            "number": self._meta.outcomes + np.arange(len(table)),
            "visible": table["visible"],
            "epoch": epochs,
            "forget": np.maximum(table["visible"] + self._rules.horizon, epochs),
            "who": codes[origins],
            "label": table["label"],
        }
        self._meta.outcomes += len(table)
        return self._outcomes.append(fields, [table["id"]])

    # What was joined is told.

    def _messages(self, found: Examples) -> list[Messages]:
        if not len(found.offset):
            return []
        answers = self._answers.records[found.place]
        arms, who = self._answers.names, answers["who"]
        keys = self._answers.text("key", found.place)
        origins = Varlen.of([*self._outcomes.names, *(ORIGINS[code] for code in (BY_LIMIT, BY_SILENCE))])  # by code, those below 0 last
        columns: dict[str, Column] = {
            "source": np.full(len(found.offset), Source.JOURNAL, np.int64),
            "offset": found.offset,
            "index": np.arange(len(found.offset)) - np.searchsorted(found.offset, found.offset),
            "event_offset": answers["event_offset"].copy(),
            "id": self._answers.text("id", found.place),
            "key": keys,
            "asked": answers["asked"].copy(),
            "known": found.known,
            "label": found.label,
            "origin": origins.take(found.origin),
            "revision": found.revision,
            "answer_index": answers["index"].copy(),
            "deployment": np.array([arm.deployment for arm in arms], np.int64)[who],
            "arm": Varlen.of(arm.arm for arm in arms).take(who),
            "share": np.array([arm.share for arm in arms], np.float32)[who],
            "shadow": np.array([arm.shadow for arm in arms], np.bool_)[who],
            "model": Varlen.of(arm.model for arm in arms).take(who),
            "digest": Varlen.of(arm.digest for arm in arms).take(who),
            "score": answers["score"].copy(),
            "flags": answers["flags"].astype(np.int64),
            "slices": self._answers.text("slices", found.place),
            traceparent.NAME: self._answers.text(traceparent.NAME, found.place).empty_as_null(),
        }
        return [Messages("examples", "example", keys, columns, found.offset)]

    def _changed(self) -> dict[bytes, bytes | None]:
        rows = dict(chain(self._answers.changed(), self._outcomes.changed()))
        self._meta.answer_segments = ranges(self._answers.segments.tolist())
        self._meta.outcome_segments = ranges(self._outcomes.segments.tolist())
        rows[META] = msgspec.msgpack.encode(self._meta, order="sorted")
        return rows


def _offsets(table: Table | None) -> Ints:
    return NOBODY if table is None else table.offsets


def _in_order(*steps: tuple[int, Ints, Ints, Ints]) -> tuple[Ints, Ints, Ints, Ints]:
    """Steps of several kinds, each with its offsets, and with places or times, in the log's order: kinds, places, offsets, times."""
    offsets = np.concatenate([mine for _, mine, _, _ in steps])
    order = np.argsort(offsets, kind="stable")
    columns = (
        np.concatenate([np.full(len(mine), kind, np.int64) for kind, mine, _, _ in steps]),
        np.concatenate([places if len(places) else np.zeros(len(mine), np.int64) for _, mine, places, _ in steps]),
        offsets,
        np.concatenate([times if len(times) else np.zeros(len(mine), np.int64) for _, mine, _, times in steps]),
    )
    kinds, places, offsets, times = (column[order] for column in columns)
    return kinds, places, offsets, times


def _arms(table: Table) -> list[Arm]:
    """Who gave each of these answers."""
    columns = [column.texts() if isinstance(column := table[name], Varlen) else column.tolist() for name in Arm.__struct_fields__]
    return [Arm(*fields) for fields in zip(*columns, strict=True)]


def _tick_messages(moves: Ticks) -> list[Messages]:
    """The journal's time is passed on."""
    if not len(moves):
        return []
    zeros = np.zeros(len(moves), np.int64)
    columns = {
        "source": zeros + int(Source.TICK),
        "partition": zeros,
        "offset": moves.numbers,
        "index": zeros,
        "event_offset": zeros - 1,
        "time": moves.times,
        "deployment": moves.deployments,
    }
    return [Messages("examples", "tick", None, columns, moves.offsets)]
