"""
The only import of aiokafka on the data plane: a source of one partition, a sink, a reader of whole topics, topics made.

Every partition has a consumer and a producer of its own, so that what one partition throws away costs no other. Partitions
are fixed by ordinal, not shared out by a group (docs/decisions/0001): the group's name serves the committed offsets alone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError
from aiokafka.structs import OffsetAndMetadata

from driftline.clock import Clock, SystemClock
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal, Recoverable
from driftline.stream.batch import Batch, Messages
from driftline.stream.records import Coordinate, Decoder, Encoder, Lane, Polled, SchemaRegistry, drop_seen, joined

BATCH_BYTES_MAX = 1 << 20
MESSAGE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Cluster:
    """What tells one Kafka cluster, and one log in it, from another of the same name."""

    id: str
    partitions: Mapping[str, int]


class Source:
    """One consumer of one partition, standing where it was put. `group` only names the committed offset."""

    def __init__(self, kafka: str, topic: str, partition: int, *, group: str | None = None, wait_ms: int = 500) -> None:
        self._at = TopicPartition(topic, partition)
        self._group = group
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=wait_ms,
            max_partition_fetch_bytes=4 << 20,
            client_id=f"{group or 'driftline'}-{topic}-{partition}",
        )

    async def start(self) -> None:
        """Connect. Raises Recoverable when the broker does not answer."""
        try:
            await self._consumer.start()
            self._consumer.assign([self._at])
        except KafkaError as error:
            raise Recoverable(f"{self._at.topic}[{self._at.partition}]: cannot connect: {error!r}") from error

    async def bounds(self) -> tuple[int, int]:
        """The log's start and end, asked now."""
        start = await self._consumer.beginning_offsets([self._at])
        end = await self._consumer.end_offsets([self._at])
        return start[self._at], end[self._at]

    async def end_now(self) -> int:
        """The log's end, asked now."""
        end: int = (await self._consumer.end_offsets([self._at]))[self._at]
        return end

    async def committed(self) -> int | None:
        """The group's committed offset."""
        offset: int | None = await self._consumer.committed(self._at)
        return offset

    def seek(self, offset: int) -> None:
        """Read from `offset` on."""
        self._consumer.seek(self._at, offset)

    async def poll(self, records_max: int, timeout_ms: int) -> Polled | None:
        """The next records, as soon as there are any; None after `timeout_ms` without. Raises Recoverable."""
        try:
            polled = await self._consumer.getmany(self._at, timeout_ms=timeout_ms, max_records=records_max)
        except KafkaError as error:
            raise Recoverable(f"{self._at.topic}[{self._at.partition}]: {error!r}") from error
        records = polled.get(self._at)
        if not records:
            return None
        return Polled(
            [record.offset for record in records],
            [record.key for record in records],
            [record.value for record in records],
            [record.timestamp for record in records],
        )

    def end(self) -> int | None:
        """The log's end as the last fetch told it; costs nothing."""
        end: int | None = self._consumer.highwater(self._at)
        return end

    async def mark(self, offset: int, metadata: str = "") -> None:
        """Commit the group's offset. Correctness never rests on it where there is a ledger, so a failure is only Recoverable."""
        try:
            await self._consumer.commit({self._at: OffsetAndMetadata(offset, metadata)})
        except KafkaError as error:
            raise Recoverable(f"{self._at.topic}[{self._at.partition}]: offset not committed: {error!r}") from error

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()


