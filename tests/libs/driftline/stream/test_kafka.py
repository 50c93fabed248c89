"""The sink on a real broker: where messages go, and in which order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from driftline.clock import SystemClock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.errors import Fatal
from driftline.stream import kafka as client
from driftline.stream.batch import Messages, Refused, Varlen
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import GATHER_BYTES, LogReader, Publisher, ensure_topics, letters_lately, stop_consumer
from driftline.stream.kafka import Source as LogSource
from driftline.stream.letterbox import Letterbox
from driftline.stream.records import Polled


def ticks(numbers: list[int], order: list[int]) -> Messages:
    offsets = np.array(numbers, np.int64)
    zeros = np.zeros(len(numbers), np.int64)
    columns = {"source": zeros + int(Source.TICK), "partition": zeros, "offset": offsets, "index": zeros, "event_offset": zeros - 1}
    return Messages("journal", "tick", None, {**columns, "time": offsets, "deployment": zeros}, np.array(order, np.int64))


def outcomes(offsets: list[int]) -> Messages:
    numbers = np.array(offsets, np.int64)
    n = len(numbers)
    texts = Varlen.of(str(number) for number in offsets)
    columns = {
        "source": np.full(n, Source.EVENTS, np.int64),
        "offset": numbers,
        "index": np.zeros(n, np.int64),
        "event_offset": numbers,
        "id": texts,
        "key": texts,
        "time": numbers,
        "visible": numbers,
        "label": np.ones(n, np.int64),
        "origin": Varlen.repeat("toy", n),
    }
    return Messages("journal", "outcome", texts, columns, numbers)


async def test_what_several_causes_made_is_sent_in_order_of_the_causes(kafka: str) -> None:
    """
    Messages of several kinds for one topic are merged by cause, and all go to the partition that is named, whatever their keys.
    """
    topics, registry = Topics.of(SimpleNamespace(name=f"k{uuid.uuid4().hex[:8]}", retention_ms=86_400_000)), MemoryRegistry()
    await ensure_topics(kafka, topics, 3)
    publisher = Publisher(kafka, topics, registry, Writer.FEATURE, SystemClock())
    await publisher.start()
    await publisher.send(outcomes([10, 12, 14, 16]), ticks([1, 2], order=[11, 15]), partition=2)
    await publisher.stop()
    reader = LogReader(kafka, topics.journal, registry)
    await reader.start()
    batches = await reader.read_to()
    await reader.stop()
    assert list(batches) == [2]
    found = [(int(at), message) for message, table in batches[2].tables.items() for at in table.offsets]
    assert [message for _, message in sorted(found)] == ["outcome", "tick", "outcome", "outcome", "tick", "outcome"]


async def test_a_reader_leaves_out_a_bad_record_and_sets_it_aside(kafka: str) -> None:
    """
    What comes after it is read: a stranger's record must not stop whoever reads deployments or control.
    """
    topics, registry = Topics.of(SimpleNamespace(name=f"k{uuid.uuid4().hex[:8]}", retention_ms=86_400_000)), MemoryRegistry()
    await ensure_topics(kafka, topics, 1)
    publisher = Publisher(kafka, topics, registry, Writer.FEATURE, SystemClock())
    await publisher.send(outcomes([10]))
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    await producer.send_and_wait(topics.journal.name, b"a stranger's", partition=0)
    await producer.stop()
    await publisher.send(outcomes([12]))
    await publisher.stop()
    aside: list[tuple[int, str]] = []

    async def set_aside(partition: int, polled: Polled, refused: Sequence[Refused]) -> None:
        aside.extend((one.offset, one.reason) for one in refused)

    reader = LogReader(kafka, topics.journal, registry, set_aside=set_aside)
    await reader.start()
    batches = await reader.read_to()
    await reader.stop()
    assert batches[0].tables["outcome"]["offset"].tolist() == [10, 12]
    assert aside == [(1, "undecodable")]


async def test_letters_of_a_day_are_counted_by_offsets(kafka: str) -> None:
    """
    Of all services together; none when there are none.
    """
    topics, registry = Topics.of(SimpleNamespace(name=f"k{uuid.uuid4().hex[:8]}", retention_ms=86_400_000)), MemoryRegistry()
    await ensure_topics(kafka, topics, 1)
    assert await letters_lately(kafka, topics, SystemClock()) == 0
    publisher = Publisher(kafka, topics, registry, Writer.FEATURE, SystemClock())
    letterbox = Letterbox(DeadLetters("toy", "feature", Source.EVENTS, 3), publisher, topics.events, kafka, topics, SystemClock())
    polled = Polled.of([4, 5], [None, None], [b"x", b"y"], [0, 0])
    await letterbox.put(0, polled, [Refused(4, "undecodable", "x"), Refused(5, "undecodable", "y")])
    assert await letters_lately(kafka, topics, SystemClock()) == 2
    again = Letterbox(DeadLetters("toy", "feature", Source.EVENTS, 3), publisher, topics.events, kafka, topics, SystemClock())
    with pytest.raises(Fatal, match="DRIFTLINE_DEAD_LETTERS_MAX"):
        await again.put(0, polled, [Refused(4, "undecodable", "x"), Refused(5, "undecodable", "y")])
    await publisher.stop()


async def about_to_fetch_again(kafka: str) -> AIOKafkaConsumer:
    """A consumer whose last fetch has failed, so that it waits before the next."""
    topics = Topics.of(SimpleNamespace(name=f"k{uuid.uuid4().hex[:8]}", retention_ms=86_400_000))
    await ensure_topics(kafka, topics, 1)
    consumer = AIOKafkaConsumer(topics.events.name, bootstrap_servers=kafka)
    await consumer.start()
    await asyncio.sleep(0.1)  # it has begun to fetch
    consumer._fetcher._pending_tasks.add(asyncio.create_task(asyncio.sleep(60)))
    await asyncio.sleep(0.01)
    return consumer


async def test_a_consumer_that_waits_to_fetch_again_is_stopped_without_cancelling_who_stops_it(kafka: str) -> None:
    """
    The client lets the cancellation of a task of its own through; a service would take it for its own, and end.
    """
    with pytest.raises(asyncio.CancelledError):  # if this fails, aiokafka has mended it: `stop_consumer` can go
        await (await about_to_fetch_again(kafka)).stop()
    consumer = await about_to_fetch_again(kafka)
    await stop_consumer(consumer)
    assert not any(connection.connected() for connection in consumer._client._conns.values())


async def test_who_is_cancelled_while_he_stops_a_consumer_stays_cancelled(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Only what comes from the client is passed over.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    with monkeypatch.context() as patched:
        patched.setattr(consumer, "stop", lambda: asyncio.sleep(60))
        stopping = asyncio.create_task(stop_consumer(consumer))
        await asyncio.sleep(0.01)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
    await consumer.stop()


async def test_a_consumer_that_does_not_stop_is_disconnected_all_the_same(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whoever drains waits for it no longer than that.
    """
    monkeypatch.setattr(client, "LET_GO_S", 0.1)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    with monkeypatch.context() as patched:
        patched.setattr(consumer, "stop", lambda: asyncio.sleep(60))
        async with asyncio.timeout(10):
            await stop_consumer(consumer)
    assert not any(connection.connected() for connection in consumer._client._conns.values())
    await consumer.stop()


async def test_who_gathers_is_given_all_records_and_asks_for_much_only_while_there_are_some(kafka: str) -> None:
    """
    What is far less than it asks for comes all the same, in order; after a silence it asks for the first record again.
    """
    topics, registry = Topics.of(SimpleNamespace(name=f"k{uuid.uuid4().hex[:8]}", retention_ms=86_400_000)), MemoryRegistry()
    await ensure_topics(kafka, topics, 1)
    publisher = Publisher(kafka, topics, registry, Writer.FEATURE, SystemClock())
    source = LogSource(kafka, topics.journal.name, 0, gathers=True)
    await source.start()
    source.seek(0)
    found: list[int] = []
    asked = []
    for offset in range(3):
        await publisher.send(outcomes([offset]))
        while len(found) == offset:
            polled = await source.poll(100, 200)
            found += polled.offsets.tolist() if polled else []
        asked.append(source._consumer._fetcher._fetch_min_bytes)
    while await source.poll(100, 1) is not None:
        pass
    asked.append(source._consumer._fetcher._fetch_min_bytes)
    await source.stop()
    await publisher.stop()
    assert found == [0, 1, 2]
    assert asked == [GATHER_BYTES] * 3 + [1]
