"""
Rows of the store, packed: only those words of an entity are written that are not what is expected, each in as few bytes as it needs.

*What is expected.* A view's aggregates say much of the same: windows of one length count the same records in the same tiles, `max`,
`mean` and `std` of one record are its value, and the newest time of an aggregate is that of its entity. So a layout names for some words
an earlier one that they are `like`, and expects of a word what that one has; where it has nothing yet, and everywhere else, what an
unknown entity has. Nothing rests on an expectation but the length of the row.

*What a row looks like.* First the word NEWEST, which then counts as expected; it is a *varint*, an unsigned number in groups of seven
bits, low ones first. Then, from the first word to the last, a byte and what belongs to it: the two high bits say how many words before
this one are as expected, the six low bits are

    0 to 15     the float64 1.0 to 16.0
    16 to 31    a word that was written out before in this row, by its place in a table of 16
    32          NEVER
    33 to 40    written out: the first 1 to 8 bytes of the word, the others are 0
    41 to 45    written out: how many ms before NEWEST, in 1 to 5 bytes
    46 to 50    written out: a float64 as hundredths, sign in the lowest bit, in 1 to 5 bytes
    51 to 62    no word: 4 to 48 words, with the high bits up to 51, are as expected
    63          no word: as many as the varint that follows says are as expected

*A memory of ids* has nothing that could be expected: NEWEST and the number of ids as varints, then the 8 bytes of each hash and, as a
varint, how many ms before NEWEST its time is.

Numbers are little-endian. Every word of 64 bits comes back as it was, whatever it stands for. A row ends where the words of its kind
do, so one that was cut off, or has too much, is known as such; hundredths, because most amounts are decimal fractions that fill a
float64 to its last bit: the idea is that of ALP (Afroozeh, Kuffó and Boncz, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.compiled import READ_BYTES, READ_INTS, njit, types, uncounted
from driftline.features.tiles import MEMORY_COUNT, MEMORY_HEADER_WORDS, MEMORY_WORDS, NEVER, NEWEST, NONE
from driftline.stream.batch import Ints, Varlen

Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.int64]

START, LENGTH, PAIRS = range(3)  # of a kind: see `Layouts`
ANY = -1  # as the most that a word may be: whatever it likes

INTEGERS, TABLE, TABLE_BITS = 16, 16, 4
FIRST_PLACE, NEVER_CODE, TOPS, BEFORES, HUNDREDTHS, SKIPS, LONG_SKIP = 16, 32, 32, 40, 45, 50, 63
SHORT, SHORT_MAX = 4, 51  # so many words make a skip of its own; so many fit into one byte
NUMBER_BYTES, VARINT_BYTES = 5, 10
HUNDREDTHS_MIN, HUNDREDTHS_MAX = 0.01, 1e9  # a word that is a time is tiny as a number, and slow to multiply
ROW_MAX, WORD_MAX = 2 * VARINT_BYTES + 1, VARINT_BYTES  # the room of a row beside its words, and of a word

_I1, _I2, _F1, _B1 = types.int64[::1], types.int64[:, ::1], types.float64[::1], types.uint8[::1]
_LOW, _HIGH_BIT = np.uint64(0x7F), np.uint64(0x80)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 by the golden ratio: Knuth's multiplicative hash
_WHERE = np.uint64(64 - TABLE_BITS)

BAD = -1
READABLE, CUT_OFF, TOO_LONG, TOO_MANY = range(4)  # what is wrong with a row
FAULTS = ("", "ends before its last word does", "has more words than belong", "counts more than there is room for")


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """
    The n words of one kind of entity, two at least. For each of them: what it is before the first record; the earlier word that it is
    `like` (NONE: no other; NEWEST counts as the earliest); and the `most` that it may be, where it counts what follows (or ANY).

    In a kind of `pairs` they are a memory of ids: how many, NEWEST, then pairs of an id's hash and its time, of which only those that
    there are belong to a row.
    """

    empty: Ints
    like: Ints
    most: Ints
    pairs: bool = False

    @classmethod
    def plain(cls, empty: Ints) -> Layout:
        """Words of which nothing is known."""
        return cls(empty, np.full(len(empty), NONE, np.int64), np.full(len(empty), ANY, np.int64))

    @classmethod
    def memory(cls, most: int) -> Layout:
        """A memory of so many ids."""
        words = np.zeros(MEMORY_HEADER_WORDS + MEMORY_WORDS * most, np.int64)
        words[NEWEST] = NEVER
        return replace(cls.plain(words), pairs=True)


@dataclass(frozen=True, slots=True, eq=False)
class Layouts:
    """
    Those of all kinds: what the loops walk over. `empty`, `like` and `most` (W,) are of all their words, end to end; `kinds` (K, 3) has
    START, LENGTH and PAIRS.
    """

    empty: Ints
    like: Ints
    most: Ints
    kinds: Matrix

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> Layouts:
        """Join them."""
        lengths = np.array([len(one.empty) for one in layouts], np.int64)
        kinds = np.stack([np.cumsum(lengths) - lengths, lengths, np.array([one.pairs for one in layouts], np.int64)], axis=1)
        return cls(
            np.concatenate([one.empty for one in layouts]),
            np.concatenate([one.like for one in layouts]),
            np.concatenate([one.most for one in layouts]),
            np.ascontiguousarray(kinds),
        )


@uncounted()
def _place(word: Any) -> Any:
    """Where a word lies in the table of those that were written out."""
    return np.int64((np.uint64(word) * _SPREAD) >> _WHERE)


@uncounted()
def _bytes_of(number: Any) -> int:
    """How many bytes a number fills; 1 for 0."""
    n = 1
    for byte in range(1, 8):
        n += number >> np.uint64(8 * byte) != np.uint64(0)
    return n


@uncounted()
def _zeros_of(word: Any) -> int:
    """How many of the low bytes of a word are 0; 7 for 0."""
    n = 0
    for byte in range(1, 8):
        n += word << np.uint64(8 * byte) == np.uint64(0)
    return n


@uncounted()
def _hundredths(number: float) -> int:
    """The whole number of hundredths that may be this number, sign in the lowest bit; 0 for one that is none."""
    whole = np.int64(np.rint(number * 100.0)) if HUNDREDTHS_MIN <= abs(number) < HUNDREDTHS_MAX else 0
    return int(2 * whole if whole >= 0 else -2 * whole - 1)


@uncounted()
def _of_hundredths(signed: Any) -> Any:
    whole = np.int64(signed >> np.uint64(1))
    return (-whole - 1 if signed & np.uint64(1) else whole) / 100.0


@uncounted()
def _written_out(word: int, number: float, newest: int) -> tuple[int, int, Any]:
    """A word in the shortest of three ways: its code, how many bytes belong to it, and the number that they are."""
    bits, signed = np.uint64(word), _hundredths(number)
    zeros, before = _zeros_of(bits), np.uint64(newest) - bits
    n, n_before = 8 - zeros, _bytes_of(before)
    n_hundredths = _bytes_of(np.uint64(signed)) if _of_hundredths(np.uint64(signed)) == number else 8
    if n_before <= NUMBER_BYTES and n_before < min(n, n_hundredths):
        return BEFORES + n_before, n_before, before
    if n_hundredths < n:  # never for the two zeros, which are equal and fill one byte: a word comes back as it was
        return HUNDREDTHS + n_hundredths, n_hundredths, np.uint64(signed)
    return TOPS + n, n, bits >> np.uint64(8 * zeros)


@uncounted()
def _write_varint(out: Bytes, at: int, number: Any) -> int:
    while number > _LOW:
        out[at] = np.uint8((number & _LOW) | _HIGH_BIT)
        number >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(number)
    return at + 1


@uncounted()
def _write_skip(out: Bytes, at: int, words: int) -> int:
    """So many words are as expected, and no word follows."""
    if SHORT <= words <= SHORT_MAX:
        out[at] = ((words & 3) << 6) | (SKIPS + (words >> 2))
        return at + 1
    out[at] = LONG_SKIP
    return _write_varint(out, at + 1, np.uint64(words))


@uncounted()
def _pack_pairs(out: Bytes, at: int, words: Ints, entity: int) -> int:
    """Write a memory of ids at `at`; where it ends."""
    newest, count = words[entity + NEWEST], words[entity + MEMORY_COUNT]
    at = _write_varint(out, at, np.uint64(newest))
    at = _write_varint(out, at, np.uint64(count))
    for pair in range(entity + MEMORY_HEADER_WORDS, entity + MEMORY_HEADER_WORDS + MEMORY_WORDS * count, MEMORY_WORDS):
        for byte in range(8):
            out[at + byte] = np.uint8(words[pair] >> (8 * byte))
        at = _write_varint(out, at + 8, np.uint64(newest) - np.uint64(words[pair + 1]))
    return at


_PACKED = types.Tuple((_B1, _I1))  # type: ignore[no-untyped-call]  # numba has no types of its own


@uncounted()
def _pack_one(out: Bytes, at: int, words: Ints, numbers: Any, empty: Ints, like: Ints, table: Ints) -> int:
    """Write the row of these words at `at`; where it ends."""
    newest, skip = words[NEWEST], 0
    at = _write_varint(out, at, np.uint64(newest))
    table[:] = 0
    for word in range(len(words)):
        value, expected, other = words[word], empty[word], like[word]
        if other >= 0 and words[other] != empty[other]:
            expected = words[other]
        if value == expected or word == NEWEST:
            skip += 1
            continue
        if skip >= SHORT:
            at, skip = _write_skip(out, at, skip), 0
        number, place = numbers[word], _place(value)
        n, told = 0, np.uint64(0)
        if 1.0 <= number <= INTEGERS and number == np.floor(number):
            code = int(number) - 1
        elif value == NEVER:
            code = NEVER_CODE
        elif table[place] == value:
            code = FIRST_PLACE + place
        else:
            table[place] = value
            code, n, told = _written_out(value, number, newest)
        out[at] = skip << 6 | code
        for byte in range(n):
            out[at + 1 + byte] = np.uint8(told >> np.uint64(8 * byte))
        at, skip = at + 1 + n, 0
    return _write_skip(out, at, skip) if skip > 0 else at


@njit(_PACKED(_I1, _F1, READ_INTS, READ_INTS, _I1, _I1, _I2), nogil=True, cache=True)
def _pack(words: Ints, numbers: Any, entities: Ints, kinds: Ints, empty: Ints, like: Ints, of_kinds: Matrix) -> tuple[Bytes, Ints]:
    room = 0
    for i in range(len(entities)):
        room += ROW_MAX + WORD_MAX * of_kinds[kinds[i], LENGTH]
    out, ends, table = np.empty(room, np.uint8), np.empty(len(entities), np.int64), np.empty(TABLE, np.int64)
    at = 0
    for i in range(len(entities)):
        if of_kinds[kinds[i], PAIRS]:
            at = _pack_pairs(out, at, words, entities[i])
        else:
            entity, layout, n = entities[i], of_kinds[kinds[i], START], of_kinds[kinds[i], LENGTH]
            own, their = slice(entity, entity + n), slice(layout, layout + n)
            at = _pack_one(out, at, words[own], numbers[own], empty[their], like[their], table)
        ends[i] = at
    return out[:at], ends


def pack(words: Ints, entities: Ints, kinds: Ints, layouts: Layouts) -> Varlen:
    """The rows of entities of these `kinds`, whose words begin at `entities`."""
    data, ends = _pack(words, words.view(np.float64), entities, kinds, layouts.empty, layouts.like, layouts.kinds)
    return Varlen(data, np.concatenate([np.zeros(1, np.int64), ends])[:-1], ends)


@uncounted()
def _read_varint(data: Bytes, at: int, end: int) -> tuple[Any, int]:
    """A number and where it ends; BAD there when the row ends first, or the number never does."""
    number, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(64):
        byte = np.uint64(data[at])
        number |= (byte & _LOW) << shift
        at += 1
        if byte <= _LOW:
            return number, at
        shift += np.uint64(7)
    return number, BAD


@uncounted()
def _payload_of(code: Any) -> Any:
    """How many bytes belong to a code; a skip's are a number of its own length."""
    if code <= NEVER_CODE or code > SKIPS:
        return 0
    return code - (TOPS if code <= BEFORES else BEFORES if code <= HUNDREDTHS else HUNDREDTHS)


