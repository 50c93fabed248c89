"""
The flights pipeline live: all services on a stack of their own, a model in force, and questions at a steady rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import URLError

import numpy as np
import psutil
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from driftline.contracts.registry import Registry
from driftline.contracts.topics import LOOP, Topics
from driftline.local.stack import Stack
from driftline.pipeline import load_pipeline, pipelines_folder
from driftline.stream.kafka import create_topics, ensure_topics

from .bundles import Champion
from .meter import TooSlow

PARTITIONS = 2
LOOK_EVERY_S = 0.005
READY_WITHIN_S = 60.0
GROUPS_A_SECOND = 200
TAILS = 5_000


@dataclass(frozen=True)
class Flying:
    """A stack with the pipeline's topics and a model in force; services are started one by one."""

    stack: Stack
    kafka: str
    environment: Mapping[str, str]

    async def start(self, service: str) -> float:
        """Start it and wait until it says that it is ready. Seconds from its start. Raises TooSlow."""
        (self.stack.run_dir / f"{service}.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "driftline", "run", service, "--pipeline", "flights", "--log-level", "warning"]
        began = time.monotonic()
        self.stack.spawn(service, command, self.environment)
        while not self._is_ready(service):
            if time.monotonic() - began > READY_WITHIN_S:
                raise TooSlow(f"{service} is not ready after {READY_WITHIN_S:.0f} s")
            await asyncio.sleep(LOOK_EVERY_S)
        return time.monotonic() - began

    async def start_all(self) -> None:
        """All of the loop, without the gateway."""
        for service in LOOP:
            await self.start(service)

    async def end(self, service: str) -> None:
        """Let it drain."""
        child = self.stack.children[service]
        child.terminate()
        await asyncio.to_thread(child.wait, 30)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """By service: the keeper, the worker, then what that started."""
        found = {}
        for service, child in self.stack.children.items():
            keeper = psutil.Process(child.pid)
            found[service] = [keeper, *keeper.children(recursive=True)]
        return found

    @property
    def servers(self) -> dict[str, int]:
        """Broker and store, by name."""
        assert self.stack.kafka is not None and self.stack.valkey is not None
        return {"broker": self.stack.kafka.pid, "store": self.stack.valkey.pid}

    def _is_ready(self, service: str) -> bool:
        place = self.stack.run_dir / f"{service}.json"
        with contextlib.suppress(OSError, URLError):
            address = json.loads(place.read_text())["ops"]
            with urllib.request.urlopen(f"{address}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        return False


@contextlib.asynccontextmanager
async def flying(partitions: int = PARTITIONS) -> AsyncIterator[Flying]:
    """The stack, topics and model; all gone when it ends."""
    pipeline = load_pipeline("flights")
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), environment={}) as stack:
        kafka, registry = stack.environment()["DRIFTLINE_KAFKA"], Registry(stack.environment()["DRIFTLINE_REGISTRY"])
        await ensure_topics(kafka, Topics.of(pipeline), partitions)
        await create_topics(kafka, [NewTopic(stream.topic, 1, 1) for stream in pipeline.streams])
        champion = Champion(pipeline, stack.folder)
        await champion.deploy(champion.put_any(), kafka, registry)
        environment = {
            "DRIFTLINE_PIPELINES": str(pipelines_folder().resolve()),
            "DRIFTLINE_PII_KEY": "00" * 32,
            "DRIFTLINE_MODEL_PRIVATE_KEY": str(stack.folder / "keys" / "model-private.pem"),
            **champion.environment,
        }
        yield Flying(stack, kafka, environment)


@contextlib.asynccontextmanager
async def asking(kafka: str, rate: int) -> AsyncIterator[None]:
    """Meanwhile `rate` questions a second are published, two hundred times a second as many as are due."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    task = asyncio.create_task(_ask(producer, rate))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await producer.stop()


async def _ask(producer: AIOKafkaProducer, rate: int) -> None:
    chance, asked, began = np.random.default_rng(7), 0, time.monotonic()
    while True:
        now = datetime.now(UTC)
        while asked < rate * (time.monotonic() - began):
            value = {
                "flight_id": f"bench-{now.timestamp():.0f}-{asked}",
                "asked_at": now.isoformat(),
                "departs_at": (now + timedelta(hours=1)).isoformat(),
                "tail": f"N{chance.integers(TAILS)}",
                "origin": "EWR",
                "destination": "IAH",
                "carrier": "UA",
                "scheduled_departure": 515,
                "duration_min": 244,
            }
            await producer.send("flights", json.dumps(value).encode())
            asked += 1
        await asyncio.sleep(1 / GROUPS_A_SECOND)
