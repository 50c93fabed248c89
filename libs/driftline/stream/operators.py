"""
From settings to running workers: one operator over the partitions that this process owns, and a follower of a small topic.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from driftline.clock import Clock
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal, Recoverable
from driftline.logs import log
from driftline.metrics import forget
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Core, Effects
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import Cluster, LogReader, SetAside, Sink, Source, describe, letters_lately
from driftline.stream.ledger import RedisLedger, refuse_unsafe_store
from driftline.stream.membership import Member, Shares
from driftline.stream.process import Ops
from driftline.stream.records import Decoder, Encoder
from driftline.stream.store import Store
from driftline.stream.tracing import tracing_of
from driftline.stream.turns import Turns
from driftline.stream.worker import Operator, Worker


class WorkerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    pipeline: str
    registry: str
    kafka: str = "127.0.0.1:9092"
    redis: str = "redis://127.0.0.1:6379/0"
    membership: Literal["ordinal", "group"] = "ordinal"  # who says which partitions are this process's
    replica: int = 0  # by ordinal, it is number `replica` of `replicas`: it owns the partitions p with p % replicas == replica
    replicas: int = 1
    records_max: int = 4_000
    dead_letters_max: int = 10_000
    ops_host: str = "127.0.0.1"
    ops_port: int = 0
    run_dir: str = ""

    def __post_init__(self) -> None:
        if self.membership == "group" and (self.replica, self.replicas) != (0, 1):
            raise ValueError(
                "DRIFTLINE_MEMBERSHIP is group, which shares out partitions by itself, and DRIFTLINE_REPLICA or DRIFTLINE_REPLICAS is set: "
                "leave both out, or set DRIFTLINE_MEMBERSHIP to ordinal"
            )
        if not 0 <= self.replica < self.replicas:
            raise ValueError(
                f"DRIFTLINE_REPLICA is {self.replica}; it must be from 0 to DRIFTLINE_REPLICAS - 1, which is {self.replicas - 1}"
            )


def ops(settings: WorkerSettings, service: str) -> Ops:
    """The process's own HTTP server."""
    return Ops(service, settings.ops_port, Path(settings.run_dir) if settings.run_dir else None, settings.ops_host)


class Wiring(Struct, frozen=True, kw_only=True):
    """What one operator reads, writes and is; the rest follows from the settings."""

    service: str  # as in metrics and in the group's name
    reads: Topic
    writes: Sequence[Topic]
    writer: int
    source: int  # the log that it reads, as coordinates name it
    core: Callable[[int, int], Core]  # from the partition, and how many partitions the pipeline's data topics have
    row_format: int | None = None  # None: no state, no ledger
    before: Callable[[Batch], Awaitable[None]] | None = None
    observe: Callable[[int, Any, Effects], None] | None = None  # partition, core, what it did
    gathers: bool = False  # nobody waits for what it makes, so it reads much at a time; see `kafka.Source`
    reach_ms: int | None = None  # how far back in its log what it makes may look; None: to the log's start


def group_of(wiring: Wiring, pipeline: Pipeline) -> str:
    """The group that names an operator's offsets and its rows. It has no members: those of `group_of(...)-members` share out partitions."""
    return f"{pipeline.name}-{wiring.service}"


async def describe_pipeline(kafka: str, pipeline: Pipeline) -> Cluster:
    """The cluster, and how many partitions each of the pipeline's topics has. Raises Fatal when one is missing, Recoverable."""
    names = [topic.name for topic in Topics.of(pipeline).by_kind().values()]
    cluster = await describe(kafka, names)
    missing = [name for name in names if not cluster.partitions.get(name)]
    if missing:
        raise Fatal(f"the topics {', '.join(missing)} do not exist: driftline up creates them")
    return cluster


