"""
Every word comes back as it was, whatever it is; and whatever bytes a store may hold, reading them touches nothing else.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.features.packing import CUT_OFF, READABLE, TOO_LONG, TOO_MANY, Layout, Layouts, pack, unpack
from driftline.features.tiles import MEMORY_COUNT, NEVER, NEWEST, NONE
from driftline.stream.batch import Ints, Varlen

NOW = 1_700_000_000_000
LOWEST, HIGHEST = -(2**63), 2**63 - 1
GUARD = 0x5EA1ED


def bits(number: float) -> int:
    """The word that a float64 is."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


SPECIAL = [0, 1, -1, NEVER, LOWEST, HIGHEST, NOW, NOW - 1, *map(bits, (-0.0, np.inf, -np.inf, np.nan)), bits(np.nan) + 1, -1 << 51]
words_of_any_kind = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(LOWEST, HIGHEST),
    st.floats(width=64).map(bits),
    st.integers(-(10**12), 10**12).map(lambda hundredths: bits(hundredths / 100)),
    st.integers(-20, 20).map(lambda whole: bits(float(whole))),
    st.integers(0, 2**42).map(lambda before: NOW - before),
)


def hole(layouts: Layouts, kinds: Ints) -> tuple[Ints, Ints]:
    """Room for entities of these kinds, guards between them, and where each begins."""
    lengths = layouts.kinds[kinds, 1]
    ends = np.cumsum(lengths + 1)
    return np.full(int(ends[-1]) + 1, GUARD, np.int64), ends - lengths


def guards(words: Ints, starts: Ints) -> list[int]:
    """What is before each entity, and behind the last one."""
    return [*words[starts - 1].tolist(), int(words[-1])]


def packed(layout: Layout, words: Any) -> bytes:
    """One row."""
    return pack(np.array(words, np.int64), np.array([0]), np.array([0]), Layouts.of([layout]))[0]


def read(layout: Layout, row: bytes) -> tuple[list[int], int]:
    """The words of a row, and what is wrong with it. Nothing beside them may have been written."""
    layouts, kinds = Layouts.of([layout]), np.array([0])
    words, starts = hole(layouts, kinds)
    n_words, faults = unpack(Varlen.of([row]), words, starts, kinds, layouts)
    assert guards(words, starts) == [GUARD, GUARD]
    return words[starts[0] : starts[0] + n_words[0]].tolist(), int(faults[0])


@st.composite
def layouts_of_any_kind(draw: st.DrawFn) -> Layout:
    """Words that are like earlier ones, or like nothing."""
    empty = draw(st.lists(st.sampled_from([0, NEVER, bits(np.nan)]), min_size=2, max_size=80))
    layout = Layout.plain(np.array(empty, np.int64))
    for word in range(len(empty)):
        if word != NEWEST and draw(st.booleans()):
            layout.like[word] = draw(st.sampled_from([NEWEST, *range(word)]))
    return layout


@st.composite
def entities(draw: st.DrawFn) -> tuple[list[Layout], Ints, list[list[int]]]:
    """Entities of several kinds: layouts, kinds, words."""
    layouts = draw(st.lists(layouts_of_any_kind(), min_size=1, max_size=3))
    layouts.append(Layout.memory(draw(st.integers(1, 8))))
    kinds = draw(st.lists(st.integers(0, len(layouts) - 1), min_size=1, max_size=6))
    return layouts, np.array(kinds, np.int64), [draw(words_of(layouts[kind])) for kind in kinds]


