"""One report a window, when every partition has passed it, and the commands that it raises."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftline.contracts.messages import Source, Writer
from driftline.judge.summaries import SCORE_BINS, UNIT, AnswersSummary, Arm, ExamplesSummary, Inputs, Quality, Summary, encoded
from services.drift.core import Merge

DAY_MS = 86_400_000
START_MS = 15_706 * DAY_MS  # 1 January 2013
PARTITIONS = 2

Record = tuple[str, dict[str, Any]]


def summary(kind: str, day: int, partition: int, content: Summary) -> Record:
    """What one partition publishes of one window."""
    writer = Writer.DRIFT_JOURNAL if kind == "answers" else Writer.DRIFT_EXAMPLES
    start = START_MS + day * DAY_MS
    return "summary", {
        "kind": kind,
        "start": start,
        "end": start + DAY_MS,
        "body": encoded(content),
        "partition": partition,
        "writer": writer,
    }


def answers(day: int, partition: int, digest: str = "", deployment: int = 0, bins: list[int] | None = None) -> Record:
    """A window in which model `digest` served as champion; none at all when it is empty."""
    if not digest:
        return summary("answers", day, partition, AnswersSummary(inputs={"": Inputs(5, {"delay": [4, 1]})}))
    arm = Arm("champion", f"model-{digest}", digest, deployment, 0, 300, scores=[15] * SCORE_BINS)
    inputs = Inputs(300, {"delay": bins or [120, 90, 90, 0], "wind": [150, 150, 0]})
    return summary("answers", day, partition, AnswersSummary({f"champion|{digest}": arm}, {digest: inputs}))


def cohort(day: int, partition: int, digest: str = "", z: float = 0.0, *, trainable: int = 0, rows: int = 500) -> Record:
    """A cohort of model `digest` as champion with a residual, over both partitions, of about `z` dispersed deviations."""
    models = {}
    if digest:
        variance = rows * 0.25
        surplus = z * 2.0 * (2 * variance) ** 0.5 / 2  # dispersion 4, half of it in each partition
        sums = {"expected": round(rows * 0.5 / UNIT), "variance": round(variance / UNIT), "log_loss": round(rows * 0.69 / UNIT)}
        models[f"champion|{digest}"] = Quality("champion", f"model-{digest}", digest, rows, 0, round(rows * 0.5 + surplus), **sums)
    return summary("examples", day, partition, ExamplesSummary(models, told=rows, trainable=trainable))


def trained(id: str, day: int, outcome: str = "accepted", rows: int = 1_000) -> Record:
    """The trainer's answer to a command."""
    fields = {
        "id": id,
        "trigger": "first",
        "outcome": outcome,
        "reason": "",
        "time": START_MS + day * DAY_MS,
        "rows": rows,
        "model": "m",
        "digest": "one",
    }
    return "trained", fields | {"partition": 0, "writer": Writer.TRAINER}


