"""Messages made wrong on purpose: by seed, apart from the real ones, each wrong in the way that its name says."""

from __future__ import annotations

import io
import json
from collections import Counter

import fastavro
import numpy as np
import pytest

from driftline.local.faults import (
    AVRO_FAULTS,
    DUPLICATE,
    JSON_FAULTS,
    REASONS,
    UNKNOWN_SCHEMA_ID,
    Declared,
    Outgoing,
    broken,
    plan_faults,
    with_faults,
)

SCHEMA = {
    "type": "record",
    "name": "Landing",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "landed_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "delay_min", "type": "int"},
    ],
}
STREAM = Declared(SCHEMA, "id", "landed_at")
DAY_END_MS = 1_357_084_800_000


def json_message(number: int) -> Outgoing:
    record = {"id": f"L{number}", "landed_at": "2013-01-01T12:00:00-05:00", "delay_min": number}
    return Outgoing(f"L{number}".encode(), json.dumps(record).encode(), f"L{number}")


def avro_message(number: int) -> Outgoing:
    held, record = io.BytesIO(), {"id": f"L{number}", "landed_at": 1_357_000_000_000, "delay_min": number}
    fastavro.schemaless_writer(held, fastavro.parse_schema(SCHEMA), record)
    return Outgoing(None, b"\x00\x00\x00\x00\x05" + held.getvalue(), f"L{number}")


def spoiled(seed: int, kinds: tuple[str, ...] = JSON_FAULTS) -> list[Outgoing]:
    messages = [json_message(number) for number in range(2_000)]
    return with_faults(messages, kinds, STREAM, DAY_END_MS, np.random.default_rng(seed))


def test_real_messages_stay_complete_and_in_order():
    """
    Whatever is added among them, the real messages are as they were.
    """
    assert [json_message(number) for number in range(2_000)] == [message for message in spoiled(1) if not message.fault]


def test_same_seed_makes_the_same_faults():
    """
    A run can be repeated, wrongs included.
    """
    assert spoiled(3) == spoiled(3)


def test_a_second_copy_follows_its_message_and_has_the_same_value():
    """
    A duplicate is the same bytes again, right away or later, never before the first.
    """
    messages = spoiled(5)
    first = {message.id: at for at, message in reversed(list(enumerate(messages)))}
    copies = [(at, message) for at, message in enumerate(messages) if message.fault == DUPLICATE]
    assert copies
    assert all(first[copy.id] < at and messages[first[copy.id]].value == copy.value for at, copy in copies)


def test_each_kind_asked_for_is_there_once_under_a_new_id():
    """
    A broken message never takes the id of a real one.
    """
    wrong = [message for message in spoiled(7) if message.fault not in ("", DUPLICATE)]
    assert dict.fromkeys(JSON_FAULTS, 1) == dict(Counter(message.fault for message in wrong))
    assert not {message.id for message in wrong} & {f"L{number}" for number in range(2_000)}


def test_bad_json_does_not_parse():
    """
    It is cut short, as by an application that died while it wrote.
    """
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken(json_message(1), "bad_json", STREAM, DAY_END_MS).value)


def test_wrong_type_is_text_where_a_number_belongs():
    """
    The first number of the schema becomes "12,50"; the rest is right.
    """
    record = json.loads(broken(json_message(1), "wrong_type", STREAM, DAY_END_MS).value)
    assert (record["delay_min"], record["landed_at"]) == ("12,50", "2013-01-01T12:00:00-05:00")


def test_missing_id_has_every_other_field():
    """
    Only the id is gone.
    """
    assert {"landed_at", "delay_min"} == set(json.loads(broken(json_message(1), "missing_id", STREAM, DAY_END_MS).value))


def test_future_stamp_is_a_day_beyond_the_day_that_is_played():
    """
    More than the five minutes that intake allows.
    """
    record = json.loads(broken(json_message(1), "future", STREAM, DAY_END_MS).value)
    assert record["landed_at"] == "2013-01-03T00:00:00+00:00"


def test_truncated_avro_does_not_decode():
    """
    The frame is right, the record ends too early.
    """
    value = broken(avro_message(1), "truncated_avro", STREAM, DAY_END_MS).value
    assert value[:5] == b"\x00\x00\x00\x00\x05"
    with pytest.raises((EOFError, IndexError)):
        fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(SCHEMA), None)


def test_unknown_schema_keeps_the_record():
    """
    Only the schema's id in the frame is one that no registry gave out.
    """
    value = broken(avro_message(1), "unknown_schema", STREAM, DAY_END_MS).value
    assert (UNKNOWN_SCHEMA_ID, avro_message(1).value[5:]) == (int.from_bytes(value[1:5], "big"), value[5:])


def test_plan_has_every_kind_at_least_once():
    """
    A short play meets each kind too, and each on a topic of its format.
    """
    planned = [one for day in plan_faults(3, ["orders"], ["landings"], 7).values() for one in day]
    assert {("orders", kind) for kind in JSON_FAULTS} | {("landings", kind) for kind in AVRO_FAULTS} == set(planned)


def test_plan_is_longer_for_a_longer_play():
    """
    One of each kind in seventy days.
    """
    planned = [kind for day in plan_faults(212, ["orders"], ["landings"], 7).values() for _, kind in day]
    assert dict.fromkeys((*JSON_FAULTS, *AVRO_FAULTS), 3) == dict(Counter(planned))


def test_a_format_that_no_topic_has_is_not_broken():
    """
    Without an Avro topic there is no Avro to truncate.
    """
    assert set(JSON_FAULTS) == {kind for day in plan_faults(3, ["orders"], [], 7).values() for _, kind in day}


def test_every_kind_has_its_reason_in_the_dead_letters():
    """
    What is broken on purpose is looked for under a reason of the closed list.
    """
    assert {*JSON_FAULTS, *AVRO_FAULTS} == set(REASONS)
