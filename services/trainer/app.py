"""
The trainer process: retrain commands in, releases and the outcome of each command out. It keeps nothing that the logs do not:
which commands are answered, what was tried when and who is champion is read from them again before every command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from driftline.clock import Clock
from driftline.contracts.chain import seal
from driftline.contracts.messages import Release, Retrain, Source, Trained, Writer, as_messages, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal, Invalid
from driftline.logs import log
from driftline.metrics import metric
from driftline.models.bundle import BundleStore, Manifest, Model, load_private_key, load_public_key
from driftline.models.recipes import recipe_of
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Batch
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import LogReader, Publisher
from driftline.stream.letterbox import Letterbox
from driftline.stream.process import Ops, Process
from driftline.stream.whole import as_written

from . import core
from .dataset import History

COMMAND_WAIT_S = 0.5
LABELS_WAIT_S = 30.0  # for labels that are on their way when a command comes


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    pipeline: str
    registry: str
    model_private_key: str
    model_public_key: str
    model_store: str = "/var/lib/driftline/models"
    kafka: str = "127.0.0.1:9092"
    dead_letters_max: int = 10_000
    ops_host: str = "127.0.0.1"
    ops_port: int = 0
    run_dir: str = ""


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline = load_pipeline(settings.pipeline)
    store = BundleStore(Path(settings.model_store), trusts=load_public_key(settings.model_public_key))
    key = load_private_key(settings.model_private_key)
    trainer = Trainer(pipeline, settings.kafka, Registry(settings.registry), store, key, clock, settings.dead_letters_max)
    return Process(
        "trainer", [trainer], Ops("trainer", settings.ops_port, Path(settings.run_dir) if settings.run_dir else None, settings.ops_host)
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command led to: how it ended, and the release where something was trained."""

    trained: Trained
    release: Release | None = None


class Rows:
    """Journal and examples, read up to now whenever asked, and kept."""

    def __init__(self, pipeline: Pipeline, kafka: str, registry: Registry) -> None:
        topics = Topics.of(pipeline)
        self._journal = LogReader(kafka, topics.journal, registry)
        self._examples = LogReader(kafka, topics.examples, registry)
        self.history = History(pipeline.layout)

    async def start(self) -> None:
        """Connect."""
        await self._journal.start()
        await self._examples.start()

    async def read(self, time: int) -> int:
        """
        Read until every label that was known by `time` is there, so that what a command is trained on does not depend on how
        far the labeler happens to be. Returns up to when the labels are complete: `time`, or less when they do not come.
        """
        deadline = asyncio.get_running_loop().time() + LABELS_WAIT_S
        while True:
            examples = await self._examples.read_to()
            journal = await self._journal.read_to()
            await asyncio.to_thread(self._add, list(examples.values()), list(journal.values()))
            settled = self.history.settled(list(self._examples.positions))
            if settled >= time or asyncio.get_running_loop().time() > deadline:
                return min(time, settled)
            await asyncio.sleep(0.05)

    def _add(self, examples: Sequence[Batch], journal: Sequence[Batch]) -> None:
        for batch in examples:
            self.history.add_examples(batch)
        for batch in journal:
            self.history.add_journal(batch)

    async def stop(self) -> None:
        """Disconnect."""
        await self._journal.stop()
        await self._examples.stop()


