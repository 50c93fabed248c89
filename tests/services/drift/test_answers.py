"""Windows of answers: what was put in, what came out, and shadows beside the champion."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftline.contracts.messages import Flag, Source, Writer
from driftline.judge.summaries import UNIT, AnswersSummary
from services.drift.core import AnswersDrift

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
START_MS = 15_700 * DAY_MS

Record = tuple[str, dict[str, Any]]


def answer(visible: int, event_offset: int, index: int = 0, score: float = 0.5, delay: float = 5.0, **fields: Any) -> Record:
    """What inference writes of one row and arm."""
    row = b"" if index else np.array([delay, 1.0, 0.0], "<f4").tobytes()
    given = {"visible": visible, "event_offset": event_offset, "index": index, "score": score, "alert": score >= 0.5, "flags": 0}
    arm = {"deployment": 3, "arm": "champion", "model": "flights-1", "digest": "one", "row": row, "writer": Writer.INFERENCE}
    return "answer", given | arm | fields


def shadow(visible: int, event_offset: int, index: int = 1, **fields: Any) -> Record:
    """A shadow's answer to the same row."""
    return answer(visible, event_offset, index, **{"arm": "frozen", "model": "flights-0", "digest": "zero", **fields})


def outcome(visible: int) -> Record:
    """An outcome, which the journal holds too."""
    return "outcome", {"id": "x", "visible": visible, "label": 1, "origin": "arrivals", "writer": Writer.FEATURE}