@uncounted()
def _unpack_one(
    data: Bytes, at: int, end: int, words: Ints, numbers: Any, empty: Ints, like: Ints, most: Ints, table: Ints
) -> tuple[int, int]:
    """One row. How many words it has, and what is wrong with it."""
    newest, at = _read_varint(data, at, end)
    if at == BAD:
        return 0, CUT_OFF
    words[NEWEST] = np.int64(newest)
    table[:] = 0
    word: Any = 0
    while at < end:
        code, skip = np.int64(data[at] & 63), np.int64(data[at] >> 6)
        at += 1
        if code == LONG_SKIP:
            told, at = _read_varint(data, at, end)
            if at == BAD:
                return word, CUT_OFF
            skip = np.int64(min(told, np.uint64(len(words) + 1)))
        elif code > SKIPS:
            skip += SHORT * (code - SKIPS)
        if word + skip + (code <= SKIPS) > len(words):
            return word, TOO_LONG
        for one in range(word, word + skip):
            other = like[one]
            if other >= 0 and words[other] != empty[other]:
                words[one] = words[other]
            elif one != NEWEST:
                words[one] = empty[one]
        word += skip
        if code > SKIPS:
            continue
        n = _payload_of(code)
        if at + n > end:
            return word, CUT_OFF
        told = np.uint64(0)
        for byte in range(n):
            told |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
        at += n
        if code < FIRST_PLACE:
            numbers[word] = code + 1.0
        elif code < NEVER_CODE:
            words[word] = table[code - FIRST_PLACE]
        elif code == NEVER_CODE:
            words[word] = NEVER
        elif code <= BEFORES:
            words[word] = np.int64(told << np.uint64(8 * (8 - n)))
        elif code <= HUNDREDTHS:
            words[word] = np.int64(newest - told)
        else:
            numbers[word] = _of_hundredths(told)
        value = words[word]
        if n > 0:
            table[_place(value)] = value
        if most[word] != ANY and not 0 <= value <= most[word]:
            return word, TOO_MANY
        word += 1
    return word, READABLE if word == len(words) else CUT_OFF


