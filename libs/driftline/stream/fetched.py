"""
What a consumer has fetched, read by column: the records of a batch (format 2, KIP-98) are found in one compiled loop over the bytes that
came, where the client by itself makes two objects of each.

Checksums, transactions, positions and the order of batches stay aiokafka's own: it is given other parts for three that it makes by name,
and these do as before for every consumer that does not ask for `by_column`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

from driftline.compiled import READ_BYTES, njit, types
from driftline.contracts import traceparent
from driftline.stream.batch import Ints, Varlen
from driftline.stream.records import Polled

HEADER = struct.Struct(">qiibIhiqqqhii")  # of a batch; the first two, offset and length, are not counted by the length
BEFORE_LENGTH = struct.calcsize(">qi")
MAGIC_AT = struct.calcsize(">qii")
CODEC_BITS, LOG_APPEND_BIT = 0x07, 0x08
POSITIVE = 2**63 - 1
SINGLY_BELOW = 16  # records of a batch: so few cost less one by one

TRACE_NAME = np.frombuffer(traceparent.NAME.encode(), np.uint8)

_AT = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]  # numba has no types of its own
_FOUND = types.UniTuple(types.int64, 3)  # type: ignore[no-untyped-call]
_I1 = types.int64[::1]


def by_column(key: bytes) -> bytes:
    """Given as a consumer's key deserialiser, it asks `getmany` for what `columns` takes. It is never called."""
    return key


