"""
`make bench` and `make bench-quick`: floors, peers and driftline in turn, forwards and backwards, outputs compared before a time counts;
then what else is promised of speed. Writes every figure to benchmarks/results/, and docs/performance.md from that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from driftline.errors import DriftlineError

from . import backfill, growth, idle, latency, ledger, loop, over_http, parts, profiles, reads, starts
from .hops import PEERS_ALL, Differs, Peer, benched, driftline_round, measure_peer
from .meter import Cost, TooSlow
from .page import write_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "performance"
EVENTS, QUICK_EVENTS = 300_000, 200_000
ROUNDS, QUICK_ROUNDS = 3, 1
DAYS, QUICK_DAYS = 90, 40
QUICK = ("hops", "loops")
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
        whole = asyncio.run(loop.measure(days))
        us = {name: round(cost, 2) for name, cost in whole.us.items()}
        say.print(f"  flights: {whole.rate:,.0f} upstream messages a second; {us}", highlight=False)
        found.append({"messages": whole.messages, "seconds": round(whole.seconds, 2), "rate": round(whole.rate), "us": us})
    return found


def sections(asked: argparse.Namespace, say: Console) -> dict[str, Callable[[], Any]]:
    """What can be measured, by name, in the order of the page."""
    n = asked.events or (QUICK_EVENTS if asked.quick else EVENTS)
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    known: dict[str, Callable[[], Any]] = {
        "hops": lambda: asyncio.run(run_hops(n, rounds, asked.peers_python, asked.only, say)),
        "parts": lambda: asyncio.run(parts.measure(n)),
        "loops": lambda: run_loops(asked.days or (QUICK_DAYS if asked.quick else DAYS), rounds, say),
        "latency": lambda: asyncio.run(latency.measure()),
        "ledger": lambda: asyncio.run(ledger.measure()),
        "reads": lambda: asyncio.run(reads.measure()),
        "growth": growth.measure,
        "backfill": lambda: backfill.measure(backfill.EVENTS),
        "idle": lambda: asyncio.run(idle.measure()),
        "starts": lambda: asyncio.run(starts.measure()),
    }
    if asked.peers_python:  # which bring BentoML and the profiler
        known["http"] = lambda: asyncio.run(over_http.measure(asked.peers_python))
        known["profiles"] = lambda: asyncio.run(profiles.measure(str(Path(asked.peers_python).with_name("py-spy"))))
    return known


def wanted(asked: argparse.Namespace, known: Sequence[str]) -> Sequence[str]:
    """Which of the `known` sections are asked for. Exits when one is not known."""
    names = asked.section or (QUICK if asked.quick else ["hops"] if asked.only else known)
    if unknown := set(names) - set(known):
        sys.exit(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if name in names]


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
    parser.add_argument("--quick", action="store_true", help="hops and loops alone, one round of fewer events")
    parser.add_argument("--section", action="append", help="only this; what is known of the others stays")
    parser.add_argument("--events", type=int, help="payments of P1")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--days", type=int, help="of flights in P2")
    parser.add_argument("--only", default="", help="systems whose name contains this")
    parser.add_argument(
        "--peers-python", default="", metavar="PATH", help="a Python with benchmarks/peers/requirements.txt; without it no peers"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "performance.json")
    parser.add_argument(
        "--page", action="store_true", help="write docs/performance.md and its plots from the results that are there, and measure nothing"
    )
    return parser.parse_args()


def main() -> int:
    """1 when an output was not what it should be."""
    asked, say = arguments(), Console()
    if not asked.page:
        measure(asked, say)
    found = json.loads(asked.results.read_text())
    if asked.results == RESULTS / "performance.json":
        write_page(found, PAGE)
        if asked.peers_python:
            subprocess.run([asked.peers_python, str(Path(__file__).with_name("plots.py")), str(asked.results), str(PLOTS)], check=True)
    return 1 if any("failed" in hop for one in found.get("hops", ()) for hop in one["hops"].values()) else 0


def measure(asked: argparse.Namespace, say: Console) -> None:
    """What is asked for, each section into the results as soon as it is there; when and on what it was measured goes with it."""
    known, of = sections(asked, say), commit()
    found: dict[str, Any] = json.loads(asked.results.read_text()) if asked.section and asked.results.exists() else {}
    found.setdefault("measured", {})
    found |= {"machine": machine(), "events": asked.events or (QUICK_EVENTS if asked.quick else EVENTS)}
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    for name in wanted(asked, list(known)):
        say.print(f"[bold]{name}[/]")
        began_s, began = time.monotonic(), datetime.now(UTC)
        found[name] = known[name]()
        found["measured"][name] = {
            "command": "make bench-quick" if asked.quick else "make bench",
            "began": began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began_s),
            "commit": of,
        }
        asked.results.write_text(json.dumps(found, indent=1) + "\n")


def commit() -> str:
    """What was measured: the commit that is checked out, with a plus where something was changed since."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DriftlineError as error:
        sys.exit(str(error))
