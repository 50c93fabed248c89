"""Inference: rows in, predictions and answers out, whatever the models do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from driftline.contracts.avro import pack_strings, unpack_strings
from driftline.contracts.messages import Arm, Deployment, Flag
from driftline.errors import Invalid
from driftline.pipeline import load_pipeline
from driftline.stream.batch import Batch, Table, Varlen
from services.inference.core import Inference, memory_s

PIPELINES = Path(__file__).resolve().parents[3] / "pipelines"
ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("flights", PIPELINES)


@pytest.fixture
def inference(pipeline):
    return Inference(pipeline)


class Fake:
    """A model that adds up features: each feature's weight by name, NaN where a row's `minute_of_day` is negative."""

    def __init__(self, layout, threshold=0.5, **weights):
        self.manifest = SimpleNamespace(names=layout.names)
        self.threshold = np.float32(threshold)
        self.medians = np.zeros(len(layout.names), np.float32)
        self._weights = np.array([weights.get(name, 0.0) for name in layout.names], np.float32)
        self._broken = layout.names.index("minute_of_day")
        self.rows_scored = 0

    def score(self, matrix):
        self.rows_scored += len(matrix)
        scores = np.nan_to_num(matrix) @ self._weights
        return np.where(matrix[:, self._broken] < 0, np.float32(np.nan), scores).astype(np.float32)


def deployment(version, arms=(), shadows=(), salt="s", fallback=0.25):
    return Deployment(version, "canary", "canary", "", 0, tuple(arms), tuple(shadows), salt, fallback)


def champion(digest=ONE, share=1.0):
    return Arm("champion", f"flights-{digest[0]}", digest, share)


def rows_of(pipeline, features, versions, *, ages=None, keys=None, layout=None, first_offset=100):
    """A table of rows as feature writes them. `features` is a list of dicts by feature name; others are 0."""
    n = len(features)
    names = pipeline.layout.names
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in features], np.float32).reshape(n, len(names))
    ages = np.full((n, len(pipeline.layout.views)), 60.0, np.float32) if ages is None else np.asarray(ages, np.float32)
    keys = keys or [f"N{at}" for at in range(n)]
    offsets = np.arange(first_offset, first_offset + n, dtype=np.int64)
    columns = {
        "source": np.full(n, 1),
        "partition": np.full(n, 3),
        "offset": offsets + 1000,
        "index": np.zeros(n, np.int64),
        "event_offset": offsets + 1000,
        "writer": np.full(n, 2),
        "id": Varlen.of(f"flight-{at}" for at in range(n)),
        "key": Varlen.of(keys),
        "time": offsets * 10,
        "visible": offsets * 10 + 5,
        "deployment": np.asarray(versions, np.int64),
        "layout": Varlen.of(layout or [pipeline.layout.version] * n),
        "slices": Varlen.of([pack_strings(["EWR", "UA"])] * n),
        "row": pipeline.layout.pack(matrix, ages),
    }
    return Table("row", offsets, columns)


def batch_of(*tables):
    offsets = np.concatenate([table.offsets for table in tables])
    return Batch(3, int(offsets.min()), int(offsets.max()) + 1, {table.message: table for table in tables})


def step(inference, *tables):
    """Predictions, and answers by index, as lists of dicts."""
    effects = inference.step(batch_of(*tables))
    predictions = [record for one in effects.messages if one.topic == "predictions" for record in records(one)]
    answers = {}
    for one in effects.messages:
        if one.message == "answer":
            answers.setdefault(int(one.columns["index"][0]), []).extend(records(one))
    return predictions, answers


def records(messages):
    return Table(messages.message, messages.order, messages.columns).records()


def strings(text):
    return list(unpack_strings(text.encode()))


def test_without_a_model_every_answer_is_degraded_and_carries_its_row(pipeline, inference):
    """
    Version 0: the fallback score, flagged, nothing alerted, and the row kept for the first training.
    """
    rows = rows_of(pipeline, [{"wind": 1}, {"wind": 2}], [0, 0])
    predictions, answers = step(inference, rows)
    assert [(one["score"], one["decision"], one["arm"], one["model"], strings(one["flags"])) for one in predictions] == [
        (0.5, "pass", "none", "", ["degraded"])
    ] * 2
    assert [(one["digest"], one["flags"], one["share"], one["shadow"]) for one in answers[0]] == [("", 1, 1.0, False)] * 2
    sent = next(one for one in inference.step(batch_of(rows)).messages if one.message == "answer")
    assert sent.columns["row"].tolist() == rows["row"].tolist()


def test_the_trace_context_of_a_row_goes_to_all_that_is_said_of_it(pipeline, inference):
    """
    The prediction, the answer and those of shadows; a row without has none.
    """
    inference.add(
        deployment(1, [champion(ONE)], [Arm("candidate", "flights-2", TWO, 0.0)]), {ONE: Fake(pipeline.layout), TWO: Fake(pipeline.layout)}
    )
    rows = rows_of(pipeline, [{"wind": 1}, {"wind": 2}], [1, 1])
    traced = Table("row", rows.offsets, {**rows.columns, "traceparent": Varlen.optional(["a-trace", None])})
    predictions, answers = step(inference, traced)
    assert sorted(answers) == [0, 1]
    assert [[one["traceparent"] for one in told] for told in (predictions, *answers.values())] == [["a-trace", None]] * 3


@pytest.mark.parametrize("unreadable", [False, True], ids=["alone", "beside a row of another layout"])
def test_a_model_reads_the_same_bytes_that_go_to_the_journal(pipeline, inference, unreadable):
    """
    Missing stays missing and nothing is rounded: what is scored is what will be trained on.
    """
    model = Fake(pipeline.layout)
    read = []
    model.score = lambda matrix: read.append(matrix.copy()) or np.zeros(len(matrix), np.float32)
    inference.add(deployment(1, [champion(ONE)]), {ONE: model})
    values = [{"wind": np.nan, "humidity": 0.1}, {"wind": 1e-30}]
    layouts = [pipeline.layout.version] * 2
    if unreadable:
        values, layouts = [*values, {}], [*layouts, "another"]
    rows = rows_of(pipeline, values, [1] * len(values), layout=layouts)
    sent = next(one for one in inference.step(batch_of(rows)).messages if one.message == "answer")
    assert sent.columns["row"].tolist() == rows["row"].tolist()
    assert read[0].tobytes() == pipeline.layout.matrix(sent.columns["row"])[:2].tobytes()


def test_each_row_is_answered_by_the_deployment_that_it_names(pipeline, inference):
    """
    Three versions in one batch, mixed; the answers come in the batch's order.
    """
    models = {ONE: Fake(pipeline.layout, wind=0.1), TWO: Fake(pipeline.layout, wind=0.2)}
    inference.add(deployment(1, [champion(ONE)]), models)
    inference.add(deployment(2, [champion(TWO)]), models)
    predictions, answers = step(inference, rows_of(pipeline, [{"wind": 1}] * 4, [2, 0, 1, 2]))
    assert [round(one["score"], 3) for one in predictions] == [0.2, 0.5, 0.1, 0.2]
    assert [one["model"] for one in predictions] == ["flights-2", "", "flights-1", "flights-2"]
    assert [one["deployment"] for one in answers[0]] == [2, 0, 1, 2]
    assert [one["id"] for one in predictions] == ["flight-0", "flight-1", "flight-2", "flight-3"]
    assert (models[ONE].rows_scored, models[TWO].rows_scored) == (1, 2)


def test_how_a_batch_is_cut_changes_no_answer(pipeline, inference):
    """
    One by one or all at once: the same messages.
    """
    inference.add(deployment(1, [champion(ONE, 0.5), Arm("canary", "flights-2", TWO, 0.5)]), two_models(pipeline))
    rows = rows_of(pipeline, [{"wind": at} for at in range(20)], [at % 2 for at in range(20)])
    whole, _ = step(inference, rows)
    parts = [record for at in range(20) for record in step(inference, rows.take(np.array([at])))[0]]
    assert whole == parts


def two_models(pipeline):
    return {ONE: Fake(pipeline.layout, wind=0.1), TWO: Fake(pipeline.layout, wind=0.2)}


def test_versions_that_are_not_there_yet_are_named_before_a_step(pipeline, inference):
    """
    The process waits for them; version 0 is always there.
    """
    batch = batch_of(rows_of(pipeline, [{}] * 3, [0, 4, 5]))
    assert inference.missing(batch) == {4, 5}
    inference.add(deployment(4, [champion()]), two_models(pipeline))
    assert inference.missing(batch) == {5}
    assert inference.missing(Batch(0, 0, 1, {})) == set()


def test_a_score_that_is_no_number_gets_the_fallback_and_says_so(pipeline, inference):
    """
    The neighbours in the batch keep their scores.
    """
    inference.add(deployment(1, [champion()], fallback=0.21), two_models(pipeline))
    predictions, answers = step(inference, rows_of(pipeline, [{"wind": 9}, {"minute_of_day": -1}, {"wind": 1}], [1, 1, 1]))
    assert [round(one["score"], 2) for one in predictions] == [0.9, 0.21, 0.1]
    assert [one["decision"] for one in predictions] == ["alert", "pass", "pass"]
    assert strings(predictions[1]["flags"]) == ["degraded", "no_score"]
    assert [one["flags"] for one in answers[0]] == [0, int(Flag.DEGRADED | Flag.NO_SCORE), 0]
    assert predictions[1]["arm"] == "champion"


def test_an_arm_whose_model_was_refused_answers_with_the_fallback(pipeline, inference):
    """
    An unsafe bundle stops no flight from being answered; the answer names the arm that should have.
    """
    inference.add(deployment(1, [champion(THREE)], fallback=0.3), {})
    predictions, answers = step(inference, rows_of(pipeline, [{"wind": 9}], [1]))
    assert round(predictions[0]["score"], 2) == 0.3
    assert (answers[0][0]["digest"], answers[0][0]["flags"]) == (THREE, int(Flag.DEGRADED | Flag.NO_SCORE))


def test_a_model_that_reads_other_features_is_not_added(pipeline, inference):
    """
    Its columns would be somebody else's.
    """
    model = Fake(pipeline.layout)
    model.manifest = SimpleNamespace(names=("other",))
    with pytest.raises(Invalid, match="other features"):
        inference.add(deployment(1, [champion()]), {ONE: model})
    assert inference.missing(batch_of(rows_of(pipeline, [{}], [1]))) == {1}


def test_a_row_of_another_layout_is_answered_with_the_fallback(pipeline, inference):
    """
    Nobody can read it, but it is answered all the same, and its neighbours are scored.
    """
    inference.add(deployment(1, [champion()]), two_models(pipeline))
    rows = rows_of(pipeline, [{"wind": 1}, {"wind": 1}], [1, 1], layout=[pipeline.layout.version, "0" * 12])
    predictions, _ = step(inference, rows)
    assert [round(one["score"], 2) for one in predictions] == [0.1, 0.25]
    assert strings(predictions[1]["flags"]) == ["degraded", "no_score"]


def test_a_key_keeps_its_arm_and_the_share_is_about_right(pipeline, inference):
    """
    The same key gets the same arm in any batch; a quarter of many keys get the canary.
    """
    inference.add(deployment(1, [champion(ONE, 0.75), Arm("canary", "flights-2", TWO, 0.25)], salt="abc"), two_models(pipeline))
    keys = [f"N{at % 1000}" for at in range(2000)]
    predictions, answers = step(inference, rows_of(pipeline, [{}] * 2000, [1] * 2000, keys=keys))
    arms = [one["arm"] for one in predictions]
    assert arms[:1000] == arms[1000:]
    assert 150 < arms[:1000].count("canary") < 350
    assert {(one["arm"], one["share"]) for one in answers[0]} == {("champion", 0.75), ("canary", 0.25)}


def test_shadows_answer_every_row_beside_the_arm_and_carry_no_row(pipeline, inference):
    """
    Index 1 + n is the nth shadow, about the same cause; consumers hear nothing of it.
    """
    shadows = [Arm("candidate", "flights-2", TWO, 0.0), Arm("frozen", "flights-3", THREE, 0.0)]
    models = two_models(pipeline) | {THREE: Fake(pipeline.layout, wind=0.7)}
    inference.add(deployment(1, [champion()], shadows), models)
    predictions, answers = step(inference, rows_of(pipeline, [{"wind": 1}, {"wind": 2}], [1, 1]))
    assert [round(one["score"], 2) for one in predictions] == [0.1, 0.2]
    told = {index: [(one["arm"], round(one["score"], 2), one["alert"]) for one in answers[index]] for index in (1, 2)}
    assert told[1] == [("candidate", 0.2, False), ("candidate", 0.4, False)]
    assert told[2] == [("frozen", 0.7, True), ("frozen", 1.4, True)]
    for index in (1, 2):
        assert all(one["shadow"] and one["share"] == 0 and one["row"] == "" for one in answers[index])
        assert [one["offset"] for one in answers[index]] == [one["offset"] for one in answers[0]]


def test_what_one_row_caused_is_listed_in_order_of_index(pipeline, inference):
    """
    The loop keeps the listing order of equal offsets, so index 0 must come before the shadows.
    """
    inference.add(deployment(1, [champion()], [Arm("candidate", "flights-2", TWO, 0.0)]), two_models(pipeline))
    effects = inference.step(batch_of(rows_of(pipeline, [{}, {}], [1, 0])))
    indexes = [int(one.columns["index"][0]) for one in effects.messages if one.message == "answer"]
    assert indexes == sorted(indexes) == [0, 1]


def test_a_shadow_without_a_number_is_nan_and_flagged(pipeline, inference):
    """
    It served nobody, so it gets no fallback.
    """
    shadows = [Arm("candidate", "flights-2", TWO, 0.0), Arm("frozen", "flights-3", THREE, 0.0)]
    inference.add(deployment(1, [champion()], shadows), two_models(pipeline))
    _, answers = step(inference, rows_of(pipeline, [{"minute_of_day": -1}], [1]))
    for index in (1, 2):
        assert np.isnan(answers[index][0]["score"])
        assert (answers[index][0]["flags"], answers[index][0]["alert"]) == (int(Flag.NO_SCORE), False)


def test_reasons_name_the_views_that_raised_an_alert_most_strongest_first(pipeline, inference):
    """
    By what the score loses when a view's features go to their training medians; at most three, and only for alerts.
    """
    weights = {"wind": 0.5, "departures_1h": 0.3, "last_arrival_delay": 0.4, "carrier_departure_delay_6h": 0.1, "minute_of_day": 0.2}
    inference.add(deployment(1, [champion()]), {ONE: Fake(pipeline.layout, **weights)})
    high = dict.fromkeys(weights, 1.0)
    predictions, _ = step(
        inference, rows_of(pipeline, [high, {"wind": 0.2}, {"wind": 2, "departures_1h": -1}, {"minute_of_day": 3}], [1] * 4)
    )
    assert [strings(one["reasons"]) for one in predictions] == [["sky", "aircraft", "airport"], [], ["sky"], ["question"]]
    assert [one["decision"] for one in predictions] == ["alert", "pass", "alert", "alert"]


def test_a_view_that_has_heard_nothing_for_longer_than_it_remembers_is_stale(pipeline, inference):
    """
    One that never heard of the entity is new, which is no fault.
    """
    sky = pipeline.layout.views.index("sky")
    limit = memory_s(pipeline.views[sky])
    ages = np.full((3, len(pipeline.views)), 1.0, np.float32)
    ages[:, sky] = [limit, limit + 1, np.nan]
    predictions, _ = step(inference, rows_of(pipeline, [{}] * 3, [0] * 3, ages=ages))
    assert limit == 6 * 3600
    assert [strings(one["flags"]) for one in predictions] == [["degraded"], ["degraded", "stale_view"], ["degraded"]]


def test_ticks_go_on_to_the_journal_in_place(pipeline, inference):
    """
    With their own coordinate, between the answers where they were between the rows.
    """
    offsets = np.array([101], np.int64)
    names = ("source", "partition", "offset", "index", "event_offset", "time", "deployment")
    ticks = Table("tick", offsets, {name: np.array([value]) for name, value in zip(names, (0, 0, 77, 0, -1, 77_000, 4), strict=True)})
    rows = rows_of(pipeline, [{}, {}, {}], [0, 0, 0]).take(np.array([0, 2]))
    effects = inference.step(batch_of(rows, ticks))
    journal = [(int(offset), one.message) for one in effects.messages if one.topic == "journal" for offset in one.order]
    assert sorted(journal) == [(100, "answer"), (101, "tick"), (102, "answer")]
    tick = next(one for one in effects.messages if one.message == "tick")
    assert records(tick) == [dict(zip(names, (0, 0, 77, 0, -1, 77_000, 4), strict=True))]
    assert effects.counts == {"applied": 2, "tick": 1}


def test_a_batch_without_rows_asks_no_model(pipeline, inference):
    """
    Nothing in, nothing out; nothing is kept either.
    """
    effects = inference.step(Batch(0, 0, 5, {}))
    assert (list(effects.messages), effects.counts, dict(effects.state)) == ([], {"applied": 0, "tick": 0}, {})
    assert (inference.needs(Batch(0, 0, 5, {})), inference.touches(Batch(0, 0, 5, {}))) == ((), 0)


def test_a_row_that_names_a_deployment_which_there_is_not_is_refused(pipeline, inference):
    """
    Its neighbours are answered; nothing waits for what will never come.
    """
    rows = rows_of(pipeline, [{"wind": 1}, {"wind": 2}, {"wind": 3}], [0, 77, 0])
    effects = inference.step(batch_of(rows))
    assert [(one.offset, one.reason) for one in effects.refused] == [(101, "contract")]
    assert effects.counts == {"applied": 2, "tick": 0}
    answers = next(one for one in effects.messages if one.message == "answer")
    assert answers.columns["event_offset"].tolist() == [1100, 1102]
