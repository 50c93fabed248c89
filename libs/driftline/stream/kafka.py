"""
What the data plane asks of aiokafka: a source of one partition, a sink, a reader of whole topics, topics made. (`connect` starts its
clients, `membership` lets a group share out partitions.)

Every partition has a consumer and a producer of its own, so that what one partition throws away costs no other, and stands where it was
put: the group's name serves the committed offsets alone, and this group has no members (docs/decisions/0001 and 0020).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError
from aiokafka.structs import OffsetAndMetadata

from driftline.access import kafka_client
from driftline.clock import Clock, SystemClock
from driftline.contracts.bounds import Declared
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal, Recoverable
from driftline.logs import log
from driftline.stream.batch import Batch, Ints, Messages, Refused, Varlen
from driftline.stream.connect import connect
from driftline.stream.fetched import by_column, columns
from driftline.stream.record_batches import BATCH_BYTES_MAX, NO_HEADERS, packed
from driftline.stream.records import Coordinate, Decoder, Encoder, Lane, Polled, SchemaRegistry, drop_seen, joined

MESSAGE_BYTES_MAX = 1 << 20
ANSWER_S = 30.0  # the longest wait for an answer, where the client by itself might wait for ever
DAY_MS = 86_400_000
ACKS_S = 30.0  # the longest wait for acks: an idempotent producer can stall until it is thrown away (aiokafka 1017)
GATHER_BYTES, GATHER_MS = 1 << 20, 50  # whoever gathers waits so long for so much, while there is something to read
LET_GO_S = 5.0  # the longest wait for a client that is thrown away
SILENCE_S = 15.0  # for so long a log may hold more without any of it arriving, before whoever reads it starts again


@dataclass(frozen=True, slots=True)
class Cluster:
    """What tells one Kafka cluster, and one log in it, from another of the same name."""

    id: str
    partitions: Mapping[str, int]


@contextlib.asynccontextmanager
async def answering(what: str, within_s: float = ANSWER_S) -> AsyncIterator[None]:
    """Whatever a broker does wrong, or not in time, is Recoverable."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
        raise Recoverable(f"{what}: {error!r}") from error


