"""
What was refused: counted by reason, listed without payloads, and sent again once the cause is mended.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from driftline.access import kafka_client
from driftline.clock import Clock
from driftline.contracts import traceparent
from driftline.contracts.topics import Topics
from driftline.errors import Fatal, Invalid, Recoverable
from driftline.operate.addresses import Addresses
from driftline.operate.commands import everything
from driftline.operate.models import day
from driftline.pipeline import Pipeline
from driftline.settings import secret
from driftline.stream.batch import Batch
from driftline.stream.connect import connect
from driftline.stream.dead_letters import unseal
from driftline.stream.kafka import committed_metadata

KEY_BYTES = 32
REQUEST_BYTES = 2 << 20  # of a record that is sent again, with room around it
WAIT_S, ASK_EVERY_S = 30.0, 0.2
SHOWN_BYTES = 4_096
UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Letter:
    """One refused record, as it came."""

    offset: int
    topic: str
    partition: int
    at: int
    service: str
    reason: str
    detail: str
    timestamp: int
    sealed: bool
    key: bytes | None
    value: bytes | None
    traceparent: str | None = None

    @property
    def place(self) -> str:
        """Where the record was read: topic[partition]@offset."""
        return f"{self.topic}[{self.partition}]@{self.at}"

    @property
    def size(self) -> int:
        """Bytes of the value, as kept."""
        return len(self.value or b"")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant: all, or those with this reason, of this topic, of records since that time, or the one at a place."""

    reason: str = ""
    topic: str = ""
    since_ms: int = 0
    place: str = ""  # topic[partition]@offset, as `show` tells it

    def has(self, letter: Letter) -> bool:
        """Whether `letter` is one of them."""
        return (
            self.reason in ("", letter.reason)
            and self.topic in ("", letter.topic)
            and letter.timestamp >= self.since_ms
            and self.place in ("", letter.place)
        )


EVERYTHING = Wanted()


