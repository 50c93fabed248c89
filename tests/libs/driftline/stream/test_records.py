"""Copies are dropped by lane; batches are cut and joined without losing the log's order."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.contracts.avro import Codec, frame, pack_strings
from driftline.contracts.messages import schema
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.stream.batch import Batch, Messages, Table, Varlen
from driftline.stream.records import Decoder, Encoder, Polled, drop_seen, joined, lane_of

Coordinates = list[tuple[int, int, int]]  # lane number, offset, index


def batch(coordinates: Coordinates, first_offset: int = 0) -> Batch:
    """Messages of two kinds, in turn, with these coordinates."""
    n = len(coordinates)
    lanes, offsets, indexes = (np.array([one[at] for one in coordinates], np.int64).reshape(n) for at in range(3))
    columns = {"writer": np.ones(n, np.int64), "source": lanes, "partition": np.zeros(n, np.int64), "offset": offsets, "index": indexes}
    whole = Table("event", np.arange(first_offset, first_offset + n), columns)
    odd = np.arange(n) % 2 == 1
    tables = {"event": whole.take(~odd), "tick": Table("tick", whole.take(odd).offsets, whole.take(odd).columns)}
    return Batch(0, first_offset, first_offset + n, {name: table for name, table in tables.items() if len(table)})


def taken(found: Batch) -> list[int]:
    """The log offsets that are left."""
    return sorted(offset for table in found.tables.values() for offset in table.offsets.tolist())


def naive(coordinates: Coordinates) -> list[int]:
    last: dict[int, tuple[int, int]] = {}
    kept = []
    for at, (lane, offset, index) in enumerate(coordinates):
        if (offset, index) > last.get(lane, (-1, -1)):
            last[lane] = (offset, index)
            kept.append(at)
    return kept


coordinates = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 2)), max_size=30)


@settings(deadline=None)
@given(coordinates, st.integers(0, 30))
def test_a_message_is_taken_when_its_coordinate_is_above_the_last_of_its_lane(made: Coordinates, cut: int):
    """
    The same, wherever the log is cut into batches, and across kinds of message.
    """
    first, second = batch(made[:cut]), batch(made[cut:], first_offset=len(made[:cut]))
    kept_first, seen = drop_seen(first, {})
    kept_second, _ = drop_seen(second, seen)
    assert naive(made) == taken(kept_first) + taken(kept_second)


def test_the_index_counts_where_offsets_are_equal():
    """
    What one cause made is told apart by its index.
    """
    kept, seen = drop_seen(batch([(0, 5, 0), (0, 5, 1), (0, 5, 1), (0, 5, 0)]), {})
    assert ([0, 1], {lane_of(1, 0, 0): (5, 1)}) == (taken(kept), seen)


def test_each_writer_source_and_partition_has_a_lane_of_its_own():
    """
    One number tells all of them apart, up to many more partitions than a topic has.
    """
    everyone = [(writer, source, partition) for writer in (1, 3, 11) for source in (0, 1, 16, 17) for partition in (0, 1, 9_999)]
    assert len(everyone) == len({lane_of(*one) for one in everyone})


def test_the_head_and_the_tail_of_a_batch_are_the_batch():
    """
    Cut by number of messages, in the log's order.
    """
    whole = batch([(0, n, 0) for n in range(10)], first_offset=100)
    head = whole.head(3)
    assert (head.next_offset, taken(head)) == (103, [100, 101, 102])
    assert list(range(103, 110)) == taken(whole.tail(head.next_offset))


def test_consecutive_batches_join_to_one():
    """
    Columns of every kind, byte strings too.
    """
    one = Batch(0, 0, 2, {"event": Table("event", np.array([0, 1]), {"id": Varlen.of(["a", "b"]), "n": np.array([1, 2])})})
    two = Batch(0, 2, 3, {"event": Table("event", np.array([2]), {"id": Varlen.of(["c"]), "n": np.array([3])})})
    table = joined([one, two]).tables["event"]
    assert (table.offsets.tolist(), table["id"].texts(), table["n"].tolist()) == ([0, 1, 2], ["a", "b", "c"], [1, 2, 3])


def event(offset: int, **changed: Any) -> dict[str, Any]:
    fields = {"source": 16, "partition": 0, "offset": offset, "index": 0, "event_offset": -1, "writer": 1, "id": "i", "key": "k"}
    return fields | {"time": 5, "visible": 6, "home": True, "body": b"", **changed}


def test_what_an_older_version_has_not_had_is_null_whatever_came_with_it():
    """
    So a trace context does not depend on where the log was cut into batches, across an upgrade.
    """
    registry, trace = MemoryRegistry(), f"00-{'a' * 32}-{'b' * 16}-01"
    written = [(1, event(0)), (2, event(1, traceparent=trace)), (1, event(2)), (2, event(3, traceparent=None))]
    values = []
    for version, record in written:
        published = schema("event", version)
        values.append(frame(registry.register(f"v{version}", published)) + Codec(published).encode({k: [v] for k, v in record.items()})[0])
    decoder = Decoder(Topics.of(SimpleNamespace(name="toy", retention_ms=1)).events, registry)
    found = [
        decoder.decode(0, Polled.of(range(first, end), [None] * (end - first), values[first:end], [10] * (end - first)))
        for first, end in ((0, 4), (0, 2), (2, 4), (0, 1))
    ]
    assert [refused for _, refused in found] == [[]] * 4
    told = [batch["event"]["traceparent"].optional_texts() for batch, _ in found]
    assert told == [[None, trace, None, None], [None, trace], [None, None], [None]]


def test_a_message_without_the_column_is_written_with_null():
    """
    Who makes messages without trace contexts need not know of them.
    """
    registry, topics = MemoryRegistry(), Topics.of(SimpleNamespace(name="toy", retention_ms=1))
    encoder = Encoder({"events": topics.events}, registry, 1)
    columns = {name: np.array([value]) for name, value in event(3).items() if isinstance(value, int)}
    columns |= {"id": Varlen.of(["i"]), "key": Varlen.of(["k"]), "body": Varlen.of([b""]), "home": np.array([True])}
    values = encoder.values(Messages("events", "event", None, columns, np.array([3])), 0)
    batch, refused = Decoder(topics.events, registry).decode(0, Polled.of([0], [None], values.tolist(), [10]))
    assert refused == []
    assert batch["event"].records()[0]["traceparent"] is None


def test_predictions_in_json_have_null_where_there_is_no_trace():
    """
    Not an empty text.
    """
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    topics = Topics.of(SimpleNamespace(name="toy", retention_ms=1))
    encoder = Encoder({"predictions": topics.predictions}, MemoryRegistry(), 3, frozenset({"predictions"}))
    numbers = {name: np.array([1, 2]) for name in ("source", "partition", "offset", "index", "event_offset", "time")}
    texts = {name: Varlen.of(["x", "y"]) for name in ("id", "key", "decision", "model", "arm")}
    lists = {name: Varlen.of([pack_strings([])] * 2) for name in ("reasons", "flags")}
    columns = {**numbers, **texts, **lists, "score": np.array([0.5, 0.25], np.float32), "traceparent": Varlen.optional([None, trace])}
    told = [json.loads(value) for value in encoder.values(Messages("predictions", "prediction", None, columns, np.arange(2)), 0)]
    assert [one["traceparent"] for one in told] == [None, trace]


def test_the_anchor_is_the_last_record_below_the_next_offset():
    """
    Offsets on a log may have gaps.
    """
    polled = Polled.of([3, 5, 9], [None] * 3, [b"a", b"b", b"c"], [30, 50, 90])
    assert polled.anchor(9)[:2] == (5, 50)
    assert polled.anchor(10)[:2] == (9, 90)
