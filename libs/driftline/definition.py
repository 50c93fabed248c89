"""
A pipeline as the services read it: everything named, resolved and checked. Made by `driftline.pipeline`, never by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftline.declaration import Budget, Gate, Recipe, Retrain, Rollout
from driftline.features.row import RowLayout

NUMBERS = ("int", "long", "float", "double")
TYPES = ("string", "boolean", "timestamp-millis", *NUMBERS)


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """
    An upstream topic. `number` is its place in the file, which is how the log names it and how ties of visible time are decided;
    `broadcast` says whether every partition needs its records; `pii` names the fields that intake tokenises. Times are milliseconds.
    """

    name: str
    number: int
    topic: str
    schema: Mapping[str, Any]
    id: str
    key: str
    time: str
    visible: str
    lateness_ms: int
    duplicates_ms: int
    duplicates_max: int
    pii: tuple[str, ...]
    broadcast: bool

    @property
    def types(self) -> dict[str, str]:
        """The type of each field, as `double`, `timestamp-millis`; with a question mark where it may be null."""
        return {field["name"]: type_of(field["type"]) for field in self.schema["fields"]}


def type_of(avro: Any) -> str:
    """An Avro type in one word, with a question mark where it may be null; empty for a type that streams cannot have."""
    if isinstance(avro, list):
        others = [part for part in avro if part != "null"]
        known = type_of(others[0]) if len(avro) == 2 and len(others) == 1 else ""  # null and one more
        return f"{known}?" if known else ""
    name = str(avro.get("logicalType", avro.get("type"))) if isinstance(avro, dict) else str(avro)
    return name if name in TYPES else ""


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a field with a constant; neither it nor its contrary holds where the field is null."""

    field: str
    op: str
    value: float | str | bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What an aggregate reads of a record: a field within bounds, or whether a condition holds (1 or 0)."""

    field: str
    low: float = float("-inf")
    high: float = float("inf")
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One function over one stream (by number). It reads nothing where it takes the records as such. Times are milliseconds."""

    function: str
    stream: int
    reading: Reading | None
    window_ms: int
    ending_ms: int = 0
    ready_after_ms: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True)
class Feature:
    """A named sum of aggregates, each with its sign."""

    name: str
    terms: tuple[tuple[float, Aggregate], ...]


@dataclass(frozen=True, slots=True)
class Direct:
    """An input that is taken from the question."""

    name: str
    function: str
    field: str
    zone: str


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What is known of an entity: the values of the fields `by`, which its streams and the question have in common."""

    name: str
    of: tuple[Stream, ...]
    by: tuple[str, ...]
    broadcast: bool
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """What became of a question; a record of `of` names it by the question's id field. Times are milliseconds."""

    name: str
    of: Stream
    when: Condition
    horizon_ms: int
    if_silent: str
    revisions_ms: int
    waiting_max: int


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline:
    """
    One use case. `streams` and `views` are in the order of the file, `inputs` in that of the row. `digest` changes with everything that
    changes a row, and with nothing else: it is the feature-set version.
    """

    name: str
    owner: str
    folder: Path
    streams: tuple[Stream, ...]
    question: Stream
    label: Label | None
    views: tuple[View, ...]
    inputs: tuple[View | Direct, ...]
    layout: RowLayout
    slices: tuple[str, ...]
    decide: Budget
    model: Recipe
    gate: Gate
    retrain: Retrain
    rollout: Rollout
    tick_ms: int
    window_ms: int
    retention_ms: int
    predictions: str
    digest: str
