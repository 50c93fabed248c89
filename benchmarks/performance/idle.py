"""
What a pipeline costs that has little to do (P8): processor time a second of each process of the flights pipeline, live, all services
running, when nothing is asked and at 200 questions a second.

    python -m benchmarks.performance.idle --seconds 30
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from .flying import Flying, asking, flying
from .meter import cpu_s

SETTLE_S = 8.0  # first ticks, models warmed, the probe gone
SECONDS = 30.0
RATE = 200
MS = 1e3


async def measured(rig: Flying, seconds: float) -> dict[str, float]:
    """Milliseconds of processor time a second, by service (keeper and worker together) and server."""
    pids = {service: child.pid for service, child in rig.stack.children.items()} | rig.servers
    began, before = time.monotonic(), {name: cpu_s(pid) for name, pid in pids.items()}
    await asyncio.sleep(seconds)
    took, after = time.monotonic() - began, {name: cpu_s(pid) for name, pid in pids.items()}
    return {name: round(MS * (after[name] - before[name]) / took, 2) for name in pids}


async def measure(seconds: float = SECONDS, rate: int = RATE) -> dict[str, Any]:
    """Raw figures: `ms_a_second` by state (idle, asked) and process; `services` are the seven together."""
    async with flying() as rig:
        await rig.start_all()
        await asyncio.sleep(SETTLE_S)
        found = {"idle": await measured(rig, seconds)}
        async with asking(rig.kafka, rate):
            await asyncio.sleep(SETTLE_S)
            found["asked"] = await measured(rig, seconds)
        services = {state: round(_services(rig, told), 2) for state, told in found.items()}
    return {"seconds": seconds, "rate": rate, "ms_a_second": found, "services": services}


def _services(rig: Flying, told: Mapping[str, float]) -> float:
    return sum(told[service] for service in rig.stack.children)


def main() -> None:
    """Measure and print: a line for each process, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rate", type=int, default=RATE)
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.seconds, asked.rate))
    idle, busy = found["ms_a_second"]["idle"], found["ms_a_second"]["asked"]
    for name in idle:
        print(f"{name:<10} {idle[name]:7.1f} ms a second idle {busy[name]:7.1f} ms at {asked.rate} questions a second")
    print(f"services   {found['services']['idle']:7.1f} {found['services']['asked']:26.1f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
