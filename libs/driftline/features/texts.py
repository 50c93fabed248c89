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
