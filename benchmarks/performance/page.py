"""
docs/performance.md from the figures that `make bench` left: what is promised, what was measured, and where the rest of the time goes.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .goals import GOALS, HOP_OF, JUDGES, NEXT, SERVERS, Found, median, systems, us_of

LINE = 140
HEAD = """# Performance

Written by `make bench`; do not edit. Processor time of the client's processes per event, in microseconds, median of the rounds; start-up is
left out for everybody alike, and no time counts before all outputs were compared with those of a plain sequential program. Broker
and store are other processes, and are told apart. Every raw figure is in
[benchmarks/results/performance.json](../benchmarks/results/performance.json).
"""


def write_page(found: Found, to: Path) -> None:
    """The whole page: a section for whatever was measured."""
    lines = [HEAD, *_about(found), *_goals(found)]
    for name, section in SECTIONS.items():
        if found.get(name):
            lines += ["", *section(found)]
    lines += _next(found)
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


def _goals(found: Found) -> Iterable[str]:
    told = [one for judge in JUDGES for one in judge(found)]
    rows = ([one.number, one.measure, one.goal, one.figure, "yes" if one.met else "no"] for one in told)
    yield from _table(("", "measure", "goal", "found", "met"), rows)


# ---- what was measured ----------------------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """An empty line, and a table."""
    yield ""
    yield _line(heads)
    yield "|---" * len(heads) + "|"
    yield from map(_line, rows)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _section(title: str, words: str, plot: str = "") -> Iterator[str]:
    """Its head, what it is about, and its plot where it has one."""
    yield f"## {title}"
    yield ""
    yield from textwrap.wrap(words, LINE)
    if plot:
        yield ""
        yield plot


def _hops(found: Found) -> Iterable[str]:
    words = "Effectively once, with state in the store. Each service alone, on a topic that is full before it starts."
    yield from _section("driftline, hop by hop", words)
    yield from _table(("service", "client", "goal", *SERVERS, "events a second"), _services(found))
    yield ""
    words = (
        f"The same work on the same {found['events']:,} payments, each peer as its own documentation advises and with its best settings "
        "(`benchmarks/peers/`; the slow ones do a part of them). Client alone. driftline's hops need its intake, which checks and orders "
        "what the peers' feature hop decodes and checks."
    )
    yield from _section("Beside the peers", words, "![client CPU of each system at each hop](performance/hops.svg)")
    everybody = sorted(systems(found), key=lambda name: name != "driftline")
    yield from _table(
        ("", "echo hop", "feature hop", "score hop"),
        ([system, *(_cell(found, system, hop) for hop in ("echo", "feature", "score"))] for system in everybody),
    )


def _cell(found: Found, system: str, hop: str) -> str:
    if system == "driftline":
        hop = next((service for service, one in HOP_OF.items() if one == hop), hop)
    figure = median(found, system, hop, us_of("client"))
    return "" if figure is None else f"{figure:.1f}"


def _services(found: Found) -> Iterator[Sequence[str]]:
    for service, goal in GOALS.items():
        client, *servers = [median(found, "driftline", service, us_of(party)) for party in ("client", *SERVERS)]
        rate = median(found, "driftline", service, lambda one: float(one["rate"]))
        if client is not None and rate is not None:
            yield service, f"{client:.1f}", str(goal), *("" if us is None else f"{us:.1f}" for us in servers), f"{rate:,.0f}"


def _parts(found: Found) -> Iterable[str]:
    words = (
        "Each part alone on the same topics, one after the other in one process: their sum is the floor. The rest is the loop around them: "
        "asyncio, metrics, and what is cold in the caches when its turn comes."
    )
    yield from _section("Where the time of a hop goes", words, "![the parts of each hop beside the whole](performance/parts.svg)")
    names = list(dict.fromkeys(name for one in found["parts"].values() for name in one["parts"]))
    rows = []
    for service, one in found["parts"].items():
        cells = [f"{one['parts'][name]:.2f}" if name in one["parts"] else "" for name in names]
        rows.append([service, *cells, f"{sum(one['parts'].values()):.2f}", f"{one['whole']:.2f}"])
    yield from _table(["service", *names, "sum", "whole"], rows)


def _loops(found: Found) -> Iterable[str]:
    loops = found["loops"]
    words = (
        f"Flights, {loops[0]['messages']:,} upstream messages at once, two partitions, seven processes on the same cores: µs an upstream "
        "message."
    )
    yield from _section("The whole loop", words)
    parties = list(loops[0]["us"])
    yield from _table(parties, [[f"{statistics.median(one['us'][party] for one in loops):.1f}" for party in parties]])


def _latency(found: Found) -> Iterable[str]:
    one = found["latency"]
    highest = ", ".join(f"{name} {rate:,} a second" for name, rate in one["highest"].items())
    words = (
        "Live: a record is produced upstream, passes intake, feature and inference, and is read from the predictions; beside it an echo of "
        "three raw hops of aiokafka, in the same run, at the same rate. There is nothing to tune: a batch is what has arrived, up to the "
        f"limit, and intake begins its rounds at least 10 ms apart (decision 0021). Highest rates: {highest}."
    )
    yield from _section("From event to prediction", words, "![latency and batch size by rate](performance/latency.svg)")
    names = list(one["runs"][0]["batch"])
    rows = []
    for rate, ours, echo in _by_rate(one["runs"]):
        times = [f"{statistics.median(run[which] for run in runs):.1f}" for runs in (ours, echo) for which in ("p50_ms", "p99_ms")]
        sizes = [f"{statistics.median(run['batch'][name] for run in ours):,.1f}" for name in names]
        cpu = statistics.median(sum(us for name, us in run["cpu_us"].items() if name not in SERVERS) for run in ours)
        rows.append([f"{rate:,}", *times, *sizes, f"{cpu:.1f}"])
    heads = ["a second", "driftline p50", "p99, ms", "echo p50", "p99, ms", *(f"records of a batch, {name}" for name in names)]
    yield from _table([*heads, "CPU, µs an event"], rows)


def _by_rate(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[Mapping[str, Any]], list[Mapping[str, Any]]]]:
    """Runs of driftline and of the echo by offered rate, lowest first."""
    for rate in sorted({run["rate"] for run in runs}):
        mine = [run for run in runs if run["rate"] == rate]
        ours, echo = ([run for run in mine if (run["chain"] == "driftline") == wanted] for wanted in (True, False))
        yield rate, ours, echo


def _ledger(found: Found) -> Iterable[str]:
    one = found["ledger"]
    yield from _section(
        "What effectively once costs",
        f"The feature hop as it is, {one['medians']['on']:.2f} µs, and with rows written without ledger, comparison and transaction, "
        f"{one['medians']['off']:.2f} µs: {one['ratio']:.2f} times. The switch is the benchmark's alone.",
    )


def _reads(found: Found) -> Iterable[str]:
    one = found["reads"]
    row = one["rows"]["card"]
    words = (
        f"{one['cards']:,} entities of a view of {one['features']} features after {one['payments']:,} payments. In the store an entity's "
        f"row has {row['value']:.0f} bytes and its key {row['key']:.0f}: {one['bytes_a_feature']:.1f} bytes a feature. Valkey itself uses "
        f"{one['used_memory_a_card']:,} bytes for an entity, its memory of ids and its own bookkeeping included. A read is one `MGET`, and "
        f"one call of the fold's own evaluation as of now; {one['checked']:,} were compared with what the fold itself answers. µs a read:"
    )
    yield from _section("Online reads", words)
    rows = []
    for size, ways in one["reads_us"].items():
        cells = [f"{ways[way][which]:.0f}" for way in ("features", "MGET") for which in ("p50", "p99", "cpu")]
        rows.append([size, *cells, f"{ways['MGET by redis-py']['p50']:.0f}"])
    yield from _table(("entities", "features p50", "p99", "CPU", "MGET p50", "p99", "CPU", "MGET by redis-py p50"), rows)


def _growth(found: Found) -> Iterable[str]:
    one = found["growth"]
    words = (
        "The fold with its loads and commits, in one process. A worker keeps as many entities as it is told, and asks for them again when "
        "it has dropped them; a card is two, one of them the memory of its ids."
    )
    yield from _section("Growth", words, "![CPU by number of entities](performance/growth.svg)")
    heads = ("cards", "kept at most", "CPU, µs an event", "store, µs", "loads an event", "worker, MiB", "store, MiB")
    ways = {"cards": ",", "entities_max": ",", "us": ".1f", "store_us": ".1f", "loads": ".2f", "memory_mib": ",", "store_mib": ","}
    yield from _table(heads, ([format(each[name], way) for name, way in ways.items()] for each in one["entities"]))
    if one["workers"]:
        parties = ("client", *SERVERS)
        yield from _table(
            ("processes, two partitions", "events a second", *parties),
            ([str(each["processes"]), f"{each['rate']:,}", *(f"{each['us'][party]:.1f}" for party in parties)] for each in one["workers"]),
        )


def _backfill(found: Found) -> Iterable[str]:
    one = found["backfill"]
    yield from _section(
        "Backfill",
        f"`driftline backfill` of {one['events']:,} payments from Parquet on one core: {one['rate']:,.0f} a second, {one['cpu_us']:.2f} µs "
        f"of processor time an event, {one['memory_mib']:,.0f} MiB at most; its rows are those of the plain program, byte for byte. "
        "Start-up is left out.",
    )


def _idle(found: Found) -> Iterable[str]:
    one = found["idle"]
    states = {"idle": "nothing to do", "asked": f"{one['rate']} questions a second"}
    yield from _section("At rest", f"The flights pipeline live, milliseconds of processor time a second: {' and '.join(states.values())}.")
    names = list(one["ms_a_second"]["idle"])
    yield from _table(
        ["", *names, "services"],
        (
            [words, *(f"{one['ms_a_second'][state][name]:.1f}" for name in names), f"{one['services'][state]:.1f}"]
            for state, words in states.items()
        ),
    )


def _starts(found: Found) -> Iterable[str]:
    one = found["starts"]
    words = (
        f"From exec to ready, median of {one['rounds']}; memory in MiB (PSS: what is shared counts in shares) of keeper, worker and what "
        "they started."
    )
    yield from _section("Start and memory", words)
    rows = []
    for service, told in one["medians"].items():
        cells = [f"{sum(process['pss'] for process in state[service].values()):.0f}" for state in one["memory_mib"].values()]
        rows.append([service, f"{told['ready_s']:.2f}", f"{told['cpu_s']:.2f}", *cells])
    yield from _table(("service", "ready, s", "processor time until then, s", *one["memory_mib"]), rows)


def _http(found: Found) -> Iterable[str]:
    one = found["http"]
    words = (
        "The gateway in front of the payments pipeline; the floor, the same topics without HTTP, published and awaited by the process that "
        "asks; and BentoML, which serves the same graph and is handed the features: no topics, no windows, nothing kept. "
        "Each connection asks again as soon as it is answered; CPU is that of all services behind the door, µs a request."
    )
    yield from _section("Over HTTP", words)
    rows = []
    for connections in dict.fromkeys(run["connections"] for run in one["runs"]):
        for way in dict.fromkeys(run["way"] for run in one["runs"]):
            mine = [run for run in one["runs"] if (run["way"], run["connections"]) == (way, connections)]
            rate, p50, p99 = (statistics.median(run[name] for run in mine) for name in ("rate", "p50_ms", "p99_ms"))
            cpu = statistics.median(sum(run["cpu_us"].values()) for run in mine)
            rows.append([str(connections), way, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{cpu:,.0f}"])
    yield from _table(("connections", "", "requests a second", "p50, ms", "p99, ms", "CPU, µs a request"), rows)


def _profiles(found: Found) -> Iterable[str]:
    one = found["profiles"]
    low, half = one["loads"]
    words = (
        f"The payments pipeline live, watched by a sampling profiler (py-spy, {one['seconds']:.0f} s each) at {low['rate']:,} records a "
        f"second and at half load, {half['rate']:,}. Sockets are the system calls that write and read; our loop is what stands around the "
        "parts: a batch taken, cut, counted, committed; connections are aiokafka's requests and answers. Share of a worker's time at work:"
    )
    yield from _section("Where the rest of the time goes", words)
    names = list(dict.fromkeys(name for load in one["loads"] for work in load["work"].values() for name in work))
    rows = []
    for load in one["loads"]:
        for service, work in load["work"].items():
            cells = [f"{100 * work.get(name, 0):.0f} %" for name in names]
            rows.append([f"{load['rate']:,}", service, f"{load['us'][service]:,.1f}", f"{load['batch'][service]:,.1f}", *cells])
    yield from _table(("a second", "service", "CPU, µs an event", "records of a batch", *names), rows)
    yield ""
    yield from textwrap.wrap(
        "What a service imports before it can begin, milliseconds by package (those it imports itself left out):", LINE
    )
    rows = [[service, ", ".join(f"{name} {ms:.0f}" for name, ms in spent.items())] for service, spent in one["imports_ms"].items()]
    yield from _table(("service", "imports, ms"), rows)


def _next(found: Found) -> Iterable[str]:
    """Of each goal that is missed, why, and what would be next."""
    missed = dict.fromkeys(one.number for judge in JUDGES for one in judge(found) if not one.met)
    if missed:
        yield ""
        yield from _section("What is missed, and what would be next", "As far as the tables above show it.")
        yield ""
        for number in missed:
            yield from textwrap.wrap(f"- **{number}**: {NEXT.get(number, 'not looked into yet.')}", LINE, subsequent_indent="  ")


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
    "http": _http,
    "profiles": _profiles,
}
