"""The sink on a real broker: where messages go, and in which order."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import numpy as np

from driftline.clock import SystemClock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.stream.batch import Messages, Varlen
from driftline.stream.kafka import LogReader, Publisher, ensure_topics


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
