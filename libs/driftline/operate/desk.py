"""
Operators' commands from a process that stays: published by one producer, answered from the board.

A command's coordinate is a moment in nanoseconds, and readers drop what is not above the last one. Several desks and command lines
share that lane, on machines whose clocks differ; so a coordinate is above every one that the board has seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from driftline.clock import Clock
from driftline.contracts.messages import Deployment, Operator, Retrain, Trained
from driftline.operate.board import Board
from driftline.operate.commands import command_messages
from driftline.stream.kafka import Publisher

Answer = TypeVar("Answer")
LOOK_S = 1.0  # a bell that was missed costs no more than this


class Desk:
    """Where commands are handed in. `to_rollout` and `to_trainer` raise Recoverable when the command could not be published."""

    def __init__(self, publisher: Publisher, board: Board, clock: Clock) -> None:
        self._publisher = publisher
        self._board = board
        self._clock = clock
        self._one_by_one = asyncio.Lock()
        self._last_ns = 0
        self._stopping = asyncio.Event()

    async def to_rollout(self, command: Operator, wait_s: float) -> Deployment | None:
        """Publish, and return the rollout's answer, or None when there is none within `wait_s`; it will be answered."""
        await self._publish(command)
        return await self._first(wait_s, lambda: self._board.answer_to(command.id))

    async def to_trainer(self, command: Retrain, wait_s: float) -> Trained | None:
        """Publish, as of the last report, and return how it ended, or None when it has not within `wait_s`; it will."""
        reports = self._board.reports()
        await self._publish(replace(command, time=reports[-1].end if reports else 0))
        return await self._first(wait_s, lambda: self._board.outcome_of(command.id))

    async def _publish(self, command: Operator | Retrain) -> None:
        async with self._one_by_one:
            at_ns = max(self._clock.now_ms() * 1_000_000, self._last_ns + 1, self._board.commanded_ns + 1)
            self._last_ns = at_ns
            await self._publisher.send(command_messages(command, at_ns))

    async def _first(self, wait_s: float, find: Callable[[], Answer | None]) -> Answer | None:
        deadline = self._clock.monotonic_s() + wait_s
        while (found := find()) is None and (left := deadline - self._clock.monotonic_s()) > 0:
            await self._board.changed.wait(min(left, LOOK_S))
        return found

    # A part of a process, so that the producer is disconnected in the end.

    @property
    def ready(self) -> bool:
        """Always: it connects when there is a command."""
        return True

    def stop(self) -> None:
        """Take no more commands."""
        self._stopping.set()

    async def run(self) -> None:
        """Until stopped; then disconnect."""
        await self._stopping.wait()
        await self._publisher.stop()
