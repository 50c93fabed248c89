"""
The floor: each part of driftline's three hops alone, one after the other in one process, on the same topics. What the whole costs beyond
their sum is the loop around them: asyncio, metrics, and what lies cold in the caches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from aiokafka.admin import NewTopic

from driftline.contracts.messages import Deployment, Writer, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.models.bundle import BundleStore, load_public_key
from driftline.stream.batch import Batch, Core, Messages, sifted
from driftline.stream.kafka import LogReader, Sink, Source, create_topics
from driftline.stream.ledger import Entry, RedisLedger
from driftline.stream.parse import Parser
from driftline.stream.records import Decoder, Encoder, Polled, drop_seen
from driftline.stream.store import Store
from services.feature.core import Feature
from services.inference.core import Inference
from services.intake.core import FOREVER, Intake

from .hops import Bench, Driftline, benched
from .meter import US

POLL_MAX = 4_000
PARTS = ("poll", "decode", "think", "ONNX", "store", "encode", "send")


class Scoring(Protocol):
    """A model, as far as it matters here."""

    def score(self, matrix: Any) -> Any: ...


class Spent:
    """Processor time of this process, by part."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """What happens within is done for `part`."""
        began = time.process_time()
        yield
        self.seconds[part] += time.process_time() - began

    def us(self, n: int) -> dict[str, float]:
        """Per event."""
        return {part: US * self.seconds[part] / n for part in PARTS if self.seconds[part]}


class Timed:
    """A model of which it is known how long it takes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def score(self, matrix: Any) -> Any:
        """As the model says."""
        began = time.process_time()
        scores = self._model.score(matrix)
        self.seconds += time.process_time() - began
        return scores


class Parts:
    """The parts of the three services on what `Driftline` left on the topics."""

    def __init__(self, bench: Bench, ours: Driftline) -> None:
        self._bench = bench
        self._ours = ours
        self._registry = Registry(bench.stack.environment()["DRIFTLINE_REGISTRY"])
        self._topics = Topics.of(ours.pipeline)

    async def intake(self) -> dict[str, float]:
        """Upstream records to the log."""
        spent, pipeline = Spent(), self._ours.pipeline
        parser, merge = Parser(pipeline.streams[0], self._registry, b""), Intake(pipeline, 1, [(0, 0)], None, {})
        end_ms = self._bench.payments.end_ms
        polls = await self._polled(pipeline.streams[0].topic, spent)
        messages: list[Sequence[Messages]] = []
        for at, polled in enumerate(polls):
            with spent.on("decode"):
                arrived, _ = parser.parse(polled, end_ms)
            with spent.on("think"):
                merge.add((0, 0), arrived)
                last = at == len(polls) - 1
                emitted = merge.emit(FOREVER, end_ms if last else None, 1, len(arrived) + 10_000, clock_ms=end_ms)
            messages.append(emitted.messages)
        await self._sent("intake", Writer.INTAKE, [self._topics.events], messages, spent)
        return spent.us(self._bench.payments.n)

    async def feature(self) -> dict[str, float]:
        """The log to rows, state into the store."""
        spent, core = Spent(), Feature(self._ours.pipeline, 0)
        messages, states = await self._stepped(core, self._topics.events, spent)
        ledger = RedisLedger(Store(self._bench.stack.environment()["DRIFTLINE_REDIS"]), "parts", 0)
        await ledger.open()
        for at, state in enumerate(states):
            with spent.on("store"):
                await ledger.commit(Entry(at, {}, None, "", {}, "", 0), state)
        await ledger.close()
        await self._sent("feature", Writer.FEATURE, [self._topics.features, self._topics.journal], messages, spent)
        return spent.us(self._bench.payments.n)

    async def inference(self) -> dict[str, float]:
        """Rows to predictions and answers."""
        spent, core = Spent(), Inference(self._ours.pipeline)
        bundles = BundleStore(self._ours.champion.models, trusts=load_public_key(self._ours.champion.public))
        reader = LogReader(self._bench.kafka, self._topics.deployments, self._registry)
        await reader.start()
        deployments: list[Deployment] = [one for batch in (await reader.read_to()).values() for one in facts(batch.tables["deployment"])]
        await reader.stop()
        models = {digest: Timed(bundles.model(digest)) for one in deployments for digest in one.digests}
        for deployment in deployments:
            core.add(deployment, models)  # type: ignore[arg-type]  # it passes on what it does not know
        messages, _ = await self._stepped(core, self._topics.features, spent)
        spent.seconds["ONNX"] = sum(model.seconds for model in models.values())
        spent.seconds["think"] -= spent.seconds["ONNX"]
        await self._sent("inference", Writer.INFERENCE, [self._topics.predictions, self._topics.journal], messages, spent)
        return spent.us(self._bench.payments.n)

    async def _polled(self, topic: str, spent: Spent) -> list[Polled]:
        source = Source(self._bench.kafka, topic, 0)
        await source.start()
        source.seek(0)
        end, found = await source.end_now(), list[Polled]()
        with spent.on("poll"):
            while not found or found[-1].last + 1 < end:
                polled = await source.poll(POLL_MAX, 10_000)
                if polled is not None:
                    found.append(polled)
        await source.stop()
        return found

    async def _stepped(self, core: Core, topic: Topic, spent: Spent) -> tuple[list[Sequence[Messages]], list[Any]]:
        decoder, seen = Decoder(topic, self._registry, self._ours.pipeline), {}
        messages, states = [], []
        for polled in await self._polled(topic.name, spent):
            with spent.on("decode"):
                batch, _ = sifted(core, *decoder.decode(0, polled))
                batch, seen = drop_seen(batch, seen)
            with spent.on("think"):
                effects = _step(core, batch)
            messages.append(effects.messages)
            states.append(effects.state)
        return messages, states

    async def _sent(self, service: str, writer: int, topics: Sequence[Topic], steps: Sequence[Sequence[Messages]], spent: Spent) -> None:
        """Encode all, then send all: a sink encodes too, so what that takes is taken off."""
        written = {topic.kind: replace(topic, name=f"parts-{service}-{topic.kind}") for topic in topics}
        await create_topics(self._bench.kafka, [NewTopic(topic.name, 1, 1) for topic in written.values()])
        encoder = Encoder(written, self._registry, writer)
        with spent.on("encode"):
            for step in steps:
                for messages in step:
                    encoder.values(messages, 0)
        sink = Sink(self._bench.kafka, written, encoder, "parts")
        await sink.start()
        with spent.on("send"):
            for step in steps:
                await sink.send(step, 0, 0)
        spent.seconds["send"] -= spent.seconds["encode"]
        await sink.stop()


def _step(core: Core, batch: Batch) -> Any:
    while keys := core.needs(batch):
        core.load(dict.fromkeys(keys))
    return core.step(batch)


async def measure(n: int) -> dict[str, Any]:
    """Each part of each service, and the whole of each, microseconds an event."""
    async with benched(n, sys.executable) as bench:
        ours = Driftline(bench)
        await ours.prepare()
        whole = {service: (await ours.measure(service)).us["client"] for service in ("intake", "feature", "inference")}
        parts = Parts(bench, ours)
        found = {"intake": await parts.intake(), "feature": await parts.feature(), "inference": await parts.inference()}
        return {service: {"whole": round(whole[service], 3), "parts": _rounded(one)} for service, one in found.items()}


def _rounded(us: dict[str, float]) -> dict[str, float]:
    return {part: round(cost, 3) for part, cost in us.items()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)), indent=1))