@njit(_AT(READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def _varint(data: npt.NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """A number in zigzag code that begins at `at`, and where it ends: beyond `end` when it is cut off or has more than 64 bits."""
    number = shift = 0
    while at < end and shift < 64:
        octet: Any = np.int64(data[at])
        number |= (octet & 0x7F) << shift
        at += 1
        if octet < 0x80:
            return (number >> 1 & POSITIVE) ^ -(number & 1), at
        shift += 7
    return 0, end + 1


@njit(types.boolean(READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def _tells_trace(data: npt.NDArray[np.uint8], start: int, end: int) -> bool:
    """Whether that is the name of the header with the trace context."""
    if end - start != len(TRACE_NAME):
        return False
    for i in range(len(TRACE_NAME)):  # noqa: SIM110 - compiled, a loop is faster than a generator
        if data[start + i] != TRACE_NAME[i]:
            return False
    return True


@njit(_FOUND(READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def _read_headers(data: npt.NDArray[np.uint8], at: int, end: int) -> tuple[int, int, int]:
    """
    Where a record's headers end: beyond `end` when they do not end within the record. And start and end of the one with the trace context,
    a start of -1 when there is none, or more than one.
    """
    trace, trace_end, told = -1, 0, 0
    count, at = _varint(data, at, end)
    if count < 0:
        return end + 1, trace, trace_end
    for _ in range(count):
        name_bytes, name = _varint(data, at, end)
        if not 0 <= name_bytes <= end - name:
            return end + 1, trace, trace_end
        value_bytes, at = _varint(data, name + name_bytes, end)
        if value_bytes > end - at:
            return end + 1, trace, trace_end
        if _tells_trace(data, name, name + name_bytes):
            told += 1
            trace, trace_end = (at, at + value_bytes) if told == 1 and value_bytes >= 0 else (-1, 0)
        at += max(value_bytes, 0)
    return at, trace, trace_end


@njit(_FOUND(READ_BYTES, types.int64, types.int64, _I1, _I1, _I1, _I1, _I1, _I1, _I1, _I1), cache=True, nogil=True)
def _read(
    data: npt.NDArray[np.uint8],
    at: int,
    n: int,
    offsets: Ints,
    times: Ints,
    key_starts: Ints,
    key_ends: Ints,
    value_starts: Ints,
    value_ends: Ints,
    trace_starts: Ints,
    trace_ends: Ints,
) -> tuple[int, int, int]:
    """
    Find `n` records, offsets and times relative to those of the batch. How many there are (fewer than `n` when the one after the last is no
    record, or is in the wrong place), where the last one ends, and how many tell a trace.
    """
    last, traces = -1, 0
    for i in range(n):
        size, body = _varint(data, at, len(data))
        if not 0 <= size <= len(data) - body:  # lengths are compared with what is left: a sum might go round
            return i, at, traces
        end = body + size
        _, place = _varint(data, body, end)  # attributes, of which there are none; the client takes them for a varint too
        times[i], place = _varint(data, place, end)
        offsets[i], place = _varint(data, place, end)
        if offsets[i] <= last:
            return i, at, traces
        last = offsets[i]
        key_bytes, place = _varint(data, place, end)
        if key_bytes > end - place:
            return i, at, traces
        key_starts[i], key_ends[i] = (place, place + key_bytes) if key_bytes >= 0 else (-1, 0)
        place += max(key_bytes, 0)
        value_bytes, place = _varint(data, place, end)
        if value_bytes > end - place:
            return i, at, traces
        value_starts[i], value_ends[i] = (place, place + value_bytes) if value_bytes >= 0 else (-1, 0)
        place += max(value_bytes, 0)
        trace_starts[i] = -1
        if place + 1 == end and data[place] == 0:  # no headers
            at = end
            continue
        headers_end, trace_starts[i], trace_ends[i] = _read_headers(data, place, end)
        if headers_end != end:
            return i, at, traces
        traces += trace_starts[i] >= 0
        at = end
    return n, at, traces


class Piece:
    """Some consecutive records of a batch. aiokafka asks it for an offset, as if it were the last of these."""

    def __init__(self, polled: Polled) -> None:
        self.polled = polled
        self.offset = polled.last

    def __len__(self) -> int:
        return len(self.polled)


class _Records:
    """The batches of one answer: aiokafka's own, with the bytes of the one in hand."""

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self._data = memoryview(data)
        self._asker: _Partition | None = None
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def cut_for(self, asker: _Partition) -> None:
        """From now on hand out batches whose records come in pieces, of as many as `asker` wants."""
        self._asker = asker

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if self._asker is None:
            return batch
        octets = BEFORE_LENGTH + int.from_bytes(self._data[BEFORE_LENGTH - 4 : BEFORE_LENGTH])
        mine, self._data = self._data[:octets], self._data[octets:]
        return _Batch(batch, mine, self._asker)


class _Batch:
    """
    A batch of aiokafka's, but for its records: those come in pieces. Of few records, of a format before 2, and compressed ones come one
    by one as ever.
    """

    def __init__(self, batch: Any, data: memoryview, asker: _Partition) -> None:
        self._batch = batch
        self._data = data
        self._asker = asker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        if self._data[MAGIC_AT] < 2:
            return iter(self._batch)
        base, _, _, _, _, attributes, _, first_ms, last_ms, _, _, _, n = HEADER.unpack_from(self._data)
        if attributes & CODEC_BITS or n < SINGLY_BELOW:
            return iter(self._batch)
        return self._pieces(base, (last_ms, 0) if attributes & LOG_APPEND_BIT else (first_ms, 1), n)

    def _pieces(self, base: int, clock: tuple[int, int], n: int) -> Iterator[Piece]:
        """All records that the asker has not had, cut as it wants them. `clock` is a time, and what a record's own adds to it."""
        data = np.frombuffer(self._data, np.uint8)
        begin, left = HEADER.size, n
        while left:
            wanted = min(left, self._asker.wanted)
            offsets, times, *places = np.empty((8, wanted), np.int64)
            found, end, traces = _read(data, begin, wanted, offsets, times, *places)
            if found < wanted:
                raise CorruptRecordException(f"record {n - left + found} of the batch at offset {base} is no record")
            key_starts, key_ends, value_starts, value_ends, trace_starts, trace_ends = places
            keys, values = Varlen(data, key_starts, key_ends), Varlen(data, value_starts, value_ends)
            told = traceparent.accepted(Varlen(data, trace_starts, trace_ends)) if traces else None
            polled = Polled(base + offsets, keys, values, clock[0] + clock[1] * times, told)
            polled = polled.part(polled.below(self._asker.next_fetch_offset), wanted)
            begin, left = end, left - wanted
            if len(polled):
                yield Piece(polled)
        if begin != len(data):
            raise CorruptRecordException(f"{len(data) - begin} bytes are left over after the records of the batch at offset {base}")


class _Partition(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """The fetched records of one partition, of which at most `wanted` come in one piece."""

    def __init__(self, tp: Any, records: _Records, *rest: Any) -> None:
        super().__init__(tp, records, *rest)
        self.wanted = 1
        self.in_pieces = self._key_deserializer is by_column
        if self.in_pieces:
            records.cut_for(self)

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record if self.in_pieces else super()._consumer_record(tp, record)


class _Result(fetcher.FetchResult):  # type: ignore[misc]  # aiokafka has no types
    """What `getmany` takes from: the limit of a poll counts records, not pieces."""

    def getall(self, max_records: int | None = None) -> list[Any]:
        records: _Partition | None = self._partition_records  # type: ignore[has-type]
        if records is None or not records.in_pieces:
            found: list[Any] = super().getall(max_records)
            return found
        if max_records is None:
            raise ValueError("a consumer that reads by column says how many records it wants")
        if not self.check_assignment(self._topic_partition):
            return []
        pieces: list[Any] = []
        left = max_records
        while left:
            records.wanted = left
            piece = next(records, None)
            if piece is None:
                self._update_position()
                self._partition_records = None
                return pieces
            pieces.append(piece)
            left -= len(piece) if isinstance(piece, Piece) else 1
        self._update_position()
        return pieces


fetcher.MemoryRecords, fetcher.PartitionRecords, fetcher.FetchResult = _Records, _Partition, _Result


def columns(found: Sequence[Any]) -> Polled:
    """What `getmany` gave of one partition to a consumer that asked for it `by_column`."""
    parts = []
    for in_pieces, some in groupby(found, lambda one: isinstance(one, Piece)):
        if in_pieces:
            parts += [piece.polled for piece in some]
        else:
            parts.append(_singly(list(some)))
    return Polled.concat(parts)


def _singly(found: Sequence[Any]) -> Polled:
    """Records that the client has made one by one."""
    polled = Polled.of(*zip(*((one.offset, one.key, one.value, one.timestamp) for one in found), strict=True))
    if not any(one.headers for one in found):
        return polled
    told = [traceparent.one_of([value for name, value in one.headers if name == traceparent.NAME]) for one in found]
    return replace(polled, traces=Varlen.optional(told)) if any(told) else polled