def cancelled() -> bool:
    """Whether the task that asks has been cancelled itself: a CancelledError can be that of a task of a client's own, let through."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def let_go(stop: Callable[[], Awaitable[None]], within_s: float | None = None, **where: Any) -> None:
    """
    Stop a client that is thrown away, in so many seconds (LET_GO_S) at most: whatever is wrong with it is logged, and holds up nobody who
    goes on without it. `where` says on the log which one it was.
    """
    try:
        async with asyncio.timeout(LET_GO_S if within_s is None else within_s):
            await stop()
    except asyncio.CancelledError:
        if cancelled():
            raise
    except Exception as error:  # whatever is wrong with it
        log.warning("closing", **where, because=repr(error))


async def stop_consumer(consumer: AIOKafkaConsumer, within_s: float | None = None) -> None:
    """Disconnect, in so many seconds (LET_GO_S) at most: a client whose own tasks do not end when told holds up nobody."""
    name = consumer._client._client_id
    await let_go(lambda: _disconnect(consumer), within_s, client=name)
    await let_go(consumer._client.close, client=name)  # which the above has done, unless it took too long


async def _disconnect(consumer: AIOKafkaConsumer) -> None:
    """
    A consumer that is stopped while it waits to fetch again, as from a broker that went away, lets the cancellation of that task of its
    own through (aiokafka's `Fetcher.close`), and to whoever stops it that looks like being cancelled himself.
    """
    try:
        await consumer.stop()
    except asyncio.CancelledError:
        if cancelled():
            raise
        for fetching in consumer._fetcher._pending_tasks:
            fetching.cancel()


async def _throw_away(producer: AIOKafkaProducer) -> None:
    if producer._sender is not None and producer._sender.sender_task is not None:
        await producer._sender.close()  # or else `stop` waits until all is acked, for ever if it must
        producer._message_accumulator.fail_all(KafkaError("thrown away"))
    await producer.stop()


class Source:
    """
    One consumer of one partition, standing where it was put. `group` only names the committed offset.

    `committed_only` leaves out what transactions wrote and took back: for topics that are not ours. Who `gathers` is in no hurry: the
    first records after a silence come at once, those that follow many at a time. All methods raise Recoverable.
    """

    def __init__(
        self,
        kafka: str,
        topic: str,
        partition: int,
        *,
        group: str | None = None,
        wait_ms: int = 2_000,
        committed_only: bool = False,
        gathers: bool = False,
    ) -> None:
        self._at = TopicPartition(topic, partition)
        self._wait_ms = wait_ms
        self._gathers = gathers
        self._where = f"{topic}[{partition}]"
        self._kafka = kafka
        self._consumer = AIOKafkaConsumer(
            **kafka_client(kafka),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=wait_ms,
            max_partition_fetch_bytes=4 << 20,
            key_deserializer=by_column,
            isolation_level="read_committed" if committed_only else "read_uncommitted",
            client_id=f"{group or 'driftline'}-{topic}-{partition}",
        )

    async def start(self) -> None:
        """Connect."""
        async with answering(f"{self._where}: cannot connect"):
            await connect(self._consumer, self._kafka)
        self._consumer.assign([self._at])

    async def bounds(self) -> tuple[int, int]:
        """The log's start and end, asked now."""
        async with answering(self._where):
            start = await self._consumer.beginning_offsets([self._at])
        return start[self._at], await self.end_now()

    async def end_now(self) -> int:
        """The log's end, asked now."""
        async with answering(self._where):
            end: int = (await self._consumer.end_offsets([self._at]))[self._at]
        return end

    async def since(self, time_ms: int) -> int:
        """The offset of the first record that was stamped at `time_ms` or later; the log's end where there is none."""
        async with answering(self._where):
            found = (await self._consumer.offsets_for_times({self._at: time_ms}))[self._at]
        return await self.end_now() if found is None else int(found.offset)

    async def position(self) -> int:
        """The offset up to which all was polled, what is no record (the marker of a transaction, a compacted place) included."""
        async with answering(self._where):
            position: int = await self._consumer.position(self._at)
        return position

    async def committed(self) -> int | None:
        """The group's committed offset."""
        async with answering(self._where):
            offset: int | None = await self._consumer.committed(self._at)
        return offset

    async def note(self) -> str:
        """What was noted beside the committed offset; empty where nothing was."""
        async with answering(self._where):
            found = await self._consumer._coordinator.fetch_committed_offsets([self._at])
        return found[self._at].metadata if self._at in found else ""

    def seek(self, offset: int) -> None:
        """Read from `offset` on."""
        self._consumer.seek(self._at, offset)

    async def poll(self, records_max: int, timeout_ms: int) -> Polled | None:
        """The next records, as soon as there are any; None after `timeout_ms` without."""
        async with answering(self._where):
            polled = await self._consumer.getmany(self._at, timeout_ms=timeout_ms, max_records=records_max)
        found = polled.get(self._at)
        if self._gathers:  # the next fetch is made once this task waits, and aiokafka looks at both for each
            fetching = self._consumer._fetcher
            fetching._fetch_min_bytes, fetching._fetch_max_wait_ms = (GATHER_BYTES, GATHER_MS) if found else (1, self._wait_ms)
        return columns(found) if found else None

    def end(self) -> int | None:
        """The log's end as the last fetch told it; costs nothing."""
        end: int | None = self._consumer.highwater(self._at)
        return end

    async def mark(self, offset: int, metadata: str = "") -> None:
        """Commit the group's offset."""
        async with answering(f"{self._where}: offset not committed"):
            await self._consumer.commit({self._at: OffsetAndMetadata(offset, metadata)})

    async def stop(self) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)


