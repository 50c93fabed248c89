"""
The data that driftline and its peers are compared on, from a seed: payments, what a plain sequential program says of each, and a
model of 100 trees of 31 leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.contracts.avro import Codec, frame
from driftline.declaration import LightGBM
from driftline.models.recipes import fit
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Varlen

PIPELINES = Path(__file__).parents[1] / "pipelines"
CARDS = 10_000
FIRST_MS = 1_700_006_400_000  # a multiple of every tick
APART_MS = 2_000
HOP_MS, WINDOW_MS = 7_200_000, 86_400_000
TREES, LEAVES = 100, 31
MODEL_ROWS = 20_000
RECIPE = LightGBM(trees=TREES, leaves=LEAVES, leaf_rows_min=20, learning_rate=0.1, row_sample=1.0, column_sample=1.0, l2=1.0, seed=7)

ROW_SCHEMA = {  # of what the peers' feature hop writes and their score hop reads
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "payment_id", "type": "string"},
        {"name": "card", "type": "string"},
        {"name": "at", "type": "long"},
        {"name": "count_24h", "type": "double"},
        {"name": "sum_24h", "type": "double"},
        {"name": "amount", "type": "double"},
    ],
}
SCORE_SCHEMA = {
    "type": "record",
    "name": "Score",
    "fields": [
        {"name": "payment_id", "type": "string"},
        {"name": "card", "type": "string"},
        {"name": "at", "type": "long"},
        {"name": "score", "type": "float"},
    ],
}
ROW_ID, SCORE_ID = 1, 2  # the peers' schema ids


def pipeline() -> Pipeline:
    """The declaration in benchmarks/pipelines/payments."""
    return load_pipeline("payments", PIPELINES)


@dataclass(frozen=True)
class Payments:
    """n payments, a time of its own for each, so that no two systems can differ about ties."""

    n: int
    seed: int = 7

    @cached_property
    def cards(self) -> npt.NDArray[np.int64]:
        """The number of each one's card, int64 (n,)."""
        return np.random.default_rng([self.seed, 1]).integers(0, CARDS, self.n)

    @cached_property
    def amounts(self) -> npt.NDArray[np.float64]:
        """In whole quarters, so that a sum is the same in whatever order and precision it is made. Float64 (n,)."""
        return np.round(np.random.default_rng([self.seed, 2]).gamma(2.0, 30.0, self.n) * 4) / 4

    @cached_property
    def times(self) -> npt.NDArray[np.int64]:
        """Milliseconds UTC, ascending, int64 (n,)."""
        return FIRST_MS + np.arange(self.n, dtype=np.int64) * APART_MS

    @property
    def end_ms(self) -> int:
        """A tick behind the last one."""
        return (int(self.times[-1]) // 3_600_000 + 1) * 3_600_000

    @cached_property
    def keys(self) -> list[bytes]:
        """The cards as text."""
        names = [b"card-%05d" % number for number in range(CARDS)]
        return [names[number] for number in self.cards.tolist()]

    def ids(self) -> list[str]:
        """One for each."""
        return [f"p{number:08d}" for number in range(self.n)]

    def values(self, schema: dict[str, Any], schema_id: int) -> list[bytes]:
        """As upstream writes them: Avro in Confluent's framing."""
        columns = {"payment_id": Varlen.of(self.ids()), "card": Varlen.of(self.keys), "at": self.times, "amount": self.amounts}
        return list(Codec(schema).encode(columns, frame(schema_id)).tolist())

    @cached_property
    def rows(self) -> npt.NDArray[np.float32]:
        """
        Count and sum of the card's earlier payments within a day, and the amount: float32 (n, 3). The old end of the window is rounded
        down to two hours, as `driftline.features.tiles` explains; written here anew, one payment after the other.
        """
        out = np.empty((self.n, 3), np.float32)
        tiles: dict[int, dict[int, tuple[int, float]]] = {}
        for at, (card, time, amount) in enumerate(zip(self.cards.tolist(), self.times.tolist(), self.amounts.tolist(), strict=True)):
            mine = tiles.setdefault(card, {})
            oldest, tile = (time - WINDOW_MS) // HOP_MS, time // HOP_MS
            for gone in [one for one in mine if one < oldest]:
                del mine[gone]
            out[at] = sum(count for count, _ in mine.values()), sum(total for _, total in mine.values()), amount
            count, total = mine.get(tile, (0, 0.0))
            mine[tile] = count + 1, total + amount
        return out

    def encoded_rows(self) -> list[bytes]:
        """What the peers' score hop reads."""
        rows = self.rows.astype(np.float64)
        columns = {"payment_id": Varlen.of(self.ids()), "card": Varlen.of(self.keys), "at": self.times}
        columns |= {"count_24h": rows[:, 0], "sum_24h": rows[:, 1], "amount": rows[:, 2]}
        return list(Codec(ROW_SCHEMA).encode(columns, frame(ROW_ID)).tolist())


@cache
def payments_of(n: int, seed: int = 7) -> Payments:
    """The same ones again cost nothing."""
    return Payments(n, seed)


@cache
def model() -> bytes:
    """A graph that learned something from payments of another seed."""
    learned = payments_of(MODEL_ROWS, 11)
    rows = learned.rows
    odds = 0.02 * rows[:, 2] + 0.3 * rows[:, 0] - 2.0 + np.random.default_rng(3).normal(0, 1, len(rows))
    return fit(RECIPE, rows, (odds > 0).astype(np.int64), seed=7).onnx()


def digest(data: bytes) -> str:
    """For manifests and reports."""
    return hashlib.sha256(data).hexdigest()


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of `size` over `n`."""
    for at in range(0, n, size):
        yield slice(at, min(at + size, n))
