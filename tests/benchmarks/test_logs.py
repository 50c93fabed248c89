"""What the checkers read from a real broker: first copies by coordinate, and how long the play was."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_answers import predictions
from independent import DAY_MS, START_MS, Schemas, Stack, first_copies, last_question_day
from logs import read_served

from driftline.contracts.avro import column
from driftline.contracts.messages import HEADER, ClockRecord, End, Source, Writer, as_messages, schema
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.pipeline import load_pipeline
from driftline.stream.batch import Messages, Varlen
from driftline.stream.kafka import Publisher, ensure_topics

ROOT = Path(__file__).resolve().parents[2]
ANSWER = {
    "key": "N1",
    "time": START_MS,
    "visible": START_MS + 5,
    "deployment": 2,
    "arm": "champion",
    "share": 1.0,
    "shadow": False,
    "model": "m-1",
    "digest": "d1",
    "score": 0.25,
    "alert": False,
    "flags": 0,
    "layout": "v",
    "slices": ["EWR"],
    "row": b"\x00\x00\x80?",
    "traceparent": None,
}
EXAMPLE = {
    **{name: ANSWER[name] for name in ("key", "deployment", "arm", "share", "shadow", "model", "digest", "score", "flags", "slices")},
    "asked": START_MS,
    "known": START_MS,
    "label": 1,
    "origin": "arrivals",
    "revision": 0,
    "answer_index": 0,
    "traceparent": None,
}


def messages(topic: str, message: str, records: list[dict[str, Any]], places: list[tuple[int, int]]) -> Messages:
    """`records` with the coordinates (offset, index) of `places`, all caused by events."""
    fields = [field for field in schema(message)["fields"] if field["name"] not in HEADER]
    columns: dict[str, Any] = {field["name"]: column(field["type"], [record[field["name"]] for record in records]) for field in fields}
    offsets = np.array([offset for offset, _ in places], np.int64)
    columns |= {"source": np.full(len(places), Source.EVENTS), "offset": offsets, "event_offset": offsets}
    columns["index"] = np.array([index for _, index in places], np.int64)
    return Messages(topic, message, Varlen.of(["N1"] * len(places)), columns, np.arange(len(places)))


@pytest.fixture
async def published(kafka, registry_url):
    """A stack, the name of a pipeline that is this test's alone, and a way to publish to it."""
    pipeline = replace(load_pipeline("flights", ROOT / "pipelines"), name=f"read-{uuid.uuid4().hex[:8]}")
    topics = Topics.of(pipeline)
    await ensure_topics(kafka, topics, 2)
    publisher = Publisher(kafka, topics, Registry(registry_url), Writer.INFERENCE)
    await publisher.start()
    yield Stack(kafka, registry_url), pipeline.name, publisher
    await publisher.stop()


def answers(*named: tuple[str, int, int], **changes: Any) -> Messages:
    """Answers to questions: (id, offset of the event, index)."""
    return messages("journal", "answer", [{**ANSWER, "id": one, **changes} for one, _, _ in named], [(o, i) for _, o, i in named])


async def test_copies_are_dropped_by_coordinate_whatever_they_say(published):
    """
    After a crash a batch is sent again: from the first coordinate that is new on, it counts.
    """
    stack, name, publisher = published
    await publisher.send(answers(("A", 3, 0), ("B", 5, 0)))
    await publisher.send(answers(("A", 3, 0), ("B", 5, 0), ("C", 5, 1), ("D", 9, 0)))
    await publisher.send(answers(("E", 4, 0)), partition=1)
    read = await asyncio.to_thread(lambda: list(first_copies(stack, f"{name}-journal", Schemas(stack.registry), ["Answer"])))
    assert [(record.partition, fields["id"]) for record, _, fields in read] == [(0, "A"), (0, "B"), (0, "C"), (0, "D"), (1, "E")]


async def test_answers_and_examples_are_read_whole(published):
    """
    Rows, scores by model, labels and who told them come off the logs as they went on.
    """
    stack, name, publisher = published
    await publisher.send(answers(("A", 3, 0)))
    await publisher.send(answers(("A", 3, 1), shadow=True, digest="d0", score=0.75, row=b""))
    examples = [{**EXAMPLE, "id": "A"}, {**EXAMPLE, "id": "A", "revision": 1, "label": 0}]
    await publisher.send(messages("examples", "example", examples, [(7, 0), (8, 0)]))
    served = await asyncio.to_thread(read_served, stack, name, Schemas(stack.registry))
    assert (served.answers["A"].row, served.answers["A"].asked, served.times_answered) == (ANSWER["row"], START_MS + 5, {"A": 1})
    assert served.scores == {"A": {"d1": 0.25, "d0": 0.75}}
    assert (served.labels, served.origins) == ({"A": 0}, {"A": "arrivals"})


async def test_length_of_the_play_is_read_off_the_clock(published):
    """
    The clock goes on for three days after the questions' topic has stopped growing.
    """
    stack, name, publisher = published
    for day, grown in enumerate([4, 9, 9, 9], start=1):
        ends = (End("flights", 0, grown), End("arrivals", 0, day * 10))
        record = ClockRecord(START_MS + day * DAY_MS, 0, ends, day == 4)
        await publisher.send(as_messages("clock", "clock", [record], source=Source.CLOCK, offsets=[day], indexes=[0], partition=0))
    assert await asyncio.to_thread(last_question_day, stack, name, Schemas(stack.registry)) == 2


async def test_predictions_in_avro_are_counted_by_first_copy(published):
    """
    Sent twice, a prediction counts once.
    """
    stack, name, publisher = published
    told = {"key": "N1", "time": START_MS, "score": 0.5, "decision": "pass", "reasons": [], "model": "m", "arm": "champion", "flags": []}
    told |= {"traceparent": None}
    for _ in range(2):
        await publisher.send(messages("predictions", "prediction", [{**told, "id": "A"}, {**told, "id": "B"}], [(1, 0), (2, 0)]))
    assert await asyncio.to_thread(predictions, stack, name, Schemas(stack.registry)) == {"A": 1, "B": 1}
