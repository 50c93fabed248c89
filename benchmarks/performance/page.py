"""
docs/performance.md from the figures that `make bench` left: what is promised, what was measured, and where the rest of the time goes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOALS = {"intake": 3.5, "feature": 7.5, "inference": 5.0}
HOP_OF = {"feature": "feature", "inference": "score"}
FIVE = ("intake", "feature", "inference", "labeler", "drift")
SERVERS = ("broker", "store")
HEAD = """# Performance

Written by `make bench`; do not edit. Processor time of the client's processes per event, in microseconds, median of the rounds; start-up is
left out for everybody alike, and no time counts before all outputs were compared with those of a plain sequential program. Broker
and store are other processes, and are told apart. Every raw figure is in
[benchmarks/results/performance.json](../benchmarks/results/performance.json).
"""
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """One goal: what was found, in words, and whether that meets it."""

    number: str
    measure: str
    goal: str
    figure: str
    met: bool


def write_page(found: Found, to: Path) -> None:
    """The whole page: a section for whatever was measured."""
    lines = [HEAD, *_about(found), "", *_goals(found)]
    for name, section in SECTIONS.items():
        if found.get(name):
            lines += ["", *section(found)]
    if missing := [name for name in SECTIONS if not found.get(name)]:
        lines += ["", f'Not measured yet at these commits: {", ".join(missing)} (`make bench ARGS="--section {missing[0]}"`).']
    to.write_text("\n".join(lines) + "\n")


def _about(found: Found) -> Iterable[str]:
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    yield f"{machine['cpus']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python {machine['python']}, {versions}."
    yield ""
    for told, names in _by_run(found.get("measured", {})).items():
        yield f"{told}: {', '.join(names)}."


def _by_run(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    runs: dict[str, list[str]] = {}
    for name, one in measured.items():
        runs.setdefault(f"`{one['command']}` of {one['began'][:10]} at commit {one['commit']}", []).append(f"{name} {one['seconds']:,} s")
    return runs


# ---- the goals ------------------------------------------------------------------------------------------------------------


def _goals(found: Found) -> Iterable[str]:
    yield "| | measure | goal | found | met |"
    yield "|---|---|---|---|---|"
    for judge in (
        _hop_goals,
        _loop_goals,
        _latency_goals,
        _ledger_goals,
        _read_goals,
        _growth_goals,
        _backfill_goals,
        _idle_goals,
        _start_goals,
    ):
        for told in judge(found):
            yield f"| {told.number} | {told.measure} | {told.goal} | {told.figure} | {'yes' if told.met else 'no'} |"


def _hop_goals(found: Found) -> Iterator[Told]:
    ours = {service: _median(found, "driftline", service, _us("client")) for service in GOALS}
    for service, goal in GOALS.items():
        if (us := ours[service]) is not None:
            yield Told("P1", f"{service}, µs an event", f"at most {goal}", f"{us:.1f}", us <= goal)
    for service, hop in HOP_OF.items():
        for peer, goal in (("Faust", 35.0), ("Quix Streams", 3.0), ("Bytewax", 2.3)):
            mine, theirs = ours[service], [_median(found, name, hop, _us("client")) for name in _systems(found) if name.startswith(peer)]
            least = min((us for us in theirs if us is not None), default=None)
            if mine and least:
                yield Told("P1", f"{hop} hop below {peer}", f"{goal:g} times", f"{least / mine:.1f} times", least >= goal * mine)


def _loop_goals(found: Found) -> Iterator[Told]:
    if loops := found.get("loops"):
        us = sum(statistics.median(one["us"][name] for one in loops) for name in FIVE)
        rate = statistics.median(one["rate"] for one in loops)
        yield Told("P2", "flights whole, five services, µs an upstream message", "at most 20", f"{us:.1f}", us <= 20)
        yield Told("P2", "upstream messages a second", "at least 15,000", f"{rate:,.0f}", rate >= 15_000)


def _latency_goals(found: Found) -> Iterator[Told]:
    runs = [one for one in found.get("latency", {}).get("runs", ()) if one["half_load"]]
    for which in ("p50_ms", "p99_ms") if runs else ():
        ours, echo = (statistics.median(one[which] for one in runs if (one["chain"] == "driftline") == mine) for mine in (True, False))
        words = f"{ours / echo:.1f} times ({ours:.1f} and {echo:.1f} ms)"
        yield Told("P3", f"event to prediction at half load, {which[:3]}", "1.5 times a raw echo", words, ours <= 1.5 * echo)


def _ledger_goals(found: Found) -> Iterator[Told]:
    if one := found.get("ledger"):
        yield Told("P4", "effectively once against no ledger", "at most 1.15 times", f"{one['ratio']:.2f} times", one["ratio"] <= 1.15)


def _read_goals(found: Found) -> Iterator[Told]:
    if one := found.get("reads"):
        for size, ways in one["reads_us"].items():
            ratio = ways["features"]["p50"] / ways["MGET"]["p50"]
            words = f"{ratio:.2f} times ({ways['features']['p50']:.0f} and {ways['MGET']['p50']:.0f} µs)"
            yield Told("P5", f"online read of {size}, against MGET", "at most 1.3 times", words, ratio <= 1.3)
        yield Told("P5", "bytes a feature, key included", "at most 8", f"{one['bytes_a_feature']:.1f}", one["bytes_a_feature"] <= 8)


def _growth_goals(found: Found) -> Iterator[Told]:
    if one := found.get("growth"):
        costs = [each["us"] for each in one["entities"]]
        first, last = one["entities"][0]["cards"], one["entities"][-1]["cards"]
        words = f"{max(costs) / costs[0]:.1f} times"
        yield Told("P6", f"fold of {first:,} to {last:,} entities", "within 1.5 times", words, max(costs) <= 1.5 * costs[0])
        if len(one["workers"]) == 2:
            alone, both = one["workers"]
            rate, cpu = both["rate"] / alone["rate"], both["us"]["client"] / alone["us"]["client"]
            words = f"{rate:.2f} times the rate, {cpu:.2f} times the CPU"
            yield Told("P6", "two worker processes for one", "1.8 times the rate, or CPU within 1.1", words, rate >= 1.8 or cpu <= 1.1)


def _backfill_goals(found: Found) -> Iterator[Told]:
    if one := found.get("backfill"):
        rate = one["rate"]
        yield Told("P7", "backfill over Parquet, events a second, one core", "at least 1,000,000", f"{rate:,.0f}", rate >= 1_000_000)


def _idle_goals(found: Found) -> Iterator[Told]:
    if one := found.get("idle"):
        for state, before in IDLE_BEFORE.items():
            now = one["services"][state]
            words = f"{now:.0f} ms (from {before:.0f})"
            what = "all services idle" if state == "idle" else f"all services at {one['rate']} questions a second"
            yield Told("P8", f"{what}, CPU a second", "halved", words, now <= before / 2)


def _start_goals(found: Found) -> Iterator[Told]:
    if one := found.get("starts"):
        for service in ("feature", "inference"):
            ready = one["ready_s"][service]
            yield Told("P9", f"{service} ready, s", "at most 1.5", f"{ready:.2f}", ready <= 1.5)


# What the same benchmark found before anything was done about it, at commit e6f26d3: milliseconds of processor time a second.
IDLE_BEFORE = {"idle": 67.8}

# ---- what was measured ----------------------------------------------------------------------------------------------------


def _hops(found: Found) -> Iterable[str]:
    yield "## driftline, hop by hop"
    yield ""
    yield "Effectively once, with state in the store. Each service alone, on a topic that is full before it starts."
    yield ""
    yield "| service | client | goal | broker | store | events a second |"
    yield "|---|---|---|---|---|---|"
    for service, goal in GOALS.items():
        cells = [_median(found, "driftline", service, _us(party)) for party in ("client", *SERVERS)]
        rate = _median(found, "driftline", service, lambda one: float(one["rate"]))
        if cells[0] is not None and rate is not None:
            client, broker, store = (f"{cell:.1f}" if cell is not None else "" for cell in cells)
            yield f"| {service} | {client} | {goal} | {broker} | {store} | {rate:,.0f} |"
    yield ""
    yield "## Beside the peers"
    yield ""
    yield f"The same work on the same {found['events']:,} payments, each peer as its own documentation advises and with its best settings"
    yield (
        "(`benchmarks/peers/`; the slow ones do a part of them). Client alone. driftline's hops need its intake, "
        "which checks and orders what"
    )
    yield "the peers' feature hop decodes and checks."
    yield ""
    yield "![client CPU of each system at each hop](performance/hops.svg)"
    yield ""
    yield "| | echo hop | feature hop | score hop |"
    yield "|---|---|---|---|"
    for system in sorted(_systems(found), key=lambda name: name != "driftline"):
        yield f"| {system} | {' | '.join(_cell(found, system, hop) for hop in ('echo', 'feature', 'score'))} |"


def _parts(found: Found) -> Iterable[str]:
    yield "## Where the time of a hop goes"
    yield ""
    yield (
        "Each part alone on the same topics, one after the other in one process: their sum is the floor. The rest is the loop around them:"
    )
    yield "asyncio, metrics, and what is cold in the caches when its turn comes."
    yield ""
    yield "![the parts of each hop beside the whole](performance/parts.svg)"
    yield ""
    names = list(dict.fromkeys(name for one in found["parts"].values() for name in one["parts"]))
    yield f"| service | {' | '.join(names)} | sum | whole |"
    yield "|---" * (len(names) + 3) + "|"
    for service, one in found["parts"].items():
        cells = [f"{one['parts'][name]:.2f}" if name in one["parts"] else "" for name in names]
        yield f"| {service} | {' | '.join(cells)} | {sum(one['parts'].values()):.2f} | {one['whole']:.2f} |"


def _loops(found: Found) -> Iterable[str]:
    loops = found["loops"]
    parties = list(loops[0]["us"])
    medians = {party: statistics.median(one["us"][party] for one in loops) for party in parties}
    yield "## The whole loop"
    yield ""
    yield (
        f"Flights, {loops[0]['messages']:,} upstream messages at once, two partitions, seven processes on the same "
        "cores: µs an upstream message."
    )
    yield ""
    yield f"| {' | '.join(parties)} |"
    yield "|---" * len(parties) + "|"
    yield f"| {' | '.join(f'{medians[party]:.1f}' for party in parties)} |"


def _latency(found: Found) -> Iterable[str]:
    one = found["latency"]
    yield "## From event to prediction"
    yield ""
    yield (
        "Live: a record is produced upstream, passes intake, feature and inference, and is read from the "
        "predictions; beside it an echo of three raw"
    )
    yield (
        "hops of aiokafka, in the same run, at the same rate. There is nothing to tune: a batch is what has "
        "arrived, up to the limit. Highest rates:"
    )
    yield f"{', '.join(f'{name} {rate:,} a second' for name, rate in one['highest'].items())}."
    yield ""
    yield "![latency and batch size by rate](performance/latency.svg)"
    yield ""
    yield (
        "| a second | driftline p50 | p99, ms | echo p50 | p99, ms | records of a batch: intake's log, feature, "
        "inference | CPU, µs an event |"
    )
    yield "|---|---|---|---|---|---|---|"
    for rate, ours, echo in _by_rate(one["runs"]):
        sizes = {name: statistics.median(run["batch"][name] for run in ours) for name in ours[0]["batch"]}
        cpu = statistics.median(sum(us for name, us in run["cpu_us"].items() if name not in SERVERS) for run in ours)
        cells = [f"{statistics.median(run[which] for run in runs):.1f}" for runs in (ours, echo) for which in ("p50_ms", "p99_ms")]
        yield f"| {rate:,} | {' | '.join(cells)} | {', '.join(f'{size:,.1f}' for size in sizes.values())} | {cpu:.1f} |"


def _by_rate(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[Mapping[str, Any]], list[Mapping[str, Any]]]]:
    """Runs of driftline and of the echo by offered rate, lowest first."""
    for rate in sorted({run["rate"] for run in runs}):
        mine = [run for run in runs if run["rate"] == rate]
        ours, echo = ([run for run in mine if (run["chain"] == "driftline") == wanted] for wanted in (True, False))
        yield rate, ours, echo


def _ledger(found: Found) -> Iterable[str]:
    one = found["ledger"]
    yield "## What effectively once costs"
    yield ""
    yield f"The feature hop as it is, {one['medians']['on']:.2f} µs, and with rows written without ledger, comparison and transaction,"
    yield f"{one['medians']['off']:.2f} µs: {one['ratio']:.2f} times. The switch is the benchmark's alone."


def _reads(found: Found) -> Iterable[str]:
    one = found["reads"]
    yield "## Online reads"
    yield ""
    yield (
        f"{one['cards']:,} entities of a view of {one['features']} features after {one['payments']:,} payments. A "
        "read is one `MGET`, and one call of"
    )
    yield f"the fold's own evaluation as of now; {one['checked']:,} were compared with what the fold itself answers. µs a read:"
    yield ""
    yield "| entities | features p50 | p99 | CPU | MGET p50 | p99 | CPU | MGET by redis-py p50 |"
    yield "|---|---|---|---|---|---|---|---|"
    for size, ways in one["reads_us"].items():
        cells = [f"{ways[way][which]:.0f}" for way in ("features", "MGET") for which in ("p50", "p99", "cpu")]
        yield f"| {size} | {' | '.join(cells)} | {ways['MGET by redis-py']['p50']:.0f} |"
    yield ""
    row = one["rows"]["card"]
    yield (
        f"In the store an entity's row has {row['value']:.0f} bytes and its key {row['key']:.0f}: "
        f"{one['bytes_a_feature']:.1f} bytes a feature. Valkey itself uses"
    )
    yield f"{one['used_memory_a_card']:,} bytes for an entity, its memory of ids and its own bookkeeping included."


def _growth(found: Found) -> Iterable[str]:
    one = found["growth"]
    yield "## Growth"
    yield ""
    yield (
        f"The fold with its loads and commits, in one process; a worker keeps up to {one['entities_max']:,} "
        "entities and asks again for what it dropped."
    )
    yield ""
    yield "![CPU by number of entities](performance/growth.svg)"
    yield ""
    yield "| entities | CPU, µs an event | store, µs | loads an event | worker, MiB | store, MiB |"
    yield "|---|---|---|---|---|---|"
    for each in one["entities"]:
        cells = f"{each['us']:.1f} | {each['store_us']:.1f} | {each['loads']:.2f} | {each['memory_mib']:,} | {each['store_mib']:,}"
        yield f"| {each['cards']:,} | {cells} |"
    if one["workers"]:
        yield ""
        yield "| processes, two partitions | events a second | client | broker | store |"
        yield "|---|---|---|---|---|"
        for each in one["workers"]:
            yield (
                f"| {each['processes']} | {each['rate']:,} | {each['us']['client']:.1f} | {each['us']['broker']:.1f} | "
                f"{each['us']['store']:.1f} |"
            )


def _backfill(found: Found) -> Iterable[str]:
    one = found["backfill"]
    yield "## Backfill"
    yield ""
    yield (
        f"`driftline backfill` of {one['events']:,} payments from Parquet on one core: {one['rate']:,.0f} a "
        f"second, {one['cpu_us']:.2f} µs of processor time"
    )
    yield f"an event, {one['memory_mib']:,.0f} MiB at most; its rows are those of the plain program, byte for byte. Start-up is left out."


def _idle(found: Found) -> Iterable[str]:
    one = found["idle"]
    yield "## At rest"
    yield ""
    yield (
        f"The flights pipeline live, milliseconds of processor time a second: with nothing to do, and at {one['rate']} questions a second."
    )
    yield ""
    names = list(one["ms_a_second"]["idle"])
    yield f"| | {' | '.join(names)} | services |"
    yield "|---" * (len(names) + 2) + "|"
    for state, words in (("idle", "idle"), ("asked", f"{one['rate']} a second")):
        cells = [f"{one['ms_a_second'][state][name]:.1f}" for name in names]
        yield f"| {words} | {' | '.join(cells)} | {one['services'][state]:.1f} |"


def _starts(found: Found) -> Iterable[str]:
    one = found["starts"]
    yield "## Start and memory"
    yield ""
    yield (
        f"From exec to ready, median of {one['rounds']}; memory in MiB (PSS: what is shared counts in shares) of "
        "keeper, worker and what they started."
    )
    yield ""
    yield "| service | ready, s | at rest | under load |"
    yield "|---|---|---|---|"
    for service, ready in one["ready_s"].items():
        cells = [f"{sum(process['pss'] for process in state[service].values()):.0f}" for state in one["memory_mib"].values()]
        yield f"| {service} | {ready:.2f} | {' | '.join(cells)} |"


SECTIONS: dict[str, Callable[[Found], Iterable[str]]] = {
    "hops": _hops,
    "parts": _parts,
    "loops": _loops,
    "latency": _latency,
    "ledger": _ledger,
    "reads": _reads,
    "growth": _growth,
    "backfill": _backfill,
    "idle": _idle,
    "starts": _starts,
}

# ---- figures --------------------------------------------------------------------------------------------------------------


def _systems(found: Found) -> list[str]:
    return list(dict.fromkeys(one["system"] for one in found.get("hops", ())))


def _median(found: Found, system: str, hop: str, of: Callable[[Mapping[str, Any]], float]) -> float | None:
    hops = [one["hops"][hop] for one in found.get("hops", ()) if one["system"] == system and hop in one["hops"]]
    figures = [of(one) for one in hops if "failed" not in one]
    return statistics.median(figures) if figures else None


def _us(party: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda one: float(one["us"][party])


def _cell(found: Found, system: str, hop: str) -> str:
    if system == "driftline":
        hop = next((service for service, one in HOP_OF.items() if one == hop), hop)
    figure = _median(found, system, hop, _us("client"))
    return "" if figure is None else f"{figure:.1f}"
