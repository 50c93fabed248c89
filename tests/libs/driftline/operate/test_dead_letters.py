"""What was refused, looked at and sent again."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from rich.console import Console

from driftline.clock import SystemClock
from driftline.contracts.messages import Source, Writer
from driftline.errors import Fatal, Invalid
from driftline.operate.dead_letters import (
    Letter,
    Wanted,
    pii_key,
    print_letter,
    print_letters,
    print_reasons,
    read_letters,
    replay,
    since_ms,
)
from driftline.stream.batch import Refused, Varlen
from driftline.stream.dead_letters import DeadLetters, seal
from driftline.stream.records import Polled

KEY = bytes(range(32))
TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
POLLED = replace(
    Polled.of([4, 5], [b"k", None], [b"{broken", b"tail N1"], [1_000, 2_000]),
    traces=Varlen.optional([TRACE, None]),
)
REFUSED = [Refused(4, "undecodable", "no JSON at byte 1"), Refused(5, "contract", "no field asked_at")]


async def refuse(place: Any, topic: str, sealed: bool) -> None:
    letters = DeadLetters(place.pipeline.name, "intake", Source.UPSTREAM, 100, key=KEY, sealed=[topic] if sealed else [])
    await place.put(Writer.INTAKE, *letters.of(topic, 0, POLLED, REFUSED))


async def upstream(place: Any) -> tuple[Any, str]:
    """The pipeline with its first stream on a topic of this test's own."""
    topic = f"{place.pipeline.name}-upstream"
    admin = AIOKafkaAdminClient(bootstrap_servers=place.addresses.kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    return replace(place.pipeline, streams=(replace(place.pipeline.streams[0], topic=topic), *place.pipeline.streams[1:])), topic


async def records(place: Any, topic: str) -> list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=place.addresses.kafka, auto_offset_reset="earliest")
    await consumer.start()
    try:
        polled = await consumer.getmany(timeout_ms=5_000)
        return [(record.key, record.value, list(record.headers)) for some in polled.values() for record in some]
    finally:
        await consumer.stop()


async def test_refused_records_are_counted_by_reason_and_shown_without_what_they_hold(place: Any):
    """
    Where, when and why; a payload may be personal.
    """
    await refuse(place, "flights", sealed=False)
    letters = await read_letters(place.addresses, place.pipeline)
    assert [(one.topic, one.at, one.reason, one.key, one.value) for one in letters] == [
        ("flights", 4, "undecodable", b"k", b"{broken"),
        ("flights", 5, "contract", None, b"tail N1"),
    ]
    shown = StringIO()
    console = Console(file=shown, width=200)
    print_reasons(letters, console)
    print_letters(letters, console)
    assert "no field asked_at" in shown.getvalue()
    assert "N1" not in shown.getvalue()


@pytest.mark.parametrize("sealed", [False, True])
async def test_replayed_records_are_those_that_came(place: Any, sealed: bool):
    """
    Key and value to the byte, opened where they were sealed, and in the trace that they came in; only those with the reason that was
    asked for.
    """
    pipeline, topic = await upstream(place)
    await refuse(place, topic, sealed)
    for reason in ("undecodable", "contract"):
        letters = await read_letters(place.addresses, pipeline, Wanted(reason=reason))
        assert (await replay(place.addresses, pipeline, letters, KEY, SystemClock(), 0)).sent == 1
    assert await records(place, topic) == [(b"k", b"{broken", [("traceparent", TRACE)]), (None, b"tail N1", [])]


async def test_sealed_records_are_not_replayed_without_the_key(place: Any):
    """
    Nothing is sent, and the variable is named.
    """
    pipeline, topic = await upstream(place)
    await refuse(place, topic, sealed=True)
    with pytest.raises(Fatal, match="DRIFTLINE_PII_KEY"):
        await replay(place.addresses, pipeline, await read_letters(place.addresses, pipeline), b"", SystemClock(), 0)


async def test_records_of_our_own_topics_are_not_replayed(place: Any):
    """
    Their coordinates are taken; the service that refused them makes them again from its log.
    """
    await refuse(place, place.topics.events.name, sealed=False)
    found = await replay(place.addresses, place.pipeline, await read_letters(place.addresses, place.pipeline), b"", SystemClock(), 0)
    assert (found.sent, found.kept_back) == (0, 2)


def test_a_key_that_is_no_hexadecimal_is_named():
    """
    By its variable, never by its value.
    """
    assert pii_key({"DRIFTLINE_PII_KEY": "0a" * 40}) == b"\x0a" * 32
    with pytest.raises(Fatal, match="DRIFTLINE_PII_KEY"):
        pii_key({"DRIFTLINE_PII_KEY": "secret"})


def test_letters_are_chosen_by_reason_topic_time_and_place():
    """
    Each alone, and together.
    """
    one = Letter(0, "flights", 1, 7, "intake", "contract", "", 5_000, False, None, b"x")
    assert all(wanted.has(one) for wanted in (Wanted(), Wanted("contract", "flights", 5_000, "flights[1]@7")))
    others = (Wanted(reason="schema"), Wanted(topic="weather"), Wanted(since_ms=5_001), Wanted(place="flights[1]@8"))
    assert not any(wanted.has(one) for wanted in others)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90m", 94_600_000), ("1d", 13_600_000), ("1970-01-01T00:00:02", 2_000), ("1970-01-01T01:00:02+01:00", 2_000)],
)
def test_since_is_how_long_ago_or_a_date(text: str, expected: int):
    """
    UTC unless it says otherwise.
    """
    assert since_ms(text, 100_000_000) == expected


def test_since_that_is_neither_is_told():
    """
    With what it may be.
    """
    with pytest.raises(Invalid, match="90m"):
        since_ms("yesterday", 0)


def test_what_a_letter_holds_is_shown_only_when_it_is_asked_for():
    """
    Sealed, only with the key; and nothing of it reaches the terminal as a command.
    """
    value = b"tail \x1b[31mN1"
    plain = Letter(0, "flights", 1, 7, "intake", "contract", "no field", 5_000, False, None, value)
    sealed = replace(plain, sealed=True, value=seal(value, KEY))
    for letter in (plain, sealed):
        assert "N1" not in told(letter, payload=False)
        assert "tail \\x1b[31mN1" in told(letter, payload=True, pii_key=KEY)
        assert "flights[1]@7" in told(letter, payload=False)
    with pytest.raises(Fatal, match="DRIFTLINE_PII_KEY"):
        told(sealed, payload=True)


def told(letter: Letter, **options: Any) -> str:
    shown = StringIO()
    print_letter(letter, Console(file=shown, width=200), **options)
    return shown.getvalue()