@st.composite
def words_of(draw: st.DrawFn, layout: Layout) -> list[int]:
    """Some of an entity's words are what is expected, some repeat another, the rest is anything."""
    words = layout.empty.tolist()
    for word in range(len(words)):
        other = draw(st.sampled_from(["as before", "like", "again", "new"]))
        if other == "like" and layout.like[word] != NONE:
            words[word] = words[layout.like[word]]
        elif other == "again":
            words[word] = words[draw(st.integers(0, word))]
        elif other == "new":
            words[word] = draw(words_of_any_kind)
    if layout.pairs:
        words[MEMORY_COUNT] = draw(st.integers(0, (len(words) - 2) // 2))
        words = words[: 2 + 2 * words[MEMORY_COUNT]]
    return words


@settings(max_examples=300)
@given(entities())
def test_words_come_back_as_they_were(some: tuple[list[Layout], Ints, list[list[int]]]) -> None:
    """
    Whatever the words, the layouts and the neighbours are: not-a-numbers with their bits, both zeros, times of any distance.
    """
    layouts, kinds, all_words = some
    joined = Layouts.of(layouts)
    words, starts = hole(joined, kinds)
    for start, own in zip(starts, all_words, strict=True):
        words[start : start + len(own)] = own
    rows = pack(words, starts, kinds, joined)
    again, places = hole(joined, kinds)
    n_words, faults = unpack(rows, again, places, kinds, joined)
    assert not faults.any()
    assert [again[place : place + n].tolist() for place, n in zip(places, n_words, strict=True)] == all_words
    assert guards(again, places) == [GUARD] * (len(kinds) + 1)
    one_by_one = [pack(words, starts[[at]], kinds[[at]], joined)[0] for at in range(len(kinds))]
    assert rows.tolist() == one_by_one


@settings(max_examples=100)
@given(st.data())
def test_a_row_that_was_cut_off_or_has_too_much_is_told(data: st.DataObject) -> None:
    """
    After any byte, and by any byte.
    """
    layout = data.draw(layouts_of_any_kind() | st.integers(1, 8).map(Layout.memory))
    row = packed(layout, data.draw(words_of(layout)) + [0] * len(layout.empty))
    for end in range(len(row)):
        assert read(layout, row[:end])[1] == CUT_OFF
    assert read(layout, row + data.draw(st.binary(min_size=1, max_size=3)))[1] in (TOO_LONG, CUT_OFF)


@settings(max_examples=500)
@given(st.binary(max_size=200), layouts_of_any_kind() | st.integers(1, 8).map(Layout.memory))
def test_any_bytes_may_be_read(row: bytes, layout: Layout) -> None:
    """
    They give words of the right number, or a fault; nothing beside the entity is written.
    """
    words, fault = read(layout, row)
    assert fault in (READABLE, CUT_OFF, TOO_LONG, TOO_MANY)
    if fault == READABLE:
        assert len(words) == (2 + 2 * words[MEMORY_COUNT] if layout.pairs else len(layout.empty))


@settings(max_examples=200)
@given(st.data())
def test_a_row_with_a_byte_changed_gives_words_or_a_fault(data: st.DataObject) -> None:
    """
    As `test_any_bytes_may_be_read`, from rows that are almost right.
    """
    layout = data.draw(layouts_of_any_kind() | st.integers(1, 8).map(Layout.memory))
    row = bytearray(packed(layout, data.draw(words_of(layout)) + [0] * len(layout.empty)))
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.integers(0, 255))
    words, fault = read(layout, bytes(row))
    assert fault != READABLE or len(words) <= len(layout.empty)


@pytest.mark.parametrize("count", [-1, 4, HIGHEST, LOWEST])
def test_a_count_beyond_its_room_is_told(count: int) -> None:
    """
    A loop would walk as far as it says.
    """
    layout = Layout.plain(np.array([0, NEVER, 0, 0], np.int64))
    free = packed(layout, [0, NOW, count, 0])
    layout.most[2] = 3
    assert read(layout, free)[1] == TOO_MANY
    assert read(layout, packed(layout, [0, NOW, 3, 0])) == ([0, NOW, 3, 0], READABLE)


def test_what_is_expected_takes_no_room() -> None:
    """
    A thousand words as they were before the first record, and as many that are like an earlier one.
    """
    empty = np.zeros(2_003, np.int64)
    empty[:3] = NEVER
    layout = Layout.plain(empty)
    layout.like[0] = NEWEST
    layout.like[1_003:] = np.arange(3, 1_003)
    words = empty.copy()
    words[:2] = NOW
    assert len(packed(layout, words)) == 6 + 3  # the time, and that 2,003 words are as expected
    words[3:6] = words[1_003:1_006] = [bits(1.0), bits(12.34), bits(16.0)]
    assert len(packed(layout, words)) == 6 + 1 + 3 + 1 + 3
    assert read(layout, packed(layout, words)) == (words.tolist(), READABLE)