class Sink:
    """
    One idempotent producer. Sends whole batches to named partitions, and returns when all are acked.

    After any error the producer must be thrown away, for what it still holds might be sent later: `stop` and make another.
    """

    def __init__(self, kafka: str, topics: Mapping[str, Topic], encoder: Encoder, client: str) -> None:
        self._topics = topics
        self._encoder = encoder
        self._kafka = kafka
        self._client = client
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect. Raises Recoverable when the broker does not answer."""
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka,
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=BATCH_BYTES_MAX + (64 << 10),
            linger_ms=0,
            request_timeout_ms=20_000,
            client_id=self._client,
        )
        try:
            await self._producer.start()
        except KafkaError as error:
            raise Recoverable(f"cannot connect to Kafka: {error!r}") from error

    async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
        """
        Send all of `messages`, by topic in ascending `order`, and wait for the acks. Returns how many were sent.

        Raises Recoverable on any error: nothing is known then of what was written.
        """
        routes: dict[tuple[str, int], list[Messages]] = defaultdict(list)
        for one in messages:
            if len(one):
                routes[(one.topic, partition if one.to is None else one.to)].append(one)
        try:
            submitted = [await self._submit(topic, to, group, partition, now_ms) for (topic, to), group in routes.items()]
            acks = [ack for some in submitted for ack in some]
            await asyncio.gather(*acks)
        except (TimeoutError, KafkaError) as error:
            raise Recoverable(f"not sent: {error!r}") from error
        return sum(len(one) for one in messages)

    async def _submit(self, kind: str, to: int, group: Sequence[Messages], partition: int, now_ms: int) -> list[asyncio.Future[object]]:
        keys: list[bytes | None] = []
        values: list[bytes] = []
        for one in group:
            keys += [None] * len(one) if one.keys is None else one.keys.tolist()
            values += self._encoder.values(one, partition)
        sending = np.argsort(np.concatenate([one.order for one in group]), kind="stable").tolist()
        topic = self._topics[kind].name
        producer = self._started()
        acks = []
        batch = producer.create_batch()
        for at in sending:
            if batch.append(timestamp=now_ms, key=keys[at], value=values[at]) is None:
                acks.append(await producer.send_batch(batch, topic, partition=to))
                batch = producer.create_batch()
                if batch.append(timestamp=now_ms, key=keys[at], value=values[at]) is None:
                    raise Fatal(f"a message of {len(values[at])} bytes for {topic} is larger than a batch may be")
        acks.append(await producer.send_batch(batch, topic, partition=to))
        return acks

    async def stop(self) -> None:
        """Disconnect; what was not acked is forgotten."""
        if self._producer is not None:
            await self._producer.stop()

    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise Fatal("the sink was not started")
        return self._producer


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
        """Send and wait for the acks. Raises Recoverable."""
        if self._sink is None:
            raise Fatal("the publisher was not started")
        return await self._sink.send(messages, partition, self._clock.now_ms())

    async def stop(self) -> None:
        """Disconnect."""
        if self._sink is not None:
            await self._sink.stop()


class LogReader:
    """
    Reads a topic of ours, all partitions, from the start on: for whoever keeps no ledger because the log itself is the memory.

    Copies are dropped by lane, so what comes out is first copies in order.
    """

    def __init__(self, kafka: str, topic: Topic, registry: SchemaRegistry, wait_ms: int = 100) -> None:
        self._kafka = kafka
        self._topic = topic
        self._decoder = Decoder(topic, registry)
        self._wait_ms = wait_ms
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: list[TopicPartition] = []
        self._seen: dict[int, dict[Lane, Coordinate]] = defaultdict(dict)
        self.positions: dict[int, int] = {}
        self.copies = 0

    async def start(self, starts: Mapping[int, int] | None = None) -> None:
        """Connect and stand at `starts`, or at the start of each partition."""
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=self._wait_ms,
            max_partition_fetch_bytes=4 << 20,
        )
        await self._consumer.start()
        partitions = await partitions_of(self._consumer, self._topic.name)
        self._partitions = [TopicPartition(self._topic.name, number) for number in range(partitions)]
        self._consumer.assign(self._partitions)
        beginnings = await self._consumer.beginning_offsets(self._partitions)
        for at in self._partitions:
            self.positions[at.partition] = (starts or {}).get(at.partition, beginnings[at])
            self._consumer.seek(at, self.positions[at.partition])

    async def end_offsets(self) -> dict[int, int]:
        """The end of each partition, asked now."""
        ends = await self._open().end_offsets(self._partitions)
        return {at.partition: ends[at] for at in self._partitions}

    async def read_to(self, ends: Mapping[int, int] | None = None) -> dict[int, Batch]:
        """Everything from where the reader stands up to `ends` (default: the ends now), one batch a partition that had any."""
        goal = dict(ends) if ends is not None else await self.end_offsets()
        batches: dict[int, list[Batch]] = defaultdict(list)
        while any(self.positions[partition] < end for partition, end in goal.items()):
            for partition, batch in await self._poll(1_000, goal):
                batches[partition].append(batch)
        return {partition: joined(parts) for partition, parts in batches.items()}

    async def next(self, timeout_s: float = 0.2) -> list[Batch]:
        """Whatever has arrived, or nothing after `timeout_s`."""
        return [batch for _, batch in await self._poll(int(timeout_s * 1000), None)]

    async def _poll(self, timeout_ms: int, goal: Mapping[int, int] | None) -> list[tuple[int, Batch]]:
        consumer = self._open()
        wanted = [at for at in self._partitions if goal is None or self.positions[at.partition] < goal.get(at.partition, 0)]
        polled = await consumer.getmany(*wanted, timeout_ms=timeout_ms, max_records=20_000)
        batches = []
        for at, found in polled.items():
            records = found
            if goal is not None and found[-1].offset >= goal[at.partition]:
                records = [record for record in found if record.offset < goal[at.partition]]
                consumer.seek(at, goal[at.partition])
            if not records:
                self.positions[at.partition] = goal[at.partition] if goal else self.positions[at.partition]
                continue
            self.positions[at.partition] = records[-1].offset + 1
            batches.append((at.partition, self._fresh(at.partition, records)))
        return batches

    def _fresh(self, partition: int, records: Sequence[object]) -> Batch:
        polled = Polled(*([getattr(record, name) for record in records] for name in ("offset", "key", "value", "timestamp")))
        batch, refused = self._decoder.decode(partition, polled)
        if refused:
            raise Fatal(f"{self._topic.name}[{partition}]@{refused[0].offset}: {refused[0].reason}: {refused[0].detail}")
        fresh, self._seen[partition] = drop_seen(batch, self._seen[partition])
        self.copies += len(batch) - len(fresh)
        return fresh

    def _open(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise Fatal(f"the reader of {self._topic.name} was not started")
        return self._consumer

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await self._consumer.stop()


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
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        found = await admin.describe_topics(list(topics))
    except KafkaError as error:
        raise Recoverable(f"cannot describe the topics: {error!r}") from error
    finally:
        await admin.close()
    return Cluster(str(cluster["cluster_id"]), {topic["topic"]: len(topic["partitions"]) for topic in found})


async def ensure_topics(kafka: str, topics: Topics, partitions: int) -> None:
    """Create whichever of the pipeline's topics do not exist yet, data topics with `partitions` partitions, on up to three brokers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
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
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
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
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    try:
        await admin.start()
        found = await admin.list_consumer_group_offsets(group)
    except KafkaError as error:  # among them: a new cluster has no coordinator until somebody asks for one
        raise Recoverable(f"cannot read the offsets of {group}: {error!r}") from error
    finally:
        await admin.close()
    return {(at.topic, at.partition): (one.offset, one.metadata) for at, one in found.items() if one.offset >= 0}
