"""
Payments with cards, from a seed, of which few make many and many make few: what rows in the store, reads and growth are measured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from driftline.contracts.avro import Codec
from driftline.contracts.messages import Source
from driftline.contracts.topics import Topics
from driftline.features import tiles
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Batch, Table, Varlen
from driftline.stream.ledger import Entry, RedisLedger, prefix_of
from driftline.stream.store import Store
from services.feature.core import ENTITIES_MAX, Feature

from .payments import FIRST_MS, PIPELINES

GROUP = "cards-feature"
BATCH, KEYS_AT_ONCE = 4_000, 4_000
DAYS_MS = 30 * 86_400_000
POWER = 0.8  # of the card's rank: the tenth makes 6 times as many payments as the hundredth
DECLINED, ONLINE = 0.03, 0.4


def pipeline() -> Pipeline:
    """The declaration in benchmarks/pipelines/cards: a view of twelve features."""
    return load_pipeline("cards", PIPELINES)


@dataclass(frozen=True)
class Cards:
    """`n` payments within 30 days, at least one with each of so many cards; the others by the rank of the card."""

    cards: int
    n: int
    seed: int = 7

    def _chance(self, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, what])

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The number of each payment's card, int64 (n,)."""
        chance = self._chance(1)
        shares = np.cumsum(1.0 / np.arange(1, self.cards + 1) ** POWER)
        more = np.searchsorted(shares, chance.random(self.n - self.cards) * shares[-1])
        return chance.permutation(np.concatenate([np.arange(self.cards), more]))

    @cached_property
    def times(self) -> npt.NDArray[np.int64]:
        """Milliseconds UTC, ascending, int64 (n,)."""
        return FIRST_MS + np.sort(self._chance(2).integers(0, DAYS_MS, self.n))

    @cached_property
    def amounts(self) -> npt.NDArray[np.float64]:
        """In cents, float64 (n,)."""
        return np.round(self._chance(3).lognormal(3.0, 1.0, self.n), 2)

    def key(self, number: int) -> bytes:
        """A card as text."""
        return b"card-%07d" % number

    def batches(self) -> Iterator[Batch]:
        """As the feature service polls them from a log of one partition."""
        for first in range(0, self.n, BATCH):
            some = slice(first, min(first + BATCH, self.n))
            keys = [self.key(number) for number in self.numbers[some].tolist()]
            yield batch_of(first, keys, self.times[some], self.amounts[some])


def batch_of(first: int, keys: Sequence[bytes], times: npt.NDArray[np.int64], amounts: npt.NDArray[np.float64]) -> Batch:
    """Payments from offset `first` on; where they were made, and which were declined, comes of chance."""
    n, chance = len(keys), np.random.default_rng([7, first])
    ids = Varlen.of([b"p%09d" % number for number in range(first, first + n)])
    body = {
        "payment_id": ids,
        "card": Varlen.of(keys),
        "at": times,
        "amount": amounts,
        "channel": Varlen.of([b"online" if one else b"shop" for one in (chance.random(n) < ONLINE).tolist()]),
        "outcome": Varlen.of([b"declined" if one else b"accepted" for one in (chance.random(n) < DECLINED).tolist()]),
    }
    columns = {
        "source": np.full(n, Source.UPSTREAM, np.int64),
        "id": ids,
        "key": body["card"],
        "visible": times,
        "time": times,
        "home": np.ones(n, np.bool_),
        "body": codec().encode(body),
    }
    return Batch(0, first, first + n, {"event": Table("event", np.arange(first, first + n), columns)})


@cache
def codec() -> Codec:
    """Of the stream's schema."""
    return Codec(dict(pipeline().streams[0].schema))


class Kept:
    """The feature core over one partition, with a real store behind it, as the worker drives it; without a log on either side."""

    def __init__(self, declared: Pipeline, url: str, entities_max: int = ENTITIES_MAX) -> None:
        self.pipeline = declared
        self.core = Feature(declared, 0, entities_max)
        self._topic = Topics.of(declared).events.name
        self._ledger = RedisLedger(Store(url), f"{declared.name}-feature", 0)
        self.loaded = 0

    async def open(self) -> None:
        """Before anything else."""
        await self._ledger.open()

    async def take(self, batch: Batch) -> Varlen:
        """Load, fold and keep a batch. Returns the rows of its questions."""
        core = self.core
        core.unfit(batch)
        while keys := core.needs(batch):
            for at in range(0, len(keys), KEYS_AT_ONCE):
                some = keys[at : at + KEYS_AT_ONCE]
                core.load(dict(zip(some, await self._ledger.rows(some), strict=True)))
                self.loaded += len(some)
        effects = core.step(batch)
        entry = Entry(batch.next_offset, {}, None, "", {self._topic: 1}, self.pipeline.digest, tiles.ROW_FORMAT)
        await self._ledger.commit(entry, effects.state)
        rows = effects.messages[0].columns["row"]
        assert isinstance(rows, Varlen)
        return rows

    async def close(self) -> None:
        """Let go of the store."""
        await self._ledger.close()


def row_name(key: bytes) -> bytes:
    """What a card's row is called in the store."""
    return prefix_of(GROUP, 0) + b"card:" + key
