"""
What is read by column is what aiokafka reads record by record, whatever the batches are, and bytes that are no batch are an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from driftline.stream.fetched import HEADER, Piece, by_column, columns

AT = TopicPartition("t", 0)
ATTRIBUTES_AT = 21  # behind offset, length, epoch, magic and checksum
Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]  # time, key, value, headers
Told = list[tuple[int, int, bytes | None, bytes | None]]

RECORDS = st.lists(
    st.tuples(
        st.integers(0, 2**60),
        st.none() | st.binary(max_size=100),
        st.none() | st.binary(max_size=300),
        st.lists(st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=9)), max_size=3),
    ),
    min_size=1,
    max_size=60,
)


def batch_of(records: Sequence[Record], base: int, codec: int = 0, gaps: int = 1) -> bytes:
    """As a broker has it: its offsets begin at `base`, one in `gaps` is there."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, 1 << 24)
    for at, (time, key, value, headers) in enumerate(records):
        assert builder.append(at * gaps, time, key, value, headers) is not None
    built = bytes(builder.build())
    return base.to_bytes(8, "big") + built[8:]


def legacy_batch_of(records: Sequence[Record], base: int) -> bytes:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 24)
    for at, (time, key, value, _) in enumerate(records):
        builder.append(base + at, time, key, value)
    return bytes(builder.build())


def fetched(data: bytes, start: int, deserializer: object) -> fetcher.PartitionRecords:
    return fetcher.PartitionRecords(AT, fetcher.MemoryRecords(data), None, start, deserializer, None, True, 0)


def singly(data: bytes, start: int = 0) -> Told:
    return [(one.offset, one.timestamp, one.key, one.value) for one in fetched(data, start, None)]


def by_pieces(data: bytes, start: int = 0, wanted: int = 1_000) -> Told:
    records = fetched(data, start, by_column)
    found = []
    records.wanted = wanted
    for one in records:
        assert not isinstance(one, Piece) or len(one) <= wanted
        assert records.next_fetch_offset == one.offset + 1
        found.append(one)
    if not found:
        return []
    polled = columns(found)
    places = range(len(polled))
    return list(
        zip(polled.offsets.tolist(), polled.timestamps.tolist(), map(polled.keys.get, places), map(polled.values.get, places), strict=True)
    )


@given(st.lists(RECORDS, min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 70), st.randoms())
def test_columns_hold_what_the_client_reads_by_itself(batches: list[list[Record]], gaps: int, wanted: int, chance):
    """
    Nulls, headers, any times, gaps as a compaction leaves them, batches of few records and of many, plain and compressed; in pieces of any
    size, and from an offset in the middle of a batch.
    """
    data, base = b"", 5
    for records in batches:
        data += batch_of(records, base, chance.choice([0, 0, 1]), gaps)
        base += gaps * len(records)
    for start in (0, chance.randrange(5, base)):
        assert by_pieces(data, start, wanted) == singly(data, start)