@uncounted()
def _unpack_pairs(data: Bytes, at: int, end: int, words: Ints, entity: int, most: int) -> tuple[int, int]:
    """A memory of ids. How many words it has, and what is wrong with it."""
    newest, at = _read_varint(data, at, end)
    if at == BAD:
        return 0, CUT_OFF
    count, at = _read_varint(data, at, end)
    if at == BAD:
        return 0, CUT_OFF
    if count > np.uint64(most):
        return 0, TOO_MANY
    length: Any = MEMORY_HEADER_WORDS + MEMORY_WORDS * np.int64(count)
    words[entity + NEWEST], words[entity + MEMORY_COUNT] = np.int64(newest), np.int64(count)
    for pair in range(entity + MEMORY_HEADER_WORDS, entity + length, MEMORY_WORDS):
        if at + 8 > end:
            return 0, CUT_OFF
        word = np.uint64(0)
        for byte in range(8):
            word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
        before, at = _read_varint(data, at + 8, end)
        if at == BAD:
            return 0, CUT_OFF
        words[pair], words[pair + 1] = np.int64(word), np.int64(newest - before)
    return length, READABLE if at == end else TOO_LONG


_UNPACK = types.void(READ_BYTES, READ_INTS, READ_INTS, _I1, _F1, READ_INTS, READ_INTS, _I1, _I1, _I1, _I2, _I1, _I1, _I1)


