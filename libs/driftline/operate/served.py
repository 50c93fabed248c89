"""
Whether backfilled rows are those that were served: each row of the folder against the one on the pipeline's features topic, byte for byte.

A row is found by its id and visible time. In memory is a number of 64 bits for each row of the folder, and its place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Recoverable
from driftline.features.row import RowLayout
from driftline.features.texts import codes, hashes
from driftline.operate.addresses import Addresses
from driftline.operate.backfill import Span
from driftline.operate.fold import RECORDS_MAX
from driftline.operate.parquet import varlen
from driftline.operate.proof import SILENCE_MS
from driftline.pipeline import Pipeline
from driftline.stream.batch import Ints, Table, Varlen
from driftline.stream.kafka import Source, describe
from driftline.stream.records import Decoder, drop_seen

ROWS_AT_ONCE = 1 << 17


@dataclass
class Verified:
    """How many rows are equal and how many differ, the first of these in words; and rows that only one side has."""

    equal: int = 0
    differing: int = 0
    only_backfilled: int = 0
    only_served: int = 0  # of the time that the backfill spans
    of_another_layout: int = 0
    first: str = ""

    @property
    def stands(self) -> bool:
        """Whether nothing speaks against the rows; that the topic has let some of them go does not."""
        return not self.differing and not self.only_served

    def lines(self) -> list[str]:
        """For whoever gave the command."""
        counts = f"{self.equal:,} rows are equal to those served, {self.differing:,} differ"
        others = (
            (self.only_served, "were served and not backfilled"),
            (self.only_backfilled, "were backfilled and are not on the topic"),
            (self.of_another_layout, "were served by another definition of the pipeline"),
        )
        return [", ".join([counts, *(f"{n:,} {words}" for n, words in others if n)]), *([self.first] if self.first else [])]


async def verify(
    addresses: Addresses, pipeline: Pipeline, folder: Path, partition: int | None, span: Span, told: Callable[[int, int], None]
) -> Verified:
    """
    Compare the rows of `folder`, which are those of `span`, with the topic, or one partition of it, as it is now. `told` hears how far it
    is, and of how much.

    Raises Recoverable when the servers do not answer.
    """
    topic = Topics.of(pipeline).features
    found, backfilled = Verified(), _Backfilled(folder, pipeline.layout, span)
    count = (await describe(addresses.kafka, [topic.name])).partitions[topic.name]
    for number in range(count):
        if partition in (None, number):
            async for served in messages_of(addresses, pipeline, topic, "row", number, told):
                backfilled.compare(served, f"{topic.name}[{number}]", found)
    found.only_backfilled = backfilled.unseen
    return found


async def messages_of(
    addresses: Addresses, pipeline: Pipeline, topic: Topic, message: str, partition: int, told: Callable[[int, int], None]
) -> AsyncIterator[Table]:
    """The messages of one kind on one partition of a topic, first copies only, up to where it ends now."""
    source, decoder = Source(addresses.kafka, topic.name, partition), Decoder(topic, Registry(addresses.registry), pipeline)
    await source.start()
    try:
        start, end = await source.bounds()
        position = start
        source.seek(start)
        seen: dict[int, tuple[int, int]] = {}
        while position < end:
            polled = await source.poll(RECORDS_MAX, SILENCE_MS)
            if polled is None:
                raise Recoverable(f"{topic.name}[{partition}] goes on to {end}, but nothing arrives from {position} on")
            position = polled.last + 1
            batch, seen = drop_seen(decoder.decode(partition, polled)[0], seen)
            told(min(position, end) - start, end - start)
            if (table := batch[message]) is not None:
                yield table
    finally:
        await source.stop()


class _Backfilled:
    """The rows of a folder, found by what names them."""

    def __init__(self, folder: Path, layout: RowLayout, span: Span) -> None:
        self._rows = pl.scan_parquet(folder / "*.parquet")
        self._layout, self._span = layout, span
        n = int(self._rows.select(pl.len()).collect().item())
        names, self._earliest, self._latest = np.empty(n, np.int64), 2**62, -(2**62)
        for at in range(0, n, ROWS_AT_ONCE):
            frame = self._rows.select("id", pl.col("visible").cast(pl.Int64)).slice(at, ROWS_AT_ONCE).collect()
            visible = frame["visible"].to_numpy()
            names[at : at + len(visible)] = names_of(varlen(frame["id"]), visible)
            self._earliest, self._latest = min(self._earliest, int(visible.min())), max(self._latest, int(visible.max()))
        self._places = np.argsort(names, kind="stable")
        self._names = names[self._places]
        self._seen = np.zeros(n, np.bool_)

    @property
    def unseen(self) -> int:
        """How many have not met their counterpart."""
        return int((~self._seen).sum())

    def compare(self, served: Table, where: str, found: Verified) -> None:
        """Some rows of the topic."""
        layouts, visible = served["layout"], np.asarray(served["visible"], np.int64)
        same_layout = hashes(layouts) == hashes(Varlen.of([self._layout.version]))[0]
        spanned = self._span.holds(served["event_offset"], visible) & (visible >= self._earliest) & (visible <= self._latest)
        found.of_another_layout += int((spanned & ~same_layout).sum())
        served = served.take(spanned & same_layout)
        places = self._find(names_of(served["id"], np.asarray(served["visible"], np.int64)))
        found.only_served += int((places < 0).sum())
        known = np.flatnonzero(places >= 0)
        self._seen[places[known]] = True
        rows = served["row"].take(known).tolist()
        for mine, some in self._read(places[known]):
            for at, row in zip(mine.tolist(), some, strict=True):
                if rows[at] == row:
                    found.equal += 1
                else:
                    found.differing += 1
                    found.first = found.first or f"{where}: {self._told(served.take(known[at : at + 1]), row)}"

    def _find(self, names: Ints) -> Ints:
        """The place of each in the folder, -1 where there is none."""
        at = np.minimum(np.searchsorted(self._names, names), len(self._names) - 1)
        return np.where(self._names[at] == names, self._places[at], -1) if len(self._names) else np.full(len(names), -1, np.int64)

    def _read(self, places: Ints) -> Iterator[tuple[Ints, list[bytes]]]:
        """The rows at `places`, in portions that lie near one another: which of `places` these are, and the rows."""
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        at = 0
        while at < len(order):
            first = int(ascending[at])
            end = int(np.searchsorted(ascending, first + ROWS_AT_ONCE))
            whole = self._rows.select("row").slice(first, int(ascending[end - 1]) - first + 1).collect()["row"]
            yield order[at:end], whole.gather(ascending[at:end] - first).to_list()
            at = end

    def _told(self, served: Table, backfilled: bytes) -> str:
        """What differs in one row."""
        names = (*self._layout.names, *(f"the age of {view}" for view in self._layout.views))
        event = f"{served['id'].texts()[0]} (event offset {int(served['event_offset'][0])})"
        theirs, ours = served["row"][0], backfilled
        if len(theirs) != len(ours):
            return f"{event}: {len(theirs)} bytes were served, {len(ours)} backfilled"
        pairs = zip(names, np.frombuffer(theirs, "<f4"), np.frombuffer(ours, "<f4"), strict=True)
        unequal = [f"{name} was {one:g}, backfilled {other:g}" for name, one, other in pairs if one.tobytes() != other.tobytes()]
        return f"{event}: {', '.join(unequal)}"


def names_of(ids: Varlen, visible: Ints) -> Ints:
    """A number for each row that hardly any other has."""
    contiguous = Varlen(ids.data, np.ascontiguousarray(ids.starts), np.ascontiguousarray(ids.ends))
    return hashes(contiguous) ^ codes(visible.astype(np.float64))
