"""
The trace context of an upstream record goes through the loop as processes run it, to the prediction and to the example; and a collector
hears of the batches that it was in, by OTLP over HTTP, read here by OpenTelemetry's own schema.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.local.server import HOST
from driftline.local.stack import Stack
from driftline.models.bundle import generate_keys
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.kafka import LogReader, create_topics, ensure_topics
from driftline.stream.tracing import ENDPOINT, LINKS_MAX
from tests.processes import service, until

DECLARATION = """
from driftline import Budget, Label, Logistic, Pipeline, Stream, View, f

payments = Stream("payment.v1.avsc", topic="{name}-payments", id="payment_id", key="card", time="paid_at")
told = Stream("told.v1.avsc", topic="{name}-told", id="payment_id", key="card", time="told_at")
spent = View(of=payments, by="card", payments_1h=f.count(payments, "1h"))
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
    "payment": {"payment_id": "string", "card": "string", "paid_at": MOMENT},
    "told": {"payment_id": "string", "card": "string", "told_at": MOMENT, "loss": "int"},
}
SERVICES = ("intake", "feature", "inference", "labeler")
TRACES = [f"{number:032x}" for number in range(1, 61)]
UNSAMPLED = "c" * 32
PATIENCE_S = 90.0  # four processes start meanwhile


def declared(folder: Path) -> Pipeline:
    """A pipeline whose cards are personal, of one partition."""
    name = f"t{uuid4().hex[:8]}"
    (folder / name).mkdir()
    (folder / name / "pipeline.py").write_text(DECLARATION.format(name=name).lstrip())
    for record, fields in SCHEMAS.items():
        listed = [{"name": field, "type": kind, "pii": field == "card"} for field, kind in fields.items()]
        (folder / name / f"{record}.v1.avsc").write_text(json.dumps({"type": "record", "name": record.title(), "fields": listed}))
    return load_pipeline(name, folder)


def traceparent(trace: str, flags: str = "01") -> str:
    return f"00-{trace}-00f067aa0ba902b7-{flags}"


# What records are sent with, by the id of their event, and what of it is read.
GIVEN: dict[str, str | None] = {
    **{f"p{at}": traceparent(trace) for at, trace in enumerate(TRACES)},
    "unsampled": traceparent(UNSAMPLED, "00"),
    "none": None,
    "upper case": traceparent("A" * 32),
    "no trace": traceparent("0" * 32),
    "more than 00 has": f"{traceparent('d' * 32)}-01",
}
READ = {id: None if id in ("upper case", "no trace", "more than 00 has") else given for id, given in GIVEN.items()}


class Collector(ThreadingHTTPServer):
    """Takes what an exporter sends, by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__((HOST, 0), _Taking)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def spans(self) -> list[tuple[str, Any]]:
        """Each span with the name of its service."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found = []
        for resource in (one for body in self.bodies for one in ExportTraceServiceRequest.FromString(body).resource_spans):
            (name,) = [told.value.string_value for told in resource.resource.attributes if told.key == "service.name"]
            found += [(name, span) for scope in resource.scope_spans for span in scope.spans]
        return found


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf":
            self.server.bodies.append(body)  # type: ignore[attr-defined]  # the server is a Collector
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@dataclass
class Played:
    """What the processes left."""

    topics: Topics
    mark: str  # in every card
    predictions: dict[str, str | None]
    examples: dict[str, str | None]
    collector: Collector
    logs: dict[str, list[dict[str, Any]]]


async def publish(kafka: str, topic: str, mark: str) -> None:
    """As an application would; and one record that is none."""
    now_ms = int(time.time() * 1000)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=100)
    await producer.start()
    sent = []
    for id, trace in GIVEN.items():
        value = json.dumps({"payment_id": id, "card": f"card-{mark}-{id}", "paid_at": now_ms}).encode()
        headers = [] if trace is None else [("tenant", b"t"), ("traceparent", trace.encode())]
        sent.append(await producer.send(topic, value, headers=headers, partition=0))
    await asyncio.gather(*sent)
    await producer.send_and_wait(topic, b"{", headers=[("traceparent", traceparent("e" * 32).encode())], partition=0)
    await producer.stop()


