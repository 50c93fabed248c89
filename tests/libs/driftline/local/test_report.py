"""The final report: computed from logs made up here, with one thing wrong at a time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from driftline.contracts.messages import Arm, Deployment, Release, Retrain, Trained
from driftline.local.child import Usage
from driftline.local.drills import BadModel, Kill
from driftline.local.evidence import KINDS, Logs, Rows
from driftline.local.progress import Sample
from driftline.local.report import Run, as_text, findings, learned, rows_digest, sums

DAY = 86_400_000
START = 1_356_998_400_000  # 1 January 2013
RELEASED = START + 99 * DAY
FIRST, SECOND, BAD = "a" * 64, "b" * 64, "c" * 64
BROKEN = {"topic": "flights", "partition": 1, "offset": 7, "reason": "contract", "kind": "wrong_type", "id": "x"}


def prediction(id: str, offset: int) -> dict[str, Any]:
    return {"partition": 0, "event_offset": offset, "id": id}


def example(id: str, offset: int, label: int, **fields: Any) -> dict[str, Any]:
    about = {"partition": 0, "event_offset": offset, "id": id, "asked": START + offset * DAY, "known": START + (offset + 2) * DAY}
    said = {"label": label, "silent": False, "revision": 0, "answer_index": 0, "digest": FIRST, "score": 0.5}
    return about | said | fields


def frame(lines: list[dict[str, Any]], *texts: str) -> pl.DataFrame:
    shape = {name: KINDS.get(name, pl.Int64) for name in lines[0]} | dict.fromkeys(("id", *texts), pl.String) | {"silent": pl.Boolean}
    return pl.DataFrame(lines, schema={name: kind for name, kind in shape.items() if name in lines[0]})


def deployment(version: int, move: str, time: int, **arms: str) -> Deployment:
    served = tuple(Arm(role, role, digest, 1.0) for role, digest in arms.items() if role in ("champion", "canary"))
    shadows = tuple(Arm(role, role, digest, 0.0) for role, digest in arms.items() if role in ("candidate", "frozen", "previous"))
    return Deployment(version, move, "idle", f"because of {move}", time, served, shadows, "", 0.5)


def release_of(rows: Rows, examples: list[dict[str, Any]]) -> Release:
    """A release of the first model, whose dataset is all of `examples`."""
    ordered = sorted(examples, key=lambda one: (one["asked"], one["partition"], one["event_offset"]))
    content = hashlib.sha256(rows.packed[[int(np.flatnonzero(rows.event_offset == one["event_offset"])[0]) for one in ordered]].tobytes())
    content.update(np.array([one["label"] for one in ordered], np.int8).tobytes())
    content.update(np.array([one["asked"] for one in ordered], "<i8").tobytes())
    split = {"until": RELEASED, "train_until": RELEASED}
    dataset = {"rows": len(ordered), "digest": content.hexdigest(), "split": split}
    return Release("flights-1", FIRST, "accepted", "better", True, RELEASED, "first", "flights-first", "trainer", {"dataset": dataset})


def healthy() -> tuple[Run, Logs]:
    """A play of four questions in which every promise holds."""
    labels = {"f0": 0, "f1": 1, "f2": 0, "f3": 1}
    served = [example(id, at, label, score=0.9 if label else 0.1) for at, (id, label) in enumerate(labels.items())]
    packed = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = Rows(np.zeros(4, np.int64), np.array([3, 1, 0, 2], np.int64), packed)
    ids = frame([prediction(id, at) for at, id in enumerate(labels)])
    logs = Logs(
        predictions=ids,
        answers=ids,
        outcomes=ids.head(3),
        examples=frame(served, "digest"),
        dead_letters=pl.DataFrame([{name: BROKEN[name] for name in ("topic", "partition", "offset", "reason")}]),
        rows=rows,
        retrains=[Retrain("flights-first", "first", START, "drift", {})],
        trained=[Trained("flights-first", "first", "accepted", "better", START, 4, "flights-1", FIRST)],
        releases=[release_of(rows, served)],
        deployments=[deployment(1, "champion", START, champion=FIRST)],
    )
    played = {
        "days": 4,
        "messages": 10,
        "published": {"flights": 5, "arrivals": 5},
        "real": {"flights": 4, "arrivals": 3},
        "duplicates": {"arrivals": 2},
        "broken": [BROKEN],
        "broken_by_kind": {"wrong_type": 1},
        "left_out": 0,
        "waited_s": {"publish_s": 0.1, "report_s": 1.0, "trainer_s": 2.0, "rollout_s": 0.5},
        "waited_longest_s": {"publish_s": 0.1, "report_s": 1.0, "trainer_s": 2.0, "rollout_s": 0.5},
    }
    label = {"service": "feature", "topic": "flights-events"}
    metrics = {
        "feature": [
            Sample("driftline_messages_read_total", label, 9.0),
            Sample("driftline_messages_total", label | {"outcome": "applied"}, 7.0),
            Sample("driftline_messages_total", label | {"outcome": "duplicate"}, 2.0),
        ]
    }
    run = Run(
        pipeline="flights",
        label_topic="arrivals",
        question_topic="flights",
        started_ms=START,
        wall_s=2.0,
        partitions=2,
        seed=7,
        played=played,
        truth=pl.DataFrame({"id": list(labels), "label": list(labels.values()), "arrived": [1, 2, 3, None]}),
        kills=[Kill(1, "feature", 42, "flights-features", 0.8)],
        metrics=metrics,
        usage={"feature": Usage(0.001, 10 << 20), "kafka": Usage(0.002, 20 << 20)},
    )
    return run, logs


def broken_promises(run: Run, logs: Logs) -> list[str]:
    return [one["name"] for one in findings(run, logs)["promises"] if not one["held"]]


def test_a_play_without_fault_keeps_every_promise():
    """
    All promises hold, and the keys that others read are there.
    """
    found = findings(*healthy())
    assert [one for one in found["promises"] if not one["held"]] == []
    assert found["held"] is True
    assert {name: found[name] for name in ("asked", "answered", "lost", "repeated", "messages")} == {
        "asked": 4,
        "answered": 4,
        "lost": 0,
        "repeated": 0,
        "messages": 10,
    }
    assert found["cpu_us_per_message"] == {"feature": 100.0, "kafka": 200.0}


@pytest.mark.parametrize(
    ("predictions", "counts"),
    [
        (["f0", "f1", "f2"], {"answered": 3, "lost": 1, "repeated": 0, "unknown": 0}),
        (["f0", "f1", "f2", "f3", "f3"], {"answered": 4, "lost": 0, "repeated": 1, "unknown": 0}),
        (["f0", "f1", "f2", "f3", "f9"], {"answered": 4, "lost": 0, "repeated": 0, "unknown": 1}),
        ([], {"answered": 0, "lost": 4, "repeated": 0, "unknown": 0}),
    ],
)
def test_a_question_lost_repeated_or_never_asked_breaks_the_first_promise(predictions: list[str], counts: dict[str, int]):
    """
    Each is counted apart, and each alone is enough.
    """
    run, logs = healthy()
    schema = {"partition": pl.Int64, "event_offset": pl.Int64, "id": pl.String}
    logs.predictions = pl.DataFrame([prediction(id, at) for at, id in enumerate(predictions)], schema=schema)
    found = findings(run, logs)
    assert {name: found[name] for name in counts} == counts
    assert "every question is answered once, by first copy" in broken_promises(run, logs)


def test_a_second_outcome_of_one_message_breaks_the_promise_about_copies():
    """
    An outcome more than the arrivals that were really published means that a copy had an effect.
    """
    run, logs = healthy()
    logs.outcomes = pl.concat([logs.outcomes, logs.outcomes.head(1)])
    assert broken_promises(run, logs) == ["messages sent twice have no effect"]


@pytest.mark.parametrize("change", [{"offset": 8}, {"reason": "future"}, {"topic": "arrivals"}])
def test_a_dead_letter_of_another_record_or_reason_breaks_the_promise_about_broken_messages(change: dict[str, Any]):
    """
    The right number is not enough: place and reason must be those of what was broken.
    """
    run, logs = healthy()
    logs.dead_letters = pl.DataFrame([{name: BROKEN[name] for name in ("topic", "partition", "offset", "reason")} | change])
    found = findings(run, logs)["dead_letters"]
    assert (len(found["missing"]), len(found["unexpected"])) == (1, 1)
    assert broken_promises(run, logs) == ["broken messages are kept with their reason, and nothing else is"]


def test_no_dead_letter_at_all_is_no_error_of_the_report():
    """
    An empty topic gives a broken promise, not a traceback.
    """
    run, logs = healthy()
    logs.dead_letters = logs.dead_letters.clear()
    assert findings(run, logs)["dead_letters"]["count"] == 0


def test_a_wrong_label_breaks_the_promise_about_labels_and_a_revision_mends_it():
    """
    The newest revision counts.
    """
    run, logs = healthy()
    wrong = logs.examples.with_columns(label=pl.when(pl.col("id") == "f1").then(0).otherwise("label").cast(pl.Int64))
    logs.examples = wrong
    assert "every answer gets its true label" in broken_promises(run, logs)
    mended = frame([example("f1", 1, 1, revision=1, score=0.9)], "digest").select(wrong.columns)
    logs.examples = pl.concat([wrong, mended])
    found = findings(run, logs)["labels"]
    assert (found["wrong"], found["revised"], found["labelled"]) == (0, 1, 4)


def test_a_missing_label_breaks_the_promise_about_labels():
    """
    Every question that was asked needs one.
    """
    run, logs = healthy()
    logs.examples = logs.examples.filter(pl.col("id") != "f2")
    assert "every answer gets its true label" in broken_promises(run, logs)


def test_a_row_that_differs_in_one_bit_from_what_was_trained_on_is_found():
    """
    The dataset's digest covers the bytes of every row.
    """
    run, logs = healthy()
    packed = logs.rows.packed.copy()
    packed[2, 1] = np.nextafter(packed[2, 1], np.float32(9))
    logs.rows = replace(logs.rows, packed=packed)
    assert broken_promises(run, logs) == ["rows trained on are the rows served, byte for byte"]


def test_a_training_that_did_not_wait_for_all_labels_breaks_the_promise_that_a_run_repeats():
    """
    How far the labels had come is a matter of speed; the time of the command is not.
    """
    run, logs = healthy()
    logs.releases = [replace(logs.releases[0], time=RELEASED + 3 * 3_600_000)]
    found = [one for one in findings(run, logs)["promises"] if not one["held"]]
    assert [one["detail"] for one in found] == ["flights-1: 3.0 h early"]


def test_a_play_too_short_for_a_training_promises_nothing_about_trainings():
    """
    There is nothing to compare.
    """
    run, logs = healthy()
    logs.releases = []
    assert not [one for one in findings(run, logs)["promises"] if "train" in one["name"] and "retrain" not in one["name"]]


def test_two_runs_with_the_same_rows_have_one_digest_whatever_the_order_and_the_partitions():
    """
    Rows are compared by id; one bit makes another digest.
    """
    _, logs = healthy()
    back = np.arange(4)[::-1]
    turned = replace(
        logs.rows, partition=logs.rows.partition[back] + 3, event_offset=logs.rows.event_offset[back], packed=logs.rows.packed[back]
    )
    assert rows_digest(logs.answers[back], turned) == rows_digest(logs.answers, logs.rows)
    turned.packed[0, 0] += 1
    assert rows_digest(logs.answers[back], turned) != rows_digest(logs.answers, logs.rows)


def test_a_retrain_command_that_nobody_answered_breaks_its_promise():
    """
    Refused is an answer, silence is none.
    """
    run, logs = healthy()
    logs.trained = []
    assert broken_promises(run, logs) == ["every retrain command is answered"]


def test_a_message_read_and_not_accounted_for_breaks_the_promise_about_sums():
    """
    One of nine messages has become nothing.
    """
    run, logs = healthy()
    run.metrics = {"feature": run.metrics["feature"][:2]}
    assert sums(run.metrics) == [{"service": "feature", "topic": "flights-events", "read": 9, "accounted": 7}]
    assert broken_promises(run, logs) == ["what each service reads is accounted for"]


def test_services_that_show_no_metrics_break_the_promise_about_sums():
    """
    No sum is not a sum that adds up.
    """
    run, logs = healthy()
    run.metrics = {}
    assert broken_promises(run, logs) == ["what each service reads is accounted for"]


def test_a_killed_process_that_gave_no_output_again_breaks_its_promise():
    """
    A kill must be followed by new output.
    """
    run, logs = healthy()
    run.kills = [Kill(1, "inference", 42, "flights-predictions", None)]
    assert broken_promises(run, logs) == ["what is killed comes back by itself"]


def test_the_bad_model_is_told_with_stage_time_and_guardrail():
    """
    It scored as a candidate for two days and was refused before it answered anybody.
    """
    run, logs = healthy()
    run.bad_model = BadModel("flights-bad", BAD, FIRST, START + DAY)
    logs.deployments = [
        *logs.deployments,
        deployment(2, "shadow", START + DAY, champion=FIRST, candidate=BAD),
        deployment(2, "nothing", START + 2 * DAY, champion=FIRST, candidate=BAD),
        deployment(3, "refused", START + 3 * DAY, champion=FIRST),
    ]
    bad = findings(run, logs)["bad_model"]
    assert (bad["caught"], bad["stage"], bad["days_scored"], bad["served"]) == (True, "shadow", 2.0, False)
    assert bad["guardrail"] == "because of refused"
    assert broken_promises(run, logs) == []


def test_a_bad_model_that_became_champion_breaks_its_promise():
    """
    Even when it was taken back later.
    """
    run, logs = healthy()
    run.bad_model = BadModel("flights-bad", BAD, FIRST, START + DAY)
    logs.deployments = [
        *logs.deployments,
        deployment(2, "champion", START + 2 * DAY, champion=BAD, previous=FIRST),
        deployment(3, "rolled_back", START + 3 * DAY, champion=FIRST),
    ]
    found = findings(run, logs)["bad_model"]
    assert (found["stage"], found["served"], found["champion"]) == ("champion", True, True)
    assert broken_promises(run, logs) == ["a bad model never becomes champion"]


def test_the_loop_and_the_frozen_model_are_compared_on_the_answers_that_both_scored():
    """
    An answer from before the first model is left out; the second model's answers count for the loop, its shadow for the frozen one.
    """
    _, logs = healthy()
    before = example("f0", 0, 0, digest="", score=0.5)
    by_first = [example("f1", 1, 1, score=0.4), example("f2", 2, 0, score=0.6)]
    by_second = [example("f3", 3, 1, digest=SECOND, score=0.9), example("f3", 3, 1, answer_index=1, score=0.2)]
    by_second += [example("f4", 40, 0, digest=SECOND, score=0.1), example("f4", 40, 0, answer_index=1, score=0.8)]
    logs.examples = frame([before, *by_first, *by_second], "digest")
    found = learned(logs)
    assert found["rows"] == 4
    assert (found["auc_loop"], found["auc_frozen"]) == (0.75, 0.0)
    assert found["log_loss_loop"] == pytest.approx(-np.log([0.4, 0.4, 0.9, 0.9]).mean(), abs=1e-6)
    assert [one["month"] for one in found["learning"]["months"]] == ["January 2013", "February 2013"]


def test_without_a_champion_nothing_is_said_about_learning():
    """
    A short play ends before the first model.
    """
    _, logs = healthy()
    logs.deployments = []
    assert learned(logs)["auc_loop"] is None


def test_the_text_names_what_was_broken_and_ends_with_the_verdict():
    """
    People read the last line first.
    """
    run, logs = healthy()
    assert as_text(findings(run, logs)).splitlines()[-1].startswith("all ")
    logs.trained = []
    text = as_text(findings(run, logs))
    assert "BROKEN every retrain command is answered (flights-first)" in text
    assert text.splitlines()[-1].startswith("1 of ")
