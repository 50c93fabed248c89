"""
The rows to train on: what was served, from the journal, with what became of it, from the examples. Whatever the order of reading,
the same log gives the same arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from driftline.contracts.messages import Flag
from driftline.errors import Invalid
from driftline.features.row import RowLayout
from driftline.stream.batch import Batch, Ints, Varlen

Matrix = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Objects = npt.NDArray[np.object_]
Index = npt.NDArray[np.bool_] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Served rows of one partition."""

    event_offset: Ints
    packed: Matrix  # whole rows, ages included, as on the log
    degraded: Bools  # answered without a model, or without a number from it


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Labels of one partition, in the order of the log."""

    event_offset: Ints
    revision: Ints
    known: Ints
    asked: Ints
    label: Ints
    slices: Objects  # as Avro encodes an array of strings


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Rows as they were served, with their labels, in order of (asked, partition, event offset)."""

    partition: Ints
    event_offset: Ints
    asked: Ints
    label: Ints
    matrix: Matrix  # (n, F): the features
    ages: Matrix  # (n, V): seconds since each view last heard of its entity
    degraded: Bools
    slices: Objects

    def __len__(self) -> int:
        return len(self.label)

    @property
    def positives(self) -> int:
        """How many labels are 1."""
        return int(self.label.sum())

    def digest(self) -> str:
        """SHA-256 over rows, labels and times of asking, in order."""
        content = hashlib.sha256(np.hstack([self.matrix, self.ages]).astype("<f4").tobytes())
        content.update(self.label.astype(np.int8).tobytes())
        content.update(self.asked.astype("<i8").tobytes())
        return content.hexdigest()

    def ranges(self) -> dict[str, dict[str, list[int]]]:
        """Which events the rows are about: first and one past the last event offset, by partition."""
        found = {}
        for partition in np.unique(self.partition).tolist():
            offsets = self.event_offset[self.partition == partition]
            found[str(partition)] = [int(offsets.min()), int(offsets.max()) + 1]
        return {"events": found}


Columns = TypeVar("Columns", Rows, Labels, Dataset)


def take(columns: Columns, index: Index) -> Columns:
    """The entries at `index` (positions or a mask), in their order."""
    return replace(columns, **{field.name: getattr(columns, field.name)[index] for field in fields(columns)})


def joined(parts: Sequence[Columns]) -> Columns:
    """All of `parts`, of which there is at least one, end to end."""
    return replace(parts[0], **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(parts[0])})


class History:
    """
    What the trainer has read of journal and examples: kept in arrays, added to with every command, never read twice.

    `without_row` counts the labels of the last dataset whose row was not found, or is of another layout.
    """

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._rows: dict[int, list[Rows]] = {}
        self._labels: dict[int, list[Labels]] = {}
        self._ticks: dict[int, int] = {}
        self._slices: dict[bytes, bytes] = {}  # the few values there are, each kept once
        self.without_row = 0

    def add_journal(self, batch: Batch) -> None:
        """Keep the rows of served answers. Rows of another layout are left out."""
        answers = batch["answer"]
        if answers is None:
            return
        served = answers.take((answers["index"] == 0) & ~answers["shadow"])
        version, row = self._layout.version.encode(), served["row"]
        ours = np.array([layout == version for layout in served["layout"].tolist()], np.bool_)
        served = served.take(ours & (row.ends - row.starts == self._layout.row_bytes))
        degraded = (served["flags"] & int(Flag.DEGRADED)) != 0
        self._rows.setdefault(batch.partition, []).append(Rows(served["event_offset"], self._packed(served["row"]), degraded))

    def _packed(self, rows: Varlen) -> Matrix:
        """Copied, so that the buffer that was polled can go."""
        return np.frombuffer(b"".join(rows.tolist()), "<f4").reshape(len(rows), self._layout.width).astype(np.float32)

    def add_examples(self, batch: Batch) -> None:
        """Keep the labels of served answers, and how far the labels are settled."""
        examples, ticks = batch["example"], batch["tick"]
        if ticks is not None:
            self._ticks[batch.partition] = max(self._ticks.get(batch.partition, 0), int(ticks["time"].max()))
        if examples is None:
            return
        served = examples.take(examples["answer_index"] == 0)
        slices = np.empty(len(served), np.object_)
        slices[:] = [self._slices.setdefault(value, value) for value in served["slices"].tolist()]
        columns = {name: served[name] for name in ("event_offset", "revision", "known", "asked", "label")}
        self._labels.setdefault(batch.partition, []).append(Labels(**columns, slices=slices))

    def settled(self, partitions: Sequence[int]) -> int:
        """Up to which time the labels of all `partitions` are on the log; 0 while one has told none."""
        return min((self._ticks.get(partition, 0) for partition in partitions), default=0)

    def dataset(self, until: int) -> Dataset:
        """
        All rows with a label that was known by `until`, by the latest revision of that time; excluded ones are left out.

        Raises Invalid while there is no label with its row.
        """
        self.without_row = 0
        parts = [self._with_rows(partition, until) for partition in sorted(self._labels.keys() & self._rows.keys())]
        if not sum(map(len, parts)):
            raise Invalid("there is no label with its row on the logs yet")
        whole = joined(parts)
        return take(whole, np.lexsort((whole.event_offset, whole.partition, whole.asked)))

    def _with_rows(self, partition: int, until: int) -> Dataset:
        labels, rows = joined(self._labels[partition]), joined(self._rows[partition])
        self._labels[partition], self._rows[partition] = [labels], [rows]
        labels = latest(labels, until)
        events, first = np.unique(rows.event_offset, return_index=True)
        at = np.minimum(np.searchsorted(events, labels.event_offset), len(events) - 1)
        found = events[at] == labels.event_offset if len(events) else np.zeros(len(labels.event_offset), np.bool_)
        self.without_row += int(np.count_nonzero(~found))
        labels, rows = take(labels, found), take(rows, first[at[found]])
        features = len(self._layout.names)
        return Dataset(
            partition=np.full(len(labels.label), partition, np.int64),
            event_offset=labels.event_offset,
            asked=labels.asked,
            label=labels.label,
            matrix=np.ascontiguousarray(rows.packed[:, :features]),
            ages=np.ascontiguousarray(rows.packed[:, features:]),
            degraded=rows.degraded,
            slices=labels.slices,
        )


def latest(labels: Labels, until: int) -> Labels:
    """Of each event the latest revision that was known by `until`, unless that excludes it."""
    known = np.flatnonzero(labels.known <= until)
    order = known[np.lexsort((labels.revision[known], labels.event_offset[known]))]
    events = labels.event_offset[order]
    last = order[np.append(events[1:] != events[:-1], np.ones(min(1, len(events)), np.bool_))]
    return take(labels, last[labels.label[last] >= 0])
