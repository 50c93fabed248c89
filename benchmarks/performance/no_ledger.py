"""
The feature process with the ledger switched off, for `ledger.py`: it is started as `python -m benchmarks.performance.no_ledger`.

Rows are read and written as before, by MGET and one MSET a batch; but nothing is compared, watched, put in a transaction or kept as an
entry, and copies are not looked for. Whoever starts it again begins anew: this is for measuring alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from driftline.cli import main as driftline
from driftline.stream import operators, worker
from driftline.stream.batch import Batch, Rows
from driftline.stream.ledger import Entry, RedisLedger
from driftline.stream.records import Coordinate, Lane
from driftline.stream.store import Mset


class NoLedger(RedisLedger):
    """Rows without an entry beside them."""

    async def open(self) -> Entry | None:
        """Nobody was here before."""
        return None

    async def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As they are, whoever wrote them."""
        (found,) = await self._store.ask((b"MGET", *(self._prefix + key for key in keys)))
        rows: list[bytes | None] = found
        return rows

    async def check(self) -> None:
        """There is nothing to look at."""

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        """The rows alone."""
        columns = Rows.of(rows)
        if len(columns):
            there = columns.rows.starts >= 0
            await self._store.ask(Mset(self._prefix, columns.names.take(there), columns.rows.take(there), self._prefix + b"none", b""))


def take_all(batch: Batch, seen: Mapping[Lane, Coordinate]) -> tuple[Batch, Mapping[Lane, Coordinate]]:
    """In the place of `drop_seen`: no coordinate is looked at."""
    return batch, seen


if __name__ == "__main__":
    operators.RedisLedger = NoLedger  # type: ignore[misc]  # in this process alone
    worker.drop_seen = take_all  # type: ignore[assignment]
    sys.argv = ["driftline", "run", "feature", "--pipeline", "payments", "--log-level", "warning"]
    driftline()
