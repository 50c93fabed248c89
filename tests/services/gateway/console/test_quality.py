"""The page of quality: charts with limits, what has drifted, which slice is off, and alarms in words."""

from __future__ import annotations

from typing import Any

import pytest

from driftline.contracts.messages import Report
from driftline.operate.windows import Group
from services.gateway.console import quality

DAY = 86_400_000
CHART = {"high": 7.0, "low": 0.0, "limit": 6.6}


def matured(day: int, **changed: Any) -> dict[str, Any]:
    """One day of the champion, as a report has it."""
    slices = {"origin": {"EWR": {"n": 50, "positives": 20, "log_loss": 0.5, "o_over_e": 2.0}}}
    given = {"role": "champion", "digest": "d", "cohort": day * DAY, "n": 100, "positives": 30, "mean": 0.2, "auc": 0.7, "z": 1.0}
    return given | {"log_loss": 0.5, "slices": slices} | changed


def report(day: int, **body: Any) -> Report:
    """Of one window."""
    return Report((day - 1) * DAY, day * DAY, (), body)


def values(chart: quality.Chart) -> dict[str, list[Any]]:
    """The lines of a chart by label."""
    return {line["label"]: line["values"] for line in chart["lines"]}


def test_a_control_chart_has_its_limit() -> None:
    """
    The sums by window, and the days within three standard deviations; a number that is none is a gap.
    """
    reports = [report(2, chart=CHART, quality=[matured(1)]), report(3, chart={}), report(4, chart=CHART | {"high": None})]
    sums = quality.chart_of_sums(reports)
    assert sums["x"] == [2 * 86_400, 4 * 86_400]
    assert values(sums) == {"more than predicted": [7.0, None], "less than predicted": [0.0, 0.0], "limit": [6.6, 6.6]}
    assert values(quality.chart_of_days(reports)) == {"observed less expected": [1.0], "upper limit": [3.0], "lower limit": [-3.0]}


def test_the_champion_stands_beside_the_first_one() -> None:
    """
    On the same days; where either has none there is a gap.
    """
    reports = [report(3, quality=[matured(1), matured(2), matured(2, role="frozen", auc=0.6), matured(2, role="previous", auc=0.1)])]
    assert values(quality.chart_of(reports, "auc", "AUC")) == {"champion": [0.7, 0.7], "first champion, frozen": [None, 0.6]}


def test_a_slice_is_added_up_over_days_and_judged() -> None:
    """
    Observed over expected of all days together, in standard deviations of independent rows.
    """
    (one,) = quality.slices([report(3, quality=[matured(1), matured(2)])])
    assert (one.key, one.rows, one.positives, one.expected, one.ratio) == ("origin=EWR", 100, 40, 20.0, 2.0)
    assert one.z == pytest.approx(20 / 20**0.5)
    chart = quality.chart_of_slice([report(3, quality=[matured(1)])], "origin=EWR")
    assert values(chart) == {
        "origin=EWR": [2.0],
        "upper limit": [pytest.approx(1 + 3 / 10**0.5)],
        "lower limit": [pytest.approx(0.0513, abs=1e-3)],
    }
    assert quality.chart_of_slice([report(3, quality=[matured(1)])], "nothing")["x"] == []


def test_what_has_drifted_most_comes_first() -> None:
    """
    From the newest window in which a champion answered, with the course of the windows before.
    """
    inputs = {"near": {"psi": 0.01, "missing": 0.0}, "far": {"psi": 0.4, "js": 0.1, "missing": 0.5, "out_of_range": None}}
    reports = [report(1, inputs={"far": {"psi": 0.2}}), report(2, inputs=inputs, alarms=[{"subject": "input:far"}]), report(3, inputs={})]
    far, near = quality.drifted(reports)
    assert [(one.name, one.beyond, one.alarmed) for one in (far, near)] == [("far", True, True), ("near", False, False)]
    assert (far.line, far.limit_y) == ("0.0,10.0 100.0,0.0", 10.0)
    assert near.line == ""
    assert quality.drifted([report(3, inputs={"far": {"missing": 0.1}})]) == ()


def test_alarms_are_told_with_their_evidence() -> None:
    """
    Quality is serious; drift is evidence.
    """
    alarms = [
        {"subject": "quality", "since": DAY},
        {"subject": "input:far", "windows": 2, "of": 3},
        {"subject": "score", "windows": 3, "of": 3},
    ]
    body = {"alarms": alarms, "chart": CHART, "inputs": {"far": {"psi": 0.4}}, "scores": {"psi": 0.3}}
    found = quality.alarms([report(2, **body)])
    assert [(one.subject, one.serious) for one in found] == [("quality of the champion", True), ("far", False), ("scores", False)]
    assert found[0].told == "Beyond the limit since 1970-01-02 00:00: the sums stand at 7.00 and 0.00, the limit is 6.60."
    assert found[1].told == "PSI 0.40 now; beyond the limit of 0.2 in 2 of the last 3 windows."
    assert quality.alarms([]) == ()


def test_the_diagram_has_a_point_for_each_group_within_its_bounds() -> None:
    """
    In a box whose origin is at the lower left.
    """
    (point,) = quality.reliability([Group(100, 30, 0.25)])
    assert (point.x, point.y) == (25.0, 70.0)
    assert point.high < point.y < point.low


def test_the_numbers_at_the_top_have_a_dash_before_anything_is_known() -> None:
    """
    And say what they mean either way.
    """
    known = {name: number for name, number, _ in quality.headline([report(2, quality=[matured(1)], coverage=0.99, trainable_rows=1_000)])}
    assert known == {"observed / expected": "1.50", "base rate": "30.0 %", "labels told": "99.0 %", "rows to train on": "1,000"}
    assert {number for _, number, _ in quality.headline([])} == {"–"}
