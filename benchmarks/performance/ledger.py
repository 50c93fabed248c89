"""
What it costs to be effectively once (P4): the feature hop as it is, beside the same loop with the ledger switched off.

    python -m benchmarks.performance.ledger --events 200000 --rounds 3

What off means is in `no_ledger.py`, which is the process then; the product has no such switch. On and off take turns: A B, B A; rows
are compared with the plain program's before a time counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from typing import Any

from .hops import PATIENCE_S, SERVICES, Driftline, benched, end
from .meter import Cost, Meter

EVENTS, ROUNDS = 200_000, 3
OFF = "benchmarks.performance.no_ledger"


async def measure_one(n: int, *, on: bool) -> Cost:
    """The feature hop over `n` payments. Raises Differs, TooSlow."""
    async with benched(n, sys.executable) as bench:
        ours = Driftline(bench)
        await ours.prepare()
        await ours.measure("intake")
        command = [sys.executable, "-m", OFF]
        environment = {**ours.environment, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
        child = None if on else bench.stack.spawn("feature", command, environment)
        if child is None:
            cost = await ours.measure("feature")
        else:
            try:
                cost = await Meter(bench.kafka, SERVICES["feature"], 1, {"client": child.pid, **bench.servers}).until(n, PATIENCE_S)
            finally:
                await asyncio.to_thread(end, child)
        await ours.check_rows()
        return cost


async def measure(n: int = EVENTS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Raw figures: client, broker and store in us an event, `on` and `off`, of each round; `ratio` of the clients' medians."""
    found: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    for number in range(rounds):
        for name in ("on", "off") if number % 2 == 0 else ("off", "on"):
            cost = await measure_one(n, on=name == "on")
            found[name].append({party: round(us, 3) for party, us in cost.us.items()})
    medians = {name: statistics.median(one["client"] for one in each) for name, each in found.items()}
    return {"events": n, "rounds": rounds, "us": found, "medians": medians, "ratio": round(medians["on"] / medians["off"], 3)}


def main() -> None:
    """Measure and print: the medians, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.events, asked.rounds))
    print(f"ledger on {found['medians']['on']:.2f} us an event, off {found['medians']['off']:.2f}: {found['ratio']:.2f} times")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
