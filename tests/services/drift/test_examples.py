"""Cohorts of matured answers: closed when all their labels are settled, and then left alone."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftline.contracts.avro import pack_strings
from driftline.contracts.messages import Flag, Source, Writer
from driftline.errors import Invalid
from driftline.judge.summaries import OTHER, SLICE_VALUES_MAX, UNIT, ExamplesSummary
from services.drift.core import ExamplesDrift

DAY_MS = 86_400_000
HORIZON_MS = DAY_MS * 3 // 2
START_MS = 15_700 * DAY_MS

Record = tuple[str, dict[str, Any]]


def example(asked: int, label: int = 1, score: float = 0.5, answer_index: int = 0, **fields: Any) -> Record:
    """What the labeler writes of one answer."""
    given = {"asked": asked, "label": label, "score": score, "answer_index": answer_index, "revision": 0, "flags": 0, "origin": "arrivals"}
    arm = {"arm": "champion", "model": "flights-1", "digest": "one", "slices": pack_strings(["EWR", "UA"]), "writer": Writer.LABELER}
    return "example", given | arm | fields


def tick(time: int) -> Record:
    return "tick", {"source": 0, "offset": time // 1_000, "time": time, "deployment": 1, "writer": Writer.LABELER}


def closing(day: int) -> Record:
    """The tick that completes the cohort of day number `day`."""
    return tick(START_MS + (day + 1) * DAY_MS + HORIZON_MS)


@pytest.fixture
def core(pipeline: Any) -> Any:
    return lambda: ExamplesDrift(pipeline, 0)


def cohorts(run: Any) -> list[ExamplesSummary]:
    return [msgspec.json.decode(one["body"], type=ExamplesSummary) for one in run.sent]


def test_cohort_closes_a_horizon_after_its_end(run: Any, core: Any) -> None:
    """
    Not with the last example: others of the cohort may still be waiting.
    """
    log = [tick(START_MS), example(START_MS + 5), tick(START_MS + 2 * DAY_MS), closing(0)]
    assert run(core, log[:-1]).sent == []
    sent = run(core, log).sent
    assert [(one["kind"], one["start"], one["end"], one["to"]) for one in sent] == [("examples", START_MS, START_MS + DAY_MS, 0)]
    assert (sent[0]["source"], sent[0]["offset"], sent[0]["index"]) == (Source.EXAMPLES, 3, 0)


def test_empty_cohorts_are_published_too(run: Any, core: Any) -> None:
    """
    Days on which nobody asked are complete as well.
    """
    found = cohorts(run(core, [tick(START_MS), closing(2)]))
    assert [one.models for one in found] == [{}, {}, {}]


def test_quality_is_counted_by_role_and_model(run: Any, core: Any) -> None:
    """
    Rows, positives, expected positives, their variance, log loss and Brier score of each.
    """
    frozen = {"arm": "frozen", "model": "flights-0", "digest": "zero", "answer_index": 1}
    log = [tick(START_MS), example(START_MS, 1, 0.75), example(START_MS, 0, 0.25), example(START_MS, 1, 0.5, **frozen), closing(0)]
    models = cohorts(run(core, log))[0].models
    quality = models["champion|one"]
    assert (quality.rows, quality.positives, models["frozen|zero"].rows) == (2, 1, 1)
    assert (quality.expected * UNIT, quality.variance * UNIT) == (pytest.approx(1.0), pytest.approx(0.375))
    assert (quality.log_loss * UNIT, quality.brier * UNIT) == (pytest.approx(-2 * np.log(0.75)), pytest.approx(0.125))
    assert quality.auc == 1.0
    assert {value: (one.rows, one.positives) for value, one in quality.slices["origin"].items()} == {"EWR": (2, 1)}


def test_served_answers_with_a_label_are_trainable(run: Any, core: Any) -> None:
    """
    Shadows, excluded answers and revisions add no row to train on; answers without a model do.
    """
    none = {"arm": "none", "model": "", "digest": "", "flags": int(Flag.DEGRADED)}
    log = [
        tick(START_MS),
        example(START_MS, 1, **none),
        example(START_MS, 0, origin="silence"),
        example(START_MS, 1, answer_index=1),
        example(START_MS, -1, origin="silence"),
        example(START_MS, 1, revision=1),
        closing(0),
        example(START_MS + DAY_MS, 1),
        closing(1),
    ]
    first, second = cohorts(run(core, log))
    assert (first.trainable, second.trainable) == (2, 3)
    assert (first.told, first.silent, first.excluded) == (1, 1, 1)


def test_answers_without_a_number_are_left_out_of_quality(run: Any, core: Any) -> None:
    """
    A fallback score says nothing of the model; it is counted.
    """
    log = [
        tick(START_MS),
        example(START_MS),
        example(START_MS, flags=int(Flag.NO_SCORE)),
        example(START_MS, score=float("nan")),
        closing(0),
    ]
    quality = cohorts(run(core, log))[0].models["champion|one"]
    assert (quality.rows, quality.invalid) == (1, 2)


def test_cohort_that_was_judged_stays_judged(run: Any, core: Any) -> None:
    """
    What comes after it closed is counted as late, and opens nothing.
    """
    played = run(core, [tick(START_MS), closing(0), example(START_MS + 5), tick(START_MS + 4 * DAY_MS)])
    assert played.counts == {"applied": 0, "late": 1, "tick": 3}
    assert played.core.windows_open == 0


def test_slices_with_too_many_values_share_a_place(run: Any, core: Any) -> None:
    """
    A slice by something that never repeats cannot fill the memory.
    """
    many = [example(START_MS, slices=pack_strings([f"airport {number}", "UA"])) for number in range(SLICE_VALUES_MAX + 5)]
    found = cohorts(run(core, [tick(START_MS), *many, closing(0)]))[0].models["champion|one"].slices["origin"]
    assert (len(found), found[OTHER].rows) == (SLICE_VALUES_MAX + 1, 5)


def test_pipeline_without_a_label_is_refused(pipeline: Any) -> None:
    """
    There are no examples to count.
    """
    pipeline.label = None
    with pytest.raises(Invalid, match="flights"):
        ExamplesDrift(pipeline, 0)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_same_summaries_and_same_state_wherever_the_log_is_cut(run: Any, core: Any, seed: int) -> None:
    """
    Batches cut anywhere, each by a new core that knows the stored rows alone, leave the same bytes.
    """
    draw = random.Random(seed)
    log: list[Record] = [tick(START_MS)]
    for hours in range(0, 24 * 6, 6):
        now = START_MS + hours * 3_600_000
        for _ in range(draw.randrange(6)):
            asked = max(START_MS, now - draw.randrange(4 * DAY_MS))
            slices = pack_strings([draw.choice(["EWR", "JFK", "LGA"]), draw.choice(["UA", "DL"])])
            log.append(
                example(
                    asked, draw.choice([-1, 0, 1]), draw.random(), draw.choice([0, 0, 1]), revision=draw.choice([0, 0, 1]), slices=slices
                )
            )
        log.append(tick(now))
    whole = run(core, log)
    parts = run(core, log, draw.sample(range(len(log)), k=10), reload=True)
    assert parts.sent == whole.sent
    assert parts.rows == whole.rows


def test_an_example_with_slices_of_another_definition_counts_in_the_whole_alone(run: Any, core: Any) -> None:
    """
    A pipeline may have had other slices when the example was made.
    """
    log = [tick(START_MS), example(START_MS + 5), example(START_MS + 6, slices=pack_strings(["EWR"])), closing(0)]
    (cohort,) = cohorts(run(core, log))
    quality = cohort.models["champion|one"]
    assert (quality.rows, quality.slices["origin"]["EWR"].rows) == (2, 1)
