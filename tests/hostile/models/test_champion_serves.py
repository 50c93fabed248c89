"""
Inference on a real broker while hostile models are deployed: the champion answers every row of its own, rows of a refused model get
the fallback score, flagged, and the process stays up.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from ground import KEY, Ground
from zoo import ZOO

from driftline.clock import SystemClock
from driftline.contracts.avro import pack_strings, unpack_strings
from driftline.contracts.bounds import ARMS_MAX
from driftline.contracts.messages import Arm, Deployment, Flag, Source, Writer, as_messages
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.local.child import Child
from driftline.models.probe import Probe, Trial
from driftline.pipeline import load_pipeline
from driftline.stream.batch import Messages, Varlen
from driftline.stream.kafka import LogReader, Publisher, ensure_topics
from services.inference.app import Settings, build

ROOT = Path(__file__).resolve().parents[3]
DECLARATION = """
from driftline import Pipeline, Stream, View, f

payments = Stream("payment.v1.avsc", topic="{name}-payments", id="payment_id", key="card", time="paid_at")
spent = View(of=payments, by="card", payments_1h=f.count(payments, "1h"), payments_1d=f.count(payments, "1d"))
pipeline = Pipeline("{name}", owner="tests@example.org", question=payments, inputs=[spent], tick="1s")
"""
FIELDS = {"payment_id": "string", "card": "string", "paid_at": {"type": "long", "logicalType": "timestamp-millis"}}
FALLBACK = 0.125
ROWS = 40  # of each deployment
SHADOWS = ARMS_MAX  # hostile models that score along, beside the one that has a share
ANSWERED_WITHIN_S = 120


@dataclass
class Loop:
    """A pipeline of its own, its topics and model store, and what was answered so far."""

    kafka: str
    registry_url: str
    folder: Path
    name: str = field(default_factory=lambda: f"h{uuid4().hex[:8]}")
    rows: int = 0
    deployments: int = 0

    def __post_init__(self) -> None:
        place = self.folder / "pipelines" / self.name
        place.mkdir(parents=True)
        (place / "pipeline.py").write_text(DECLARATION.format(name=self.name))
        schema = {"type": "record", "name": "Payment", "fields": [{"name": name, "type": kind} for name, kind in FIELDS.items()]}
        (place / "payment.v1.avsc").write_text(json.dumps(schema))
        self.pipeline = load_pipeline(self.name, place.parent)
        self.topics = Topics.of(self.pipeline)
        self.registry = Registry(self.registry_url)
        (self.folder / "public.pem").write_bytes(
            KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        self.ground = self.ground_in(self.folder, "flights-1")

    def ground_in(self, folder: Path, model: str) -> Ground:
        layout = self.pipeline.layout
        return Ground(folder, tuple(layout.names), layout.version, model)

    @property
    def settings(self) -> dict[str, str]:
        return {
            "pipeline": self.name,
            "kafka": self.kafka,
            "registry": self.registry_url,
            "model_store": str(self.ground.store),
            "model_public_key": str(self.folder / "public.pem"),
        }

    def inference(self) -> Child:
        """The process, as a supervisor starts it."""
        told = {f"DRIFTLINE_{name.upper()}": value for name, value in self.settings.items()}
        environment = {**os.environ, **told, "DRIFTLINE_PIPELINES": str(self.folder / "pipelines")}
        command = [sys.executable, "-m", "driftline", "run", "inference", "--pipeline", self.name]
        return Child("inference", command, log=self.folder / "inference.log", env=environment)

    async def publish(self, writer: Writer, messages: Messages) -> None:
        publisher = Publisher(self.kafka, self.topics, self.registry, writer, SystemClock())
        await publisher.start()
        await publisher.send(messages)
        await publisher.stop()

    async def deploy(self, *hostile: str, champion: str) -> Deployment:
        """The champion, the first of `hostile` as canary with half of the keys, the others as shadows."""
        self.deployments += 1
        arms = [Arm("champion", "good", champion, 0.5 if hostile else 1.0), *(Arm("canary", "bad", digest, 0.5) for digest in hostile[:1])]
        shadows = tuple(Arm("candidate", "worse", digest, 0.0) for digest in hostile[1:])
        deployment = Deployment(self.deployments, "canary", "canary", "", 0, tuple(arms), shadows, "salt", FALLBACK)
        at = {"source": Source.CONTROL, "offsets": [self.deployments], "indexes": [0], "partition": 0, "to": 0}
        await self.publish(Writer.ROLLOUT, as_messages("deployments", "deployment", [deployment], **at))
        return deployment

    async def ask(self, version: int) -> list[str]:
        """Rows that name the deployment `version`. Returns their keys."""
        layout, offsets = self.pipeline.layout, np.arange(self.rows, self.rows + ROWS, dtype=np.int64)
        self.rows += ROWS
        matrix = np.zeros((ROWS, len(layout.names)), np.float32)
        matrix[:, 0] = offsets % 2
        keys = [f"card-{at}" for at in offsets.tolist()]
        columns = {
            "source": np.full(ROWS, Source.EVENTS),
            "offset": offsets,
            "index": np.zeros(ROWS, np.int64),
            "event_offset": offsets,
            "id": Varlen.of(keys),
            "key": Varlen.of(keys),
            "time": offsets,
            "visible": offsets,
            "deployment": np.full(ROWS, version),
            "layout": Varlen.of([layout.version] * ROWS),
            "slices": Varlen.of([pack_strings([])] * ROWS),
            "row": layout.pack(matrix, np.zeros((ROWS, len(layout.views)), np.float32)),
        }
        await self.publish(Writer.FEATURE, Messages("features", "row", columns["key"], columns, offsets))
        return keys


class Answers:
    """Predictions and answers of shadows, as they come."""

    def __init__(self, loop: Loop) -> None:
        self._readers = [LogReader(loop.kafka, topic, loop.registry) for topic in (loop.topics.predictions, loop.topics.journal)]
        self.predictions: dict[str, dict[str, Any]] = {}
        self.shadows: dict[tuple[str, int], dict[str, Any]] = {}

    async def start(self) -> None:
        for reader in self._readers:
            await reader.start()

    async def stop(self) -> None:
        for reader in self._readers:
            await reader.stop()

    async def of(self, keys: Sequence[str], shadows: int, by: Child | asyncio.Task[None]) -> None:
        """Wait until every row is answered, by its arm and by each shadow."""
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            while not self._whole(keys, shadows):
                assert by.alive if isinstance(by, Child) else not by.done(), "inference is gone"
                for reader in self._readers:
                    for batch in await reader.next(0.05):
                        for table in batch.tables.values():
                            self._add(table.message, table.records())

    def _whole(self, keys: Sequence[str], shadows: int) -> bool:
        return all(key in self.predictions and all((key, 1 + at) in self.shadows for at in range(shadows)) for key in keys)

    def _add(self, message: str, records: list[dict[str, Any]]) -> None:
        for record in records:
            if message == "prediction":
                record["flags"] = unpack_strings(record["flags"].encode())
                assert self.predictions.setdefault(record["id"], record) is record, "a first copy came twice"
            elif message == "answer" and record["index"]:
                self.shadows[record["id"], record["index"]] = record


@pytest.fixture
async def loop(kafka: str, registry_url: str, tmp_path: Path) -> Loop:
    loop = Loop(kafka, registry_url, tmp_path)
    await ensure_topics(kafka, loop.topics, 1)
    return loop


@pytest.fixture
async def answers(loop: Loop) -> AsyncIterator[Answers]:
    answers = Answers(loop)
    await answers.start()
    yield answers
    await answers.stop()


def assert_served(deployment: Deployment, keys: list[str], answers: Answers) -> int:
    """The champion's rows by the champion, the others degraded, no shadow with a score. Returns how many the champion answered."""
    assigned = deployment.assign(Varlen.of(keys))
    for key, number in zip(keys, assigned.tolist(), strict=True):
        told = answers.predictions[key]
        if number == 0:
            right = 0.268941 if int(key.removeprefix("card-")) % 2 == 0 else 0.731059
            assert (told["arm"], [*told["flags"]]) == ("champion", [])
            assert told["score"] == pytest.approx(right, abs=1e-6)
        else:
            assert (told["arm"], told["score"], {*told["flags"]}) == ("canary", FALLBACK, {"degraded", "no_score"})
        for at in range(len(deployment.shadows)):
            assert answers.shadows[key, 1 + at]["flags"] & Flag.NO_SCORE
    return int(np.count_nonzero(assigned == 0))


