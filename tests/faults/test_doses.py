"""What the doses are made of: plans with the counts that were asked for, slices without a gap, a cut that is a cut."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from aof import cut_tail
from doomed import STEPS
from doses import STEPS_OF
from feeder import slices
from parts import kills

from driftline.local.faults import DUPLICATE, Declared, Mix, Outgoing, placed

TICK_MS, DAY_MS = 600_000, 86_400_000


def messages(n: int) -> list[Outgoing]:
    return [Outgoing(None, b"{}", str(number)) for number in range(n)]


def test_half_of_the_kills_are_at_steps_and_each_step_comes():
    """
    Of two hundred kills a hundred are at named steps, in turn.
    """
    planned = list(kills("feature", 200, np.random.default_rng(1)))
    told = Counter(step for _, step, _ in planned)
    assert len(planned) == 200
    assert told[""] == 100
    assert set(told) - {""} == set(STEPS)
    assert min(told[step] for step in STEPS) >= 16


def test_every_step_that_a_service_is_given_is_one_that_there_is():
    """
    A name that no wrapper knows would never be reached.
    """
    assert {step for steps in STEPS_OF.values() for step in steps} == set(STEPS)


def test_slices_are_whole_ticks_and_hold_everything_once():
    """
    A day is cut at ticks, its last slice ends it, and no message falls out.
    """
    chance = np.random.default_rng(2)
    timed = sorted(((int(chance.integers(DAY_MS)), "t", 0, one) for one in messages(500)), key=lambda one: one[0])
    found = list(slices(timed, 0, TICK_MS, 20))
    assert [one for _, part in found for one in part] == timed
    assert found[-1][0] == DAY_MS
    assert all(end % TICK_MS == 0 for end, _ in found)
    assert all(at < end for end, part in found for at, *_ in part)
    assert all(len(part) >= 20 for _, part in found[:-1])


def test_a_mix_goes_wrong_as_much_as_it_says():
    """
    Ten percent twice, five percent late, and nothing is lost by being moved.
    """
    n = 10_000
    visible = np.arange(n, dtype=np.int64) * 10_000
    declared = Declared({"fields": []}, "id", "visible")
    order = placed(messages(n), [], declared, DAY_MS, np.random.default_rng(3), Mix(0.1, 0.1, 0.05), visible)
    first = [one for _, one in order if one.fault != DUPLICATE]
    assert sorted(int(one.id) for one in first) == list(range(n))
    assert 0.09 < (len(order) - n) / n < 0.11
    late = sum(place - int(one.id) > 60 for place, one in order if one.fault != DUPLICATE)
    assert 0.04 < late / n < 0.06


def test_the_end_of_the_growing_file_is_cut_and_no_other(tmp_path: Path):
    """
    As many bytes as asked for; of a store that has no base yet, at most half.
    """
    base, old, growing = (tmp_path / f"appendonly.aof.{name}" for name in ("1.base.rdb", "9.incr.aof", "10.incr.aof"))
    base.write_bytes(b"b" * 5_000)
    old.write_bytes(b"o" * 100)
    growing.write_bytes(b"0123456789")
    assert cut_tail(tmp_path, 4) == 4
    assert growing.read_bytes() == b"012345"
    assert cut_tail(tmp_path, 1_000) == 6
    assert len(old.read_bytes()) == 100
    growing.write_bytes(b"0123456789")
    base.write_bytes(b"")
    assert cut_tail(tmp_path, 1_000) == 5