def since_ms(text: str, now_ms: int, option: str = "--since") -> int:
    """The time that `90m`, `12h`, `7d` ago was, or that a date says (2026-01-31, or with a time; UTC unless it says otherwise)."""
    ago = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if ago:
        return now_ms - int(ago[1]) * UNITS_MS[ago[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid(f"{option} {text}: say how long ago (90m, 12h, 7d) or a date (2026-01-31, 2026-01-31T12:00)") from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


async def read_letters(addresses: Addresses, pipeline: Pipeline, wanted: Wanted = EVERYTHING) -> list[Letter]:
    """The pipeline's dead letters that are wanted, oldest first."""
    letters = [one for batch in await everything(addresses, Topics.of(pipeline).dead_letters) for one in letters_in(batch)]
    return [letter for letter in letters if wanted.has(letter)]


def letters_in(batch: Batch) -> list[Letter]:
    """The dead letters of a batch of their topic."""
    table = batch["dead_letter"]
    if table is None:
        return []
    text = {name: table[name].texts() for name in ("topic", "service", "reason", "detail")}
    raw = {name: [table[name].get(at) for at in range(len(table))] for name in ("key", "value")}
    traces = traceparent.column_of(table).optional_texts()
    number = {name: table[name].tolist() for name in ("partition", "offset", "timestamp", "sealed")}
    return [
        Letter(
            offset,
            text["topic"][at],
            number["partition"][at],
            number["offset"][at],
            text["service"][at],
            text["reason"][at],
            text["detail"][at],
            number["timestamp"][at],
            number["sealed"][at],
            raw["key"][at],
            raw["value"][at],
            traces[at],
        )
        for at, offset in enumerate(table.offsets.tolist())
    ]


def pii_key(environment: Mapping[str, str] = os.environ) -> bytes:
    """The key that sealed them, from DRIFTLINE_PII_KEY or its file (hexadecimal, as intake has it); empty when not set. Raises Fatal."""
    try:
        return bytes.fromhex(secret("pii_key", environment))[:KEY_BYTES]
    except ValueError as error:
        raise Fatal("DRIFTLINE_PII_KEY is not hexadecimal") from error


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of records that were sent again."""

    sent: int
    kept_back: int  # of our own topics, or of which only the beginning is kept
    refused: tuple[Letter, ...] = ()  # again, with the reasons of now
    unread: int = 0  # intake has not come to them yet

    @property
    def accepted(self) -> int:
        """How many are on the pipeline's log now."""
        return self.sent - len(self.refused) - self.unread


def replayable(pipeline: Pipeline, letters: Sequence[Letter]) -> list[Letter]:
    """
    Those that can be sent again: records of upstream topics, kept whole.

    Records of our own topics are not sent: their coordinates are taken already, so they would be dropped as copies; the
    service that refused them makes them again from its own log (driftline rebuild). Nor are those that were too large, of
    which only the beginning may be kept.
    """
    upstream = {stream.topic for stream in pipeline.streams}
    return [letter for letter in letters if letter.topic in upstream and letter.reason != "too_large"]


async def replay(
    addresses: Addresses, pipeline: Pipeline, letters: Sequence[Letter], pii_key: bytes, clock: Clock, wait_s: float = WAIT_S
) -> Replayed:
    """
    Send what is replayable to its topics again, as it came, of its headers the trace context alone; and wait for up to `wait_s` until
    intake has read it, to say how much of it is accepted now. Raises Fatal, with nothing sent, when one is sealed and there is no key.
    """
    mine = replayable(pipeline, letters)
    if not pii_key and any(letter.sealed for letter in mine):
        raise Fatal("some of the records are sealed: set DRIFTLINE_PII_KEY to the key that intake uses")
    opened = [(letter, _opened(letter.key, letter, pii_key), _opened(letter.value, letter, pii_key)) for letter in mine]
    places: set[tuple[str, int, int]] = set()
    producer = AIOKafkaProducer(**kafka_client(addresses.kafka), enable_idempotence=True, acks="all", max_request_size=REQUEST_BYTES)
    await connect(producer, addresses.kafka)
    try:
        for letter, key, value in opened:
            headers = [] if letter.traceparent is None else [(traceparent.NAME, letter.traceparent.encode())]
            at = await producer.send_and_wait(letter.topic, value=value, key=key, headers=headers)
            places.add((letter.topic, at.partition, at.offset))
    finally:
        await producer.stop()
    unread = await _unread(addresses, pipeline, places, clock, wait_s)
    again = {(letter.topic, letter.partition, letter.at): letter for letter in await read_letters(addresses, pipeline)} if places else {}
    refused = tuple(again[place] for place in sorted(places & again.keys()))
    return Replayed(len(mine), len(letters) - len(mine), refused, len(unread - again.keys()))


async def _unread(
    addresses: Addresses, pipeline: Pipeline, places: set[tuple[str, int, int]], clock: Clock, wait_s: float
) -> set[tuple[str, int, int]]:
    """Which of `places` intake has not passed yet, after `wait_s` at most: its committed offsets tell."""
    deadline = clock.monotonic_s() + wait_s
    while places:
        try:
            marks = await committed_metadata(addresses.kafka, f"{pipeline.name}-intake")
        except Recoverable:  # nobody has committed anything yet, or the broker is busy with others
            marks = {}
        left = {place for place in places if place[2] >= marks.get(place[:2], (0, ""))[0]}
        if not left or clock.monotonic_s() >= deadline:
            return left
        await asyncio.sleep(ASK_EVERY_S)
    return places


def _opened(value: bytes | None, letter: Letter, pii_key: bytes) -> bytes | None:
    return unseal(value, pii_key) if letter.sealed and value is not None else value


def print_reasons(letters: Sequence[Letter], console: Console) -> None:
    """One line for each topic, service and reason, with the time and the words of the newest."""
    counts = Counter((letter.topic, letter.service, letter.reason) for letter in letters)
    newest = {(letter.topic, letter.service, letter.reason): letter for letter in letters}
    grid = Grid("topic", "refused by", "reason", "records", "last", "the newest", box=None, pad_edge=False)
    for group, count in sorted(counts.items()):
        grid.add_row(*group, f"{count:,}", day(newest[group].timestamp), Text(newest[group].detail))
    console.print(grid if letters else "no dead letter")


def print_letters(letters: Sequence[Letter], console: Console, *, payload: bool = False, pii_key: bytes = b"") -> None:
    """One line a letter: where it was, when, and why; what it holds only where `payload` asks for it. Raises Fatal without the key."""
    for letter in letters:
        sealed = ", sealed" if letter.sealed else ""
        _tell(console, f"{letter.place}  {day(letter.timestamp)}  {letter.reason}: {letter.detail} ({letter.size} bytes{sealed})")
        if payload:
            _print_payload(letter, console, pii_key)


def print_letter(letter: Letter, console: Console, *, payload: bool = False, pii_key: bytes = b"") -> None:
    """Everything about one letter, and what it holds where `payload` asks for it. Raises Fatal without the key."""
    rows = {
        "record": letter.place,
        "written": day(letter.timestamp),
        "refused by": letter.service,
        "reason": letter.reason,
        "in words": letter.detail,
        "key": "none" if letter.key is None else f"{len(letter.key)} bytes",
        "value": "none" if letter.value is None else f"{letter.size} bytes",
        "trace": "none" if letter.traceparent is None else traceparent.trace_id(letter.traceparent),
        "kept": f"offset {letter.offset} of the dead letters, {'sealed' if letter.sealed else 'in clear'}",
    }
    for name, told in rows.items():
        _tell(console, f"{name:<12}{told}")
    if payload:
        _print_payload(letter, console, pii_key)


def _print_payload(letter: Letter, console: Console, pii_key: bytes) -> None:
    """Text as text, with what a terminal would obey spelt out; other bytes in hexadecimal, the first of them."""
    if letter.sealed and not pii_key:
        raise Fatal("the record is sealed: set DRIFTLINE_PII_KEY to the key that intake uses")
    for name, kept in (("key", letter.key), ("value", letter.value)):
        plain = _opened(kept, letter, pii_key)
        _tell(console, f"    {name}: {'none' if plain is None else _legible(plain)}")


def _legible(plain: bytes) -> str:
    shown = plain[:SHOWN_BYTES]
    more = f" ... ({len(plain)} bytes)" if len(plain) > SHOWN_BYTES else ""
    try:
        text = shown.decode()
    except UnicodeDecodeError:
        return shown.hex(" ") + more
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text) + more


def _tell(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
