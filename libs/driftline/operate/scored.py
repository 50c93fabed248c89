"""
Whether scores of files or of the log are those that were served: each row of the folder against the answers that the same model gave, on
the journal, as champion, canary or shadow, bit for bit. An answer is found by the id and visible time of its question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from driftline.contracts.topics import Topics
from driftline.features.texts import hashes
from driftline.operate.addresses import Addresses
from driftline.operate.parquet import varlen
from driftline.operate.served import messages_of, names_of
from driftline.pipeline import Pipeline
from driftline.stream.batch import Table, Varlen
from driftline.stream.kafka import describe


@dataclass
class Compared:
    """How many scores are equal to what was served, and how many differ, the first of these in words."""

    rows: int = 0
    equal: int = 0
    differing: int = 0
    first: str = ""

    @property
    def stands(self) -> bool:
        """Whether there was something to compare, and nothing differs."""
        return bool(self.equal) and not self.differing

    def lines(self) -> list[str]:
        """For whoever gave the command."""
        told = f"{self.equal:,} scores are equal to those that this model served, {self.differing:,} differ"
        return [
            f"{told}; it was asked about {self.equal + self.differing:,} of the {self.rows:,} rows",
            *([self.first] if self.first else []),
        ]


async def compare(addresses: Addresses, pipeline: Pipeline, folder: Path, digest: str, told: Callable[[int, int], None]) -> Compared:
    """
    Read the journal as it is now. `told` hears how far it is, and of how much. Memory: 12 bytes a row of the folder.

    Raises Recoverable when the servers do not answer.
    """
    topic, scored = Topics.of(pipeline).journal, _Scored(folder)
    count = (await describe(addresses.kafka, [topic.name])).partitions[topic.name]
    for partition in range(count):
        async for answers in messages_of(addresses, pipeline, topic, "answer", partition, told):
            scored.compare(answers.take(hashes(answers["digest"]) == hashes(Varlen.of([digest]))[0]), f"{topic.name}[{partition}]")
    return scored.found


class _Scored:
    """The scores of a folder, by the name of their rows."""

    def __init__(self, folder: Path) -> None:
        frame = pl.scan_parquet(folder / "*.parquet").select("id", pl.col("visible").cast(pl.Int64), "score").collect()
        names = names_of(varlen(frame["id"]), frame["visible"].to_numpy())
        order = np.argsort(names, kind="stable")
        self._names = names[order]
        self._scores = frame["score"].to_numpy()[order]
        self.found = Compared(rows=frame.height)

    def compare(self, answers: Table, where: str) -> None:
        """Some answers of the model."""
        if not len(answers) or not len(self._names):
            return
        names = names_of(answers["id"], np.asarray(answers["visible"], np.int64))
        at = np.minimum(np.searchsorted(self._names, names), len(self._names) - 1)
        known = self._names[at] == names
        ours, theirs = self._scores[at[known]], np.asarray(answers["score"], np.float32)[known]
        same = ours.view(np.uint32) == theirs.view(np.uint32)
        self.found.equal += int(same.sum())
        self.found.differing += int((~same).sum())
        if not same.all() and not self.found.first:
            place = int(np.argmin(same))
            one = answers.take(known).take(np.array([place]))
            self.found.first = f"{where}: {one['id'].texts()[0]} was served {theirs[place]:g}, scored {ours[place]:g}"
