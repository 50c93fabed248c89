"""
Makes upstream messages wrong on purpose, by seed: some sent twice, a few broken. A broken message is an extra one, a copy of a real
one under a new id, so that what is true about the real ones stays complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

DUPLICATE_SHARE = 0.01
DISORDER_MAX = 8  # places
LATE_MS = (11 * 60_000, 180 * 60_000)  # beyond the next tick, and for some beyond what a view folds
AHEAD_MS = (60_000, 40 * 60_000)
LATER_MAX = 200  # a copy comes right away, or at most so many messages later
DAYS_PER_FAULT = 70  # of each kind of broken message there is one in so many days
FUTURE_MS = 86_400_000  # beyond the end of the day that is played
UNKNOWN_SCHEMA_ID = 999_983

DUPLICATE = "duplicate"
JSON_FAULTS = ("bad_json", "wrong_type", "missing_id", "future")
AVRO_FAULTS = ("truncated_avro", "unknown_schema")
REASONS = {
    "bad_json": "undecodable",
    "wrong_type": "contract",
    "missing_id": "missing_id",
    "future": "future",
    "truncated_avro": "undecodable",
    "unknown_schema": "schema",
}


class Outgoing(NamedTuple):
    """One message to publish. `fault` is empty on a real one, DUPLICATE on a second copy, else the kind of breakage."""

    key: bytes | None
    value: bytes
    id: str
    fault: str = ""


class Declared(NamedTuple):
    """What must be known of a stream to break its messages: its schema, and which field is the id, which the visible time."""

    schema: Mapping[str, Any]
    id: str
    visible: str


class Mix(NamedTuple):
    """
    How much of a topic goes wrong: the share sent twice, sent a few places later, sent so late that ticks have passed it, and (JSON alone)
    sent once more under a new id with a time some minutes ahead, which may be too far ahead or not.
    """

    duplicates: float = DUPLICATE_SHARE
    disorder: float = 0.0
    late: float = 0.0
    ahead: float = 0.0


def plan_faults(days: int, json_topics: Sequence[str], avro_topics: Sequence[str], seed: int) -> dict[int, list[tuple[str, str]]]:
    """Which broken messages go out on which day: (topic, kind of breakage) by number of the day."""
    chance = np.random.default_rng([seed, days])
    plan: dict[int, list[tuple[str, str]]] = {}
    for kinds, topics in ((JSON_FAULTS, json_topics), (AVRO_FAULTS, avro_topics)):
        for kind in kinds if topics else ():
            for day in chance.integers(0, days, max(1, days // DAYS_PER_FAULT)).tolist():
                plan.setdefault(day, []).append((topics[int(chance.integers(len(topics)))], kind))
    return plan


def with_faults(
    messages: Sequence[Outgoing], kinds: Sequence[str], stream: Declared, day_end_ms: int, chance: np.random.Generator
) -> list[Outgoing]:
    """`messages` of one topic and day in their order, with second copies and one broken message of each of `kinds` among them."""
    return [message for _, message in placed(messages, kinds, stream, day_end_ms, chance)]


def placed(
    messages: Sequence[Outgoing],
    kinds: Sequence[str],
    stream: Declared,
    day_end_ms: int,
    chance: np.random.Generator,
    mix: Mix = Mix(),  # noqa: B008  # a frozen value
    visible: npt.NDArray[np.int64] | None = None,
) -> list[tuple[float, Outgoing]]:
    """
    As `with_faults`, each message with its place: n is where the nth of `messages` belongs. `visible`, the times of `messages`, is needed
    for late ones alone.
    """
    if not messages:
        return []
    again = np.flatnonzero(chance.random(len(messages)) < mix.duplicates)
    later = chance.integers(0, 2, len(again)) * chance.integers(1, LATER_MAX, len(again))
    copies = [(at + wait + 0.5, messages[at]._replace(fault=DUPLICATE)) for at, wait in zip(again.tolist(), later.tolist(), strict=True)]
    for number, kind in enumerate(kinds):
        at = int(chance.integers(len(messages)))
        copies.append((at + 0.5, broken(messages[at], kind, stream, day_end_ms, number)))
    if mix.ahead and visible is not None:
        for at in np.flatnonzero(chance.random(len(messages)) < mix.ahead).tolist():
            stamped = int(visible[at]) + int(chance.integers(*AHEAD_MS))
            copies.append((at + 0.5, _stamped(messages[at], stream, stamped)))
    places = np.arange(len(messages), dtype=np.float64)
    if mix.disorder:
        moved = np.flatnonzero(chance.random(len(messages)) < mix.disorder)
        places[moved] += chance.integers(1, DISORDER_MAX, len(moved)) + 0.25
    if mix.late and visible is not None:
        moved = np.flatnonzero(chance.random(len(messages)) < mix.late)
        places[moved] = np.searchsorted(visible, visible[moved] + chance.integers(*LATE_MS, len(moved))) + 0.75
    return sorted([*zip(places.tolist(), messages, strict=True), *copies], key=lambda one: one[0])


def broken(message: Outgoing, kind: str, stream: Declared, day_end_ms: int, number: int = 0) -> Outgoing:
    """A copy of `message` under a new id, wrong in the way that `kind` names."""
    new_id = f"{message.id}-{kind}-{number}"
    key = message.key and new_id.encode()
    if kind == "truncated_avro":
        return Outgoing(key, message.value[:-3], new_id, kind)
    if kind == "unknown_schema":
        return Outgoing(key, b"\x00" + UNKNOWN_SCHEMA_ID.to_bytes(4, "big") + message.value[5:], new_id, kind)
    record = {**json.loads(message.value), stream.id: new_id}
    if kind == "missing_id":
        del record[stream.id]
    elif kind == "wrong_type":
        record[_first_number(stream.schema)] = "12,50"
    elif kind == "future":
        record[stream.visible] = datetime.fromtimestamp((day_end_ms + FUTURE_MS) / 1000, UTC).isoformat()
    value = json.dumps(record, separators=(",", ":")).encode()
    return Outgoing(key, value[: len(value) * 2 // 3] if kind == "bad_json" else value, new_id, kind)


def _stamped(message: Outgoing, stream: Declared, visible_ms: int) -> Outgoing:
    """A copy under a new id, visible at another time."""
    new_id = f"{message.id}-at-{visible_ms}"
    record = {**json.loads(message.value), stream.id: new_id, stream.visible: datetime.fromtimestamp(visible_ms / 1000, UTC).isoformat()}
    return Outgoing(message.key and new_id.encode(), json.dumps(record, separators=(",", ":")).encode(), new_id)


def _first_number(schema: Mapping[str, Any]) -> str:
    return next(str(field["name"]) for field in schema["fields"] if field["type"] in ("int", "long", "float", "double"))
