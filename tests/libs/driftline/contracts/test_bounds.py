"""What no service can have said is told from what one can, by the record alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from driftline.contracts.avro import Codec, column, frame
from driftline.contracts.bounds import AHEAD_MS_MAX, NAME_BYTES_MAX
from driftline.contracts.messages import Source, Writer, schema
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.stream.records import SCHEMAS_MAX, Decoder, Polled

TICK_MS = 5_000
WRITTEN_MS = 1_700_000_000_000
PIPELINE: Any = SimpleNamespace(name="toy", retention_ms=86_400_000, tick_ms=TICK_MS, streams=("one", "two"))
TOPICS = Topics.of(PIPELINE)
HEADER = {"source": Source.EVENTS, "partition": 3, "offset": 10, "index": 0, "event_offset": 10}
TICK = {**HEADER, "source": Source.TICK, "partition": 0, "offset": 100, "event_offset": -1, "writer": Writer.FEATURE}
TICK |= {"time": 100 * TICK_MS, "deployment": 1}
OUTCOME = {**HEADER, "writer": Writer.FEATURE, "id": "i", "key": "k", "time": 5, "visible": 6, "label": 1, "origin": "o"}
EVENT = {**HEADER, "source": Source.UPSTREAM, "partition": 5, "event_offset": -1, "writer": Writer.INTAKE, "id": "i", "key": "k"}
EVENT |= {"time": 5, "visible": 6, "home": True, "body": b"", "traceparent": None}
RETRAIN = {**HEADER, "source": Source.OPERATORS, "partition": 0, "writer": Writer.OPERATOR, "id": "r", "trigger": "operator", "time": 5}
RETRAIN |= {"who": "ops", "evidence": "{}"}
KINDS = {"tick": ("journal", TICK), "outcome": ("journal", OUTCOME), "event": ("events", EVENT), "retrain": ("retrain", RETRAIN)}


def refused(message: str, written_ms: int = WRITTEN_MS, **fields: Any) -> list[str]:
    """The reasons for which one record with these fields is refused."""
    topic, good = KINDS[message]
    registry, declared = MemoryRegistry(), schema(message)
    kinds = {field["name"]: field["type"] for field in declared["fields"]}
    columns = {name: column(kinds[name], [value]) for name, value in {**good, **fields}.items()}
    value = frame(registry.register("s", declared)) + Codec(declared).encode(columns)[0]
    batch, found = Decoder(TOPICS[topic], registry, PIPELINE).decode(3, Polled.of([7], [None], [value], [written_ms]))
    assert len(batch) + len(found) == 1
    return [one.reason for one in found]


@pytest.mark.parametrize("message", KINDS)
def test_what_a_service_says_is_within_its_bounds(message: str) -> None:
    """
    The records that the others here are altered from.
    """
    assert refused(message) == []


def test_a_trace_context_as_we_write_it_is_within_bounds() -> None:
    """
    Sampled or not.
    """
    assert [refused("event", traceparent=f"00-{'a' * 32}-{'b' * 16}-{flags}") for flags in ("00", "01")] == [[], []]


@pytest.mark.parametrize(
    ("message", "fields", "reason"),
    [
        ("outcome", {"writer": Writer.INTAKE}, "contract"),
        ("outcome", {"source": Source.CONTROL}, "contract"),
        ("outcome", {"partition": 2}, "contract"),
        ("outcome", {"offset": -1}, "contract"),
        ("outcome", {"offset": 1 << 48}, "contract"),
        ("outcome", {"index": -1}, "contract"),
        ("outcome", {"event_offset": -2}, "contract"),
        ("outcome", {"visible": -1}, "bad_time"),
        ("outcome", {"visible": WRITTEN_MS + AHEAD_MS_MAX + 1}, "bad_time"),
        ("outcome", {"key": "k" * (NAME_BYTES_MAX + 1)}, "too_large"),
        ("event", {"source": Source.UPSTREAM + 2}, "contract"),
        ("event", {"partition": 1 << 20}, "contract"),
        ("event", {"time": 2**62}, "bad_time"),
        ("event", {"traceparent": ""}, "contract"),
        ("event", {"traceparent": f"01-{'a' * 32}-{'b' * 16}-01"}, "contract"),
        ("event", {"traceparent": f"00-{'a' * 32}-{'b' * 16}-03"}, "contract"),
        ("event", {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01-more"}, "contract"),
        ("tick", {"offset": 101}, "bad_time"),
        ("tick", {"partition": 1}, "contract"),
        ("retrain", {"evidence": "[1]"}, "undecodable"),
        ("retrain", {"evidence": "[" * 100_000}, "undecodable"),
    ],
)
def test_what_no_service_says_is_refused(message: str, fields: dict[str, Any], reason: str) -> None:
    """
    It decodes well, and would move a lane, a window or a clock.
    """
    assert refused(message, **fields) == [reason]


def test_nobody_tells_of_what_was_not_yet_when_the_record_was_written() -> None:
    """
    The record's timestamp is the measure, so the log gives the same verdict whenever it is read; what is planned may lie ahead.
    """
    ahead = {"offset": WRITTEN_MS // TICK_MS + 400, "time": (WRITTEN_MS // TICK_MS + 400) * TICK_MS}
    assert refused("tick", **ahead) == ["bad_time"]
    assert refused("tick", written_ms=WRITTEN_MS + 2_000_000, **ahead) == []
    assert refused("event", time=WRITTEN_MS + 86_400_000) == []


def test_a_record_of_somebody_elses_schema_of_the_same_name_is_refused() -> None:
    """
    The registry is shared, and Event is a name that others give as well.
    """
    registry = MemoryRegistry()
    theirs = {"type": "record", "name": "Event", "namespace": "driftline", "fields": [{"name": "source", "type": "int"}]}
    value = frame(registry.register("theirs", theirs)) + b"\x02"
    batch, found = Decoder(TOPICS.events, registry).decode(0, Polled.of([7], [None], [value], [WRITTEN_MS]))
    assert (len(batch), [one.reason for one in found]) == (0, ["schema"])


def test_made_up_schema_ids_are_not_all_remembered() -> None:
    """
    There are four billions of them.
    """
    decoder = Decoder(TOPICS.events, MemoryRegistry())
    values = [frame(number) for number in range(10, 10 + 2 * SCHEMAS_MAX)]
    n = len(values)
    _, found = decoder.decode(0, Polled.of([*range(n)], [None] * n, values, [WRITTEN_MS] * n))
    assert len(found) == n
    assert len(decoder._codecs) <= SCHEMAS_MAX
    assert np.array([one.reason == "schema" for one in found]).all()
