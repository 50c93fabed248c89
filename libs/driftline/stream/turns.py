"""
Who of a process's partitions has a batch in hand: all at once, or, while one of them has stopped the process too often, one at a time.

All partitions of a process die together. Which of them a death is to be blamed on is known only when no other had anything in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """For the partitions of one process and one event loop."""

    def __init__(self) -> None:
        self._suspects: set[object] = set()
        self._in_hand = 0
        self._changed = asyncio.Condition()

    def suspect(self, partition: object, whether: bool) -> None:
        """From now on `partition` is suspected, or is so no longer."""
        (self._suspects.add if whether else self._suspects.discard)(partition)

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for one's turn, and have it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not (self._suspects and self._in_hand))
            self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1
            async with self._changed:
                self._changed.notify_all()
