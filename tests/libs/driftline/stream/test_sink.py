"""What becomes of a send when the broker does not do as it should, and what a reader makes of copies."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka.errors import LeaderNotAvailableError

from driftline.contracts.messages import Deployment, Source, Writer, as_messages
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.errors import Fatal, Recoverable
from driftline.stream import kafka as client
from driftline.stream.batch import Messages, Varlen
from driftline.stream.kafka import LogReader, Publisher, Sink, ensure_topics
from driftline.stream.records import Encoder

TOPICS = Topics.of(SimpleNamespace(name="toy", retention_ms=86_400_000))


def letters(sizes: list[int], to: int = 0) -> Messages:
    """Dead letters with values of so many bytes."""
    n = len(sizes)
    zeros, texts = np.zeros(n, np.int64), Varlen.repeat("toy", n)
    columns = {name: zeros for name in ("source", "partition", "index", "event_offset", "timestamp")}
    columns |= {"offset": np.arange(n, dtype=np.int64), "sealed": np.zeros(n, np.bool_)}
    values = Varlen.of(b"x" * size for size in sizes)
    words = dict.fromkeys(("topic", "service", "reason", "detail", "key"), texts)
    return Messages("dead-letters", "dead_letter", None, {**columns, **words, "value": values}, np.arange(n, dtype=np.int64), to)


class Producer:
    """As much of a producer as a sink uses. `acks` says what becomes of each batch: None is acked, an error fails, "never" hangs."""

    _sender = None

    def __init__(self, acks: dict[int, list[Any]]) -> None:
        self._acks = acks
        self.sent: list[tuple[int, int]] = []  # (partition, records)

    async def send_batch(self, batch: Any, topic: str, partition: int) -> asyncio.Future[None]:
        self.sent.append((partition, batch.record_count()))
        ack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        fate = self._acks[partition].pop(0)
        if fate is None:
            ack.set_result(None)
        elif fate != "never":
            ack.set_exception(fate)
        return ack

    async def stop(self) -> None:
        pass


def sink(producer: Producer) -> Sink:
    written = {"dead-letters": TOPICS.dead_letters}
    made = Sink("nowhere:1", written, Encoder(written, MemoryRegistry(), Writer.INTAKE), "toy")
    made._producer = producer  # type: ignore[assignment]
    return made


async def test_nothing_is_sent_to_a_partition_behind_a_batch_that_failed() -> None:
    """
    Were it written, consumers would take what failed, when it is sent again, for a copy.
    """
    producer = Producer({0: [LeaderNotAvailableError(), None], 1: [None, None]})
    with pytest.raises(Recoverable, match="LeaderNotAvailable"):
        await sink(producer).send([letters([700_000, 700_000], 0), letters([700_000, 700_000], 1)], 0, 0)
    assert [records for partition, records in producer.sent if partition == 0] == [1]


async def test_acks_that_never_come_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An idempotent producer can stall until it is thrown away.
    """
    monkeypatch.setattr(client, "ACKS_S", 0.1)
    with pytest.raises(Recoverable, match="not sent"):
        await asyncio.wait_for(sink(Producer({0: ["never"]})).send([letters([10])], 0, 0), 5)


async def test_a_message_that_no_topic_may_hold_is_refused_before_it_is_sent() -> None:
    """
    Sending it again would fail again, for ever.
    """
    producer = Producer({0: [None]})
    with pytest.raises(Fatal, match="at most"):
        await sink(producer).send([letters([2 << 20])], 0, 0)
    assert producer.sent == []


async def test_a_real_sink_that_gives_up_can_be_thrown_away_at_once(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    To stop does not mean to wait for what stalled; and a publisher goes on with another producer.
    """
    topics, registry = Topics.of(SimpleNamespace(name=f"s{uuid.uuid4().hex[:8]}", retention_ms=86_400_000)), MemoryRegistry()
    publisher = Publisher(kafka, topics, registry, Writer.INTAKE)
    await publisher.start()
    monkeypatch.setattr(client, "ACKS_S", 0.3)
    with pytest.raises(Recoverable):
        await asyncio.wait_for(publisher.send(letters([10], to=5)), 10)  # there is no such topic yet, nor ever such a partition
    monkeypatch.setattr(client, "ACKS_S", 20.0)
    await ensure_topics(kafka, topics, 1)
    assert await asyncio.wait_for(publisher.send(letters([10])), 20) == 1
    await publisher.stop()


async def test_a_reader_says_nothing_of_copies(kafka: str) -> None:
    """
    A batch of nothing but copies is no news: whoever looks for a deployment in it would find none.
    """
    topics, registry = Topics.of(SimpleNamespace(name=f"s{uuid.uuid4().hex[:8]}", retention_ms=86_400_000)), MemoryRegistry()
    await ensure_topics(kafka, topics, 1)
    fact = Deployment(4, "step", "canary", "", 0, (), (), "", 0.5)
    at: dict[str, Any] = {"source": Source.CONTROL, "offsets": [4], "indexes": [0], "partition": 0, "to": 0}
    publisher = Publisher(kafka, topics, registry, Writer.ROLLOUT)
    await publisher.start()
    reader = LogReader(kafka, topics.deployments, registry)
    await reader.start()
    found = []
    for _ in range(2):
        await publisher.send(as_messages("deployments", Deployment.message, [fact], **at))
        while (await reader.end_offsets())[0] > reader.positions[0]:
            found += await reader.next(0.5)
    assert [list(batch.tables) for batch in found] == [["deployment"]]
    assert reader.copies == 1
    await reader.stop()
    await publisher.stop()


async def test_a_reader_that_went_deaf_says_so(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whoever follows a topic would wait for ever for what its consumer does not give; a reader at the end of its log may be silent.
    """
    topics, registry = Topics.of(SimpleNamespace(name=f"s{uuid.uuid4().hex[:8]}", retention_ms=86_400_000)), MemoryRegistry()
    await ensure_topics(kafka, topics, 1)
    monkeypatch.setattr(client, "SILENCE_S", 0.2)
    reader = LogReader(kafka, topics.deployments, registry)
    await reader.start()
    for _ in range(3):
        assert await reader.next(0.3) == []
    fact = Deployment(4, "step", "canary", "", 0, (), (), "", 0.5)
    at: dict[str, Any] = {"source": Source.CONTROL, "offsets": [4], "indexes": [0], "partition": 0, "to": 0}
    publisher = Publisher(kafka, topics, registry, Writer.ROLLOUT)
    await publisher.send(as_messages("deployments", Deployment.message, [fact], **at))
    await publisher.stop()

    async def deaf(*_: Any, timeout_ms: int, **__: Any) -> dict[Any, Any]:
        await asyncio.sleep(timeout_ms / 1000)
        return {}

    monkeypatch.setattr(reader._consumer, "getmany", deaf)
    with pytest.raises(Recoverable, match="nothing arrives"):
        for _ in range(20):
            await reader.next(0.3)
    await reader.stop()