VALID = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
TRACES = st.sampled_from([VALID, b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01", b"no", None])
NAMED = st.tuples(st.sampled_from(["traceparent", "traceparent", "Traceparent", "tracestate"]), TRACES)


@given(st.lists(st.lists(NAMED, max_size=3), min_size=1, max_size=40), st.booleans())
@example(told=[[]] * 15 + [[("traceparent", None), ("traceparent", VALID)]], compressed=False)
def test_the_trace_context_is_taken_from_the_headers(told: list[list[tuple[str, bytes | None]]], compressed: bool):
    """
    The one header of that name, whatever stands beside it, where it is valid; by column as one by one.
    """
    data = batch_of([(1, b"k", b"v", headers) for headers in told], 0, int(compressed))
    values = [[value for name, value in headers if name == "traceparent"] for headers in told]
    expected = [one[0] if len(one) == 1 and one[0] is not None and one[0].startswith(b"00-a") else None for one in values]
    polled = columns(list(fetched_by_column(data)))
    assert (polled.traces is None) == (not any(expected))
    if polled.traces is not None:
        assert list(map(polled.traces.get, range(len(polled)))) == expected
        assert polled.part(1, len(polled)).traces.tolist() == polled.traces.tolist()[1:]
        assert [polled.trace_id(at) for at in range(len(polled))] == [one and "a" * 32 for one in expected]


def fetched_by_column(data: bytes) -> fetcher.PartitionRecords:
    records = fetched(data, 0, by_column)
    records.wanted = 1_000
    return records


@given(RECORDS)
def test_the_old_format_is_read_as_well(records: list[Record]):
    """
    A topic may hold batches from before an upgrade.
    """
    data = legacy_batch_of(records, 3)
    assert by_pieces(data) == singly(data)
    assert len(by_pieces(data)) == len(records)


def test_a_broker_that_stamps_records_itself_is_believed():
    """
    The time of each is then that of the batch.
    """
    data = bytearray(batch_of([(1_000 + at, b"k", b"v", []) for at in range(50)], 0))
    data[ATTRIBUTES_AT + 1] |= 0x08
    assert {time for _, time, _, _ in by_pieces(_checked(bytes(data)))} == {1_049}


@given(RECORDS.filter(lambda records: len(records) >= 16), st.data())
def test_damaged_records_are_an_error_and_nothing_is_read_outside(records: list[Record], data):
    """
    Whatever is done to the bytes: the client's own reading and ours say the same, or both raise. Ours raises at offsets that do not
    ascend, too, where the client leaves records out; and it only passes over headers, so text in them that is none is no error.
    """
    whole = bytearray(batch_of(records, 0))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(HEADER.size, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = _checked(bytes(whole))
    try:
        expected = singly(damaged)
    except UnicodeDecodeError:
        return
    except CorruptRecordException:
        with pytest.raises(CorruptRecordException):
            by_pieces(damaged)
        return
    offsets = [one.offset for one in MemoryRecords(damaged).next_batch()]
    if sorted({*offsets, -1}) == [-1, *offsets]:
        assert by_pieces(damaged) == expected
    else:
        with pytest.raises(CorruptRecordException):
            by_pieces(damaged)


@pytest.mark.parametrize("told", ["key", "value", "hname", "hvalue"])
def test_a_length_beyond_all_bounds_is_an_error(told: str):
    """
    2**63 - 1, which added to where it stands goes round to below 0.
    """
    whole = bytearray(batch_of([(1, b"key" * 9, b"value" * 9, [("hname" * 9, b"hvalue" * 9)])] * 50, 0))
    length = whole.index(told.encode() * 9) - 1
    whole[length : length + 10] = b"\xfe" + b"\xff" * 8 + b"\x01"
    with pytest.raises(CorruptRecordException):
        by_pieces(_checked(bytes(whole)))


def test_a_wrong_checksum_is_an_error():
    """
    As without columns.
    """
    damaged = bytearray(batch_of([(1, b"k", b"v", [])] * 50, 0))
    damaged[-3] ^= 1
    with pytest.raises(CorruptRecordException):
        by_pieces(bytes(damaged))


def test_a_batch_that_says_more_records_than_it_has_is_an_error():
    """
    And one that says fewer.
    """
    for n in (49, 51):
        lying = bytearray(batch_of([(1, b"k", b"v", [])] * 50, 0))
        lying[HEADER.size - 4 : HEADER.size] = n.to_bytes(4, "big")
        with pytest.raises(CorruptRecordException):
            by_pieces(_checked(bytes(lying)))


def test_other_consumers_are_left_alone():
    """
    Faust's consumer lives in the process of the rollout.
    """
    data = batch_of([(1, b"k", b"v", [("h", b"x")])] * 50, 0)
    (first, *_) = fetched(data, 0, None)
    assert (first.topic, first.serialized_key_size, first.headers) == ("t", 1, (("h", b"x"),))


def _checked(data: bytes) -> bytes:
    """With the checksum that these bytes have."""
    return data[: ATTRIBUTES_AT - 4] + calc_crc32c(data[ATTRIBUTES_AT:]).to_bytes(4, "big") + data[ATTRIBUTES_AT:]


def test_the_helper_makes_what_the_client_takes():
    """
    Or the tests above would test nothing.
    """
    records = MemoryRecords(batch_of([(7, None, b"v", [])] * 3, 100))
    assert [(one.offset, one.timestamp, one.value) for one in records.next_batch()] == [(100 + at, 7, b"v") for at in range(3)]
    assert np.array_equal(columns(list(fetched(batch_of([(7, None, b"v", [])] * 3, 4), 0, by_column))).offsets, [4, 5, 6])
