"""
The floor under everything that is built on aiokafka: messages go through unread, whole batches at a time.

    python benchmarks/peers/floor_aiokafka.py --hop echo --kafka localhost:9092 --source payments --target echoed

It reads partition 0 from its beginning, belongs to no group and commits nothing. SIGTERM ends it as SIGKILL does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.structs import RecordMetadata
from work import Task, read_task

RECORDS_MAX = 10_000  # of one poll: more than a fetch holds
FETCH_BYTES = 4 * 1024 * 1024  # the default of 1 MiB is some ten thousand messages, and waits for the next as often
BATCH_BYTES = 900_000  # as much as the broker takes at once (1 MiB with its headers); a request costs the same however full
IN_FLIGHT = 4  # batches whose answer is awaited later: aiokafka sends one, has one ready, and the loop makes the next

Sent = deque[asyncio.Future[RecordMetadata]]


async def echo(task: Task) -> None:
    """Source to target, for ever."""
    place = TopicPartition(task.source, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=task.kafka,
        enable_auto_commit=False,
        max_partition_fetch_bytes=FETCH_BYTES,
        check_crcs=False,  # as librdkafka does by default: the other floor does not check them either
    )
    producer = AIOKafkaProducer(bootstrap_servers=task.kafka, max_batch_size=BATCH_BYTES)
    consumer.assign([place])
    await consumer.start()
    await producer.start()
    await consumer.seek_to_beginning(place)
    sent: Sent = deque()
    while True:
        polled = await consumer.getmany(place, timeout_ms=1_000, max_records=RECORDS_MAX)
        for records in polled.values():
            await send(producer, task.target, records, sent)
        while sent and (len(sent) > IN_FLIGHT or not polled):
            await sent.popleft()  # raises what the broker refused


async def send(producer: AIOKafkaProducer, topic: str, records: Sequence[ConsumerRecord], sent: Sent) -> None:
    """Hand the records over in as few batches as they need."""
    batch = producer.create_batch()
    for record in records:
        if batch.append(key=record.key, value=record.value, timestamp=None) is None:
            sent.append(await producer.send_batch(batch, topic, partition=0))
            batch = producer.create_batch()
            batch.append(key=record.key, value=record.value, timestamp=None)
    sent.append(await producer.send_batch(batch, topic, partition=0))


if __name__ == "__main__":
    asyncio.run(echo(read_task(__doc__, hops=("echo",))))
