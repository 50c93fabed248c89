"""The live view: what it shows of a play made up of facts, and the folding of the facts."""

from __future__ import annotations

import io

import pytest

from driftline.clock import ManualClock
from driftline.contracts.messages import Arm, ClockRecord, Deployment, Release, Report, Trained
from driftline.local.live import Plain, Scene, Screen, make_view, picture, sparkline, status_line
from driftline.local.progress import Cohort, Meters, Progress, Sample, most_drifted, samples, total, weekly_auc

DAY = 86_400_000
START = 1_356_998_400_000  # 1 January 2013
SCENE = Scene("flights", START, 70, 10.0)


def report(day: int, **body: object) -> Report:
    return Report(START + day * DAY, START + (day + 1) * DAY, tuple(body.pop("retrains", ())), dict(body))  # type: ignore[call-overload]  # names


def quality(day: int, role: str, auc: float | None, rows: int = 100) -> dict[str, object]:
    return {"cohort": START + day * DAY, "role": role, "n": rows, "auc": auc, "log_loss": 0.5}


def played() -> Progress:
    """Ten days, a champion beside its frozen self, a candidate on a quarter of the keys."""
    progress = Progress()
    arms = (Arm("champion", "flights-1", "a", 0.75), Arm("canary", "flights-2", "b", 0.25))
    progress.take(
        Deployment(3, "canary", "canary", "a quarter of the keys", START + 9 * DAY, arms, (Arm("frozen", "flights-1", "a", 0.0),), "", 0.2)
    )
    for day in range(10):
        quality_of_day = [quality(day, "champion", 0.70 + day / 100), quality(day, "frozen", 0.7)]
        progress.take(
            report(day, quality=quality_of_day, inputs={"wind": {"psi": day / 10}, "hour": {"psi": None}}, alarms=[{}], trainable_rows=900)
        )
    progress.take(ClockRecord(START + 10 * DAY, 3, (), False))
    return progress


def test_weeks_are_weighted_by_rows():
    """
    A day with three times the rows counts three times; a day without an AUC does not count.
    """
    week = [Cohort(0, 100, 0.6, None), Cohort(DAY, 300, 0.8, None), Cohort(2 * DAY, 50, None, None)]
    assert weekly_auc([*week, Cohort(7 * DAY, 10, 0.5, None)]) == pytest.approx([0.75, 0.5])


def test_a_sparkline_rises_with_its_values_and_stays_within_its_bars():
    """
    The lowest and the highest bar are for whatever lies at the limits or beyond.
    """
    assert sparkline([0.0, 0.5, 1.0, 2.0, -1.0], 0.0, 1.0) == "▁▅██▁"
    assert sparkline([0.7, 0.7], 0.7, 0.7) == "▁▁"


def test_the_picture_names_day_models_quality_and_the_most_drifted_input():
    """
    Everything that an onlooker asks for is on it.
    """
    text = "\n".join(picture(SCENE, played(), Meters(read={"intake": 1234.0}, behind={"feature": 5.0}), 110))
    for shown in (
        "10 January 2013",
        "day 10 of 70",
        "1,234",
        "behind 5",
        "flights-2 (canary 25%)",
        "flights-1 (frozen)",
        "PSI 0.90",
        "wind",
    ):
        assert shown in text


def test_an_empty_play_can_be_drawn():
    """
    The first frames come before the first fact.
    """
    assert any("waiting for the first day" in line for line in picture(SCENE, Progress(), Meters(), 80))
    assert status_line(SCENE, Progress(), Meters()) == "waiting for the first day"


def test_an_input_without_a_distance_is_never_the_most_drifted():
    """
    Too few rows give no PSI.
    """
    progress = played()
    assert "hour" not in progress.psi
    found = most_drifted(progress.psi)
    assert found is not None and found[0] == "wind"


