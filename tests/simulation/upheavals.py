"""
What no operator may go on from: another definition, more partitions, a log that was cut or made anew, a store that lost everything.

The partition has to refuse, loudly and naming the command that helps; what it wrote until then has to be right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from driftline.stream.ledger import Entry

from . import checks
from .cluster import Record
from .topologies import OneInput, Player
from .world import Slot, World

HELP = "driftline rebuild"
PATIENCE_S = 20.0
STRAGGLERS_S = 0.8  # in which what a dead process had still sent arrives


class Upheaval(OneInput):
    """Feature over one log, in the middle of which the ground moves."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        world.poison.clear()
        world.wire.takeovers.clear()
        self.feature: Slot = world.slots[0]
        self.must_refuse = ""  # words that the refusal has to have
        self.said: list[str] = []  # what a process of another definition answered
        self.before: list[Record] = []  # what the log held, where that is gone
        scenes = (
            self._upgrade,
            self._more_partitions,
            self._truncate,
            self._truncate_asleep,
            self._recreate,
            self._lose_the_store,
        )
        self._scene: Callable[[], Any] = world.random.choice(scenes)

    def players(self) -> list[Player]:
        return [*super().players(), self._play()]

    async def _play(self) -> None:
        for _ in range(int(PATIENCE_S / 0.1)):
            if self._entry() is not None:
                break
            await asyncio.sleep(0.1)
        else:
            return
        await asyncio.sleep(self.world.random.random())
        self.world.wire.fault(f"now: {self._scene.__name__.strip('_').replace('_', ' ')}")
        await self._scene()

    def _entry(self) -> Entry | None:
        return self.world.entry(*self.feature.partitions[0])

    def _log(self) -> Any:
        return self.world.log(self.topics.events.name, 0)

    async def _down(self) -> None:
        """Nobody works on it, and nothing that was under way is still to come."""
        self.feature.stopped = True
        if self.feature.process is not None:
            self.feature.process.die()
        await asyncio.sleep(STRAGGLERS_S)

    def _up(self) -> None:
        self.feature.stopped = False
        self.world.tasks.append(self.world.loop.create_task(self.world._keep(self.feature)))

    async def _upgrade(self) -> None:
        """A process of another definition, or of another row format, starts; later one of the old definition again."""
        usual, changed = self.feature.build, self.world.random.choice(("the definition", "the row format"))

        def newer() -> Any:
            process = usual()
            operators = process._parts[0]
            if changed == "the definition":
                operators._pipeline = replace(operators._pipeline, digest="another")
            else:
                operators._wiring = msgspec.structs.replace(operators._wiring, row_format=99)
            return process

        await self._down()
        self.feature.build = newer
        self._up()
        for _ in range(int(PATIENCE_S / 0.1)):
            if self.feature.refusals:
                break
            await asyncio.sleep(0.1)
        self.said = [words for words in self.feature.refusals if changed not in words or HELP not in words]
        if not self.feature.refusals:
            self.said = [f"{changed} changed, and nobody refused"]
        self.feature.refusals.clear()
        await self._down()
        self.feature.build = usual
        self._up()

    async def _more_partitions(self) -> None:
        topic = self.world.random.choice((self.topics.events, self.topics.features, self.topics.journal))
        await self._down()
        self.world.cluster.create(topic.name, 2)
        self.must_refuse = "the number of partitions"
        self._up()

    async def _truncate(self) -> None:
        """Retention takes what was not read yet."""
        for _ in range(20):
            await self._down()
            entry, log = self._entry(), self._log()
            if entry is not None and entry.next < log.end:
                self.before = list(log.records)
                log.truncate(self.world.random.randrange(entry.next, log.end) + 1)
                self.must_refuse = "outside the log"
            self._up()
            if self.must_refuse:
                return
            await asyncio.sleep(0.1 * self.world.random.random())

    async def _truncate_asleep(self) -> None:
        """The same while a process that was stopped stands in the middle of the log, and goes on afterwards."""
        process, log = self.feature.process, self._log()
        workers = process.parts[0]._workers if process is not None and process.parts else None
        if process is None or not workers or workers[0]._session is None or process.awake is not None:
            return
        process.awake = asyncio.Event()
        await asyncio.sleep(STRAGGLERS_S)
        session = workers[0]._session
        if session is not None and not process.dead:
            position = max(session._source._consumer._positions.values(), default=-1)
            if 0 < position < log.end:
                self.before = list(log.records)
                log.truncate(log.end)
                self.must_refuse = "log"
        process.awake.set()
        process.awake = None

    async def _recreate(self) -> None:
        """A topic of the same name, with other records."""
        await self._down()
        log = self._log()
        self.before = list(log.records)
        others = [(one.key, one.value, one.timestamp + 7) for one in self.before]
        log.cut(0)
        log.append(others[: self.world.random.randrange(1, len(others) + 1)])
        self.must_refuse = "log"
        self._up()

    async def _lose_the_store(self) -> None:
        """Everything in Redis is gone, and the log's head as well."""
        committed = (*self.feature.partitions[0][:1], self.topics.events.name, 0)
        for _ in range(30):
            if committed in self.world.cluster.committed:
                break
            await asyncio.sleep(0.1)
        await self._down()
        if committed in self.world.cluster.committed:
            self.before = list(self._log().records)
            self.world.store.restart(0)
            self._log().truncate(min(2, self._log().end))
            self.must_refuse = "the store has no ledger"
        self._up()

    def done(self) -> bool:
        return not self.must_refuse or bool(self.feature.refused)

    def refusals(self) -> list[str]:
        if not self.must_refuse:
            return [*self.said, *super().refusals()]
        if not self.feature.refused:
            return [f"{self._scene.__name__.strip('_')}: nobody refused to go on"]
        return [
            f"refused, but not as it should: {words}"
            for words in self.feature.refused
            if self.must_refuse not in words or HELP not in words
        ]

    def violations(self) -> list[str]:
        self.cut_short = bool(self.feature.refused)
        log = self._log()
        if self.before:
            gone = self.before
            log.records = [*gone, *(record for record in log.records if record.offset > gone[-1].offset)]
            log.start = 0
        found, owed = self.feature_violations()
        if self.cut_short:
            return found
        return [*found, *checks.letters(self.world, self.topics.dead_letters.name, owed)]
