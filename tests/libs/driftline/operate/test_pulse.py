"""Rates, ages and broken promises from what services show of themselves."""

from __future__ import annotations

import pytest

from driftline.local.progress import Sample
from driftline.operate.pulse import Hop, Pulse, hops_in

PLACE = ("feature", "flights-events")


def sample(name: str, value: float, **labels: str) -> Sample:
    """Of one service and topic."""
    return Sample(f"driftline_{name}", {"pipeline": "flights", "service": PLACE[0], "topic": PLACE[1], **labels}, value)


def test_partitions_and_outcomes_are_added_up() -> None:
    """
    The oldest record and the longest stillness count; a partition that is caught up is not still, however long it has not moved.
    """
    samples = [
        sample("messages_read_total", 12.0),
        sample("messages_total", 9.0, outcome="applied"),
        sample("messages_total", 3.0, outcome="dead_lettered"),
        sample("lag_seconds", 1.0, partition="0"),
        sample("lag_seconds", 4.0, partition="1"),
        sample("lag_messages", 5.0, partition="0"),
        sample("lag_messages", 0.0, partition="1"),
        sample("progress_timestamp_seconds", 940.0, partition="0"),
        sample("progress_timestamp_seconds", 100.0, partition="1"),
    ]
    (found,) = hops_in([samples], 1_000.0).values()
    assert found == Hop(read=12.0, settled=12.0, refused=3.0, age_s=4.0, still_s=60.0, processes=1)
    assert found.is_still and not found.is_unbalanced


def test_a_rate_is_of_the_last_seconds() -> None:
    """
    None at the first look, and after a service began to count from nothing again; old looks are forgotten.
    """
    pulse = Pulse()
    rates = []
    for at_s, read in ((0, 0), (2, 20), (100, 1_000), (105, 1_500), (107, 10)):
        pulse.take({PLACE: Hop(read=read, settled=read)}, at_s)
        rates.append(pulse.hops()[PLACE].rate)
    assert rates == [None, 10.0, pytest.approx(980 / 98), 100.0, None]
    assert Pulse().hops() == {}


def test_of_several_processes_the_sum_counts_while_as_many_tell_it() -> None:
    """
    One that does not answer at one look has not read anything in between: there is no rate across it.
    """
    pulse = Pulse()
    rates = []
    for at_s, told in ((0, (40, 40)), (1, (41,)), (2, (42, 42)), (9, (49, 49)), (12, (52, 52))):
        pulse.take(hops_in([[sample("messages_read_total", float(read))] for read in told], 0.0), at_s)
        rates.append(pulse.hops()[PLACE].rate)
    assert rates == [None, None, 2.0, 2.0, 2.0]


def test_sums_that_differ_for_a_minute_are_a_broken_promise() -> None:
    """
    Not while a batch is in hand: once they agree, the time starts again.
    """
    pulse = Pulse()
    broken = []
    for at_s, settled in ((0, 9), (40, 10), (50, 9), (100, 9), (111, 9)):
        pulse.take({PLACE: Hop(read=10, settled=settled)}, at_s)
        broken.append(pulse.hops()[PLACE].is_unbalanced)
    assert broken == [False, False, False, False, True]
