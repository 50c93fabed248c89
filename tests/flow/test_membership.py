"""
Processes that share out partitions by a group, as they are run: two, then a third, then one of them is killed, while questions come all
the time. What they leave is compared with what one core makes of the same log.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from prometheus_client.parser import text_string_to_metric_families

from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.local.child import Child
from driftline.local.stack import Stack
from driftline.models.bundle import generate_keys
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Batch
from driftline.stream.kafka import LogReader, committed_metadata, create_topics, ensure_topics
from services.feature.core import Feature
from tests.processes import DRAIN_S, until

DECLARATION = """
from driftline import Budget, Label, Logistic, Pipeline, Stream, View, f

payments = Stream("payment.v1.avsc", topic="{name}-payments", id="payment_id", key="card", time="paid_at")
told = Stream("told.v1.avsc", topic="{name}-told", id="payment_id", key="card", time="told_at")
spent = View(of=payments, by="card", payments_1h=f.count(payments, "1h"), spent_1h=f.sum(payments.amount, "1h"))
pipeline = Pipeline(
    "{name}",
    owner="tests@example.org",
    question=payments,
    inputs=[spent],
    label=Label("fraud", of=told, when=told.loss >= 10, horizon="1s", if_silent="negative"),
    decide=Budget(alert_rate=0.1),
    model=Logistic(),
    tick="1s",
)
"""
MOMENT = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMAS = {
    "payment": {"payment_id": "string", "card": "string", "paid_at": MOMENT, "amount": "double"},
    "told": {"payment_id": "string", "card": "string", "told_at": MOMENT, "loss": "int"},
}
SHARING = ("feature", "inference")
PARTITIONS = 4
CARDS = 101
AT_ONCE = 20
PATIENCE_S = 90.0  # processes start meanwhile, and the group waits for one that was killed


def declared(folder: Path) -> Pipeline:
    """A pipeline with windows by card."""
    name = f"m{uuid4().hex[:8]}"
    (folder / name).mkdir()
    (folder / name / "pipeline.py").write_text(DECLARATION.format(name=name).lstrip())
    for record, fields in SCHEMAS.items():
        listed = [{"name": field, "type": kind} for field, kind in fields.items()]
        (folder / name / f"{record}.v1.avsc").write_text(json.dumps({"type": "record", "name": record.title(), "fields": listed}))
    return load_pipeline(name, folder)


@dataclass
class Crew:
    """Processes of one pipeline, several of a service, each with a folder of its own."""

    pipeline: Pipeline
    stack: Stack
    folder: Path
    children: dict[str, Child]
    asked: int = 0

    @property
    def servers(self) -> dict[str, str]:
        return self.stack.environment()

    def start(self, service: str, name: str, **settings: str) -> None:
        """`driftline run`, with these settings beside those that all have."""
        place = self.folder / name
        place.mkdir()
        own = {
            "DRIFTLINE_PIPELINES": str(self.folder),
            "DRIFTLINE_MODEL_STORE": str(self.folder / "models"),
            "DRIFTLINE_MODEL_PUBLIC_KEY": str(self.folder / "keys" / "model-public.pem"),
            "DRIFTLINE_RUN_DIR": str(place),
        }
        command = [sys.executable, "-m", "driftline", "run", service, "--pipeline", self.pipeline.name]
        given = {f"DRIFTLINE_{setting.upper()}": value for setting, value in settings.items()}
        self.children[name] = Child(name, command, log=place / "log", env={**os.environ, **self.servers, **own, **given})

    def held(self, service: str) -> list[set[int]]:
        """The partitions that each process of a service has in hand; all that it tells must be of these. Empty where it does not answer."""
        return [self._told(service, name) for name in self.children if name.startswith(service)]

    def _told(self, service: str, name: str) -> set[int]:
        try:
            url = json.loads((self.folder / name / f"{service}.json").read_text())["ops"]
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
                families = {one.name: one.samples for one in text_string_to_metric_families(answer.read().decode())}
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                pass  # an answer of 503 is an error
        except OSError:  # it does not listen yet, or is not ready
            return set()
        ready = {int(one.labels["partition"]) for one in families.get("driftline_partition_ready", ()) if one.value == 1}
        told = {int(one.labels["partition"]) for samples in families.values() for one in samples if "partition" in one.labels}
        return ready if told == ready else set()

    def share(self, *counts: int) -> None:
        """Wait until so many partitions are in the hands of each process of the services that share, and every partition in one's."""
        for service in SHARING:
            until(
                lambda service=service: self.held(service),  # type: ignore[misc]  # mypy does not see what a default binds
                lambda found: sorted(map(len, found)) == sorted(counts) and set.union(*found) == set(range(PARTITIONS)),
                PATIENCE_S,
            )

    def publish(self, enough: threading.Event) -> None:
        """As an application would, questions one after another, some hundreds a second, until there are enough."""

        async def send() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.servers["DRIFTLINE_KAFKA"], linger_ms=20)
            await producer.start()
            while not enough.is_set():
                for number in range(self.asked, self.asked + AT_ONCE):
                    paid_at = time.time_ns() // 1_000_000
                    payment = {"payment_id": f"p{number}", "card": f"c{number % CARDS}", "paid_at": paid_at, "amount": 1.5}
                    await producer.send(self.pipeline.question.topic, json.dumps(payment).encode(), partition=0)
                self.asked += AT_ONCE
                await asyncio.sleep(0.05)
            await producer.stop()

        asyncio.run(send())

    def log_of(self, topic: Topic) -> dict[int, Batch]:
        """First copies of all that is on a topic of ours, by partition."""

        async def read() -> dict[int, Batch]:
            reader = LogReader(self.servers["DRIFTLINE_KAFKA"], topic, Registry(self.servers["DRIFTLINE_REGISTRY"]), pipeline=self.pipeline)
            await reader.start()
            batches = await reader.read_to()
            await reader.stop()
            return batches

        return asyncio.run(read())

    def answered(self) -> Counter[str]:
        """How often each question was answered, by first copies."""
        batches = self.log_of(Topics.of(self.pipeline).predictions).values()
        return Counter(id for batch in batches if batch["prediction"] is not None for id in batch.tables["prediction"]["id"].texts())


