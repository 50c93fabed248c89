"""
Where entities live in memory: the words of all of them in one array, found by kind and key through a hash table of our own.

A kind is a view, or a stream whose ids are remembered. A *slot* is a number that stands for one entity; its words begin at
`base[slot]`. Keys are compared byte by byte, so two keys of one hash are still two entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.compiled import READ_BYTES, READ_INTS, njit, prefetch, types
from driftline.errors import Invalid
from driftline.features.packing import FAULTS, Layout, Layouts, pack, unpack
from driftline.features.texts import hash_of
from driftline.features.tiles import NONE
from driftline.stream.batch import Ints, Rows, Varlen

Bytes = npt.NDArray[np.uint8]

ABSENT = -2  # as a slot: the key is not in memory
KEYS_AHEAD = 8
FIRST_SLOTS = 1 << 10
FIRST_WORDS = 1 << 14
FIRST_KEY_BYTES = 1 << 14
SLOTS_FOR_ONE = 4  # of the table, for each entity that there is room for
KIND_PRIME = 0x9E3779B97F4A7C15 - (1 << 64)

_I1, _B1 = types.int64[::1], types.uint8[::1]
_COUNTS = types.UniTuple(types.int64, 3)  # type: ignore[no-untyped-call]  # numba has no types of its own


@njit(types.int64(_I1, _I1, _I1, _I1, _I1, _B1, types.int64, types.int64, READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def _place(
    table: Ints,
    hashes: Ints,
    kinds: Ints,
    key_starts: Ints,
    key_ends: Ints,
    keys: Bytes,
    kind: int,
    h: int,
    data: Bytes,
    start: int,
    end: int,
) -> int:
    """The place in the table of a key, or the free place where it belongs."""
    mask = len(table) - 1
    at = h & mask
    while table[at] != NONE:
        slot = table[at]
        if hashes[slot] == h and kinds[slot] == kind and key_ends[slot] - key_starts[slot] == end - start:
            same = True
            for i in range(end - start):
                if keys[key_starts[slot] + i] != data[start + i]:
                    same = False
                    break
            if same:
                return at
        at = (at + 1) & mask
    return at


@njit(_I1(_I1, _I1, _I1, _I1, _I1, _B1, types.int64, READ_BYTES, READ_INTS, READ_INTS), cache=True, nogil=True)
def _find(
    table: Ints, hashes: Ints, kinds: Ints, key_starts: Ints, key_ends: Ints, keys: Bytes, kind: int, data: Bytes, starts: Ints, ends: Ints
) -> Ints:
    slots, mask = np.full(len(starts), NONE, np.int64), len(table) - 1
    codes = np.zeros(len(starts), np.int64)
    for i in range(len(starts)):
        if starts[i] >= 0:
            codes[i] = hash_of(data, starts[i], ends[i]) ^ (kind * KIND_PRIME)
    for i in range(len(starts)):
        if i + 2 * KEYS_AHEAD < len(starts):
            prefetch(table, codes[i + 2 * KEYS_AHEAD] & mask)
            near = table[codes[i + KEYS_AHEAD] & mask]
            if near != NONE:
                prefetch(hashes, near)
                prefetch(kinds, near)
                prefetch(key_starts, near)
                prefetch(key_ends, near)
        if starts[i] >= 0:
            slot = table[_place(table, hashes, kinds, key_starts, key_ends, keys, kind, codes[i], data, starts[i], ends[i])]
            slots[i] = ABSENT if slot == NONE else slot
    return slots


@njit(types.int64(_I1, _I1, types.int64, types.int64), cache=True, nogil=True)
def _distinct(slots: Ints, stamps: Ints, stamp: int, n: int) -> int:
    """Move the first occurrence of each slot to the front; how many there are."""
    count = 0
    for i in range(n):
        if stamps[slots[i]] != stamp:
            stamps[slots[i]] = stamp
            slots[count] = slots[i]
            count += 1
    return count


@njit(types.void(_I1, _I1, types.int64), cache=True, nogil=True)
def _reinsert(table: Ints, hashes: Ints, n: int) -> None:
    mask = len(table) - 1
    for slot in range(n):
        at = hashes[slot] & mask
        while table[at] != NONE:
            at = (at + 1) & mask
        table[at] = slot


@njit(_B1(READ_BYTES, READ_INTS, READ_INTS, READ_INTS), cache=True, nogil=True)
def _gather(data: Bytes, starts: Ints, lengths: Ints, ends: Ints) -> Bytes:
    out = np.empty(ends[-1] if len(ends) else 0, np.uint8)
    for i in range(len(starts)):
        out[ends[i] - lengths[i] : ends[i]] = data[starts[i] : starts[i] + lengths[i]]
    return out


@njit(
    _COUNTS(_I1, _I1, _I1, _I1, _I1, _B1, _I1, _I1, _I1, _I1, _I1, _I1, READ_BYTES, _I1, _I1, READ_INTS, _I1, _I1, _COUNTS),
    cache=True,
    nogil=True,
)
def _insert(
    table: Ints,
    hashes: Ints,
    kinds: Ints,
    key_starts: Ints,
    key_ends: Ints,
    keys: Bytes,
    base: Ints,
    words: Ints,
    empty: Ints,
    empty_starts: Ints,
    lengths: Ints,
    new_kinds: Ints,
    data: Bytes,
    starts: Ints,
    ends: Ints,
    rows: Ints,
    row_starts: Ints,
    row_ends: Ints,
    used: tuple[int, int, int],
) -> tuple[int, int, int]:
    """Take entities, each with the words of its row and, where that ends, those of an unknown one. There is room for all."""
    count, words_used, keys_used = used
    for i in range(len(new_kinds)):
        kind, start, end = new_kinds[i], starts[i], ends[i]
        h = hash_of(data, start, end) ^ (kind * KIND_PRIME)
        place = _place(table, hashes, kinds, key_starts, key_ends, keys, kind, h, data, start, end)
        slot = table[place]
        if slot == NONE:
            slot = count
            table[place] = slot
            kinds[slot], hashes[slot], base[slot] = kind, h, words_used
            key_starts[slot], key_ends[slot] = keys_used, keys_used + end - start
            keys[keys_used : keys_used + end - start] = data[start:end]
            count, words_used, keys_used = count + 1, words_used + lengths[kind], keys_used + end - start
        n = row_ends[i] - row_starts[i]
        words[base[slot] : base[slot] + n] = rows[row_starts[i] : row_ends[i]]
        words[base[slot] + n : base[slot] + lengths[kind]] = empty[empty_starts[kind] + n : empty_starts[kind] + lengths[kind]]
    return count, words_used, keys_used


@njit(_B1(READ_BYTES, READ_INTS, READ_INTS, READ_BYTES, READ_INTS, READ_INTS, READ_INTS), cache=True, nogil=True)
def _join(ones: Bytes, one_starts: Ints, one_ends: Ints, others: Bytes, other_starts: Ints, other_ends: Ints, ends: Ints) -> Bytes:
    """Pieces of one buffer, each with a piece of the other behind it."""
    out = np.empty(ends[-1] if len(ends) else 0, np.uint8)
    at = 0
    for i in range(len(ends)):
        for place in range(one_starts[i], one_ends[i]):
            out[at] = ones[place]
            at += 1
        for place in range(other_starts[i], other_ends[i]):
            out[at] = others[place]
            at += 1
    return out


class Entities:
    """
    All entities of one partition that are in memory. `prefixes` has what the names of their rows begin with, and `layouts` their words, by
    kind.
    """

    def __init__(self, prefixes: Sequence[bytes], layouts: Sequence[Layout]) -> None:
        self._prefixes = prefixes
        self._prefix_columns = Varlen.of(prefixes)
        self._layouts = Layouts.of(layouts)
        self._lengths = np.array([len(one.empty) for one in layouts], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._empty = np.concatenate([one.empty for one in layouts])
        self.generation = 0  # changes whenever `find` may have other answers
        self.words = np.zeros(FIRST_WORDS, np.int64)
        self.base = np.zeros(FIRST_SLOTS, np.int64)
        self._kinds, self._hashes = np.zeros(FIRST_SLOTS, np.int64), np.zeros(FIRST_SLOTS, np.int64)
        self._key_starts, self._key_ends = np.zeros(FIRST_SLOTS, np.int64), np.zeros(FIRST_SLOTS, np.int64)
        self._stamps = np.zeros(FIRST_SLOTS, np.int64)
        self._stamp = 0
        self._keys = np.zeros(FIRST_KEY_BYTES, np.uint8)
        self._table = np.full(SLOTS_FOR_ONE * FIRST_SLOTS, NONE, np.int64)
        self.clear()

    def clear(self) -> None:
        """Forget everything: the store has it all. The room stays, for those who come next."""
        self.generation += 1
        self.count = self._words_used = self._keys_used = 0
        self._table.fill(NONE)

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The words as numbers: the same memory."""
        return self.words.view(np.float64)

    def find(self, kind: int, keys: Varlen) -> Ints:
        """The slot of each key; NONE for a null key, ABSENT for one that is not in memory."""
        slots: Ints = _find(*self._tables(), kind, keys.data, keys.starts, keys.ends)
        return slots

    def _tables(self) -> tuple[Ints, Ints, Ints, Ints, Ints, Bytes]:
        return self._table, self._hashes, self._kinds, self._key_starts, self._key_ends, self._keys

    def store_key(self, kind: int, key: bytes) -> bytes:
        """What an entity's row is called in the store."""
        return self._prefixes[kind] + key

    @staticmethod
    def distinct_keys(keys: Varlen) -> list[bytes]:
        """Each of these keys once, however large the buffer is that they lie in."""
        return list(dict.fromkeys(_gathered(keys.data, keys.starts, keys.ends - keys.starts)))

    def add(self, names: Sequence[tuple[int, bytes]], rows: Sequence[bytes | None]) -> None:
        """
        Take entities, by kind and key, as the store has them; None for one that is not known yet. Raises Invalid, and takes none, when
        a row cannot be read.
        """
        kinds = np.array([kind for kind, _ in names], np.int64)
        keys, known = Varlen.of(key for _, key in names), Varlen.of(row or b"" for row in rows)
        known.starts[[row is None for row in rows]] = -1
        lengths = self._lengths[kinds]
        words, starts = np.empty(int(lengths.sum()), np.int64), np.cumsum(lengths) - lengths
        n_words, faults = unpack(known, words, starts, kinds, self._layouts)
        if faults.any():
            self._refuse_unfit(names, faults)
        self.generation += 1
        self._reserve(len(names), len(words), len(keys.data))
        self.count, self._words_used, self._keys_used = _insert(
            *self._tables(),
            self.base,
            self.words,
            self._empty,
            self._starts,
            self._lengths,
            kinds,
            keys.data,
            keys.starts,
            keys.ends,
            words,
            starts,
            starts + n_words,
            (self.count, self._words_used, self._keys_used),
        )

    def _refuse_unfit(self, names: Sequence[tuple[int, bytes]], faults: Ints) -> None:
        first = int(np.flatnonzero(faults)[0])
        row, fault = self.store_key(*names[first]), FAULTS[faults[first]]
        raise Invalid(f"the row {row!r} {fault}: it is damaged, or was made by another definition")

    def _reserve(self, entities: int, words: int, key_bytes: int) -> None:
        """Room for so many more, by doubling."""
        self.words = _with_room(self.words, self._words_used + words)
        self._keys = _with_room(self._keys, self._keys_used + key_bytes)
        names = ("base", "_kinds", "_hashes", "_key_starts", "_key_ends", "_stamps")
        for name in names:
            setattr(self, name, _with_room(getattr(self, name), self.count + entities))
        if len(self._table) < SLOTS_FOR_ONE * len(self.base):
            self._table = np.full(SLOTS_FOR_ONE * len(self.base), NONE, np.int64)
            _reinsert(self._table, self._hashes, self.count)

    def distinct(self, slots: Ints, n: int) -> Ints:
        """The first `n` of `slots`, each once, in order of first occurrence; `slots` is written over."""
        self._stamp += 1
        return slots[: _distinct(slots, self._stamps, self._stamp, n)]

    def rows(self, slots: Ints) -> Rows:
        """The rows of `slots` by their names in the store."""
        kinds = self._kinds[slots]
        prefixes = self._prefix_columns.take(kinds)
        keys = Varlen(self._keys, self._key_starts[slots], self._key_ends[slots])
        lengths = prefixes.lengths + keys.lengths
        ends = np.cumsum(lengths)
        names = _join(*prefixes.arrays, *keys.arrays, ends)
        return Rows(Varlen(names, ends - lengths, ends), pack(self.words, self.base[slots], kinds, self._layouts))


def _gathered(data: Bytes, starts: Ints, lengths: Ints) -> list[bytes]:
    """Pieces of a large buffer, copied once."""
    ends = np.cumsum(lengths)
    return Varlen(_gather(data, starts, lengths, ends), ends - lengths, ends).tolist()


def _with_room(array: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """`array` itself where it has room for `n`, else doubled until it has."""
    size = len(array)
    while size < n:
        size *= 2
    return array if size == len(array) else np.concatenate([array, np.zeros(size - len(array), array.dtype)])
