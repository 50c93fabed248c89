"""
A gateway of its own on the shared servers, in a thread, with a pipeline that nobody else has; and, instead of the three services of
the data plane, somebody who answers its questions when the test says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import numpy as np
import pytest
from aiokafka.admin import NewTopic
from confluent_kafka import Consumer, Producer
from onnx import TensorProto, helper, numpy_helper

from driftline.clock import SystemClock
from driftline.contracts.avro import Codec, column
from driftline.contracts.messages import Release, Source, Writer, as_messages
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.features.events import Decoder
from driftline.features.murmur2 import partitions_of
from driftline.features.tiles import ROW_FORMAT
from driftline.features.views import Views
from driftline.models.bundle import BundleStore, Manifest, generate_keys, load_private_key, load_public_key
from driftline.models.reference import make_reference, medians
from driftline.operate.tokens import Role, new_token
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Messages, Table, Varlen
from driftline.stream.kafka import Publisher, create_topics, ensure_topics
from driftline.stream.ledger import Entry, RedisLedger
from driftline.stream.store import Store
from services.gateway.app import Settings, make

PATIENCE_S = 30.0
SCHEMA = {
    "type": "record",
    "name": "Asked",
    "doc": "A question.",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "account", "type": "string", "doc": "Whose."},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "amount", "type": "int"},
        {"name": "note", "type": ["null", "string"]},
    ],
}
DECLARATION = """
\"\"\"The smallest pipeline that can be asked.\"\"\"

from driftline import Budget, Label, Logistic, Pipeline, Rollout, Stream, View, f

asked = Stream("asked.v1.avsc", topic="{name}-asked", id="id", key="account", time="at")
told = Stream("asked.v1.avsc", topic="{name}-told", id="id", key="account", time="at")
recent = View(of=asked, by="account", asked_1h=f.count(asked, "1h"), amount_1h=f.sum("amount", "1h"))