class Ends:
    """
    Says where partitions end, asked on a connection of its own: a broker answers what comes on one connection in turn, so beside a fetch
    that waits for records the question would wait as long. All methods raise Recoverable.
    """

    def __init__(self, kafka: str, *, committed_only: bool = False) -> None:
        self._kafka = kafka
        self._consumer = AIOKafkaConsumer(
            **kafka_client(kafka),
            enable_auto_commit=False,
            isolation_level="read_committed" if committed_only else "read_uncommitted",
        )

    async def start(self) -> None:
        """Connect."""
        async with answering("cannot connect to Kafka"):
            await connect(self._consumer, self._kafka)

    async def now(self, places: Sequence[tuple[str, int]]) -> list[int]:
        """The ends of these partitions, by topic and number."""
        at = [TopicPartition(topic, partition) for topic, partition in places]
        async with answering("the ends of the sources"):
            found = await self._consumer.end_offsets(at)
        return [found[one] for one in at]

    async def stop(self) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)


class Outlet:
    """
    One idempotent producer. Sends whole batches to named partitions, and returns when all are acked.

    After any error the producer must be thrown away, for what it still holds might be sent later: `stop` and make another.
    """

    def __init__(self, kafka: str, client: str) -> None:
        self._kafka = kafka
        self._client = client
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect. Raises Recoverable when the broker does not answer."""
        self._producer = AIOKafkaProducer(
            **kafka_client(self._kafka),
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=BATCH_BYTES_MAX + (64 << 10),
            linger_ms=0,
            request_timeout_ms=20_000,
            client_id=self._client,
        )
        async with answering("cannot connect to Kafka"):
            await connect(self._producer, self._kafka)

    async def partitions(self, topic: str) -> int:
        """How many partitions `topic` has. Raises Recoverable when there is no such topic, or when the broker does not answer."""
        async with answering(topic):
            return len(await self._started().partitions_for(topic))

    async def put(
        self, topic: str, partition: int, keys: Varlen, values: Varlen, order: Ints, now_ms: int, headers: Varlen = NO_HEADERS
    ) -> None:
        """
        Send records to one partition, in `order`. A batch goes when the one before it is acked: were a later one written and an
        earlier one not, consumers, who keep one coordinate a lane, would take what is sent again for copies.
        """
        largest = int(((keys.ends - keys.starts) * (keys.starts >= 0) + values.ends - values.starts).max())
        if largest > MESSAGE_BYTES_MAX:
            raise Fatal(f"a message of {largest} bytes for {topic}: at most {MESSAGE_BYTES_MAX} can be sent")
        for batch in packed(keys, values, order, now_ms, headers):
            await (await self._started().send_batch(batch, topic, partition=partition))

    async def stop(self) -> None:
        """Disconnect, in LET_GO_S at most; what was not acked is forgotten."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await let_go(lambda: _throw_away(producer), client=self._client)

    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise Fatal("the sink was not started")
        return self._producer


class Sink(Outlet):
    """An outlet for topics of ours, with their encoder."""

    def __init__(self, kafka: str, topics: Mapping[str, Topic], encoder: Encoder, client: str) -> None:
        super().__init__(kafka, client)
        self._topics = topics
        self._encoder = encoder

    async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
        """
        Send all of `messages`, by topic in ascending `order`, and wait for the acks. Returns how many were sent.

        Raises Recoverable on any error: all that is known then is that each partition has the first so many of its messages.
        """
        routes: dict[tuple[str, int], list[Messages]] = defaultdict(list)
        for one in messages:
            if len(one):
                routes[(one.topic, partition if one.to is None else one.to)].append(one)
        async with answering("not sent", ACKS_S):
            sends = [self._send_in_order(topic, to, group, partition, now_ms) for (topic, to), group in routes.items()]
            for failure in await asyncio.gather(*sends, return_exceptions=True):
                if failure is not None:
                    raise failure
        return sum(len(one) for one in messages)

    async def _send_in_order(self, kind: str, to: int, group: Sequence[Messages], partition: int, now_ms: int) -> None:
        """Send what goes to one partition."""
        keys = Varlen.concat([Varlen.nulls(len(one)) if one.keys is None else one.keys for one in group])
        values = Varlen.concat([self._encoder.values(one, partition) for one in group])
        sending = np.argsort(np.concatenate([one.order for one in group]), kind="stable")
        await self.put(self._topics[kind].name, to, keys, values, sending, now_ms)


