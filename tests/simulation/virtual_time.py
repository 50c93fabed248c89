"""
An event loop whose time is a number: nothing waits for real, so a minute of waiting costs nothing, and a run repeats exactly.

Tasks are numbered in the order of their making and hashed by that number, because asyncio walks over sets of tasks, and the order of a
set of objects would be that of their addresses in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

START_MS = 1_700_000_000_000  # what the wall shows when the loop's time is 0


class NothingWillHappen(RuntimeError):
    """Everybody waits, and for nothing that could come."""


class _Selector:
    """Instead of waiting for sockets, of which there are none, moves the time on."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise NothingWillHappen
        if timeout > 0:
            self._loop.now_s += timeout
        return []


class NumberedTask(asyncio.Task[Any]):
    """A task with a place of its own in a set."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: VirtualLoop, context: Any = None) -> None:
        self._virtual_number = len(loop.tasks)
        loop.tasks.append(self)
        if context is None:
            super().__init__(coroutine, loop=loop)
        else:
            super().__init__(coroutine, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._virtual_number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs ready callbacks in order, and when there are none, jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.tasks: list[NumberedTask] = []
        self._selector = _Selector(self)
        self._clock_resolution = 1e-9
        self.set_task_factory(lambda loop, coroutine, **options: NumberedTask(coroutine, loop, **options))
        self.set_exception_handler(lambda loop, context: None)  # of tasks of dead processes; checks look at what matters

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At once: a thread would bring chance in."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class VirtualClock:
    """driftline's clock, showing the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return START_MS + round(self._loop.now_s * 1000)

    def monotonic_s(self) -> float:
        return self._loop.now_s
