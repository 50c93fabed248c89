"""
The hops in Bytewax 0.21, one worker.

    python benchmarks/peers/bytewax_hop.py --hop feature --kafka localhost:9092 --source payments --target rows --folder state

State is kept in a stateful operator, and recovery is on: its snapshots, and how far the source was read, lie in sqlite in --folder.
A restart with the same folder goes on from the last snapshot and writes again what was written since. The score hop asks the model about
one row at a time; with `--way batched` about what `op.collect` collects, with `--way polled` about what one poll gave, by
`op.flat_map_batch`. Messages of different cards may change places, those of one card do not. SIGTERM ends it as SIGKILL does.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow, Stream
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from work import Message, Payment, Scorer, State, Task, answer, decode_payment, fold, read_task

Polled = KafkaSourceMessage[bytes | None, bytes | None]
ToSend = KafkaSinkMessage[bytes | None, bytes | None]
Found = tuple[Payment, int, float]

# The sink waits for the broker after each batch that reaches it, and a batch stays together from the source on: the larger, the fewer
# waits. The default is 1,000.
BATCH = 10_000
COLLECT = 1_000
COLLECT_FOR = timedelta(milliseconds=100)
EPOCH = timedelta(seconds=10)  # the default: every ten seconds what changed is pickled and written
BACKUP = timedelta(0)  # nobody copies the partitions elsewhere, so an old snapshot may go as soon as there is a newer one
PRODUCER = {
    "linger.ms": "5",  # while a batch is handed over; the flush after it ends the wait
    "queue.buffering.max.messages": "1000000",
    "batch.num.messages": "100000",
}


def flow(task: Task) -> Dataflow:
    """The dataflow of the task's hop."""
    made = Dataflow(task.hop)
    polled: Stream[Polled] = op.input("source", made, KafkaSource([task.kafka], [task.source], batch_size=BATCH))
    hop = {"echo": echo, "feature": feature, "score": score}[task.hop]
    op.output("target", hop(polled, task), KafkaSink([task.kafka], task.target, add_config=PRODUCER))
    return made


def echo(polled: Stream[Polled], task: Task) -> Stream[ToSend]:
    """Key and value as they came."""
    return op.map("echo", polled, lambda message: KafkaSinkMessage(message.key, message.value))


def feature(polled: Stream[Polled], task: Task) -> Stream[ToSend]:
    """Payments to rows, the tiles of a card in a stateful operator."""

    def keyed(message: Polled) -> tuple[str, Payment]:
        payment = decode_payment(message.value)
        return payment[1], payment

    def step(state: State | None, payment: Payment) -> tuple[State, Found]:
        tiles, count, total = fold(state, payment[2], payment[3])
        return tiles, (payment, count, total)

    payments = op.map("decode", polled, keyed)
    found = op.stateful_map("fold", payments, step)
    return op.map("encode", found, lambda item: KafkaSinkMessage(*answer(*item[1])))


def score(polled: Stream[Polled], task: Task) -> Stream[ToSend]:
    """Rows to scores, in the task's way."""
    scorer = Scorer(task.model)

    def of_polled(messages: list[Polled]) -> Iterable[ToSend]:
        return as_sent(scorer.answers([message.value for message in messages]))

    def of_collected(item: tuple[str, list[bytes | None]]) -> Iterable[ToSend]:
        return as_sent(scorer.answers(item[1]))

    if task.way == "polled":
        return op.flat_map_batch("score", polled, of_polled)
    if task.way == "batched":
        values = op.map("one key", polled, lambda message: ("", message.value))
        return op.flat_map("score", op.collect("collect", values, COLLECT_FOR, COLLECT), of_collected)
    return op.map("score", polled, lambda message: KafkaSinkMessage(*scorer.answer(message.value)))


def as_sent(messages: Iterable[Message]) -> list[ToSend]:
    """What the sink takes."""
    return [KafkaSinkMessage(key, value) for key, value in messages]


def recovery(folder: Path) -> RecoveryConfig:
    """Recovery in `folder`, made when it is new. One partition: there is one worker to write it."""
    if not any(folder.glob("*.sqlite3")):
        folder.mkdir(parents=True, exist_ok=True)
        init_db_dir(folder, 1)
    return RecoveryConfig(folder, BACKUP)


if __name__ == "__main__":
    given = read_task(__doc__, ways=("each", "batched", "polled"))
    cli_main(flow(given), epoch_interval=EPOCH, recovery_config=recovery(given.folder))