def told(stack: Stack, topic: Topic, message: str) -> dict[str, str | None]:
    """The trace contexts on a topic of ours, by id."""

    async def read() -> dict[str, str | None]:
        reader = LogReader(stack.environment()["DRIFTLINE_KAFKA"], topic, Registry(stack.environment()["DRIFTLINE_REGISTRY"]))
        await reader.start()
        batches = await reader.read_to()
        await reader.stop()
        tables = [table for batch in batches.values() if (table := batch[message]) is not None]
        return {one["id"]: one["traceparent"] for table in tables for one in table.records()}

    return asyncio.run(read())


def is_all(found: dict[str, str | None]) -> bool:
    return len(found) == len(GIVEN)


@contextmanager
def running(stack: Stack, pipeline: Pipeline, folder: Path, collector: Collector) -> Iterator[None]:
    """The services between an upstream record and its example, on topics of their own."""
    kafka = stack.environment()["DRIFTLINE_KAFKA"]
    asyncio.run(ensure_topics(kafka, Topics.of(pipeline), 1))
    asyncio.run(create_topics(kafka, [NewTopic(stream.topic, 1, 1) for stream in pipeline.streams]))
    generate_keys(folder / "keys")
    own = {
        "DRIFTLINE_PIPELINES": str(folder),
        "DRIFTLINE_PII_KEY": "ab" * 32,
        "DRIFTLINE_MODEL_STORE": str(folder / "models"),
        "DRIFTLINE_MODEL_PUBLIC_KEY": str(folder / "keys" / "model-public.pem"),
        ENDPOINT: collector.url,
    }
    with ExitStack() as started:
        for name in SERVICES:
            started.enter_context(service(name, pipeline.name, {**os.environ, **stack.environment(), **own}, folder))
        yield


@pytest.fixture(scope="module")
def played(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Until each event has its example; then the services drain."""
    folder, collector, mark = tmp_path_factory.mktemp("traces"), Collector(), uuid4().hex
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    pipeline = declared(folder)
    topics = Topics.of(pipeline)
    with running(stack, pipeline, folder, collector):
        asyncio.run(publish(stack.environment()["DRIFTLINE_KAFKA"], pipeline.question.topic, mark))
        predictions = until(lambda: told(stack, topics.predictions, "prediction"), is_all, PATIENCE_S)
        examples = until(lambda: told(stack, topics.examples, "example"), is_all, PATIENCE_S)
    logs = {name: [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()] for name in SERVICES}
    yield Played(topics, mark, predictions, examples, collector, logs)
    collector.shutdown()
    collector.server_close()


def test_the_trace_context_of_a_record_is_on_its_prediction_and_its_example(played: Played) -> None:
    """
    As it was sent; what is not valid is ignored, and its event is answered and labelled as any other.
    """
    assert played.predictions == READ
    assert played.examples == READ


def test_each_service_sends_spans_with_links_to_the_traces_that_were_sampled(played: Played) -> None:
    """
    A few a batch, each of which says how many it leaves out; they end after they began.
    """
    spans = played.collector.spans()
    assert {name for name, _ in spans} == {f"driftline-{name}" for name in SERVICES}
    for name, span in spans:
        linked = [link.trace_id.hex() for link in span.links]
        attributes = {one.key: one.value.int_value for one in span.attributes}
        assert 1 <= len(linked) <= LINKS_MAX
        assert set(linked) <= set(TRACES), name
        assert attributes["driftline.links_left_out"] == 0 or len(linked) == LINKS_MAX
        assert span.end_time_unix_nano >= span.start_time_unix_nano > 0
    counted = {name: sum(len(span.links) + _left_out(span) for other, span in spans if other == name) for name, _ in spans}
    assert min(counted.values()) >= len(TRACES)  # more where a batch was taken again


def _left_out(span: Any) -> int:
    return next(int(one.value.int_value) for one in span.attributes if one.key == "driftline.links_left_out")


def test_spans_hold_places_and_numbers_and_nothing_personal(played: Played) -> None:
    """
    No card, no id of an event.
    """
    assert played.collector.bodies
    assert not any(played.mark.encode() in body or b"unsampled" in body for body in played.collector.bodies)


def test_the_log_tells_the_trace_of_a_record_that_is_refused(played: Played) -> None:
    """
    With its place and the reason.
    """
    (line,) = [line for line in played.logs["intake"] if line["event"] == "dead letter"]
    assert (line["trace_id"], line["reason"], line["partition"], line["offset"]) == ("e" * 32, "undecodable", 0, len(GIVEN))
