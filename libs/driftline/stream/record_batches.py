"""
Kafka's record batches (format 2, KIP-98), written by column: the records of a batch are one compiled loop over two buffers, where the
client by itself takes each of them in hand.

Header and checksum stay aiokafka's own, and so does everything else of sending.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from driftline.compiled import READ_BYTES, READ_INTS, njit, types
from driftline.stream.batch import Ints, Varlen

RECORD_OVERHEAD_MAX = 21  # bytes beside key and value: its length, attributes, time, offset, and how long key and value are
BATCH_BYTES_MAX = 1 << 20
HEADER_BYTES = 61

Bytes = npt.NDArray[np.uint8]

_COLUMN = (READ_BYTES, READ_INTS, READ_INTS)
_ENDS = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]  # numba has no types of its own


@njit(types.int64(types.uint8[::1], types.int64, types.int64), cache=True, nogil=True)
def _write_varint(out: Bytes, at: int, n: int) -> int:
    """A number of at least -1 in zigzag code; where it ends."""
    n = 2 * n if n >= 0 else 1
    while n >= 0x80:
        out[at] = n & 0x7F | 0x80
        n >>= 7
        at += 1
    out[at] = n
    return at + 1


@njit(types.int64(types.int64), cache=True, nogil=True)
def _varint_bytes(n: int) -> int:
    n = 2 * n if n >= 0 else 1
    size = 1
    while n >= 0x80:
        n >>= 7
        size += 1
    return size


@njit(
    _ENDS(*_COLUMN, *_COLUMN, *_COLUMN, READ_INTS, types.int64, types.uint8[::1]),
    cache=True,
    nogil=True,
)
def _write(
    keys: Bytes,
    key_starts: Ints,
    key_ends: Ints,
    values: Bytes,
    value_starts: Ints,
    value_ends: Ints,
    headers: Bytes,
    header_starts: Ints,
    header_ends: Ints,
    order: Ints,
    first: int,
    out: Bytes,
) -> tuple[int, int]:
    """
    Write records in `order` from its place `first` on, until `out` has no room. The place of the next one, and the bytes written. Headers
    are as they are written; no column of them at all means that none has any.
    """
    at = 0
    for place in range(first, len(order)):
        one = order[place]
        key_bytes = key_ends[one] - key_starts[one] if key_starts[one] >= 0 else -1
        value_bytes = value_ends[one] - value_starts[one]
        header_bytes = header_ends[one] - header_starts[one] if len(header_starts) and header_starts[one] >= 0 else 0
        body = 3 + _varint_bytes(place - first) + _varint_bytes(key_bytes) + max(key_bytes, 0) + _varint_bytes(value_bytes) + value_bytes
        body += max(header_bytes - 1, 0)
        if at + _varint_bytes(body) + body > len(out):
            return place, at
        at = _write_varint(out, at, body)
        out[at] = 0  # attributes, of which there are none
        out[at + 1] = 0  # milliseconds after the batch's first
        at = _write_varint(out, at + 2, place - first)
        at = _write_varint(out, at, key_bytes)
        for i in range(key_bytes):
            out[at + i] = keys[key_starts[one] + i]
        at = _write_varint(out, at + max(key_bytes, 0), value_bytes)
        for i in range(value_bytes):
            out[at + i] = values[value_starts[one] + i]
        at += value_bytes
        out[at] = 0  # headers, of which there may be none
        for i in range(header_bytes):
            out[at + i] = headers[header_starts[one] + i]
        at += max(header_bytes, 1)
    return len(order), at


class Packed(BatchBuilder):  # type: ignore[misc]  # aiokafka has no types
    """A batch for `send_batch`, closed: n records that are written already, all of one time."""

    def __init__(self, records: Bytes, n: int, timestamp_ms: int) -> None:
        super().__init__(0, 0)
        builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, 0)
        builder._buffer += records.data
        builder._first_timestamp = builder._max_timestamp = timestamp_ms
        builder._last_offset, builder._num_records = n - 1, n
        self._builder: Any = builder
        self._relative_offset = n
        self._closed = True

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)


NO_HEADERS = Varlen.of([])


def packed(keys: Varlen, values: Varlen, order: Ints, timestamp_ms: int, headers: Varlen = NO_HEADERS) -> Iterator[Packed]:
    """
    n records in `order` as batches, one after the other, each of at most BATCH_BYTES_MAX, or as large as the largest record by itself
    would need where that is more. A record whose key starts at -1 has none. `headers` are as a batch has them, their count first.
    """
    order = np.ascontiguousarray(order, np.int64)
    sizes = np.where(keys.starts >= 0, keys.ends - keys.starts, 0) + (values.ends - values.starts) + RECORD_OVERHEAD_MAX
    if len(headers):
        sizes += headers.lengths
    room = np.empty(min(int(sizes.sum()), max(BATCH_BYTES_MAX - HEADER_BYTES, int(sizes.max(initial=0)))), np.uint8)
    first = 0
    while first < len(order):
        last, written = _write(*keys.arrays, *values.arrays, *headers.arrays, order, first, room)
        yield Packed(room[:written], last - first, timestamp_ms)
        first = last
