"""
The page of quality: is the model as good as it was, and has its world changed? Charts with their limits, as values for uPlot, and
pictures that the server draws itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from driftline.contracts.messages import Report
from driftline.judge.drift import PSI_LIMIT
from driftline.operate.windows import Group

from . import words

LIMIT_Z = 3.0  # standard deviations, Shewhart's
SLICE_DAYS = 14
SLICES_SHOWN = 40
LINE_WINDOWS = 30
CHAMPION, FROZEN = "champion", "frozen"

Chart = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drifted:
    """One input against training: distances now, shares of rows, and its course as a line in a box of 100 by 20."""

    name: str
    psi: float | None
    js: float | None
    missing: float | None
    missing_at_training: float | None
    out_of_range: float | None
    line: str
    limit_y: float
    alarmed: bool

    @property
    def beyond(self) -> bool:
        """Whether the newest distance is beyond the limit."""
        return self.psi is not None and self.psi > PSI_LIMIT


@dataclass(frozen=True, slots=True)
class Slice:
    """Matured answers of the champion with one value of a field, on the newest days together."""

    field: str
    value: str
    rows: int
    positives: int
    expected: float
    log_loss: float | None

    @property
    def ratio(self) -> float | None:
        """Observed over expected."""
        return self.positives / self.expected if self.expected else None

    @property
    def z(self) -> float | None:
        """By how many standard deviations of independent rows more happened than was predicted."""
        return (self.positives - self.expected) / math.sqrt(self.expected) if self.expected else None

    @property
    def key(self) -> str:
        """As an address names it."""
        return f"{self.field}={self.value}"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An open alarm with its evidence and what to do."""

    subject: str
    told: str
    means: str
    serious: bool


@dataclass(frozen=True, slots=True)
class Point:
    """A group of the reliability diagram, in a box of 100 by 100 whose origin is at the lower left: places, and the numbers."""

    x: float
    y: float
    low: float
    high: float
    group: Group


