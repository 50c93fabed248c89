"""
The six arrangements of operators that are put under test, each with what feeds it and what it has to have written in the end.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any

import services.feature.app
import services.inference.app
import services.labeler.app
from driftline.contracts.topics import Topics
from driftline.stream.records import Decoder
from services.feature.core import Feature
from services.labeler.core import Labeler

from . import checks, inputs, oracle
from .inputs import Writing
from .messages import Fields
from .world import REGISTRY, Slot, World, pipeline, settings

Player = Coroutine[Any, Any, None]


@functools.cache
def decoder(name: str, kind: str) -> Decoder:
    """Reads a topic as the service would, for the replay."""
    return Decoder(Topics.of(pipeline(name))[kind], REGISTRY)


class Topology(ABC):
    """One arrangement in one world. What a subclass does not say otherwise holds for all."""

    pipeline = "shops"
    partitions = 1
    sizes = (3, 11)  # how many records there are to be

    def __init__(self, world: World) -> None:
        self.world = world
        self.topics = Topics.of(pipeline(self.pipeline))
        random = world.random
        world.cluster.batch_most = random.choice((1, 2, 4, 8))
        world.cluster.poll_most = random.choice((4, 8, 16, 32))
        for topic in self.topics.by_kind().values():
            world.cluster.create(topic.name, self.partitions if topic.partitioned else 1)
        self.cut_short = False  # a partition was refused, rightly: what it wrote is right as far as it goes
        self.bad = random.choice((0.0, 0.0, 0.05, 0.2))
        self.again = random.choice((0.0, 0.1, 0.3))
        self.over_s = 2.0
        self.records_max = random.choice((4, 8, 16, 16))

    def slot(self, service: str, reads: str, build: Any, *, stateful: bool = True, more: Sequence[int] | None = None) -> Slot:
        """A process of one service over all its partitions."""
        world, told = self.world, settings(pipeline=self.pipeline, records_max=self.records_max)
        numbers = range(self.partitions) if more is None else more
        partitions = [(f"{self.pipeline}-{service}", number) for number in numbers]
        slot = Slot(service, lambda: build(told, world.clock), partitions, self.topics[reads].name, stateful)
        world.add(slot)
        return slot

    @abstractmethod
    def players(self) -> list[Player]:
        """What feeds the logs."""

    def done(self) -> bool:
        """Whether there is nothing more to come."""
        return True

    def refusals(self) -> list[str]:
        """Partitions that were refused, though there was no reason."""
        return [f"{slot.name} refused: {words}" for slot in self.world.slots for words in slot.refused]

    @abstractmethod
    def violations(self) -> list[str]:
        """What is not as it must be."""

    # ---- what several of them check

    def events_of(self, partition: int) -> tuple[list[oracle.Numbered], oracle.Lanes]:
        """First copies on one partition of the events."""
        poisoned = {name for _, name in self.world.poison}
        return oracle.taken(
            checks.messages(self.world.log(self.topics.events.name, partition)),
            functools.partial(oracle.is_unreadable, self.pipeline),
            poisoned,
        )

    def unframed(self, topic: str, partition: int) -> set[tuple[str, int, int, str]]:
        """The dead letters that rubbish on a log must have become."""
        rubbish = [record for record in self.world.log(topic, partition).records if record.value in inputs.GARBAGE]
        schema = inputs.GARBAGE[1]
        return {(topic, partition, one.offset, "schema" if one.value == schema else "undecodable") for one in rubbish}

    def feature_violations(self, whole: Sequence[Fields] = ()) -> tuple[list[str], set[tuple[str, int, int, str]]]:
        """What the feature service did over all partitions; and the dead letters that it owes."""
        world, found = self.world, list[str]()
        owed: set[tuple[str, int, int, str]] = set()
        layout = pipeline(self.pipeline).layout.version
        poisoned = {name for _, name in world.poison}
        events = self.topics.events.name
        for partition in range(self.partitions):
            log, lanes = self.events_of(partition)
            said = oracle.feature(self.pipeline, partition, layout, log, poisoned, whole)
            for kind, expected in (("features", said.features), ("journal", said.journal)):
                written = world.log(self.topics[kind].name, partition)
                found += checks.same_outputs(written.name, expected, checks.accepted(written, oracle.FEATURE), prefix=self.cut_short)
                found += checks.copies_identical(written)
            if self.cut_short:
                continue
            owed |= {(events, partition, offset, reason) for offset, reason in said.refused} | self.unframed(events, partition)
            operator = (decoder(self.pipeline, "events"), Feature(pipeline(self.pipeline), partition))
            group = f"{self.pipeline}-feature"
            found += checks.state_equals_replay(world, group, partition, world.log(events, partition), operator, poisoned, lanes)
        return found, owed

    def labeler_violations(self) -> tuple[list[str], set[tuple[str, int, int, str]]]:
        """What the labeler did over all partitions; and the dead letters that it owes."""
        world, found, owed = self.world, list[str](), set[tuple[str, int, int, str]]()
        journal = self.topics.journal.name
        for partition in range(self.partitions):
            log, lanes = oracle.taken(checks.messages(world.log(journal, partition)))
            written = world.log(self.topics.examples.name, partition)
            found += checks.same_outputs(written.name, oracle.labeler(partition, log), checks.accepted(written))
            found += checks.copies_identical(written)
            owed |= self.unframed(journal, partition)
            operator = (decoder(self.pipeline, "journal"), Labeler(pipeline(self.pipeline), partition))
            found += checks.state_equals_replay(
                world, f"{self.pipeline}-labeler", partition, world.log(journal, partition), operator, (), lanes
            )
        return found, owed


class OneInput(Topology):
    """Feature over one log that has one stream."""

    pipeline = "one"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.slot("feature", "events", services.feature.app.build)
        n = world.random.randrange(*self.sizes)
        self.merged = inputs.events(world, self.pipeline, n, self.partitions, self.bad)
        if world.random.random() < 0.08:
            self._poison()

    def _poison(self) -> None:
        """A record or two that kill whoever steps over them."""
        names = sorted({one["id"] for one in self.merged if one["message"] == "event"})
        for _ in range(self.world.random.choice((1, 1, 2))):
            self.world.poison.add(("feature", self.world.random.choice(names)))

    def players(self) -> list[Player]:
        writers = []
        for partition in range(self.partitions):
            values = [
                inputs.bytes_of(one | {"home": one.get("to", ())[0] == partition} if one["message"] == "event" else one)
                for one in self._on(partition)
            ]
            writers.append(Writing(self.world, self.world.log(self.topics.events.name, partition), values, self.bad, self.again))
        return [inputs.write_all(self.world, writers, self.over_s)]

    def _on(self, partition: int) -> list[Fields]:
        return [one for one in self.merged if partition in one["to"]]

    def violations(self) -> list[str]:
        found, owed = self.feature_violations()
        return [*found, *checks.letters(self.world, self.topics.dead_letters.name, owed)]


class Broadcast(OneInput):
    """A view that every partition keeps: rows are the same bytes as if there were one partition."""

    pipeline = "shops"

    def __init__(self, world: World) -> None:
        self.partitions = world.random.choice((2, 2, 2, 3))
        super().__init__(world)

    def players(self) -> list[Player]:
        writers = []
        for partition in range(self.partitions):
            values = []
            for one in self._on(partition):
                event = one["message"] == "event"
                values.append(inputs.bytes_of(one | {"home": inputs.home(one["key"], self.partitions) == partition} if event else one))
            writers.append(Writing(self.world, self.world.log(self.topics.events.name, partition), values, self.bad, self.again))
        return [inputs.write_all(self.world, writers, self.over_s)]

    def violations(self) -> list[str]:
        poisoned = {name for _, name in self.world.poison}
        events = [one for one in self.merged if one["message"] == "event" and one["id"] not in poisoned]
        whole = [one for one in events if not oracle.is_unreadable(self.pipeline, one)]
        found, owed = self.feature_violations(whole)
        return [*found, *checks.letters(self.world, self.topics.dead_letters.name, owed)]


class Join(Topology):
    """The labeler on the journal, whose two writers are played."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.slot("labeler", "journal", services.labeler.app.build)
        self.told = inputs.journal(world, world.random.randrange(*self.sizes))

    def players(self) -> list[Player]:
        log = self.world.log(self.topics.journal.name, 0)
        writers = [Writing(self.world, log, [inputs.bytes_of(one) for one in told], self.bad, self.again) for told in self.told]
        return [inputs.write_all(self.world, writers, self.over_s)]

    def violations(self) -> list[str]:
        found, owed = self.labeler_violations()
        return [*found, *checks.letters(self.world, self.topics.dead_letters.name, owed)]


