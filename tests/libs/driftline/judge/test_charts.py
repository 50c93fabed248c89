"""Charts signal when a process leaves its course, and the one that may act does so as rarely as declared."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from driftline.judge.charts import Adwin, Chart, Cusum, PageHinkley, Shewhart, Signal, cusum_limit, cusum_run_length


def signals(chart: Chart, values: list[float]) -> list[int]:
    """At which of `values` the chart signals."""
    return [at for at, value in enumerate(values) if chart.update(value) is not None]


def test_limit_for_180_blocks_is_that_of_the_published_charts() -> None:
    """
    An allowance of 0.25 and a two-sided run length of 180 blocks give a limit of about 6.67.
    """
    assert cusum_limit(0.25, 180) == pytest.approx(6.67, abs=0.02)


def test_run_length_agrees_with_a_published_table() -> None:
    """
    Page's one-sided CUSUM with k 0.5 and h 4 runs 336 blocks, with h 5 it runs 930 (Hawkins and Olwell, 1998).
    """
    assert cusum_run_length(0.5, 4.0) == pytest.approx(336, rel=0.01)
    assert cusum_run_length(0.5, 5.0) == pytest.approx(930, rel=0.01)


def test_limit_gives_back_the_run_length_it_was_made_for() -> None:
    """
    Limit and run length are inverse to one another, each side taking half of the false alarms.
    """
    assert cusum_run_length(0.25, cusum_limit(0.25, 90)) == pytest.approx(180, rel=1e-4)


def test_cusum_adds_up_small_shifts_to_either_side() -> None:
    """
    A shift of one deviation crosses the limit after as many blocks as the allowance leaves, upwards and downwards alike.
    """
    high, low = Cusum(0.25, 6.0), Cusum(0.25, 6.0)
    assert signals(high, [1.0] * 10) == [8, 9]
    assert signals(low, [-1.0] * 10) == [8, 9]


def test_cusum_names_the_side_that_crossed() -> None:
    """
    More positives than expected is high, fewer is low.
    """
    chart = Cusum(0.25, 1.0)
    assert chart.update(3.0) == Signal(2.75, 1.0, "high")
    assert Cusum(0.25, 1.0).update(-3.0) == Signal(2.75, 1.0, "low")


def test_cusum_forgets_what_the_process_makes_good() -> None:
    """
    Blocks on course take the sums back to zero, never below.
    """
    chart = Cusum(0.25, 6.0)
    for value in [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]:
        chart.update(value)
    assert (chart.high, chart.low) == (0.0, 0.0)


def test_shewhart_judges_each_value_alone() -> None:
    """
    Only values beyond three deviations signal, whatever came before.
    """
    assert signals(Shewhart(), [2.9, 2.9, 3.1, -3.1, 0.0]) == [2, 3]


def test_page_hinkley_signals_a_rising_mean() -> None:
    """
    A level that stays is no signal, a level that rises is.
    """
    assert signals(PageHinkley(), [0.1] * 50) == []
    assert min(signals(PageHinkley(), [0.1] * 50 + [3.0] * 10)) in range(50, 60)


def test_adwin_drops_what_is_older_than_the_change() -> None:
    """
    After a jump only values from after it are kept, and a constant process is never cut.
    """
    steady, jumping = Adwin(), Adwin()
    assert signals(steady, [0.5] * 100) == []
    assert signals(jumping, [0.0] * 40 + [5.0] * 20) != []
    assert min(jumping.values) == 5.0


def test_adwin_keeps_no_more_than_its_limit() -> None:
    """
    However long the process runs, the window is bounded.
    """
    chart = Adwin(values_max=50)
    for value in np.random.default_rng(3).normal(size=500).tolist():
        chart.update(value)
    assert len(chart.values) <= 50


@pytest.mark.parametrize("chart", [Shewhart(), Cusum(0.25, 2.0), PageHinkley(), Adwin()])
def test_chart_goes_on_from_what_was_stored(chart: Chart) -> None:
    """
    A chart stored and read back between any two blocks signals where one that was never stored does.
    """
    values = [*np.random.default_rng(1).normal(size=40).tolist(), *[4.0] * 20]
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(chart), type=type(chart))
    found = []
    for at, value in enumerate(values):
        kept = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=type(chart))
        if kept.update(value) is not None:
            found.append(at)
    assert found == signals(chart, values)
    assert found
