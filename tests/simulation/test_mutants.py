"""The checks of the simulator notice each deliberate break, and nothing where nothing is broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulation.mutants import HARMLESS, MUTANTS, Mutant
from tests.simulation.run import caught

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"
NEARBY = 100  # any change of the code that sends one request more or less gives every seed another story


def seeds() -> dict[str, int]:
    """The seed that caught each mutant, as the page has it."""
    return {name: int(seed) for name, seed in re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d+) \| [^|]+ \| [^|]+ \|$", PAGE.read_text(), re.M)}


def test_the_page_has_every_mutant():
    """
    docs/simulation.md names each, with the seed that caught it.
    """
    assert sorted(mutant.name for mutant in MUTANTS) == sorted(seeds())
    assert len(MUTANTS) >= 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_break_is_noticed(mutant: Mutant):
    """
    At the seed that noticed it before, or at one of the next.
    """
    assert caught(mutant, seeds()[mutant.name], NEARBY) is not None


def test_what_breaks_nothing_is_not_noticed():
    """
    A change without effect, put in place as the mutants are, passes every check.
    """
    assert caught(HARMLESS, 1, 40) is None
