"""
One event through the loop: every message about it, on every topic, with its offset.

Partition and event offset name one event everywhere, so the events topic is searched for the id, unless somebody knows where it is,
and every other topic for the two numbers: in the event's own partition, from about the time on when the event was written.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.tree import Tree

from driftline.contracts import traceparent
from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import Source
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Invalid
from driftline.operate.addresses import Addresses
from driftline.operate.models import day
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Table, Varlen
from driftline.stream.kafka import LogReader
from driftline.stream.kafka import Source as Records

POLL_MS = 1_000
STRIDE = 200_000  # records that are held in memory at once
SLACK_MS = 60_000  # by so much the clocks of senders may differ
SHOWN = {
    "row": ("layout", "deployment"),
    "prediction": ("score", "decision", "reasons", "model", "arm", "flags"),
    "answer": ("arm", "model", "score", "alert", "share", "shadow", "flags", "digest"),
    "outcome": ("label", "origin"),
    "example": ("arm", "label", "origin", "revision", "score", "known"),
    "event": ("home",),
}
TIMES = ("time", "visible", "asked", "known")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event is on the pipeline's log."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Found:
    """One message: where it lies, and its fields."""

    topic: str
    partition: int
    offset: int
    message: str
    fields: dict[str, Any]


@dataclass
class Trace:
    """Everything about one id, in the order of the loop."""

    id: str
    events: list[Found] = field(default_factory=list)
    after: list[Found] = field(default_factory=list)

    @property
    def trace_id(self) -> str | None:
        """The trace that the upstream application counts it to; of several events of this id, that of the first that has one."""
        told = [event.fields.get(traceparent.NAME) for event in self.events]
        return next((traceparent.trace_id(one) for one in told if one), None)


async def read_trace(addresses: Addresses, pipeline: Pipeline, event_id: str, place: Place | None = None) -> Trace:
    """
    Everything about one event; without its `place` the whole of the events is searched for it. Raises Invalid when no event has this id.
    """
    topics = Topics.of(pipeline)
    wanted = event_id.encode()
    starts, records_max = (None, None) if place is None else ({place.partition: place.offset}, 1)
    events = await _search(addresses, topics.events, lambda _partition, table: _with_id(table, wanted), starts, records_max)
    trace = Trace(event_id, events=events)
    if not trace.events:
        raise Invalid(f"no event on {topics.events.name} has the id {event_id}")
    at = {(found.partition, found.offset) for found in trace.events if found.fields["home"]}
    written_ms = await _written_ms(addresses, topics.events, at)
    for topic in (topics.features, topics.predictions, topics.journal, topics.examples):
        starts = await _starts(addresses, topic, written_ms)
        if topic is topics.predictions and pipeline.predictions == "json":
            trace.after += await _json_predictions(addresses, topic, at, starts)
        else:
            trace.after += await _search(addresses, topic, lambda partition, table: _about(table, partition, at), starts)
    return trace


async def _written_ms(addresses: Addresses, topic: Topic, at: set[tuple[int, int]]) -> dict[int, int]:
    """When the first of the events in each partition was written, by its sender's clock."""
    written: dict[int, int] = {}
    for partition, offset in sorted(at):
        if partition not in written:
            async with _reading(addresses, topic.name, partition) as source:
                source.seek(offset)
                polled = await source.poll(1, POLL_MS)
                written[partition] = 0 if polled is None else int(polled.timestamps[0])
    return written


async def read_times(addresses: Addresses, trace: Trace) -> dict[tuple[str, int, int], int]:
    """When each message of a trace was written, in ms, by its sender's wall clock, by topic, partition and offset."""
    places: dict[tuple[str, int], set[int]] = {}
    for found in (*trace.events, *trace.after):
        places.setdefault((found.topic, found.partition), set()).add(found.offset)
    written: dict[tuple[str, int, int], int] = {}
    for (topic, partition), offsets in places.items():
        async with _reading(addresses, topic, partition) as source:
            for offset in sorted(offsets):
                source.seek(offset)
                polled = await source.poll(1, POLL_MS)
                if polled is not None:
                    written[topic, partition, offset] = int(polled.timestamps[0])
    return written


async def _starts(addresses: Addresses, topic: Topic, written_ms: Mapping[int, int]) -> dict[int, int]:
    """From where on each partition is to be searched."""
    starts = {}
    for partition, time_ms in written_ms.items():
        async with _reading(addresses, topic.name, partition) as source:
            starts[partition] = await source.since(max(0, time_ms - SLACK_MS))
    return starts


@asynccontextmanager
async def _reading(addresses: Addresses, topic: str, partition: int) -> AsyncIterator[Records]:
    source = Records(addresses.kafka, topic, partition)
    await source.start()
    try:
        yield source
    finally:
        await source.stop()


def _with_id(table: Table, wanted: bytes) -> npt.NDArray[np.int64]:
    if table.message == "tick":
        return np.zeros(0, np.int64)
    ids: Varlen = table["id"]
    likely = np.flatnonzero(ids.ends - ids.starts == len(wanted))
    return np.array([at for at in likely.tolist() if ids[at] == wanted], np.int64)


