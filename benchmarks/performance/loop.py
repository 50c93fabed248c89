"""
The flights pipeline whole: intake, feature, inference, labeler and drift on upstream topics that are full, as fast as they go.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic

from driftline.contracts.messages import ClockRecord, End, Writer, as_messages
from driftline.contracts.messages import Source as Log
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.local.player import Play, Script, load_applications
from driftline.local.stack import Stack
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.kafka import Publisher, create_topics, ensure_topics

from .bundles import Champion
from .hops import publish
from .meter import Cost, Sample, TooSlow, cpu_s, slope

PARTITIONS = 2
QUIET_S = 5.0  # logs that have not grown for so long have all that there is, once each service has written something
SAMPLE_S = 0.1
PATIENCE_S = 900.0
OUTPUT_OF = {"intake": "events", "feature": "features", "inference": "predictions", "labeler": "examples", "drift": "summaries"}


@dataclass(frozen=True)
class Whole:
    """What the loop cost: processor time of each party per upstream message, and upstream messages a second."""

    messages: int
    seconds: float
    us: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Upstream messages a second, from the first tenth of the log to the last output of the slowest service."""
        return self.messages / self.seconds


async def measure(days: int) -> Whole:
    """Play so many days of flights at once."""
    pipeline = load_pipeline("flights")
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), environment={}) as stack:
        champion = Champion(pipeline, stack.folder)
        messages = await _prepare(stack, pipeline, champion, days)
        pids = {}
        for service in OUTPUT_OF:
            command = [sys.executable, "-m", "driftline", "run", service, "--pipeline", pipeline.name, "--log-level", "warning"]
            environment = {"DRIFTLINE_REPLAY": "true", "DRIFTLINE_PII_KEY": "00" * 32, "POLARS_MAX_THREADS": "1", **champion.environment}
            pids[service] = stack.spawn(service, command, environment).pid
        assert stack.kafka is not None and stack.valkey is not None
        pids |= {"broker": stack.kafka.pid, "store": stack.valkey.pid}
        samples = await _watch(stack.environment()["DRIFTLINE_KAFKA"], Topics.of(pipeline), pids)
        return _whole(samples, pids, messages)


async def _prepare(stack: Stack, pipeline: Pipeline, champion: Champion, days: int) -> int:
    """Topics, upstream records, a model in force from the first tick on, one clock record. How many upstream messages there are."""
    kafka, registry, topics = (
        stack.environment()["DRIFTLINE_KAFKA"],
        Registry(stack.environment()["DRIFTLINE_REGISTRY"]),
        Topics.of(pipeline),
    )
    await ensure_topics(kafka, topics, PARTITIONS)
    ends = await _publish(kafka, pipeline, registry, days)
    await champion.deploy(champion.put_any(), kafka, registry)
    start_ms = 1_356_998_400_000  # 2013-01-01, where the flights begin
    record = ClockRecord(
        start_ms + days * 86_400_000, 1, tuple(End(topic, partition, end) for (topic, partition), end in ends.items()), True
    )
    player = Publisher(kafka, topics, registry, Writer.PLAYER)
    await player.send(as_messages("clock", "clock", [record], source=Log.CLOCK, offsets=[0], indexes=[0]))
    await player.stop()
    return sum(ends.values())


async def _publish(kafka: str, pipeline: Pipeline, registry: Registry, days: int) -> Mapping[tuple[str, int], int]:
    """All upstream messages. Where each partition ends."""
    play = Play(days, partitions=PARTITIONS, faults=False)
    applications = load_applications(pipeline.folder, days, play.start)
    streams = [stream for stream in pipeline.streams if not applications.is_json(stream.topic)]
    ids = {stream.topic: registry.register(f"{stream.topic}-value", dict(stream.schema)) for stream in streams}
    script = Script(pipeline.streams, applications, play, ids)
    await create_topics(kafka, [NewTopic(stream.topic, PARTITIONS, 1) for stream in pipeline.streams])
    ends: Counter[tuple[str, int]] = Counter()
    producer = AIOKafkaProducer(bootstrap_servers=kafka, max_batch_size=900_000, acks="all")
    await producer.start()
    for day in range(days):
        for lot in script.lots(day):
            await publish(producer, lot.topic, lot.partition, ((message.key, message.value) for message in lot.messages))
            ends[lot.topic, lot.partition] += len(lot.messages)
    await producer.stop()
    return ends


async def _watch(kafka: str, topics: Topics, pids: Mapping[str, int]) -> dict[str, list[Sample]]:
    """Samples by service, until nothing has grown for a while."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    samples: dict[str, list[Sample]] = {service: [] for service in OUTPUT_OF}
    counts = {"summaries": 1}
    began, grown, before = time.monotonic(), time.monotonic(), -1
    try:
        while time.monotonic() - grown < QUIET_S or not all(mine and mine[-1].outputs for mine in samples.values()):
            if time.monotonic() - began > PATIENCE_S:
                raise TooSlow("the loop has not come to its end")
            used, now, total = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic(), 0
            for service, kind in OUTPUT_OF.items():
                at = [TopicPartition(topics[kind].name, number) for number in range(counts.get(kind, PARTITIONS))]
                outputs = sum((await consumer.end_offsets(at)).values())
                samples[service].append(Sample(now, outputs, used))
                total += outputs
            if total != before:
                before, grown = total, now
            await asyncio.sleep(SAMPLE_S)
    finally:
        await consumer.stop()
    return samples


def _whole(samples: Mapping[str, list[Sample]], pids: Mapping[str, int], messages: int) -> Whole:
    """Each service by the growth of its own topic, from its first tenth on, as a share of the upstream messages."""
    us = {}
    for service, mine in samples.items():
        outputs = mine[-1].outputs
        done = next(at for at, one in enumerate(mine) if one.outputs == outputs)
        us[service] = slope(mine[: done + 1], outputs).us[service] * outputs / messages
    cost = _together(samples)
    us |= {name: cost.us[name] * cost.outputs / (0.9 * messages) for name in pids if name not in us}
    return Whole(int(0.9 * messages), cost.seconds, us)


def _together(samples: Mapping[str, list[Sample]]) -> Cost:
    """From the first tenth of the log to the last output of the slowest service."""
    last = max(next(one.at_s for one in mine if one.outputs == mine[-1].outputs) for mine in samples.values())
    log = [one for one in samples["intake"] if one.at_s <= last]
    return slope(log, log[-1].outputs)
