"""What the tests of drift share: a loop without brokers, a pipeline as far as drift reads it, and a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from driftline.contracts.avro import Codec
from driftline.contracts.messages import schema
from driftline.judge.drift import Reference
from driftline.stream.batch import Batch, Core, Messages, Table, Varlen

DAY_MS = 86_400_000
HORIZON_MS = DAY_MS * 3 // 2
TEXTS = {"id", "key", "arm", "model", "digest", "origin", "slices", "row", "kind", "body", "trigger", "outcome", "reason"}
KINDS = {"score": np.float32, "share": np.float32, "shadow": np.bool_, "alert": np.bool_}

Record = tuple[str, dict[str, Any]]


class Layout:
    """Rows of two features and the age of one view."""

    names = ("delay", "wind")
    row_bytes = 12

    def matrix(self, rows: Varlen) -> Any:
        return np.array([np.frombuffer(row, "<f4")[:2] for row in rows.tolist()], np.float32)


def batch_of(log: Sequence[Record], first: int, end: int) -> Batch:
    """The records at offsets `first` to `end`, by column."""
    tables = {}
    for message in sorted({message for message, _ in log[first:end]}):
        mine = [(offset, log[offset][1]) for offset in range(first, end) if log[offset][0] == message]
        columns = {name: _column(name, [fields[name] for _, fields in mine]) for name in mine[0][1]}
        tables[message] = Table(message, np.array([offset for offset, _ in mine], np.int64), columns)
    return Batch(0, first, end, tables)


def _column(name: str, values: list[Any]) -> Any:
    return Varlen.of(values) if name in TEXTS else np.array(values, KINDS.get(name, np.int64))


class Run:
    """A core over a log, cut into batches; with `reload` a new core for each batch, from the stored rows alone."""

    def __init__(self, core: Callable[[], Core], log: Sequence[Record], cuts: Iterable[int] = (), reload: bool = False) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.sent: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}
        self.refused: list[tuple[int, str]] = []
        self.core = core()
        for first, end in pairwise([0, *sorted({*cuts} - {0, len(log)}), len(log)]):
            self.core = core() if reload else self.core
            self._step(batch_of(log, first, end))

    def _step(self, batch: Batch) -> None:
        while keys := self.core.needs(batch):
            self.core.load({key: self.rows.get(key) for key in keys})
        bound = self.core.touches(batch)
        effects = self.core.step(batch)
        assert len(effects.state) <= bound
        assert sum(effects.counts.values()) + len(effects.refused) == len(batch)
        self.refused += [(one.offset, one.reason) for one in effects.refused]
        self.rows = {key: row for key, row in {**self.rows, **effects.state}.items() if row is not None}
        self.counts = {name: self.counts.get(name, 0) + effects.counts.get(name, 0) for name in {*self.counts, *effects.counts}}
        for messages in effects.messages:
            records = as_read(messages).records()
            self.sent += [record | {"topic": messages.topic, "message": messages.message, "to": messages.to} for record in records]

    def bodies(self, message: str) -> list[dict[str, Any]]:
        """The JSON bodies of all messages of one kind, in the order sent."""
        return [msgspec.json.decode(one["body"]) for one in self.sent if one["message"] == message]


def as_read(messages: Messages) -> Table:
    """Messages as a consumer has them: header filled in, encoded, decoded."""
    codec, zeros = Codec(schema(messages.message)), np.zeros(len(messages), np.int64)
    columns, bad = codec.decode(codec.encode({"writer": zeros, "partition": zeros, **messages.columns}))
    assert not bad.any()
    return Table(messages.message, messages.order, columns)


@pytest.fixture
def run() -> type[Run]:
    """Drives a core over a log, with cuts and reloads."""
    return Run


@pytest.fixture
def pipeline() -> Any:
    """As much of a pipeline as drift reads."""
    retrain = SimpleNamespace(
        first_after_ms=14 * DAY_MS,
        quality_run_length_ms=180 * DAY_MS,
        new_labels=1.5,
        every_ms=28 * DAY_MS,
        cooldown_ms=7 * DAY_MS,
        budget=8,
    )
    label = SimpleNamespace(horizon_ms=HORIZON_MS)
    decide = SimpleNamespace(alert_rate=0.1)
    slices = ("origin", "carrier")
    return SimpleNamespace(name="flights", layout=Layout(), window_ms=DAY_MS, slices=slices, label=label, decide=decide, retrain=retrain)


@pytest.fixture
def references() -> Callable[[str], Reference]:
    """What every model was trained on."""
    counts = {"delay": [400, 300, 300, 0], "wind": [500, 500, 0]}
    reference = Reference.of({"edges": {"delay": [0.0, 10.0], "wind": [5.0]}, "counts": counts, "score_counts": [50] * 20}, 4.0)
    return lambda digest: reference