class Publisher:
    """A sink with its encoder, for processes that are no worker: the trainer, the rollout, operators' commands."""

    def __init__(
        self, kafka: str, topics: Topics, registry: SchemaRegistry, writer: int, clock: Clock | None = None, *, client: str = "driftline"
    ) -> None:
        self._kafka = kafka
        self._kinds = topics.by_kind()
        self._registry = registry
        self._writer = writer
        self._clock = clock or SystemClock()
        self._client = client
        self._sink: Sink | None = None

    async def start(self) -> None:
        """Register the schemas and connect."""
        encoder = await asyncio.to_thread(Encoder, self._kinds, self._registry, self._writer)
        self._sink = Sink(self._kafka, self._kinds, encoder, self._client)
        await self._sink.start()

    async def send(self, *messages: Messages, partition: int = 0) -> int:
        """Send and wait for the acks. Raises Recoverable; what may be sent then is the same again, by a producer of its own."""
        if self._sink is None:
            await self.start()
        sink = self._sink
        if sink is None:
            raise Fatal("the publisher did not start")
        try:
            return await sink.send(messages, partition, self._clock.now_ms())
        except Recoverable:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Disconnect."""
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.stop()


SetAside = Callable[[int, Polled, Sequence[Refused]], Awaitable[None]]


class LogReader:
    """
    Reads a topic of ours, all partitions, from the start on: for whoever keeps no ledger because the log itself is the memory.

    Copies are dropped by lane, so what comes out is first copies in order. What cannot be taken is left out and given to
    `set_aside`, by the one reader that answers for the topic; it stays on the topic in any case. All methods raise Recoverable; who
    reads by `next` goes on after it by `start(positions)`.
    """

    def __init__(
        self,
        kafka: str,
        topic: Topic,
        registry: SchemaRegistry,
        wait_ms: int = 100,
        *,
        set_aside: SetAside | None = None,
        pipeline: Declared | None = None,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._decoder = Decoder(topic, registry, pipeline)
        self._wait_ms = wait_ms
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: list[TopicPartition] = []
        self._seen: dict[int, dict[Lane, Coordinate]] = defaultdict(dict)
        self.positions: dict[int, int] = {}
        self._set_aside = set_aside
        self.copies = 0
        self._heard_at = 0.0
        self._ends: Mapping[int, int] = {}  # at the last silence

    async def start(self, starts: Mapping[int, int] | None = None) -> None:
        """Connect and stand at `starts`, or at the start of each partition. Raises Fatal when there is no such topic."""
        async with answering(f"{self._topic.name}: cannot connect"):
            await self._connect(starts or {})
        self._heard_at, self._ends = asyncio.get_running_loop().time(), {}

    async def _connect(self, starts: Mapping[int, int]) -> None:
        self._consumer = AIOKafkaConsumer(
            **kafka_client(self._kafka),
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=self._wait_ms,
            max_partition_fetch_bytes=4 << 20,
            key_deserializer=by_column,
        )
        await connect(self._consumer, self._kafka)
        partitions = await partitions_of(self._consumer, self._topic.name)
        self._partitions = [TopicPartition(self._topic.name, number) for number in range(partitions)]
        self._consumer.assign(self._partitions)
        beginnings = await self._consumer.beginning_offsets(self._partitions)
        for at in self._partitions:
            self.positions[at.partition] = starts.get(at.partition, beginnings[at])
            self._consumer.seek(at, self.positions[at.partition])
        self._consumer.pause(*self._partitions)  # until somebody reads: it would ask ahead, and again and again at the end

    async def end_offsets(self) -> dict[int, int]:
        """The end of each partition, asked now."""
        async with answering(self._topic.name):
            ends = await self._open().end_offsets(self._partitions)
        return {at.partition: ends[at] for at in self._partitions}

    async def read_to(self, ends: Mapping[int, int] | None = None) -> dict[int, Batch]:
        """Everything from where the reader stands up to `ends` (default: the ends now), one batch a partition that had any."""
        goal = dict(ends) if ends is not None else await self.end_offsets()
        self._heard_at = asyncio.get_running_loop().time()
        batches: dict[int, list[Batch]] = defaultdict(list)
        self._open().resume(*self._partitions)
        while any(self.positions[partition] < end for partition, end in goal.items()):
            for partition, batch in await self._poll(1_000, goal):
                batches[partition].append(batch)
        self._open().pause(*self._partitions)
        return {partition: joined(parts) for partition, parts in batches.items()}

    async def next(self, timeout_s: float = 0.2) -> list[Batch]:
        """Whatever has arrived that is no copy, or nothing after `timeout_s`."""
        self._open().resume(*self._partitions)
        return [batch for _, batch in await self._poll(int(timeout_s * 1000), None)]

    async def _poll(self, timeout_ms: int, goal: Mapping[int, int] | None) -> list[tuple[int, Batch]]:
        consumer = self._open()
        wanted = [at for at in self._partitions if goal is None or self.positions[at.partition] < goal.get(at.partition, 0)]
        async with answering(self._topic.name):
            polled = await consumer.getmany(*wanted, timeout_ms=timeout_ms, max_records=20_000)
        await self._listen(bool(polled), goal)
        decoded = []
        try:
            for at, found in polled.items():
                records = columns(found)
                below = records if goal is None else records.part(0, records.below(goal[at.partition]))
                decoded.append((at, records.last + 1, await self._decoded(at.partition, below) if len(below) else None))
        except Recoverable:  # the registry, or the dead letters: what was polled is yet to be had
            for at in polled:
                consumer.seek(at, self.positions[at.partition])
            raise
        batches = []
        for at, end, batch in decoded:
            self.positions[at.partition] = end if goal is None else min(end, goal[at.partition])
            if self.positions[at.partition] < end:
                consumer.seek(at, self.positions[at.partition])
            if batch is not None and len(fresh := self._fresh(batch)):
                batches.append((at.partition, fresh))
        return batches

    async def _listen(self, heard: bool, goal: Mapping[int, int] | None) -> None:
        """Raises Recoverable when for too long nothing has come of what is there: a consumer may have gone deaf."""
        now = asyncio.get_running_loop().time()
        if not heard and now - self._heard_at <= SILENCE_S:
            return
        if not heard:
            if any(self.positions[partition] < end for partition, end in (self._ends if goal is None else goal).items()):
                raise Recoverable(f"{self._topic.name} holds more than was read, and nothing arrives")
            self._ends = await self.end_offsets()
        self._heard_at = now

    async def _decoded(self, partition: int, polled: Polled) -> Batch:
        batch, refused = self._decoder.decode(partition, polled)
        if refused:
            first, where = refused[0], {"topic": self._topic.name, "partition": partition}
            log.warning("left out", **where, records=len(refused), offset=first.offset, reason=first.reason, because=first.detail)
        if refused and self._set_aside is not None:
            await self._set_aside(partition, polled, refused)
        return batch

    def _fresh(self, batch: Batch) -> Batch:
        fresh, self._seen[batch.partition] = drop_seen(batch, self._seen[batch.partition])
        self.copies += len(batch) - len(fresh)
        return fresh

    def _open(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise Fatal(f"the reader of {self._topic.name} was not started")
        return self._consumer

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await stop_consumer(self._consumer)


async def partitions_of(consumer: AIOKafkaConsumer, topic: str) -> int:
    """How many partitions `topic` has. Raises Fatal when there is no such topic."""
    await consumer._client.force_metadata_update()
    found = consumer.partitions_for_topic(topic)
    if not found:
        await consumer.topics()
        found = consumer.partitions_for_topic(topic)
    if not found:
        raise Fatal(f"the topic {topic} does not exist: create it, or run driftline up")
    return len(found)


async def describe(kafka: str, topics: Sequence[str]) -> Cluster:
    """The cluster's id and the number of partitions of each of `topics`; 0 for one that does not exist."""
    admin = AIOKafkaAdminClient(**kafka_client(kafka))
    try:
        await connect(admin, kafka)
        cluster = await admin.describe_cluster()
        found = await admin.describe_topics(list(topics))
    except KafkaError as error:
        raise Recoverable(f"cannot describe the topics: {error!r}") from error
    finally:
        await admin.close()
    return Cluster(str(cluster["cluster_id"]), {topic["topic"]: len(topic["partitions"]) for topic in found})


