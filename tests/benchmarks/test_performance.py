"""What `make bench` makes of what it saw: slopes, turns, the page, and the data's own answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.performance import backfill
from benchmarks.performance.__main__ import in_turn
from benchmarks.performance.hops import Differs
from benchmarks.performance.meter import Sample, TooSlow, slope
from benchmarks.performance.page import write_page
from benchmarks.performance.payments import CARDS, Payments


def test_start_up_is_no_part_of_the_slope():
    """
    Five seconds before the first output, then ten microseconds an event.
    """
    samples = [Sample(at / 10, max(0, (at - 50) * 1_000), {"client": 5.0 + max(0, at - 50) * 0.01}) for at in range(151)]
    cost = slope(samples, 100_000)
    assert cost.us["client"] == pytest.approx(10.0)
    assert cost.rate == pytest.approx(10_000)
    assert cost.outputs == 90_000


def test_outputs_that_come_all_at_once_are_no_measurement():
    """
    Between two samples there is no slope.
    """
    with pytest.raises(TooSlow, match="take more events"):
        slope([Sample(0.0, 0, {"client": 0.0}), Sample(0.1, 100, {"client": 1.0})], 100)


def test_every_round_turns_the_order_round():
    """
    A B, B A, A B: whoever profits from being last profits half of the time.
    """
    orders = [order for _, order in in_turn(3)]
    assert orders[0] == orders[1][::-1] == orders[2]
    assert orders[0][0] is None


def test_what_the_plain_program_says_of_payments():
    """
    A card's earlier payments within a day, and none of another card's.
    """
    payments = Payments(3_000)
    payments.__dict__["cards"] = np.array([7, 8, 7, 7] + [9] * 2_996) % CARDS
    payments.__dict__["amounts"] = np.array([1.0, 5.0, 2.5, 4.0] + [1.0] * 2_996)
    assert payments.rows[:4].tolist() == [[0, 0, 1.0], [0, 0, 5.0], [1, 1.0, 2.5], [2, 3.5, 4.0]]


def test_backfilled_rows_are_the_plain_programs(tmp_path: Path):
    """
    By the command that a user has; a row that differs is no measurement.
    """
    payments, file, out = Payments(30_000), tmp_path / "payments.parquet", tmp_path / "rows"
    backfill.write(payments, file)
    taken = backfill.run(file, out)
    assert 0 < taken.cpu_s < taken.seconds + 1
    backfill.check(out, payments)
    (rows,) = out.iterdir()
    frame = pl.read_parquet(rows)
    frame.with_columns(row=pl.when(pl.col("offset") == 7).then(pl.col("row").reverse()).otherwise("row")).write_parquet(rows)
    with pytest.raises(Differs, match="or not what they should be"):
        backfill.check(out, payments)
    with pytest.raises(Differs, match="ended with 1"):
        backfill.run(file, out)


def test_the_page_tells_medians_and_leaves_out_what_failed(tmp_path: Path):
    """
    A hop that gave wrong outputs has no figure.
    """
    hop = {"outputs": 1, "seconds": 1.0, "rate": 1}
    systems = [
        {"round": number, "system": "driftline", "hops": {"feature": {**hop, "us": {"client": us, "broker": 2.0, "store": 1.0}}}}
        for number, us in enumerate((9.0, 7.0, 8.0))
    ]
    systems.append({"round": 0, "system": "Faust", "hops": {"feature": {"failed": "rows: 3 differ"}}})
    machine = {"cpus": 2, "cpu": "a processor", "memory_gib": 4, "python": "3.12.0", "versions": {"numpy": "2.4.6"}}
    found = {"command": "make bench", "began": "2026-01-01T00:00:00", "seconds": 1, "events": 10, "rounds": 3, "machine": machine}
    write_page({**found, "hops": systems}, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| feature | 8.0 | 7.5 | 2.0 | 1.0 | 1 |" in page
    assert "| Faust |  |  |  |" in page
