"""Distributions from what the partitions of drift counted: added up, once each, with a limit."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from driftline.operate.windows import WINDOWS_MAX, Group, Windows
from driftline.stream.batch import Batch, Table, Varlen

DAY = 86_400_000


def batch(*summaries: tuple[str, int, int, Any]) -> Batch:
    """Summaries as kind, partition, day and body."""
    n = len(summaries)
    columns = {
        "kind": Varlen.of([kind for kind, *_ in summaries]),
        "partition": np.array([partition for _, partition, *_ in summaries]),
        "start": np.array([day * DAY for _, _, day, _ in summaries]),
        "body": Varlen.of([body if isinstance(body, bytes) else msgspec.json.encode(body) for *_, body in summaries]),
    }
    return Batch(0, 0, n, {"summary": Table("summary", np.arange(n), columns)})


def inputs(*counts: int) -> dict[str, Any]:
    """Rows of the model d."""
    return {"inputs": {"d": {"rows": sum(counts), "bins": {"wind": list(counts)}}}}


def test_partitions_add_up_and_a_copy_counts_once() -> None:
    """
    Of the newest windows in which the model was served anything.
    """
    windows = Windows()
    windows.take(batch(("answers", 0, 1, inputs(1, 0)), ("answers", 1, 1, inputs(2, 5)), ("answers", 0, 1, inputs(1, 0))))
    windows.take(batch(("answers", 0, 2, inputs(0, 3)), ("answers", 0, 3, inputs(0, 0))))
    assert windows.inputs("d", 7).bins == {"wind": [3, 8]}
    assert windows.inputs("d", 1).bins == {"wind": [0, 3]}
    assert windows.inputs("nobody", 7).rows == 0


def test_matured_answers_are_grouped_by_score() -> None:
    """
    The middle of the log odds is 0.5; a group without answers is left out.
    """
    quality = {"role": "champion", "model": "m", "digest": "d", "positive_bins": {"200": 6, "0": 1}, "negative_bins": {"200": 2}}
    windows = Windows()
    windows.take(batch(("examples", 0, 1, {"models": {"champion|d": quality}})))
    low, middle = windows.reliability("champion", "d", 28)
    assert (low.rows, low.positives, middle.rows, middle.positives) == (1, 1, 8, 6)
    assert (low.predicted, middle.predicted) == (pytest.approx(0, abs=1e-4), pytest.approx(0.506, abs=1e-3))
    assert windows.reliability("canary", "d", 28) == []


def test_what_is_no_summary_is_passed_over() -> None:
    """
    Drift refuses it, and says so among the dead letters.
    """
    windows = Windows()
    bad = {"models": {"champion|d": {"role": "champion", "model": "m", "digest": "d", "positive_bins": {"nowhere": 1}}}}
    windows.take(batch(("answers", 0, 1, b"{"), ("answers", 1, 1, inputs(1)), ("answers", 2, 1, inputs(1, 2)), ("examples", 0, 1, bad)))
    assert windows.inputs("d", 7).bins == {"wind": [1]}
    assert windows.reliability("champion", "d", 28) == []


def test_there_is_a_limit() -> None:
    """
    The oldest windows go.
    """
    windows = Windows()
    windows.take(batch(*(("answers", 0, day, inputs(1)) for day in range(WINDOWS_MAX + 3))))
    assert windows.inputs("d", WINDOWS_MAX + 3).rows == WINDOWS_MAX


def test_a_share_may_as_well_be_what_its_interval_says() -> None:
    """
    Wilson's, by the worked numbers of 8 of 10; it stays within 0 and 1.
    """
    low, high = Group(10, 8, 0.7).bounds
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert Group(5, 5, 0.9).bounds[1] == 1.0
