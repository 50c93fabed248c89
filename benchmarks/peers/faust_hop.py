"""
The hops in faust-streaming 0.15 on aiokafka.

    python benchmarks/peers/faust_hop.py --hop feature --way take --kafka localhost:9092 --source payments --target rows --folder state

State is kept in a Table, in memory, behind a changelog topic, from which a restart fills it again. `--way each` takes one event at a
time; `--way take` takes what the stream has buffered, as `stream.take` does, with keys. Nothing in --folder is needed by a restart.
SIGTERM ends it in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import faust
from faust.types import StreamT
from work import Message, Scorer, State, Task, answer, decode_payment, fold, read_task

TAKE, TAKE_WITHIN_S = 1_000, 0.1
LINGER_S = 0.02  # messages sent one by one are to share requests
BATCH_BYTES = 500_000  # the default of 16 KiB is a hundred messages, after which a send waits for the request before it
BUFFER = 16_384  # events fetched ahead, four times the default
RAW: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}

One = Callable[[bytes | None, bytes], Message]
Many = Callable[[Sequence[tuple[bytes | None, bytes]]], list[Message]]


def make(task: Task) -> faust.App:
    """The app of the task's hop."""
    app = faust.App(
        task.group,
        broker=f"kafka://{task.kafka}",
        store="memory://",  # the fastest: RocksDB would be read and written for each event
        datadir=str(task.folder),
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=BUFFER,
        producer_linger=LINGER_S,
        producer_max_batch_size=BATCH_BYTES,
        cython_optimizations=True,  # the repaired fast paths of its extension modules, off by default
        web_enabled=False,
    )
    source, target = app.topic(task.source, **RAW), app.topic(task.target, **RAW)
    one, many = answers(app, task)

    async def each(stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            key, value = one(event.key, event.value)
            await target.send(key=key, value=value)

    async def take(stream: StreamT[bytes]) -> None:
        async for events in stream.take_events(TAKE, within=TAKE_WITHIN_S):
            for key, value in many([(event.key, event.value) for event in events]):
                await target.send(key=key, value=value)

    app.agent(source, name="hop")(take if task.way == "take" else each)
    return app


def answers(app: faust.App, task: Task) -> tuple[One, Many]:
    """What the task's hop makes of a message, and of many."""
    if task.hop == "score":
        scorer = Scorer(task.model)
        return lambda _, value: scorer.answer(value), lambda messages: scorer.answers([value for _, value in messages])
    one = feature(app) if task.hop == "feature" else echo
    return one, lambda messages: [one(*message) for message in messages]


def echo(key: bytes | None, value: bytes) -> Message:
    """Key and value as they came."""
    return key, value


def feature(app: faust.App) -> One:
    """A payment to its row, the tiles of its card in a table."""
    # Keys as they are, values as JSON, its default. Within `take` there is no current event from which the table could learn its
    # partition, so it asks the partitioner.
    cards = app.Table("cards", partitions=1, key_type=bytes, use_partitioner=True)

    def row(key: bytes | None, value: bytes) -> Message:
        payment = decode_payment(value)
        card = payment[1].encode()
        state: State | None = cards.get(card)
        cards[card], count, total = fold(state, payment[2], payment[3])
        return answer(payment, count, total)

    return row


if __name__ == "__main__":
    faust.Worker(make(read_task(__doc__, ways=("each", "take"))), loglevel="error", quiet=True).execute_from_commandline()