def tick(writer: Writer, time: int) -> Record:
    return "tick", {"source": 0, "offset": time // HOUR_MS, "time": time, "deployment": 3, "writer": writer}


def both(time: int) -> list[Record]:
    return [tick(Writer.FEATURE, time), tick(Writer.INFERENCE, time)]


def days(count: int, answers: list[Record]) -> list[Record]:
    """Answers among the hourly ticks of so many days."""
    timed = [(time, 0, record) for time in range(START_MS, START_MS + count * DAY_MS + 1, HOUR_MS) for record in both(time)]
    timed += [(record[1]["visible"], 1, record) for record in answers]
    return [record for _, _, record in sorted(timed, key=lambda one: one[:2])]


@pytest.fixture
def core(pipeline: Any, references: Any) -> Any:
    return lambda: AnswersDrift(pipeline, 0, references)


def windows(run: Any) -> list[AnswersSummary]:
    return [msgspec.json.decode(one["body"], type=AnswersSummary) for one in run.sent]


def test_window_closes_with_the_slower_writer_and_is_published_once(run: Any, core: Any) -> None:
    """
    One summary a window, on partition 0, caused by the tick that closed it.
    """
    ahead = [tick(Writer.INFERENCE, START_MS + DAY_MS * day) for day in range(3)]
    log = [ahead[0], answer(START_MS + 1, 0), *ahead[1:], *[tick(Writer.FEATURE, START_MS + DAY_MS * day) for day in range(2)]]
    sent = run(core, log).sent
    assert [(one["kind"], one["start"], one["end"]) for one in sent] == [("answers", START_MS, START_MS + DAY_MS)]
    assert (sent[0]["to"], sent[0]["source"], sent[0]["offset"], sent[0]["index"]) == (0, Source.JOURNAL, len(log) - 1, 0)


def test_empty_windows_are_published_too(run: Any, core: Any) -> None:
    """
    Who merges must know that a partition has passed a window.
    """
    found = windows(run(core, days(3, [answer(START_MS + 2 * DAY_MS, 0)])))
    assert [sum(arm.rows for arm in window.arms.values()) for window in found] == [0, 0, 1]


def test_several_windows_that_one_tick_closes_are_told_apart(run: Any, core: Any) -> None:
    """
    After a gap one tick closes many: same cause, rising index.
    """
    sent = run(core, [*both(START_MS), *both(START_MS + 3 * DAY_MS)]).sent
    assert [(one["offset"], one["index"], one["start"]) for one in sent] == [(3, at, START_MS + at * DAY_MS) for at in range(3)]


def test_inputs_are_counted_in_the_bins_of_the_model_that_was_served(run: Any, core: Any) -> None:
    """
    Three bins and one for missing.
    """
    values = [-1.0, 5.0, 6.0, 20.0, float("nan")]
    found = windows(run(core, days(1, [answer(START_MS + at, at, delay=value) for at, value in enumerate(values)])))[0]
    assert found.inputs["one"].rows == 5
    assert found.inputs["one"].bins == {"delay": [1, 2, 1, 1], "wind": [5, 0, 0]}


def test_answers_without_a_model_give_missing_rates_only(run: Any, core: Any) -> None:
    """
    There is no reference to count bins by.
    """
    none = {"arm": "none", "model": "", "digest": "", "flags": int(Flag.DEGRADED)}
    found = windows(run(core, days(1, [answer(START_MS + at, at, delay=value, **none) for at, value in enumerate([1.0, float("nan")])])))[0]
    assert found.inputs[""].bins == {"delay": [1, 1], "wind": [2, 0]}
    arm = found.arms["none|"]
    assert (arm.rows, arm.invalid, sum(arm.scores), arm.alerts) == (2, 0, 0, 0)


def test_scores_without_a_number_are_counted_apart(run: Any, core: Any) -> None:
    """
    What was served instead of a score is in no histogram.
    """
    log = days(
        1,
        [
            answer(START_MS, 0, score=0.75),
            answer(START_MS + 1, 1, score=0.9, flags=int(Flag.NO_SCORE)),
            shadow(START_MS + 2, 1, score=float("nan")),
        ],
    )
    arms = windows(run(core, log))[0].arms
    assert (arms["champion|one"].rows, arms["champion|one"].invalid, sum(arms["champion|one"].scores)) == (2, 1, 1)
    assert (arms["champion|one"].alerts, arms["champion|one"].total * UNIT) == (1, pytest.approx(0.75))
    assert (arms["frozen|zero"].rows, arms["frozen|zero"].invalid) == (1, 1)


def test_shadow_is_compared_with_the_champion_on_the_same_rows(run: Any, core: Any) -> None:
    """
    Pairs are of one event offset; a row that the canary answered, or that has no number, makes none.
    """
    log = [
        answer(START_MS, 0, score=0.5),
        shadow(START_MS, 0, score=0.25),
        answer(START_MS + 1, 1, score=0.75, arm="canary", digest="two"),
        shadow(START_MS + 1, 1, score=0.25),
        answer(START_MS + 2, 2, score=0.75, flags=int(Flag.NO_SCORE)),
        shadow(START_MS + 2, 2, score=0.25),
    ]
    arms = windows(run(core, days(1, log)))[0].arms
    pairs = arms["frozen|zero"].pairs
    assert (pairs.rows, pairs.difference * UNIT, pairs.champion_total * UNIT) == (1, pytest.approx(-0.25), pytest.approx(0.5))
    assert (pairs.alerts, pairs.champion_alerts) == (0, 1)
    assert arms["frozen|zero"].rows == 3
    assert arms["champion|one"].pairs.rows == 0


def test_late_answer_belongs_to_the_window_that_is_open(run: Any, core: Any) -> None:
    """
    A window that closed never changes, and nothing is lost.
    """
    late = [*both(START_MS), *both(START_MS + DAY_MS), answer(START_MS + 5, 0), *both(START_MS + 2 * DAY_MS)]
    assert [len(window.arms) for window in windows(run(core, late))] == [0, 1]


def test_row_of_another_layout_is_left_out_of_the_inputs(run: Any, core: Any) -> None:
    """
    Its columns mean something else.
    """
    found = windows(run(core, days(1, [answer(START_MS, 0, row=b"\0" * 8)])))[0]
    assert found.inputs == {}
    assert found.arms["champion|one"].rows == 1


def test_outcomes_are_read_past(run: Any, core: Any) -> None:
    """
    They count as applied, or the sum would not add up.
    """
    played = run(core, [*both(START_MS), outcome(START_MS + 1), answer(START_MS + 1, 0)])
    assert played.counts == {"applied": 2, "tick": 2}


def drawn(draw: random.Random) -> list[Record]:
    """Three days of answers with shadows, some of them late."""
    log: list[Record] = []
    for number in range(draw.randint(5, 60)):
        visible = START_MS + draw.randrange(3 * DAY_MS)
        score = draw.choice([draw.random(), draw.random(), float("nan")])
        served = draw.choice([{}, {}, {"arm": "canary", "digest": "two", "deployment": 4}])
        log.append(answer(visible, number, score=score, delay=draw.gauss(5, 8), **served))
        log += [shadow(visible, number, 1 + at, digest=digest, score=draw.random()) for at, digest in enumerate(["zero", "nil"])]
    return log


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_same_summaries_and_same_state_wherever_the_journal_is_cut(run: Any, core: Any, seed: int) -> None:
    """
    Batches cut anywhere, between a row's answers too, leave the same bytes.
    """
    draw = random.Random(seed)
    log = days(3, drawn(draw))
    for _ in range(draw.randint(0, 5)):
        log.insert(draw.randrange(len(log)), answer(START_MS, 1_000))
    whole = run(core, log)
    parts = run(core, log, draw.sample(range(len(log)), k=12), reload=True)
    assert parts.sent == whole.sent
    assert parts.rows == whole.rows


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_partitions_add_up_to_the_whole(run: Any, core: Any, seed: int) -> None:
    """
    One partition or two: the merged window is the same, to the byte.
    """
    draw = random.Random(seed)
    answers = drawn(draw)
    parts = [windows(run(core, days(3, [one for one in answers if one[1]["event_offset"] % 2 == half]))) for half in (0, 1)]
    assert [one + other for one, other in zip(*parts, strict=True)] == windows(run(core, days(3, answers)))
