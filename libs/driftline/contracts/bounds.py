"""
What a message of ours can say. Only our services write our topics, but nothing keeps a stranger, or a flipped bit, from doing so:
what decodes and yet cannot have been said by a service is refused here, before it moves a lane, a window or a clock.

A moment is judged by the record's own timestamp, which is the sender's wall clock: nobody can tell of what was not yet. So the
verdict is a function of the log, the same whenever the log is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from driftline.contracts import traceparent
from driftline.contracts.messages import FACTS, Source, Writer
from driftline.contracts.topics import Topic
from driftline.stream.batch import Ints, Table, Varlen

Bools = npt.NDArray[np.bool_]

TIME_MS_MIN, TIME_MS_MAX = 0, 4_102_444_800_000  # 1970 to 2100
AHEAD_MS_MAX = 15 * 60_000  # of the record's timestamp: what intake lets through, and as much again for clocks that differ
PARTITIONS_MAX = 1_024  # of an upstream topic, and of the data topics: `seen` has a place for each
STREAMS_MAX = 64  # where the pipeline is not known
OFFSET_MAX = 1 << 48
ARMS_MAX = 8
NAME_BYTES_MAX = 1_024
TEXTS_BYTES_MAX = 16 << 10  # of an array of names

WRITERS: Mapping[str, tuple[int, ...]] = {
    "intake": (Writer.INTAKE,),
    "feature": (Writer.FEATURE,),
    "inference": (Writer.INFERENCE,),
    "labeler": (Writer.LABELER,),
    "drift": (Writer.DRIFT_JOURNAL, Writer.DRIFT_EXAMPLES, Writer.DRIFT),
    "trainer": (Writer.TRAINER,),
    "rollout": (Writer.ROLLOUT,),
    "operators": (Writer.OPERATOR,),
    "player": (Writer.PLAYER,),
}
# The logs that causes of a topic's messages are on. Upstream streams are added for events, and any log is one for dead letters.
SOURCES: Mapping[str, tuple[int, ...]] = {
    "events": (Source.TICK,),
    "features": (Source.TICK, Source.EVENTS),
    "predictions": (Source.EVENTS,),
    "journal": (Source.TICK, Source.EVENTS),
    "examples": (Source.TICK, Source.JOURNAL),
    "summaries": (Source.JOURNAL, Source.EXAMPLES, Source.RETRAIN),
    "retrain": (Source.SUMMARIES, Source.OPERATORS),
    "control": (Source.SUMMARIES, Source.RETRAIN, Source.OPERATORS),
    "deployments": (Source.CONTROL,),
    "clock": (Source.CLOCK, Source.OPERATORS),
}
NAMES = ("id", "key", "layout", "arm", "model", "digest", "origin", "salt", "trigger", "command", "who", "kind", "move", "action")
TEXTS = ("slices", "retrains")
TIMES = ("time", "visible", "asked", "known", "start", "end")
# When an event or a row happened may be told ahead (a departure that is planned); when it could be known may not.
PLANNED = {("event", "time"), ("row", "time"), ("answer", "time"), ("outcome", "time"), ("prediction", "time")}
LABELS = {"example": (-1, 1)}
COUNTED = ("deployment", "revision", "answer_index", "version")


class Fault(NamedTuple):
    """The messages of a table that cannot be, with the reason and the words for their dead letters."""

    bad: Bools
    reason: str
    detail: str


class Declared(Protocol):
    """What bounds need of a pipeline."""

    @property
    def tick_ms(self) -> int: ...

    @property
    def streams(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one topic's messages; tighter where the pipeline is known."""

    topic: Topic
    streams: int = STREAMS_MAX
    tick_ms: int | None = None

    @classmethod
    def of(cls, topic: Topic, pipeline: Declared | None = None) -> Bounds:
        """The bounds of `topic`, in that pipeline."""
        return cls(topic) if pipeline is None else cls(topic, len(pipeline.streams), pipeline.tick_ms)

    def faults(self, table: Table, timestamps: Ints, partition: int) -> Iterator[Fault]:
        """Whatever is wrong with the messages of `table`, which came from `partition` with these record timestamps."""
        yield from self._coordinates(table, partition)
        yield from self._times(table, timestamps)
        if table.message == "tick" and self.tick_ms is not None:
            bad = table["time"] != table["offset"] * self.tick_ms
            yield Fault(bad, "bad_time", "the number of the tick and its time are not those of one tick of this pipeline")
        if table.message == "clock" and self.tick_ms is not None:
            yield Fault(table["time"] % self.tick_ms != 0, "bad_time", "its time is no multiple of the pipeline's tick")
        yield from _bodies(table)
        yield from _texts(table)
        if traceparent.NAME in table.columns:
            foreign = traceparent.foreign(traceparent.column_of(table))
            yield Fault(foreign, "contract", '"traceparent" is no trace context in the form that we write')
        yield from _numbers(table)

    def _coordinates(self, table: Table, partition: int) -> Iterator[Fault]:
        source, cause, offset, writer = (table[name] for name in ("source", "partition", "offset", "writer"))
        writers = [number for name in self.topic.writers for number in WRITERS.get(name, ())]
        yield Fault(~_among(writer, writers), "contract", f"its writer is none of {', '.join(self.topic.writers)}")
        if self.topic.kind == "dead-letters":
            known = (source >= 0) & (source < Source.UPSTREAM + self.streams)
        else:
            known = _among(source, SOURCES[self.topic.kind])
            if self.topic.kind == "events":
                known |= (source >= Source.UPSTREAM) & (source < Source.UPSTREAM + self.streams)
        yield Fault(~known, "contract", f"its source is no log that {self.topic.kind} are made from")
        limits = np.where(source == Source.OPERATORS, 1 << 62, OFFSET_MAX)  # a command's is the time it was given, in ns
        placed = (offset >= 0) & (offset < limits) & (table["index"] >= 0) & (table["event_offset"] >= -1)
        placed &= (table["event_offset"] < OFFSET_MAX) & (cause >= 0) & (cause < PARTITIONS_MAX)
        yield Fault(~placed, "contract", "its coordinate is no place on a log")
        if self.topic.kind in ("features", "predictions", "journal", "examples"):
            elsewhere = cause != np.where(source == Source.TICK, 0, partition)
            yield Fault(elsewhere, "contract", f"its cause is not on partition {partition}, where it lies")

    def _times(self, table: Table, timestamps: Ints) -> Iterator[Fault]:
        for name in TIMES:
            if name not in table.columns or not isinstance(table[name], np.ndarray):
                continue
            times = table[name]
            yield Fault((times < TIME_MS_MIN) | (times >= TIME_MS_MAX), "bad_time", f'"{name}" is not between 1970 and 2100')
            if (table.message, name) not in PLANNED:
                ahead = (timestamps > 0) & (times > timestamps + AHEAD_MS_MAX)
                yield Fault(ahead, "bad_time", f'"{name}" is more than {AHEAD_MS_MAX // 60_000} minutes after the record was written')


