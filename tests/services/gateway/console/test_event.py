"""The page of one event: its row, why its score, what became of it, and how long everything took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from driftline.operate.trace import Found, Trace
from driftline.pipeline import Pipeline, load_pipeline
from services.gateway.console import event

SAID = {"score": 0.75, "decision": "alert", "model": "m", "arm": "champion", "flags": ["stale_view"], "reasons": ["sky"]}


SAID = {"score": 0.75, "decision": "alert", "model": "m", "arm": "champion", "flags": ["stale_view"], "reasons": ["sky"]}


class Sum:
    """A model that adds its features; a missing one counts 0."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.manifest = type("Manifest", (), {"names": names})()
        self.medians = np.zeros(len(names), np.float32)
        self.threshold = np.float32(0.5)

    def score(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.nansum(matrix, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def flights() -> Pipeline:
    """The pipeline of the demo."""
    return load_pipeline("flights", Path(__file__).parents[4] / "pipelines")


def traced(pipeline: Pipeline) -> Trace:
    """A question, answered, and labelled twice."""
    features = np.full(len(pipeline.layout.names), 0.125, np.float32)
    features[0] = np.nan
    row = pipeline.layout.pack(features[None], np.full((1, len(pipeline.layout.views)), 60, np.float32)).tolist()[0]
    after: list[tuple[str, str, dict[str, Any]]] = [
        ("features", "row", {"layout": pipeline.layout.version, "deployment": 7, "row": row}),
        ("predictions", "prediction", SAID),
        ("journal", "answer", {"arm": "champion", "model": "m", "digest": "d", "score": 0.75, "shadow": False}),
        ("journal", "answer", {"arm": "frozen", "model": "m-0", "digest": "e", "score": 0.5, "shadow": True}),
        ("examples", "example", {"answer_index": 0, "label": 0, "origin": "silence", "known": 2_000, "revision": 0}),
        ("examples", "example", {"answer_index": 0, "label": 1, "origin": "arrivals", "known": 3_000, "revision": 1}),
    ]
    from_upstream = {"source": 16, "partition": 2, "offset": 9, "home": True, "time": 1_000, "visible": 1_000}
    came = Found("flights-events", 1, 5, "event", from_upstream)
    return Trace("e", [came], [Found(f"flights-{topic}", 1, at, message, fields) for at, (topic, message, fields) in enumerate(after)])


def test_the_row_is_told_with_what_each_feature_did_to_the_score(flights: Pipeline) -> None:
    """
    By how much the score would fall with the median in its place; a missing one, whose median is told too, has no value.
    """
    row = event.row_of(traced(flights), flights)
    assert row is not None
    found = {one.name: one for one in event.known(flights, row, Sum(flights.layout.names))}  # type: ignore[arg-type]  # a small stand-in
    first, second = flights.layout.names[:2]
    assert (found[second].value, found[second].effect, found[second].median, found[second].age_s) == (0.125, 0.125, 0.0, 60.0)
    assert (found[first].value, found[first].effect, found[first].bar) == (None, 0.0, (50.0, 0.0))
    assert found[second].bar == (50.0, 50.0)
    assert found["duration_min"].view == "the question" and found["duration_min"].age_s is None


def test_without_its_model_a_row_is_told_as_it_is(flights: Pipeline) -> None:
    """
    In the row's order, without effects; so where the model reads other features.
    """
    row = event.row_of(traced(flights), flights)
    assert row is not None
    for model in (None, Sum(("other",))):
        found = event.known(flights, row, model)  # type: ignore[arg-type]  # a small stand-in
        assert tuple(one.name for one in found) == flights.layout.names
        assert {one.effect for one in found} == {None}


def test_a_row_of_another_feature_set_is_not_read(flights: Pipeline) -> None:
    """
    Its numbers would stand under wrong names.
    """
    trace = traced(flights)
    trace.after[0].fields["layout"] = "another"
    assert event.row_of(trace, flights) is None


def test_answer_outcome_and_who_scored_along(flights: Pipeline) -> None:
    """
    The score against the threshold of its model; the newest revision of the label.
    """
    trace = traced(flights)
    answer = event.answer(trace, Sum(("a",)))  # type: ignore[arg-type]  # a small stand-in
    assert answer == event.Answer(0.75, 0.5, "alert", "m", "champion", ("stale_view",), ("sky",))
    assert event.outcome(trace, flights) == event.Outcome("late", 1, "arrivals", 3_000, 1)
    assert event.along(trace) == (event.Along("frozen", "m-0", 0.5),)
    assert event.digest_of(trace) == "d"
    nothing = Trace("e")
    assert (event.answer(nothing, None), event.outcome(nothing, flights), event.digest_of(nothing)) == (None, None, "")


def test_what_happened_is_in_the_order_of_writing_with_coordinates(flights: Pipeline) -> None:
    """
    How long after the event was on the log; what was not found again comes last.
    """
    written = {("flights-events", 1, 5): 1_000, ("flights-predictions", 1, 1): 1_057, ("flights-features", 1, 0): 1_043}
    found = event.timeline(traced(flights), flights, written)
    assert [(one.title, one.after_s) for one in found[:4]] == [("came in", 0.0), ("features", 0.043), ("answered", 0.057), ("scored", None)]
    assert (found[0].place, found[0].cause) == ("flights-events[1]@5", "flights[2]@9")
    assert [seconds for _, seconds, _ in event.timings(found)] == [0.043, 0.057, None]
