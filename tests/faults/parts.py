"""
The parts of the battery: what is given to which play, in which order, in doses that are counted. Parts run apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from doses import BUSY, STEPS_OF, Doses, Trial
from rig import Rig

Given = AsyncIterator[Trial]
COUNTS = {  # how many of each dose, by service; a part gives its own ones
    **{("kill", service): count for service, count in (("feature", 200), ("intake", 100), ("inference", 100), ("labeler", 100))},
    **{("kill", service): 30 for service in ("drift", "trainer", "rollout", "kafka")},
    ("kill", "valkey"): 50,
    ("cut", "valkey"): 50,
    ("flush", "valkey"): 5,
}


@dataclass(frozen=True)
class Part:
    """One play: how fast it is fed, how long it may last, and what is done to it."""

    name: str
    doses: Callable[[Doses, Rig, float, np.random.Generator], Given]
    pace: float
    through: bool = False  # proxies between the services and the servers
    mix: dict[str, float] = field(default_factory=dict)
    days: int = 365


def scaled(count: int, scale: float) -> int:
    """A share of the doses, at least one."""
    return max(1, round(count * scale))


def kills(service: str, count: int, chance: np.random.Generator) -> Iterator[tuple[str, str, bool]]:
    """Half at random times and half at steps in turn; half of the worker and half of everything of the service."""
    steps = STEPS_OF[service]
    for number in range(count):
        step = steps[number // 2 % len(steps)] if number % 2 else ""
        yield service, step, bool(chance.integers(2))


def shuffled(some: list[Any], chance: np.random.Generator) -> list[Any]:
    """In an order of chance."""
    return [some[at] for at in chance.permutation(len(some)).tolist()]


def kill_some(shares: dict[str, int]) -> Callable[[Doses, Rig, float, np.random.Generator], Given]:
    """Kills of the services whose output never rests, all mixed."""

    async def give(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
        planned = [one for service, count in shares.items() for one in kills(service, scaled(count, scale), chance)]
        for service, step, whole in shuffled(planned, chance):
            yield await doses.kill(service, step, whole=whole)

    return give


async def kill_control(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """Kills of those that work once a day, a day a kill; in every other of these midnights the trainer is killed first."""
    planned = [one for service in ("drift", "rollout") for one in kills(service, scaled(30, scale), chance)]
    trainings = list(kills("trainer", scaled(30, scale), chance))
    for number, (service, step, whole) in enumerate(shuffled(planned, chance)):
        await doses.midnight()
        if number % 2 == 0:
            _, trainer_step, trainer_whole = trainings.pop()
            yield await doses.kill_trainer(trainer_step, whole=trainer_whole)
        yield await doses.kill_at_midnight(service, step, whole=whole)


async def pause_and_join(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """Pauses on some services while others are joined; never two things to one service at once."""
    services = [*BUSY, "drift", "trainer", "rollout"]
    variants = ("beside", "instead", "behind", "beside", "instead", "behind", "beside", "instead", "behind", "replicas")
    pauses = [("pause", services[number % 7]) for number in range(scaled(50, scale))]
    joins = [("join", variants[number % 10]) for number in range(scaled(100, scale))]
    busy: dict[str, asyncio.Lock] = {service: asyncio.Lock() for service in services}
    told: asyncio.Queue[Trial] = asyncio.Queue()

    async def pausing(some: list[tuple[str, str]]) -> None:
        for _, service in some:
            async with busy[service]:
                await told.put(await doses.pause(service))

    async def joining(some: list[tuple[str, str]]) -> None:
        for _, variant in some:
            shared = [one for one in services if variant != "replicas" or one in ("feature", "inference", "labeler", "drift")]
            free = [one for one in shared if not busy[one].locked()] or shared
            service = free[int(chance.integers(len(free)))]
            async with busy[service]:
                await told.put(await doses.join(service, variant))

    lanes = [pausing(pauses[0::3]), pausing(pauses[1::3]), pausing(pauses[2::3]), joining(joins[0::2]), joining(joins[1::2])]
    async for trial in together(lanes, told):
        yield trial


async def together(lanes: list[Any], told: asyncio.Queue[Trial]) -> Given:
    """Run lanes at once and give out what they tell; the first failure of a lane ends all."""
    tasks = [asyncio.create_task(lane) for lane in lanes]
    try:
        while not all(task.done() for task in tasks) or not told.empty():
            for task in tasks:
                if task.done():
                    task.result()
            try:
                yield await asyncio.wait_for(told.get(), 0.2)
            except TimeoutError:
                continue
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def servers(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """Kills of Valkey, with and without a cut of its file, and of the broker; at the end nothing is left in Valkey, five times."""
    planned: list[Callable[[], Awaitable[Trial]]] = [lambda: doses.kill_valkey(cut=False)] * scaled(50, scale)
    planned += [lambda: doses.kill_valkey(cut=True)] * scaled(50, scale)
    planned += [doses.kill_broker] * scaled(30, scale)
    for dose in shuffled(planned, chance):
        yield await dose()


async def rebuilds(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """Nothing is left in Valkey, five times, some days apart."""
    for _ in range(scaled(5, scale)):
        day = rig.fed()["day"]
        await rig.until(lambda day=day: rig.fed()["day"] >= day + 5, 120, "the feeder did not go on")  # type: ignore[misc]
        yield await doses.flush_and_rebuild()


async def network(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """A proxy that delays, resets, vanishes and swallows, before Kafka and before Valkey."""
    modes = ("delay", "reset", "black_hole", "swallow_replies")
    planned = [(which, mode) for which in ("kafka", "redis") for mode in modes for _ in range(scaled(10, scale))]
    for which, mode in shuffled(planned, chance):
        yield await doses.spoil(which, mode)


async def inputs(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """What upstream does wrong, for sixty days, with kills between."""
    planned = [one for service in BUSY for one in kills(service, scaled(5, scale), chance)]
    days = scaled(60, scale)
    for number, (service, step, whole) in enumerate(shuffled(planned, chance)):
        await rig.until(lambda number=number: rig.fed()["day"] >= days * number // len(planned), 300, "the feeder did not go on")  # type: ignore[misc]
        trial = await doses.kill(service, step, whole=whole)
        yield trial


OVERLOAD_S = 120.0
OVERLOAD_PACE = 500.0


async def overloads(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """Five times what a service takes, for two minutes, five times: each time another service is the one that is too slow."""
    for victim in (*BUSY, "feature")[: scaled(5, scale)]:
        yield await doses.overload(victim, OVERLOAD_S if scale == 1 else OVERLOAD_S / 10, OVERLOAD_PACE)


async def small(doses: Doses, rig: Rig, scale: float, chance: np.random.Generator) -> Given:
    """A little of most things, for `make test`."""
    for service, step in (("feature", "inside_commit"), ("intake", "after_ack"), ("inference", "after_send"), ("labeler", "")):
        yield await doses.kill(service, step, whole=True)
    yield await doses.join("feature", "behind")
    yield await doses.kill_valkey(cut=True)
    yield await doses.spoil("kafka", "swallow_replies")
    yield await doses.spoil("redis", "swallow_replies")
    yield await doses.kill_valkey(cut=False)
    yield await doses.kill("feature", "after_ack", whole=True)


SMALL = Part("small", small, pace=200, through=True, mix={"duplicates": 0.1, "disorder": 0.05, "late": 0.05})
PARTS = {
    one.name: one
    for one in (
        Part("kills-feature", kill_some({"feature": 200}), pace=400),
        Part("kills", kill_some({"intake": 100, "inference": 100, "labeler": 100}), pace=300),
        Part("kills-control", kill_control, pace=1_500),
        Part("pauses-and-joins", pause_and_join, pace=300),
        Part("servers", servers, pace=300),
        Part("rebuilds", rebuilds, pace=3_000),
        Part("network", network, pace=250, through=True),
        Part("overload", overloads, pace=OVERLOAD_PACE),
        Part("inputs", inputs, pace=1_500, mix={"duplicates": 0.1, "disorder": 0.1, "late": 0.05, "ahead": 0.01}),
    )
}