def _among(column: Ints, few: Sequence[int]) -> Bools:
    """Whether each is one of a few numbers; `np.isin` sorts, which costs more than it saves."""
    found: Bools = column == few[0]
    for number in few[1:]:
        found |= column == number
    return found


def _bodies(table: Table) -> Iterator[Fault]:
    """The fields of a fact that are JSON on the log have to be objects."""
    fact = FACTS.get(table.message)
    for name in fact.json_fields if fact else ():
        column = table[name]
        values = column.tolist() if isinstance(column, Varlen) else column
        yield Fault(np.array([not _is_object(value) for value in values], np.bool_), "undecodable", f'"{name}" is no JSON object')


def _is_object(value: Any) -> bool:
    try:
        return isinstance(msgspec.json.decode(value), dict)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False


def _texts(table: Table) -> Iterator[Fault]:
    for names, most in ((NAMES, NAME_BYTES_MAX), (TEXTS, TEXTS_BYTES_MAX)):
        for name in names:
            column = table.columns.get(name)
            if isinstance(column, Varlen) and table.message != "dead_letter":
                yield Fault(column.ends - column.starts > most, "too_large", f'"{name}" is of more than {most} bytes')


def _numbers(table: Table) -> Iterator[Fault]:
    if table.message in LABELS:
        low, high = LABELS[table.message]
        yield Fault((table["label"] < low) | (table["label"] > high), "contract", f'"label" is not from {low} to {high}')
    for name in COUNTED:
        if name in table.columns:
            yield Fault(table[name] < 0, "contract", f'"{name}" is negative')
    flags = table.columns.get("flags")
    if isinstance(flags, np.ndarray):
        yield Fault((flags < 0) | (flags > 7), "contract", '"flags" has bits that mean nothing')
    for name in ("score", "share", "fallback_score"):
        column = table.columns.get(name)
        if isinstance(column, np.ndarray):
            outside = ~((column >= 0) & (column <= 1))
            bad = outside & ~np.isnan(column) if name == "score" else outside  # a score may be missing
            yield Fault(bad, "contract", f'"{name}" is no probability')
    for name in ("arms", "shadows"):
        if name in table.columns:
            yield Fault(np.array([not _served(arms) for arms in table[name]], np.bool_), "contract", f'"{name}" are no parts of a whole')


def _served(arms: Any) -> bool:
    """A few, each with a share that is a probability; a part of a bad record is not judged."""
    return arms is None or (len(arms) <= ARMS_MAX and all(0 <= arm["share"] <= 1 for arm in arms))
