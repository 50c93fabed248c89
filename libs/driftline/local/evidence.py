"""
What the final report rests on: the pipeline's topics read back from their start, first copies only, reduced to frames.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
from aiokafka import AIOKafkaConsumer, TopicPartition

from driftline.access import kafka_client
from driftline.contracts.messages import Deployment, Release, Retrain, Trained, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Table, Varlen
from driftline.stream.connect import connect
from driftline.stream.kafka import LogReader, partitions_of

FETCH_WAIT_MS = 100
POLL_MS = 1_000
POLL_MAX = 20_000
SILENCE = "silence"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of served answers: partition, event offset and packed float32 values, one line an answer."""

    partition: Ints
    event_offset: Ints
    packed: npt.NDArray[np.float32]


@dataclass(slots=True)
class Logs:
    """
    The topics of one pipeline, as far as the report needs them. Frames have one line a message:
    `predictions`: id; `answers`: id; `outcomes`: id; `examples`: partition, event_offset, id, asked, known, label, silent, revision,
    answer_index, digest, score; `dead_letters`: topic, partition, offset, reason. `copies` counts by topic what a crash repeated.
    """

    predictions: pl.DataFrame
    answers: pl.DataFrame
    outcomes: pl.DataFrame
    examples: pl.DataFrame
    dead_letters: pl.DataFrame
    rows: Rows
    retrains: list[Retrain]
    trained: list[Trained]
    releases: list[Release]
    deployments: list[Deployment]
    copies: dict[str, int] = field(default_factory=dict)


class _Read:
    """One reading of a topic from its start to its end as it is now; counts the copies that it dropped."""

    def __init__(self, kafka: str, registry: Registry) -> None:
        self._kafka = kafka
        self._registry = registry
        self.copies: dict[str, int] = {}

    async def batches(self, topic: Topic) -> AsyncIterator[Batch]:
        """Batch by batch, so that a large topic never lies in memory whole."""
        reader = LogReader(self._kafka, topic, self._registry, wait_ms=FETCH_WAIT_MS)
        await reader.start()
        try:
            ends = await reader.end_offsets()
            while any(reader.positions[partition] < end for partition, end in ends.items()):
                for batch in await reader.next(POLL_MS / 1000):
                    yield batch
            self.copies[topic.kind] = reader.copies
        finally:
            await reader.stop()

    async def all_facts(self, topic: Topic, message: str) -> list[Any]:
        """The facts of one kind."""
        found = []
        async for batch in self.batches(topic):
            if (table := batch[message]) is not None:
                found += facts(table)
        return found

    async def predictions(self, topic: Topic, as_json: bool) -> pl.DataFrame:
        """Ids of first copies; read as an application would, which knows a copy by partition and event offset alone."""
        if as_json:
            frame = await self._json_predictions(topic)
        else:
            frame = _concat([_frame(batch["prediction"], batch.partition, {"id": "text"}) async for batch in self.batches(topic)], ("id",))
        first = frame.filter(pl.col("event_offset") > pl.col("event_offset").cum_max().shift(1).over("partition").fill_null(-1))
        self.copies[topic.kind] = self.copies.get(topic.kind, 0) + frame.height - first.height
        return first

    async def _json_predictions(self, topic: Topic) -> pl.DataFrame:
        consumer = AIOKafkaConsumer(
            **kafka_client(self._kafka), enable_auto_commit=False, auto_offset_reset="none", fetch_max_wait_ms=FETCH_WAIT_MS
        )
        await connect(consumer, self._kafka)
        try:
            places = [TopicPartition(topic.name, number) for number in range(await partitions_of(consumer, topic.name))]
            consumer.assign(places)
            for place, offset in (await consumer.beginning_offsets(places)).items():
                consumer.seek(place, offset)
            ends = await consumer.end_offsets(places)
            frames = []
            while left := [place for place in places if await consumer.position(place) < ends[place]]:
                for place, records in (await consumer.getmany(*left, timeout_ms=POLL_MS, max_records=POLL_MAX)).items():
                    frames.append(_json_frame(place.partition, [record.value for record in records]))
            return _concat(frames, ("id",))
        finally:
            await consumer.stop()


class _Prediction(msgspec.Struct):
    """The two fields that the report needs of a prediction in JSON."""

    id: str
    event_offset: int


_DECODE = msgspec.json.Decoder(_Prediction).decode


def _json_frame(partition: int, values: Sequence[bytes]) -> pl.DataFrame:
    decoded = [_DECODE(value) for value in values]
    return pl.DataFrame(
        {
            "partition": np.full(len(decoded), partition, np.int64),
            "event_offset": np.array([one.event_offset for one in decoded], np.int64),
            "id": [one.id for one in decoded],
        }
    )


