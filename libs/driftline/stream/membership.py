"""
Who works on which partition where a consumer group settles it, and not ordinals (docs/decisions/0020).

A process is a member of the group for its assignment alone: it reads and commits nothing there. Nothing is stopped when the group begins
to share out anew, for that takes as long as the group waits for a member that was killed. Each goes on with what it has until it is told
what it has now; then it starts what came, and lets what went finish its batch. So for a moment a partition may have two owners, or for
longer, where a process was paused: that costs work, never a result, for the ledger fences one of them, and without a ledger readers drop
the copies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from collections.abc import Set as AnySet
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import UnknownTopicOrPartitionError

from driftline.access import kafka_client
from driftline.clock import Clock
from driftline.errors import Fatal, Recoverable
from driftline.logs import log
from driftline.stream.connect import connect
from driftline.stream.kafka import answering, stop_consumer
from driftline.stream.process import DRAIN_S
from driftline.stream.worker import Worker

SESSION_MS = 6_000  # without a heartbeat for so long, a member is taken for dead; the least that a broker allows if not told otherwise
HEARTBEAT_MS = 1_000  # also how long a member may take to hear that the group shares out anew
ANSWER_MS = 10_000  # of the group's coordinator, who makes a joining member wait for the others, a session at most
UNANSWERED_S = 30.0  # for so long a member may be without an answer before it joins anew (aiokafka 1154: alive, and not joining again)
NEVER_MS = 1 << 40  # in which a member has to poll, or leave: this one never polls
QUIET_MS = 60_000
LOOK_EVERY_S = 1.0
AGAIN_AFTER_S = 0.5
LEAVE_S = 8.0  # who leaves may wait for an answer to joining first, and that takes a session where a member was killed


def shared_out(partitions: int, held: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    """
    The partitions of each member, from what each says that it holds: the numbers differ by one at most, and within that a member keeps
    what it holds. Where two say that they hold the same, it is of the one that holds more.
    """
    order = sorted(held, key=lambda member: (-len(held[member]), member))
    fewest, over = divmod(partitions, len(order))
    quotas = {member: fewest + (at < over) for at, member in enumerate(order)}
    left = set(range(partitions))
    shares: dict[str, list[int]] = {}
    for member in order:
        shares[member] = sorted(left.intersection(held[member]))[: quotas[member]]
        left.difference_update(shares[member])
    free = sorted(left, reverse=True)
    for member in order:
        shares[member] += [free.pop() for _ in range(quotas[member] - len(shares[member]))]
    return shares


class _KeepsWhatItHolds:
    """
    `shared_out` as aiokafka asks for it. (Its own sticky assignor keeps what a member holds in the class, so the operators of a process
    would mix theirs up, and is never told the generation by which it settles who is right.)
    """

    name = "driftline-keep"

    def __init__(self, held: Callable[[], Iterable[int]]) -> None:
        self._held = held

    def metadata(self, topics: Iterable[str]) -> Any:
        """What a member says of itself when it joins."""
        return ConsumerProtocolMemberMetadata(0, list(topics), msgspec.json.encode(sorted(self._held())))

    def assign(self, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        """What the leader of the group tells each member."""
        (topic,) = {topic for member in members.values() for topic in member.subscription}
        held = {name: msgspec.json.decode(member.user_data or b"[]", type=list[int]) for name, member in members.items()}
        partitions = cluster.partitions_for_topic(topic)
        if not partitions:  # as while brokers restart: nobody is told anything, and each goes on with what it has
            raise UnknownTopicOrPartitionError(f"{topic}: how many partitions it has is not known at the moment")
        shares = shared_out(len(partitions), held)
        return {name: ConsumerProtocolMemberAssignment(0, [(topic, share)], b"") for name, share in shares.items()}

    def on_assignment(self, assignment: Any) -> None:
        """The listener hears of it."""


class Shares:
    """
    The partitions that are this process's, each with its worker, whoever says which. `tasks` runs the workers; `ended` hears of each
    partition that is no longer ours.
    """

    def __init__(self, tasks: asyncio.TaskGroup, worker: Callable[[int], Worker], ended: Callable[[int], None] = lambda _: None) -> None:
        self._tasks = tasks
        self._worker = worker
        self._ended = ended
        self._running: dict[int, asyncio.Task[None]] = {}
        self.workers: dict[int, Worker] | None = None  # None until it is known which partitions there are

    def held(self) -> Iterable[int]:
        """The numbers of the partitions."""
        return self._running.keys()

    async def hold(self, partitions: AnySet[int]) -> None:
        """
        Hold these and no others. Those that come are begun; those that go finish the batch in hand, and this returns when they have, or
        when they have been cancelled after DRAIN_S.
        """
        workers = self.workers or {}
        going = {partition: self._running.pop(partition) for partition in workers.keys() - partitions}
        for partition in going:
            workers.pop(partition).stop()
        for partition in sorted(partitions - workers.keys()):
            workers[partition] = self._worker(partition)
            self._running[partition] = self._tasks.create_task(workers[partition].run())
        self.workers = workers
        if going:
            await self._gone(going)

    async def _gone(self, going: Mapping[int, asyncio.Task[None]]) -> None:
        _, late = await asyncio.wait(going.values(), timeout=DRAIN_S)
        for task in late:
            task.cancel()
        if late:
            log.warning("did not drain in time", partitions=sorted(partition for partition, task in going.items() if task in late))
            await asyncio.wait(late)
        for partition in going:
            self._ended(partition)

    def stop(self) -> None:
        """Let all finish the batches in hand."""
        for worker in (self.workers or {}).values():
            worker.stop()


class Member(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """One place in `group`, which shares out the partitions of `topic`. It is left when `over` says that nothing can be done with it."""

    def __init__(
        self,
        kafka: str,
        topic: str,
        group: str,
        held: Callable[[], Iterable[int]],
        clock: Clock,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._group = group
        self._held = held
        self._clock = clock
        self._over = over
        self._assigned: frozenset[int] | None = None  # as told, and not passed on yet
        self._asked_at: float | None = None  # since when the group has not said who has what
        self._news = asyncio.Event()
        self._stopping = False

    async def run(self, hold: Callable[[AnySet[int]], Awaitable[None]]) -> None:
        """
        Until stopped, `hold` what the group says; then hold nothing, and leave. A place that is lost is taken again. Raises Fatal when the
        broker turns it away before it holds anything.
        """
        while not self._stopping:
            try:
                await self._stay(hold)
            except (Recoverable, Fatal) as fault:  # what is held goes on meanwhile, by connections that stand
                if isinstance(fault, Fatal) and not list(self._held()):
                    raise
                log.warning("joining again", group=self._group, because=str(fault))
                await asyncio.sleep(AGAIN_AFTER_S)
        await hold(frozenset())

    async def _stay(self, hold: Callable[[AnySet[int]], Awaitable[None]]) -> None:
        consumer = AIOKafkaConsumer(
            **kafka_client(self._kafka),
            group_id=self._group,
            client_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # the group has no offsets, so there is no place from which anything could be fetched
            partition_assignment_strategy=(_KeepsWhatItHolds(self._held),),
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            request_timeout_ms=ANSWER_MS,
            max_poll_interval_ms=NEVER_MS,
            consumer_timeout_ms=QUIET_MS,  # how often the client looks whether there is something to fetch
        )
        try:
            async with answering(f"{self._group}: cannot connect"):
                await connect(consumer, self._kafka)
            self._assigned, self._asked_at = None, self._clock.monotonic_s()
            consumer.subscribe([self._topic], listener=self)
            while not self._stopping:
                assigned = await self._told()
                async with answering(self._group):
                    consumer._coordinator.check_errors()  # otherwise `poll` does, and the client waits for somebody to hear of them
                if assigned is not None:
                    log.info("holding", group=self._group, partitions=sorted(assigned))
                    await hold(assigned)
            await hold(frozenset())  # before the others are told that they may
        finally:
            await stop_consumer(consumer, LEAVE_S)

    async def _told(self) -> frozenset[int] | None:
        """What the group says, if it says something new before long. Raises Recoverable when it has not answered for too long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), LOOK_EVERY_S)
        self._news.clear()
        if self._over():
            self._stopping = True
        if self._asked_at is not None and self._clock.monotonic_s() - self._asked_at > UNANSWERED_S:
            raise Recoverable(f"{self._group}: joined, and was told nothing for {UNANSWERED_S:.0f} s")
        assigned, self._assigned = self._assigned, None
        return None if self._stopping else assigned

    def on_partitions_revoked(self, revoked: object) -> None:
        """The group shares out anew; what is held goes on."""
        self._asked_at = self._clock.monotonic_s()

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """What is ours now. Returns at once, for no heartbeat is sent meanwhile."""
        self._assigned, self._asked_at = frozenset(at.partition for at in assigned), None
        self._news.set()

    def stop(self) -> None:
        """Let what is held finish, and leave."""
        self._stopping = True
        self._news.set()
