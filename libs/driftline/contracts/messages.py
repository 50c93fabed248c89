"""
All facts and commands on one page: who can write, where a coordinate can point, and the messages of the control plane as values.

The Avro files in schemas/messages are the law; each dataclass has exactly the fields of its file, less the header that all share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
import numpy.typing as npt

from driftline.contracts.avro import column, unpack_strings
from driftline.errors import Invalid
from driftline.stream.batch import HEADER, Column, Ints, Messages, Table, Varlen


class Source(IntEnum):
    """The log that the cause of a message is on. The pipeline's nth declared stream is `UPSTREAM + n`."""

    TICK = 0
    EVENTS = 1
    FEATURES = 2
    JOURNAL = 3
    EXAMPLES = 4
    SUMMARIES = 5
    CONTROL = 6
    RETRAIN = 7
    DEPLOYMENTS = 8
    CLOCK = 9
    OPERATORS = 10
    UPSTREAM = 16


class Writer(IntEnum):
    """Who wrote a message: a consumer keeps one position for each writer, source and partition."""

    INTAKE = 1
    FEATURE = 2
    INFERENCE = 3
    LABELER = 4
    DRIFT_JOURNAL = 5
    DRIFT_EXAMPLES = 6
    DRIFT = 7
    TRAINER = 8
    ROLLOUT = 9
    OPERATOR = 10
    PLAYER = 11


class Flag(IntFlag):
    """What an answer has to say about itself, as bits."""

    NONE = 0
    DEGRADED = 1
    NO_SCORE = 2
    STALE_VIEW = 4


SCHEMA_FILE = re.compile(r"(?P<message>[a-z_]+)\.v(?P<version>[1-9][0-9]*)\.avsc")


def schema_folder() -> Path:
    """Where our schemas are: DRIFTLINE_SCHEMAS, or the folder `schemas` of the tree that this file is in."""
    return Path(os.environ.get("DRIFTLINE_SCHEMAS") or Path(__file__).resolve().parents[3] / "schemas")


