"""
Where the processor time goes that no sum of parts explains: the payments pipeline live, its workers watched by a sampling profiler at a
low rate and at half load, where batches are small and where they are large; and what a service imports before it is ready.

    python -m benchmarks.performance.profiles --py-spy .venv-peers/bin/py-spy

py-spy comes with the peers. It has to be allowed to look at other processes (root, or kernel.yama.ptrace_scope 0).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from driftline.errors import DriftlineError
from driftline.local.child import Child

from .hops import benched
from .latency import Driver, start_pipeline
from .payments import MODEL_ROWS

LOW = 200  # a second
SECONDS = 10.0
SAMPLES_A_SECOND = 100
WARM_S = 3.0
BACKLOG = 200_000
IMPORTS_LEAST_MS = 20.0

# What is being done, told by the innermost frame that matches: a part of "function (file)". The first line that fits a frame counts.
WORK: Mapping[str, Sequence[str]] = {
    "sockets": ("SocketTransport.write", "SocketTransport._write", "SocketTransport._read"),
    "ONNX": ("(onnxruntime/",),
    "metrics": ("(prometheus_client/",),
    "store": ("(driftline/stream/store.py", "(driftline/stream/ledger.py"),
    "decode": ("sifted (", "Decoder.decode (", "Parser.parse ("),
    "encode": ("Encoder.values (",),
    "think": ("(services/intake/core.py", "(services/feature/core.py", "(services/inference/core.py", "Rows.of ("),
    "fetch": ("(aiokafka/consumer/", "(driftline/stream/fetched.py"),
    "send": ("(aiokafka/producer/", "(driftline/stream/record_batches.py", "Sink.", "Outlet."),
    "our loop": ("(driftline/stream/", "(services/"),
    "connections": ("(aiokafka/",),
    "event loop": ("(asyncio/",),
}
WAITING = "(selectors.py"  # innermost: nothing is being done


class Unwatched(DriftlineError):
    """The profiler could not look."""


def work_of(stack: Sequence[str]) -> str:
    """Of one sample, outermost frame first: the name in WORK of the innermost frame that has one."""
    for frame in reversed(stack):
        for name, marks in WORK.items():
            if any(mark in frame for mark in marks):
                return name
    return "rest"


def shares(raw: str) -> dict[str, float]:
    """Of py-spy's raw samples, "frame;frame;frame count" a line: the share of each kind of work, largest first."""
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if WAITING not in frames[-1]:
            counts[work_of(frames)] += int(count)
    return {name: round(count / counts.total(), 4) for name, count in counts.most_common()}


async def watched(py_spy: str, children: Mapping[str, Child], seconds: float) -> dict[str, dict[str, float]]:
    """The shares of the workers of some services, all at once. Raises Unwatched."""
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: await asyncio.create_subprocess_exec(
                *(py_spy, "record", "--nonblocking", "--format", "raw", "--rate", str(SAMPLES_A_SECOND), "--duration", f"{seconds:.0f}"),
                *("--pid", str(worker_of(child).pid), "--output", f"{folder}/{name}"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for name, child in children.items()
        }
        for name, process in running.items():
            _, said = await process.communicate()
            if process.returncode:
                raise Unwatched(f"{name} could not be watched: {said.decode().strip().splitlines()[-1]}")
        return {name: shares((Path(folder) / name).read_text()) for name in children}


def worker_of(child: Child) -> psutil.Process:
    """The process that a keeper has forked."""
    return psutil.Process(child.pid).children()[0]


async def at_rate(driver: Driver, chain: Any, py_spy: str, rate: float, seconds: float) -> dict[str, Any]:
    """Processor time of each service an event at `rate`, measured unwatched, and then what it goes into."""
    run = await driver.drive(chain, rate, seconds)
    driving = asyncio.create_task(driver.drive(chain, rate, seconds + 2 * WARM_S))
    await asyncio.sleep(WARM_S)
    found = await watched(py_spy, chain.children, seconds)
    await driving
    return {"rate": round(rate), "us": {name: run["cpu_us"][name] for name in chain.children}, "batch": run["batch"], "work": found}


def imports_of(service: str) -> dict[str, float]:
    """Milliseconds of processor time by package that a service imports, its own without what others it imports take; largest first."""
    command = [sys.executable, "-X", "importtime", "-c", f"import driftline.cli, services.{service}.app"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spent: Counter[str] = Counter()
    for package, us in _imported(told):
        spent[package] += us
    return {package: round(us / 1e3, 1) for package, us in spent.most_common() if us >= 1e3 * IMPORTS_LEAST_MS}


def _imported(told: str) -> Iterator[tuple[str, int]]:
    for line in told.splitlines():
        own, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        if own.isdigit():
            yield name.split(".")[0], int(own)


async def measure(py_spy: str, seconds: float = SECONDS) -> dict[str, Any]:
    """Raw figures: `loads`, a low rate and half load, and `imports` of two services."""
    async with benched(MODEL_ROWS, sys.executable) as bench:
        chain, schema_id = await start_pipeline(bench)
        driver = Driver(bench, schema_id)
        await driver.drive(chain, 1_000, WARM_S)
        half = await driver.backlog(chain, BACKLOG) / 2
        loads = [await at_rate(driver, chain, py_spy, rate, seconds) for rate in (LOW, half)]
    return {"seconds": seconds, "loads": loads, "imports_ms": {service: imports_of(service) for service in ("feature", "inference")}}


def main() -> None:
    """Measure and print everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--py-spy", required=True, metavar="PATH")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(measure(asked.py_spy, asked.seconds)), indent=1))


if __name__ == "__main__":
    main()
