"""
`driftline backfill` over Parquet, as anybody would run it, on one core. Start-up is left out: what counts is by how much a long file takes
longer than a short one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from .hops import Differs
from .meter import US
from .payments import PIPELINES, Payments, payments_of, pipeline

EVENTS = 4_000_000
SHORT = 0.1
ROUNDS = 3
LOOK_EVERY_S = 0.01


@dataclass(frozen=True)
class Run:
    """One command: how long it took, its processor time, and the most memory that it had."""

    seconds: float
    cpu_s: float
    memory_mib: float


def write(payments: Payments, to: Path) -> None:
    """The payments as a file that somebody may have of them."""
    cards = pl.Series(payments.keys).cast(pl.String)
    times = pl.Series(payments.times).cast(pl.Datetime("ms", "UTC"))
    pl.DataFrame({"payment_id": payments.ids(), "card": cards, "at": times, "amount": payments.amounts}).write_parquet(to)


def run(source: Path, out: Path) -> Run:
    """The command in a process of its own, on one core where the system can hold it there."""
    command = [sys.executable, "-m", "driftline", "backfill", "payments", "--out", str(out)]
    command += ["--file", f"payments-upstream={source}"]
    environment = {**os.environ, "DRIFTLINE_PIPELINES": str(PIPELINES), "POLARS_MAX_THREADS": "1"}
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    began = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
        if core is not None:
            os.sched_setaffinity(child.pid, {core})
        most, ended = 0, 0
        while not ended:
            ended, status, used = os.wait4(child.pid, os.WNOHANG)
            with contextlib.suppress(psutil.NoSuchProcess):
                most = max(most, psutil.Process(child.pid).memory_info().rss)
            time.sleep(LOOK_EVERY_S)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise Differs(f"driftline backfill ended with {child.returncode}")
    return Run(time.monotonic() - began, used.ru_utime + used.ru_stime, round(most / 2**20, 1))


def check(out: Path, payments: Payments) -> None:
    """Every payment's row, as the plain program has it. Raises Differs."""
    found = pl.read_parquet(out / "*.parquet").sort("id")
    octets = np.frombuffer(b"".join(found["row"].to_list()), "<f4").reshape(len(found), -1)
    if found["id"].to_list() != payments.ids() or not np.array_equal(octets[:, : len(pipeline().layout.names)], payments.rows):
        raise Differs(f"{len(found)} rows of {payments.n} payments, or not what they should be")


def measure(events: int = EVENTS) -> dict[str, Any]:
    """Raw figures of each round, and from their medians the rate, events a second, and `cpu_us` of an event."""
    short = payments_of(int(SHORT * events))
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(payments_of(events), folder / "long.parquet")
        write(short, folder / "short.parquet")
        for number in range(ROUNDS):
            runs = {which: run(folder / f"{which}.parquet", folder / f"{which}-{number}") for which in ("short", "long")}
            rounds.append({which: vars(one) for which, one in runs.items()})
        check(folder / "short-0", short)
        check(folder / "long-0", payments_of(events))
    more = events - short.n
    seconds, cpu_s = (float(np.median([one["long"][which] - one["short"][which] for one in rounds])) for which in ("seconds", "cpu_s"))
    memory = max(one["long"]["memory_mib"] for one in rounds)
    return {"events": events, "rounds": rounds, "rate": round(more / seconds), "cpu_us": round(US * cpu_s / more, 3), "memory_mib": memory}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS), indent=1))
