"""
The compiled loops of `avro`: records to cells, columns to records. Apart, because numba takes a second to import, which is for
those alone who handle many records.

Every loop stays within the record's own bytes and reads a byte a turn, so it ends whatever the bytes are. The array arguments
are declared read-only where they are, for what a client polled cannot be written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from driftline.compiled import numba, uncounted
from driftline.contracts.avro import BOOLEAN, BUFFERS_MAX, BYTES, DOUBLE, FLOAT, INT, INT_MAX, LONG, NEVER, STRING, STRINGS
from driftline.stream.batch import Ints

Octets = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])
Number = Any  # an int64 to numba, which infers it; mixed with a Python int in what mypy would infer

INTS_IN = numba.types.Array(numba.int64, 1, "C", readonly=True)
OCTETS_IN = numba.types.Array(numba.uint8, 1, "C", readonly=True)
CELLS = numba.int64[:, ::1]
PLACE = numba.types.UniTuple(numba.int64, 2)  # type: ignore[no-untyped-call]  # numba has no types of its own
BUFFERS = numba.types.UniTuple(OCTETS_IN, BUFFERS_MAX)  # type: ignore[no-untyped-call]
GROUP = BUFFERS, INTS_IN, INTS_IN, INTS_IN, CELLS, CELLS


def _compiled(*signature: Any, returns: Any = numba.void) -> Callable[[Kernel], Kernel]:
    """Compiled when the module is first imported, read from numba's cache on disk ever after."""
    return cast("Callable[[Kernel], Kernel]", numba.njit(returns(*signature), cache=True, nogil=True))


@uncounted()
def _read_long(data: Octets, at: int, end: int) -> tuple[Number, Number]:
    """The zigzag number at `at`, and where it ends: -1 when it does not, or is of more than 64 bits."""
    bits, shift = np.uint64(0), np.uint64(0)
    for position in range(at, min(at + 10, end)):
        octet = np.uint64(data[position])
        bits |= (octet & np.uint64(0x7F)) << shift
        if octet < np.uint64(0x80):
            if position == at + 9 and octet > np.uint64(1):
                break
            return np.int64(bits >> np.uint64(1)) ^ -np.int64(bits & np.uint64(1)), position + 1
        shift += np.uint64(7)
    return np.int64(0), np.int64(-1)


@uncounted()
def _is_text(data: Octets, start: int, end: int) -> bool:
    """Whether the bytes are UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF."""
    seen = np.uint8(0)
    for at in range(start, end):
        seen |= data[at]
    if seen < 0x80:
        return True
    at = start
    while at < end:
        first = data[at]
        at += 1
        if first < 0x80:
            continue
        more = 1 if 0xC2 <= first <= 0xDF else 2 if 0xE0 <= first <= 0xEF else 3 if 0xF0 <= first <= 0xF4 else 0
        if more == 0 or at + more > end:
            return False
        low = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        high = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        if not low <= data[at] <= high:
            return False
        for position in range(at + 1, at + more):
            if data[position] & 0xC0 != 0x80:
                return False
        at += more
    return True


@uncounted()
def _skip_sized(data: Octets, at: int, end: int, text: bool) -> tuple[Number, Number]:
    """Start and end of the string or bytes at `at`; the end is -1 when they do not lie before `end` or are no text."""
    length, start = _read_long(data, at, end)
    if start < 0 or length < 0 or length > end - start or (text and not _is_text(data, start, start + length)):
        return start, np.int64(-1)
    return start, start + length


@uncounted()
def _skip_strings(data: Octets, at: Number, end: int) -> Number:
    """Where the array of strings at `at` ends, -1 when it does not. Every turn reads a byte, so every loop ends."""
    while True:
        count, at = _read_long(data, at, end)
        if at < 0 or count == 0:
            return at
        block_end = np.int64(-1)
        if count < 0:
            size, at = _read_long(data, at, end)
            if at < 0 or size < 0 or size > end - at:
                return np.int64(-1)
            block_end = at + size
            count = -count
        if count < 0 or count > end - at:  # a string takes a byte at least; -2**63 has no opposite
            return np.int64(-1)
        for _ in range(count):
            _, at = _skip_sized(data, at, end, True)
            if at < 0:
                return at
        if block_end >= 0 and at != block_end:
            return np.int64(-1)


