"""
How long until the first new output after kill -9, by service, by number of partitions held, and by what is killed: the worker alone,
which its keeper forks again, or keeper and worker, which whoever started them starts again. Prints one line of JSON for each.

    python benchmarks/recovery.py --partitions 1,4,16 --kills 20

Flights are asked about at a steady rate, live, on a stack of its own. A silence is the time from the kill to the first record that a
service appends after it, looked for every 5 ms; `all` is the time until every partition has had one. What is killed is the one
process that holds all the partitions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import NewTopic
from performance.flying import asking

from driftline.contracts.topics import Topics
from driftline.local.stack import Stack
from driftline.models.bundle import generate_keys
from driftline.pipeline import load_pipeline, pipelines_folder
from driftline.stream.kafka import create_topics, ensure_topics

SERVICES = ("intake", "feature", "inference")
OUTPUTS = {"intake": "flights-events", "feature": "flights-features", "inference": "flights-predictions"}
LOOK_EVERY_S = 0.005
SETTLE_S = 0.03  # what the dead one had sent may still be on its way to the log
PATIENCE_S = 120.0
WARM_S = 3.0
CALM_S = (0.4, 1.2)  # between a recovery and the next kill


class Ends:
    """Where the partitions of a topic end, asked now."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str, partitions: int) -> None:
        self._consumer = consumer
        self._at = [TopicPartition(topic, number) for number in range(partitions)]

    async def now(self) -> list[int]:
        ends = await self._consumer.end_offsets(self._at)
        return [ends[at] for at in self._at]


async def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE_S:.0f} s")
        await asyncio.sleep(0.01)


async def silence(ends: Ends, kill: Callable[[], None]) -> tuple[float, float]:
    """Kill, and wait: seconds to the first new record, and until every partition has had one."""
    killed = time.monotonic()
    kill()
    await asyncio.sleep(SETTLE_S)
    before = await ends.now()
    first = 0.0
    while True:
        now = await ends.now()
        moved = [end > old for end, old in zip(now, before, strict=True)]
        if not first and any(moved):
            first = time.monotonic() - killed
        if all(moved):
            return first, time.monotonic() - killed
        if time.monotonic() - killed > PATIENCE_S:
            raise SystemExit(f"no new output of partitions {[n for n, yes in enumerate(moved) if not yes]}")
        await asyncio.sleep(LOOK_EVERY_S)


def worker_pid(stack: Stack, service: str) -> int:
    pid: int = json.loads((stack.run_dir / f"{service}.json").read_text())["pid"]
    return pid


def killers(stack: Stack, service: str) -> dict[str, Callable[[], None]]:
    """The two ways to kill a service."""

    def whole() -> None:
        stack.children[service].kill()
        stack.restart(service)

    return {"worker": lambda: os.kill(worker_pid(stack, service), signal.SIGKILL), "keeper and worker": whole}


def told(service: str, partitions: int, how: str, silences: list[tuple[float, float]]) -> str:
    first, last = (sorted(column) for column in zip(*silences, strict=True))
    place = min(len(first) - 1, int(0.95 * len(first)))
    figures = {
        "service": service,
        "partitions": partitions,
        "killed": how,
        "kills": len(first),
        "p50_s": round(statistics.median(first), 3),
        "p95_s": round(first[place], 3),
        "max_s": round(first[-1], 3),
        "all_p50_s": round(statistics.median(last), 3),
        "all_p95_s": round(last[place], 3),
    }
    return json.dumps(figures)


@contextlib.asynccontextmanager
async def running(folder: Path, partitions: int, rate: int) -> AsyncIterator[tuple[Stack, AIOKafkaConsumer]]:
    """The stack, with three services and their load."""
    pipeline = load_pipeline("flights")
    stack = Stack(folder)
    await asyncio.to_thread(stack.start)
    kafka = stack.environment()["DRIFTLINE_KAFKA"]
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    try:
        await ensure_topics(kafka, Topics.of(pipeline), partitions)
        await create_topics(kafka, [NewTopic(stream.topic, 1, 1) for stream in pipeline.streams])
        _, public = generate_keys(folder / "keys")
        environment = {
            "DRIFTLINE_PIPELINES": str(pipelines_folder().resolve()),
            "DRIFTLINE_MODEL_STORE": str(folder / "models"),
            "DRIFTLINE_MODEL_PUBLIC_KEY": str(public),
            "DRIFTLINE_RUN_DIR": str(stack.run_dir),
        }
        for service in SERVICES:
            stack.spawn(service, [sys.executable, "-m", "driftline", "run", service, "--pipeline", "flights"], environment)
        await consumer.start()
        async with asking(kafka, rate):
            yield stack, consumer
    finally:
        await consumer.stop()
        await asyncio.to_thread(stack.stop)


async def measure(partitions: int, services: list[str], kills: int, rate: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder), partitions, rate) as (stack, consumer):
            for service in SERVICES:
                ends = Ends(consumer, OUTPUTS[service], partitions)
                await until(lambda service=service: (stack.run_dir / f"{service}.json").exists(), f"{service} starts")  # type: ignore[misc]
                while not all(await ends.now()):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(WARM_S)
            for service in services:
                ends = Ends(consumer, OUTPUTS[service], partitions)
                for how, kill in killers(stack, service).items():
                    silences = []
                    for _ in range(kills):
                        silences.append(await silence(ends, kill))
                        await asyncio.sleep(chance.uniform(*CALM_S))
                    print(told(service, partitions, how, silences), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", default="1,4,16")
    parser.add_argument("--services", default=",".join(SERVICES))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    for n in map(int, asked.partitions.split(",")):
        asyncio.run(measure(n, asked.services.split(","), asked.kills, asked.rate, asked.seed))
