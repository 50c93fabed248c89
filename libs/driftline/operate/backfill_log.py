"""
Feature rows of the past from the pipeline's log, into the folder that `backfill` makes from files: each partition is folded by the feature
service's own core from the log's start, because a row depends on all that came before it, and the rows of the wanted span are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from driftline.contracts.registry import Registry
from driftline.errors import Invalid, Recoverable
from driftline.features.texts import hashes
from driftline.operate.addresses import Addresses
from driftline.operate.backfill import Backfilled, Columns, Rows, RowWriter, Span
from driftline.operate.fold import RECORDS_MAX, Fold, Subject
from driftline.operate.history import FOREVER
from driftline.operate.parquet import Folder
from driftline.operate.proof import SILENCE_MS
from driftline.operate.rebuild import given_up, wirings_of
from driftline.pipeline import Pipeline
from driftline.stream.batch import Messages, Varlen
from driftline.stream.kafka import Source
from driftline.stream.operators import describe_pipeline


async def backfill_log(
    addresses: Addresses,
    pipeline: Pipeline,
    partition: int | None,
    span: Span,
    folder: Folder,
    told: Callable[[int, int], None],
    more: Sequence[Columns] = (),
) -> Backfilled:
    """
    All partitions of the log, or one; one after the other. `told` hears how many records are behind, and of how many.

    Raises Invalid where there is no such partition or offset, Recoverable when the servers do not answer.
    """
    cluster = await describe_pipeline(addresses.kafka, pipeline)
    wiring = wirings_of("feature", pipeline, addresses)[0]
    count = cluster.partitions[wiring.reads.name]
    if partition is not None and not 0 <= partition < count:
        raise Invalid(f"there is no partition {partition}; {wiring.reads.name} has {count}")
    if partition is None and count > 1 and (span.from_offset, span.to_offset) != (0, FOREVER):
        raise Invalid(f"offsets are of one partition, and {wiring.reads.name} has {count}: say which with --partition")
    left_out, registry = await given_up(addresses, pipeline), Registry(addresses.registry)
    found = Backfilled()
    writer = RowWriter(folder, pipeline, span, found, more)
    subjects = [
        Subject(wiring, pipeline, number, cluster, span.to_offset, left_out["feature", number])
        for number in (range(count) if partition is None else [partition])
    ]
    logs = [_Log(addresses.kafka, Fold(subject, registry), writer, found) for subject in subjects]
    try:
        for log in logs:
            await log.open(span)
        total = sum(log.goal - log.start for log in logs)
        told(0, total)
        for log in logs:
            await log.fold(span, lambda: told(sum(one.position - one.start for one in logs), total))
    finally:
        for log in logs:
            await log.close()
    told(total, total)
    return found


class _Log:
    """One partition of the log."""

    def __init__(self, kafka: str, fold: Fold, writer: RowWriter, found: Backfilled) -> None:
        subject = fold.subject
        self._where = f"{subject.wiring.reads.name}[{subject.partition}]"
        self._source = Source(kafka, subject.wiring.reads.name, subject.partition)
        self._fold, self._writer, self._found = fold, writer, found
        self.start = self.goal = self.position = 0

    async def open(self, span: Span) -> None:
        """See from where to where there is something to fold."""
        await self._source.start()
        self.start, end = await self._source.bounds()
        if span.from_offset and not self.start <= span.from_offset <= end:
            raise Invalid(f"{self._where} holds {self.start} to {end}, and there is no {span.from_offset}")
        self.goal = max(min(end, span.to_offset), self.start)
        self.position = self.start
        self._source.seek(self.start)

    async def close(self) -> None:
        """Disconnect."""
        await self._source.stop()

    async def fold(self, span: Span, told: Callable[[], None]) -> None:
        """Everything up to the goal, or up to the tick that ends the span."""
        unproved, ended = 0, False
        while self.position < self.goal and not ended:
            polled = await self._source.poll(RECORDS_MAX, SILENCE_MS)
            if polled is None:
                raise Recoverable(f"{self._where} goes on to {self.goal}, but nothing arrives from {self.position} on")
            polled, self.position = polled.part(0, polled.below(self.goal)), min(polled.last + 1, self.goal)
            reached, rows = self._fold.reached, self._found.rows
            messages = self._fold.take(polled) if len(polled) else ()
            for one in _of_kind(messages, "row"):
                self._writer.add(self._rows(one))
            unproved += 0 if reached else self._found.rows - rows
            ended = any(int(np.asarray(one.columns["time"])[-1]) >= span.to_ms for one in _of_kind(messages, "tick"))
            self._found.events += len(polled)
            told()
        self._found.became.update({name: self._fold.counts[name] for name in ("duplicate", "late", "refused")})
        if self.start and unproved:
            self._found.told.append(f"{self._where} begins at {self.start:,}: {unproved:,} rows may look further back than it goes")

    def _rows(self, told: Messages) -> Rows:
        numbers = {name: np.asarray(told.columns[name], np.int64) for name in ("event_offset", "time", "visible")}
        ids, keys, rows = (_texts(told, name) for name in ("id", "key", "row"))
        subject = self._fold.subject
        layout = subject.pipeline.layout
        return Rows(
            np.full(len(told), subject.partition, np.int64),
            numbers["event_offset"],
            pl.Series("id", ids.texts(), pl.String),
            hashes(ids),
            pl.Series("key", keys.texts(), pl.String),
            numbers["time"],
            numbers["visible"],
            np.concatenate([layout.matrix(rows), layout.ages(rows)], axis=1),
        )


def _of_kind(messages: Sequence[Messages], kind: str) -> list[Messages]:
    """The messages for the features' topic of that kind."""
    return [one for one in messages if (one.topic, one.message) == ("features", kind) and len(one)]


def _texts(told: Messages, name: str) -> Varlen:
    column = told.columns[name]
    if not isinstance(column, Varlen):
        raise Invalid(f"{told.message}.{name} is no text")
    return column