async def ensure_topics(kafka: str, topics: Topics, partitions: int) -> None:
    """Create whichever of the pipeline's topics do not exist yet, data topics with `partitions` partitions, on up to three brokers."""
    admin = AIOKafkaAdminClient(**kafka_client(kafka))
    await connect(admin, kafka)
    brokers = len((await admin.describe_cluster())["brokers"])
    await admin.close()
    kinds = topics.by_kind().values()
    wanted = [
        NewTopic(
            name=topic.name,
            num_partitions=partitions if topic.partitioned else 1,
            replication_factor=min(3, brokers),
            topic_configs={
                "retention.ms": str(topic.retention_ms),
                "cleanup.policy": "delete",
                "max.message.bytes": str(BATCH_BYTES_MAX + (64 << 10)),
            },
        )
        for topic in kinds
    ]
    await create_topics(kafka, wanted)


async def create_topics(kafka: str, wanted: Sequence[NewTopic]) -> None:
    """Create topics; those that exist stay as they are."""
    admin = AIOKafkaAdminClient(**kafka_client(kafka))
    await connect(admin, kafka)
    try:
        existing = set(await admin.list_topics())
        missing = [topic for topic in wanted if topic.name not in existing]
        if missing:
            await admin.create_topics(missing)
    except TopicAlreadyExistsError:
        pass  # somebody was quicker
    finally:
        await admin.close()


