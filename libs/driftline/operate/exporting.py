"""
`driftline export`: what was asked for, written while somebody looks on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from driftline.errors import Invalid
from driftline.operate.addresses import find_addresses
from driftline.operate.export import KINDS, Range, export
from driftline.operate.history import FOREVER
from driftline.operate.parquet import Folder
from driftline.operate.progress import followed
from driftline.pipeline import Pipeline


def make(pipeline: Pipeline, kind: str, out: Path, place: tuple[int | None, int, int | None], console: Console, *, wide: bool) -> list[str]:
    """Partition, first offset and end are `place`. What there is to say; after a DriftlineError of any kind `out` is not there."""
    partition, first, end = place[0], place[1], FOREVER if place[2] is None else place[2]
    if first >= end:
        raise Invalid("what is wanted ends before it begins: look at --from-offset and --to-offset")
    with Folder(out) as folder, followed("reading", console) as told:
        found = asyncio.run(export(find_addresses(), pipeline, kind, Range(partition, first, end), folder, told, wide=wide))
        folder.finish()
    topic = f"{pipeline.name}-{KINDS[kind][0]}"
    return [*found.lines(kind, topic), f'to read them: pl.scan_parquet("{out}")']
