"""
The ways by which records are consumed, each tried with good ones and mutants in one poll.

A trial runs three times. With everything (`x`), begun anew from a good state every few polls: nothing may be raised, and what is
refused is told. With the good ones and those mutants that were refused (`m`), and with the good ones alone (`g`): what the two send
and what they keep must be the same to the byte, for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from aiokafka import TopicPartition
from stages import Sent, Stage, Subject
from world import DIGEST, WRITTEN_MS, Steady, World

from driftline.contracts.bounds import Declared
from driftline.contracts.messages import Source, Writer, facts
from driftline.contracts.topics import Topic
from driftline.stream.batch import Batch, Refused
from driftline.stream.dead_letters import REASONS, DeadLetters
from driftline.stream.kafka import MESSAGE_BYTES_MAX, LogReader
from driftline.stream.parse import Parser
from driftline.stream.records import Decoder, Encoder, Polled
from services.inference.core import Inference
from services.intake.core import Intake
from services.rollout.app import Entry, Folding
from services.trainer import core as trainer
from services.trainer.app import commands
from services.trainer.dataset import History

EPISODE = 8  # polls before `x` begins anew


class Path(Protocol):
    """One topic and one who consumes it."""

    name: str
    topic: str  # whose good records are used
    ours: bool

    async def trial(self, polled: Polled, mutants: frozenset[int]) -> dict[int, str]:
        """The reasons of what was refused, by offset. Raises whatever must not be raised, AssertionError where neighbours suffered."""

    async def alone(self, polled: Polled) -> None:
        """The same with a few records and without comparing, to measure the time."""

    async def begin(self) -> None:
        """Forget everything: the topic begins again."""


def _without(polled: Polled, offsets: frozenset[int] | set[int]) -> Polled:
    return polled.take(~np.isin(polled.offsets, list(offsets)))


def checked(letters: dict[int, str], mutants: frozenset[int], where: str) -> dict[int, str]:
    """The letters, once it is known that they are of mutants alone and that their reasons are of the closed list."""
    good = sorted(letters.keys() - mutants)
    assert not good, f"{where}: good neighbours were refused: {[(offset, letters[offset]) for offset in good[:3]]}"
    assert set(letters.values()) <= set(REASONS), f"{where}: {set(letters.values()) - set(REASONS)}"
    return letters


@dataclass
class Upstream:
    """An upstream topic, through the parser and the merge."""

    world: World
    number: int
    topic: str
    pii: tuple[str, ...] = ()
    ours: bool = False

    def __post_init__(self) -> None:
        self.name = self.topic + (", personal fields" if self.pii else "")

    async def begin(self) -> None:
        stream = replace(self.world.pipeline.streams[self.number], pii=self.pii)
        names = {*self.world.pipeline.slices, *(field for view in self.world.pipeline.views for field in view.by)}
        self._parser = Parser(stream, self.world.registry, b"k" * 32, names)
        self._encoder = Encoder({"events": self.world.topics.events}, self.world.registry, Writer.INTAKE)
        key, sealed = bytes(range(32)), [stream.topic] if self.pii else []
        self._letters = DeadLetters("flights", "intake", 16 + self.number, 10**9, key=key, sealed=sealed)

    async def trial(self, polled: Polled, mutants: frozenset[int]) -> dict[int, str]:
        arrived, refused = self._parser.parse(polled, WRITTEN_MS)
        self._kept(polled, refused)
        good, none = self._parser.parse(_without(polled, mutants), WRITTEN_MS)
        assert not none
        theirs = arrived.take(np.flatnonzero(~np.isin(arrived.offsets, sorted(mutants))))
        for name in ("offsets", "times", "visible", "ids", "keys", "bodies"):
            assert list(getattr(theirs, name)) == list(getattr(good, name)), f"{self.name}: {name} of good neighbours changed"
        self._emitted(arrived)
        return checked({one.offset: one.reason for one in refused}, mutants, self.name)

    async def alone(self, polled: Polled) -> None:
        arrived, refused = self._parser.parse(polled, WRITTEN_MS)
        self._kept(polled, refused)
        self._emitted(arrived)

    def _kept(self, polled: Polled, refused: Sequence[Refused]) -> None:
        for letters in self._letters.of("flights", 0, polled, refused):
            assert len(letters) == len(refused)

    def _emitted(self, arrived: Any) -> None:
        """Whatever was taken can be put on the log."""
        intake = Intake(self.world.pipeline, 1, [(self.number, 0)], None, {})
        intake.add((self.number, 0), arrived)
        for messages in intake.emit(WRITTEN_MS, WRITTEN_MS, 1, len(arrived) + 10, clock_ms=WRITTEN_MS).messages:
            keys = messages.keys.tolist() if messages.keys is not None else [b""] * len(messages)
            for key, value in zip(keys, self._encoder.values(messages, 0), strict=True):
                assert len(key) + len(value) <= MESSAGE_BYTES_MAX


@dataclass
class Staged:
    """A topic of ours, through the loop and a core."""

    subject: Subject
    topic: str
    ours: bool = True

    def __post_init__(self) -> None:
        self.name = f"{self.topic} ({self.subject.service})"

    async def begin(self) -> None:
        for stage in (getattr(self, "_m", None), getattr(self, "_g", None), getattr(self, "_x", None)):
            if stage is not None:
                await stage.stop()
        self._m, self._g, self._x = Stage(self.subject), Stage(self.subject), Stage(self.subject)
        self._polls = 0
        self._last: Polled | None = None

    async def trial(self, polled: Polled, mutants: frozenset[int]) -> dict[int, str]:
        if self._polls % EPISODE == 0:
            self._x = await self._again(self._x)
        self._polls += 1
        _, letters = await self._x.feed(polled)
        refused = {offset: reason for offset, reason in letters.items() if offset in mutants}
        before, last = self._before = dict(self._g.state), self._last
        alone = await self._g.feed(_without(polled, mutants))
        assert not alone[1], f"{self.name}: good records alone were refused"
        while True:
            sent, told = await self._m.feed(_without(polled, mutants - refused.keys()))
            accepted = refused.keys() - told.keys()
            if not accepted:
                break
            refused = {offset: reason for offset, reason in refused.items() if offset not in accepted}
            await self._m.stop()
            self._m = Stage(self.subject, before, last)
        checked(told, mutants, self.name)
        self._compare(sent, alone[0])
        self._last = polled.part(len(polled) - 1, len(polled))
        return refused

    def _compare(self, sent: list[Sent], alone: list[Sent]) -> None:
        assert sent == alone, f"{self.name}: what good neighbours caused is not what they cause alone"
        assert self._m.state == self._g.state, f"{self.name}: the state is not that of the good records alone"

    async def _again(self, stage: Stage) -> Stage:
        """From the good state, as a process that comes to this poll after a restart."""
        await stage.stop()
        return Stage(self.subject, self._g.state, self._last)

    async def alone(self, polled: Polled) -> None:
        stage = Stage(self.subject, *self._before)
        await stage.feed(polled)
        await stage.stop()


@dataclass
class Rollout:
    """Control, through the rollout."""

    world: World
    name: str = "control (rollout)"
    topic: str = "control"
    ours: bool = True

    async def begin(self) -> None:
        letters = DeadLetters("flights", "rollout", Source.CONTROL, 10**9)
        decoder = Decoder(self.world.topics.control, self.world.registry, self.world.pipeline)
        self._folding = Folding(self.world.pipeline, decoder, letters)
        self._m = self._g = self._x = Entry()
        self._polls = 0

    def _folded(self, entry: Entry, polled: Polled) -> tuple[Entry, dict[int, str], dict[int, Any]]:
        letters: dict[int, str] = {}
        said = {}
        for at, offset in enumerate(polled.offsets.tolist()):
            entry, decision, made = self._folding.step(entry, polled.part(at, at + 1))
            said[offset] = replace(decision.deployment, chain="")  # a link is over all records before, the mutants too
            for one in made:
                letters[offset] = one.columns["reason"].texts()[0]  # type: ignore[union-attr]
        return entry, letters, said

    async def trial(self, polled: Polled, mutants: frozenset[int]) -> dict[int, str]:
        self._x = self._g if self._polls % EPISODE == 0 else self._x
        self._polls += 1
        self._x, letters, _ = self._folded(self._x, polled)
        refused = {offset: reason for offset, reason in letters.items() if offset in mutants}
        self._g, none, alone = self._folded(self._g, _without(polled, mutants))
        assert not none
        while True:
            after, told, said = self._folded(self._m, _without(polled, mutants - refused.keys()))
            if not (accepted := refused.keys() - told.keys()):
                break
            refused = {offset: reason for offset, reason in refused.items() if offset not in accepted}
        self._m = after
        checked(told, mutants, self.name)
        assert {offset: said[offset] for offset in alone} == alone, "control: a good record was answered otherwise"
        assert (self._m.state, self._m.seen) == (self._g.state, self._g.seen)
        return refused

    async def alone(self, polled: Polled) -> None:
        self._folded(self._g, polled)


class FedReader(LogReader):
    """A `LogReader` whose client is in memory."""

    def __init__(self, topic: Topic, world: World, pipeline: Declared | None = None) -> None:
        super().__init__("", topic, world.registry, set_aside=self._aside, pipeline=pipeline)  # type: ignore[arg-type]
        self._queue: list[Any] = []
        self.letters: dict[int, str] = {}

    async def _aside(self, partition: int, polled: Polled, refused: Sequence[Refused]) -> None:
        self.letters |= {one.offset: one.reason for one in refused}

    async def _connect(self, starts: Any) -> None:
        self._consumer = self  # type: ignore[assignment]
        self._partitions = [TopicPartition(self._topic.name, 0)]
        self.positions = {0: 0}

    async def getmany(self, *wanted: TopicPartition, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        queue, self._queue = self._queue, []
        return {self._partitions[0]: queue} if queue else {}

    def resume(self, *partitions: TopicPartition) -> None:
        """Nothing is asked ahead here."""

    def pause(self, *partitions: TopicPartition) -> None:
        """As `resume`."""

    async def end_offsets(self) -> dict[int, int]:
        return {0: self._queue[-1].offset + 1 if self._queue else self.positions[0]}

    async def feed(self, polled: Polled) -> list[Batch]:
        if self._consumer is None:
            await self.start()
        self.letters = {}
        places = range(len(polled))
        columns = polled.offsets.tolist(), map(polled.keys.get, places), map(polled.values.get, places), polled.timestamps.tolist()
        self._queue = [SimpleNamespace(offset=o, key=k, value=v, timestamp=t, headers=()) for o, k, v, t in zip(*columns, strict=True)]
        return await self.next()


@dataclass
class Reading:
    """A topic that is read by whoever keeps no ledger. `taker` makes what takes each batch; what that returns is compared."""

    world: World
    topic: str
    reader: str
    taker: Callable[[], Callable[[Batch], Any]]
    bounded: bool = False
    ours: bool = True

    def __post_init__(self) -> None:
        self.name = f"{self.topic} ({self.reader})"

    def _made(self) -> tuple[FedReader, Callable[[Batch], Any]]:
        return FedReader(self.world.topics[self.topic], self.world, self.world.pipeline if self.bounded else None), self.taker()

    async def begin(self) -> None:
        self._m, self._g, self._x = self._made(), self._made(), self._made()
        self._polls = 0

    async def _fed(self, who: tuple[FedReader, Callable[[Batch], Any]], polled: Polled) -> tuple[list[Any], dict[int, str]]:
        reader, take = who
        return [take(batch) for batch in await reader.feed(polled)], dict(reader.letters)

    async def trial(self, polled: Polled, mutants: frozenset[int]) -> dict[int, str]:
        self._x = self._made() if self._polls % EPISODE == 0 else self._x
        self._polls += 1
        _, letters = await self._fed(self._x, polled)
        checked(letters, mutants, self.name)
        told, _ = await self._fed(self._m, _without(polled, mutants - letters.keys()))
        alone, none = await self._fed(self._g, _without(polled, mutants))
        assert not none
        assert told == alone, f"{self.name}: what was read of good neighbours changed"
        return letters

    async def alone(self, polled: Polled) -> None:
        await self._fed(self._made(), polled)


def paths(world: World) -> list[Path]:
    """Every consumed topic, by everyone who consumes it."""
    found: list[Path] = []
    for stream in world.pipeline.streams:
        found += [Upstream(world, stream.number, name) for name in world.logs if name.startswith(f"{stream.topic} (")]
    found.append(Upstream(world, 2, "arrivals (JSON)", pii=("tail",)))
    read = {"feature": "events", "inference": "features", "labeler": "journal", "drift-journal": "journal", "drift-examples": "examples"}
    found += [Staged(world.subject(service), topic) for service, topic in {**read, "drift": "summaries"}.items()]
    return [*found, Rollout(world), *_readings(world)]


def _readings(world: World) -> list[Path]:
    def deployments() -> Callable[[Batch], Any]:
        core = Inference(world.pipeline)

        def take(batch: Batch) -> Any:
            for deployment in facts(batch.tables["deployment"]):
                core.add(deployment, {DIGEST: Steady(world.pipeline)} if DIGEST in deployment.digests else {})  # type: ignore[dict-item]
            return batch.tables["deployment"].records()

        return take

    def history() -> Callable[[Batch], Any]:
        kept = History(world.pipeline.layout)

        def take(batch: Batch) -> Any:
            kept.add_journal(batch) if batch["answer"] is not None or batch["outcome"] is not None else kept.add_examples(batch)
            return {name: table.offsets.tolist() for name, table in batch.tables.items()}, kept.settled([0])

        return take

    def outcomes() -> Callable[[Batch], Any]:
        def take(batch: Batch) -> Any:
            told = batch["trained"]
            return trainer.State() if told is None else trainer.State().with_trained(told["offset"].tolist(), facts(told))

        return take

    def plain() -> Callable[[Batch], Any]:
        return lambda batch: [(name, facts(table)) for name, table in sorted(batch.tables.items())]

    return [
        Reading(world, "deployments", "inference, intake", deployments),
        Reading(world, "clock", "intake", plain, bounded=True),
        Reading(world, "retrain", "trainer", lambda: lambda batch: list(commands(batch))),
        Reading(world, "journal", "trainer", history),
        Reading(world, "examples", "trainer", history),
        Reading(world, "summaries", "trainer", outcomes),
    ]
