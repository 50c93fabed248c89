"""
What was refused: counted by reason, listed without payloads, and sent again once the cause is mended.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.table import Table as Grid

from driftline.contracts.topics import Topics
from driftline.errors import Fatal
from driftline.operate.addresses import Addresses
from driftline.operate.commands import everything
from driftline.operate.models import day
from driftline.pipeline import Pipeline
from driftline.stream.dead_letters import unseal

KEY_BYTES = 32


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


async def read_letters(addresses: Addresses, pipeline: Pipeline, reason: str = "") -> list[Letter]:
    """All dead letters of the pipeline, or those with `reason`."""
    letters: list[Letter] = []
    for batch in await everything(addresses, Topics.of(pipeline).dead_letters):
        table = batch["dead_letter"]
        if table is None:
            continue
        text = {name: table[name].texts() for name in ("topic", "service", "reason", "detail")}
        raw = {name: [table[name][at] if table[name].starts[at] >= 0 else None for at in range(len(table))] for name in ("key", "value")}
        number = {name: table[name].tolist() for name in ("partition", "offset", "timestamp", "sealed")}
        for at, offset in enumerate(table.offsets.tolist()):
            letters.append(
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
                )
            )
    return [letter for letter in letters if not reason or letter.reason == reason]


def pii_key(environment: Mapping[str, str] = os.environ) -> bytes:
    """The key that sealed them, from DRIFTLINE_PII_KEY (hexadecimal, as intake has it); empty when not set. Raises Fatal."""
    try:
        return bytes.fromhex(environment.get("DRIFTLINE_PII_KEY", ""))[:KEY_BYTES]
    except ValueError as error:
        raise Fatal("DRIFTLINE_PII_KEY is not hexadecimal") from error


async def replay(addresses: Addresses, pipeline: Pipeline, letters: Sequence[Letter], pii_key: bytes) -> int:
    """
    Send records of upstream topics to these topics again, as they came. Returns how many were sent.

    Records of our own topics are not sent: their coordinates are taken already, so they would be dropped as copies; the
    service that refused them makes them again from its own log (driftline rebuild). Nor are those that were too large, of
    which only the beginning is kept. Raises Fatal when one is sealed and there is no key.
    """
    upstream = {stream.topic for stream in pipeline.streams}
    mine = [letter for letter in letters if letter.topic in upstream and letter.reason != "too_large"]
    if not pii_key and any(letter.sealed for letter in mine):
        raise Fatal("some of the records are sealed: set DRIFTLINE_PII_KEY to the key that intake uses")
    producer = AIOKafkaProducer(bootstrap_servers=addresses.kafka, enable_idempotence=True, acks="all")
    await producer.start()
    try:
        for letter in mine:
            await producer.send_and_wait(
                letter.topic, value=_opened(letter.value, letter, pii_key), key=_opened(letter.key, letter, pii_key)
            )
    finally:
        await producer.stop()
    return len(mine)


def _opened(value: bytes | None, letter: Letter, pii_key: bytes) -> bytes | None:
    return unseal(value, pii_key) if letter.sealed and value is not None else value


def print_reasons(letters: Sequence[Letter], console: Console) -> None:
    """One line for each topic and reason, with the newest detail."""
    counts = Counter((letter.topic, letter.service, letter.reason) for letter in letters)
    newest = {(letter.topic, letter.service, letter.reason): letter.detail for letter in letters}
    grid = Grid("topic", "refused by", "reason", "records", "the newest", box=None, pad_edge=False)
    for (topic, service, reason), count in sorted(counts.items()):
        grid.add_row(topic, service, reason, f"{count:,}", newest[topic, service, reason])
    console.print(grid if letters else "no dead letter")


def print_letters(letters: Sequence[Letter], console: Console) -> None:
    """One line a letter: where it was, when, and why; never what it holds."""
    for letter in letters:
        sealed = ", sealed" if letter.sealed else ""
        place = f"{letter.topic}[{letter.partition}]@{letter.at}"
        console.print(
            f"{place}  {day(letter.timestamp)}  {letter.reason}: {letter.detail} ({len(letter.value or b'')} bytes{sealed})",
            markup=False,
            highlight=False,
        )
