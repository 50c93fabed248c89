"""
`make simulate`: runs of many seeds on two processes, then every mutant until it is caught; docs/simulation.md is written from it.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .mutants import MUTANTS, Mutant
from .simulation import TOPOLOGIES, Run, simulate
from .world import PROGRESS_S, installed

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"
PROCESSES = 2
CHUNK = 250
COLLECT_EVERY = 10  # seeds; what was there before the first is frozen, so a collection walks over these alone
MUTANT_SEEDS_MAX = 2_000
SHOWN_MAX = 20
CELL_MAX = 140


@dataclass
class Tally:
    """What a stretch of seeds came to."""

    runs: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    faults: int = 0
    violated: list[Run] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.runs += other.runs
        self.seconds += other.seconds
        self.requests += other.requests
        self.faults += other.faults
        self.violated += other.violated


def stretch(seeds: range) -> Tally:
    """Run these seeds here."""
    tally = Tally()
    _collect_seldom()
    with installed():
        for seed in seeds:
            began = time.process_time()
            run = simulate(seed)
            tally.runs[run.topology] += 1
            tally.seconds[run.topology] += time.process_time() - began
            tally.requests += run.requests
            tally.faults += run.faults
            if run.violations:
                tally.violated.append(run)
            if seed % COLLECT_EVERY == 0:
                gc.collect()
    return tally


def _collect_seldom() -> None:
    """Garbage is collected between runs, where it costs least."""
    gc.disable()
    gc.collect()
    gc.freeze()


def caught(mutant: Mutant, first: int = 1, most: int = MUTANT_SEEDS_MAX) -> Run | None:
    """The first seed whose checks notice the break; None when none of so many does."""
    _collect_seldom()
    with mutant.applied():
        for seed in range(first, first + most):
            run = simulate(seed, only=mutant.only)
            if run.violations:
                return run
            if seed % COLLECT_EVERY == 0:
                gc.collect()
    return None


def _hunt(name: str) -> tuple[str, Run | None]:
    return name, caught(next(mutant for mutant in MUTANTS if mutant.name == name))


def progress(console: Console) -> Progress:
    """A bar that says how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def run_seeds(console: Console, first: int, n: int) -> Tally:
    """All seeds, on all processes."""
    chunks = [range(at, min(at + CHUNK, first + n)) for at in range(first, first + n, CHUNK)]
    total = Tally()
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool, progress(console) as bar:
        task = bar.add_task("seeds", total=n)
        for tally in pool.imap_unordered(stretch, chunks):
            total.add(tally)
            bar.update(task, completed=sum(total.runs.values()), description=f"seeds, {len(total.violated)} violated")
    total.violated.sort()
    return total


def hunt(console: Console, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, Run | None]]:
    """Each mutant with the run that caught it, in the order of the list."""
    found: dict[str, Run | None] = {}
    with multiprocessing.get_context("fork").Pool(PROCESSES, maxtasksperchild=1) as pool, progress(console) as bar:
        task = bar.add_task("mutants", total=len(mutants))
        for name, run in pool.imap_unordered(_hunt, [mutant.name for mutant in mutants]):
            found[name] = run
            if not console.is_terminal:
                console.print(f"{name}: {f'seed {run.seed}' if run else 'SURVIVED'}")
            bar.update(task, advance=1, description=f"mutants, {sum(one is None for one in found.values())} survived")
    yield from ((mutant, found[mutant.name]) for mutant in mutants)


def tell(console: Console, total: Tally, wall_s: float) -> None:
    """The table of topologies, and what was violated."""
    table = Table("topology", "runs", "ms of CPU each")
    for name in TOPOLOGIES:
        if total.runs[name]:
            table.add_row(name, f"{total.runs[name]:,}", f"{1000 * total.seconds[name] / total.runs[name]:.1f}")
    console.print(table)
    n, cpu = sum(total.runs.values()), sum(total.seconds.values())
    console.print(
        f"{n:,} seeds, {len(total.violated)} violated; {total.requests:,} requests, {total.faults:,} faults; "
        f"{wall_s:,.0f} s on {PROCESSES} processes, {1000 * cpu / max(1, n):.1f} ms of CPU a seed"
    )
    for run in total.violated[:SHOWN_MAX]:
        console.print(f"seed {run.seed} ({run.topology}): {'; '.join(run.violations)}", highlight=False)
        console.print(f"  make simulate FIRST={run.seed} SEEDS=1 ARGS=-v", highlight=False)


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--only", default="", help="topologies whose name contains this")
    parser.add_argument("--mutants", default=None, help="the mutants whose name contains this, and no seeds")
    parser.add_argument("-v", "--verbose", action="store_true", help="the trace of every seed, one after the other")
    return parser.parse_args()


def traced(asked: argparse.Namespace) -> int:
    """A few seeds here, each with its trace."""
    violated = 0
    with installed():
        for seed in range(asked.first, asked.first + asked.seeds):
            violated += bool(simulate(seed, lambda line: print(line, flush=True), asked.only).violations)
    return violated


