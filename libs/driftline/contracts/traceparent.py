"""
W3C Trace Context (the recommendation of 2021) as a column: which trace an upstream record belongs to.

A value is read strictly. One that does not parse is ignored, as the recommendation wants it: it is never a reason to refuse a record. What
was read is written on in one form of 55 bytes, version 00 with the sampled flag alone, so what was written once is the same for ever, and
has a known size. Nothing is added to it: the parent is the sender's span, whoever carries the value on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.compiled import READ_BYTES, READ_INTS, njit, types
from driftline.stream.batch import Batch, Ints, Messages, Table, Varlen

NAME = "traceparent"  # of the header, of a record or of a request, and of the field
BYTES = 55  # version, trace, parent and flags, with dashes: 00-<32>-<16>-<2>
TRACE, PARENT = slice(3, 35), slice(36, 52)
_HEADER = b"\x02\x16" + NAME.encode() + b"\x6e"  # one header, its name, and that 55 bytes follow: varints in zigzag code (KIP-82)

Bools = npt.NDArray[np.bool_]
_DASH, _ZERO, _ONE, _F = 0x2D, 0x30, 0x31, 0x66


@njit(types.int64(READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def _hex(data: npt.NDArray[np.uint8], start: int, end: int) -> int:
    """Whether bytes are digits in lower case: -1 when one is not, 0 when all of them are zero, else 1."""
    found = 0
    for at in range(start, end):
        octet = data[at]
        if not (0x30 <= octet <= 0x39 or 0x61 <= octet <= 0x66):
            return -1
        if octet != _ZERO:
            found = 1
    return found


@njit(types.boolean(READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def _valid(data: npt.NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether this is a trace context, of version 00 or of one that is not known yet: that may have more behind another dash."""
    if end - at < BYTES or _hex(data, at, at + 2) < 0:
        return False
    for dash in (2, 35, 52):
        if data[at + dash] != _DASH:
            return False
    if data[at] == _F and data[at + 1] == _F:
        return False
    if end - at > BYTES and (_hex(data, at, at + 2) == 0 or data[at + BYTES] != _DASH):
        return False
    return _hex(data, at + 3, at + 35) == 1 and _hex(data, at + 36, at + 52) == 1 and _hex(data, at + 53, at + 55) >= 0


@njit(types.void(READ_BYTES, READ_INTS, READ_INTS, types.int64[::1], types.uint8[:, ::1]), cache=True, nogil=True)
def _read(data: npt.NDArray[np.uint8], starts: Ints, ends: Ints, places: Ints, out: npt.NDArray[np.uint8]) -> None:
    """Write each valid value in its one form to the next row of `out`; `places` says to which, -1 for what is none."""
    n = 0
    for i in range(len(starts)):
        places[i] = -1
        if starts[i] < 0 or not _valid(data, starts[i], ends[i]):
            continue
        for at in range(BYTES):
            out[n, at] = data[starts[i] + at]
        flags = out[n, 54]
        odd = (flags - _ZERO if flags < 0x3A else flags - 0x57) & 1
        out[n, 0] = out[n, 1] = out[n, 53] = _ZERO
        out[n, 54] = _ONE if odd else _ZERO
        places[i] = n
        n += 1


@njit(types.boolean[::1](READ_BYTES, READ_INTS, READ_INTS), cache=True, nogil=True)
def _foreign(data: npt.NDArray[np.uint8], starts: Ints, ends: Ints) -> Bools:
    """Which values are there, and not in the one form that `_read` writes."""
    bad = np.zeros(len(starts), np.bool_)
    for i in range(len(starts)):
        at = starts[i]
        if at >= 0:
            ours = ends[i] - at == BYTES and _valid(data, at, ends[i])
            bad[i] = not (ours and data[at + 1] == _ZERO == data[at] == data[at + 53] and _ZERO <= data[at + 54] <= _ONE)
    return bad


def accepted(given: Varlen) -> Varlen | None:
    """Values as they came, in their one form; null for what is no trace context, and None when that is all of them."""
    there = given.take(given.starts >= 0)
    places, out = np.empty(len(there), np.int64), np.zeros((len(there), BYTES), np.uint8)
    _read(*there.arrays, places, out)
    if not (places >= 0).any():
        return None
    starts, ends = np.full(len(given), -1, np.int64), np.zeros(len(given), np.int64)
    starts[given.starts >= 0] = np.where(places >= 0, places * BYTES, -1)
    ends[starts >= 0] = starts[starts >= 0] + BYTES
    return Varlen(out.reshape(-1), starts, ends)


def one_of(values: Sequence[bytes | None]) -> bytes | None:
    """The trace context of a record or a request with these headers of that name. More than one says nothing."""
    if len(values) != 1 or values[0] is None:
        return None
    found = accepted(Varlen.of(values))  # type: ignore[arg-type]  # it is not None
    return None if found is None else found[0]


def foreign(column: Varlen) -> Bools:
    """Which values no service of ours has written, all of which write what `accepted` gives."""
    bad: Bools = _foreign(*column.arrays)
    return bad


def column_of(messages: Table | Messages) -> Varlen:
    """The trace contexts of messages; null throughout where they have no such column, as those that were made in this process."""
    column = messages.columns.get(NAME)
    return column if isinstance(column, Varlen) else Varlen.nulls(len(messages))


def sampled(column: Varlen) -> Varlen:
    """Those of the values whose senders recorded their trace."""
    there = column.take(column.starts >= 0)
    return there.take(there.data[there.ends - 1] == _ONE)


def trace_id(value: bytes | str) -> str:
    """The id of the trace, of a value in its one form: 32 digits."""
    return (value if isinstance(value, str) else value.decode())[TRACE]


def trace_ids(batch: Batch, offsets: Sequence[int]) -> dict[int, str]:
    """The ids of the traces of those messages of `batch` at `offsets` that have one."""
    found: dict[int, str] = {}
    for table in batch.tables.values() if offsets else ():
        column = column_of(table)
        for at in np.flatnonzero(np.isin(table.offsets, offsets) & (column.starts >= 0)).tolist():
            found[int(table.offsets[at])] = trace_id(column[at])
    return found


def headers(column: Varlen) -> Varlen:
    """The headers of Kafka records, as they are written in a record batch; null where there is none."""
    return Varlen.optional([None if value is None else _HEADER + value for value in map(column.get, range(len(column)))])


def taken(column: Varlen | None, index: Any) -> Varlen | None:
    """As `Varlen.take`, of a column that may not be there."""
    return None if column is None else column.take(index)


def joined(columns: Sequence[tuple[Varlen | None, int]]) -> Varlen | None:
    """As `Varlen.concat`, of columns that may not be there, each with its length; None where none is."""
    if all(column is None for column, _ in columns):
        return None
    return Varlen.concat([Varlen.nulls(n) if column is None else column for column, n in columns])
