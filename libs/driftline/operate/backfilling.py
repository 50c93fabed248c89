"""
`driftline backfill`: what was asked for, made or verified while somebody looks on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from driftline.clock import Clock
from driftline.errors import Invalid
from driftline.operate.addresses import find_addresses
from driftline.operate.backfill import Columns, Span, backfill_files, places_of
from driftline.operate.backfill_log import backfill_log
from driftline.operate.dead_letters import since_ms
from driftline.operate.history import FOREVER, Order
from driftline.operate.parquet import Folder
from driftline.operate.progress import followed
from driftline.operate.scored import Compared, compare
from driftline.operate.served import Verified
from driftline.operate.served import verify as verify_rows
from driftline.pipeline import Pipeline
from driftline.settings import secret


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows, of which partition of the log; and what the order of the records in files means."""

    span: Span
    partition: int | None = None
    order: Order = Order.REFUSE

    @classmethod
    def of(
        cls,
        partition: int | None,
        offsets: tuple[int | None, int | None],
        times: tuple[str, str],
        clock: Clock,
        *,
        sort: bool = False,
        as_arrived: bool = False,
    ) -> Wanted:
        """From what stands on the command line. Raises Invalid."""
        if sort and as_arrived:
            raise Invalid("--sort changes the order of the records and --as-arrived keeps it: choose one")
        order = Order.SORT if sort else Order.ARRIVED if as_arrived else Order.REFUSE
        now_ms = clock.now_ms()
        from_ms = since_ms(times[0], now_ms, "--from") if times[0] else 0
        to_ms = since_ms(times[1], now_ms, "--to") if times[1] else FOREVER
        first, end = offsets[0] or 0, FOREVER if offsets[1] is None else offsets[1]
        if from_ms >= to_ms or first >= end:
            raise Invalid("the rows that are wanted end before they begin: look at --from and --to, or --from-offset and --to-offset")
        return cls(Span(from_ms, to_ms, first, end), partition, order)

    @property
    def of_a_log(self) -> bool:
        """Whether it names places on a log."""
        return self.partition is not None or (self.span.from_offset, self.span.to_offset) != (0, FOREVER)


def make(
    pipeline: Pipeline,
    sources: Sequence[str],
    out: Path,
    wanted: Wanted,
    clock: Clock,
    console: Console,
    more: Sequence[Columns] = (),
) -> list[str]:
    """
    Fold files, or the log where there are none, with more columns beside the rows. What there is to say about it; after a DriftlineError
    of any kind `out` is not there.
    """
    if sources and wanted.of_a_log:
        raise Invalid("--partition, --from-offset and --to-offset are of the log: with files choose rows with --from and --to")
    if wanted.order is not Order.REFUSE and not sources:
        raise Invalid("--sort and --as-arrived are about files, and the log is in order: leave them out, or name files")
    with Folder(out) as folder, followed("folding", console) as told:
        began_s = clock.monotonic_s()
        if sources:
            key = secret("pii_key").encode()
            found = backfill_files(pipeline, places_of(pipeline, sources), folder, wanted.span, wanted.order, key, told, more)
        else:
            found = asyncio.run(backfill_log(find_addresses(), pipeline, wanted.partition, wanted.span, folder, told, more))
        folder.finish()
        seconds = clock.monotonic_s() - began_s
    return [*found.lines(pipeline.name, seconds), f'to read them: pl.scan_parquet("{out}")']


def verify(pipeline: Pipeline, out: Path, wanted: Wanted, console: Console) -> Verified:
    """Compare what was made with what was served."""
    with followed("comparing", console) as told:
        return asyncio.run(verify_rows(find_addresses(), pipeline, out, wanted.partition, wanted.span, told))


def compare_scores(pipeline: Pipeline, out: Path, digest: str, console: Console) -> Compared:
    """Compare scores that were made with those that the model served."""
    with followed("comparing", console) as told:
        return asyncio.run(compare(find_addresses(), pipeline, out, digest, told))
