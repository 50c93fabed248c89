"""
Entities are found again by kind and key, however many there are, and saved as they are.
"""

from __future__ import annotations

import numpy as np
import pytest

from driftline.errors import Invalid
from driftline.features.entities import ABSENT, Entities
from driftline.features.tiles import NEVER, NONE
from driftline.stream.batch import Varlen

VIEW = np.array([NEVER, 7, 8], np.int64)
MEMORY = np.array([0, NEVER, 0, 0, 0, 0], np.int64)  # room for two ids


def made() -> Entities:
    return Entities([b"card:", b"shop:", b"ids:payments:"], [VIEW, VIEW[:2], MEMORY], memories=2)


def test_an_entity_is_found_by_its_kind_and_key() -> None:
    """
    The same key of another kind is another entity; unknown keys are absent, null keys are none.
    """
    entities = made()
    entities.add([(0, b"a")], [None])
    entities.add([(1, b"a")], [None])
    keys = Varlen.of([b"a", b"b", b"a"])
    keys.starts[2] = -1
    assert entities.find(0, keys).tolist() == [0, ABSENT, NONE]
    assert entities.find(1, keys).tolist() == [1, ABSENT, NONE]


def test_thousands_of_entities_keep_their_places() -> None:
    """
    Words, keys and table grow by doubling, and everything is still found with its own words.
    """
    entities = made()
    names = [f"entity-{n}".encode() for n in range(10_000)]
    for n, name in enumerate(names):
        entities.add([(0, name)], [np.array([n, n, n], "<i8").tobytes()])
    slots = entities.find(0, Varlen.of(names))
    assert slots.tolist() == list(range(10_000))
    assert entities.words[entities.base[slots]].tolist() == list(range(10_000))
    assert entities.count == 10_000


def test_rows_are_saved_under_their_names_and_taken_back_as_they_were() -> None:
    """
    What `rows` gives, `add` takes, and gives again.
    """
    entities = made()
    entities.add([(0, b"a")], [None])
    entities.words[entities.base[0] + 1] = 99
    rows = entities.rows(np.array([0]))
    assert rows == {b"card:a": np.array([NEVER, 99, 8], "<i8").tobytes()}
    again = made()
    again.add([(0, b"a")], [rows[b"card:a"]])
    assert again.rows(np.array([0])) == rows


def test_the_row_of_a_memory_is_as_long_as_what_it_remembers() -> None:
    """
    Room that is not used is not saved.
    """
    entities = made()
    entities.add([(2, b"a")], [None])
    assert len(entities.rows(np.array([0]))[b"ids:payments:a"] or b"") == 16
    entities.words[entities.base[0]] = 1
    assert len(entities.rows(np.array([0]))[b"ids:payments:a"] or b"") == 32


def test_a_row_of_another_length_is_refused() -> None:
    """
    It was made by another definition, and is named.
    """
    with pytest.raises(Invalid, match="'card:a' has 2 words where 3 belong"):
        made().add([(0, b"a")], [bytes(16)])
    with pytest.raises(Invalid, match="another definition"):
        made().add([(2, b"a")], [bytes(8 * 7)])


def test_slots_are_told_once_in_order_of_first_occurrence() -> None:
    """
    A batch writes each entity that it touched once.
    """
    entities = made()
    for name in (b"a", b"b", b"c"):
        entities.add([(0, name)], [None])
    assert entities.distinct(np.array([2, 0, 2, 1, 0, 9]), 5).tolist() == [2, 0, 1]
    assert entities.distinct(np.array([2, 2]), 2).tolist() == [2]


def test_clearing_forgets_everything_and_says_so() -> None:
    """
    After `clear` nothing is found, and the generation has changed.
    """
    entities = made()
    entities.add([(0, b"a")], [None])
    before = entities.generation
    entities.clear()
    assert entities.find(0, Varlen.of([b"a"])).tolist() == [ABSENT]
    assert entities.generation > before
    assert entities.count == 0
