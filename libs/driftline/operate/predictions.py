"""
The predictions of one pipeline as they appear, for a process that hands them on: JSON or Avro, as the pipeline serves them.

A part of a process: it begins with the newest that are there, reads on for ever, and starts again after a fault outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from driftline.contracts.avro import unpack_strings
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Recoverable
from driftline.logs import log
from driftline.pipeline import Pipeline
from driftline.stream.kafka import Source, describe
from driftline.stream.records import Decoder, Polled

POLL_MAX = 5_000
POLL_MS = 200
AGAIN_S = 0.5


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One answer, as applications get it; `partition` and `event_offset` name the event throughout the loop."""

    id: str
    key: str
    time: int
    event_offset: int
    score: float
    decision: str
    reasons: tuple[str, ...]
    model: str
    arm: str
    flags: tuple[str, ...]
    partition: int = -1
    traceparent: str | None = None  # of the question


class Predictions:
    """Reads every partition of the topic. `take` gets predictions in order of their partition, in the event loop."""

    def __init__(
        self, kafka: str, pipeline: Pipeline, registry: Registry, take: Callable[[Sequence[Prediction]], None], newest: int
    ) -> None:
        self._kafka = kafka
        self._topic = Topics.of(pipeline).predictions
        self._decoder = None if pipeline.predictions == "json" else Decoder(self._topic, registry, pipeline)
        self._json = msgspec.json.Decoder(Prediction)
        self._take = take
        self._newest = newest
        self._behind: set[int] | None = None  # the partitions whose first stretch is not read yet; None until they are known
        self._positions: dict[int, int] = {}
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Whether all has been taken that was there at the start."""
        return self._behind is not None and not self._behind

    def stop(self) -> None:
        """Stop reading."""
        self._stopping = True

    async def run(self) -> None:
        """Read until stopped."""
        while not self._stopping:
            try:
                partitions = (await describe(self._kafka, [self._topic.name])).partitions.get(self._topic.name, 0)
                if not partitions:
                    raise Recoverable(f"{self._topic.name} does not exist yet")
                self._behind = set(range(partitions)) - self._positions.keys()
                async with asyncio.TaskGroup() as group:
                    for partition in range(partitions):
                        group.create_task(self._read(partition, self._newest // partitions))
            except Recoverable as fault:
                await self._again(fault)
            except ExceptionGroup as faults:
                if faults.split(Recoverable)[1] is not None:
                    raise
                await self._again(faults.exceptions[0])

    async def _again(self, fault: Exception) -> None:
        log.warning("reading again", topic=self._topic.name, because=str(fault))
        await asyncio.sleep(AGAIN_S)

    async def _read(self, partition: int, newest: int) -> None:
        source = Source(self._kafka, self._topic.name, partition)
        try:
            await source.start()
            start, end = await source.bounds()
            position = max(self._positions.get(partition, end - newest), start)
            source.seek(position)
            while not self._stopping:
                if self._behind and position >= end:
                    self._behind.discard(partition)
                polled = await source.poll(POLL_MAX, POLL_MS)
                if polled is not None:
                    self._take(await self._decoded(partition, polled))
                    position = self._positions[partition] = polled.last + 1
        finally:
            await source.stop()

    async def _decoded(self, partition: int, polled: Polled) -> list[Prediction]:
        """What can be read of them; the registry may have to be asked, so what is Avro is decoded in a thread."""
        if self._decoder is not None:
            return await asyncio.to_thread(_from_avro, self._decoder, partition, polled)
        found = []
        for value in polled.values.tolist():
            try:
                found.append(msgspec.structs.replace(self._json.decode(value), partition=partition))
            except msgspec.DecodeError:  # a stranger's: this topic is for everybody to read, and only inference's to write
                log.warning("left out", topic=self._topic.name, partition=partition, because="it is no prediction")
        return found


def _from_avro(decoder: Decoder, partition: int, polled: Polled) -> list[Prediction]:
    batch, _ = decoder.decode(partition, polled)
    table = batch["prediction"]
    if table is None:
        return []
    texts = {name: table[name].texts() for name in ("id", "key", "decision", "model", "arm")}
    lists = {name: [unpack_strings(value) for value in table[name].tolist()] for name in ("reasons", "flags")}
    numbers = {name: table[name].tolist() for name in ("time", "event_offset")}
    scores = np.round(np.asarray(table["score"], np.float64), 6).tolist()
    columns = {**texts, **lists, **numbers, "score": scores, "traceparent": table["traceparent"].optional_texts()}
    return [Prediction(partition=partition, **dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
