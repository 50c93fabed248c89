"""
Where Kafka's own clients place a key: murmur2, as the Java producer computes it. librdkafka's default is another hash.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from driftline.compiled import njit, types
from driftline.errors import Invalid
from driftline.stream.batch import Ints, Varlen

BYTES = types.Array(types.uint8, 1, "C", readonly=True)
INTS = types.Array(types.int64, 1, "C", readonly=True)


@njit(types.int64[::1](BYTES, INTS, INTS), cache=True, nogil=True)
def _murmur2(data: npt.NDArray[np.uint8], starts: Ints, ends: Ints) -> Ints:
    """
    The hash of each value as a signed 32-bit number; a null value hashes like an empty one.

    Numbers are kept below 2**32 in int64 by masking, because a product of two of them would leave int64 only in bits that the
    mask drops.
    """
    mask, multiplier = np.int64(0xFFFFFFFF), np.int64(0x5BD1E995)
    hashes = np.empty(len(starts), np.int64)
    for i in range(len(starts)):
        start = max(starts[i], 0)
        n = ends[i] - start if starts[i] >= 0 else 0
        h = np.int64(0x9747B28C) ^ n
        whole = n // 4
        for word in range(whole):
            at = start + 4 * word
            k = np.int64(data[at]) | (np.int64(data[at + 1]) << 8) | (np.int64(data[at + 2]) << 16) | (np.int64(data[at + 3]) << 24)
            k = (k * multiplier) & mask
            k ^= k >> 24
            k = (k * multiplier) & mask
            h = ((h * multiplier) & mask) ^ k
        tail = start + 4 * whole
        if n % 4 == 3:
            h ^= np.int64(data[tail + 2]) << 16
        if n % 4 >= 2:
            h ^= np.int64(data[tail + 1]) << 8
        if n % 4 >= 1:
            h = ((h ^ np.int64(data[tail])) * multiplier) & mask
        h ^= h >> 13
        h = (h * multiplier) & mask
        h ^= h >> 15
        hashes[i] = h - (np.int64(1) << 32) if h >= np.int64(1) << 31 else h
    return hashes


def murmur2(keys: Varlen) -> Ints:
    """The hash of each key, signed as in Java."""
    hashes: Ints = _murmur2(keys.data, keys.starts, keys.ends)
    return hashes


def partitions_of(keys: Varlen, count: int) -> Ints:
    """The partition of each key among `count`. Raises Invalid when there is none to choose from."""
    if count < 1:
        raise Invalid(f"{count} partitions hold no key")
    return (murmur2(keys) & 0x7FFFFFFF) % count