class Trainer:
    """The one part of the process. Training runs in a thread, so that `/healthz` answers meanwhile."""

    def __init__(
        self,
        pipeline: Pipeline,
        kafka: str,
        registry: Registry,
        store: BundleStore,
        key: Ed25519PrivateKey,
        clock: Clock,
        letters_max: int = 10_000,
    ) -> None:
        topics = Topics.of(pipeline)
        self._pipeline = pipeline
        self._kafka = kafka
        self._store = store
        self._key = key
        self._publisher = Publisher(kafka, topics, registry, Writer.TRAINER, clock, client=f"{pipeline.name}-trainer")
        letters = DeadLetters(pipeline.name, "trainer", Source.RETRAIN, letters_max)
        letterbox = Letterbox(letters, self._publisher, topics.retrain, kafka, topics, clock)
        self._commands = LogReader(kafka, topics.retrain, registry, wait_ms=1_000, set_aside=letterbox.put)
        self._followed = {topic.kind: LogReader(kafka, topic, registry) for topic in _followed(topics)}
        self._rows = Rows(pipeline, kafka, registry)
        self._state = core.State()
        self._stopping = False
        self.ready = False

    async def run(self) -> None:
        """Answer commands in the order of their topic until stopped."""
        parts: list[Any] = [self._publisher, self._commands, self._rows, *self._followed.values()]
        try:
            for part in parts:
                await part.start()
            self.ready = True
            while not self._stopping:
                for batch in await self._commands.next(COMMAND_WAIT_S):
                    await self._take(batch)
        finally:
            for part in parts:
                await part.stop()

    def stop(self) -> None:
        """Finish the command in hand, then leave."""
        self._stopping = True

    async def _take(self, batch: Batch) -> None:
        for offset, command in commands(batch):
            if self._stopping:
                return  # it is still on the topic, unanswered
            await self._follow()
            if offset not in self._state.answered:
                await self._publish(offset, await self._answer(offset, command))

    async def _follow(self) -> None:
        """Bring the state up to what the logs say now."""
        self._state = await follow(self._state, self._followed)

    async def _answer(self, offset: int, command: Retrain) -> Answer:
        held = core.decide(command, offset, self._state, self._pipeline)
        if held is not None:
            return Answer(core.trained(command, held.outcome, held.reason, 0))
        until = await self._rows.read(command.time)
        answer = await asyncio.to_thread(self._train, offset, command, until)
        if answer.release is None:
            return answer
        sealed = replace(answer.release, evidence=answer.release.evidence | {"commands": await self._sealed(offset)})
        return replace(answer, release=sealed)

    async def _sealed(self, offset: int) -> dict[str, Any]:
        """All commands up to this one, as they are on the log: the release goes on control, whose records are chained (decision 0019)."""
        start, polled = await as_written(self._kafka, Topics.of(self._pipeline).retrain.name, offset + 1)
        places = zip(polled.offsets.tolist(), polled.timestamps.tolist(), strict=True)
        records = ((at, stamped, polled.keys.get(n), polled.values.get(n)) for n, (at, stamped) in enumerate(places))
        return {"from": start, "sha256": seal(records)}

    def _train(self, offset: int, command: Retrain, until: int) -> Answer:
        """Everything that takes long. What cannot be trained ends as failed; only what nobody foresaw stops the process."""
        rows = 0
        try:
            dataset = self._rows.history.dataset(until)
            rows = len(dataset)
            champion = self._champion(command)
            name = f"{self._pipeline.name}-{self._state.number(offset)}"
            order = core.Order(name, self._pipeline.model, command.time, command.trigger, champion is None)
            candidate = core.train_model(dataset, self._pipeline, order, until)
            verdict = core.judge(candidate, self._pipeline, champion, refresh=command.trigger == "schedule")
            self._store.put(candidate.manifest, candidate.onnx, self._key)
        except Invalid as error:
            return Answer(core.trained(command, "failed", str(error), rows))
        without_row = self._rows.history.without_row
        told = core.evidence(candidate, verdict, champion, looks=self._state.looks + 1, without_row=without_row)
        release = core.release(command, candidate, verdict, told)
        return Answer(core.trained(command, release.verdict, release.reason, rows, release), release)

    def _champion(self, command: Retrain) -> Model | None:
        champion = self._state.champion(command.time)
        return None if champion is None else self._store.model(champion.digest)

    async def _publish(self, offset: int, answer: Answer) -> None:
        """The release before the outcome: what is cut off between the two is trained again, to the same bytes."""
        at: dict[str, Any] = {"source": Source.RETRAIN, "offsets": [offset], "indexes": [0], "partition": 0}
        if answer.release is not None:
            await self._publisher.send(as_messages("control", "release", [answer.release], **at))
        await self._publisher.send(as_messages("summaries", "trained", [answer.trained], **at))
        told = answer.trained
        metric("driftline_retrain_commands_total").labels(pipeline=self._pipeline.name, reason=told.trigger, outcome=told.outcome).inc()
        if told.outcome in core.ATTEMPTS:
            metric("driftline_training_runs_total").labels(pipeline=self._pipeline.name, verdict=told.outcome).inc()
        log.info("command answered", command=told.id, outcome=told.outcome, because=told.reason, rows=told.rows, model=told.model)


def _followed(topics: Topics) -> tuple[Topic, Topic, Topic]:
    return topics.summaries, topics.control, topics.deployments


def commands(batch: Batch) -> Iterator[tuple[int, Retrain]]:
    """The retrain commands of a batch, each with its offset."""
    table = batch["retrain"]
    if table is not None:
        yield from zip(table.offsets.tolist(), facts(table), strict=True)


async def follow(state: core.State, readers: dict[str, LogReader]) -> core.State:
    """`state` with whatever summaries, control and deployments have told since the readers last read."""
    for batch in (await readers["summaries"].read_to()).values():
        if (outcomes := batch["trained"]) is not None:
            state = state.with_trained(outcomes["offset"].tolist(), facts(outcomes))
    for batch in (await readers["control"].read_to()).values():
        if (releases := batch["release"]) is not None:
            state = state.with_releases(releases.take(releases["writer"] == Writer.TRAINER)["offset"].tolist())
    for batch in (await readers["deployments"].read_to()).values():
        if (deployments := batch["deployment"]) is not None:
            state = state.with_deployments(facts(deployments))
    return state


async def reproduce(settings: Settings, digest: str) -> str:
    """
    Train again what the bundle `digest` says of itself, from the rows that are on the logs now, and return the digest of that.

    Raises Invalid when there is no such bundle or when the pipeline's features have changed since, Fatal when its labels are
    not all on the log.
    """
    store = BundleStore(Path(settings.model_store), trusts=load_public_key(settings.model_public_key))
    manifest = store.get(digest).manifest
    return await train_again(manifest, load_pipeline(settings.pipeline), settings.kafka, Registry(settings.registry))


async def train_again(manifest: Manifest, pipeline: Pipeline, kafka: str, registry: Registry) -> str:
    """The digest of what comes out when the training that `manifest` tells of is done again. Raises as `reproduce` does."""
    if manifest.layout != pipeline.layout.version:
        raise Invalid(f"{manifest.model} was trained on the features {manifest.layout}, the pipeline makes {pipeline.layout.version} now")
    rows = Rows(pipeline, kafka, registry)
    try:
        await rows.start()
        until = int(manifest.dataset["split"]["until"])
        if await rows.read(until) < until:
            raise Fatal(f"the labels that {manifest.model} was trained on are not all on the log of {kafka}")
        dataset = await asyncio.to_thread(rows.history.dataset, until)
    finally:
        await rows.stop()
    first = manifest.dataset["split"]["kind"] == "forward"
    order = core.Order(manifest.model, recipe_of(manifest.recipe), manifest.trained_at, manifest.trigger, first)
    return (await asyncio.to_thread(core.train_model, dataset, pipeline, order, until)).digest
