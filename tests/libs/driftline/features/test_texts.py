"""
Texts are hashed, written and joined without Python objects, and as Python would.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from driftline.contracts.avro import unpack_strings
from driftline.features import texts
from driftline.stream.batch import Varlen

NULL = Varlen(np.zeros(0, np.uint8), np.array([-1]), np.array([0]))


@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_whole_numbers_are_written_as_python_writes_them(numbers: list[int]) -> None:
    """
    Every integer of 64 bits, the smallest too, is its decimal text.
    """
    assert list(map(str, numbers)) == texts.decimals(np.array(numbers, np.int64)).texts()


@given(parts=st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=200), st.binary(max_size=5))))
def test_parts_of_a_key_are_joined_with_a_unit_separator(parts: list[tuple[bytes, ...]]) -> None:
    """
    A composite key is its parts in order, whatever their lengths.
    """
    columns = [Varlen.of(part[at] for part in parts) for at in range(3)]
    assert [b"\x1f".join(part) for part in parts] == texts.joined(columns).tolist()


def test_a_key_with_a_null_part_is_null() -> None:
    """
    Nothing is folded for an entity that has no name.
    """
    assert texts.joined([Varlen.of(["a"]), NULL]).starts.tolist() == [-1]
    assert texts.joined([NULL, Varlen.of(["a"])]).starts.tolist() == [-1]


@given(rows=st.lists(st.tuples(st.text(max_size=100), st.text(max_size=3)), min_size=1, max_size=5))
def test_arrays_of_texts_are_avros(rows: list[tuple[str, str]]) -> None:
    """
    What is written is read by the codec of the contracts.
    """
    columns = [Varlen.of(row[at] for row in rows) for at in range(2)]
    assert rows == [unpack_strings(value) for value in texts.arrays(columns, len(rows)).tolist()]


def test_an_array_of_nothing_is_empty_and_null_is_an_empty_text() -> None:
    """
    A pipeline without slices writes empty arrays; a slice that is null is there as an empty text.
    """
    assert [unpack_strings(value) for value in texts.arrays([], 2).tolist()] == [(), ()]
    assert unpack_strings(texts.arrays([NULL, Varlen.of(["b"])], 1)[0]) == ("", "b")


def test_hashes_tell_values_apart_and_never_say_null_of_one() -> None:
    """
    Different values have different hashes, the same value the same one, null has 0.
    """
    values = [str(n) for n in range(5_000)] + [""]
    hashes = texts.hashes(Varlen.of(values))
    assert len(set(hashes.tolist())) == len(values)
    assert 0 not in hashes
    assert hashes[7] == texts.hashes(Varlen.of(["xx", "7"]))[1]
    assert texts.hashes(NULL).tolist() == [0]


def test_codes_tell_numbers_apart_and_zero_is_zero_with_either_sign() -> None:
    """
    Equal numbers have one code, NaN has 0.
    """
    codes = texts.codes(np.array([0.0, -0.0, 1.0, 2.0, np.nan]))
    assert codes[0] == codes[1]
    assert len(set(codes.tolist())) == 4
    assert codes[4] == 0


ROWS = st.lists(st.tuples(st.binary(max_size=2), st.integers(-2, 2), st.sampled_from([0.0, 0.25, 1.0])))


@given(rows=ROWS)
def test_rows_that_are_alike_are_of_one_group_numbered_by_first_appearance(rows: list[tuple[bytes, int, float]]) -> None:
    """
    As a dict that remembers the order of its keys would number them.
    """
    known: dict[tuple[bytes, int, float], int] = {}
    expected = [known.setdefault(row, len(known)) for row in rows]
    columns = Varlen.of(row[0] for row in rows), np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows])
    codes, firsts = texts.groups(*columns)
    assert codes.tolist() == expected
    assert firsts.tolist() == [expected.index(code) for code in range(len(known))]


@given(values=st.lists(st.binary(max_size=5)), picked=st.lists(st.integers(0, 100)))
def test_compact_keeps_the_values_and_nothing_else(values: list[bytes], picked: list[int]) -> None:
    """
    Whatever was picked of a buffer, in whatever order.
    """
    places = [place % len(values) for place in picked] if values else []
    column = texts.compact(Varlen.of(values).take(np.array(places, np.int64)))
    assert column.tolist() == [values[place] for place in places]
    assert len(column.data) == sum(len(values[place]) for place in places)
