"""
Who of a process's partitions may work: all side by side, or one that has been tried in vain before, alone.

A record that kills the process is found by counting the attempts to get past it. Would others work meanwhile, the count would be of
their deaths as well, and a good record could be set aside for what its neighbour does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """For the partitions of one process and one event loop. Whoever waits to be alone goes before those who come later."""

    def __init__(self) -> None:
        self._alone = asyncio.Lock()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._working = 0

    @contextlib.asynccontextmanager
    async def among_others(self) -> AsyncIterator[None]:
        """Work side by side, once nobody is alone or waits for it."""
        async with self._alone:
            self._working += 1
            self._nobody.clear()
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                self._nobody.set()

    async def be_alone(self) -> None:
        """Return when nobody else works; until `end` nobody does."""
        await self._alone.acquire()
        try:
            await self._nobody.wait()
        except asyncio.CancelledError:
            self._alone.release()
            raise

    def end(self) -> None:
        """Let the others work again."""
        self._alone.release()