def test_everything_that_happens_is_told_once_in_plain_lines():
    """
    Moves, verdicts, commands and held commands become lines; an answer of the rollout that moved nothing does not.
    """
    clock, out = ManualClock(), io.StringIO()
    progress = Progress()
    progress.take(Deployment(0, "nothing", "none", "there is no model yet", START, (), (), "", 0.5))
    progress.take(report(13, retrains=("flights-first-2013-01-15",), trainable_rows=900))
    progress.take(Release("flights-1", "a", "accepted", "beats the base rate", True, START + 14 * DAY, "first", "id", "trainer", {}))
    progress.take(Trained("flights-first-2013-01-15", "first", "accepted", "beats the base rate", START + 14 * DAY, 900, "flights-1", "a"))
    progress.take(Trained("other", "quality", "cooldown", "3 days left", START + 14 * DAY, 900, "", ""))
    view = Plain(clock, out)
    for _ in range(3):
        view.show(SCENE, progress, Meters())
        clock.advance(5_000)
    lines = out.getvalue().splitlines()
    assert sum("retrain sent: flights-first-2013-01-15" in line for line in lines) == 1
    assert sum("flights-1 accepted (first): beats the base rate" in line for line in lines) == 1
    assert sum("other cooldown: 3 days left" in line for line in lines) == 1
    assert not any("nothing" in line for line in lines)


def test_plain_lines_come_at_most_once_a_second():
    """
    However often the view is asked to show.
    """
    clock, out = ManualClock(), io.StringIO()
    view, progress = Plain(clock, out), Progress()
    for tenth in range(50):
        progress.take(ClockRecord(START + (tenth + 1) * DAY, 0, (), False))
        view.show(SCENE, progress, Meters())
        clock.advance(100)
    assert len(out.getvalue().splitlines()) == 5


def test_only_the_newest_lines_are_kept_and_none_is_told_twice():
    """
    A view that was not asked for long gets what is still there.
    """
    progress = Progress()
    for number in range(500):
        progress.tell(START, "drill", str(number))
    assert [line.text for line in progress.lines_since(498)] == ["498", "499"]
    assert len(progress.lines_since(0)) == 200
    assert progress.lines_since(500) == ()


def test_without_a_terminal_the_view_is_plain():
    """
    A log gets lines, not a picture drawn over and over.
    """
    out = io.StringIO()
    assert isinstance(make_view(ManualClock(), out), Plain)
    out.isatty = lambda: True  # type: ignore[method-assign]  # pretend
    assert isinstance(make_view(ManualClock(), out), Screen)


def test_the_screen_draws_its_frames_and_leaves_lines_that_stay():
    """
    Drawing must work on a terminal of any width.
    """
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]  # pretend
    with make_view(ManualClock(), out) as view:
        view.show(SCENE, played(), Meters())
        view.say("this stays")
    assert "10 January 2013" in out.getvalue() and "this stays" in out.getvalue()


def test_a_metrics_page_is_read_with_labels_and_exponents():
    """
    Comments are skipped; what has no labels has none.
    """
    page = '# HELP x y\n# TYPE x counter\ndriftline_x_total{topic="a b",outcome="applied"} 1.5e+03\ndriftline_y 2.0\n'
    assert list(samples(page)) == [
        Sample("driftline_x_total", {"topic": "a b", "outcome": "applied"}, 1500.0),
        Sample("driftline_y", {}, 2.0),
    ]
    assert total(list(samples(page)), "driftline_x_total", topic="a b") == 1500.0
    assert total(list(samples(page)), "driftline_x_total", topic="other") == 0.0


def test_counters_go_on_when_a_service_was_killed_and_began_at_zero_again():
    """
    What the killed process had counted is kept; a page that could not be read changes nothing.
    """
    meters = Meters()
    for value in (100.0, 250.0, 30.0, 40.0):
        meters.take("feature", [Sample("driftline_messages_read_total", {}, value)])
    meters.take("feature", [])
    assert meters.read["feature"] == 290.0
