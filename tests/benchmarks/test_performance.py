"""What `make bench` makes of what it saw: slopes, turns, the page, and the data's own answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.performance import backfill
from benchmarks.performance.__main__ import PAGE, RESULTS, in_turn
from benchmarks.performance.hops import Differs
from benchmarks.performance.meter import Sample, TooSlow, slope
from benchmarks.performance.page import write_page
from benchmarks.performance.payments import CARDS, Payments
from benchmarks.performance.profiles import shares


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
    write_page({"events": 10, "machine": machine, "hops": systems}, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| feature | 8.0 | 7.5 | 2.0 | 1.0 | 1 |" in page
    assert "| Faust |  |  |  |" in page
    assert "| P1 | feature, µs an event | at most 7.5 | 8.0 | no |" in page
    assert "Not measured yet at these commits: parts, loops, latency" in page


def figures() -> dict[str, object]:
    """Of the shapes that the benchmarks give: some reach their goal, some do not."""
    machine = {"cpus": 2, "cpu": "a processor", "memory_gib": 4, "python": "3.12.0", "versions": {}}
    read = {"p50": 30.0, "p99": 60.0, "cpu": 20.0}
    slow = {"p50": 90.0, "p99": 99.0, "cpu": 80.0}
    runs = [
        {
            "chain": chain,
            "rate": 200,
            "half_load": True,
            "p50_ms": p50,
            "p99_ms": 10.0,
            "cpu_us": {"feature": 9.0},
            "batch": {"feature": 2.0},
        }
        for chain, p50 in (("driftline", 4.0), ("echo", 2.0))
    ]
    folds = [
        {"cards": cards, "entities_max": 500_000, "us": us, "store_us": 1.0, "loads": 0.5, "memory_mib": 400, "store_mib": 70}
        for cards, us in ((10_000, 2.0), (10_000_000, 2.5))
    ]
    workers = [{"processes": n, "rate": 100, "us": {"client": 4.0, "broker": 1.0, "store": 1.0}} for n in (1, 2)]
    return {
        "events": 10,
        "machine": machine,
        "measured": {"ledger": {"command": "make bench", "began": "2026-01-01T00:00:00", "seconds": 1, "commit": "abc"}},
        "parts": {"intake": {"whole": 2.0, "parts": {"poll": 0.5, "send": 1.0}}},
        "latency": {"highest": {"driftline": 400}, "runs": runs},
        "ledger": {"medians": {"on": 4.0, "off": 4.0}, "ratio": 1.0},
        "reads": {
            "cards": 9,
            "features": 12,
            "payments": 10,
            "checked": 3,
            "bytes_a_feature": 9.0,
            "used_memory_a_card": 200,
            "rows": {"card": {"key": 30, "value": 60}},
            "reads_us": {
                "1": {"features": read, "MGET": read, "MGET by redis-py": slow},
                "10": {"features": slow, "MGET": read, "MGET by redis-py": slow},
            },
        },
        "growth": {"entities": folds, "workers": workers},
        "backfill": {"events": 10, "rate": 1_200_000, "cpu_us": 0.8, "memory_mib": 390.0},
        "idle": {
            "rate": 200,
            "ms_a_second": {"idle": {"intake": 5.0}, "asked": {"intake": 50.0}},
            "services": {"idle": 20.0, "asked": 300.0},
        },
        "starts": {
            "rounds": 3,
            "medians": {"feature": {"ready_s": 1.2, "cpu_s": 1.0}, "inference": {"ready_s": 1.9, "cpu_s": 1.0}},
            "memory_mib": {"at rest": {service: {"worker": {"pss": 100.0}} for service in ("feature", "inference")}},
        },
    }


def profiled() -> dict[str, object]:
    """Of the shape that the profiler's benchmark gives."""
    load = {"us": {"feature": 9.0}, "batch": {"feature": 1.2}}
    loads = [
        {"rate": 200, **load, "work": {"feature": {"sockets": 0.6, "think": 0.4}}},
        {"rate": 900, **load, "work": {"feature": {"store": 1.0}}},
    ]
    return {"seconds": 3.0, "loads": loads, "imports_ms": {"feature": {"numba": 500.0, "numpy": 90.0}}}


def test_time_is_told_by_the_innermost_frame_that_says_what_is_done():
    """
    As py-spy writes its samples: a sort within a decoder is decoding, a write is a write whoever asked for it, and waiting is no work.
    """
    loop = "main (driftline/cli.py:1);_run_once (asyncio/base_events.py:9)"
    worker = f"{loop};_Session.round (driftline/stream/worker.py:300)"
    raw = [
        f"{worker};Decoder.decode (driftline/features/events.py:3);sort (numpy/core.py:1) 3",
        f"{worker};Store.ask (driftline/stream/store.py:3);_SelectorSocketTransport.write (asyncio/selector_events.py:1) 2",
        f"{loop};EpollSelector.select (selectors.py:468) 90",
        f"{loop} 4",
        "main (driftline/cli.py:1) 1",
    ]
    assert shares("\n".join(raw)) == {"event loop": 0.4, "decode": 0.3, "sockets": 0.2, "rest": 0.1}


def test_the_page_says_of_each_goal_whether_it_is_met(tmp_path: Path):
    """
    Every section of the page; of what is missed, what would be next.
    """
    runs = [
        {"way": "gateway", "connections": 8, "rate": rate, "p50_ms": 2.0, "p99_ms": 3.0, "cpu_us": {"a": 4.0, "b": 5.0}}
        for rate in (90, 110)
    ]
    write_page({**figures(), "http": {"runs": runs}, "profiles": profiled()}, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    met = {line.split(" | ")[1]: line.endswith(" yes |") for line in page.splitlines() if line.startswith("| P")}
    assert met == {
        "event to prediction at half load, p50": False,
        "event to prediction at half load, p99": True,
        "effectively once against no ledger": True,
        "online read of 1, against MGET": True,
        "online read of 10, against MGET": False,
        "bytes a feature, key included": False,
        "fold of 10,000 to 10,000,000 entities": True,
        "two worker processes for one": True,
        "backfill over Parquet, events a second, one core": True,
        "all services idle, CPU a second": True,
        "all services at 200 questions a second, CPU a second": False,
        "feature ready, s": True,
        "inference ready, s": False,
    }
    assert "| 8 | gateway | 100 | 2.0 | 3.0 | 9 |" in page
    assert "| 200 | feature | 9.0 | 1.2 | 60 % | 40 % | 0 % |" in page
    assert [line.split("**")[1] for line in page.splitlines() if line.startswith("- **")] == ["P3", "P5", "P8", "P9"]
    assert "Not measured yet at these commits: hops, loops (" in page


def test_the_page_that_is_there_is_made_of_the_results_that_are_there(tmp_path: Path):
    """
    The figures of a real run, all of them, and nothing written by hand between.
    """
    write_page(json.loads((RESULTS / "performance.json").read_text()), tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
    assert "Not measured yet" not in PAGE.read_text()
