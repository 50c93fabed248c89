"""
One event through the loop: every message about it, on every topic, with its offset.

Partition and event offset name one event everywhere, so the events topic is searched for the id, and every other topic for the
two numbers. It reads whole topics: seconds for a million events, meant for people.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.tree import Tree

from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import Source
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Invalid
from driftline.operate.addresses import Addresses
from driftline.operate.models import day
from driftline.pipeline import Pipeline
from driftline.stream.batch import Table, Varlen
from driftline.stream.kafka import LogReader
from driftline.stream.kafka import Source as Records

POLL_MS = 1_000
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


async def read_trace(addresses: Addresses, pipeline: Pipeline, event_id: str) -> Trace:
    """Search the topics. Raises Invalid when no event has this id."""
    topics = Topics.of(pipeline)
    wanted = event_id.encode()
    trace = Trace(event_id, events=await _search(addresses, topics.events, lambda _partition, table: _with_id(table, wanted)))
    if not trace.events:
        raise Invalid(f"no event on {topics.events.name} has the id {event_id}")
    at = {(found.partition, found.offset) for found in trace.events if found.fields["home"]}
    along = [topics.features, topics.journal, topics.examples]
    for topic in along:
        trace.after += await _search(addresses, topic, lambda partition, table: _about(table, partition, at))
        if topic is topics.features:
            trace.after += await _predictions(addresses, pipeline, topics.predictions, at)
    return trace


def _with_id(table: Table, wanted: bytes) -> npt.NDArray[np.int64]:
    if table.message == "tick":
        return np.zeros(0, np.int64)
    ids: Varlen = table["id"]
    likely = np.flatnonzero(ids.ends - ids.starts == len(wanted))
    return np.array([at for at in likely.tolist() if ids[at] == wanted], np.int64)


def _about(table: Table, partition: int, at: set[tuple[int, int]]) -> npt.NDArray[np.int64]:
    offsets = [offset for where, offset in at if where == partition]
    return np.flatnonzero(np.isin(table["event_offset"], offsets)) if table.message != "tick" else np.zeros(0, np.int64)


async def _search(addresses: Addresses, topic: Topic, find: Callable[[int, Table], npt.NDArray[np.int64]]) -> list[Found]:
    reader = LogReader(addresses.kafka, topic, Registry(addresses.registry))
    await reader.start()
    found = []
    try:
        ends = await reader.end_offsets()
        while any(reader.positions[partition] < end for partition, end in ends.items()):
            for batch in await reader.next(1.0):
                for table in batch.tables.values():
                    hits = table.take(find(batch.partition, table))
                    found += [
                        Found(topic.name, batch.partition, offset, hits.message, record)
                        for offset, record in zip(hits.offsets.tolist(), _records(hits), strict=True)
                    ]
    finally:
        await reader.stop()
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


async def _predictions(addresses: Addresses, pipeline: Pipeline, topic: Topic, at: set[tuple[int, int]]) -> list[Found]:
    if pipeline.predictions != "json":
        return await _search(addresses, topic, lambda partition, table: _about(table, partition, at))
    parts = await asyncio.gather(*(_json_predictions(addresses, topic, partition, offset) for partition, offset in sorted(at)))
    return [found for part in parts for found in part]


async def _json_predictions(addresses: Addresses, topic: Topic, partition: int, event_offset: int) -> list[Found]:
    source = Records(addresses.kafka, topic.name, partition)
    await source.start()
    found = []
    try:
        position, end = await source.bounds()
        source.seek(position)
        while position < end:
            polled = await source.poll(5_000, POLL_MS)
            if polled is None:
                break
            position = polled.last + 1
            for offset, value in zip(polled.offsets.tolist(), polled.values.tolist(), strict=True):
                if str(event_offset).encode() in value and (fields := json.loads(value)).get("event_offset") == event_offset:
                    found.append(Found(topic.name, partition, offset, "prediction", fields))
    finally:
        await source.stop()
    return found


def print_trace(trace: Trace, pipeline: Pipeline, console: Console) -> None:
    """As a tree: the event where it came from, then what each service made of it."""
    tree = Tree(trace.id)
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
