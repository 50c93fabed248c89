"""
`make bench` and `make bench-quick`: floors, peers and driftline in turn, forwards and backwards, outputs compared before a time counts.
Writes every figure to benchmarks/results/, and docs/performance.md from that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from driftline.errors import DriftlineError

from .hops import PEERS_ALL, Differs, Peer, benched, driftline_round, measure_peer
from .loop import measure as measure_loop
from .meter import Cost, TooSlow
from .page import write_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
EVENTS, QUICK_EVENTS = 400_000, 200_000
ROUNDS, QUICK_ROUNDS = 3, 1
DAYS, QUICK_DAYS = 120, 40
LIBRARIES = ("aiokafka", "numpy", "numba", "redis", "onnxruntime", "polars", "fastavro")


def told(cost: Cost) -> dict[str, Any]:
    """A cost for JSON."""
    return {
        "outputs": cost.outputs,
        "seconds": round(cost.seconds, 3),
        "rate": round(cost.rate),
        "us": {k: round(v, 3) for k, v in cost.us.items()},
    }


def in_turn(rounds: int) -> Iterator[tuple[int, list[Peer | None]]]:
    """Who is measured in which order in each round: A B, B A, A B. None stands for driftline."""
    everybody: list[Peer | None] = [None, *PEERS_ALL]
    for number in range(rounds):
        yield number, everybody if number % 2 == 0 else everybody[::-1]


async def ours(n: int, say: Console) -> dict[str, Any]:
    """One round of driftline's three services."""
    costs = await driftline_round(n)
    for service, cost in costs.items():
        say.print(f"  driftline, {service}: {cost.us['client']:.2f} us", highlight=False)
    return {service: told(cost) for service, cost in costs.items()}


async def theirs(n: int, peer: Peer, python: str, say: Console) -> dict[str, Any]:
    """One round of a peer's hops; what goes wrong is told in place of figures."""
    found: dict[str, Any] = {}
    async with benched(n, python) as bench:
        for number, hop in enumerate(peer.hops):
            try:
                cost = await measure_peer(bench, peer, hop, number)
                found[hop] = told(cost)
                say.print(f"  {peer.name}, {hop}: {cost.us['client']:.2f} us", highlight=False)
            except (Differs, TooSlow) as error:
                found[hop] = {"failed": str(error)}
                say.print(f"  {peer.name}, {hop}: {error}", highlight=False, style="red")
    return found


async def run_hops(n: int, rounds: int, python: str, only: str, say: Console) -> list[dict[str, Any]]:
    """All rounds of P1. Peers are left out where there is no Python for them."""
    out = []
    for number, order in in_turn(rounds):
        say.print(f"round {number + 1} of {rounds}")
        for peer in order:
            name = "driftline" if peer is None else peer.name
            if only not in name or (peer is not None and not python):
                continue
            hops = await (ours(n, say) if peer is None else theirs(n, peer, python, say))
            out.append({"round": number, "system": name, "hops": hops})
    return out


def run_loops(days: int, rounds: int, say: Console) -> list[dict[str, Any]]:
    """All rounds of P2."""
    found = []
    for _ in range(rounds):
        whole = asyncio.run(measure_loop(days))
        us = {name: round(cost, 2) for name, cost in whole.us.items()}
        say.print(f"  flights: {whole.rate:,.0f} upstream messages a second; {us}", highlight=False)
        found.append({"messages": whole.messages, "seconds": round(whole.seconds, 2), "rate": round(whole.rate), "us": us})
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with which versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "cpus": psutil.cpu_count(),
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of fewer events")
    parser.add_argument("--events", type=int, help="payments of P1")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--days", type=int, help="of flights in P2")
    parser.add_argument("--only", default="", help="systems whose name contains this")
    parser.add_argument(
        "--peers-python", default="", metavar="PATH", help="a Python with benchmarks/peers/requirements.txt; without it no peers"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "performance.json")
    parser.add_argument(
        "--page", action="store_true", help="write docs/performance.md from the results that are there, and measure nothing"
    )
    return parser.parse_args()


def main() -> int:
    """1 when an output was not what it should be."""
    asked, say = arguments(), Console()
    if asked.page:
        write_page(json.loads(asked.results.read_text()), PAGE)
        return 0
    n = asked.events or (QUICK_EVENTS if asked.quick else EVENTS)
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    began_s, began = time.monotonic(), datetime.now(UTC)
    hops = asyncio.run(run_hops(n, rounds, asked.peers_python, asked.only, say))
    loops = run_loops(asked.days or (QUICK_DAYS if asked.quick else DAYS), rounds, say) if asked.only in "driftline" else []
    found: Mapping[str, Any] = {
        "command": " ".join(["make", "bench-quick" if asked.quick else "bench"]),
        "began": began.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began_s),
        "events": n,
        "rounds": rounds,
        "machine": machine(),
        "hops": hops,
        "loops": loops,
    }
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text(json.dumps(found, indent=1) + "\n")
    if not asked.only and asked.results == RESULTS / "performance.json":
        write_page(found, PAGE)
    return 1 if any("failed" in hop for one in hops for hop in one["hops"].values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DriftlineError as error:
        sys.exit(str(error))