class Operators:
    """The workers of one operator, one for each partition that this process owns."""

    def __init__(
        self,
        wiring: Wiring,
        settings: WorkerSettings,
        pipeline: Pipeline,
        registry: Registry,
        clock: Clock,
        turns: Turns | None = None,  # of the whole process, where it has several operators
    ) -> None:
        self._turns = turns or Turns()
        self._wiring = wiring
        self._settings = settings
        self._pipeline = pipeline
        self._registry = registry
        self._clock = clock
        self._tracing = tracing_of(wiring.service, pipeline.name)
        self._shares: Shares | None = None
        self._member: Member | None = None
        self._given_up = ""  # why, when partitions are let go of that must not go on
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run until stopped. A partition that is refused leaves the others running; an error that nobody foresaw stops all."""
        operator = None
        while operator is None and not self._stopping.is_set():
            try:
                operator = await self._prepared()
            except Recoverable as fault:
                log.warning("not started yet", service=self._wiring.service, because=str(fault))
                await asyncio.sleep(0.5)
        if operator is None or self._stopping.is_set():
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._share(operator, tasks)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _share(self, operator: Operator, tasks: asyncio.TaskGroup) -> None:
        """Begin this process's partitions; return when no more will come."""
        settings, topic = self._settings, operator.topic
        where = {"pipeline": operator.pipeline, "service": operator.service, "topic": topic}
        self._shares = Shares(
            tasks,
            lambda partition: Worker(operator, partition, self._clock),
            lambda partition: forget(**where, partition=str(partition)),
        )
        if settings.membership == "group":
            self._member = Member(settings.kafka, topic, f"{operator.group}-members", self._shares.held, self._clock, self._all_are_refused)
            await self._member.run(self._shares.hold)
            return
        owned = frozenset(range(settings.replica, operator.cluster.partitions[topic], settings.replicas))
        await self._shares.hold(owned)
        if not owned:  # a topic of fewer partitions than there are processes
            await self._stopping.wait()

    def _all_are_refused(self) -> bool:
        """Whether no partition that is held may go on. By ordinal all workers have ended then, and so does the process."""
        if not self._workers or not all(worker.refused for worker in self._workers):
            return False
        self._given_up = self.refused
        return True

    async def _prepared(self) -> Operator:
        if self._wiring.row_format is not None:
            await refuse_unsafe_store(self._settings.redis)
        operator = await asyncio.to_thread(self._operator, await describe_pipeline(self._settings.kafka, self._pipeline))
        operator.dead_letters.begin(await letters_lately(self._settings.kafka, Topics.of(self._pipeline), self._clock))
        return operator

    def _operator(self, cluster: Cluster) -> Operator:
        wiring, settings = self._wiring, self._settings
        group = group_of(wiring, self._pipeline)
        topics = Topics.of(self._pipeline)
        written = {topic.kind: topic for topic in (*wiring.writes, topics.dead_letters)}
        as_json = frozenset({"predictions"} if self._pipeline.predictions == "json" else ())
        encoder = Encoder(written, self._registry, wiring.writer, as_json)
        return Operator(
            service=wiring.service,
            pipeline=self._pipeline.name,
            topic=wiring.reads.name,
            group=group,
            digest=self._pipeline.digest,
            row_format=wiring.row_format or 0,
            cluster=cluster,
            core=lambda partition: wiring.core(partition, cluster.partitions[topics.events.name]),
            source=lambda partition: Source(settings.kafka, wiring.reads.name, partition, group=group, gathers=wiring.gathers),
            sink=lambda partition: Sink(settings.kafka, written, encoder, f"{group}-{partition}"),
            ledger=None if wiring.row_format is None else lambda partition: RedisLedger(Store(settings.redis), group, partition),
            decoder=Decoder(wiring.reads, self._registry, self._pipeline),
            dead_letters=DeadLetters(self._pipeline.name, wiring.service, wiring.source, settings.dead_letters_max),
            before=wiring.before,
            observe=wiring.observe,
            records_max=settings.records_max,
            turns=self._turns,
            tracing=self._tracing,
        )

    def stop(self) -> None:
        """Finish the batches in hand, then leave."""
        self._stopping.set()
        self._given_up = self.refused
        if self._shares is not None:
            self._shares.stop()
        if self._member is not None:
            self._member.stop()

    @property
    def _workers(self) -> Sequence[Worker] | None:
        """None until it is known which partitions there are."""
        held = None if self._shares is None else self._shares.workers
        return None if held is None else list(held.values())

    @property
    def ready(self) -> bool:
        """Every partition that may go on has been acquired; where there is none, it is known that there is none."""
        workers = self._workers
        return workers is not None and all(worker.ready or worker.refused for worker in workers)

    @property
    def refused(self) -> str:
        """Why partitions must not go on."""
        return "; ".join(worker.refused for worker in self._workers or () if worker.refused) or self._given_up

    def stalled_s(self) -> float:
        """The longest that a partition has been behind without moving."""
        return max((worker.stalled_s() for worker in self._workers or ()), default=0.0)


class Follower:
    """Reads a small topic from its start and keeps reading; `take` gets each batch, in a thread, for it may load models."""

    def __init__(
        self, kafka: str, topic: Topic, registry: Registry, take: Callable[[Batch], None], set_aside: SetAside | None = None
    ) -> None:
        self._reader = LogReader(kafka, topic, registry, wait_ms=500, set_aside=set_aside)
        self._taken_to: dict[int, int] = {}
        self._topic = topic
        self._take = take
        self._stopping = False
        self._news = asyncio.Event()
        self.ready = False

    async def run(self) -> None:
        """Follow until stopped; `ready` once all that was there at the start has been taken."""
        while not self._stopping:
            try:
                await self._follow()
            except Recoverable as fault:
                log.warning("following again", topic=self._topic.name, because=str(fault))
                await asyncio.sleep(0.5)

    async def _follow(self) -> None:
        try:
            await self._reader.start(self._reader.positions)
            goal = await self._reader.end_offsets()
            while not self._stopping:
                self.ready = self.ready or all(self._reader.positions[partition] >= end for partition, end in goal.items())
                for batch in await self._reader.next(0.5):
                    await asyncio.to_thread(self._take, batch)
                self._taken_to = dict(self._reader.positions)
                self._news.set()
        finally:
            await self._reader.stop()

    async def wait(self, until: Callable[[], bool], timeout_s: float, what: str) -> None:
        """
        Wait until what was taken makes `until` true, or until all is taken that was on the topic when this was called, for then it
        never will. Raises Recoverable after `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        ends: dict[int, int] | None = None
        while not until():
            if self.ready and ends is None:
                ends = await self._reader.end_offsets()
            if ends is not None and all(self._taken_to.get(partition, 0) >= end for partition, end in ends.items()):
                return
            self._news.clear()
            left = deadline - loop.time()
            if left <= 0:
                raise Recoverable(f"{what} is not on {self._topic.name} after {timeout_s:.0f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)
        log.debug("followed", topic=self._topic.name)

    def stop(self) -> None:
        """Stop reading."""
        self._stopping = True
