"""A pipeline with personal fields and a label, on servers that an environment names, and its services as processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from driftline.access import kafka_client
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.pipeline import load_pipeline
from driftline.stream.kafka import LogReader, create_topics, ensure_topics
from tests.processes import service as running_service

PATIENCE_S = 120.0
Found = TypeVar("Found")
DECLARATION = """
\"\"\"Payments by card; a chargeback comes later.\"\"\"

from driftline import Budget, Gate, Label, Logistic, Pipeline, Retrain, Rollout, Stream, View, f

payments = Stream("payment.v1.avsc", topic="{name}-payments", id="payment_id", key="card", time="paid_at")
told = Stream("told.v1.avsc", topic="{name}-told", id="payment_id", key="card", time="told_at")
spent = View(of=payments, by="card", payments_1h=f.count(payments, "1h"), amount_1h=f.sum("amount", "1h"))

pipeline = Pipeline(
    "{name}",
    owner="tests@example.org",
    question=payments,
    inputs=[spent, f.value("amount")],
    label=Label("fraud", of=told, when=told.loss >= 10, horizon="6h", if_silent="negative"),
    decide=Budget(alert_rate=0.1),
    model=Logistic(),
    gate=Gate(rows_min=500, positives_min=50),
    retrain=Retrain(first_after="140h"),
    rollout=Rollout(approval=True, shadow="3d", shares=[0.25, 1.0], hold="1d"),
    tick="{tick}",
    window="2h",
)
"""
MOMENT = {"type": "long", "logicalType": "timestamp-millis"}
PAYMENT = {"payment_id": "string", "card": "string", "holder": "string", "paid_at": MOMENT, "amount": "double"}
TOLD = {"payment_id": "string", "card": "string", "told_at": MOMENT, "loss": "int"}
PERSONAL = ("card", "holder")


class Site:
    """The pipeline, its processes and their logs."""

    def __init__(self, servers: Mapping[str, str], folder: Path, tick: str = "1s", **settings: str) -> None:
        self.folder = folder
        self.name = f"p{uuid4().hex[:8]}"
        place = folder / self.name
        place.mkdir()
        (place / "pipeline.py").write_text(DECLARATION.format(name=self.name, tick=tick).lstrip())
        for file, fields in (("payment.v1.avsc", PAYMENT), ("told.v1.avsc", TOLD)):
            declared = [{"name": name, "type": kind, "pii": name in PERSONAL} for name, kind in fields.items()]
            (place / file).write_text(json.dumps({"type": "record", "name": file.split(".")[0].title(), "fields": declared}))
        self.pipeline = load_pipeline(self.name, folder)
        self.topics = Topics.of(self.pipeline)
        self.payments, self.told = f"{self.name}-payments", f"{self.name}-told"
        kept = {"PIPELINES": str(folder), "RUN_DIR": str(folder), "SESSION_TIMEOUT_S": "2", **settings}
        self.environment = {**os.environ, **servers, **{f"DRIFTLINE_{name}": value for name, value in kept.items()}}

    @property
    def kafka(self) -> str:
        return self.environment["DRIFTLINE_KAFKA"]

    async def create(self, partitions: int = 1) -> None:
        """The topics, with the settings of this process."""
        await ensure_topics(self.kafka, self.topics, partitions)
        await create_topics(self.kafka, [NewTopic(name, partitions, 1) for name in (self.payments, self.told)])

    @contextmanager
    def process(self, service: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """`driftline run`, asked to drain at the end, and killed when it does not."""
        with running_service(service, self.name, {**self.environment, **settings}, self.folder) as process:
            yield process

    async def command(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """`driftline ...`, to its end."""
        command, environment = [sys.executable, "-m", "driftline", *words], {**self.environment, **settings}
        return await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)

    def ops(self, service: str, path: str, at: str = "ops") -> str:
        """What a process answers."""
        address = json.loads((self.folder / f"{service}.json").read_text())[at]
        with urllib.request.urlopen(f"{address}{path}", timeout=10) as response:
            return str(response.read().decode())

    async def is_ready(self, service: str) -> bool:
        try:
            await asyncio.to_thread(self.ops, service, "/readyz")
        except (OSError, urllib.error.URLError, ValueError):
            return False
        return True

    async def put(self, topic: str, values: Sequence[bytes], key: bytes | None = None) -> None:
        """As an application would."""
        producer = AIOKafkaProducer(**kafka_client(self.kafka), enable_idempotence=True)
        await producer.start()
        for value in values:
            await producer.send(topic, value, key=key)
        await producer.stop()

    async def records(self, topic: Topic) -> list[dict[str, Any]]:
        """First copies of everything on a topic of ours."""
        reader = LogReader(self.kafka, topic, Registry(self.environment["DRIFTLINE_REGISTRY"]))
        await reader.start()
        batches = await reader.read_to()
        await reader.stop()
        return [record for batch in batches.values() for table in batch.tables.values() for record in table.records()]

    def said(self) -> str:
        """Everything that the processes have written."""
        return "".join(log.read_text() for log in sorted(self.folder.glob("*.log")))


async def until(what: Callable[[], Awaitable[Found]]) -> Found:
    """Ask time and again until there is something; gives it."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await what()):
            await asyncio.sleep(0.3)
    return found