class Chain(OneInput):
    """Feature, inference without state, labeler: the stateless between two stateful, and the journal with its two real writers."""

    pipeline = "shops"
    sizes = (3, 8)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.slot("inference", "features", services.inference.app.build, stateful=False)
        self.slot("labeler", "journal", services.labeler.app.build)
        self.deployments = inputs.deployments()

    def players(self) -> list[Player]:
        """Deployments are on their topic before a tick can name them; when inference has read them is its own affair."""
        log = self.world.log(self.topics.deployments.name, 0)
        for version in (1, 2, 3):
            log.append([(None, inputs.bytes_of({"message": "deployment", **self.deployments[version]}), self.world.clock.now_ms())])
        return super().players()

    def violations(self) -> list[str]:
        world = self.world
        found, owed = self.feature_violations()
        for partition in range(self.partitions):
            rows, _ = oracle.taken(checks.messages(world.log(self.topics.features.name, partition)))
            predictions, answers = oracle.inference(rows, self.deployments)
            written = world.log(self.topics.predictions.name, partition)
            found += checks.same_outputs(written.name, predictions, checks.accepted(written))
            found += checks.copies_identical(written)
            journal = world.log(self.topics.journal.name, partition)
            found += checks.same_outputs(f"{journal.name} by inference", answers, checks.accepted(journal, oracle.INFERENCE))
        more, also = self.labeler_violations()
        return [*found, *more, *checks.letters(world, self.topics.dead_letters.name, owed | also)]
