"""
The views of one partition in memory: events in, rows out. Wherever features are made, they are made here: by the service from the log, by
the backfill from a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid
from driftline.features import tiles
from driftline.features.entities import ABSENT, Entities
from driftline.features.events import Events
from driftline.features.plan import Plan
from driftline.pipeline import Pipeline
from driftline.stream.batch import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """
    What came of n events: the rows of all questions, (q, F + V); what `became` of each event, (n,), as `tiles` names it; and the slots that
    were `touched`, each once.
    """

    rows: npt.NDArray[np.float32]
    became: Ints
    touched: Ints


class Views:
    """State and kernel. Entities that events need have to be in memory (`absent`, then `entities.add`) before these are folded."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.plan = Plan.of(pipeline)
        views = [view.name.encode() + b":" for view in pipeline.views]
        ids = [b"ids:" + stream.name.encode() + b":" for stream in pipeline.streams]
        self.entities = Entities([*views, *ids], self.plan.layouts)
        self._folds = _folds(self.plan, len(views))
        self._found: tuple[Events, int, Ints] | None = None

    def absent(self, events: Events) -> Iterator[tuple[int, bytes]]:
        """Kind and key of the entities that these events need and that are not in memory, each once."""
        slots = self._slots(events)
        for lookup in events.lookups:
            absent = slots[lookup.places, lookup.column] == ABSENT
            if absent.any():
                yield from ((lookup.kind, key) for key in self.entities.distinct_keys(lookup.keys.take(absent)))

    def touches(self, events: Events) -> int:
        """An upper bound of how many entities `fold` would touch."""
        slots = self._slots(events)
        folded = slots[self._folds[events.stream] & (slots != tiles.NONE)]
        known = folded[folded != ABSENT]
        return len(self.entities.distinct(known, len(known))) + len(folded) - len(known)

    def fold(self, events: Events) -> Folded:
        """One call of the kernel. Raises Invalid when an entity is not in memory."""
        plan, entities, questions = self.plan, self.entities, events.questions
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
        return Folded(rows, became, entities.distinct(touched, n_touched))

    def _slots(self, events: Events) -> Ints:
        """The slots of the entities of each event, by view, and last that of its memory of ids, (n, V + 1)."""
        if self._found is None or self._found[0] is not events or self._found[1] != self.entities.generation:
            slots = np.full((len(events), self._folds.shape[1]), tiles.NONE, np.int64)
            for lookup in events.lookups:
                slots[lookup.places, lookup.column] = self.entities.find(lookup.kind, lookup.keys)
            self._found = events, self.entities.generation, slots
        return self._found[2]


def _folds(plan: Plan, views: int) -> npt.NDArray[np.bool_]:
    """Which columns of the slots each stream writes, (S + 1, V + 1): its views and the memory of ids; none for what is undecodable."""
    folds = np.zeros((len(plan.streams) + 1, views + 1), np.bool_)
    folds[:-1, views] = True
    folds[plan.runs[:, 0], plan.runs[:, 1]] = True
    return folds
