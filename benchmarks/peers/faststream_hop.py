"""
The hops in FastStream 0.7 on aiokafka, its state in Redis, because it has none itself.

    python benchmarks/peers/faststream_hop.py --hop feature --way batch --kafka localhost:9092 --source payments --target rows \
        --redis redis://localhost:6379/0

`--way each`: a handler of one message, a GET and a SET for each; `--way batch`: a handler of many, one MGET and one MSET for all.
`batch` commits a batch after its answers are in Kafka. `each` is acknowledged on arrival and does not wait for its answer to arrive, or
it would wait a round trip for each message. SIGTERM ends it in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage, KafkaPublishMessage
from redis.asyncio import Redis
from work import Message, Scorer, State, Task, answer, decode_payment, fold, pack, read_task, unpack

RECORDS_MAX = 2_000  # of one batch: it is published as one batch of Kafka's, whose 1 MiB must hold it with FastStream's headers
FETCH_BYTES = 4 * 1024 * 1024  # four times the default: fewer fetches
BATCH_BYTES = 900_000  # the default of 16 KiB is a hundred messages, and refuses a published batch that is larger
LINGER_MS = 20  # messages sent one by one are to share requests

One = Callable[[Message], Awaitable[Message]]
Many = Callable[[Sequence[Message]], Awaitable[list[Message]]]


class Cards:
    """The tiles of each card, in Redis."""

    def __init__(self, task: Task) -> None:
        self._redis: Any = Redis.from_url(task.redis)
        self._prefix = f"{task.group}:"

    async def one(self, message: Message) -> Message:
        """The row of a payment."""
        payment = decode_payment(message[1])
        name = self._prefix + payment[1]
        tiles, count, total = fold(unpack(await self._redis.get(name)), payment[2], payment[3])
        await self._redis.set(name, pack(tiles))
        return answer(payment, count, total)

    async def many(self, messages: Sequence[Message]) -> list[Message]:
        """The rows of payments, folded in their order."""
        payments = [decode_payment(value) for _, value in messages]
        names = list(dict.fromkeys(self._prefix + payment[1] for payment in payments))
        states: dict[str, State | None] = dict(zip(names, map(unpack, await self._redis.mget(names)), strict=True))
        rows = []
        for payment in payments:
            name = self._prefix + payment[1]
            states[name], count, total = fold(states[name], payment[2], payment[3])
            rows.append(answer(payment, count, total))
        await self._redis.mset({name: pack(state) for name, state in states.items() if state is not None})
        return rows


class Scores:
    """What the model says of rows."""

    def __init__(self, task: Task) -> None:
        self._scorer = Scorer(task.model)

    async def one(self, message: Message) -> Message:
        """The score of a row."""
        return self._scorer.answer(message[1])

    async def many(self, messages: Sequence[Message]) -> list[Message]:
        """The scores of rows, asked at once."""
        return self._scorer.answers([value for _, value in messages])


class Echo:
    """Key and value as they came."""

    def __init__(self, task: Task) -> None:
        pass

    async def one(self, message: Message) -> Message:
        """The message."""
        return message

    async def many(self, messages: Sequence[Message]) -> list[Message]:
        """The messages."""
        return list(messages)


def of_one(message: KafkaMessage) -> Message:
    """A decoder of our own: the default tries to read the bytes as JSON. It keeps the key beside them."""
    record: Any = message.raw_message
    return record.key, record.value


def of_many(message: KafkaMessage) -> list[Message]:
    """The same for a batch."""
    return [(record.key, record.value) for record in message.raw_message]


def subscribe_one(broker: KafkaBroker, task: Task, answered: One) -> None:
    """One message at a time."""

    @broker.subscriber(
        task.source,
        group_id=task.group,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_BYTES,
        ack_policy=AckPolicy.ACK_FIRST,  # its default: a commit for each message would be a round trip for each
        decoder=of_one,
    )
    async def each(message: Message) -> None:
        key, value = await answered(message)
        await broker.publish(value, task.target, key=key, no_confirm=True)


def subscribe_many(broker: KafkaBroker, task: Task, answered: Many) -> None:
    """Many messages at a time."""

    @broker.subscriber(
        task.source,
        batch=True,
        max_records=RECORDS_MAX,
        group_id=task.group,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_BYTES,
        ack_policy=AckPolicy.ACK,  # after the handler; one commit for two thousand messages is not to be seen
        decoder=of_many,
    )
    async def batch(messages: list[Message]) -> None:
        answers = await answered(messages)
        await broker.publish_batch(*[KafkaPublishMessage(value, key=key) for key, value in answers], topic=task.target)


def app(task: Task) -> FastStream:
    """The application of the task's hop."""
    broker = KafkaBroker(
        task.kafka,
        max_batch_size=BATCH_BYTES,
        linger_ms=LINGER_MS if task.way == "each" else 0,  # a published batch has nothing to wait for
        apply_types=False,  # no validation by pydantic: the decoder's tuple is what the handler takes
        allow_auto_create_topics=False,
        logger=logging.getLogger("faststream_hop"),  # its own would say two lines of each message
    )
    hops: dict[str, type[Any]] = {"echo": Echo, "feature": Cards, "score": Scores}
    hop = hops[task.hop](task)
    if task.way == "each":
        subscribe_one(broker, task, hop.one)
    else:
        subscribe_many(broker, task, hop.many)
    return FastStream(broker, logger=None)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(app(read_task(__doc__, ways=("batch", "each"))).run())