def main() -> int:
    """Exit status 1 when anything was violated, or a mutant survived."""
    asked, console = arguments(), Console()
    if asked.verbose or asked.only:
        return min(1, traced(asked))
    total, wall_s = Tally(), 0.0
    if asked.mutants is None:
        began = time.monotonic()
        total = run_seeds(console, asked.first, asked.seeds)
        wall_s = time.monotonic() - began
        tell(console, total, wall_s)
        if asked.seeds == 1:
            return min(1, len(total.violated))
    wanted = [mutant for mutant in MUTANTS if (asked.mutants or "") in mutant.name]
    results = list(hunt(console, wanted))
    table = Table("mutant", "seed", "topology", "violated")
    for mutant, run in results:
        table.add_row(mutant.name, str(run.seed) if run else "SURVIVED", run.topology if run else "", run.violations[0] if run else "")
    console.print(table)
    survived = [mutant.name for mutant, run in results if run is None]
    if asked.mutants is None and not survived and not total.violated:
        PAGE.write_text(page(asked, total, wall_s, results))
    return min(1, len(total.violated) + len(survived))


HEAD = """# The simulator

Written by `make simulate`; do not edit. `tests/simulation/` drives driftline's own processes, built by `services.<name>.app.build`,
through a simulated Kafka, a simulated Redis and a clock that is a number: workers, sources, sinks, the ledger's compare-and-set, cores,
codecs and dead letters are the real ones. One seed draws the arrangement, the records, and what goes wrong: processes die before,
during and after any request, are stopped and go on, are replaced while they live; requests and replies are lost, late, or never
answered; batches fail, expire although they were written, or are written although they were given up; Redis refuses, or comes back
with an older prefix of its append-only file; brokers go away; consumers go deaf; records come twice, out of order, late, broken, or kill
who reads them; definitions, row formats, partition counts and logs change underfoot.

What must hold in the end is checked against `tests/simulation/oracle.py`, a plain sequential program that shares no code with `libs`
or `services`: first copies equal the oracle's, in order, for each destination; copies of one message are the same bytes (of intake's
ticks the deployment may be another); ledger, `seen`, anchor and rows are those of a replay of the log in other batches; every tick comes
once; everything refused is in the dead letters with its reason, and nothing else is; what was read is accounted for; everybody catches
up within {progress:.0f} s of virtual time once the faults have stopped; what must not go on is refused, and the refusal names the command
that helps.

| | |
|---|---|
| one seed again, with its trace | `make simulate FIRST=4711 SEEDS=1 ARGS=-v` |
| one arrangement alone | `make simulate SEEDS=200 ARGS="--only join"` |
| some mutants alone | `make simulate ARGS="--mutants ack"` |

What it cannot show: what a real broker or store does that the simulated one does not. Waits of the clients are shortened alike (a request
that takes 30 s to fail takes 3), and a process is not killed by chance once a record is close to being taken for one that kills.

## Seeds

`make simulate SEEDS={n} FIRST={first}`: **{n:,} seeds, {violated} violations**; {requests:,} requests, {faults:,} faults;
{wall:,.0f} s on {processes} processes ({machine}), {cpu:.1f} ms of CPU a seed.

| arrangement | runs | ms of CPU each |
|---|---|---|
{topologies}

## Mutants

{count} deliberate breaks of a line or two (`tests/simulation/mutants.py`), each applied in memory and run, from seed 1, until a check
notices. All are noticed within {most:,} seeds; `make test` tries each again from the seed below on, and one change that breaks nothing,
which has to pass.

| mutant | what it breaks | caught by seed | in | violated |
|---|---|---|---|---|
{mutants}
"""


def page(asked: argparse.Namespace, total: Tally, wall_s: float, results: Sequence[tuple[Mutant, Run | None]]) -> str:
    """docs/simulation.md."""
    n = sum(total.runs.values())
    rows = [
        f"| {name} | {total.runs[name]:,} | {1000 * total.seconds[name] / total.runs[name]:.1f} |"
        for name in TOPOLOGIES
        if total.runs[name]
    ]
    table = [
        f"| {mutant.name} | {mutant.words} | {run.seed} | {run.topology} | {_cell(run.violations[0])} |" for mutant, run in results if run
    ]
    return HEAD.format(
        progress=PROGRESS_S,
        n=n,
        first=asked.first,
        violated=len(total.violated),
        requests=total.requests,
        faults=total.faults,
        wall=wall_s,
        processes=PROCESSES,
        machine=f"Python {platform.python_version()}, {os.cpu_count()} cores",
        cpu=1000 * sum(total.seconds.values()) / max(1, n),
        topologies="\n".join(rows),
        count=len(results),
        most=MUTANT_SEEDS_MAX,
        mutants="\n".join(table),
    )


def _cell(text: str) -> str:
    """What fits into a table: the beginning, without the bytes of rows."""
    words = re.sub(r"b'[^']*'|b\"[^\"]*\"", "bytes", text).replace("|", "/")
    return words if len(words) <= CELL_MAX else words[:CELL_MAX].rsplit(" ", 1)[0] + " …"


if __name__ == "__main__":
    sys.exit(main())