async def read_logs(kafka: str, registry: Registry, pipeline: Pipeline) -> Logs:
    """Read everything back. Takes about ten microseconds a message."""
    topics = Topics.of(pipeline)
    read = _Read(kafka, registry)
    answers, outcomes, rows = await _journal(read, topics.journal, pipeline.layout.width)
    return Logs(
        predictions=await read.predictions(topics.predictions, pipeline.predictions == "json"),
        answers=answers,
        outcomes=outcomes,
        examples=await _examples(read, topics.examples),
        dead_letters=await _dead_letters(read, topics.dead_letters),
        rows=rows,
        retrains=await read.all_facts(topics.retrain, Retrain.message),
        trained=await read.all_facts(topics.summaries, Trained.message),
        releases=await read.all_facts(topics.control, Release.message),
        deployments=await read.all_facts(topics.deployments, Deployment.message),
        copies=read.copies,
    )


async def _journal(read: _Read, topic: Topic, width: int) -> tuple[pl.DataFrame, pl.DataFrame, Rows]:
    answers, outcomes = [], []
    offsets: list[Ints] = [np.empty(0, np.int64)]
    partitions: list[Ints] = [np.empty(0, np.int64)]
    packed: list[npt.NDArray[np.float32]] = [np.empty((0, width), np.float32)]
    async for batch in read.batches(topic):
        outcomes.append(_frame(batch["outcome"], batch.partition, {"id": "text"}))
        table = batch["answer"]
        if table is None:
            continue
        served = table.take((table["index"] == 0) & ~np.asarray(table["shadow"], np.bool_))
        answers.append(_frame(served, batch.partition, {"id": "text"}))
        offsets.append(served["event_offset"])
        partitions.append(np.full(len(served), batch.partition, np.int64))
        packed.append(np.frombuffer(b"".join(served["row"].tolist()), "<f4").reshape(len(served), width))
    rows = Rows(np.concatenate(partitions), np.concatenate(offsets), np.concatenate(packed))
    return _concat(answers, ("id",)), _concat(outcomes, ("id",)), rows


async def _examples(read: _Read, topic: Topic) -> pl.DataFrame:
    columns = dict.fromkeys(("asked", "known", "label", "revision", "answer_index", "score"), "number")
    texts = dict.fromkeys(("id", "digest", "origin"), "text")
    frames = [_frame(batch["example"], batch.partition, columns | texts) async for batch in read.batches(topic)]
    frame = _concat(frames, (*columns, *texts))
    return frame.with_columns(silent=pl.col("origin") == SILENCE).drop("origin")


async def _dead_letters(read: _Read, topic: Topic) -> pl.DataFrame:
    frames = []
    async for batch in read.batches(topic):
        if (table := batch["dead_letter"]) is not None:
            columns = {name: table[name].texts() for name in ("topic", "reason", "service")}
            frames.append(pl.DataFrame(columns | {name: np.asarray(table[name]) for name in ("partition", "offset")}))
    schema = {"topic": pl.String, "reason": pl.String, "service": pl.String, "partition": pl.Int64, "offset": pl.Int64}
    return pl.concat([pl.DataFrame(schema=schema), *frames])


KINDS: dict[str, type[pl.DataType]] = {
    "label": pl.Int64,
    "asked": pl.Int64,
    "known": pl.Int64,
    "revision": pl.Int64,
    "answer_index": pl.Int64,
    "score": pl.Float32,
}


def _frame(table: Table | None, partition: int, columns: dict[str, str]) -> pl.DataFrame | None:
    """Some columns of a table, with the partition and the event offset that name the event."""
    if table is None:
        return None
    data: dict[str, Any] = {"partition": np.full(len(table), partition, np.int64), "event_offset": np.asarray(table["event_offset"])}
    for name, kind in columns.items():
        column: Varlen | npt.NDArray[Any] = table[name]
        data[name] = column.texts() if isinstance(column, Varlen) and kind == "text" else column
    return pl.DataFrame(data)


def _concat(frames: Sequence[pl.DataFrame | None], columns: Sequence[str]) -> pl.DataFrame:
    """All frames as one; an empty one of the same shape when there are none."""
    schema: dict[str, type[pl.DataType]] = {
        "partition": pl.Int64,
        "event_offset": pl.Int64,
        **{name: KINDS.get(name, pl.String) for name in columns},
    }
    present = [frame.select([pl.col(name).cast(kind) for name, kind in schema.items()]) for frame in frames if frame is not None]
    return pl.concat([pl.DataFrame(schema=schema), *present])