def laid(loop: Loop) -> list[str]:
    """
    The whole zoo, in one store, each under a name of its own, and an honest model of other features. Returns what a deployment
    calls them.
    """
    digests = [Ground(loop.folder, ("other",), "other", "other-1").honest()]
    for number, one in enumerate(ZOO):
        ground = loop.ground_in(loop.folder / f"zoo-{number}", f"flights-1{number:03}")
        ground.folder.mkdir()
        digests.append(one.make(ground))
        for path in ground.store.iterdir() if ground.store.exists() else ():
            if not (loop.ground.store / path.name).exists():
                path.rename(loop.ground.store / path.name)
    return digests


async def test_the_champion_answers_through_the_whole_zoo(loop: Loop, answers: Answers) -> None:
    """
    Every hostile model is deployed beside it, the process is killed in the middle and started again, and no row is lost, or
    answered by what was refused.
    """
    champion = loop.ground.honest()
    digests = laid(loop)
    inference = loop.inference()
    try:
        by_champion = 0
        first = await loop.deploy(champion=champion)
        keys = await loop.ask(first.version)
        await answers.of(keys, 0, inference)
        by_champion += assert_served(first, keys, answers)
        groups = [digests[at : at + 1 + SHADOWS] for at in range(0, len(digests), 1 + SHADOWS)]
        for number, group in enumerate(groups):
            deployment = await loop.deploy(*group, champion=champion)
            if number == len(groups) // 2:
                os.kill(inference.pid, signal.SIGKILL)
                inference.wait()
                inference = loop.inference()
            keys = await loop.ask(deployment.version)
            await answers.of(keys, len(deployment.shadows), inference)
            by_champion += assert_served(deployment, keys, answers)
        assert len(answers.predictions) == ROWS * (1 + len(groups))
        assert by_champion > len(answers.predictions) // 3
    finally:
        inference.kill()


