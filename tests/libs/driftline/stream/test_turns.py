"""Turns: side by side, or alone."""

from __future__ import annotations

import asyncio

import pytest

from driftline.stream.turns import Turns


async def test_all_work_side_by_side_while_nobody_asks_to_be_alone():
    """
    Two are inside at once.
    """
    turns = Turns()
    async with turns.among_others(), turns.among_others():
        pass


async def test_whoever_is_alone_waits_for_those_who_work_and_holds_up_those_who_come():
    """
    In that order, and everybody gets to work.
    """
    turns, happened = Turns(), []

    async def be_alone() -> None:
        await turns.be_alone()
        happened.append("alone")
        await asyncio.sleep(0)
        happened.append("no more")
        turns.end()

    async def come_later() -> None:
        async with turns.among_others():
            happened.append("later")

    async with turns.among_others():
        alone = asyncio.create_task(be_alone())
        await asyncio.sleep(0)
        later = asyncio.create_task(come_later())
        for _ in range(5):
            await asyncio.sleep(0)
        happened.append("done")
    await asyncio.gather(alone, later)
    assert happened == ["done", "alone", "no more", "later"]


async def test_whoever_stops_waiting_holds_up_nobody():
    """
    A worker that is cancelled while it waits to be alone.
    """
    turns = Turns()
    async with turns.among_others():
        waiting = asyncio.create_task(turns.be_alone())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5), turns.among_others():
        pass
