"""
The floor under everything that is built on librdkafka: messages go through unread, a list of them at a time.

    python benchmarks/peers/floor_confluent.py --hop echo --kafka localhost:9092 --source payments --target echoed

It reads partition 0 from its beginning and commits nothing. SIGTERM ends it as SIGKILL does.
"""

from __future__ import annotations

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from work import Task, read_task

RECORDS_MAX = 10_000  # of one poll
CONSUMER = {
    "group.id": "floor",  # librdkafka wants one; an assigned consumer does not join it
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,  # there is nothing to commit
    "fetch.message.max.bytes": 4 * 1024 * 1024,  # four times the default: fewer fetches
}
PRODUCER = {
    "linger.ms": 20,  # batches fill up to batch.size, 1 MB by default
    "queue.buffering.max.messages": 1_000_000,  # the default of 100,000 is a tenth of a second
    "batch.num.messages": 100_000,  # so that the bytes limit a batch and not the default of 10,000 messages
    "delivery.report.only.error": True,  # no call into Python for what went well
}


def echo(task: Task) -> None:
    """Source to target, for ever."""
    consumer = Consumer(CONSUMER | {"bootstrap.servers": task.kafka})
    consumer.assign([TopicPartition(task.source, 0, OFFSET_BEGINNING)])
    producer = Producer(PRODUCER | {"bootstrap.servers": task.kafka, "on_delivery": refuse})
    while True:
        for message in consumer.consume(RECORDS_MAX, 0.1):
            if message.error() is not None:
                raise KafkaException(message.error())
            send(producer, task.target, message)
        producer.poll(0)


def send(producer: Producer, topic: str, message: Message) -> None:
    """Hand a message over; wait while the producer is full."""
    while True:
        try:
            producer.produce(topic, message.value(), message.key(), 0)
            return
        except BufferError:
            producer.poll(0.1)


def refuse(error: KafkaError | None, message: Message) -> None:
    """Called for what could not be delivered, and for nothing else."""
    raise KafkaException(error)


if __name__ == "__main__":
    echo(read_task(__doc__, hops=("echo",)))
