"""
The page of one event: what happened to it, message by message with its coordinate, what was known of it then, why it got its score,
and what became of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.contracts.messages import Source
from driftline.definition import Pipeline
from driftline.models.bundle import Model
from driftline.models.why import effects
from driftline.operate.trace import Found, Trace
from driftline.stream.batch import Varlen

from . import words

QUESTION = "the question"
Places = Mapping[tuple[str, int, int], int]


@dataclass(frozen=True, slots=True)
class Happened:
    """One message about the event: where it lies, when it was written, how long after the event was there, and what it says."""

    title: str
    place: str
    cause: str
    written: int | None
    after_s: float | None
    told: str


@dataclass(frozen=True, slots=True)
class Known:
    """One feature as it was served: its value, how old its view was, what training saw in the middle, and its effect on the score."""

    name: str
    view: str
    value: float | None
    age_s: float | None
    median: float | None
    effect: float | None
    bar: tuple[float, float] | None  # start and width in per cent, zero in the middle


@dataclass(frozen=True, slots=True)
class Answer:
    """The prediction against the threshold of its model."""

    score: float | None
    threshold: float | None
    decision: str
    model: str
    arm: str
    flags: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Along:
    """What another model said of the same row."""

    arm: str
    model: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The label as it became known."""

    name: str
    label: int
    origin: str
    known: int | None
    revision: int


def digest_of(trace: Trace) -> str:
    """The model that answered, by digest; empty where none did."""
    return next((str(one.fields.get("digest", "")) for one in trace.after if one.message == "answer" and not one.fields.get("shadow")), "")


def row_of(trace: Trace, pipeline: Pipeline) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Features (F,) and ages of views (V,), as served; None where there is no row, or one of another feature set."""
    rows = [one.fields["row"] for one in trace.after if one.message == "row" and one.fields.get("layout") == pipeline.layout.version]
    if not rows:
        return None
    packed = Varlen.of([rows[0]])
    return pipeline.layout.matrix(packed)[0], pipeline.layout.ages(packed)[0]


def known(pipeline: Pipeline, row: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], model: Model | None) -> tuple[Known, ...]:
    """The row, feature by feature; with a model that reads this row, in order of what moved the score most."""
    features, ages = row
    layout = pipeline.layout
    fits = model is not None and tuple(model.manifest.names) == tuple(layout.names)
    moved = effects(model, features)[1].tolist() if model is not None and fits else [None] * len(layout.names)
    medians = model.medians.tolist() if model is not None and fits else [None] * len(layout.names)
    most = max([abs(one) for one in moved if words.known(one)], default=0.0)
    found = []
    for at, name in enumerate(layout.names):
        view = layout.view_of[at]
        of, age = (layout.views[view], float(ages[view])) if view >= 0 else (QUESTION, None)
        shown = _number(moved[at])
        found.append(Known(name, of, _number(features[at]), _number(age), _number(medians[at]), shown, _bar(shown, most)))
    return tuple(sorted(found, key=lambda one: -abs(one.effect or 0.0)) if fits else found)


def _number(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _bar(effect: float | None, most: float) -> tuple[float, float] | None:
    if effect is None or not most:
        return None
    width = 50 * abs(effect) / most
    return (50.0 if effect > 0 else round(50 - width, 2)), round(width, 2)


def answer(trace: Trace, model: Model | None) -> Answer | None:
    """What was told to applications."""
    one = next((one.fields for one in trace.after if one.message == "prediction"), None)
    if one is None:
        return None
    threshold = None if model is None else float(model.threshold)
    flags, reasons = (tuple(map(str, one.get(name, ()))) for name in ("flags", "reasons"))
    decision, by, arm = (str(one[name]) for name in ("decision", "model", "arm"))
    return Answer(_number(one.get("score")), threshold, decision, by, arm, flags, reasons)


def along(trace: Trace) -> tuple[Along, ...]:
    """Models that scored the row without answering."""
    return tuple(
        Along(str(one.fields["arm"]), str(one.fields["model"]), _number(one.fields.get("score")))
        for one in trace.after
        if one.message == "answer" and one.fields.get("shadow")
    )


def outcome(trace: Trace, pipeline: Pipeline) -> Outcome | None:
    """The newest label of the answer that was served; None while it is awaited."""
    labels = [one.fields for one in trace.after if one.message == "example" and one.fields.get("answer_index") == 0]
    if not labels or pipeline.label is None:
        return None
    one = max(labels, key=lambda fields: int(fields.get("revision", 0)))
    return Outcome(pipeline.label.name, int(one["label"]), str(one["origin"]), one.get("known"), int(one.get("revision", 0)))


def timeline(trace: Trace, pipeline: Pipeline, written: Places) -> tuple[Happened, ...]:
    """Every message, in the order in which they were written; what has no time keeps the loop's order, at the end."""
    messages = (*trace.events, *trace.after)
    times = [written.get((one.topic, one.partition, one.offset)) for one in messages]
    began = min([time for time in times if time is not None], default=None)
    found = [_happened(one, pipeline, time, began) for one, time in zip(messages, times, strict=True)]
    return tuple(sorted(found, key=lambda one: float("inf") if one.written is None else one.written))


