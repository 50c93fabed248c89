"""
The hops in Quix Streams 3.28.

    python benchmarks/peers/quix_hop.py --hop feature --kafka localhost:9092 --source payments --target rows --folder state

State is kept in its store, RocksDB in --folder behind a changelog topic. It is kept by the message's key, so the source must be keyed by
card. `--way at-least-once` or `--way exactly-once`: the latter writes in transactions, seen by a reader of committed messages every
five seconds. A hop hands over one message at a time, so the model is asked about one row at a time. SIGTERM ends it in order.
"""

from __future__ import annotations

from typing import Any

from quixstreams import Application, State
from work import Scorer, Task, answer, decode_payment, fold, read_task

COMMIT_EVERY_S = 5.0  # the default: a commit flushes the producer and writes the store and its changelog, once for each card that changed
CONSUMER = {
    "fetch.message.max.bytes": 4 * 1024 * 1024,  # four times the default: fewer fetches
}
PRODUCER = {
    "linger.ms": 20,  # batches fill up to batch.size, 1 MB by default
    "batch.num.messages": 100_000,  # so that the bytes limit a batch and not the default of 10,000 messages
    "queue.buffering.max.messages": 1_000_000,  # a commit hands over the changelog of all cards at once
}


def feature(value: bytes, key: bytes, timestamp: int, headers: object, state: State[str, Any]) -> bytes:
    """A payment to its row, the tiles of its card in the store: as JSON, its default, because packed bytes cost as much."""
    payment = decode_payment(value)
    if payment[1].encode() != key:
        raise ValueError(f"{payment[0]}: the source is not keyed by card")
    tiles, count, total = fold(state.get("tiles"), payment[2], payment[3])
    state.set("tiles", tiles)
    return answer(payment, count, total)[1]


def app(task: Task) -> Application:
    """The application of the task's hop."""
    made = Application(
        broker_address=task.kafka,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        commit_interval=COMMIT_EVERY_S,
        consumer_extra_config=CONSUMER,
        producer_extra_config=PRODUCER,
        processing_guarantee=task.way,
        state_dir=task.folder,
        loglevel="WARNING",
    )
    source = made.topic(task.source, key_deserializer="bytes", value_deserializer="bytes")
    target = made.topic(task.target, key_serializer="bytes", value_serializer="bytes")
    messages = made.dataframe(source)
    if task.hop == "feature":
        messages = messages.apply(feature, stateful=True, metadata=True)
    elif task.hop == "score":
        scorer = Scorer(task.model)
        messages = messages.apply(lambda value: scorer.answer(value)[1])
    messages.to_topic(target)  # under the key that the message came with: the card
    return made


if __name__ == "__main__":
    app(read_task(__doc__, ways=("at-least-once", "exactly-once"))).run()