pipeline = Pipeline(
    "{name}",
    owner="somebody@example.org",
    question=asked,
    inputs=[recent, f.value("amount")],
    label=Label("large", of=told, when=told.amount >= 10, horizon="1d", if_silent="negative"),
    decide=Budget(alert_rate=0.1),
    model=Logistic(),
    rollout=Rollout(shadow="3d", shares=[0.25, 1.0], hold="1d", approval=True),
    predictions="json",
)
"""


class Answerer(threading.Thread):
    """
    Answers each question on the pipeline's topic, in the place of the data plane: intake, feature and inference are tested by
    themselves. `silent` keeps it from answering; what it did not answer it answers then.
    """

    def __init__(self, kafka: str, topic: str, predictions: str, partitions: int) -> None:
        super().__init__(daemon=True)
        self._consumer = Consumer({"bootstrap.servers": kafka, "group.id": f"answerer-{topic}", "auto.offset.reset": "earliest"})
        self.listening = threading.Event()  # a group takes seconds to be made, and who asks waits for two
        self._consumer.subscribe([topic], on_assign=lambda *_: self.listening.set())
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0})
        self._predictions = predictions
        self._partitions = partitions
        self.silent = threading.Event()
        self.ended = threading.Event()
        self.seen: list[dict[str, Any]] = []
        self.places: list[tuple[bytes, int]] = []
        self.headers: list[list[tuple[str, bytes]]] = []

    def run(self) -> None:
        """Until `ended`."""
        held: list[dict[str, Any]] = []
        while not self.ended.is_set():
            message = self._consumer.poll(0.05)
            if message is not None and message.error() is None:
                question = json.loads(message.value())
                self.seen.append(question)
                self.places.append((message.key(), message.partition()))
                self.headers.append(message.headers() or [])
                held.append(question)
            if not self.silent.is_set():
                for question in held:
                    self.answer(question)
                held.clear()
                self._producer.poll(0)
        self._producer.flush(5)
        self._consumer.close()
        del self._producer

    def answer(self, question: dict[str, Any]) -> None:
        """As inference would have it, in JSON."""
        said = {
            "event_offset": len(self.seen),
            "id": question["id"],
            "key": question["account"],
            "time": 1_700_000_000_000,
            "score": 0.25,
            "decision": "pass",
            "reasons": [],
            "model": "m-1",
            "arm": "champion",
            "flags": [],
        }
        partition = hashlib.sha256(question["account"].encode()).digest()[0] % self._partitions
        self._producer.produce(self._predictions, json.dumps(said), key=question["account"], partition=partition)

    def times(self, id: str) -> int:
        """How often a question was published."""
        return sum(one.get("id") == id for one in self.seen)


@dataclass
class Running:
    """A gateway that runs, and what a test needs to talk to it and to its logs."""

    url: str
    pipeline: Pipeline
    topics: Topics
    kafka: str
    redis: str
    registry: Registry
    answerer: Answerer
    tokens: dict[str, str]
    folder: Path
    opened: list[httpx2.Client] = field(default_factory=list)

    def client(self, role: str | None = None) -> httpx2.Client:
        """With the token of a role; without one when None."""
        headers = {} if role is None else {"Authorization": f"Bearer {self.tokens[role]}"}
        client = httpx2.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, trust_env=False)
        self.opened.append(client)
        return client

    def path(self, rest: str) -> str:
        """Of this pipeline."""
        return f"/v1/{self.pipeline.name}/{rest}"

    def event(self, id: str | None = None, **changed: Any) -> dict[str, Any]:
        """A question, good as it is."""
        return {"id": id or uuid4().hex, "account": "a-1", "at": int(time.time() * 1000), "amount": 5, "note": None, **changed}

    def put(self, writer: Writer, topic: str, *facts: Any, source: Source) -> None:
        """Publish facts of the control plane as one of its writers would; each put needs offsets of its own, so they are moments."""
        n, first = len(facts), time.time_ns() // 1000 % 2**40
        places = {"offsets": range(first, first + n), "indexes": [0] * n}
        self.send(writer, as_messages(topic, facts[0].message, facts, source=source, to=0, **places))

    def send(self, writer: Writer, *messages: Messages) -> None:
        """Publish as one of the pipeline's writers."""

        async def publish() -> None:
            publisher = Publisher(self.kafka, self.topics, self.registry, writer, SystemClock())
            await publisher.start()
            await publisher.send(*messages)
            await publisher.stop()

        asyncio.run(publish())