@uncounted()
def _read_fixed(data: Octets, at: int, width: int) -> Number:
    """`width` little-endian bytes as a number."""
    bits = np.uint64(0)
    for position in range(width):
        bits |= np.uint64(data[at + position]) << np.uint64(8 * position)
    return np.int64(bits)


@uncounted()
def _read_value(data: Octets, at: Number, end: int, code: int) -> tuple[Number, Number, Number]:
    """The cell of the value of type `code` at `at`, the cell of its end, and where it ends: -1 when it does not decode."""
    if code in (INT, LONG):
        value, after = _read_long(data, at, end)
        if code == INT and not -INT_MAX - 1 <= value <= INT_MAX:
            after = np.int64(-1)
        return value, np.int64(0), after
    if code in (STRING, BYTES):
        start, after = _skip_sized(data, at, end, code == STRING)
        return start, after, after
    if code == STRINGS:
        after = _skip_strings(data, at, end)
        return at, after, after
    width = 8 if code == DOUBLE else 4 if code == FLOAT else 1
    if width > end - at:
        return np.int64(0), np.int64(0), np.int64(-1)
    value = _read_fixed(data, at, width)
    if code == BOOLEAN and value > 1:
        return np.int64(0), np.int64(0), np.int64(-1)
    return value, np.int64(0), at + width


@_compiled(OCTETS_IN, INTS_IN, INTS_IN, INTS_IN, INTS_IN, CELLS, CELLS, numba.int64[::1])
def decode(data: Octets, starts: Ints, ends: Ints, codes: Ints, nulls: Ints, cells: Ints, stops: Ints, faults: Ints) -> None:
    """
    Fill `cells` and `stops` (fields, n), and `faults` (n): 0 for a good record, else 1 + the number of the field that did
    not decode, counting what is left over at the end as a field of its own. A bad record holds zeros.
    """
    for record in range(len(starts)):
        at, end = starts[record], ends[record]
        fault = 0
        if at < 0 or end > len(data) or at > end:
            fault = 1
        for field in range(len(codes)):
            if fault:
                break
            if nulls[field] != NEVER:
                branch, at = _read_long(data, at, end)
                if at < 0 or not 0 <= branch <= 1:
                    fault = field + 1
                    break
                if branch == nulls[field]:
                    cells[field, record] = -1
                    stops[field, record] = -1
                    continue
            cell, stop, at = _read_value(data, at, end, codes[field])
            if at < 0:
                fault = field + 1
            cells[field, record] = cell
            stops[field, record] = stop
        if not fault and at != end:
            fault = len(codes) + 1
        faults[record] = fault
        if fault:
            for field in range(len(codes)):
                cells[field, record] = 0
                stops[field, record] = 0


@uncounted()
def _long_size(value: int) -> int:
    bits = np.uint64((value << 1) ^ (value >> 63))
    size = 1
    while bits > np.uint64(0x7F):
        bits >>= np.uint64(7)
        size += 1
    return size


@uncounted()
def _write_long(out: Octets, at: int, value: int) -> int:
    bits = np.uint64((value << 1) ^ (value >> 63))
    while bits > np.uint64(0x7F):
        out[at] = np.uint8(bits & np.uint64(0x7F) | np.uint64(0x80))
        bits >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(bits)
    return at + 1


@uncounted()
def _measure_numbers(code: int, field: int, null: int, cells: Ints, stops: Ints, sizes: Ints) -> Number:
    """The first record whose number has too many bits, or -1."""
    fixed = np.int64(8 if code == DOUBLE else 4 if code == FLOAT else 1)
    for record in range(len(sizes)):
        if null != NEVER and stops[field, record] == -1:
            continue
        if code in (INT, LONG):
            cell = cells[field, record]
            if code == INT and not -INT_MAX - 1 <= cell <= INT_MAX:
                return np.int64(record)
            sizes[record] += _long_size(cell)
        else:
            sizes[record] += fixed
    return np.int64(-1)


