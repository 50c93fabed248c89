"""
The journal's time: the lower of its two writers' last ticks. Every core that reads the journal tells time by it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from driftline.contracts.messages import Writer
from driftline.stream.batch import Table


class Tick(msgspec.Struct, frozen=True, array_like=True):
    """A tick: its number, its time in ms, and the deployment in force from there on."""

    number: int
    time: int
    deployment: int


class JournalTime(msgspec.Struct):
    """The last tick of each writer. It moves when the slower one does, so by every tick once, in order."""

    feature: Tick | None = None
    inference: Tick | None = None

    @property
    def now(self) -> Tick | None:
        """The tick that both writers have passed; None until each has given one."""
        if self.feature is None or self.inference is None:
            return None
        return min(self.feature, self.inference, key=lambda tick: tick.number)

    def take(self, writer: int, tick: Tick) -> Tick | None:
        """Take one writer's next tick. What the journal's time is now, if that moved."""
        before = self.now
        if writer == Writer.FEATURE:
            self.feature = tick
        elif writer == Writer.INFERENCE:
            self.inference = tick
        now = self.now
        return now if now is not None and (before is None or now.number > before.number) else None


def ticks_of(table: Table | None) -> Iterator[tuple[int, int, Tick]]:
    """Each tick of a batch, in the log's order: offset on the log, writer, tick."""
    if table is None:
        return
    columns = (table.offsets, table["writer"], table["offset"], table["time"], table["deployment"])
    for offset, writer, number, time, deployment in zip(*(column.tolist() for column in columns), strict=True):
        yield offset, writer, Tick(number, time, deployment)
