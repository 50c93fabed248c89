"""One event through the loop."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from driftline.contracts.avro import pack_strings
from driftline.contracts.messages import Source, Writer
from driftline.errors import Invalid
from driftline.operate.trace import Place, print_trace, read_trace
from driftline.stream.batch import Messages, Varlen

VISIBLE = 1_357_000_000_000


def header(source: int, offset: int, event_offset: int) -> dict[str, Any]:
    return numbers(source=source, offset=offset, index=0, event_offset=event_offset)


def text(**fields: str) -> dict[str, Varlen]:
    return {name: Varlen.of([value]) for name, value in fields.items()}


def numbers(**fields: int) -> dict[str, Any]:
    return {name: np.array([value], np.int64) for name, value in fields.items()}


def event(offset: int, event_id: str) -> Messages:
    columns = header(Source.UPSTREAM, offset, -1) | text(id=event_id, key="N1", body="") | numbers(time=VISIBLE, visible=VISIBLE)
    return Messages("events", "event", None, columns | {"home": np.array([True])}, np.array([offset]), to=1)


def row(place: Any, event_offset: int) -> Messages:
    layout = place.pipeline.layout
    features = np.arange(len(layout.names), dtype=np.float32)[None, :]
    ages = np.full((1, len(layout.views)), 60, np.float32)
    columns = header(Source.EVENTS, event_offset, event_offset) | text(id="two", key="N1", layout=layout.version)
    columns |= numbers(partition=1, time=VISIBLE, visible=VISIBLE, deployment=3)
    columns |= {"slices": Varlen.of([pack_strings(["JFK", "UA"])]), "row": layout.pack(features, ages)}
    return Messages("features", "row", None, columns, np.array([event_offset]), to=1)


def outcome(event_offset: int) -> Messages:
    columns = header(Source.EVENTS, event_offset + 7, event_offset) | text(id="two", key="N1", origin="arrivals")
    columns |= numbers(partition=1, time=VISIBLE, visible=VISIBLE, label=1)
    return Messages("journal", "outcome", None, columns, np.array([event_offset]), to=1)


async def test_an_event_is_found_on_every_topic_by_its_offset(place: Any):
    """
    Its place upstream, its row with every feature by name, its outcome; not those of its neighbour.
    """
    await place.put(Writer.INTAKE, event(10, "one"), event(11, "two"))
    await place.put(Writer.FEATURE, row(place, 1), outcome(1), outcome(2))
    trace = await read_trace(place.addresses, place.pipeline, "two")
    assert [(found.partition, found.offset) for found in trace.events] == [(1, 1)]
    assert [found.message for found in trace.after] == ["row", "outcome"]
    shown = StringIO()
    print_trace(trace, place.pipeline, Console(file=shown, width=200))
    assert f"{place.topics.events.name}[1]@1  from flights[0]@11" in shown.getvalue()
    assert trace.trace_id is None
    assert f"{place.pipeline.layout.names[5]} = 5" in shown.getvalue()
    assert f"age of {place.pipeline.layout.views[0]} = 60 s" in shown.getvalue()


async def test_the_id_of_the_trace_is_told_where_the_record_had_one(place: Any):
    """
    Beside the event's own.
    """
    traced = event(10, "one")
    traced = replace(traced, columns=traced.columns | {"traceparent": Varlen.of([f"00-{'a' * 32}-{'b' * 16}-01"])})
    await place.put(Writer.INTAKE, traced)
    trace = await read_trace(place.addresses, place.pipeline, "one")
    shown = StringIO()
    print_trace(trace, place.pipeline, Console(file=shown, width=200))
    assert shown.getvalue().splitlines()[0] == f"one  trace {'a' * 32}"


async def test_an_event_whose_place_is_known_is_not_searched_for(place: Any):
    """
    One record is read in the place of the topic; an id that is not there is not found, though it is elsewhere.
    """
    await place.put(Writer.INTAKE, event(10, "one"), event(11, "two"))
    await place.put(Writer.FEATURE, row(place, 1))
    trace = await read_trace(place.addresses, place.pipeline, "two", Place(1, 1))
    assert [(found.message, found.partition, found.offset) for found in trace.events + trace.after] == [("event", 1, 1), ("row", 1, 0)]
    with pytest.raises(Invalid):
        await read_trace(place.addresses, place.pipeline, "two", Place(1, 0))


async def test_an_unknown_id_is_said_to_be_unknown(place: Any):
    """
    In words that name the topic that was searched.
    """
    with pytest.raises(Invalid, match="has the id nobody"):
        await read_trace(place.addresses, place.pipeline, "nobody")