async def committed_metadata(kafka: str, group: str) -> dict[tuple[str, int], tuple[int, str]]:
    """What a group has committed: offset and metadata by topic and partition. Raises Recoverable."""
    admin = AIOKafkaAdminClient(**kafka_client(kafka))
    try:
        await connect(admin, kafka)
        found = await admin.list_consumer_group_offsets(group)
    except KafkaError as error:  # among them: a new cluster has no coordinator until somebody asks for one
        raise Recoverable(f"cannot read the offsets of {group}: {error!r}") from error
    finally:
        await admin.close()
    return {(at.topic, at.partition): (one.offset, one.metadata) for at, one in found.items() if one.offset >= 0}


async def letters_lately(kafka: str, topics: Topics, clock: Clock) -> int:
    """
    How many letters all services together have put on the pipeline's dead-letter topic within a day, copies included. Offsets tell,
    so nothing is read. Raises Recoverable.
    """
    at = TopicPartition(topics.dead_letters.name, 0)
    consumer = AIOKafkaConsumer(**kafka_client(kafka), enable_auto_commit=False)
    try:
        async with answering(f"{at.topic}: cannot count the letters"):
            await connect(consumer, kafka)
            first = (await consumer.offsets_for_times({at: clock.now_ms() - DAY_MS}))[at]
            end: int = (await consumer.end_offsets([at]))[at]
    finally:
        await stop_consumer(consumer)
    return 0 if first is None else end - int(first.offset)