def chart_of_sums(reports: Sequence[Report]) -> Chart:
    """The control chart that may raise a retrain command: both sums of Page's CUSUM with the limit."""
    shown = [(report.end, report.body["chart"]) for report in reports if report.body.get("chart")]
    return {
        "x": [end // 1000 for end, _ in shown],
        "unit": "standard deviations",
        "lines": [
            _line("more than predicted", "accent", [one.get("high") for _, one in shown]),
            _line("less than predicted", "other", [one.get("low") for _, one in shown]),
            _line("limit", "limit", [one.get("limit") for _, one in shown]),
        ],
    }


def chart_of_days(reports: Sequence[Report]) -> Chart:
    """Shewhart's chart: each matured day of the champion alone, within three standard deviations of what it predicted."""
    days = _days(reports, CHAMPION)
    return {
        "x": [start // 1000 for start in days],
        "unit": "standard deviations",
        "lines": [
            _line("observed less expected", "accent", [one.get("z") for one in days.values()]),
            _line("upper limit", "limit", [LIMIT_Z] * len(days)),
            _line("lower limit", "limit", [-LIMIT_Z] * len(days)),
        ],
    }


def chart_of(reports: Sequence[Report], name: str, unit: str) -> Chart:
    """One measure of the champion by matured day, beside the first champion of all, which never learnt again."""
    ours, first = _days(reports, CHAMPION), _days(reports, FROZEN)
    starts = sorted(ours.keys() | first.keys())
    return {
        "x": [start // 1000 for start in starts],
        "unit": unit,
        "lines": [
            _line("champion", "accent", [ours.get(start, {}).get(name) for start in starts]),
            _line("first champion, frozen", "other", [first.get(start, {}).get(name) for start in starts]),
        ],
    }


def chart_of_coverage(reports: Sequence[Report]) -> Chart:
    """Of the labels that became known, the share that an outcome told; the rest is said by silence."""
    shown = [(report.end, report.body.get("coverage")) for report in reports if words.known(report.body.get("coverage"))]
    return {
        "x": [end // 1000 for end, _ in shown],
        "unit": "share",
        "range": [0, 1],
        "lines": [_line("told by an outcome", "accent", [share for _, share in shown])],
    }


def chart_of_slice(reports: Sequence[Report], key: str) -> Chart:
    """Observed over expected of one slice by matured day, within three standard deviations of independent rows."""
    field, _, value = key.partition("=")
    days = {start: one.get("slices", {}).get(field, {}).get(value, {}) for start, one in _days(reports, CHAMPION).items()}
    found = {start: _slice(field, value, [one]) for start, one in days.items() if one.get("n")}
    spreads = [LIMIT_Z / math.sqrt(one.expected) if one.expected else None for one in found.values()]
    return {
        "x": [start // 1000 for start in found],
        "unit": "observed / expected",
        "lines": [
            _line(key, "accent", [one.ratio for one in found.values()]),
            _line("upper limit", "limit", [None if spread is None else 1 + spread for spread in spreads]),
            _line("lower limit", "limit", [None if spread is None else max(0.0, 1 - spread) for spread in spreads]),
        ],
    }


def _line(label: str, kind: str, values: Sequence[Any]) -> dict[str, Any]:
    return {"label": label, "kind": kind, "values": [value if words.known(value) else None for value in values]}


def _days(reports: Sequence[Report], role: str) -> dict[int, Mapping[str, Any]]:
    """The matured days of whoever had a role, by their start; of two on one day the one with more rows."""
    found: dict[int, Mapping[str, Any]] = {}
    for one in (one for report in reports for one in report.body.get("quality", ())):
        if one.get("role") == role and one.get("n", 0) > found.get(one["cohort"], {}).get("n", 0):
            found[one["cohort"]] = one
    return dict(sorted(found.items()))


def reliability(groups: Sequence[Group]) -> tuple[Point, ...]:
    """The diagram's points, with what each may as well be."""
    return tuple(_point(one) for one in groups)


def _point(group: Group) -> Point:
    observed, low, high = (round(100 - _percent(share), 2) for share in (group.observed, *group.bounds))
    return Point(_percent(group.predicted), observed, low, high, group)


def _percent(share: float) -> float:
    return round(100 * share, 2)


def newest_with_inputs(reports: Sequence[Report]) -> Report | None:
    """The newest report of a window in which a champion answered anything."""
    return next((report for report in reversed(reports) if any("psi" in one for one in report.body.get("inputs", {}).values())), None)


def drifted(reports: Sequence[Report]) -> tuple[Drifted, ...]:
    """Every input against training, the farthest first."""
    newest = newest_with_inputs(reports)
    if newest is None:
        return ()
    alarmed = {str(one.get("subject", "")).removeprefix("input:") for one in newest.body.get("alarms", ())}
    found = [_drifted(name, one, reports, name in alarmed) for name, one in newest.body["inputs"].items()]
    return tuple(sorted(found, key=lambda one: (-(one.psi or 0.0), one.name)))


def _drifted(name: str, now: Mapping[str, Any], reports: Sequence[Report], alarmed: bool) -> Drifted:
    course = [one.body.get("inputs", {}).get(name, {}).get("psi") for one in reports[-LINE_WINDOWS:]]
    line, limit_y = _course([value for value in course if words.known(value)])
    shares = (now.get("missing"), now.get("missing_at_training"), now.get("out_of_range"))
    return Drifted(name, now.get("psi"), now.get("js"), *shares, line, limit_y, alarmed)


def _course(values: Sequence[float]) -> tuple[str, float]:
    """A line through the values, and the height of the limit, in a box of 100 by 20."""
    top = max([*values, 1.25 * PSI_LIMIT])
    step = 100 / max(1, len(values) - 1)
    places = (f"{at * step:.1f},{20 - 20 * value / top:.1f}" for at, value in enumerate(values))
    return " ".join(places) if len(values) > 1 else "", round(20 - 20 * PSI_LIMIT / top, 1)


def slices(reports: Sequence[Report]) -> tuple[Slice, ...]:
    """The champion's newest matured days by slice: by field, those with the most rows first."""
    parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for day in list(_days(reports, CHAMPION).values())[-SLICE_DAYS:]:
        for field, values in day.get("slices", {}).items():
            for value, one in values.items():
                parts.setdefault((field, value), []).append(one)
    found = [_slice(*name, ones) for name, ones in parts.items()]
    return tuple(sorted(found, key=lambda one: (one.field, -one.rows, one.value))[:SLICES_SHOWN])


def _slice(field: str, value: str, parts: Sequence[Mapping[str, Any]]) -> Slice:
    """Several days together. What was expected is told as a ratio, which has none where nothing was observed: then the day is left out."""
    rows = sum(one["n"] for one in parts)
    told = [one for one in parts if one.get("o_over_e") and one["positives"]]
    positives, expected = sum(one["positives"] for one in told), sum(one["positives"] / one["o_over_e"] for one in told)
    losses = [(one["log_loss"], one["n"]) for one in parts if words.known(one.get("log_loss"))]
    counted = sum(n for _, n in losses)
    return Slice(field, value, rows, positives, expected, sum(loss * n for loss, n in losses) / counted if counted else None)


def alarms(reports: Sequence[Report]) -> tuple[Alarm, ...]:
    """What the newest report holds against the model or its world."""
    if not reports:
        return ()
    newest, seen = reports[-1], newest_with_inputs(reports)
    inputs = {} if seen is None else seen.body["inputs"]
    scores: Mapping[str, Any] = next((one.body["scores"] for one in reversed(reports) if one.body.get("scores")), {})
    chart = newest.body.get("chart", {})
    return tuple(_alarm(one, inputs, scores, chart) for one in newest.body.get("alarms", ()) if isinstance(one, dict))


def _alarm(alarm: Mapping[str, Any], inputs: Mapping[str, Any], scores: Mapping[str, Any], chart: Mapping[str, Any]) -> Alarm:
    subject = str(alarm.get("subject", ""))
    if subject == "quality":
        sums = f"the sums stand at {words.number(chart.get('high'), 2)} and {words.number(chart.get('low'), 2)}"
        told = f"Beyond the limit since {words.moment(alarm.get('since'))}: {sums}, the limit is {words.number(chart.get('limit'), 2)}."
        means = "The outcomes have left what the model predicts. A retrain command follows by itself, unless one was answered just before."
        return Alarm("quality of the champion", told, means, True)
    name = subject.removeprefix("input:")
    psi = scores.get("psi") if subject == "score" else inputs.get(name, {}).get("psi")
    windows = f"in {alarm.get('windows', '?')} of the last {alarm.get('of', '?')} windows"
    told = f"PSI {words.number(psi, 2)} now; beyond the limit of {PSI_LIMIT} {windows}."
    means = "It looks different from training. That is evidence and never retrains by itself. Look at its sender, then at quality."
    return Alarm("scores" if subject == "score" else name, told, means, False)


def headline(reports: Sequence[Report]) -> Iterator[tuple[str, str, str]]:
    """The few numbers at the top: name, number with its unit, and what it means."""
    days = list(_days(reports, CHAMPION).values())[-SLICE_DAYS:]
    rows, positives = sum(one["n"] for one in days), sum(one["positives"] for one in days)
    expected = sum(one["mean"] * one["n"] for one in days if words.known(one.get("mean")))
    newest = reports[-1].body if reports else {}
    coverage = next((one.body["coverage"] for one in reversed(reports) if words.known(one.body.get("coverage"))), None)
    ratio = positives / expected if expected else None
    yield "observed / expected", words.number(ratio, 2), f"over {len(days)} matured days. 1 is honest; far from it, scores mislead."
    yield "base rate", words.share(positives / rows if rows else None), "of those answers came out positive. A jump is a changed world."
    yield "labels told", words.share(coverage), "of the newest labels were told by an outcome, not by silence. Falling: its sender is late."
    yield (
        "rows to train on",
        words.number(newest.get("trainable_rows")),
        "answers with a label so far. Enough new ones ask for a retraining.",
    )
