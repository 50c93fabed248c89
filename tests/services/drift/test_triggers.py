"""When drift asks for a new model: each reason, and what holds it back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from driftline.judge.charts import Cusum
from driftline.judge.summaries import Arm
from services.drift.triggers import Attempt, Champion, Retraining, new_champion, trigger_of

DAY_MS = 86_400_000
BEGAN_MS = 15_700 * DAY_MS


@pytest.fixture
def plan(pipeline: Any) -> Any:
    return pipeline.retrain


def champion(alarmed: bool = False) -> Champion:
    return Champion("one", "flights-1", 3, BEGAN_MS, Cusum(0.25, 6.67), alarmed=BEGAN_MS if alarmed else None)


def attempted(day: int, rows: int = 1_000, outcome: str = "accepted") -> Retraining:
    retraining = Retraining()
    retraining.take("flights-first", outcome, BEGAN_MS + day * DAY_MS, rows)
    return retraining


def reason(plan: Any, retraining: Retraining, champion: Champion | None, day: int, trainable: int = 1_000) -> str | None:
    found = trigger_of(plan, retraining, champion, began=BEGAN_MS, now=BEGAN_MS + day * DAY_MS, trainable=trainable)
    return found[0] if found else None


def test_first_model_is_asked_for_after_the_declared_time(plan: Any) -> None:
    """
    Fourteen days from the start of the first window.
    """
    assert reason(plan, Retraining(), None, 13) is None
    assert reason(plan, Retraining(), None, 14) == "first"


def test_first_model_is_asked_for_again_when_it_was_refused(plan: Any) -> None:
    """
    Once the cooldown of the attempt is over.
    """
    refused = attempted(14, outcome="refused")
    assert [reason(plan, refused, None, day) for day in (15, 20, 21)] == [None, None, "first"]


def test_alarm_of_the_chart_asks_for_a_model(plan: Any) -> None:
    """
    With its evidence: the chart as it stands.
    """
    found = trigger_of(plan, attempted(14), champion(alarmed=True), began=BEGAN_MS, now=BEGAN_MS + 22 * DAY_MS, trainable=1_000)
    assert found is not None
    assert found[0] == "quality"
    assert found[1]["chart"]["alarm"] is True
    assert found[1]["trainable_rows"] == 1_000


def test_enough_new_labels_ask_for_a_model(plan: Any) -> None:
    """
    One and a half times the rows of the last attempt.
    """
    assert reason(plan, attempted(14), champion(), 22, trainable=1_499) is None
    assert reason(plan, attempted(14), champion(), 22, trainable=1_500) == "new_labels"


def test_enough_time_asks_for_a_model(plan: Any) -> None:
    """
    Twenty-eight days from the last attempt, whoever made it.
    """
    assert reason(plan, attempted(14), champion(), 41) is None
    assert reason(plan, attempted(14), champion(), 42) == "schedule"


def test_reasons_have_an_order(plan: Any) -> None:
    """
    One command a report: quality before new labels before schedule.
    """
    assert reason(plan, attempted(14), champion(alarmed=True), 50, trainable=9_000) == "quality"
    assert reason(plan, attempted(14), champion(), 50, trainable=9_000) == "new_labels"


@pytest.mark.parametrize("outcome", ["accepted", "refused", "failed"])
def test_nothing_is_asked_within_the_cooldown_of_the_last_attempt(plan: Any, outcome: str) -> None:
    """
    However it ended.
    """
    found = [reason(plan, attempted(14, outcome=outcome), champion(alarmed=True), day) for day in (20, 21)]
    assert found == [None, "quality"]


def test_nothing_is_asked_while_a_command_is_unanswered(plan: Any) -> None:
    """
    Not even when everything speaks for it.
    """
    waiting = attempted(14)
    waiting.unanswered = "flights-quality-2013-01-26"
    assert reason(plan, waiting, champion(alarmed=True), 60) is None
    waiting.take("flights-quality-2013-01-26", "failed", BEGAN_MS + 30 * DAY_MS, 1_000)
    assert reason(plan, waiting, champion(alarmed=True), 60) == "quality"


def test_command_that_was_not_trained_is_no_attempt_but_is_not_repeated_daily(plan: Any) -> None:
    """
    Out of budget: asked again after a cooldown; rows and time of the last attempt stay.
    """
    retraining = attempted(14)
    retraining.unanswered = "flights-quality-2013-01-26"
    retraining.take("flights-quality-2013-01-26", "budget", BEGAN_MS + 30 * DAY_MS, 5_000)
    assert retraining.attempt == Attempt(BEGAN_MS + 14 * DAY_MS, 1_000, "accepted")
    assert [reason(plan, retraining, champion(alarmed=True), day) for day in (31, 36, 37)] == [None, None, "quality"]


def test_operators_command_counts_as_attempt(plan: Any) -> None:
    """
    Its cooldown and its rows hold for the automatic ones too.
    """
    retraining = attempted(14)
    retraining.take("by hand", "refused", BEGAN_MS + 40 * DAY_MS, 4_000)
    assert [reason(plan, retraining, champion(), day, trainable=5_000) for day in (42, 47, 68)] == [None, None, "schedule"]


def test_chart_of_a_new_champion_has_the_declared_run_length(plan: Any) -> None:
    """
    One hundred and eighty days of one block make a limit of about 6.67; with blocks of half a day it is higher.
    """
    daily, twice = (new_champion(Arm("champion", "m", "one", 1, 0), 0, plan, block) for block in (DAY_MS, DAY_MS // 2))
    assert daily.cusum.limit == pytest.approx(6.67, abs=0.02)
    assert twice.cusum.limit > daily.cusum.limit
    assert daily.cusum.k == 0.25


def test_alarm_stands_until_another_champion_comes() -> None:
    """
    Good days do not take it back.
    """
    chart = champion()
    for day in range(10):
        chart.judge(2.0, BEGAN_MS + day * DAY_MS)
    alarmed = chart.alarmed
    for day in range(10, 60):
        chart.judge(-0.2, BEGAN_MS + day * DAY_MS)
    assert chart.cusum.high == 0.0
    assert alarmed == chart.alarmed == BEGAN_MS + 3 * DAY_MS
    assert chart.chart()["alarm"] is True


def test_detectors_that_are_evidence_raise_no_alarm() -> None:
    """
    A jump that ADWIN and Page-Hinkley see, but the CUSUM's limit bears, asks for nothing.
    """
    chart = Champion("one", "flights-1", 3, BEGAN_MS, Cusum(0.25, 1_000.0))
    for day in range(80):
        chart.judge(0.0 if day < 40 else 6.0, BEGAN_MS + day * DAY_MS)
    assert set(chart.evidence) == {"adwin", "page_hinkley"}
    assert chart.alarmed is None


def test_champion_survives_its_encoding() -> None:
    """
    What the store gives back judges on as if nothing had been.
    """
    chart = champion()
    for day in range(10):
        chart.judge(0.9, BEGAN_MS + day * DAY_MS)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(chart, order="sorted"), type=Champion) == chart
