"""
The doses: each does one thing to a rig, waits until the loop has shown that it goes on, and tells what it did as a `Trial`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from aof import cut_tail
from proxy import BLACK_HOLE, CLEAR, DELAY, SWALLOW_REPLIES, Proxy
from redis import Redis
from rig import OUTPUT_OF, OUTPUT_S, READY_S, Lost, Rig

from driftline.clock import SystemClock
from driftline.operate.addresses import Addresses
from driftline.operate.commands import retrain_command, send_to_trainer

SETTLE_S = 0.05  # what a killed process had sent may still be on its way to the log
STEP_S = 5.0  # a named step that is not reached in that time is not reached at all
BUSY = ("intake", "feature", "inference", "labeler")  # whose output never rests while the feeder feeds
STATEFUL = ("feature", "labeler", "drift")
SHARED_OUT = ("feature", "inference", "labeler", "drift")  # whose partitions can be shared out
STEPS_OF = {
    "intake": ("after_poll", "after_core", "after_send", "after_ack", "inside_commit", "after_commit"),
    "feature": ("after_poll", "after_core", "after_send", "after_ack", "inside_commit", "after_commit"),
    "inference": ("after_poll", "after_core", "after_send", "after_ack", "inside_commit", "after_commit"),
    "labeler": ("after_poll", "after_core", "after_send", "after_ack", "inside_commit", "after_commit"),
    "drift": ("after_poll", "after_core", "after_send", "after_ack", "inside_commit", "after_commit"),
    "trainer": ("after_poll", "after_core", "after_send", "after_ack"),
    "rollout": ("after_core", "after_send", "after_ack", "inside_commit", "after_commit"),
}
AOF_CUT_MAX = 5 << 20
THROTTLE_S = 0.02
QUIET_S = 1.5  # logs that have not grown for so long, while nothing is fed, have all that there is
CATCH_UP_S = 600.0


@dataclass
class Trial:
    """One dose that was given: of which kind, to whom, and how long the next new output took (None: not measured)."""

    dose: str
    service: str
    how: str = ""
    whole: bool = False  # the keeper or supervisor had to start the service anew, not the worker alone
    recovery_s: float | None = None
    told: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Doses:
    """All doses on one rig, by one generator of chance."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._chance = np.random.default_rng([seed, 4_711])
        self._besides = 0

    async def _sleep(self, low_s: float, high_s: float) -> None:
        await asyncio.sleep(float(self._chance.uniform(low_s, high_s)))

    def _one_of(self, some: Sequence[str]) -> str:
        return some[int(self._chance.integers(len(some)))]

    # kill -9

    async def kill(self, service: str, step: str, *, whole: bool) -> Trial:
        """kill -9 of a service whose output never rests, at a random time (no `step`) or at a step; until its next new output."""
        await self._sleep(0.05, 0.4)
        killed_s = await self._rig.doom(service, step, STEP_S, whole=whole) if step else None
        how = step if killed_s is not None else "at a random time"
        if killed_s is None:
            killed_s = await self._rig.kill(service, whole=whole)
        return Trial("kill", service, how, whole, await self._next_output(service, killed_s))

    async def _next_output(self, service: str, killed_s: float) -> float:
        ends, kind = self._rig.ends, OUTPUT_OF[service]
        await asyncio.sleep(max(0.0, killed_s + SETTLE_S - time.monotonic()))
        total = await ends.total(kind)
        if not await ends.beyond(kind, total, OUTPUT_S):
            raise Lost(f"{service} was killed and {kind} has not grown for {OUTPUT_S:.0f} s: {self._rig.ready(service)}")
        return time.monotonic() - killed_s

    async def kill_at_midnight(self, service: str, step: str, *, whole: bool) -> Trial:
        """
        kill -9 of a service that works once a day, while the feeder holds at `midnight`: its work is what it finds when it is back. Or it
        comes a moment after, in the middle of it.
        """
        early = bool(self._chance.integers(2)) and not step
        kind = OUTPUT_OF[service]
        total = await self._rig.ends.total(kind)
        if early:
            killed_s = await self._rig.kill(service, whole=whole)
            self._release()
        elif step:
            dooming = asyncio.create_task(self._rig.doom(service, step, STEP_S, whole=whole))
            await asyncio.sleep(0.05)
            self._release()
            killed_s = await dooming
            if killed_s is None:  # it does not come by there every day
                killed_s, step = await self._rig.kill(service, whole=whole), ""
        else:
            self._release()
            await self._sleep(0.0, 0.5)
            killed_s = await self._rig.kill(service, whole=whole)
        loaded = early or await self._rig.ends.total(kind) == total  # else the day's work was done before the kill
        came = await self._rig.ends.beyond(kind, total, OUTPUT_S)
        if not came:
            raise Lost(f"{service} was killed and {kind} has not grown for {OUTPUT_S:.0f} s: {self._rig.ready(service)}")
        took = time.monotonic() - killed_s if loaded else None
        return Trial("kill", service, step or "at a random time", whole, took)

    async def midnight(self) -> None:
        """Let the feeder hold before the day is over."""
        (self._rig.feed_folder / "midnight").touch()
        await self._rig.until((self._rig.feed_folder / "at-midnight").exists, OUTPUT_S, "the feeder is not at midnight")
        await asyncio.sleep(0.3)  # the loop has little to do now

    def _release(self) -> None:
        (self._rig.feed_folder / "midnight").unlink(missing_ok=True)

    async def kill_trainer(self, step: str, *, whole: bool) -> Trial:
        """While a command of an operator is answered: most end in the cooldown, some are trained. Until this command's own outcome."""
        rig = self._rig
        servers = rig.stack.environment()
        addresses = Addresses(servers["DRIFTLINE_KAFKA"], servers["DRIFTLINE_REDIS"], servers["DRIFTLINE_REGISTRY"], rig.stack.run_dir)
        clock = SystemClock()
        dooming = asyncio.create_task(rig.doom("trainer", step, STEP_S, whole=whole)) if step else None
        await asyncio.sleep(0.05)
        command = retrain_command(rig.pipeline, clock, "operator", "the battery asks")
        answering = asyncio.create_task(send_to_trainer(addresses, rig.pipeline, clock, command, OUTPUT_S))
        await self._sleep(0.1, 1.2)
        killed_s = await dooming if dooming is not None else None
        loaded = dooming is not None or not answering.done()
        if killed_s is None:
            loaded, step = not answering.done(), ""
            killed_s = await rig.kill("trainer", whole=whole)
        outcome = (await answering).outcome
        took = time.monotonic() - killed_s if loaded else None
        return Trial("kill", "trainer", step or "at a random time", whole, took, {"outcome": outcome})

    # SIGSTOP

    async def pause(self, service: str) -> Trial:
        """SIGSTOP of everything of a service, 1 to 30 s later SIGCONT."""
        stopped_s = float(self._chance.uniform(1, 30))
        with self._rig.meaning(service):
            self._rig.signal_all(service, signal.SIGSTOP)
            await asyncio.sleep(stopped_s)
            self._rig.signal_all(service, signal.SIGCONT)
        took = await self._next_output(service, time.monotonic()) if service in BUSY else None
        return Trial("pause", service, "SIGSTOP", False, took, {"stopped_s": round(stopped_s, 1)})

    # Workers that join and leave

    async def join(self, service: str, variant: str) -> Trial:
        """
        A second process of the same ordinal: `beside` a living one, `instead` of one that then ends, `behind` a stopped one that wakes up
        when it has been replaced; or `replicas`: two ordinals for a while.
        """
        self._besides += 1
        name = f"{service}-{self._besides}"
        if variant == "replicas":
            await self._share_out(service, name)
        else:
            await self._double(service, name, variant)
        if service in BUSY:
            await self._next_output(service, time.monotonic())
        return Trial("join", service, variant)

    async def _double(self, service: str, name: str, variant: str) -> None:
        rig, hard = self._rig, bool(self._chance.integers(2))
        with rig.meaning(service):
            if variant == "behind":
                rig.signal_all(service, signal.SIGSTOP)
            rig.spawn(service, name)
            await rig.until(lambda: rig.ready(name) == "ready", READY_S, f"a second {service} is not ready")
            await self._sleep(0.2, 1.0)
            if variant == "behind":
                rig.signal_all(service, signal.SIGCONT)
                await self._sleep(0.3, 1.0)
            if variant == "instead":
                await rig.end(service, hard=hard)
                await self._sleep(0.2, 0.8)
                await asyncio.to_thread(rig.stack.restart, service)
                await rig.until(lambda: rig.ready(service) == "ready", READY_S, f"{service} is not ready again")
            await rig.end(name, hard=hard)

    async def _share_out(self, service: str, name: str) -> None:
        rig = self._rig
        first = f"{name}a"
        with rig.meaning(service):
            await rig.end(service, hard=bool(self._chance.integers(2)))
            rig.spawn(service, first, replica="0", replicas="2")
            rig.spawn(service, name, replica="1", replicas="2")
            for one in (first, name):
                await rig.until(lambda one=one: rig.ready(one) == "ready", READY_S, f"{one} is not ready")  # type: ignore[misc]
            await self._sleep(0.3, 1.0)
            await asyncio.gather(*(rig.end(one, hard=bool(self._chance.integers(2))) for one in (first, name)))
            await asyncio.to_thread(rig.stack.restart, service)

    # Servers

    async def kill_broker(self) -> Trial:
        """SIGKILL of the Kafka broker, and start it again."""
        await self._sleep(0.2, 1.0)
        began_s = time.monotonic()
        await asyncio.to_thread(self._rig.broker.kill)
        await asyncio.to_thread(self._rig.broker.start)
        up_s = time.monotonic() - began_s
        await self._next_output("inference", began_s)
        return Trial("kill", "kafka", "at a random time", True, time.monotonic() - began_s, {"down_s": round(up_s, 2)})

    async def kill_valkey(self, *, cut: bool) -> Trial:
        """SIGKILL of Valkey; if `cut`, while it is down the last 1 B to 5 MB of its append-only file are cut off; start it again."""
        await self._sleep(0.1, 0.5)
        began_s = time.monotonic()
        await asyncio.to_thread(self._rig.valkey.kill)
        told = {}
        if cut:
            wanted = int(np.exp(self._chance.uniform(0, np.log(AOF_CUT_MAX))))
            told = {"cut_bytes": await asyncio.to_thread(cut_tail, self._rig.valkey.folder / "appendonlydir", wanted)}
        await asyncio.to_thread(self._rig.valkey.start)
        await self._next_output("feature", began_s)
        return Trial("cut" if cut else "kill", "valkey", "at a random time", True, time.monotonic() - began_s, told)

    async def flush_and_rebuild(self) -> Trial:
        """FLUSHALL under running services; they refuse; `driftline rebuild` and they go on."""
        rig, began_s = self._rig, time.monotonic()
        with rig.meaning(*STATEFUL):
            with Redis.from_url(rig.valkey.url) as client:
                client.flushall()
            for service in STATEFUL:
                await rig.end(service, hard=False)
            environment = {**os.environ, **rig.told("drift")}
            command = [sys.executable, "-m", "driftline", "rebuild", "flights"]
            process = await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            output, _ = await process.communicate()
            if process.returncode != 0:
                raise Lost(f"driftline rebuild ended with {process.returncode}: {output.decode()[-2_000:]}")
            for service in STATEFUL:
                await asyncio.to_thread(rig.stack.restart, service)
        rebuilt_s = time.monotonic() - began_s
        await self._next_output("labeler", time.monotonic())
        return Trial("flush", "valkey", "FLUSHALL, driftline rebuild", True, time.monotonic() - began_s, {"rebuilt_s": round(rebuilt_s, 1)})

    # The network

    async def spoil(self, which: str, mode: str) -> Trial:
        """Spoil what goes to Kafka or to Valkey, for some seconds."""
        proxy = self._rig.kafka_proxy if which == "kafka" else self._rig.redis_proxy
        assert proxy is not None
        await self._sleep(0.1, 0.5)
        before = proxy.vanished_bytes
        told = {"seconds": await self._spoil(proxy, mode)}
        clear_s = time.monotonic()
        await self._next_output("inference" if which == "kafka" else "feature", clear_s)
        told["vanished_bytes"] = proxy.vanished_bytes - before
        return Trial("proxy", which, mode, False, time.monotonic() - clear_s, told)

    async def _spoil(self, proxy: Proxy, mode: str) -> float:
        seconds = float(self._chance.uniform(1, 6))
        if mode == "reset":
            for _ in range(int(self._chance.integers(1, 6))):
                proxy.reset()
                await self._sleep(0.05, 0.6)
            return 0.0
        proxy.delay_s = float(self._chance.uniform(0.05, 0.5))
        proxy.mode = {"delay": DELAY, "black_hole": BLACK_HOLE, "swallow_replies": SWALLOW_REPLIES}[mode]
        await asyncio.sleep(seconds)
        proxy.mode = CLEAR
        if mode == "swallow_replies" or (mode == "black_hole" and self._chance.integers(2)):
            proxy.reset_deaf()  # in half of the black holes nobody says anything: clients must find out
        return round(seconds, 1)

    # Too much

    async def overload(self, victim: str, seconds: float, rest_pace: float) -> Trial:
        """
        For some minutes upstream publishes five times what the pipeline takes: the feeder keeps its pace, and `victim` is let run only as
        long as it has taken less than a fifth of that. Then it runs again, and the time until it has caught up is measured.
        """
        rig, kind = self._rig, OUTPUT_OF[victim]
        await self._caught_up(rest_pace)
        fed, done = rig.fed()["messages"], await rig.ends.total(kind)
        share = done / max(1, fed)  # of its records there is one for so many upstream messages
        before = {name: rig.sample(name) for name in OUTPUT_OF}
        rig.pace(rest_pace)
        flood = rig.feed_folder / "flood"
        flood.touch()
        with rig.meaning(victim):
            backlog = await self._throttled(victim, seconds, fed, done, share)
        produced = rig.fed()["messages"] - fed
        taken = (await rig.ends.total(kind) - done) / share
        rig.pace(0)
        flood.unlink()
        began_s = time.monotonic()
        await self._caught_up(0)
        grown = {name: rig.memory_peaks.get(name, 0) - held for name, held in before.items() if held}
        told = {
            "seconds": seconds,
            "produced": produced,
            "taken": round(taken),
            "times": round(produced / max(1.0, taken), 2),
            "backlog_max": round(backlog),
            "caught_up_s": round(time.monotonic() - began_s - QUIET_S, 1),
            "memory_grown_mb": {name: round(held / 2**20, 1) for name, held in grown.items()},
        }
        rig.pace(rest_pace)
        return Trial("overload", victim, "five times what it takes", False, None, told)

    async def _throttled(self, victim: str, seconds: float, fed: int, done: int, share: float) -> float:
        """Stop and go: never more than a fifth of what was produced is taken. The longest backlog, in upstream messages."""
        rig, backlog = self._rig, 0.0
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                produced = rig.fed()["messages"] - fed
                taken = (await rig.ends.total(OUTPUT_OF[victim]) - done) / share
                backlog = max(backlog, produced - taken)
                rig.signal_all(victim, signal.SIGCONT if taken < produced / 5 else signal.SIGSTOP)
                await asyncio.sleep(THROTTLE_S)
        finally:
            rig.signal_all(victim, signal.SIGCONT)
        return backlog

    async def _caught_up(self, pace: float) -> None:
        """Hold the feeder until no log grows any more, then let it go on."""
        rig = self._rig
        rig.pace(0)
        quiet_since, ends = time.monotonic(), -1
        deadline = quiet_since + CATCH_UP_S
        while time.monotonic() < quiet_since + QUIET_S:
            now = sum([await rig.ends.total(kind) for kind in ("events", "features", "predictions", "journal", "examples")])
            if now != ends:
                quiet_since, ends = time.monotonic(), now
            if time.monotonic() > deadline:
                raise Lost(f"the loop has not caught up in {CATCH_UP_S:.0f} s")
            await asyncio.sleep(0.1)
        rig.pace(pace)
