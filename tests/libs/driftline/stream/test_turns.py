"""Turns: all at once, or one at a time."""

from __future__ import annotations

import asyncio

import pytest

from driftline.stream.turns import Turns


async def in_hand_at_once(turns: Turns, partitions: int = 3) -> int:
    """How many of so many partitions have a batch in hand at once, at most."""
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        async with turns.taken():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(partitions)))
    return most


async def test_partitions_work_side_by_side_while_none_is_suspected():
    """
    Nobody waits for anybody.
    """
    assert await in_hand_at_once(Turns()) == 3


async def test_while_one_is_suspected_they_take_turns_and_then_no_more():
    """
    All of them, for any may be the one to blame.
    """
    turns, suspect = Turns(), object()
    turns.suspect(suspect, True)
    assert await in_hand_at_once(turns) == 1
    turns.suspect(suspect, False)
    assert await in_hand_at_once(turns) == 3


async def test_whoever_stops_waiting_holds_up_nobody():
    """
    A worker that is cancelled while it waits for its turn.
    """
    turns = Turns()
    turns.suspect(turns, True)
    async with turns.taken():
        waiting = asyncio.create_task(in_hand_at_once(turns))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5), turns.taken():
        pass
