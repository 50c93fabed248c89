"""
A simulated Kafka: logs, committed offsets, and the clients that `driftline.stream.kafka` makes of aiokafka's classes.

It is the real `Source`, `Sink` and `LogReader` that run on it. A batch is appended whole or not at all. An idempotent producer repeats
until it knows, so one batch is on the log once, and never out of order; a plain one may leave it twice, or behind a later one, and what
only one broker has acknowledged is lost when that broker restarts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceNumber,
    RequestTimedOutError,
)
from aiokafka.structs import OffsetAndMetadata, OffsetAndTimestamp

from driftline.stream.batch import Ints, Varlen

from .faults import LONG_S, PROCESS, Died, Process, Wire

ADMIN_S = 4.0
IDLE_S = 1.0  # a poll that finds nothing returns after so long, or what it was told if that is longer: idling costs real time


class Record(NamedTuple):
    """One record as a consumer gets it."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: tuple[()] = ()


class Log:
    """One partition of one topic. Offsets may have gaps, as markers of transactions leave them."""

    def __init__(self, topic: str, partition: int) -> None:
        self.name = f"{topic}[{partition}]"
        self.topic = topic
        self.partition = partition
        self.start = 0
        self.end = 0
        self.records: list[Record] = []
        self.written_at: dict[int, float] = {}  # for checks that ask what was there when
        self._waiting: list[asyncio.Future[None]] = []

    def append(self, records: Sequence[tuple[bytes | None, bytes | None, int]], now_s: float = 0.0) -> int:
        """Append key, value and timestamp of each; the offset of the first."""
        first = self.end
        for key, value, timestamp in records:
            self.records.append(Record(self.end, key, value, timestamp))
            self.written_at[self.end] = now_s
            self.end += 1
        self._wake()
        return first

    def skip(self) -> None:
        """An offset without a record."""
        self.end += 1
        self._wake()

    def read(self, offset: int, most: int) -> list[Record]:
        """The records from `offset` on."""
        low, high = 0, len(self.records)
        while low < high:
            middle = (low + high) // 2
            if self.records[middle].offset < offset:
                low = middle + 1
            else:
                high = middle
        return self.records[low : low + most]

    def truncate(self, start: int) -> None:
        """Retention has taken everything before `start`."""
        self.start = start
        self.records = self.read(start, len(self.records))
        self._wake()

    def cut(self, end: int) -> None:
        """What was not on disk is gone."""
        self.records = [record for record in self.records if record.offset < end]
        self.end = end
        self._wake()

    def changed(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Done when something is appended."""
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        return future

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Cluster:
    """The brokers together."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.id = "simulated"
        self.logs: dict[str, list[Log]] = {}
        self.committed: dict[tuple[str, str, int], tuple[int, str]] = {}
        self.up = True
        self.epoch = 0
        self.batch_most = 3  # records of one batch
        self.poll_most = 8  # records that one poll may get
        self.volatile: list[tuple[Log, int]] = []  # what one broker alone has, and from which offset on

    def create(self, topic: str, partitions: int) -> None:
        """Make a topic, or give one more partitions."""
        logs = self.logs.setdefault(topic, [])
        logs += [Log(topic, number) for number in range(len(logs), partitions)]

    def log(self, at: TopicPartition) -> Log:
        """The log of a partition."""
        return self.logs[at.topic][at.partition]

    def stop(self) -> None:
        """All brokers go down, and what only one of them had is lost."""
        self.up = False
        self.epoch += 1
        for log, offset in reversed(self.volatile):
            if offset < log.end:
                self.wire.tell(f"{log.name}: what was acknowledged by one broker alone is lost from {offset} on")
                log.cut(offset)
        self.volatile.clear()

    def asked(self, effect: Callable[[], Any]) -> Any:
        """What a request finds."""
        if not self.up:
            raise KafkaConnectionError("no broker answers")
        return effect()

    async def request(self, what: str, effect: Callable[[], Any], patience_s: float = LONG_S) -> Any:
        """One request; while the brokers are down it fails after a moment. One that nobody answers waits for `patience_s`."""
        if not self.up:
            await asyncio.sleep(0.1)
        return await self.wire.exchange(what, lambda: self.asked(effect), _lost, patience_s)


def _lost(kind: str) -> Exception:
    return RequestTimedOutError() if kind == "late" else KafkaConnectionError("connection reset")


class Consumer:
    """`AIOKafkaConsumer`, as far as it is used."""

    def __init__(self, cluster: Cluster, group: str | None, reset: str) -> None:
        self._cluster = cluster
        self._group = group
        self._reset = reset
        self._assigned: list[TopicPartition] = []
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._deaf = False
        self._client = self._coordinator = self._fetcher = self
        self._pending_tasks: list[Any] = []
        self._client_id = ""

    async def start(self) -> None:
        await self._cluster.request("connect a consumer", lambda: None)
        wire = self._cluster.wire
        if wire.happens(wire.dose.deaf):
            self._deaf = True
            wire.fault(f"{PROCESS.get().name}: a consumer goes deaf")

    async def stop(self) -> None:
        """As the real one does when it is stopped while it waits to fetch again, it lets the cancellation of its own task through."""
        wire = self._cluster.wire
        if wire.happens(wire.dose.let_through):
            wire.fault(f"{PROCESS.get().name}: a consumer lets a cancellation through")
            raise asyncio.CancelledError

    async def close(self) -> None:
        pass

    async def force_metadata_update(self) -> None:
        pass

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(len(self._cluster.logs[topic]))) if topic in self._cluster.logs else None

    async def topics(self) -> set[str]:
        return set(self._cluster.logs)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._assigned = list(partitions)

    def pause(self, *partitions: TopicPartition) -> None:
        """Nothing is fetched before it is asked for here, so there is nothing to pause."""

    def resume(self, *partitions: TopicPartition) -> None:
        """Likewise."""

    def seek(self, at: TopicPartition, offset: int) -> None:
        self._positions[at] = offset

    async def position(self, at: TopicPartition) -> int:
        return self._positions[at]

    def highwater(self, at: TopicPartition) -> int | None:
        return self._ends.get(at)

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        cluster = self._cluster
        found: dict[TopicPartition, int] = await cluster.request(
            "ask for the start", lambda: {at: cluster.log(at).start for at in partitions}
        )
        return found

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        cluster = self._cluster
        found: dict[TopicPartition, int] = await cluster.request("ask for the end", lambda: {at: cluster.log(at).end for at in partitions})
        return found

    async def committed(self, at: TopicPartition) -> int | None:
        cluster, place = self._cluster, (self._group or "", at.topic, at.partition)
        found: tuple[int, str] | None = await cluster.request("ask for the committed offset", lambda: cluster.committed.get(place))
        return found[0] if found else None

    async def fetch_committed_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        cluster, group = self._cluster, self._group or ""
        found: dict[TopicPartition, OffsetAndMetadata] = await cluster.request(
            "ask for what is noted",
            lambda: {
                at: OffsetAndMetadata(*cluster.committed[group, at.topic, at.partition])
                for at in partitions
                if (group, at.topic, at.partition) in cluster.committed
            },
        )
        return found

    async def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """All that is on a log was put there lately."""
        cluster = self._cluster
        found: dict[TopicPartition, OffsetAndTimestamp | None] = await cluster.request(
            "ask for an offset by time",
            lambda: {at: OffsetAndTimestamp(log.start, 0) if (log := cluster.log(at)).start < log.end else None for at in times},
        )
        return found

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        cluster = self._cluster

        def written() -> None:
            for at, one in offsets.items():
                cluster.committed[self._group or "", at.topic, at.partition] = (one.offset, one.metadata)

        await cluster.request("commit an offset", written)

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Record]]:
        wire = self._cluster.wire
        process = await wire.step("a poll")
        most = min(max_records or 20_000, 1 + wire.random.randrange(self._cluster.poll_most))
        found = self._found(partitions or self._assigned, most)
        if found or not timeout_ms:
            return found
        await self._wait(partitions or self._assigned, max(timeout_ms / 1000, IDLE_S))
        if process.awake is not None:
            await process.awake.wait()
        if process.dead:
            raise Died
        return self._found(partitions or self._assigned, most)

    def _found(self, partitions: Sequence[TopicPartition], most: int) -> dict[TopicPartition, list[Record]]:
        found: dict[TopicPartition, list[Record]] = {}
        if self._deaf or not self._cluster.up:
            return found
        for at in partitions:
            log = self._cluster.log(at)
            offset = self._standing(at, log)
            records = log.read(offset, most)
            self._ends[at] = log.end
            if records:
                found[at] = records
                self._positions[at] = records[-1].offset + 1
            elif offset < log.end:  # nothing but gaps
                self._positions[at] = log.end
        return found

    def _standing(self, at: TopicPartition, log: Log) -> int:
        """Where the next record is read. Where nobody has put it, a consumer goes on from what its group has committed."""
        offset = self._positions.get(at)
        if offset is None:
            committed = self._cluster.committed.get((self._group or "", at.topic, at.partition))
            offset = committed[0] if committed else -1
        if log.start <= offset <= log.end:
            self._positions[at] = offset
            return offset
        if self._reset == "none":
            raise NoOffsetForPartitionError(at) if offset < 0 else OffsetOutOfRangeError({at: offset})
        self._positions[at] = log.end if self._reset == "latest" else log.start
        return self._positions[at]

    async def _wait(self, partitions: Sequence[TopicPartition], seconds: float) -> None:
        """Until one of the logs changes, or time is over."""
        loop = self._cluster.wire.loop
        changed = [self._cluster.log(at).changed(loop) for at in partitions]
        timer = loop.call_later(seconds, lambda: changed[0].done() or changed[0].set_result(None))
        if len(changed) == 1:
            await changed[0]
        else:
            await asyncio.wait(changed, return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()


class Packed(NamedTuple):
    """A batch to be sent: key, value and timestamp of each record."""

    records: Sequence[tuple[bytes | None, bytes | None, int]]


def packed(cluster: Cluster, keys: Varlen, values: Varlen, order: Ints, timestamp_ms: int, _headers: Varlen) -> Iterator[Packed]:
    """`driftline.stream.record_batches.packed`, in batches of a size that chance draws for each."""
    given, written = keys.starts.tolist(), values.tolist()
    records = [(keys[at] if given[at] >= 0 else None, written[at], timestamp_ms) for at in order.tolist()]
    while records:
        most = 1 + cluster.wire.random.randrange(cluster.batch_most)
        yield Packed(records[:most])
        records = records[most:]


class _Sending(NamedTuple):
    batch: Packed
    ack: asyncio.Future[None]
    epoch: int


class Producer:
    """`AIOKafkaProducer`, as far as it is used. Batches of one partition go one after the other."""

    def __init__(self, cluster: Cluster, idempotent: bool, acks: object) -> None:
        self._cluster = cluster
        self._idempotent = idempotent
        self._safe = acks in ("all", -1)
        self._queues: dict[TopicPartition, deque[_Sending]] = {}
        self._broken: set[TopicPartition] = set()
        self._sender: Any = self
        self._message_accumulator = self
        self.sender_task = self
        self._closed = False

    async def start(self) -> None:
        await self._cluster.request("connect a producer", lambda: None)

    async def send_batch(self, batch: Packed, topic: str, *, partition: int) -> asyncio.Future[None]:
        wire, at = self._cluster.wire, TopicPartition(topic, partition)
        process = await wire.step(f"a send to {topic}")
        ack: asyncio.Future[None] = wire.loop.create_future()
        sending = _Sending(batch, ack, self._cluster.epoch)
        queue = self._queues.setdefault(at, deque())
        queue.append(sending)
        if len(queue) == 1:
            self._go(process, at)
        return ack

    def _go(self, process: Process, at: TopicPartition) -> None:
        """What becomes of the first batch that waits. The broker may take it although its sender has died by then."""
        queue, wire, dose = self._queues[at], self._cluster.wire, self._cluster.wire.dose
        sending = queue[0]
        chance = wire.random.random()
        if not self._cluster.up:
            wire.later(0.2, lambda: self._settle(process, at, sending, KafkaTimeoutError("the broker is away")))
        elif chance < dose.send_failed:
            wire.fault(f"{process.name}: a batch to {at.topic}[{at.partition}] fails")
            wire.later(wire.delay(), lambda: self._settle(process, at, sending, KafkaTimeoutError("not sent")))
        elif (chance := chance - dose.send_failed) < dose.send_expired:
            wire.fault(f"{process.name}: a batch to {at.topic}[{at.partition}] is written, its ack lost")
            self._write(at, sending)
            if not self._idempotent:  # it tries again, and what comes in between is before the second copy
                wire.later(0.5 * wire.random.random(), lambda: self._write(at, sending))
                wire.later(wire.delay(), lambda: self._settle(process, at, sending, None))
            else:
                wire.later(wire.delay(), lambda: self._settle(process, at, sending, RequestTimedOutError()))
        elif (chance := chance - dose.send_expired) < dose.send_late:
            wire.fault(f"{process.name}: a batch to {at.topic}[{at.partition}] is given up, and then written")
            wire.later(0.02 + 0.6 * wire.random.random(), lambda: self._write(at, sending))
            wire.later(wire.delay() / 2, lambda: self._settle(process, at, sending, RequestTimedOutError()))
        elif (chance - dose.send_late) < dose.slow:
            wire.later(wire.delay(), lambda: self._arrive(process, at, sending))
        else:
            self._arrive(process, at, sending)

    def _arrive(self, process: Process, at: TopicPartition, sending: _Sending) -> None:
        if process.dead and self._cluster.wire.random.random() < 0.5:
            return
        if sending.epoch != self._cluster.epoch and not self._cluster.up:
            self._settle(process, at, sending, KafkaConnectionError("the broker went away"))
            return
        self._write(at, sending)
        self._settle(process, at, sending, None)

    def _write(self, at: TopicPartition, sending: _Sending) -> None:
        cluster = self._cluster
        if not cluster.up:
            return
        log = cluster.log(at)
        first = log.append(sending.batch.records, cluster.wire.loop.now_s)
        if not self._safe:
            place = (log, first)
            cluster.volatile.append(place)
            cluster.wire.later(0.3, lambda: cluster.volatile.remove(place) if place in cluster.volatile else None)

    def _settle(self, process: Process, at: TopicPartition, sending: _Sending, error: Exception | None) -> None:
        queue = self._queues[at]
        if queue and queue[0] is sending:
            queue.popleft()
        if not sending.ack.done():
            if error is None:
                sending.ack.set_result(None)
            else:
                sending.ack.set_exception(error)
        if error is not None and self._idempotent:
            while queue:
                behind = queue.popleft()
                if not behind.ack.done():
                    behind.ack.set_exception(OutOfOrderSequenceNumber())
        if queue and not process.dead and not self._closed:
            self._go(process, at)

    def fail_all(self, error: Exception) -> None:
        for queue in self._queues.values():
            for sending in queue:
                if not sending.ack.done():
                    sending.ack.set_exception(error)
            queue.clear()

    async def close(self) -> None:
        self._closed = True

    async def stop(self) -> None:
        self._closed = True


class Admin:
    """`AIOKafkaAdminClient`, as far as it is used. Its requests time out by themselves, after 40 s: here all waits are a tenth."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def start(self) -> None:
        await self._cluster.request("connect an admin", lambda: None, ADMIN_S)

    async def close(self) -> None:
        pass

    async def describe_cluster(self) -> dict[str, Any]:
        return {"cluster_id": self._cluster.id, "brokers": [0]}

    async def describe_topics(self, topics: list[str]) -> list[dict[str, Any]]:
        cluster = self._cluster
        found: list[dict[str, Any]] = await cluster.request(
            "describe topics", lambda: [{"topic": topic, "partitions": cluster.logs.get(topic, [])} for topic in topics], ADMIN_S
        )
        return [{"topic": one["topic"], "partitions": list(one["partitions"])} for one in found]

    async def list_consumer_group_offsets(self, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
        cluster = self._cluster
        found: dict[TopicPartition, OffsetAndMetadata] = await cluster.request(
            "list offsets",
            lambda: {
                TopicPartition(topic, partition): OffsetAndMetadata(*committed)
                for (owner, topic, partition), committed in cluster.committed.items()
                if owner == group
            },
            ADMIN_S,
        )
        return found
