"""The trainer against a real broker: commands in, releases and outcomes out, and all that it knows read back from the logs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid

import numpy as np
import pytest

from driftline.clock import SystemClock
from driftline.contracts.chain import seal
from driftline.contracts.messages import Source, Writer, as_messages, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Fatal, Invalid
from driftline.models.bundle import BundleStore, generate_keys, load_private_key, load_public_key
from driftline.stream.batch import Messages, Varlen
from driftline.stream.kafka import LogReader, Publisher, ensure_topics
from driftline.stream.whole import as_written
from services.trainer.app import Trainer, train_again

DAY_MS = 86_400_000
ANSWERED_WITHIN_S = 120


class Loop:
    """The topics of a pipeline of its own, what stands around the trainer, and one trainer at a time."""

    def __init__(self, pipeline, kafka, registry_url, folder):
        self.pipeline = dataclasses.replace(pipeline, name=f"trained{uuid.uuid4().hex[:8]}")
        self.topics = Topics.of(self.pipeline)
        self.kafka = kafka
        self.registry = Registry(registry_url)
        secret, public = generate_keys(folder)
        self.key = load_private_key(secret)
        self.store = BundleStore(folder / "models", load_public_key(public))

    async def publish(self, writer, *messages, partition=0):
        """As `writer` would."""
        publisher = Publisher(self.kafka, self.topics, self.registry, writer)
        await publisher.start()
        await publisher.send(*messages, partition=partition)
        await publisher.stop()

    async def fill(self, world):
        """Journal and examples of the whole world, settled up to a later time."""
        await ensure_topics(self.kafka, self.topics, 2)
        for partition in (0, 1):
            mine = world.of(partition)
            await self.publish(Writer.INFERENCE, answers(world, mine), partition=partition)
            await self.publish(Writer.LABELER, examples(world, mine), settled(world), partition=partition)

    async def command(self, *commands, first=0):
        """Retrain commands from drift, numbered from `first`."""
        numbers = range(first, first + len(commands))
        at = {"source": Source.SUMMARIES, "offsets": list(numbers), "indexes": [0] * len(commands), "partition": 0}
        await self.publish(Writer.DRIFT, as_messages("retrain", "retrain", commands, **at))

    @contextlib.asynccontextmanager
    async def trainer(self):
        """A trainer that runs meanwhile, and is told to stop in the end."""
        trainer = Trainer(self.pipeline, self.kafka, self.registry, self.store, self.key, SystemClock())
        running = asyncio.create_task(trainer.run())
        try:
            yield running
        finally:
            trainer.stop()
            await running

    async def outcomes(self, number, running):
        """The first `number` outcomes on summaries, as soon as they are there."""
        reader = LogReader(self.kafka, self.topics.summaries, self.registry)
        await reader.start()
        found = []
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                while len(found) < number and not running.done():
                    found += [fact for batch in await reader.next(0.2) if batch["trained"] for fact in facts(batch["trained"])]
        finally:
            await reader.stop()
        return found

    async def releases(self):
        """All releases on control."""
        reader = LogReader(self.kafka, self.topics.control, self.registry)
        await reader.start()
        batches = await reader.read_to()
        await reader.stop()
        return [fact for batch in batches.values() for fact in facts(batch["release"])]


def common(world, index, source):
    n = len(index)
    return {
        "source": np.full(n, source),
        "offset": world.event_offset[index],
        "index": np.zeros(n, np.int64),
        "event_offset": world.event_offset[index],
        "id": Varlen.of(f"flight-{at}" for at in index.tolist()),
        "key": Varlen.of(f"N{at}" for at in index.tolist()),
        "deployment": np.zeros(n, np.int64),
        "arm": Varlen.repeat("none", n),
        "share": np.ones(n, np.float32),
        "shadow": np.zeros(n, np.bool_),
        "model": Varlen.repeat("", n),
        "digest": Varlen.repeat("", n),
        "score": np.full(n, 0.5, np.float32),
    }


def answers(world, index):
    batch = world.answers(0, index)["answer"]
    columns = common(world, index, Source.EVENTS) | batch.columns | {"flags": np.ones(len(index), np.int64)}
    columns |= {"time": world.asked[index], "visible": world.asked[index], "alert": np.zeros(len(index), np.bool_)}
    columns["slices"] = world.examples(0, index)["example"]["slices"]
    return Messages("journal", "answer", columns["key"], columns, columns["offset"])


def examples(world, index):
    n = len(index)
    columns = common(world, index, Source.JOURNAL) | world.examples(0, index)["example"].columns
    columns |= {"origin": Varlen.repeat("arrivals", n), "flags": np.ones(n, np.int64)}
    return Messages("examples", "example", columns["key"], columns, columns["offset"])


def settled(world):
    number = (world.start + 60 * DAY_MS) // 600_000
    columns = {name: np.array([0]) for name in ("source", "partition", "index", "deployment")}
    columns |= {"offset": np.array([number]), "event_offset": np.array([-1]), "time": np.array([number * 600_000])}
    return Messages("examples", "tick", None, columns, np.array([1 << 40]))


@pytest.fixture
def loop(pipeline, kafka, registry_url, tmp_path):
    return Loop(pipeline, kafka, registry_url, tmp_path)


async def test_every_command_ends_in_an_outcome_and_a_restarted_trainer_repeats_none(loop, world, command):
    """
    The first is trained and released, the next comes too early, its copy is known; a new process reads all that from the logs.
    """
    await loop.fill(world)
    await loop.command(command(14, id="a", trigger="first"), command(16, id="b"), command(40, id="a"))
    async with loop.trainer() as running:
        first = await loop.outcomes(3, running)
    assert [(one.id, one.outcome) for one in first] == [("a", "accepted"), ("b", "cooldown"), ("a", "duplicate")]

    await loop.command(command(17, id="c"), first=3)
    async with loop.trainer() as running:
        again = await loop.outcomes(4, running)
    assert again[:3] == first
    assert (again[3].id, again[3].outcome) == ("c", "cooldown")

    (release,) = await loop.releases()
    assert (release.model, release.first, release.verdict, release.command) == (f"{loop.pipeline.name}-1", True, "accepted", "a")
    assert release.evidence["dataset"]["without_model"] == release.evidence["dataset"]["rows"] == again[0].rows
    assert loop.store.model(release.digest).manifest.model == release.model
    _, log = await as_written(loop.kafka, loop.topics.retrain.name, below=1)
    assert release.evidence["commands"] == {"from": 0, "sha256": seal([(0, int(log.timestamps[0]), log.keys.get(0), log.values.get(0))])}


async def test_a_model_can_be_trained_again_from_the_logs_alone(loop, world, command):
    """
    The same digest; from a log on which its labels are missing it is refused, and for other features too.
    """
    await loop.fill(world)
    await loop.command(command(14, id="a", trigger="first"))
    async with loop.trainer() as running:
        (outcome,) = await loop.outcomes(1, running)
    manifest = loop.store.get(outcome.digest).manifest
    assert await train_again(manifest, loop.pipeline, loop.kafka, loop.registry) == outcome.digest

    elsewhere = dataclasses.replace(loop.pipeline, name=loop.pipeline.name + "x")
    await ensure_topics(loop.kafka, Topics.of(elsewhere), 2)
    with pytest.raises(Fatal, match="not all on the log"):
        await train_again(manifest, elsewhere, loop.kafka, loop.registry)
    changed = dataclasses.replace(loop.pipeline, layout=dataclasses.replace(loop.pipeline.layout, version="another"))
    with pytest.raises(Invalid, match="another"):
        await train_again(manifest, changed, loop.kafka, loop.registry)


async def test_a_command_that_cannot_be_trained_ends_as_failed_with_the_reason(loop, worlds, command):
    """
    Too short a history: said on the log, and the trainer goes on.
    """
    await loop.fill(worlds(days=3))
    await loop.command(command(5, id="a", trigger="first"), command(30, id="b", trigger="first"))
    async with loop.trainer() as running:
        outcomes = await loop.outcomes(2, running)
    assert [(one.id, one.outcome) for one in outcomes] == [("a", "failed"), ("b", "failed")]
    assert "are needed" in outcomes[0].reason
    assert outcomes[0].rows > 0
