"""Upstream records to columns: what is taken, what is refused and why, what is hidden."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import fastavro
import pytest

from driftline.contracts.avro import Codec, frame
from driftline.contracts.registry import MemoryRegistry
from driftline.errors import Fatal
from driftline.stream.batch import Varlen
from driftline.stream.parse import VALUE_BYTES_MAX, Parser
from driftline.stream.records import SCHEMAS_MAX, Polled

CLOCK_MS = 1_700_000_000_000
TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "payment_id", "type": "string"},
        {"name": "card", "type": "string"},
        {"name": "paid_at", "type": TIME},
        {"name": "amount", "type": "double"},
        {"name": "tip", "type": ["null", "double"]},
        {"name": "visits", "type": ["null", "long"], "default": None},
    ],
}
GOOD = {"payment_id": "p1", "card": "c1", "paid_at": "2023-11-14T22:13:20Z", "amount": 12.5, "tip": None, "more": [1, 2]}


def stream(pii: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        schema=SCHEMA, topic="payments", number=0, id="payment_id", key="card", time="paid_at", visible="paid_at", pii=pii
    )


def polled(*values: bytes | None) -> Polled:
    return Polled.of(range(10, 10 + len(values)), [None] * len(values), values, [0] * len(values))


def parse(*values: bytes | None, registry: MemoryRegistry | None = None, pii: tuple[str, ...] = ()):
    return Parser(stream(pii), registry or MemoryRegistry(), b"secret" if pii else b"").parse(polled(*values), CLOCK_MS)


def changed(**fields: Any) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def test_json_becomes_columns_and_a_body_by_the_declared_schema():
    """
    Fields that the schema does not know are passed over.
    """
    arrived, refused = parse(changed())
    assert refused == []
    assert (arrived.ids.tolist(), arrived.keys.tolist(), arrived.times.tolist(), arrived.visible.tolist()) == (
        [b"p1"],
        [b"c1"],
        [CLOCK_MS],
        [CLOCK_MS],
    )
    body = fastavro.schemaless_reader(io.BytesIO(arrived.bodies[0]), fastavro.parse_schema(SCHEMA))
    assert (body["amount"], body["tip"]) == (12.5, None)


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (b"{not json", "undecodable", "JSON"),
        (b"\xff\xfe", "undecodable", "JSON"),
        (b'{"more":' + b"[" * 100_000, "undecodable", "JSON"),
        (None, "undecodable", "no value"),
        (b"[]", "contract", "object"),
        (changed(amount="12,50"), "contract", '"amount" is text'),
        (changed(paid_at="yesterday"), "contract", "paid_at"),
        (changed(paid_at="2023-11-14T22:13:20"), "contract", "paid_at"),
        (changed(payment_id=""), "missing_id", "payment_id"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "payment_id"}).encode(), "missing_id", "payment_id"),
        (changed(card=""), "contract", "card"),
        (changed(paid_at=CLOCK_MS + 300_001), "future", "five minutes"),
        (changed(paid_at=-5), "bad_time", "1970"),
        (changed(paid_at=2**62), "bad_time", "1970"),
        (changed(paid_at=10**30), "contract", "paid_at"),
        (changed(paid_at=CLOCK_MS // 1000), "bad_time", "ten years"),
        (changed(visits=2**63 - 1), "contract", "2**53"),
        (changed(payment_id="x" * 1_025), "too_large", "payment_id"),
        (changed(card="x" * 400_000), "too_large", "card"),
        (b'"' + b"x" * VALUE_BYTES_MAX + b'"', "too_large", "bytes"),
        (b"\x00\x00\x00\x00\x63rest", "schema", "99"),
    ],
)
def test_a_bad_record_is_refused_with_its_reason_and_the_others_go_on(value: bytes | None, reason: str, words: str):
    """
    The reason is of the closed list; the words name the field, never the value.
    """
    arrived, refused = parse(changed(payment_id="before"), value, changed(payment_id="after"))
    assert arrived.ids.tolist() == [b"before", b"after"]
    assert [(11, reason)] == [(one.offset, one.reason) for one in refused]
    assert words in refused[0].detail


def test_a_time_exactly_five_minutes_ahead_is_taken():
    """
    Only more than five minutes ahead of the pipeline's clock is the future.
    """
    assert parse(changed(paid_at=CLOCK_MS + 300_000))[1] == []


def test_avro_by_the_declared_schema_is_taken_as_it_is():
    """
    Confluent framing, schema from the registry.
    """
    registry = MemoryRegistry()
    number = registry.register("payments-value", SCHEMA)
    arrived, refused = parse(framed(number, SCHEMA, {**GOOD, "paid_at": CLOCK_MS}), registry=registry)
    assert (refused, arrived.ids.tolist()) == ([], [b"p1"])


def test_avro_by_another_version_is_resolved():
    """
    A writer that knows one more field, in another order, is understood.
    """
    registry = MemoryRegistry()
    newer = {**SCHEMA, "fields": [{"name": "shop", "type": "string"}, *reversed(SCHEMA["fields"])]}
    number = registry.register("payments-value", newer)
    record = {**GOOD, "shop": "s", "paid_at": CLOCK_MS}
    arrived, refused = parse(
        framed(number, newer, record), framed(number, newer, record)[:-3], framed(number, newer, record), registry=registry
    )
    assert arrived.ids.tolist() == [b"p1", b"p1"]
    assert [(one.offset, one.reason) for one in refused] == [(11, "undecodable")]


def test_truncated_avro_is_refused_and_its_neighbours_are_not():
    """
    One short record in a batch costs no other.
    """
    registry = MemoryRegistry()
    number = registry.register("payments-value", SCHEMA)
    whole = framed(number, SCHEMA, {**GOOD, "paid_at": CLOCK_MS})
    arrived, refused = parse(whole, whole[:-4], whole, registry=registry)
    assert (len(arrived), [(one.offset, one.reason) for one in refused]) == (2, [(11, "undecodable")])


def test_json_and_avro_may_be_mixed_in_one_topic():
    """
    The records stay in their order.
    """
    registry = MemoryRegistry()
    number = registry.register("payments-value", SCHEMA)
    avro = framed(number, SCHEMA, {**GOOD, "payment_id": "avro", "paid_at": CLOCK_MS})
    arrived, _ = parse(changed(payment_id="one"), avro, changed(payment_id="two"), registry=registry)
    assert (arrived.ids.tolist(), arrived.offsets.tolist()) == ([b"one", b"avro", b"two"], [10, 11, 12])


def test_personal_fields_leave_as_keyed_tokens():
    """
    The same value gives the same token, in the key and in the body, and the value itself is nowhere.
    """
    arrived, _ = parse(changed(card="4111-1111"), changed(card="4111-1111"), changed(card="4222-2222"), pii=("card",))
    first, second, third = arrived.keys.tolist()
    assert first == second != third
    assert b"4111" not in first + arrived.bodies.data.tobytes()
    columns, bad = Codec(SCHEMA).decode(arrived.bodies)
    assert not bad.any() and isinstance(columns["card"], Varlen)
    assert [first, second, third] == columns["card"].tolist()


def test_a_token_depends_on_the_key():
    """
    Whoever lacks the key cannot find a value by hashing all there are.
    """
    tokens = [Parser(stream(("card",)), MemoryRegistry(), key).parse(polled(changed()), CLOCK_MS)[0].keys[0] for key in (b"one", b"two")]
    assert tokens[0] != tokens[1]


def test_personal_fields_without_a_key_refuse_to_start():
    """
    The setting is named.
    """
    with pytest.raises(Fatal, match="DRIFTLINE_PII_KEY"):
        Parser(stream(("card",)), MemoryRegistry(), b"")


def of(fields: dict[str, Any], schema: dict[str, Any] = SCHEMA) -> tuple[int, list[tuple[int, str]]]:
    """How many were taken, and what was refused, of two good Avro records and one of `schema` between them."""
    registry = MemoryRegistry()
    declared, other = registry.register("payments-value", SCHEMA), registry.register("other-value", schema)
    good = framed(declared, SCHEMA, {**GOOD, "paid_at": CLOCK_MS})
    arrived, refused = parse(good, framed(other, schema, {**GOOD, "paid_at": CLOCK_MS, **fields}), good, registry=registry)
    return len(arrived), [(one.offset, one.reason) for one in refused]


@pytest.mark.parametrize("amount", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_none_is_refused(amount: float):
    """
    Avro can say it, and a mean that has seen it is lost for as long as its window; a null is told as null.
    """
    assert of({"amount": amount}) == (2, [(11, "contract")])


def test_records_of_another_version_that_all_do_not_decode_are_refused():
    """
    There is nothing left then to make columns of.
    """
    newer = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "shop", "type": "string"}]}
    registry = MemoryRegistry()
    number = registry.register("payments-value", newer)
    arrived, refused = parse(frame(number) + b"\xff", registry=registry)
    assert (len(arrived), [one.reason for one in refused]) == (0, ["undecodable"])


def test_a_whole_number_that_is_too_large_for_its_type_is_refused_in_any_version():
    """
    The library that resolves versions does not look; the encoder of the body does.
    """
    visits = {"name": "visits", "type": ["null", "long"]}
    wider = {**SCHEMA, "fields": [*SCHEMA["fields"][:4], visits, SCHEMA["fields"][4]]}
    assert of({"visits": 2**53 + 2}, wider) == (2, [(11, "contract")])


@pytest.mark.parametrize(
    "more",
    [
        {"name": "next", "type": ["null", "Payment"], "default": None},
        {"name": "nothing", "type": {"type": "array", "items": "null"}, "default": []},
    ],
    ids=["itself", "lists of nothing"],
)
def test_a_schema_by_which_a_few_bytes_may_be_of_any_size_is_not_read(more: dict[str, Any]):
    """
    Nested deeply enough, a record by a schema that contains itself ends the process in the decoder's C.
    """
    registry = MemoryRegistry()
    number = registry.register("payments-value", {**SCHEMA, "fields": [*SCHEMA["fields"], more]})
    arrived, refused = parse(changed(), frame(number) + b"\x02" * 400_000, registry=registry)
    assert (len(arrived), [one.reason for one in refused]) == (1, ["schema"])


def test_ids_of_schemas_that_are_made_up_are_not_all_remembered():
    """
    A stranger may count through four billions of them.
    """
    registry = MemoryRegistry()
    parser = Parser(stream(), registry, b"")
    for first in range(0, 3_000, 500):
        parser.parse(polled(*(frame(10_000 + n) + b"x" for n in range(first, first + 500))), CLOCK_MS)
    assert len(parser._writers) <= SCHEMAS_MAX


def framed(number: int, schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return frame(number) + out.getvalue()