@cache
def _published(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((folder / "messages").iterdir()):
        match = SCHEMA_FILE.fullmatch(path.name)
        if not match:
            raise Invalid(f"{path}: a message's schema is named <message>.v<version>.avsc, in lower case")
        found.setdefault(match["message"], {})[int(match["version"])] = path
    return found


def versions(message: str) -> tuple[int, ...]:
    """The published versions of `message`, oldest first. Raises Invalid for a message that there is not."""
    published = _published(schema_folder())
    if message not in published:
        raise Invalid(f"there is no message {message!r}; there are {', '.join(published)}")
    return tuple(sorted(published[message]))


@cache
def _parsed(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(path.read_text())
    return parsed


def schema(message: str, version: int | None = None) -> dict[str, Any]:
    """
    The parsed schema of `message`, the newest unless `version` says otherwise; shared between callers, so not to be edited.

    Raises Invalid for a message or a version that there is not.
    """
    known = versions(message)
    if version is not None and version not in known:
        raise Invalid(f"{message} has no version {version}; it has {', '.join(map(str, known))}")
    return _parsed(_published(schema_folder())[message][version or known[-1]])


MESSAGES: tuple[str, ...] = tuple(_published(schema_folder()))
"""The names of all messages, in alphabetical order."""


def header_fields() -> tuple[dict[str, Any], ...]:
    """The fields that every message begins with: the coordinate of its cause, the event that it is about, its writer."""
    return tuple(schema("tick")["fields"][: len(HEADER)])


# ---- the control plane, as values -----------------------------------------------------------------------------------------


def canonical_json(value: Any) -> str:
    """One text for one value: keys sorted, no spaces; what is not a number (NaN) becomes null."""
    return msgspec.json.encode(value, order="sorted").decode()


@dataclass(frozen=True)
class Fact:
    """A message of the control plane. Subclasses name the message, and the fields that are JSON text on the log, dicts here."""

    message: ClassVar[str]
    json_fields: ClassVar[tuple[str, ...]] = ()

    def to_record(self) -> dict[str, Any]:
        """The fields of the schema, less the header."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return values | {name: canonical_json(values[name]) for name in self.json_fields}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """
        The fact that `record` tells; keys that are no field, the header's among them, are ignored.

        Raises Invalid when a field is missing or is no JSON where it must be.
        """
        try:
            return cls(**{field.name: cls._field(field.name, record[field.name]) for field in fields(cls)})
        except KeyError as error:
            raise Invalid(f"{cls.message}: the record has no field {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"{cls.message}: {error}") from error

    @classmethod
    def _field(cls, name: str, value: Any) -> Any:
        if name in cls.json_fields:
            return value if isinstance(value, Mapping) else msgspec.json.decode(value)
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, Nested):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Nested:
    """A record within a fact."""

    @classmethod
    def of(cls, value: Any) -> Self:
        """From a record, or as it is."""
        return value if isinstance(value, cls) else cls(**value)


@dataclass(frozen=True)
class Arm(Nested):
    """A model with a part in a deployment: champion or canary with its share; candidate, frozen or previous with share 0."""

    role: str
    model: str
    digest: str
    share: float


@dataclass(frozen=True)
class Deployment(Fact):
    """Rollout's answer to one record of control: a move, or `nothing`. The highest version is in force; version 0 has no model."""

    message: ClassVar[str] = "deployment"

    version: int
    move: str
    state: str
    reason: str
    time: int
    arms: tuple[Arm, ...]
    shadows: tuple[Arm, ...]
    salt: str
    fallback_score: float
    chain: str = ""  # link of the audit chain; none before version 2 of the message

    @classmethod
    def none(cls) -> Deployment:
        """Version 0, in force before the first: no model, every answer degraded."""
        return cls(0, "nothing", "none", "there is no model yet", 0, (), (), "", 0.5)

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of all models that score, each once: arms first, then shadows."""
        return tuple(dict.fromkeys(arm.digest for arm in (*self.arms, *self.shadows)))

    def assign(self, keys: Varlen) -> Ints:
        """
        Which of `arms` answers each key, by salted hash: int64 (n,). A key keeps its arm as long as the salt stays, and one that
        the canary has stays with it when the share grows. Where there are no arms, -1.
        """
        if len(self.arms) < 2:
            return np.full(len(keys), len(self.arms) - 1, np.int64)
        draws = _draws(self.salt.encode(), keys)
        limits = np.cumsum([arm.share for arm in self.arms[1:]])
        drawn = np.searchsorted(limits, draws, side="right") + 1
        return np.where(drawn == len(self.arms), 0, drawn).astype(np.int64)

    @classmethod
    def _field(cls, name: str, value: Any) -> Any:
        return tuple(Arm.of(arm) for arm in value) if name in ("arms", "shadows") else value


def _draws(salt: bytes, keys: Varlen) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each key: the first 53 bits of a hash, all that a double holds exactly."""
    hashed = b"".join([hashlib.blake2b(salt + key, digest_size=8).digest() for key in keys.tolist()])
    return (np.frombuffer(hashed, ">u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Release(Fact):
    """A trained model and the gate's verdict, `accepted` or `refused`; `first` when there was no champion before it."""

    message: ClassVar[str] = "release"
    json_fields: ClassVar[tuple[str, ...]] = ("evidence",)

    model: str
    digest: str
    verdict: str
    reason: str
    first: bool
    time: int
    trigger: str
    command: str
    who: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Report(Fact):
    """What one window `[start, end)` of the pipeline's clock showed, and the ids of the retrain commands that it raised."""

    message: ClassVar[str] = "report"
    json_fields: ClassVar[tuple[str, ...]] = ("body",)

    start: int
    end: int
    retrains: tuple[str, ...]
    body: dict[str, Any]

    @classmethod
    def _field(cls, name: str, value: Any) -> Any:
        return _strings(value) if name == "retrains" else super()._field(name, value)


@dataclass(frozen=True)
class Retrain(Fact):
    """The command to train a challenger; `trigger` is first, quality, new_labels, schedule, definition or operator."""

    message: ClassVar[str] = "retrain"
    json_fields: ClassVar[tuple[str, ...]] = ("evidence",)

    id: str
    trigger: str
    time: int
    who: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Trained(Fact):
    """How a retrain command ended: accepted, refused, duplicate, cooldown, budget or failed."""

    message: ClassVar[str] = "trained"

    id: str
    trigger: str
    outcome: str
    reason: str
    time: int
    rows: int
    model: str
    digest: str


@dataclass(frozen=True)
class Operator(Fact):
    """An operator's command to the rollout: approve, promote, rollback, pause or resume; an empty model means the candidate."""

    message: ClassVar[str] = "operator"

    id: str
    action: str
    model: str
    who: str
    reason: str


@dataclass(frozen=True)
class End(Nested):
    """The end of one upstream partition: the offset after its last complete record."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class ClockRecord(Fact):
    """In a declared replay: up to `time` (exclusive) every source is complete, at `ends`; ticks up to there name `deployment`."""

    message: ClassVar[str] = "clock"

    time: int
    deployment: int
    ends: tuple[End, ...]
    last: bool

    @classmethod
    def _field(cls, name: str, value: Any) -> Any:
        return tuple(End.of(end) for end in value) if name == "ends" else value


@dataclass(frozen=True)
class Summary(Fact):
    """Mergeable counts of one partition and one window; `kind` is answers or examples."""

    message: ClassVar[str] = "summary"
    json_fields: ClassVar[tuple[str, ...]] = ("body",)

    kind: str
    start: int
    end: int
    body: dict[str, Any]


FACTS: dict[str, type[Fact]] = {
    fact.message: fact for fact in (Deployment, Release, Report, Retrain, Trained, Operator, ClockRecord, Summary)
}


def _strings(value: Any) -> tuple[str, ...]:
    """
    An array of strings: a sequence, the bytes that Avro makes of it, or those bytes as the text that `Table.records` makes of them.
    """
    if isinstance(value, str):
        if "\N{REPLACEMENT CHARACTER}" in value:
            raise Invalid("an array of long strings came as text and cannot be read back; use `facts` on the table instead of its records")
        value = value.encode()
    return unpack_strings(value) if isinstance(value, bytes) else tuple(value)


def facts(table: Table) -> list[Any]:
    """
    The messages of a table of the control plane as facts, in its order; what an older version of the message had not has its default.

    Raises Invalid when the table holds no facts.
    """
    if table.message not in FACTS:
        raise Invalid(f"{table.message} is no message of the control plane; those are {', '.join(FACTS)}")
    fact = FACTS[table.message]
    arrays = {field["name"] for field in schema(table.message)["fields"] if _is_string_array(field["type"])}
    values = {
        field.name: _listed(table[field.name], field.name in arrays) if field.name in table.columns else [field.default] * len(table)
        for field in fields(fact)
    }
    return [fact.from_record(dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]


def _is_string_array(kind: Any) -> bool:
    return isinstance(kind, dict) and kind["type"] == "array" and kind["items"] == "string"


def _listed(values: Column, array: bool) -> Sequence[Any]:
    if isinstance(values, Varlen):
        return values.tolist() if array else values.texts()
    return values.tolist() if isinstance(values, np.ndarray) else values


def as_messages(
    topic: str,
    message: str,
    facts: Sequence[Fact],
    *,
    source: int,
    offsets: Sequence[int],
    indexes: Sequence[int],
    partition: int | None = None,
    event_offsets: Sequence[int] | None = None,
    to: int | None = None,
    order: Sequence[int] | None = None,
) -> Messages:
    """
    `facts`, all of the kind `message`, as messages for the topic of kind `topic`: without keys, `offsets` and `indexes` one
    a fact. Where left out, `partition` is the batch's own, `event_offsets` are -1 (about no event), `order` is `offsets`.
    """
    n = len(facts)
    records = [fact.to_record() for fact in facts]
    columns: dict[str, Column] = {
        "source": np.full(n, source, np.int64),
        "offset": np.array(offsets, np.int64),
        "index": np.array(indexes, np.int64),
        "event_offset": np.full(n, -1, np.int64) if event_offsets is None else np.array(event_offsets, np.int64),
    }
    if partition is not None:
        columns["partition"] = np.full(n, partition, np.int64)
    for field in schema(message)["fields"]:
        if field["name"] not in HEADER:
            columns[field["name"]] = column(field["type"], [record[field["name"]] for record in records])
    return Messages(topic, message, None, columns, np.array(offsets if order is None else order, np.int64), to)
