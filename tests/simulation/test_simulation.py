"""A small dose of `make simulate`: some seeds of every arrangement, with everything that may go wrong in them."""

from __future__ import annotations

from collections import Counter

from tests.simulation.run import stretch
from tests.simulation.simulation import TOPOLOGIES, simulate
from tests.simulation.world import installed

SEEDS = range(1, 201)


def test_nothing_is_violated_whatever_goes_wrong():
    """
    Outputs, copies, rows, dead letters and counts are right at the end of every run, and every arrangement was run, with faults.
    """
    tally = stretch(SEEDS)
    assert [(run.seed, run.violations) for run in tally.violated] == []
    assert Counter(dict.fromkeys(TOPOLOGIES, 5)) <= tally.runs
    assert tally.faults > tally.requests / 30


def test_a_seed_repeats_exactly():
    """
    Two runs of one seed tell the same story, line by line.
    """
    told: list[list[str]] = [[], []]
    with installed():
        for lines in told:
            for seed in range(300, 312):
                simulate(seed, lines.append)
    assert told[0] == told[1]
    assert len(told[0]) > 100
