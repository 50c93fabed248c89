"""
What is written by column is, byte for byte, what aiokafka writes record by record.
"""

from __future__ import annotations

import numpy as np
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from driftline.stream import record_batches
from driftline.stream.batch import Varlen
from driftline.stream.record_batches import packed

TIME_MS = 1_700_000_000_000
Given = list[tuple[bytes | None, bytes]]


def columns(records: Given) -> tuple[Varlen, Varlen]:
    keys = Varlen.of(key or b"" for key, _ in records)
    starts = np.where([key is None for key, _ in records], -1, keys.starts)
    return Varlen(keys.data, starts, keys.ends), Varlen.of(value for _, value in records)


def by_aiokafka(records: Given) -> bytes:
    batch = BatchBuilder(1 << 22, 0)
    for key, value in records:
        batch.append(timestamp=TIME_MS, key=key, value=value)
    batch._set_producer_state(7, 1, 42)
    return bytes(batch._build())


def read(data: bytes) -> Given:
    records = MemoryRecords(data)
    found = []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        found += [(record.key, record.value) for record in batch]
    return found


@given(st.lists(st.tuples(st.none() | st.binary(max_size=200), st.binary(max_size=20_000)), min_size=1, max_size=300), st.randoms())
def test_a_batch_is_what_aiokafka_would_write(records: Given, chance):
    """
    In the order that was asked for: keys or none, empty ones among them, lengths of one, two and three bytes.
    """
    order = list(range(len(records)))
    chance.shuffle(order)
    batches = list(packed(*columns(records), np.array(order), TIME_MS))
    assert [batch.record_count() for batch in batches] == [len(records)]
    batches[0]._set_producer_state(7, 1, 42)
    assert bytes(batches[0]._build()) == by_aiokafka([records[at] for at in order])


@given(st.lists(st.tuples(st.binary(max_size=90), st.none() | st.binary(max_size=90)), min_size=1, max_size=50))
def test_headers_are_written_where_there_are_some(records: list[tuple[bytes, bytes | None]]):
    """
    As aiokafka reads them; a record without has none.
    """
    headers = Varlen.optional([None if told is None else bytes([2, 2]) + b"h" + varint(len(told)) + told for _, told in records])
    keys, values = columns([(b"k", value) for value, _ in records])
    built = [bytes(batch._build()) for batch in packed(keys, values, np.arange(len(records)), TIME_MS, headers)]
    found = [record for one in built for record in MemoryRecords(one).next_batch()]
    assert [(record.value, record.headers) for record in found] == [
        (value, [] if told is None else [("h", told)]) for value, told in records
    ]


def varint(n: int) -> bytes:
    """Below 8,192, in zigzag code."""
    return bytes([2 * n]) if n < 64 else bytes([2 * n & 0x7F | 0x80, 2 * n >> 7])


def test_batches_are_cut_where_they_are_full(monkeypatch: pytest.MonkeyPatch):
    """
    None is larger than it may be, none is empty, and together they are all records once, in order.
    """
    monkeypatch.setattr(record_batches, "BATCH_BYTES_MAX", 1_000)
    records: Given = [(b"k%d" % n, bytes(n % 400)) for n in range(500)]
    built = [bytes(batch._build()) for batch in packed(*columns(records), np.arange(500), TIME_MS)]
    assert [record for one in built for record in read(one)] == records
    assert max(map(len, built)) <= 1_000
    assert all(len(one) + 400 + 61 > 1_000 for one in built[:-1])


def test_a_record_that_is_larger_than_a_batch_goes_all_the_same(monkeypatch: pytest.MonkeyPatch):
    """
    Whether it may be that large is for others to say.
    """
    monkeypatch.setattr(record_batches, "BATCH_BYTES_MAX", 1_000)
    records: Given = [(None, bytes(10)), (b"k", bytes(5_000)), (None, bytes(10))]
    built = [bytes(batch._build()) for batch in packed(*columns(records), np.arange(3), TIME_MS)]
    assert [record for one in built for record in read(one)] == records
    assert max(map(len, built)) <= 5_001 + 21 + 61