def _happened(one: Found, pipeline: Pipeline, time: int | None, began: int | None) -> Happened:
    after_s = None if time is None or began is None else (time - began) / 1000
    return Happened(_title(one), f"{one.topic}[{one.partition}]@{one.offset}", _cause(one, pipeline), time, after_s, "; ".join(_told(one)))


def _title(one: Found) -> str:
    if one.message == "event":
        return "came in" if one.fields.get("home") else "came in, as a copy for others"
    if one.message == "answer":
        return "scored along" if one.fields.get("shadow") else "scored"
    if one.message == "example" and one.fields.get("answer_index"):
        return "labelled along"
    titles = {"row": "features", "prediction": "answered", "outcome": "outcome came", "example": "labelled"}
    return titles.get(one.message, one.message)


def _cause(one: Found, pipeline: Pipeline) -> str:
    """Of an event, the upstream record that it is."""
    number = int(one.fields.get("source", -1)) - Source.UPSTREAM
    if one.message != "event" or not 0 <= number < len(pipeline.streams):
        return ""
    return f"{pipeline.streams[number].topic}[{one.fields['partition']}]@{one.fields['offset']}"


def _told(one: Found) -> Iterator[str]:
    fields = one.fields
    if one.message == "event":
        yield f"happened {words.moment(fields.get('time'), seconds=True)}, visible {words.moment(fields.get('visible'), seconds=True)}"
    elif one.message == "row":
        yield f"feature set {fields.get('layout')}, deployment {fields.get('deployment')}"
    elif one.message == "prediction":
        yield f"{fields.get('decision')} at {words.number(fields.get('score'), 3)} by {fields.get('model')}, {fields.get('arm')}"
    elif one.message == "answer":
        yield f"{words.number(fields.get('score'), 3)} by {fields.get('model')}, {fields.get('arm')}, for the journal with its row"
    elif one.message in ("outcome", "example"):
        yield f"label {fields.get('label')} from {fields.get('origin')}"
        if words.known(fields.get("known")):
            yield f"known {words.moment(fields['known'], seconds=True)}"


def timings(happened: Sequence[Happened]) -> tuple[tuple[str, float | None, str], ...]:
    """How long the loop took: name, seconds, and what it means."""
    first = {title: next((one.after_s for one in happened if one.title == title), None) for title in ("features", "answered", "labelled")}
    return (
        ("event to features", first["features"], "from the event on our log to its row. Intake and feature, batches included."),
        ("event to prediction", first["answered"], "what an application waits for, from the moment when the event was on our log."),
        ("event to label", first["labelled"], "until the outcome was joined, by the wall's clock; in a replay months pass in a second."),
    )