@uncounted(_UNPACK, cache=True)
def unpack_all(  # what `unpack` does, for those who are compiled themselves
    data: Bytes,
    starts: Ints,
    ends: Ints,
    words: Ints,
    numbers: Any,
    entities: Ints,
    kinds: Ints,
    empty: Ints,
    like: Ints,
    most: Ints,
    of_kinds: Matrix,
    table: Ints,
    n_words: Ints,
    faults: Ints,
) -> None:
    """Read all rows that are not null: how many words each has, and what is wrong with it."""
    for i in range(len(starts)):
        if starts[i] < 0:
            continue
        entity, layout, n = entities[i], of_kinds[kinds[i], START], of_kinds[kinds[i], LENGTH]
        if of_kinds[kinds[i], PAIRS]:
            n, fault = _unpack_pairs(data, starts[i], ends[i], words, entity, (n - MEMORY_HEADER_WORDS) // MEMORY_WORDS)
        else:
            own, their = slice(entity, entity + n), slice(layout, layout + n)
            n, fault = _unpack_one(data, starts[i], ends[i], words[own], numbers[own], empty[their], like[their], most[their], table)
        n_words[i], faults[i] = n, fault


def unpack(rows: Varlen, words: Ints, entities: Ints, kinds: Ints, layouts: Layouts) -> tuple[Ints, Ints]:
    """
    Read rows of entities of these `kinds` into `words`, each from its place in `entities` on, where there is room for all that an entity
    of its kind may have. Returns how many words each has (0 for null), and what is wrong with it (READABLE, or its place in FAULTS), in
    which case its words mean nothing. Any bytes may be given: nothing beyond them is read, nothing beyond that room is written.
    """
    n_words, faults = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    unpack_all(
        rows.data,
        rows.starts,
        rows.ends,
        words,
        words.view(np.float64),
        entities,
        kinds,
        layouts.empty,
        layouts.like,
        layouts.most,
        layouts.kinds,
        np.empty(TABLE, np.int64),
        n_words,
        faults,
    )
    return n_words, faults
