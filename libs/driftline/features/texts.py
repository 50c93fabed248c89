"""
Columns of text without a Python object a value: hashes, numbers written out, and texts joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.compiled import READ_BYTES, READ_INTS, njit, types
from driftline.stream.batch import Ints, Varlen

Bytes = npt.NDArray[np.uint8]

UNIT_SEPARATOR = 0x1F  # between the parts of a composite key
AVRO = -1  # as the separator: the length, as Avro writes it
DIGITS_MAX = 20
VARINT_MAX = 10

_FNV_START, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX_1, _MIX_2, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)


@njit(types.uint64(types.uint64), cache=True, nogil=True)
def mix(h: Any) -> Any:
    """A bijection of 64 bits that leaves none of them where it was (MurmurHash3's finaliser)."""
    h = (h ^ (h >> _SHIFT)) * _MIX_1
    h = (h ^ (h >> _SHIFT)) * _MIX_2
    return h ^ (h >> _SHIFT)


@njit(types.int64(READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def hash_of(data: Bytes, start: int, end: int) -> Any:
    """64-bit FNV-1a of one value, mixed; never 0."""
    h = _FNV_START
    for at in range(start, end):
        h = (h ^ np.uint64(data[at])) * _FNV_PRIME
    h = mix(h)
    return np.int64(h) if h != np.uint64(0) else np.int64(1)


@njit(types.boolean(READ_BYTES, types.int64, types.int64, READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def same(left: Bytes, left_start: int, left_end: int, right: Bytes, right_start: int, right_end: int) -> bool:
    """Whether two values are of the same bytes."""
    if left_end - left_start != right_end - right_start:
        return False
    for at in range(left_end - left_start):  # noqa: SIM110 - compiled, a loop is faster than a generator
        if left[left_start + at] != right[right_start + at]:
            return False
    return True


@njit(types.int64[::1](READ_BYTES, READ_INTS, READ_INTS), cache=True, nogil=True)
def _hashes(data: Bytes, starts: Ints, ends: Ints) -> Ints:
    out = np.zeros(len(starts), np.int64)
    for i in range(len(starts)):
        if starts[i] >= 0:
            out[i] = hash_of(data, starts[i], ends[i])
    return out


@njit(types.int64[::1](types.Array(types.uint64, 1, "C", readonly=True)), cache=True, nogil=True)
def _mixed(bits: npt.NDArray[np.uint64]) -> Ints:
    out = np.empty(len(bits), np.int64)
    for i in range(len(bits)):
        h = mix(bits[i])
        out[i] = np.int64(h) if h != np.uint64(0) else np.int64(1)
    return out


@njit(types.int64(types.uint8[::1], types.int64, types.int64), nogil=True, cache=True)
def _write_length(out: Bytes, at: int, n: int) -> int:
    """Avro's variable-length code of a number that is not negative; where it ends."""
    n = 2 * n
    while n >= 0x80:
        out[at] = (n & 0x7F) | 0x80
        n >>= 7
        at += 1
    out[at] = n
    return at + 1


@njit(types.void(types.uint8[::1], READ_INTS, READ_BYTES, READ_INTS, READ_INTS), cache=True, nogil=True)
def _write(out: Bytes, at: Ints, data: Bytes, starts: Ints, ends: Ints) -> None:
    for i in range(len(starts)):
        for byte in range(ends[i] - starts[i]):
            out[at[i] + byte] = data[starts[i] + byte]


@njit(types.UniTuple(types.int64[::1], 2)(READ_BYTES, READ_INTS, READ_INTS), cache=True, nogil=True)  # type: ignore[no-untyped-call]
def _grouped(data: Bytes, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    n = len(starts)
    size = 16
    while size < 2 * n:
        size *= 2
    table, codes, firsts = np.full(size, -1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    count = 0
    for i in range(n):
        at = hash_of(data, starts[i], ends[i]) & (size - 1)
        while table[at] >= 0 and not same(data, starts[i], ends[i], data, starts[firsts[table[at]]], ends[firsts[table[at]]]):
            at = (at + 1) & (size - 1)
        if table[at] < 0:
            table[at] = count
            firsts[count] = i
            count += 1
        codes[i] = table[at]
    return codes, firsts[:count].copy()


@njit(types.UniTuple(types.int64[::1], 2)(READ_INTS), cache=True, nogil=True)  # type: ignore[no-untyped-call]
def _renumbered(values: Ints) -> tuple[Ints, Ints]:
    """Numbers as their numbers in order of first appearance, and the place of each."""
    n = len(values)
    size = 16
    while size < 2 * n:
        size *= 2
    table, numbers, firsts = np.full(size, -1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    count = 0
    for i in range(n):
        at = np.int64(mix(np.uint64(values[i]))) & (size - 1)
        while table[at] >= 0 and values[firsts[table[at]]] != values[i]:
            at = (at + 1) & (size - 1)
        if table[at] < 0:
            table[at] = count
            firsts[count] = i
            count += 1
        numbers[i] = table[at]
    return numbers, firsts[:count].copy()


_TEXTS = types.Tuple((types.uint8[::1], types.int64[::1], types.int64[::1]))  # type: ignore[no-untyped-call]  # numba has no types


@njit(_TEXTS(READ_BYTES, READ_INTS, READ_INTS, READ_BYTES, READ_INTS, READ_INTS, types.int64), cache=True, nogil=True)
def _append(
    left: Bytes, left_starts: Ints, left_ends: Ints, right: Bytes, right_starts: Ints, right_ends: Ints, separator: int
) -> tuple[Bytes, Ints, Ints]:
    n = len(left_starts)
    size = n * VARINT_MAX
    for i in range(n):
        size += left_ends[i] - left_starts[i] + right_ends[i] - right_starts[i] + 2
    out, starts, ends = np.empty(size, np.uint8), np.empty(n, np.int64), np.empty(n, np.int64)
    at = 0
    for i in range(n):
        starts[i] = at
        if separator != AVRO and (left_starts[i] < 0 or right_starts[i] < 0):
            starts[i], ends[i] = -1, at
            continue
        for byte in range(left_starts[i], left_ends[i]):
            out[at] = left[byte]
            at += 1
        first = max(right_starts[i], 0)
        end = right_ends[i] if right_starts[i] >= 0 else first
        if separator == AVRO:
            at = _write_length(out, at, end - first)
        else:
            out[at] = separator
            at += 1
        for byte in range(first, end):
            out[at] = right[byte]
            at += 1
        ends[i] = at
    return out, starts, ends


@njit(_TEXTS(READ_INTS), cache=True, nogil=True)
def _decimals(numbers: Ints) -> tuple[Bytes, Ints, Ints]:
    n = len(numbers)
    out, starts, ends = np.empty(n * DIGITS_MAX, np.uint8), np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        at = (i + 1) * DIGITS_MAX
        ends[i] = at
        rest = -numbers[i] if numbers[i] > 0 else numbers[i]  # below 0, where there is one number more
        while True:
            at -= 1
            tenth = rest // 10 + (1 if rest % 10 else 0)  # rounded towards 0
            out[at] = 48 - (rest - tenth * 10)
            rest = tenth
            if rest == 0:
                break
        if numbers[i] < 0:
            at -= 1
            out[at] = 45
        starts[i] = at
    return out, starts, ends


def hashes(column: Varlen) -> Ints:
    """A 64-bit hash of each value, never 0; 0 for null."""
    out: Ints = _hashes(column.data, column.starts, column.ends)
    return out


def groups(column: Varlen | npt.NDArray[Any], *others: Varlen | npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """
    Rows of these columns that are alike: which of the different ones each row is, in order of first appearance, and the first place of
    each of those. No text is null.
    """
    which, firsts = _groups_of(column)
    for other in others:
        mine, different = _groups_of(other)
        which, firsts = _renumbered(which * len(different) + mine)
    return which, firsts


def _groups_of(column: Varlen | npt.NDArray[Any]) -> tuple[Ints, Ints]:
    if isinstance(column, Varlen):
        return _grouped(column.data, column.starts, column.ends)
    return _renumbered(codes(column.astype(np.float64)) if column.dtype.kind == "f" else column.astype(np.int64))


def write(out: Bytes, at: Ints, column: Varlen) -> None:
    """Copy each value into `out`, from its place `at` on. There is room for all."""
    _write(out, at, column.data, column.starts, column.ends)


def compact(column: Varlen) -> Varlen:
    """The same values, in a buffer that holds nothing else."""
    ends = np.cumsum(column.ends - column.starts)
    starts = ends - (column.ends - column.starts)
    data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    write(data, starts, column)
    return Varlen(data, starts, ends)


def codes(numbers: npt.NDArray[np.float64]) -> Ints:
    """A number of 64 bits for each different number, never 0; 0 for NaN."""
    bits = np.ascontiguousarray(numbers + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return np.where(np.isnan(numbers), 0, _mixed(bits))


def decimals(numbers: Ints) -> Varlen:
    """Whole numbers written out."""
    return Varlen(*_decimals(np.ascontiguousarray(numbers, np.int64)))


def append(left: Varlen, right: Varlen, separator: int) -> Varlen:
    """Each value of `left`, the separator, the value of `right`; null where one of them is. With AVRO, null counts as empty."""
    return Varlen(*_append(left.data, left.starts, left.ends, right.data, right.starts, right.ends, separator))


def joined(parts: Sequence[Varlen]) -> Varlen:
    """Composite keys: the parts with a unit separator between them; null where a part is."""
    key = parts[0]
    for part in parts[1:]:
        key = append(key, part, UNIT_SEPARATOR)
    return key


def arrays(parts: Sequence[Varlen], n: int) -> Varlen:
    """n values of Avro's array of strings, one item from each part; null is an empty string."""
    if not parts:
        return Varlen.repeat(b"\x00", n)
    count = np.empty(VARINT_MAX, np.uint8)
    array = Varlen.repeat(count[: _write_length(count, 0, len(parts))].tobytes(), n)
    for part in parts:
        array = append(array, part, AVRO)
    return append(array, Varlen.repeat(b"", n), AVRO)  # an empty block ends the array, and is written like an empty string
