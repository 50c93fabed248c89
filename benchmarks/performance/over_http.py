"""
Scoring over HTTP at 1, 8 and 64 connections: the gateway in front of the payments pipeline, beside the floor (the same topics without
HTTP: published and awaited by this process) and beside BentoML, which serves the same graph and is handed the features; in turn,
forwards, then backwards.

    python -m benchmarks.performance.over_http --peers-python .venv-peers/bin/python --seconds 6

Each connection asks again as soon as it is answered. The asker is this process, so its cost is in everybody's figures alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from aiokafka import AIOKafkaProducer

from driftline.contracts.avro import Codec, frame
from driftline.contracts.registry import Registry
from driftline.local.child import Child
from driftline.operate.predictions import Prediction, Predictions
from driftline.stream.batch import Column, Varlen

from .hops import PEERS, PIPELINES, Bench, Differs, benched
from .latency import Chain, start_pipeline
from .meter import US, TooSlow, cpu_s
from .payments import CARDS, MODEL_ROWS, pipeline

CONNECTIONS = (1, 8, 64)
SECONDS = 6.0
WARM_S = 2.0
READY_WITHIN_S = 60.0
WAIT_S = 20
BENTOS = {"Scores": ("BentoML", 3_117), "Batched": ("BentoML, batched", 3_118)}  # by class of its service

Ask = Callable[[int], Awaitable[None]]  # one question, by its number; returns when it is answered
Door = Callable[[], contextlib.AbstractAsyncContextManager[Ask]]  # one connection


@dataclass(frozen=True)
class Way:
    """Something that answers, and its processes."""

    name: str
    door: Door
    children: Mapping[str, Child]


async def asked(way: Way, connections: int, seconds: float, first: int) -> dict[str, Any]:
    """So many connections for so long. Questions are numbered from `first` on. Raises Differs when one is not answered as it should be."""
    took: list[float] = []
    numbers = iter(range(first, sys.maxsize))
    before = {name: cpu_s(child.pid) for name, child in way.children.items()}
    began = time.monotonic()

    async def go_on() -> None:
        async with way.door() as ask:
            while time.monotonic() - began < seconds:
                at = time.monotonic()
                await ask(next(numbers))
                took.append(time.monotonic() - at)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(go_on())
    spent = time.monotonic() - began
    used = {name: round(US * (cpu_s(child.pid) - before[name]) / len(took), 1) for name, child in way.children.items()}
    p50, p99 = (round(1e3 * float(np.percentile(took, p)), 2) for p in (50, 99))
    return {"way": way.name, "connections": connections, "rate": round(len(took) / spent, 1), "p50_ms": p50, "p99_ms": p99, "cpu_us": used}


# ---- the gateway, and BentoML ---------------------------------------------------------------------------------------------


def over_http(host: str, port: int, path: str, body: Callable[[int], Any], fits: Callable[[int, Any], bool]) -> Door:
    """Connections to a server, kept alive; `fits` tells whether an answer is one to that question."""

    @contextlib.asynccontextmanager
    async def door() -> AsyncIterator[Ask]:
        reader, writer = await asyncio.open_connection(host, port)

        async def ask(number: int) -> None:
            content = json.dumps(body(number)).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            status, answer = await _answer(reader)
            if status != 200 or not fits(number, json.loads(answer)):
                raise Differs(f"{path}: {status} {answer[:200]!r}")

        try:
            yield ask
        finally:
            writer.close()

    return door


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), await reader.readexactly(int(fields["content-length"]))


def payment(number: int) -> dict[str, Any]:
    """One that is made now."""
    return {"payment_id": f"h{number:09d}", "card": f"card-{number * 7_919 % CARDS:05d}", "at": int(time.time() * 1e3), "amount": 12.25}


async def start_gateway(bench: Bench, chain: Chain) -> Way:
    """In front of the pipeline, open to this machine."""
    environment = {"DRIFTLINE_PIPELINES": str(PIPELINES), "DRIFTLINE_GATEWAY_OPEN": "loopback", "DRIFTLINE_HTTP_PORT": "0"}
    command = [sys.executable, "-m", "driftline", "run", "gateway", "--pipeline", "payments", "--log-level", "warning"]
    child = bench.stack.spawn("gateway", command, environment)
    place = bench.stack.run_dir / "gateway.json"
    await ready(lambda: json.loads(place.read_text())["ops"] + "/readyz", "the gateway")
    host, port = json.loads(place.read_text())["http"].removeprefix("http://").split(":")
    path = f"/v1/payments/score?timeout_s={WAIT_S}"
    door = over_http(host, int(port), path, payment, lambda number, told: bool(told["id"] == f"h{number:09d}"))
    return Way("driftline, gateway", door, {"gateway": child, **chain.children})


async def start_bento(bench: Bench, peers_python: str, service: str) -> Way:
    """With the features handed to it: no store, no topics, nothing kept."""
    name, port = BENTOS[service]
    graph = bench.stack.folder / "http.onnx"
    graph.write_bytes(bench.graph)
    command = [str(Path(peers_python).with_name("bentoml")), "serve", f"{PEERS / 'bentoml_service.py'}:{service}"]
    environment = {"WORK_MODEL": str(graph), "BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(bench.stack.folder / "bento")}
    child = bench.stack.spawn(service, [*command, "--host", "127.0.0.1", "--port", str(port)], environment)
    await ready(lambda: f"http://127.0.0.1:{port}/readyz", name)
    rows = {"rows": [[3.0, 40.0, 12.25]]}
    door = over_http("127.0.0.1", port, "/score", lambda _: rows, lambda _, told: len(told) == 1 and 0 <= told[0] <= 1)
    return Way(name, door, {service: child})


async def ready(address: Callable[[], str], what: str) -> None:
    """Wait until it says so. Raises TooSlow."""
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError, URLError, ValueError, KeyError):
            await asyncio.to_thread(urllib.request.urlopen, address(), timeout=2)
            return
        await asyncio.sleep(0.1)
    raise TooSlow(f"{what} is not ready after {READY_WITHIN_S:.0f} s")


# ---- the floor ------------------------------------------------------------------------------------------------------------


class Floor:
    """Questions published and predictions read by this process: what the gateway does, without HTTP."""

    def __init__(self, bench: Bench, chain: Chain, schema_id: int) -> None:
        stream = pipeline().streams[0]
        self._codec, self._frame, self._topic = Codec(dict(stream.schema)), frame(schema_id), stream.topic
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._producer = AIOKafkaProducer(bootstrap_servers=bench.kafka, acks="all", enable_idempotence=True)
        registry = Registry(bench.stack.environment()["DRIFTLINE_REGISTRY"])
        self._predictions = Predictions(bench.kafka, pipeline(), registry, self._take, 0)
        self.way = Way("the floor, no HTTP", self.door, chain.children)

    async def start(self) -> asyncio.Task[None]:
        """Connect. The task reads on until it is cancelled."""
        await self._producer.start()
        reading = asyncio.create_task(self._predictions.run())
        while not self._predictions.ready:
            await asyncio.sleep(0.05)
        return reading

    async def stop(self, reading: asyncio.Task[None]) -> None:
        """Disconnect."""
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await self._producer.stop()

    @contextlib.asynccontextmanager
    async def door(self) -> AsyncIterator[Ask]:
        """All connections share the producer and the reader, as in the gateway."""
        yield self._ask

    async def _ask(self, number: int) -> None:
        one = payment(number)
        self._waiting[one["payment_id"]] = answered = asyncio.get_running_loop().create_future()
        ids, cards = Varlen.of([one["payment_id"]]), Varlen.of([one["card"]])
        columns: dict[str, Column] = {"payment_id": ids, "card": cards, "at": np.array([one["at"]]), "amount": np.array([one["amount"]])}
        await self._producer.send(self._topic, self._codec.encode(columns, self._frame)[0], one["card"].encode(), partition=0)
        async with asyncio.timeout(WAIT_S):
            await answered

    def _take(self, predictions: Sequence[Prediction]) -> None:
        for one in predictions:
            if (waiting := self._waiting.pop(one.id, None)) is not None and not waiting.done():
                waiting.set_result(None)


async def measure(peers_python: str, connections: Sequence[int] = CONNECTIONS, seconds: float = SECONDS) -> dict[str, Any]:
    """Raw figures: `runs`, two for each way and number of connections."""
    async with benched(MODEL_ROWS, sys.executable) as bench:
        chain, schema_id = await start_pipeline(bench)
        floor = Floor(bench, chain, schema_id)
        ways = [await start_gateway(bench, chain), floor.way, *[await start_bento(bench, peers_python, service) for service in BENTOS]]
        reading, first, runs = await floor.start(), 0, []
        try:
            for turn in [None, *connections]:
                for way in ways if turn is None else [*ways, *ways[::-1]]:
                    told = await asked(way, turn or connections[-1], WARM_S if turn is None else seconds, first)
                    first += 1_000_000
                    runs += [] if turn is None else [told]
        finally:
            await floor.stop(reading)
    return {"seconds": seconds, "runs": runs}


def lines(found: Mapping[str, Any]) -> list[str]:
    """One line a way and number of connections, for whoever looks on: medians."""
    out = []
    for connections in dict.fromkeys(run["connections"] for run in found["runs"]):
        for way in dict.fromkeys(run["way"] for run in found["runs"]):
            mine = [run for run in found["runs"] if (run["way"], run["connections"]) == (way, connections)]
            rate, p50, p99 = (statistics.median(run[name] for run in mine) for name in ("rate", "p50_ms", "p99_ms"))
            cpu = statistics.median(sum(run["cpu_us"].values()) for run in mine)
            out.append(f"{connections:>3} connections  {way:<30} {rate:8,.0f}/s  p50 {p50:7.2f}  p99 {p99:7.2f} ms  {cpu:7.0f} us")
    return out


def main() -> None:
    """Measure and print: a line for each way, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", required=True, metavar="PATH")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    asked_for = parser.parse_args()
    found = asyncio.run(measure(asked_for.peers_python, seconds=asked_for.seconds))
    print("\n".join(lines(found)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
