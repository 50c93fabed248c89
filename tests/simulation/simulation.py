"""
One seed, one run: which topology it is, what goes wrong in it, and what was violated in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import checks
from .merging import Live, Replay
from .topologies import Broadcast, Chain, Join, OneInput, Topology
from .upheavals import Upheaval
from .world import World

TOPOLOGIES: dict[str, tuple[type[Topology], float]] = {  # with how often each is drawn
    "one input": (OneInput, 5),
    "broadcast view": (Broadcast, 1.5),
    "join on the journal": (Join, 6),
    "stateless between stateful": (Chain, 1),
    "merge in a replay": (Replay, 3),
    "merge live": (Live, 1.5),
    "one input, refused": (Upheaval, 2),
}


class Run(NamedTuple):
    """What became of one seed."""

    seed: int
    topology: str
    violations: list[str]
    requests: int
    faults: int
    virtual_s: float


def simulate(seed: int, trace: Callable[[str], None] | None = None, only: str = "") -> Run:
    """Run one seed. `only` takes a topology instead of drawing one; `trace` gets every fault and what was made of it."""
    world = World(seed, trace)
    names = [name for name in TOPOLOGIES if only in name]
    name = world.random.choices(names, [TOPOLOGIES[one][1] for one in names])[0]
    topology = TOPOLOGIES[name][0](world)
    world.wire.tell(f"seed {seed}: {name}; {world.wire.dose.told()}")
    took_s = world.run(topology.players(), topology.done)
    found = world.surprises + topology.refusals() + checks.progress(world, took_s)
    if not found:
        found = topology.violations() + checks.conservation(world)
    for violation in found:
        world.wire.tell(f"VIOLATED  {violation}")
    return Run(seed, name, found, world.wire.requests, world.wire.faults, world.loop.now_s)