async def test_the_champion_answers_while_a_model_is_on_trial(loop: Loop, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A trial holds up the rows that name the deployment on trial, and nobody else's; they are answered when the verdict is there.
    """
    monkeypatch.setenv("DRIFTLINE_PIPELINES", str(loop.folder / "pipelines"))
    champion = loop.ground.honest()
    canary = loop.ground_in(loop.folder, "flights-2").honest()
    on_trial, verdict = threading.Event(), threading.Event()
    try_out = Probe.try_out

    def waiting(probe: Probe, trial: Trial) -> None:
        if trial.digest == canary:
            on_trial.set()
            verdict.wait()
        try_out(probe, trial)

    monkeypatch.setattr(Probe, "try_out", waiting)
    running = asyncio.create_task(build(Settings(**loop.settings), SystemClock()).run())
    try:
        first = await loop.deploy(champion=champion)
        await answers.of(await loop.ask(first.version), 0, running)
        second = await loop.deploy(canary, champion=champion)
        await asyncio.to_thread(on_trial.wait)
        keys = await loop.ask(first.version)
        await answers.of(keys, 0, running)
        assert_served(first, keys, answers)
        later = await loop.ask(second.version)
        assert not verdict.is_set()
        verdict.set()
        await answers.of(later, 0, running)
        assert {answers.predictions[key]["arm"] for key in later} == {"champion", "canary"}
        assert not any(answers.predictions[key]["flags"] for key in later)
    finally:
        verdict.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
