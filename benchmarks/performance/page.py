"""
docs/performance.md from the figures that `make bench` left.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

GOALS = {"intake": 3.5, "feature": 7.5, "inference": 5.0}
HOP_OF = {"feature": "feature", "inference": "score"}
HEAD = """# Performance

Written by `make bench`; do not edit. Processor time of the client's processes per event, in microseconds, median of the rounds; start-up is
left out for everybody alike, and no time counts before all outputs were compared with those of a plain sequential program. Broker
and store are other processes, and are told apart.
"""


FIVE = ("intake", "feature", "inference", "labeler", "drift")
MISSING = """## Not measured yet

Latency at half load beside a raw echo, the ledger's share, online reads, growth to ten million entities, backfill over Parquet, idle
cost, memory and start of each service have no benchmark of this kind yet. Starts and memory under faults are in
[reliability.md](reliability.md)."""


def write_page(found: Mapping[str, Any], to: Path) -> None:
    """The whole page."""
    to.write_text("\n".join([HEAD, *_about(found), "", *_ours(found), "", *_hops(found), "", *_loop(found), "", MISSING]) + "\n")


def _about(found: Mapping[str, Any]) -> Iterable[str]:
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    yield f"`{found['command']}`, {found['began'][:10]}, {found['events']:,} events, {found['rounds']} rounds, {found['seconds']:,} s;"
    yield f"{machine['cpus']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python {machine['python']}, {versions}."


def _median(found: Mapping[str, Any], system: str, hop: str, of: Callable[[Mapping[str, Any]], float]) -> float | None:
    hops = [one["hops"][hop] for one in found["hops"] if one["system"] == system and hop in one["hops"]]
    figures = [of(one) for one in hops if "failed" not in one]
    return statistics.median(figures) if figures else None


def _us(party: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda one: float(one["us"][party])


def _ours(found: Mapping[str, Any]) -> Iterable[str]:
    yield "## driftline, hop by hop"
    yield ""
    yield "Effectively once, with state in the store. Each service alone, on a topic that is full before it starts."
    yield ""
    yield "| service | client | goal | broker | store | events a second |"
    yield "|---|---|---|---|---|---|"
    for service, goal in GOALS.items():
        cells = [_median(found, "driftline", service, _us(party)) for party in ("client", "broker", "store")]
        rate = _median(found, "driftline", service, lambda one: float(one["rate"]))
        if cells[0] is not None and rate is not None:
            client, broker, store = (f"{cell:.1f}" if cell is not None else "" for cell in cells)
            yield f"| {service} | {client} | {goal} | {broker} | {store} | {rate:,.0f} |"


def _hops(found: Mapping[str, Any]) -> Iterable[str]:
    systems = list(dict.fromkeys(one["system"] for one in found["hops"]))
    yield "## Beside the peers"
    yield ""
    yield "Client alone. driftline's hops need its intake, which checks and orders what the peers' feature hop decodes and checks."
    yield ""
    yield "| | echo hop | feature hop | score hop |"
    yield "|---|---|---|---|"
    for system in sorted(systems, key=lambda name: name != "driftline"):
        cells = [_cell(found, system, hop) for hop in ("echo", "feature", "score")]
        yield f"| {system} | {' | '.join(cells)} |"


def _loop(found: Mapping[str, Any]) -> Iterable[str]:
    loops = found.get("loops", ())
    if not loops:
        return
    parties = list(loops[0]["us"])
    medians = {party: statistics.median(one["us"][party] for one in loops) for party in parties}
    rate = statistics.median(one["rate"] for one in loops)
    yield "## The whole loop"
    yield ""
    yield f"Flights, {loops[0]['messages']:,} upstream messages at once, two partitions, all on the same cores. Goals: five services at"
    yield f"most 20, 15,000 upstream messages a second. Median: {sum(medians[name] for name in FIVE):.1f}, and {rate:,.0f} a second."
    yield ""
    yield f"| {' | '.join(parties)} |"
    yield "|" + "---|" * len(parties)
    yield f"| {' | '.join(f'{medians[party]:.1f}' for party in parties)} |"


def _cell(found: Mapping[str, Any], system: str, hop: str) -> str:
    if system == "driftline":
        hop = next((service for service, one in HOP_OF.items() if one == hop), hop)
    figure = _median(found, system, hop, _us("client"))
    return "" if figure is None else f"{figure:.1f}"
