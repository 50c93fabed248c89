"""The journal's time, taken a batch at once, is that of its ticks one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from driftline.contracts.messages import Writer
from driftline.stream.batch import Table
from driftline.stream.journal import NEVER, JournalTime

WRITERS = (Writer.FEATURE, Writer.INFERENCE)
TICK_MS = 10


def table_of(writers: list[int], first: list[int], offset: int) -> Table | None:
    """Ticks of these writers, each writer's numbers in order from `first` on, which is moved along; on every second offset."""
    numbers = []
    for writer in writers:
        numbers.append(first[writer])
        first[writer] += 1
    if not writers:
        return None
    offsets = np.arange(offset, offset + 2 * len(writers), 2)
    columns = {"writer": np.array([WRITERS[writer] for writer in writers]), "offset": np.array(numbers)}
    return Table("tick", offsets, columns | {"time": TICK_MS * columns["offset"], "deployment": columns["offset"] % 3})


@given(batches=st.lists(st.lists(st.integers(0, 1), max_size=8)), ahead=st.integers(0, 3))
def test_time_moves_with_the_slower_writer_once_for_each_tick(batches: list[list[int]], ahead: int) -> None:
    """
    Wherever batches are cut: each move is at the tick that lets the slower writer go on, and an epoch is the last tick before an offset.
    """
    time, first, offset = JournalTime(), [5, 5 + ahead], 0
    last = [NEVER, NEVER]
    for writers in batches:
        table = table_of(writers, first, offset)
        offsets = np.arange(offset, offset + 2 * len(writers) + 1)
        passage = time.take(table)
        expected = []
        for at, writer in enumerate(writers):
            for one in (0, 1):
                assert passage.epochs(WRITERS[one], offsets[2 * at : 2 * at + 1]).tolist() == [
                    last[one] * TICK_MS if last[one] != NEVER else NEVER
                ]
            before = min(last)
            last[writer] = int(table["offset"][at]) if table else NEVER
            if min(last) > before:
                expected.append((offset + 2 * at, min(last), TICK_MS * min(last), min(last) % 3))
        moves = passage.moves
        found = (moves.offsets.tolist(), moves.numbers.tolist(), moves.times.tolist(), moves.deployments.tolist())
        assert list(zip(*found, strict=True)) == expected
        now = time.now
        assert (NEVER if now is None else now.number) == min(last)
        offset += 2 * len(writers)