def report_day(
    day: int, digest: str = "", deployment: int = 0, z: float = 0.0, *, judged: str | None = None, trainable: int = 0, **fields: Any
) -> list[Record]:
    """All summaries that the report at the end of `day` waits for: its window, and the cohort of two days before."""
    found = [answers(day, partition, digest, deployment, **fields) for partition in range(PARTITIONS)]
    if day >= 2:
        found += [
            cohort(day - 2, partition, digest if judged is None else judged, z, trainable=trainable // 2) for partition in range(PARTITIONS)
        ]
    return found


def played(days: int, **fields: Any) -> list[Record]:
    return [record for day in range(days) for record in report_day(day, **fields)]


@pytest.fixture
def core(pipeline: Any, references: Any) -> Any:
    return lambda: Merge(pipeline, PARTITIONS, references)


def commands(run: Any) -> list[tuple[str, str]]:
    """When and why training was asked for."""
    return [(one["trigger"], one["id"]) for one in run.sent if one["message"] == "retrain"]


def test_window_is_reported_when_the_last_partition_has_passed_it(run: Any, core: Any) -> None:
    """
    One report, on control, caused by the summary that completed the window.
    """
    log = [answers(0, 0), answers(1, 0), answers(0, 1)]
    sent = run(core, log).sent
    assert [(one["topic"], one["message"], one["start"], one["end"]) for one in sent] == [
        ("control", "report", START_MS, START_MS + DAY_MS)
    ]
    assert (sent[0]["source"], sent[0]["offset"], sent[0]["index"], sent[0]["event_offset"]) == (Source.SUMMARIES, 2, 0, -1)


def test_report_waits_for_the_cohorts_that_are_complete_by_its_end(run: Any, core: Any) -> None:
    """
    The third day ends a day and a half after the first cohort, so its report waits for that one.
    """
    windows = [answers(day, partition) for day in range(3) for partition in range(PARTITIONS)]
    assert len(run(core, windows).sent) == 2
    waiting = run(core, [*windows, cohort(0, 0, "one")])
    assert len(waiting.sent) == 2
    bodies = run(core, [*windows, cohort(0, 0, "one"), cohort(0, 1, "one")]).bodies("report")
    assert [(one["cohort"], one["n"]) for one in bodies[2]["quality"]] == [(START_MS, 1_000)]
    assert [one["quality"] for one in bodies[:2]] == [[], []]


def test_empty_windows_are_reported(run: Any, core: Any) -> None:
    """
    A day on which nothing was asked moves the clock all the same.
    """
    log = [summary("answers", 0, partition, AnswersSummary()) for partition in range(PARTITIONS)]
    bodies = run(core, log).bodies("report")
    assert [(one["models"], one["inputs"], one["quality"], one["answers"]) for one in bodies] == [({}, {}, [], 0)]


def test_pipeline_without_a_label_is_reported_without_quality(run: Any, core: Any, pipeline: Any) -> None:
    """
    Nobody writes examples then, and nobody waits for them.
    """
    pipeline.label = None
    log = [answers(day, partition, "one", 1) for day in range(4) for partition in range(PARTITIONS)]
    assert len(run(core, log).bodies("report")) == 4


def test_first_model_is_asked_for_once(run: Any, core: Any) -> None:
    """
    The command is named on the report that raised it, and not repeated while it is unanswered.
    """
    found = run(core, played(17))
    assert commands(found) == [("first", "flights-first-2013-01-15")]
    report = next(one for one in found.sent if one["message"] == "report" and one["end"] == START_MS + 14 * DAY_MS)
    command = next(one for one in found.sent if one["message"] == "retrain")
    assert "flights-first-2013-01-15" in report["retrains"]
    assert (command["offset"], command["index"], report["index"]) == (report["offset"], 1, 0)
    assert (command["time"], command["who"], command["topic"]) == (START_MS + 14 * DAY_MS, "drift", "retrain")


def quality_log(switch: int | None = None) -> list[Record]:
    """Model one serves from day 15, too few positives by two deviations a day; model two from day `switch`, healthy."""
    log = [*played(15), trained("flights-first-2013-01-15", 14)]
    for day in range(15, 45):
        two = switch is not None and day >= switch
        judged = "two" if switch is not None and day - 2 >= switch else "one" if day - 2 >= 15 else ""
        log += report_day(day, "two" if two else "one", 2 if two else 1, 0.0 if judged == "two" else -2.0, judged=judged)
    return log


def test_quality_alarm_asks_for_a_model_with_its_evidence(run: Any, core: Any) -> None:
    """
    Two deviations a day less 0.25 cross 6.67 on the fourth cohort that the champion answered from start to end.
    """
    found = run(core, quality_log())
    assert commands(found)[1] == ("quality", "flights-quality-2013-01-23")
    evidence = msgspec.json.decode(
        next(one for one in found.sent if one["message"] == "retrain" and one["trigger"] == "quality")["evidence"]
    )
    assert evidence["signal"]["side"] == "low"
    assert evidence["chart"]["digest"] == "one"
    alarms = [one for body in found.bodies("report") for one in body["alarms"] if one["subject"] == "quality"]
    assert alarms[0] == {"subject": "quality", "detector": "cusum", "since": START_MS + 22 * DAY_MS}


def test_cohorts_of_the_champions_first_window_are_not_judged(run: Any, core: Any) -> None:
    """
    It may have come in the middle of it.
    """
    charts = [
        (body["chart"].get("blocks"), [one["cohort"] for one in body["quality"]]) for body in run(core, quality_log()).bodies("report")
    ]
    judged = [cohorts for (before, _), (after, cohorts) in pairwise(charts) if (after or 0) > (before or 0)]
    assert judged[0] == [START_MS + 16 * DAY_MS]


def test_chart_starts_again_with_a_new_champion(run: Any, core: Any) -> None:
    """
    The alarm ends, the sums are zero, and cohorts of the old champion are judged no more.
    """
    bodies = run(core, quality_log(switch=26)).bodies("report")
    assert bodies[25]["chart"]["alarm"] is True
    after = bodies[26]["chart"]
    assert (after["digest"], after["alarm"], after["blocks"], after["low"]) == ("two", False, 0, 0.0)
    assert bodies[-1]["chart"]["alarm"] is False


def test_alarm_is_silent_when_the_champion_is_healthy(run: Any, core: Any) -> None:
    """
    Residuals of nothing but rounding never reach the limit: the next command is the schedule's.
    """
    log = [*played(15), trained("flights-first-2013-01-15", 14)]
    for day in range(15, 45):
        log += report_day(day, "one", 1, 0.0)
    assert commands(run(core, log))[1:] == [("schedule", "flights-schedule-2013-02-12")]


def test_growth_of_labels_asks_for_a_model(run: Any, core: Any) -> None:
    """
    Trainable rows add up over the partitions.
    """
    log = [*played(15), trained("flights-first-2013-01-15", 14, rows=1_000)]
    for day in range(15, 30):
        log += report_day(day, "one", 1, trainable=1_400 if day < 25 else 1_500)
    found = run(core, log)
    assert commands(found)[1:] == [("new_labels", "flights-new_labels-2013-01-27")]
    assert found.bodies("report")[25]["trainable_rows"] == 1_500


def test_too_few_rows_stay_off_the_chart(run: Any, core: Any) -> None:
    """
    A residual of a few answers is far from normal.
    """
    log = played(4, digest="one", deployment=1)
    log += [cohort(2, partition, "one", -9.0, rows=40) for partition in range(PARTITIONS)] + [
        answers(4, partition, "one", 1) for partition in range(PARTITIONS)
    ]
    assert run(core, log).bodies("report")[4]["chart"]["blocks"] == 1


def test_input_that_drifts_alarms_once_a_week_is_mostly_drifted_and_triggers_nothing(run: Any, core: Any) -> None:
    """
    PSI is of the last seven windows, beyond its limit in two of three; and it is evidence alone.
    """
    log: list[Record] = []
    for day in range(20):
        log += report_day(day, "one", 1, bins=[0, 0, 300, 0] if day >= 10 else None)
    found = run(core, log)
    drifting = [[one["subject"] for one in body["alarms"]] for body in found.bodies("report")]
    assert drifting[:11] == [[]] * 11
    assert drifting[-1] == ["input:delay"]
    assert commands(found) == []


def test_summary_that_cannot_be_read_is_refused_and_the_others_go_on(run: Any, core: Any) -> None:
    """
    It goes to the dead letters; its window stays open, and says so.
    """
    kind, fields = answers(0, 0)
    log = [(kind, fields | {"body": b"{"}), (kind, fields | {"kind": "gossip"}), answers(0, 1)]
    found = run(core, log)
    assert found.counts == {"applied": 1}
    assert found.core.windows_open == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_order_of_partitions_and_of_writers_does_not_change_a_report(run: Any, core: Any, seed: int) -> None:
    """
    Each partition and kind speaks in its own order; how they interleave is nobody's.
    """
    draw = random.Random(seed)
    log = [record for day in range(8) for record in report_day(day, "one", 1, draw.gauss(0, 1), trainable=day * 100)]
    lanes: dict[tuple[str, int], list[Record]] = {}
    for record in log:
        lanes.setdefault((record[1]["kind"], record[1]["partition"]), []).append(record)
    mixed = []
    while any(lanes.values()):
        mixed.append(draw.choice([lane for lane in lanes.values() if lane]).pop(0))
    assert run(core, mixed).bodies("report") == run(core, log).bodies("report")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_same_reports_commands_and_state_wherever_the_log_is_cut(run: Any, core: Any, seed: int) -> None:
    """
    Batches cut anywhere, each by a new core that knows the stored rows alone.
    """
    draw = random.Random(seed)
    log = quality_log(switch=draw.choice([None, 26]))
    whole = run(core, log)
    parts = run(core, log, draw.sample(range(len(log)), k=15), reload=True)
    assert parts.sent == whole.sent
    assert parts.rows == whole.rows


def test_a_summary_that_is_none_is_refused_and_the_reports_go_on(run: Any, core: Any) -> None:
    """
    Of a partition that there is not, of half a window, with other bins, with numbers that no state can hold, or of what is reported.
    """
    kind, fields = answers(1, 0, "one", 1)
    body = msgspec.json.decode(fields["body"])
    (arm,) = body["arms"].values()
    bad = [
        fields | {"partition": PARTITIONS},
        fields | {"start": fields["start"] + 1},
        fields | {"body": msgspec.json.encode(body | {"arms": {"champion|one": arm | {"scores": [1]}}})},
        fields | {"body": msgspec.json.encode(body | {"arms": {"champion|one": arm | {"total": 1 << 63}}})},
        fields | {"body": msgspec.json.encode(body | {"inputs": {"one": {"rows": 1, "bins": {"unheard": [1]}}}})},
        fields | {"body": b"[" * 100_000},
        dict(answers(0, 0, "one", 1)[1]),
    ]
    good = [answers(day, partition, "one", 1) for day in range(2) for partition in range(PARTITIONS)]
    found = run(core, [*good[:2], *((kind, one) for one in bad), *good[2:]])
    assert found.refused == [*((2 + at, "contract") for at in range(5)), (7, "undecodable"), (8, "late")]
    assert len(found.bodies("report")) == 2
