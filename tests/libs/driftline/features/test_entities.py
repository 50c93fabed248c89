"""
Entities are found again by kind and key, however many there are, and saved as they are.
"""

from __future__ import annotations

import numpy as np
import pytest

from driftline.errors import Invalid
from driftline.features.entities import ABSENT, Entities
from driftline.features.packing import Layout
from driftline.features.tiles import NEVER, NONE
from driftline.stream.batch import Varlen

VIEW = Layout.plain(np.array([NEVER, 7, 8], np.int64))
SHORTER = Layout.plain(VIEW.empty[:2])
MEMORY = Layout.memory(2)


def made() -> Entities:
    return Entities([b"card:", b"shop:", b"ids:payments:"], [VIEW, SHORTER, MEMORY])


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


def test_whoever_remembers_what_was_found_is_told_that_it_may_be_another_place_now() -> None:
    """
    By the generation, which every change has of its own.
    """
    entities = made()
    generations = [entities.generation]
    for change in (lambda: entities.add([(0, b"a")], [None]), entities.clear, lambda: entities.add([(0, b"b"), (0, b"a")], [None, None])):
        change()
        generations.append(entities.generation)
    assert len(set(generations)) == len(generations)
    assert entities.find(0, Varlen.of([b"a", b"b"])).tolist() == [1, 0]


def test_thousands_of_entities_keep_their_places() -> None:
    """
    Words, keys and table grow by doubling, and everything is still found with its own words.
    """
    entities = made()
    names = [f"entity-{n}".encode() for n in range(10_000)]
    for n, name in enumerate(names):
        entities.add([(0, name)], [None])
        entities.words[entities.base[n]] = n
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
    again = made()
    again.add([(1, b"b"), (0, b"a")], [None, rows[b"card:a"]])
    assert again.words[again.base[1] : again.base[1] + 3].tolist() == [NEVER, 99, 8]
    assert again.rows(np.array([1])) == rows


def test_a_row_that_cannot_be_read_is_refused_and_none_of_its_batch_is_taken() -> None:
    """
    It is damaged, or was made by another definition, and is named.
    """
    entities = made()
    entities.add([(0, b"a")], [None])
    row = entities.rows(np.array([0]))[b"card:a"] or b""
    for fault, name, bad in (
        ("'card:b' ends before its last word does", (0, b"b"), row[:-1]),
        ("'card:b' ends before its last word does", (0, b"b"), b""),
        ("'shop:b' has more words than belong", (1, b"b"), row),
        ("'ids:payments:b' counts more than there is room for", (2, b"b"), bytes([7, 3])),
    ):
        with pytest.raises(Invalid, match=f"{fault}: it is damaged, or was made by another definition"):
            entities.add([(0, b"c"), name], [row, bad])
    assert entities.count == 1


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
