"""
Fold the pipeline's log into its views, and answer each question with a row: the state of all that was folded before it.

A row is a function of its event offset. Only the copy of an event in its key's own partition makes a row or an outcome; copies that
were broadcast are folded, by the views that every partition needs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from driftline.contracts import traceparent
from driftline.contracts.messages import Source
from driftline.errors import Invalid
from driftline.features import tiles
from driftline.features.events import Decoder, Events
from driftline.features.texts import arrays
from driftline.features.views import Folded, Views
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Column, Effects, Ints, Messages, Refused, Table, Varlen

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
        self._views = Views(pipeline)
        self._entities = self._views.entities
        self._decoder = Decoder(pipeline, self._views.plan)
        self._meta: tuple[int, int] | None = None
        self._polled: Events | None = None  # as they were decoded: batches are cut from them
        self._current: tuple[Batch, Events] | None = None
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
        absent = self._views.absent(self._events(batch))
        self._wanted = {self._entities.store_key(kind, key): (kind, key) for kind, key in absent}
        return [*([META] if self._meta is None else []), *self._wanted]

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        if META in rows:
            row = rows[META]
            self._meta = BEFORE_ANY_TICK if row is None else META_FORMAT.unpack(row)
        known = [name for name in rows if name in self._wanted]
        self._entities.add([self._wanted.pop(name) for name in known], [rows[name] for name in known])

    def touches(self, batch: Batch) -> int:
        return self._views.touches(self._events(batch)) + 1

    def step(self, batch: Batch) -> Effects:
        if self._meta is None:
            raise Invalid("the feature service's state was not loaded")
        events, ticks = self._events(batch), batch["tick"]
        folded = self._views.fold(events)
        became = folded.became
        deployments = _deployments(self._meta[0], ticks, events.table.offsets)
        messages = [self._row_messages(events, folded, deployments), self._outcome_messages(events, became)]
        state = self._entities.rows(folded.touched)
        if ticks is not None:
            messages += [_tick_messages(ticks, "features"), _tick_messages(ticks, "journal")]
            self._meta = int(ticks["deployment"][-1]), int(ticks["time"][-1])
            state = state.plus(META, META_FORMAT.pack(*self._meta))
        refused = [events.refused[int(offset)] for offset in events.table.offsets[became == tiles.REFUSED]]
        return Effects(state, [one for one in messages if len(one)], refused, _counts(events, became, ticks))

    # What a batch says.

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

    # What comes out.

    def _row_messages(self, events: Events, folded: Folded, deployments: Ints) -> Messages:
        questions = events.questions
        asked = folded.became[questions.places] != tiles.DUPLICATE
        places = questions.places[asked]
        columns = _about(events.table, places)
        columns |= {
            "id": events.table["id"].take(places),
            "deployment": deployments[places],
            "layout": Varlen.repeat(self._pipeline.layout.version, len(places)),
            "slices": arrays([one.take(asked) for one in questions.slices], len(places)),
            "row": self._pipeline.layout.pack_whole(folded.rows[asked]),
            traceparent.NAME: traceparent.column_of(events.table).take(places),
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