def _about(table: Table, partition: int, at: set[tuple[int, int]]) -> npt.NDArray[np.int64]:
    offsets = [offset for where, offset in at if where == partition]
    return np.flatnonzero(np.isin(table["event_offset"], offsets)) if table.message != "tick" else np.zeros(0, np.int64)


async def _search(
    addresses: Addresses,
    topic: Topic,
    find: Callable[[int, Table], npt.NDArray[np.int64]],
    starts: Mapping[int, int] | None = None,
    records_max: int | None = None,
) -> list[Found]:
    """What `find` finds: in all of the topic, or in the partitions that `starts` names, from there on, and no further than so many."""
    reader = LogReader(addresses.kafka, topic, Registry(addresses.registry))
    await reader.start(starts)
    found: list[Found] = []
    try:
        ends = await reader.end_offsets()
        if starts is not None:
            ends = {partition: min(ends[partition], first + (records_max or ends[partition])) for partition, first in starts.items()}
        while any(reader.positions[partition] < end for partition, end in ends.items()):
            goal = {partition: min(end, reader.positions[partition] + STRIDE) for partition, end in ends.items()}
            for batch in (await reader.read_to(goal)).values():
                found += await asyncio.to_thread(_found, topic, batch, find)
    finally:
        await reader.stop()
    return found


def _found(topic: Topic, batch: Batch, find: Callable[[int, Table], npt.NDArray[np.int64]]) -> list[Found]:
    found = []
    for table in batch.tables.values():
        hits = table.take(find(batch.partition, table))
        found += [
            Found(topic.name, batch.partition, offset, hits.message, record)
            for offset, record in zip(hits.offsets.tolist(), _records(hits), strict=True)
        ]
    return found


def _records(table: Table) -> list[dict[str, Any]]:
    """One dict a message, with arrays of strings as such, and the row as bytes."""
    records = table.records()
    for name in ("slices", "reasons", "flags", "row"):
        column = table.columns.get(name)
        if isinstance(column, Varlen):
            for record, value in zip(records, column.tolist(), strict=True):
                record[name] = value if name == "row" else list(unpack_strings(value))
    return records


async def _json_predictions(addresses: Addresses, topic: Topic, at: set[tuple[int, int]], starts: Mapping[int, int]) -> list[Found]:
    found = []
    for partition, first in starts.items():
        offsets = {str(offset).encode(): offset for where, offset in at if where == partition}
        async with _reading(addresses, topic.name, partition) as source:
            position, end = first, await source.end_now()
            source.seek(position)
            while position < end and (polled := await source.poll(5_000, POLL_MS)) is not None:
                position = polled.last + 1
                for offset, value in zip(polled.offsets.tolist(), polled.values.tolist(), strict=True):
                    if any(text in value for text in offsets) and (fields := json.loads(value)).get("event_offset") in offsets.values():
                        found.append(Found(topic.name, partition, offset, "prediction", fields))
    return found


def print_trace(trace: Trace, pipeline: Pipeline, console: Console) -> None:
    """As a tree: the event where it came from, then what each service made of it."""
    tree = Tree(trace.id if trace.trace_id is None else f"{trace.id}  trace {trace.trace_id}")
    for event in trace.events:
        tree.add(f"{_place(event)}  from {_cause(event, pipeline)}  {_fields(event)}")
    for found in trace.after:
        branch = tree.add(f"{_place(found)}  {found.message}  {_fields(found)}")
        if found.message == "row" and found.fields.get("row"):
            _add_features(branch, found, pipeline)
    console.print(tree, highlight=False, soft_wrap=True)


def _place(found: Found) -> str:
    return f"{found.topic}\\[{found.partition}]@{found.offset}"


def _cause(event: Found, pipeline: Pipeline) -> str:
    number = event.fields["source"] - Source.UPSTREAM
    topic = pipeline.streams[number].topic if 0 <= number < len(pipeline.streams) else f"source {event.fields['source']}"
    return f"{topic}\\[{event.fields['partition']}]@{event.fields['offset']}"


def _fields(found: Found) -> str:
    times = [f"{name} {day(found.fields[name])}" for name in TIMES if isinstance(found.fields.get(name), int)]
    shown = [f"{name}={found.fields[name]}" for name in SHOWN.get(found.message, ()) if name in found.fields and name not in TIMES]
    return "  ".join([*times, *shown])


def _add_features(branch: Tree, found: Found, pipeline: Pipeline) -> None:
    """The row as it was served: each feature, and how old its view was."""
    layout = pipeline.layout
    rows = Varlen.of([found.fields["row"]])
    for name, value in zip(layout.names, layout.matrix(rows)[0].tolist(), strict=True):
        branch.add(f"{name} = {value:g}")
    for view, age in zip(layout.views, layout.ages(rows)[0].tolist(), strict=True):
        branch.add(f"age of {view} = {age:g} s")
