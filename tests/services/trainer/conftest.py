"""A made-up history for the trainer: rows that say something, labels that follow from them, and the batches they come in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from driftline.contracts.avro import pack_strings
from driftline.contracts.messages import Retrain
from driftline.declaration import Gate, LightGBM
from driftline.pipeline import load_pipeline
from driftline.stream.batch import Batch, Table, Varlen

DAY_MS = 86_400_000
START = 1_357_000_000_000 // DAY_MS * DAY_MS
ROWS_A_DAY = 400
HORIZON_MS = 36 * 3_600_000
PIPELINES = Path(__file__).resolve().parents[3] / "pipelines"


@pytest.fixture(scope="session")
def pipeline():
    """Flights, with a model and a gate that little data can satisfy."""
    flights = load_pipeline("flights", PIPELINES)
    return dataclasses.replace(
        flights, model=LightGBM(trees=15, leaf_rows_min=20), gate=Gate(on="3d", rows_min=200, positives_min=20), slices=("origin",)
    )


class World:
    """
    Questions over some days on two partitions, each with its row and label. From day `turn` on, labels follow the contrary.
    """

    start = START
    day_ms = DAY_MS
    horizon_ms = HORIZON_MS

    def __init__(self, layout, days=14, turn=None, seed=5):
        chance = np.random.default_rng(seed)
        n = days * ROWS_A_DAY
        self.layout = layout
        self.asked = START + np.sort(chance.integers(0, days * DAY_MS, n))
        self.matrix = chance.normal(size=(n, len(layout.names))).astype(np.float32)
        driver = self.matrix[:, 0] if turn is None else np.where(self.asked < START + turn * DAY_MS, self.matrix[:, 0], -self.matrix[:, 0])
        self.label = (chance.random(n) < 1 / (1 + np.exp(-2 * driver + 1))).astype(np.int64)
        self.matrix[chance.random(n) < 0.1, 1] = np.nan
        self.partition = np.arange(n) % 2
        self.event_offset = np.arange(n) // 2 * 3 + 10
        self.rows = layout.pack(self.matrix, np.full((n, len(layout.views)), 60.0, np.float32))

    def answers(self, partition, index, /, **changes):
        """The answers, index 0, of the rows at `index`, as a batch of the journal."""
        n = len(index)
        columns = {
            "index": np.zeros(n, np.int64),
            "event_offset": self.event_offset[index],
            "shadow": np.zeros(n, np.bool_),
            "flags": np.zeros(n, np.int64),
            "layout": Varlen.repeat(self.layout.version, n),
            "row": self.rows.take(index),
        }
        return batch("answer", partition, columns | changes, n)

    def examples(self, partition, index, /, ticks=(), **changes):
        """The first labels of the rows at `index`, as a batch of examples, and ticks at the times `ticks`."""
        n = len(index)
        columns = {
            "event_offset": self.event_offset[index],
            "revision": np.zeros(n, np.int64),
            "known": self.asked[index] + HORIZON_MS,
            "asked": self.asked[index],
            "label": self.label[index],
            "answer_index": np.zeros(n, np.int64),
            "slices": Varlen.of(pack_strings([("EWR", "JFK")[at % 2]]) for at in index.tolist()),
        }
        made = batch("example", partition, columns | changes, n)
        if len(ticks):
            made.tables["tick"] = Table("tick", np.arange(len(ticks)) + n, {"time": np.asarray(ticks, np.int64)})
        return made

    def of(self, partition):
        """Where the rows of `partition` are."""
        return np.flatnonzero(self.partition == partition)

    def fill(self, history, until=None):
        """Give `history` all of it, with ticks up to `until`."""
        for partition in (0, 1):
            history.add_journal(self.answers(partition, self.of(partition)))
            history.add_examples(self.examples(partition, self.of(partition), ticks=[until or START + 365 * DAY_MS]))


def batch(message, partition, columns, n):
    return Batch(partition, 0, n, {message: Table(message, np.arange(n), columns)})


@pytest.fixture
def command():
    """Makes a retrain command at the start of a day, counted from the first."""
    return lambda day, id="flights-quality-1", trigger="quality": Retrain(id, trigger, START + day * DAY_MS, "drift", {})


@pytest.fixture
def worlds(pipeline):
    """Makes a history with days, turn or seed of its own."""
    return lambda **options: World(pipeline.layout, **options)


@pytest.fixture
def world(worlds):
    return worlds()
