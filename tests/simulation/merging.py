"""
Intake under test: upstream topics merged onto one log, in a declared replay and live, killed and replaced in the middle of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import services.feature.app
import services.intake.app
from driftline.contracts.messages import Writer

from . import checks, inputs, oracle
from .cluster import Log
from .messages import Fields, body, encoded
from .topologies import Player, Topology
from .virtual_time import START_MS
from .world import Slot, World, pipeline, settings

STREAMS = ("asks", "facts")
IDS = {"asks": "ask_id", "facts": "fact_id"}
Origin = tuple[int, int]  # number of the stream, partition of its topic


class Upstream:
    """The topics of applications: what is good on each, and what is not, with the reason."""

    def __init__(self, world: World, name: str, bad: float) -> None:
        self._world = world
        self._name = name
        self._bad = bad
        self.good: dict[Origin, list[tuple[int, Fields]]] = {}
        self.refused: set[tuple[str, int, int, str]] = set()
        self.logs: dict[Origin, Log] = {}
        for number, stream in enumerate(pipeline(name).streams):
            partitions = world.random.choice((1, 1, 2))
            world.cluster.create(stream.topic, partitions)
            for partition in range(partitions):
                self.logs[number, partition] = world.log(stream.topic, partition)
                self.good[number, partition] = []

    def publish(self, stream: str, record: Fields) -> None:
        """One record, on a partition of chance; sometimes a bad one before it, or an offset without a record."""
        random = self._world.random
        origin = random.choice([one for one in self.logs if one[0] == STREAMS.index(stream)])
        log = self.logs[origin]
        if random.random() < self._bad:
            value, reason = self._spoiled(stream, record)
            self.refused.add((log.topic, log.partition, self._append(log, value), reason))
        if random.random() < 0.08:
            log.skip()
        offset = self._append(log, inputs.upstream_value(self._name, stream, record))
        self.good[origin].append((offset, record))

    def _append(self, log: Log, value: bytes | None) -> int:
        return log.append([(b"any", value, self._world.clock.now_ms())], self._world.loop.now_s)

    def _spoiled(self, stream: str, record: Fields) -> tuple[bytes | None, str]:
        fields = json.loads(inputs.upstream_value(self._name, stream, record))
        time = "at" if stream == "asks" else "seen_at"
        return self._world.random.choice(
            [
                (b"{no", "undecodable"),
                (None, "undecodable"),
                (json.dumps({**fields, "card": ""}).encode(), "contract"),
                (json.dumps({**fields, "amount": "much"}).encode(), "contract"),
                (json.dumps({name: value for name, value in fields.items() if name != IDS[stream]}).encode(), "missing_id"),
                (json.dumps({**fields, time: -5}).encode(), "bad_time"),
            ]
        )

    def event(self, origin: Origin, offset: int, partition: int, partitions: int) -> Fields | None:
        """What intake makes of one good record for a partition of the log; None where it does not belong."""
        stream, record = STREAMS[origin[0]], dict(self.good[origin])[offset]
        at_home = inputs.home(record["card"], partitions) == partition
        if not at_home and stream != "facts":
            return None
        return {
            "message": "event",
            "source": oracle.UPSTREAM + origin[0],
            "partition": origin[1],
            "offset": offset,
            "index": 0,
            "event_offset": -1,
            "writer": int(Writer.INTAKE),
            "id": record[IDS[stream]],
            "key": record["card"],
            "time": record["at"],
            "visible": record["visible"],
            "home": at_home,
            "body": body(self._name, stream, record),
        }

    def sort_times(self) -> dict[tuple[int, int, int], int]:
        """By stream, partition and offset the time that a record is merged by: its own, or that of a newer one before it."""
        times = {}
        for (stream, partition), records in self.good.items():
            newest = 0
            for offset, record in records:
                newest = max(newest, record["visible"])
                times[stream, partition, offset] = newest
        return times


class Merging(Topology):
    """What replay and live have in common."""

    replay = True

    def __init__(self, world: World) -> None:
        self.partitions = world.random.choice((1, 2))
        super().__init__(world)
        self.upstream = Upstream(world, self.pipeline, self.bad)
        self.intake = self._intake()
        self.then_feature = world.random.random() < 0.3
        if self.then_feature:
            self.slot("feature", "events", services.feature.app.build)

    def _intake(self) -> Slot:
        told = settings(pipeline=self.pipeline, replay=self.replay, pii_key="")
        world = self.world
        slot = Slot("intake", lambda: services.intake.app.build(told, world.clock), [], self.topics.events.name, False)
        world.add(slot)
        return slot

    def marks(self) -> dict[Origin, tuple[int, dict[str, int]]]:
        """What intake has committed: offset, tick and newest time by source."""
        found = {}
        for origin, log in self.upstream.logs.items():
            mark = self.world.cluster.committed.get((f"{self.pipeline}-intake", log.topic, log.partition))
            if mark:
                found[origin] = mark[0], json.loads(mark[1])
        return found

    def common_violations(self) -> list[str]:
        """Letters, copies, limits, and the feature service behind it."""
        found: list[str] = []
        owed = set(self.upstream.refused)
        for partition in range(self.partitions):
            found += checks.copies_identical(self.world.log(self.topics.events.name, partition))
        if self.then_feature:
            more, also = self.feature_violations()
            found, owed = found + more, owed | also
        found += checks.bounded(self.world, {"records queued by intake": services.intake.app.WAITING_MAX + services.intake.app.POLL_MAX})
        return [*found, *checks.letters(self.world, self.topics.dead_letters.name, owed)]


class Replay(Merging):
    """A declared replay: one log follows from what the clock says, whatever happens to whoever writes it."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.steps: list[tuple[int, int]] = []
        happenings = inputs.Happenings(world.random, self.pipeline)
        n = world.random.randrange(3, 10)
        self.records = [happenings.next() for _ in range(n)]
        last = max(record["visible"] for _, record in self.records)
        between = range(START_MS + 1_000, max(START_MS + 1_000, last) + 1)
        ends = sorted({world.random.choice(between) // 50 * 50 for _ in range(world.random.randrange(3))})
        self.untils = [*ends, last // 50 * 50 + 50 * world.random.randrange(1, 8)]

    def players(self) -> list[Player]:
        return [self._play()]

    async def _play(self) -> None:
        """Publish up to each step of the clock, or further, and then declare it."""
        random, published = self.world.random, 0
        for number, until in enumerate(self.untils):
            needed = 1 + max((at for at, (_, record) in enumerate(self.records) if record["visible"] < until), default=-1)
            needed = min(len(self.records), needed + random.randrange(4))
            while published < needed:
                self.upstream.publish(*self.records[published])
                published += 1
                if random.random() < 0.3:
                    await asyncio.sleep(0.1 * random.random())
            self._declare(number, until)
            await asyncio.sleep(0.5 * random.random())

    def _declare(self, number: int, until: int) -> None:
        self.steps.append((until, number))
        fields = {
            "source": 9,
            "partition": 0,
            "offset": number,
            "index": 0,
            "event_offset": -1,
            "writer": int(Writer.PLAYER),
            "time": until,
            "deployment": number,
            "ends": [{"topic": log.topic, "partition": log.partition, "offset": log.end} for log in self.upstream.logs.values()],
            "last": until == self.untils[-1],
        }
        self.world.log(self.topics.clock.name, 0).append([(None, encoded("clock", fields), self.world.clock.now_ms())])

    def done(self) -> bool:
        last = self.untils[-1] // inputs.TICK_MS
        return any(told["tick"] >= last for _, told in self.marks().values())

    def violations(self) -> list[str]:
        log = oracle.merged(self.upstream.good, self.steps, inputs.TICK_MS)
        found: list[str] = []
        for partition in range(self.partitions):
            expected: list[Fields] = []
            for kind, *rest in log:
                if kind == "tick":
                    expected.append(inputs.tick_fields(Writer.INTAKE, *rest))
                elif event := self.upstream.event((rest[0], rest[1]), rest[2], partition, self.partitions):
                    expected.append(event)
            written = self.world.log(self.topics.events.name, partition)
            found += checks.same_outputs(written.name, expected, checks.accepted(written))
        return found + self.common_violations()


class Live(Merging):
    """By the wall clock: the order depends on what arrives when, so what is checked are the rules that any order must keep."""

    pipeline = "live"
    replay = False

    def players(self) -> list[Player]:
        return [self._play()]

    async def _play(self) -> None:
        random, happenings = self.world.random, inputs.Happenings(self.world.random, self.pipeline)
        for _ in range(random.randrange(4, 12)):
            await asyncio.sleep(0.3 * random.random() ** 2)
            happenings.now = max(happenings.now, self.world.clock.now_ms() - 60)
            if happenings.now > self.world.clock.now_ms():
                await asyncio.sleep((happenings.now - self.world.clock.now_ms()) / 1000 + 0.05)
            stream, record = happenings.next()
            late = max(0, record["visible"] - self.world.clock.now_ms())  # nothing is published before it is visible
            if late:
                await asyncio.sleep(late / 1000 + 0.001)
            self.upstream.publish(stream, record)

    def done(self) -> bool:
        marks = self.marks()
        return all(
            not log.records or (origin in marks and marks[origin][0] > log.records[-1].offset) for origin, log in self.upstream.logs.items()
        )

    def violations(self) -> list[str]:
        found: list[str] = []
        for partition in range(self.partitions):
            found += self._rules(partition)
        return found + self.common_violations()

    def _rules(self, partition: int) -> list[str]:
        """Everything once, each source in its order, by time where it could be known, and every tick once, before what follows it."""
        written = self.world.log(self.topics.events.name, partition)
        log = checks.accepted(written)
        events = [one for one in log if one["message"] == "event"]
        belongs = [
            event
            for origin, records in self.upstream.good.items()
            for offset, _ in records
            if (event := self.upstream.event(origin, offset, partition, self.partitions))
        ]
        place = ("source", "partition", "offset")
        found = checks.same_outputs(
            f"{written.name} by source",
            sorted(belongs, key=lambda one: [one[name] for name in place]),
            sorted(events, key=lambda one: [one[name] for name in place]),
        )
        ticks = [one["offset"] for one in log if one["message"] == "tick"]
        if ticks != list(range(ticks[0], ticks[0] + len(ticks)) if ticks else ()):
            found.append(f"{written.name}: ticks are {ticks}")
        return found or self._order(written.name, log)

    def _order(self, where: str, log: Sequence[Fields]) -> list[str]:
        times = self.upstream.sort_times()
        before: list[tuple[Any, float]] = []  # of the events so far: what they are merged by, and when they were published
        tick_ms = -1
        for one in log:
            if one["message"] == "tick":
                tick_ms = one["time"]
                early = [key for key, _ in before if key[0] >= tick_ms]
                if early:
                    return [f"{where}: {early[0]} comes before the tick at {tick_ms}"]
                continue
            origin = (one["source"] - oracle.UPSTREAM, one["partition"])
            key = (times[*origin, one["offset"]], *origin, one["offset"])
            published = self.upstream.logs[origin].written_at[one["offset"]]
            if key[0] < tick_ms and START_MS + round(published * 1000) < tick_ms:
                return [f"{where}: {key} was published before the tick at {tick_ms} and comes behind it"]
            if any(other > key and when >= published for other, when in before):
                return [f"{where}: {key} comes behind what is later, though it was there"]
            before.append((key, published))
        return []