@contextmanager
def in_a_thread(settings: Settings, pipelines: Path) -> Iterator[str]:
    """
    Run a gateway until the body ends; gives its address once it is ready.

    It shares this process for as long as the session lasts: a test elsewhere that breaks a class of the library breaks this one too, so
    it names a class of its own where its service looks for it (`monkeypatch.setattr(app, "LogReader", Slow)`).
    """
    told: Future[str] = Future()
    loop = asyncio.new_event_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRIFTLINE_PIPELINES", str(pipelines))
        gateway = make(settings, SystemClock(), told.set_result)

    async def run() -> None:
        await gateway.run()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    url = told.result(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while not gateway.ready and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(gateway.stop)
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"the gateway did not drain: {[task.get_stack(limit=3) for task in asyncio.all_tasks(loop)]}"
        loop.close()


@dataclass(frozen=True)
class Ground:
    """What several gateways of one pipeline stand on."""

    pipeline: Pipeline
    answerer: Answerer
    tokens: dict[str, str]
    tokens_file: Path
    kafka: str
    redis: str
    registry: str
    folder: Path

    def settings(self, **changed: Any) -> Settings:
        """Of a gateway with a port of its own."""
        given: dict[str, Any] = {
            "pipeline": self.pipeline.name,
            "registry": self.registry,
            "kafka": self.kafka,
            "redis": self.redis,
            "http_port": 0,
            "tokens_file": str(self.tokens_file),
            "run_dir": str(self.folder),
            "model_store": str(self.folder / "models"),
            "model_public_key": str(self.folder / "keys" / "model-public.pem"),
            "rate_per_s": 100_000.0,
        }
        return Settings(**given | changed)

    @contextmanager
    def gateway(self, **changed: Any) -> Iterator[Running]:
        """One that runs."""
        with in_a_thread(self.settings(**changed), self.folder) as url:
            registry = Registry(self.registry)
            topics = Topics.of(self.pipeline)
            running = Running(url, self.pipeline, topics, self.kafka, self.redis, registry, self.answerer, self.tokens, self.folder)
            yield running
            for client in running.opened:
                client.close()


@contextmanager
def made(kafka: str, redis_url: str, registry_url: str, folder: Path) -> Iterator[Ground]:
    """A pipeline of its own with its topics, two partitions for data, three for the questions; tokens; and who answers."""
    name = f"g{uuid4().hex[:8]}"
    (folder / name).mkdir()
    (folder / name / "pipeline.py").write_text(DECLARATION.format(name=name).lstrip())
    (folder / name / "asked.v1.avsc").write_text(json.dumps(SCHEMA))
    pipeline = load_pipeline(name, folder)
    topics = Topics.of(pipeline)
    generate_keys(folder / "keys")
    asyncio.run(ensure_topics(kafka, topics, 2))
    asyncio.run(create_topics(kafka, [NewTopic(stream.topic, 3, 1) for stream in pipeline.streams]))
    new = {role.value: new_token(f"the-{role.value}", [role.value]) for role in Role if role is not Role.ANYONE}
    tokens_file = folder / "tokens"
    tokens_file.touch(mode=0o600)
    tokens_file.write_text("".join(f"{line}\n" for _, line in new.values()))
    answerer = Answerer(kafka, pipeline.question.topic, topics.predictions.name, 2)
    answerer.start()
    assert answerer.listening.wait(PATIENCE_S)
    tokens = {role: token for role, (token, _) in new.items()}
    try:
        yield Ground(pipeline, answerer, tokens, tokens_file, kafka, redis_url, registry_url, folder)
    finally:
        answerer.ended.set()
        answerer.join(PATIENCE_S)


@pytest.fixture(scope="session")
def ground(kafka: str, redis_url: str, registry_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """What all tests share that bring nothing into disorder."""
    with made(kafka, redis_url, registry_url, tmp_path_factory.mktemp("gateway")) as ground:
        yield ground


@pytest.fixture(scope="session")
def disorder(kafka: str, redis_url: str, registry_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway on a pipeline of its own, without rollout and without features, for commands at random."""
    with made(kafka, redis_url, registry_url, tmp_path_factory.mktemp("disorder")) as ground, ground.gateway() as running:
        yield running


@pytest.fixture(scope="session")
def running(ground: Ground) -> Iterator[Running]:
    """One gateway for all tests that need no other."""
    with ground.gateway() as running:
        yield running


def graph(features: int) -> bytes:
    """The sigmoid of the first feature."""
    first = numpy_helper.from_array(np.array([0], np.int64), "first")
    nodes = [helper.make_node("Gather", ["rows", "first"], ["x"], axis=1), helper.make_node("Sigmoid", ["x"], ["y"])]
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, features])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    whole = helper.make_graph(nodes, "g", [rows], [out], [first])
    made: bytes = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()
    return made


def bundle(ground: Ground, name: str) -> str:
    """A signed model in the store; its digest."""
    layout = ground.pipeline.layout
    onnx = graph(len(layout.names))
    matrix = np.array([[1, 2, 3], [2, 3, 4]], np.float32)
    manifest = Manifest(
        model=name,
        layout=layout.version,
        names=layout.names,
        recipe={"kind": "logistic"},
        seed=7,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        threshold=0.5,
        medians=medians(layout.names, matrix),
        reference=make_reference(layout.names, matrix, np.array([0.5], np.float32)),
        dispersion=1.0,
        base_rate=0.25,
        dataset={"ranges": {}, "digest": "d", "rows": 2, "positives": 1},
        metrics={"auc": 0.7},
        trained_at=1,
        trigger="first",
        versions={},
    )
    keys = ground.folder / "keys"
    store = BundleStore(ground.folder / "models", load_public_key(keys / "model-public.pem"))
    return store.put(manifest, onnx, load_private_key(keys / "model-private.pem"))


def release(name: str, digest: str, verdict: str) -> Release:
    """As the trainer would publish it."""
    return Release(name, digest, verdict, f"{verdict} because", name == "m-1", 86_400_000, "operator", "c-1", "trainer", {"base_rate": 0.2})


@contextmanager
def rolled_out(ground: Ground, running: Running) -> Iterator[dict[str, str]]:
    """
    The real rollout, which has crowned m-1 and holds m-2 back until somebody approves it; m-3 was refused. Digests by name.
    """
    digests = {"m-1": bundle(ground, "m-1"), "m-2": bundle(ground, "m-2"), "m-3": "3" * 64}
    verdicts = {"m-1": "accepted", "m-2": "accepted", "m-3": "refused"}
    running.put(Writer.TRAINER, "control", *(release(name, digests[name], verdicts[name]) for name in digests), source=Source.RETRAIN)
    command = [sys.executable, "-m", "driftline", "run", "rollout", "--pipeline", ground.pipeline.name]
    environment = {
        **os.environ,
        "DRIFTLINE_KAFKA": ground.kafka,
        "DRIFTLINE_REGISTRY": ground.registry,
        "DRIFTLINE_PIPELINES": str(ground.folder),
        "DRIFTLINE_RUN_DIR": str(ground.folder),
    }
    with (ground.folder / "rollout.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    viewer = running.client("viewer")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while viewer.get(running.path("deployments")).json()["now"]["state"] != "awaiting_approval":
            assert time.monotonic() < deadline, (ground.folder / "rollout.log").read_text()
            time.sleep(0.1)
        yield digests
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def rollout(ground: Ground, running: Running) -> Iterator[dict[str, str]]:
    """The rollout of the gateway that tests share."""
    with rolled_out(ground, running) as digests:
        yield digests


@pytest.fixture(scope="session")
def makers() -> tuple[Any, Any]:
    """What makes a ground and a rollout, for tests that move things and need their own."""
    return made, rolled_out


async def keep(running: Running, account: str, amounts: list[int], at_ms: int) -> None:
    """Fold questions of one account, a second apart up to `at_ms`, and keep what the feature service keeps."""
    pipeline, n = running.pipeline, len(amounts)
    views = Views(pipeline)
    times = at_ms - 1_000 * np.arange(n, 0, -1)
    ids, keys = [f"q{at}" for at in range(n)], [account] * n
    fields = {"id": ids, "account": keys, "at": times.tolist(), "amount": amounts, "note": [None] * n}
    types = {field["name"]: field["type"] for field in SCHEMA["fields"]}
    body = Codec(SCHEMA).encode({name: column(types[name], values) for name, values in fields.items()})
    columns = {"source": np.full(n, Source.UPSTREAM), "visible": times, "time": times, "id": Varlen.of(ids), "key": Varlen.of(keys)}
    table = Table("event", np.arange(n), {**columns, "home": np.ones(n, np.bool_), "body": body})
    events = Decoder(pipeline, views.plan).decode(table)
    names = list(views.absent(events))
    views.entities.add(names, [None] * len(names))
    rows = views.entities.rows(views.fold(events).touched)
    for partition in (0, 1):
        ledger = RedisLedger(Store(running.redis), f"{pipeline.name}-feature", partition)
        await ledger.open()
        entry = Entry(1, {}, None, "here", {running.topics.events.name: 2}, pipeline.digest, ROW_FORMAT)
        await ledger.commit(entry, rows if partition == int(partitions_of(Varlen.of([account]), 2)[0]) else {})
        await ledger.close()


@pytest.fixture(scope="session")
def kept_ms(running: Running) -> int:
    """The account a-9 has asked twice until this moment, for 3 and for 4, and the feature service has kept that."""
    at_ms = 1_700_000_000_000
    asyncio.run(keep(running, "a-9", [3, 4], at_ms))
    return at_ms