@contextmanager
def crew(stack: Stack, folder: Path) -> Iterator[Crew]:
    """Topics and intake; whatever is started is ended."""
    pipeline = declared(folder)
    found = Crew(pipeline, stack, folder, {})
    asyncio.run(ensure_topics(found.servers["DRIFTLINE_KAFKA"], Topics.of(pipeline), PARTITIONS))
    asyncio.run(create_topics(found.servers["DRIFTLINE_KAFKA"], [NewTopic(stream.topic, 1, 1) for stream in pipeline.streams]))
    generate_keys(folder / "keys")
    try:
        found.start("intake", "intake")
        yield found
    finally:
        for child in found.children.values():
            child.terminate()
        for child in found.children.values():
            child.end(DRAIN_S)


@pytest.fixture(scope="module")
def played(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Questions come all the while; every one is answered in the end."""
    with crew(stack, tmp_path_factory.mktemp("members")) as found:
        for service in SHARING:
            for name in ("a", "b"):
                found.start(service, f"{service}-{name}", membership="group")
        found.share(2, 2)
        enough = threading.Event()
        publishing = threading.Thread(target=found.publish, args=(enough,))
        publishing.start()
        try:
            for service in SHARING:
                found.start(service, f"{service}-c", membership="group")
            found.share(1, 1, 2)
            for service in SHARING:
                found.children.pop(f"{service}-a").kill()
            found.share(2, 2)
        finally:
            enough.set()
            publishing.join()
        until(found.answered, lambda answers: len(answers) == found.asked, PATIENCE_S)
        yield found


def test_every_question_is_answered_once_whoever_came_and_whoever_was_killed(played: Crew) -> None:
    """
    By first copies, which is how readers count.
    """
    assert played.answered() == Counter(f"p{number}" for number in range(played.asked))


def test_rows_are_as_one_process_makes_them(played: Crew) -> None:
    """
    Byte for byte: the whole log of a partition in one batch, by one core, against what five processes made of it in turn.
    """
    topics = Topics.of(played.pipeline)
    made = {
        (partition, offset): row
        for partition, batch in played.log_of(topics.features).items()
        for offset, row in zip(batch.tables["row"]["event_offset"].tolist(), batch.tables["row"]["row"].tolist(), strict=True)
    }
    logs = played.log_of(topics.events).items()
    assert made == {at: row for partition, log in logs for at, row in folded(played.pipeline, partition, log)}
    assert len(made) == played.asked


def folded(pipeline: Pipeline, partition: int, log: Batch) -> Iterator[tuple[tuple[int, int], Any]]:
    """The row of each event of a log, by its place."""
    core = Feature(pipeline, partition)
    assert not core.unfit(log)
    while needed := core.needs(log):
        core.load(dict.fromkeys(needed))
    for messages in core.step(log).messages:
        if messages.message == "row":
            yield from zip([(partition, offset) for offset in messages.order.tolist()], messages.columns["row"].tolist(), strict=True)  # type: ignore[union-attr]  # bytes


def test_the_group_of_members_commits_nothing(played: Crew) -> None:
    """
    The offsets are those of the operator's own group, as lag tools know it.
    """
    kafka, name = played.servers["DRIFTLINE_KAFKA"], played.pipeline.name
    for service in SHARING:
        assert asyncio.run(committed_metadata(kafka, f"{name}-{service}-members")) == {}
        assert len(asyncio.run(committed_metadata(kafka, f"{name}-{service}"))) == PARTITIONS
