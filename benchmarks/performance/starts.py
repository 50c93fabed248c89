"""
How long each service takes to be ready, from its start (P9), and the memory of each process, at rest and under load.

    python -m benchmarks.performance.starts --rounds 5 --load-s 15

A service is started alone, on a stack with a model in force, and asked for `/readyz` every 5 ms; its files are in the page cache, as
after an earlier start. Memory is read from the kernel (`smaps_rollup`): what a process holds, and its share of what several hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from driftline.contracts.topics import LOOP

from .flying import Flying, asking, flying
from .meter import cpu_s

ROUNDS = 5
REST_S = 10.0
LOAD_S = 20.0
LOAD_RATE = 2_000
ROLES = ("keeper", "worker")


async def starts(rig: Flying, rounds: int, services: Sequence[str] = LOOP) -> dict[str, dict[str, list[float]]]:
    """Seconds to ready of each service, alone, in turn, forwards, then backwards; and seconds of processor time up to there."""
    found: dict[str, dict[str, list[float]]] = {service: {"ready_s": [], "cpu_s": []} for service in services}
    for number in range(rounds):
        for service in services if number % 2 == 0 else services[::-1]:
            found[service]["ready_s"].append(round(await rig.start(service), 3))
            found[service]["cpu_s"].append(round(cpu_s(rig.stack.children[service].pid), 3))
            await rig.end(service)
    return found


def memory_mib(process: psutil.Process) -> dict[str, float]:
    """What the kernel says of one process, in MiB."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    told = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return {"rss": round(told["Rss"] / 1024, 1), "pss": round(told["Pss"] / 1024, 1)}


def memory(rig: Flying) -> dict[str, dict[str, dict[str, float]]]:
    """Of every process of every service; what a worker started is named by number, and left out when it ends meanwhile."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for service, processes in rig.processes().items():
        found[service] = {}
        for at, process in enumerate(processes):
            with contextlib.suppress(ProcessLookupError):
                found[service][ROLES[at] if at < len(ROLES) else f"other {at - 1}"] = memory_mib(process)
    return found


async def measure(rounds: int = ROUNDS, rest_s: float = REST_S, load_s: float = LOAD_S, rate: int = LOAD_RATE) -> dict[str, Any]:
    """Raw figures: `starts` by service, their medians, `memory_mib` by state, service and process."""
    async with flying() as rig:
        taken = await starts(rig, rounds)
        await rig.start_all()
        await asyncio.sleep(rest_s)
        at_rest = memory(rig)
        async with asking(rig.kafka, rate):
            await asyncio.sleep(load_s)
            loaded = memory(rig)
    return {
        "rounds": rounds,
        "starts": taken,
        "medians": {service: {what: statistics.median(each) for what, each in told.items()} for service, told in taken.items()},
        "rate": rate,
        "memory_mib": {"at rest": at_rest, "under load": loaded},
    }


def totals(found: Mapping[str, Any]) -> list[str]:
    """One line a service, for whoever looks on."""
    lines = []
    for service, median in found["medians"].items():
        states = [sum(one["pss"] for one in state[service].values()) for state in found["memory_mib"].values()]
        times = f"ready in {median['ready_s']:.2f} s, with {median['cpu_s']:.2f} s of processor time"
        lines.append(f"{service:<10} {times}   {states[0]:5.0f} MiB at rest   {states[1]:5.0f} MiB under load")
    return lines


def main() -> None:
    """Measure and print: a line for each service, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rest-s", type=float, default=REST_S)
    parser.add_argument("--load-s", type=float, default=LOAD_S)
    parser.add_argument("--rate", type=int, default=LOAD_RATE)
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.rounds, asked.rest_s, asked.load_s, asked.rate))
    print("\n".join(totals(found)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
