"""
The page of features: what each is, in words made from its definition, whose it is, and how it is distributed now and at training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from driftline.definition import Aggregate, Direct, Feature, Pipeline, Reading, View
from driftline.f import duration_text
from driftline.judge.summaries import Inputs
from driftline.models.bundle import Manifest

from . import words

FUNCTIONS: Mapping[str, str] = {
    "count": "number of {what}",
    "sum": "sum of {what}",
    "mean": "mean of {what}",
    "min": "smallest {what}",
    "max": "largest {what}",
    "std": "standard deviation of {what}",
    "rate": "share with {what}",
    "last": "last {what}",
    "seconds_since": "seconds since the last of {what}",
    "distinct": "number of different {what}",
    "ewma": "average of {what}, the newest weighing most",
}
DIRECT: Mapping[str, str] = {
    "value": "{field} of the question, as it is",
    "minute_of_day": "minute of the day, 0 to 1,439, of {field} in {zone}",
    "weekday": "day of the week, 0 is Monday, of {field} in {zone}",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin, in a box of 100 by 40: place and width, and how high the bar is now and at training."""

    x: float
    width: float
    now: float
    training: float
    told: str


@dataclass(frozen=True, slots=True)
class Described:
    """One input of the model."""

    name: str
    definition: str
    view: str
    of: str
    psi: float | None
    missing: float | None
    missing_at_training: float | None
    bars: tuple[Bar, ...]
    rows: int


def described(pipeline: Pipeline, manifest: Manifest | None, now: Inputs, report: Mapping[str, Any]) -> tuple[Described, ...]:
    """Every input in the order of the row. Without a champion there is nothing to compare with."""
    return tuple(_described(name, text, view, of, manifest, now, report) for name, text, view, of in _definitions(pipeline))


def _definitions(pipeline: Pipeline) -> list[tuple[str, str, str, str]]:
    """Name, definition, view, and of what the view knows."""
    found = []
    for one in pipeline.inputs:
        if isinstance(one, View):
            of = f"each {' and '.join(one.by)}"
            found += [(feature.name, definition(pipeline, feature), one.name, of) for feature in one.features]
        else:
            found.append((one.name, direct(one), "question", "the question itself"))
    return found


def definition(pipeline: Pipeline, feature: Feature) -> str:
    """A feature in words, from what the pipeline file declares."""
    text = ""
    for sign, aggregate in feature.terms:
        text += (" less the " if sign < 0 else " plus the ") if text else ""
        text += _aggregate(pipeline, aggregate)
    return text


def direct(one: Direct) -> str:
    """What is taken from the question, in words."""
    return DIRECT.get(one.function, "{function} of {field}").format(function=one.function, field=one.field, zone=one.zone)


def _aggregate(pipeline: Pipeline, one: Aggregate) -> str:
    stream = pipeline.streams[one.stream].name
    what = stream if one.reading is None else f"{_reading(one.reading)} of {stream}"
    text = FUNCTIONS.get(one.function, one.function.replace("_", " ") + " of {what}").format(what=what)
    within = "half-life" if one.function == "ewma" else "within" if one.function in ("last", "seconds_since") else "over"
    text += f", {within} {duration_text(one.window_ms)}"
    return text + (f" ending {duration_text(one.ending_ms)} ago" if one.ending_ms else "")


def _reading(one: Reading) -> str:
    if one.condition is not None:
        return f"{one.condition.field} {one.condition.op} {one.condition.value}"
    bounds = [f"{limit:g}" for limit in (one.low, one.high)]
    bounded = math.isfinite(one.low) or math.isfinite(one.high)
    return one.field + (f" (kept within {bounds[0]} to {bounds[1]})" if bounded else "")


def _described(name: str, text: str, view: str, of: str, manifest: Manifest | None, now: Inputs, report: Mapping[str, Any]) -> Described:
    told = report.get(name, {})
    reference = None if manifest is None or name not in manifest.reference["counts"] else manifest.reference
    if reference is None:
        return Described(name, text, view, of, told.get("psi"), told.get("missing"), None, (), now.rows)
    counts = reference["counts"][name]
    bars = _bars(reference["edges"][name], counts, now.bins.get(name, [0] * len(counts)))
    at_training = counts[-1] / sum(counts) if sum(counts) else None
    return Described(name, text, view, of, told.get("psi"), told.get("missing"), at_training, bars, now.rows)


def _bars(edges: Sequence[float], training: Sequence[int], now: Sequence[int]) -> tuple[Bar, ...]:
    """A pair of bars for each bin, the missing ones last. Bins hold equal shares of training, so they are drawn equally wide."""
    if len(now) != len(training):
        return ()
    shares = [[count / max(1, sum(counts)) for count in counts] for counts in (now, training)]
    top, width = max(*shares[0], *shares[1]) or 1.0, 100 / len(training)
    return tuple(
        Bar(
            round(at * width, 2),
            round(width, 2),
            round(40 * shares[0][at] / top, 2),
            round(40 * shares[1][at] / top, 2),
            f"{_bin(edges, at, len(training))}: {words.share(shares[0][at])} now, {words.share(shares[1][at])} at training",
        )
        for at in range(len(training))
    )


def _bin(edges: Sequence[float], at: int, bins: int) -> str:
    if at == bins - 1:
        return "missing"
    low, high = (edges[at - 1] if at > 0 else None), (edges[at] if at < len(edges) else None)
    if low is None:
        return "all values" if high is None else f"below {high:g}"
    return f"{low:g} and above" if high is None else f"{low:g} to {high:g}"