@uncounted()
def _measure_sized(data: Octets, code: int, field: int, null: int, cells: Ints, stops: Ints, sizes: Ints) -> Number:
    """The first record whose value is outside `data`, null where it must not be, no text or no array of strings; or -1."""
    for record in range(len(sizes)):
        start, end = cells[field, record], stops[field, record]
        if null != NEVER and end == -1:
            continue
        if start < 0 or end > len(data) or start > end:
            return np.int64(record)
        if code == STRINGS:
            if _skip_strings(data, start, end) != end:
                return np.int64(record)
            sizes[record] += end - start
            continue
        if code == STRING and not _is_text(data, start, end):
            return np.int64(record)
        sizes[record] += _long_size(end - start) + end - start
    return np.int64(-1)


@_compiled(*GROUP, numba.int64[::1], returns=PLACE)
def measure(
    buffers: tuple[Octets, ...], buffer_of: Ints, codes: Ints, nulls: Ints, cells: Ints, stops: Ints, sizes: Ints
) -> tuple[Number, Number]:
    """
    Add to `sizes` (n,) what the fields of each record take. Returns field and record of the first value that would not decode again,
    (-1, -1) when there is none. `nulls` is the branch of null, or NEVER; a stop of -1 says that it is taken.
    """
    for field in range(len(codes)):
        code, null = codes[field], nulls[field]
        if null != NEVER:
            for record in range(len(sizes)):
                sizes[record] += 1
        if code < BYTES:
            bad = _measure_numbers(code, field, null, cells, stops, sizes)
        else:
            bad = _measure_sized(buffers[buffer_of[field]], code, field, null, cells, stops, sizes)
        if bad >= 0:
            return field, bad
    return -1, -1


@uncounted()
def _write_branch(null: int, absent: bool, out: Octets, at: Number) -> Number:
    """Say whether a value of a field that can be null follows, and return where."""
    out[at] = 2 * (null if absent else 1 - null)
    return at + 1


@uncounted()
def _write_integers(field: int, null: int, cells: Ints, stops: Ints, out: Octets, places: Ints) -> None:
    for record in range(len(places)):
        at = places[record]
        absent = null != NEVER and stops[field, record] == -1
        if null != NEVER:
            at = _write_branch(null, absent, out, at)
        places[record] = at if absent else _write_long(out, at, cells[field, record])


@uncounted()
def _write_fixed(width: int, field: int, null: int, cells: Ints, stops: Ints, out: Octets, places: Ints) -> None:
    for record in range(len(places)):
        at = places[record]
        absent = null != NEVER and stops[field, record] == -1
        if null != NEVER:
            at = _write_branch(null, absent, out, at)
        if not absent:
            bits = np.uint64(cells[field, record])
            for position in range(width):
                out[at + position] = np.uint8(bits >> np.uint64(8 * position) & np.uint64(0xFF))
            at += width
        places[record] = at


@uncounted()
def _write_sized(data: Octets, code: int, field: int, null: int, cells: Ints, stops: Ints, out: Octets, places: Ints) -> None:
    for record in range(len(places)):
        at, start, end = places[record], cells[field, record], stops[field, record]
        absent = null != NEVER and end == -1
        if null != NEVER:
            at = _write_branch(null, absent, out, at)
        if not absent:
            if code != STRINGS:
                at = _write_long(out, at, end - start)
            for position in range(end - start):
                out[at + position] = data[start + position]
            at += end - start
        places[record] = at


@_compiled(*GROUP, numba.uint8[::1], numba.int64[::1])
def write(
    buffers: tuple[Octets, ...],
    buffer_of: Ints,
    codes: Ints,
    nulls: Ints,
    cells: Ints,
    stops: Ints,
    out: Octets,
    places: Ints,
) -> None:
    """Write the fields of each record, that `measure` found right, at its place in `out`, and move the place on."""
    for field in range(len(codes)):
        code, null = codes[field], nulls[field]
        if code in (INT, LONG):
            _write_integers(field, null, cells, stops, out, places)
        elif code < BYTES:
            _write_fixed(8 if code == DOUBLE else 4 if code == FLOAT else 1, field, null, cells, stops, out, places)
        else:
            _write_sized(buffers[buffer_of[field]], code, field, null, cells, stops, out, places)


@_compiled(OCTETS_IN, numba.uint8[::1], numba.int64[::1])
def write_prefix(prefix: Octets, out: Octets, places: Ints) -> None:
    """Begin each record with `prefix`, and move its place on."""
    for record in range(len(places)):
        for position in range(len(prefix)):
            out[places[record] + position] = prefix[position]
        places[record] += len(prefix)
