"""
The journal's time: the lower of its two writers' last ticks. Every core that reads the journal tells time by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from driftline.contracts.messages import Writer
from driftline.stream.batch import Ints, Table

NEVER = -1  # as a number and as a time: before the first tick


class Tick(msgspec.Struct, frozen=True, array_like=True):
    """A tick: its number, its time in ms, and the deployment in force from there on."""

    number: int
    time: int
    deployment: int


BEFORE_ANY = Tick(NEVER, NEVER, NEVER)


@dataclass(frozen=True, slots=True, eq=False)
class Ticks:
    """Some ticks by column, each with the offset at which it was passed."""

    offsets: Ints
    numbers: Ints
    times: Ints
    deployments: Ints

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, index: Ints) -> Ticks:
        """The ticks at `index` (positions or a mask)."""
        return Ticks(self.offsets[index], self.numbers[index], self.times[index], self.deployments[index])


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """How time passes in a batch: the ticks at which the journal's time moves, and by writer each tick passed, after the one before."""

    moves: Ticks
    _by_writer: dict[int, Ticks]

    def epochs(self, writer: int, offsets: Ints) -> Ints:
        """The time of `writer`'s last tick before each offset; NEVER where there was none."""
        ticks = self._by_writer[writer]
        return ticks.times[np.searchsorted(ticks.offsets, offsets) - 1]


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

    def take(self, table: Table | None) -> Passage:
        """Take the ticks of a batch."""
        before = (self.feature or BEFORE_ANY, self.inference or BEFORE_ANY)
        passed = [_passed(table, writer, tick) for writer, tick in zip((Writer.FEATURE, Writer.INFERENCE), before, strict=True)]
        offsets = passed[0].offsets
        slower = np.where(passed[0].numbers <= passed[1].numbers, 0, 1)
        now = Ticks(
            offsets,
            np.choose(slower, [one.numbers for one in passed]),
            np.choose(slower, [one.times for one in passed]),
            np.choose(slower, [one.deployments for one in passed]),
        )
        self.feature, self.inference = (_last(one) for one in passed)
        moved = np.flatnonzero(now.numbers[1:] > now.numbers[:-1]) + 1
        return Passage(now.take(moved), dict(zip((Writer.FEATURE, Writer.INFERENCE), passed, strict=True)))


def _passed(table: Table | None, writer: int, before: Tick) -> Ticks:
    """The last tick of `writer` before the batch, and then as of each tick of the batch, whoever's it is."""
    last = (np.array([value], np.int64) for value in (NEVER, before.number, before.time, before.deployment))
    if table is None:
        return Ticks(*last)
    places = np.maximum.accumulate(np.where(table["writer"] == writer, np.arange(1, len(table) + 1), 0))
    columns = [
        np.concatenate([first, np.asarray(column, np.int64)])
        for first, column in zip(last, (table.offsets, table["offset"], table["time"], table["deployment"]), strict=True)
    ]
    index = np.concatenate([np.zeros(1, np.int64), places])
    return Ticks(columns[0], columns[1][index], columns[2][index], columns[3][index])


def _last(passed: Ticks) -> Tick | None:
    number = int(passed.numbers[-1])
    return None if number == NEVER else Tick(number, int(passed.times[-1]), int(passed.deployments[-1]))
