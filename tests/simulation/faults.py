"""
What goes wrong in one run, all of it drawn from one seed: a dose for each kind of fault, then its moments one by one.

Every request to a simulated server goes through `Wire.exchange`. There a process may die before the request has left, between request and
reply, or after the reply; the request or only its reply may be lost; the request may arrive after the process has given it up; or the
whole process may be stopped for a while and go on as if nothing had been.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

from .virtual_time import VirtualLoop

LONG_S = 3_600.0  # a reply that never comes


class Died(BaseException):
    """This process is dead. Nothing catches it, and whatever a dead process still tries raises it again."""


@dataclass(frozen=True)
class Dose:
    """How likely each fault is at each of its occasions (of a request, or of a batch that is sent), and how many come by the clock."""

    crash: float = 0.0
    slow: float = 0.0
    request_lost: float = 0.0
    reply_lost: float = 0.0
    late: float = 0.0  # the request arrives when nobody waits for it any more
    silence: float = 0.0  # no reply, for ever
    pause: float = 0.0
    deaf: float = 0.0  # a consumer that gets nothing any more
    let_through: float = 0.0  # a consumer that is stopped raises CancelledError, though nobody cancelled who stops it
    send_failed: float = 0.0
    send_expired: float = 0.0  # written, but the sender is told that it was not
    send_late: float = 0.0  # the sender is told that it was not written, and then it is
    refused: float = 0.0  # the store answers with an error
    takeovers: int = 0  # a second process starts while the first lives on
    stops: int = 0  # SIGTERM, and a start
    store_restarts: int = 0  # with an older prefix of its append-only file
    broker_restarts: int = 0

    @classmethod
    def drawn(cls, random: Random) -> Dose:
        """Some faults not at all, others rarely, some often; one run in twenty is without any."""
        if random.random() < 0.05:
            return cls(slow=0.2)
        chances = {
            "crash": 0.03,
            "request_lost": 0.03,
            "reply_lost": 0.03,
            "late": 0.02,
            "silence": 0.004,
            "pause": 0.01,
            "deaf": 0.02,
            "let_through": 0.5,
            "send_failed": 0.06,
            "send_expired": 0.06,
            "send_late": 0.06,
            "refused": 0.03,
        }
        rates = {name: most * random.random() ** 2 if random.random() < 0.4 else 0.0 for name, most in chances.items()}
        counts = {name: random.choice((0, 0, 0, 1, 1, 2)) for name in ("takeovers", "stops", "store_restarts", "broker_restarts")}
        return cls(slow=random.choice((0.03, 0.1, 0.3)), **rates, **counts)

    def told(self) -> str:
        """The faults of this run, for its trace."""
        given = ((one.name, getattr(self, one.name)) for one in fields(self))
        return " ".join(f"{name}={value:.3g}" for name, value in given if value)


@dataclass(eq=False)
class Process:
    """One process of the operating system, from its start to its end. One that lives on when it was replaced is a zombie."""

    name: str
    dead: bool = False
    awake: asyncio.Event | None = None  # while it is stopped: what ends that
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    parts: list[Any] = field(default_factory=list)
    tries_of: tuple[bytes, ...] = ()  # the counters of tries of what it works on

    def die(self) -> None:
        """From now on it does nothing."""
        self.dead = True
        self.ended.set()
        if self.awake is not None:
            self.awake.set()


PROCESS: ContextVar[Process] = ContextVar("PROCESS")


class Wire:
    """All requests of all processes to all servers, and what becomes of them."""

    def __init__(self, loop: VirtualLoop, random: Random, dose: Dose, trace: Callable[[str], None] | None) -> None:
        self.loop = loop
        self.random = random
        self.dose = dose
        self._trace = trace
        self.requests = 0
        self.faults = 0
        self.may_crash: Callable[[Process], bool] = lambda process: True
        self.take_over: Callable[[Process], None] = lambda process: None
        self.takeovers = {random.randrange(5, 150) for _ in range(dose.takeovers)}  # by number of the request
        self.calm = False
        self._kinds: list[tuple[float, str]] = []
        self._troubled(dose)

    def _troubled(self, dose: Dose) -> None:
        total = 0.0
        self._kinds = []
        for kind in ("crash", "pause", "silence", "late", "request_lost", "reply_lost", "slow"):
            chance = getattr(dose, kind)
            if chance:
                total += chance
                self._kinds.append((total, kind))
        self._total = total

    def tell(self, words: str) -> None:
        """One line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.loop.now_s * 1000:9.1f} ms  {words}")

    def fault(self, words: str) -> None:
        """One fault has happened."""
        self.faults += 1
        self.tell(words)

    def become_calm(self) -> None:
        """From here on nothing goes wrong."""
        self.calm = True
        self.dose = Dose(slow=0.05)
        self._troubled(self.dose)

    def delay(self) -> float:
        """A short wait."""
        return 0.0005 + 0.03 * self.random.random() ** 3

    def happens(self, chance: float) -> bool:
        """True with that probability, and without a draw when it is none."""
        return chance > 0 and self.random.random() < chance

    async def step(self, what: str) -> Process:
        """The process is at this point: it may die here, be stopped, or take its time."""
        return await self.exchange(what, PROCESS.get, None)

    async def exchange(
        self, what: str, effect: Callable[[], Any], lost: Callable[[str], Exception] | None, patience_s: float = LONG_S
    ) -> Any:
        """
        One request: `effect` is what the server does. `lost` makes what the client raises when there is no reply; for one that
        never comes it waits for `patience_s`.
        """
        process = PROCESS.get()
        self.requests += 1
        if process.dead:
            raise Died
        if self.requests in self.takeovers and not self.calm:
            self.take_over(process)  # in the middle of whatever it does
        if process.awake is not None:
            await process.awake.wait()
            if process.dead:
                raise Died
        chance = self.random.random()
        if chance >= self._total:
            return effect()
        kind = next(kind for limit, kind in self._kinds if chance < limit)
        if kind == "slow":
            return await self._slowly(process, effect)
        if kind == "crash":
            return self._crash(process, what, effect)
        if kind == "pause":
            await self._pause(process, what)
            return effect()
        if lost is None:
            return effect()
        return await self._lose(process, kind, what, effect, lost, patience_s)

    async def _slowly(self, process: Process, effect: Callable[[], Any]) -> Any:
        await asyncio.sleep(self.delay())
        if process.dead:
            raise Died
        result = effect()
        await asyncio.sleep(self.delay())
        if process.dead:
            raise Died
        return result

    def _crash(self, process: Process, what: str, effect: Callable[[], Any]) -> Any:
        if not self.may_crash(process):
            return effect()
        when = self.random.choice(("before", "after", "during"))
        self.fault(f"{process.name} dies {when} {what}")
        if when == "after":
            effect()
        elif when == "during":
            self.later(self.delay() * 10, effect)
        process.die()
        raise Died

    async def _pause(self, process: Process, what: str) -> None:
        seconds = 0.02 + 1.5 * self.random.random() ** 2
        self.fault(f"{process.name} is stopped for {seconds:.2f} s at {what}")
        process.awake = asyncio.Event()
        self.loop.call_later(seconds, process.awake.set)
        await process.awake.wait()
        process.awake = None
        if process.dead:
            raise Died

    async def _lose(
        self,
        process: Process,
        kind: str,
        what: str,
        effect: Callable[[], Any],
        lost: Callable[[str], Exception],
        patience_s: float,
    ) -> Any:
        self.fault(f"{process.name}: {what}: {kind.replace('_', ' ')}")
        if kind == "reply_lost":
            effect()
        elif kind == "late":
            self.later(0.1 + 0.5 * self.random.random(), effect)
        elif kind == "silence":
            if self.random.random() < 0.5:
                effect()
            await asyncio.sleep(patience_s)
        await asyncio.sleep(self.delay())
        if process.dead:
            raise Died
        raise lost(kind)

    def later(self, seconds: float, effect: Callable[[], Any]) -> None:
        """The server does it when nobody waits for the answer; what it raises goes nowhere."""

        def done() -> None:
            try:
                effect()
            except Exception as error:
                self.tell(f"too late: {error!r}")

        self.loop.call_later(seconds, done)
