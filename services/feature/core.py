"""
Fold the pipeline's log into its views, and answer each question with a row: the state of all that was folded before it.

A row is a function of its event offset. Only the copy of an event in its key's own partition makes a row or an outcome; copies that
were broadcast are folded, by the views that every partition needs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from driftline.contracts.messages import Source
from driftline.errors import Invalid
from driftline.features import tiles
from driftline.features.entities import ABSENT, Entities
from driftline.features.plan import Plan
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Column, Effects, Ints, Messages, Refused, Table, Varlen

from .events import Decoder, Events

META = b"meta"
META_FORMAT = struct.Struct("<qq")  # deployment in force, time of the last tick
BEFORE_ANY_TICK = (0, -1)
ENTITIES_MAX = 500_000  # half a gigabyte, if all of them were full memories of 64 ids
NO_EVENTS = Table(
    "event",
    np.zeros(0, np.int64),
    {name: np.zeros(0, np.int64) for name in ("source", "visible", "time", "home")}
    | {name: Varlen.of([]) for name in ("id", "key", "body")},
)


class Feature:
    """
    The core of the feature service over one partition of the pipeline's log. See `driftline.stream.batch.Core`.

    Entities stay in memory once they were loaded, until there are more than `entities_max` when a batch begins: then all are dropped
    and asked for again as they are needed.
    """

    def __init__(self, pipeline: Pipeline, partition: int, entities_max: int = ENTITIES_MAX) -> None:
        self._pipeline = pipeline
        self._partition = partition
        self._entities_max = entities_max
        self._plan = Plan.of(pipeline)
        self._decoder = Decoder(pipeline, self._plan)
        views = [view.name.encode() + b":" for view in pipeline.views]
        ids = [b"ids:" + stream.name.encode() + b":" for stream in pipeline.streams]
        self._entities = Entities([*views, *ids], self._plan.empty, memories=len(views))
        self._folds = _folds(self._plan, len(views))
        self._meta: tuple[int, int] | None = None
        self._polled: Events | None = None  # as they were decoded: batches are cut from them
        self._current: tuple[Batch, Events] | None = None
        self._found: tuple[Events, int, Ints] | None = None
        self._begun: Batch | None = None
        self._wanted: dict[bytes, tuple[int, bytes]] = {}

    @property
    def entities(self) -> int:
        """Entities in memory, memories of ids included."""
        return self._entities.count

    def unfit(self, batch: Batch) -> Sequence[Refused]:
        table = batch["event"]
        if table is None:
            return ()
        self._polled = self._decoder.decode(table)
        return [self._polled.refused[offset] for offset in sorted(self._polled.refused)]

    def needs(self, batch: Batch) -> Sequence[bytes]:
        if batch is not self._begun:
            self._begun = batch
            if self._entities.count > self._entities_max:
                self._entities.clear()
        events = self._events(batch)
        slots = self._slots(events)
        self._wanted = {}
        for lookup in events.lookups:
            absent = slots[lookup.places, lookup.column] == ABSENT
            if absent.any():
                for key in self._entities.distinct_keys(lookup.keys.take(absent)):
                    self._wanted[self._entities.store_key(lookup.kind, key)] = lookup.kind, key
        return [*([META] if self._meta is None else []), *self._wanted]

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        if META in rows:
            row = rows[META]
            self._meta = BEFORE_ANY_TICK if row is None else META_FORMAT.unpack(row)
        known = [name for name in rows if name in self._wanted]
        self._entities.add([self._wanted.pop(name) for name in known], [rows[name] for name in known])

    def touches(self, batch: Batch) -> int:
        events = self._events(batch)
        slots = self._slots(events)
        folded = slots[self._folds[events.stream] & (slots != tiles.NONE)]
        known = folded[folded != ABSENT]
        return len(self._entities.distinct(known, len(known))) + len(folded) - len(known) + 1

    def step(self, batch: Batch) -> Effects:
        if self._meta is None:
            raise Invalid("the feature service's state was not loaded")
        events, ticks = self._events(batch), batch["tick"]
        rows, became, touched = self._fold(events)
        deployments = _deployments(self._meta[0], ticks, events.table.offsets)
        messages = [self._row_messages(events, rows, became, deployments), self._outcome_messages(events, became)]
        state = self._entities.rows(touched)
        if ticks is not None:
            messages += [_tick_messages(ticks, "features"), _tick_messages(ticks, "journal")]
            self._meta = int(ticks["deployment"][-1]), int(ticks["time"][-1])
            state[META] = META_FORMAT.pack(*self._meta)
        refused = [events.refused[int(offset)] for offset in events.table.offsets[became == tiles.REFUSED]]
        return Effects(state, [one for one in messages if len(one)], refused, _counts(events, became, ticks))

    # What a batch says, and where its entities are.

    def _events(self, batch: Batch) -> Events:
        """The events of a batch: decoded once a poll, however the loop cuts it."""
        if self._current is None or self._current[0] is not batch:
            self._current = batch, self._cut(batch["event"] or NO_EVENTS)
        return self._current[1]

    def _cut(self, table: Table) -> Events:
        events = self._polled.at(table.offsets) if self._polled is not None else None
        if events is None:
            events = self._polled = self._decoder.decode(table)
        return events

    def _slots(self, events: Events) -> Ints:
        """The slots of the entities of each event, by view, and last that of its memory of ids."""
        if self._found is None or self._found[0] is not events or self._found[1] != self._entities.generation:
            slots = np.full((len(events), len(self._pipeline.views) + 1), tiles.NONE, np.int64)
            for lookup in events.lookups:
                slots[lookup.places, lookup.column] = self._entities.find(lookup.kind, lookup.keys)
            self._found = events, self._entities.generation, slots
        return self._found[2]

    def _fold(self, events: Events) -> tuple[np.ndarray, Ints, Ints]:
        """One call of the kernel: the rows of all questions, what became of each event, and the slots to be written."""
        plan, entities, questions = self._plan, self._entities, events.questions
        slots = self._slots(events)
        if (slots == ABSENT).any():
            raise Invalid("a batch was to be folded before the entities that it needs were loaded")
        n = len(events)
        row_of = np.full(n, tiles.NONE, np.int64)
        row_of[questions.places] = np.arange(len(questions.places))
        rows = questions.rows.copy()
        became, touched = np.zeros(n, np.int64), np.empty(n * slots.shape[1], np.int64)
        visible = np.ascontiguousarray(events.table["visible"], np.int64)
        values = np.ascontiguousarray(events.values)
        n_touched = tiles.step(
            entities.words,
            entities.numbers,
            entities.base,
            plan.aggregates,
            plan.runs,
            plan.first_runs,
            plan.features,
            plan.terms,
            plan.streams,
            plan.ages,
            events.stream,
            visible,
            events.codes,
            slots,
            values,
            values.view(np.int64),
            row_of,
            rows,
            became,
            touched,
        )
        return rows, became, entities.distinct(touched, n_touched)

    # What comes out.

    def _row_messages(self, events: Events, rows: np.ndarray, became: Ints, deployments: Ints) -> Messages:
        questions = events.questions
        asked = became[questions.places] != tiles.DUPLICATE
        places = questions.places[asked]
        columns = _about(events.table, places)
        columns |= {
            "id": events.table["id"].take(places),
            "deployment": deployments[places],
            "layout": Varlen.repeat(self._pipeline.layout.version, len(places)),
            "slices": questions.slices.take(asked),
            "row": self._pipeline.layout.pack_whole(rows[asked]),
        }
        return Messages("features", "row", events.table["key"].take(places), columns, events.table.offsets[places])

    def _outcome_messages(self, events: Events, became: Ints) -> Messages:
        outcomes = events.outcomes
        told = became[outcomes.places] != tiles.DUPLICATE
        places = outcomes.places[told]
        label = self._pipeline.label
        columns = _about(events.table, places)
        columns |= {
            "id": outcomes.ids.take(told),
            "label": outcomes.labels[told],
            "origin": Varlen.repeat(label.of.topic if label else "", len(places)),
        }
        return Messages("journal", "outcome", events.table["key"].take(places), columns, events.table.offsets[places])


def _folds(plan: Plan, views: int) -> np.ndarray:
    """Which columns of the slots each stream writes, (S + 1, V + 1): its views and the memory of ids; none for what is undecodable."""
    folds = np.zeros((len(plan.streams) + 1, views + 1), np.bool_)
    folds[:-1, views] = True
    folds[plan.runs[:, 0], plan.runs[:, 1]] = True
    return folds


def _deployments(in_force: int, ticks: Table | None, offsets: Ints) -> Ints:
    """The deployment in force at each offset: that of the last tick before it."""
    if ticks is None:
        return np.full(len(offsets), in_force, np.int64)
    named = np.concatenate([np.array([in_force]), np.asarray(ticks["deployment"], np.int64)])
    return named[np.searchsorted(ticks.offsets, offsets)]


def _about(table: Table, places: Ints) -> dict[str, Column]:
    """The coordinate of a message that the events at `places` caused, and what it takes over from them."""
    offsets = table.offsets[places]
    return {
        "source": np.full(len(places), Source.EVENTS, np.int64),
        "offset": offsets,
        "index": np.zeros(len(places), np.int64),
        "event_offset": offsets,
        "key": table["key"].take(places),
        "time": table["time"][places],
        "visible": table["visible"][places],
    }


def _tick_messages(ticks: Table, topic: str) -> Messages:
    """Ticks are passed on in place, under their own coordinates."""
    names = ("source", "partition", "offset", "index", "event_offset", "time", "deployment")
    return Messages(topic, "tick", None, {name: ticks[name] for name in names}, ticks.offsets)


def _counts(events: Events, became: Ints, ticks: Table | None) -> dict[str, int]:
    """What became of the batch's messages. A broadcast copy counts as one, whatever became of it."""
    home = events.home
    counts = {
        "applied": int((home & (became == tiles.APPLIED)).sum()),
        "duplicate": int((home & (became == tiles.DUPLICATE)).sum()),
        "late": int((home & (became == tiles.LATE)).sum()),
        "broadcast": int((~home & (became != tiles.REFUSED)).sum()),
        "tick": 0 if ticks is None else len(ticks),
    }
    return {name: n for name, n in counts.items() if n}
