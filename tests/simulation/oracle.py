"""
What every log must say, by programs as plain as could be: lists, dictionaries, one record at a time, everything seen so far kept.

They share nothing with `libs` or `services`. Rules are those of the documentation, written down once more.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .messages import Fields, body_fields, lane, single

Numbered = tuple[int, Fields]  # offset on the log, message

LATENESS = 40
DUPLICATES = {"one": (5, 1), "shops": (80, 3), "live": (80, 3)}  # for how long, and how many ids of a key
FEATURE, INFERENCE, LABELER = 2, 3, 4
TICK, EVENTS, JOURNAL, UPSTREAM = 0, 1, 3, 16


Lanes = dict[tuple[int, int, int], tuple[int, int]]


def _is_fine(event: Fields) -> bool:
    """For logs of which all that can be read is taken."""
    return False


def taken(
    log: Iterable[Numbered], is_unreadable: Callable[[Fields], bool] = _is_fine, poisoned: Collection[str] = ()
) -> tuple[list[Numbered], Lanes]:
    """
    First copies, and the last coordinate of each lane: what a reader takes who keeps one coordinate a lane. The coordinate of what is
    unreadable counts for nothing, so each copy of it is met; nor does that of what kills its reader.
    """
    last: Lanes = {}
    found = []
    for offset, fields in log:
        coordinate = (fields["offset"], fields["index"])
        if is_unreadable(fields):
            found.append((offset, fields))
        elif coordinate > last.get(lane(fields), (-1, -1)):
            found.append((offset, fields))
            if fields.get("id") not in poisoned:
                last[lane(fields)] = coordinate
    return found, last


# ---- features


@dataclass
class Entity:
    """One entity of one view: all that was folded, in order."""

    folded: list[tuple[int, str, Fields]] = field(default_factory=list)

    def fold(self, visible: int, stream: str, record: Fields) -> None:
        newest = max((one[0] for one in self.folded), default=visible)
        if visible >= newest - LATENESS:
            self.folded.append((visible, stream, record))

    def values(self, stream: str, name: str | None) -> list[tuple[int, float]]:
        of = [(visible, 1.0 if name is None else record[name]) for visible, kind, record in self.folded if kind == stream]
        return [(visible, value) for visible, value in of if value is not None]

    def window(self, asked: int, stream: str, name: str | None, length: int) -> list[float]:
        """What a window of twelve tiles shows: its old end rounded down, its new end exact; a late question leaves out its own tile."""
        hop = length // 12
        values = self.values(stream, name)
        late = any(visible > asked for visible, _ in values)
        first = (asked - length) // hop
        return [x for visible, x in values if visible < asked and first <= visible // hop and not (late and visible // hop >= asked // hop)]

    def last(self, asked: int, stream: str, name: str, within: int) -> float:
        values = self.values(stream, name)
        times = sorted({visible for visible, _ in values})[-2:]
        before = [(visible, x) for visible, x in values if visible < asked and visible in times]
        newest = max((visible for visible, _ in before), default=-math.inf)
        return [x for visible, x in before if visible == newest][-1] if newest >= asked - within else math.nan

    def age(self, asked: int) -> float:
        times = [visible for visible in sorted({one[0] for one in self.folded})[-2:] if visible < asked]
        return (asked - max(times)) / 1000 if times else math.nan


class Memory:
    """The ids of one stream and key that are not forgotten yet."""

    def __init__(self, horizon: int, most: int) -> None:
        self.horizon, self.most = horizon, most
        self.ids: list[tuple[str, int]] = []
        self.newest = -math.inf

    def is_copy(self, name: str, visible: int) -> bool:
        newest = max(self.newest, visible)
        kept = [(one, at) for one, at in self.ids if at >= newest - self.horizon]
        if any(one == name for one, _ in kept):
            return True
        if visible >= newest - self.horizon:
            self.ids = [*kept, (name, visible)][-self.most :]
            self.newest = newest
        return False


class Views:
    """All entities of one pipeline."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        self.entities: dict[tuple[str, str], Entity] = {}
        self.memories: dict[tuple[str, str], Memory] = {}

    def of(self, view: str, key: str) -> Entity:
        return self.entities.setdefault((view, key), Entity())

    def take(self, event: Fields, stream: str) -> tuple[bool, list[float] | None, Fields]:
        """One event: whether it is a copy of an id, the row of a question, and its record."""
        record = body_fields(self.pipeline, stream, event["body"])
        visible, key = event["visible"], event["key"]
        if self.memories.setdefault((stream, key), Memory(*DUPLICATES[self.pipeline])).is_copy(event["id"], visible):
            return True, None, record
        row = None
        if stream == "asks":
            row = self.row(visible, record)
        if self.pipeline == "one":
            self.of("card", key).fold(visible, stream, record)
        else:
            if event["home"]:
                self.of("card", key).fold(visible, stream, record)
            if stream == "facts":
                self.of("shop", record["shop"]).fold(visible, stream, record)
        return False, row, record

    def row(self, asked: int, ask: Fields) -> list[float]:
        card = self.of("card", ask["card"])
        amount = math.nan if ask["amount"] is None else ask["amount"]
        counted = float(len(card.window(asked, "asks", None, 120)))
        spent = sum(card.window(asked, "asks", "amount", 240))
        if self.pipeline == "one":
            return [counted, spent, card.last(asked, "asks", "amount", 90), amount, card.age(asked)]
        shop = self.of("shop", ask["shop"])
        told = float(len(shop.window(asked, "facts", None, 120)))
        return [counted, spent, told, shop.last(asked, "facts", "amount", 200), amount, card.age(asked), shop.age(asked)]


STREAMS = {"one": ("asks",), "shops": ("asks", "facts"), "live": ("asks", "facts")}


def is_unreadable(pipeline: str, event: Fields) -> bool:
    """Whether an event is of no stream of the pipeline, or its body no record of its stream."""
    if event["message"] == "tick":
        return False
    number = event["source"] - UPSTREAM
    if not 0 <= number < len(STREAMS[pipeline]):
        return True
    try:
        body_fields(pipeline, STREAMS[pipeline][number], event["body"])
    except Exception:  # whatever a decoder raises at what is no record
        return True
    return False


@dataclass
class FeatureSays:
    """What the feature service must have written of one partition of the log, in order."""

    features: list[Fields] = field(default_factory=list)
    journal: list[Fields] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)


def feature(
    pipeline: str, partition: int, layout: str, log: Sequence[Numbered], poisoned: Collection[str] = (), whole: Sequence[Fields] = ()
) -> FeatureSays:
    """
    From the first copies on one partition of `<p>-events`. `whole` are the events of all partitions in the one order in which they
    were merged: where it is given, views are made of that instead of the partition's own log.
    """
    said, views, deployment = FeatureSays(), Views(pipeline), 0
    everything = iter(whole)
    for offset, event in log:
        if event["message"] == "tick":
            deployment = event["deployment"]
            said.features.append(_passed(event, FEATURE))
            said.journal.append(_passed(event, FEATURE))
            continue
        number = event["source"] - UPSTREAM
        if is_unreadable(pipeline, event):  # before it can kill anybody
            said.refused.append((offset, "undecodable" if 0 <= number < len(STREAMS[pipeline]) else "contract"))
            continue
        if event["id"] in poisoned:
            said.refused.append((offset, "poison"))
            continue
        stream = STREAMS[pipeline][number]
        if whole:
            copy, row, record = _catch_up(views, everything, event)
        else:
            copy, row, record = views.take(event, stream)
        if copy or not event["home"]:
            continue
        about = _about(event, partition, offset)
        if row is not None:
            slices = [record["shop"]] if pipeline != "one" else []
            packed = struct.pack(f"<{len(row)}f", *row)
            said.features.append(
                {"message": "row", **about, "id": event["id"], "deployment": deployment, "layout": layout, "slices": slices, "row": packed}
            )
        elif stream == "facts" and record["amount"] is not None:
            label = int(record["amount"] > 5)
            said.journal.append({"message": "outcome", **about, "id": record["ask_id"], "label": label, "origin": "shops-facts"})
    return said


def _catch_up(views: Views, everything: Any, event: Fields) -> tuple[bool, list[float] | None, Fields]:
    """Fold the one merged order up to and with `event`."""
    for one in everything:
        this = all(one[name] == event[name] for name in ("source", "partition", "offset"))
        try:
            found = views.take({**one, "home": True}, STREAMS[views.pipeline][one["source"] - UPSTREAM])
        except Exception:
            if this:
                raise
            continue
        if this:
            return found
    raise LookupError("an event that was never merged")


def _about(event: Fields, partition: int, offset: int) -> Fields:
    return {
        "source": EVENTS,
        "partition": partition,
        "offset": offset,
        "index": 0,
        "event_offset": offset,
        "writer": FEATURE,
        "key": event["key"],
        "time": event["time"],
        "visible": event["visible"],
    }


def _passed(tick: Fields, writer: int) -> Fields:
    return {**tick, "writer": writer}


# ---- inference

WHOLES = {"d" * 64: 8.0, "e" * 64: 16.0}
FLAGS = ("degraded", "no_score", "stale_view")
REMEMBERED_S = (0.24, 0.2)  # the longest window of each view of the pipeline `shops`


def inference(log: Sequence[Numbered], deployments: Mapping[int, Fields]) -> tuple[list[Fields], list[Fields]]:
    """Predictions, and answers with ticks, from the first copies on one partition of `<p>-features`."""
    predictions, journal = [], []
    for _, row in log:
        if row["message"] == "tick":
            journal.append(_passed(row, INFERENCE))
            continue
        numbers = struct.unpack("<7f", row["row"])
        amount = numbers[4]
        stale = 4 if any(age > most for age, most in zip(numbers[5:], map(single, REMEMBERED_S), strict=True)) else 0
        deployment = deployments[row["deployment"]]
        arm = _arm(deployment, row["key"])
        score = _score(arm["digest"], amount) if arm else None
        flags = stale | (0 if score is not None else 1 if arm is None else 3)
        alert = score is not None and score >= 0.5
        said = {name: row[name] for name in ("source", "partition", "offset", "index", "event_offset", "id", "key", "time")}
        about = {
            "score": single(deployment["fallback_score"]) if score is None else score,
            "model": arm["model"] if arm else "",
            "writer": INFERENCE,
        }
        role = arm["role"] if arm else "none"
        reasons = ["question"] if alert else []
        worded = [name for bit, name in enumerate(FLAGS) if flags >> bit & 1]
        predictions.append(
            {
                "message": "prediction",
                **said,
                **about,
                "decision": "alert" if alert else "pass",
                "reasons": reasons,
                "arm": role,
                "flags": worded,
            }
        )
        said |= {name: row[name] for name in ("visible", "deployment", "layout", "slices")}
        share = single(arm["share"]) if arm else 1.0
        digest = arm["digest"] if arm else ""
        journal.append(
            {"message": "answer", **said, **about, "arm": role, "share": share, "shadow": False, "digest": digest}
            | {"alert": alert, "flags": flags, "row": row["row"]}
        )
        for number, shadow in enumerate(deployment["shadows"]):
            score = _score(shadow["digest"], amount)
            journal.append(
                {"message": "answer", **said, "writer": INFERENCE, "index": 1 + number, "arm": shadow["role"], "share": 0.0, "shadow": True}
                | {"model": shadow["model"], "digest": shadow["digest"], "score": "nan" if score is None else score}
                | {"alert": score is not None and score >= 0.5, "flags": stale | (2 if score is None else 0), "row": b""}
            )
    return predictions, journal


def _arm(deployment: Fields, key: str) -> Fields | None:
    arms = deployment["arms"]
    if len(arms) < 2:
        return arms[0] if arms else None
    drawn = int.from_bytes(hashlib.blake2b((deployment["salt"] + key).encode(), digest_size=8).digest(), "big") >> 11
    share = drawn / 2**53
    for arm in arms[1:]:
        if share < arm["share"]:
            return arm
        share -= arm["share"]
    return arms[0]


def _score(digest: str, amount: float) -> float | None:
    if digest not in WHOLES:
        return None
    return 0.25 if math.isnan(amount) else single(min(1.0, max(0.0, amount / WHOLES[digest])))


# ---- examples

LABEL_HORIZON, LABEL_REVISIONS = 200, 150


@dataclass(eq=False)
class _Answer:
    fields: Fields
    due: int
    label: int | None = None
    told: int = -1
    revision: int = 0


@dataclass(eq=False)
class _Outcome:
    fields: Fields
    epoch: int  # the feature service's last tick before it
    forget: int
    effective: bool = False


class Labels:
    """Answers and outcomes of one partition, and what becomes of them when the journal's time moves."""

    def __init__(self) -> None:
        self.answers: list[_Answer] = []
        self.outcomes: list[_Outcome] = []
        self.found: list[tuple[Fields, int, int, str]] = []

    def move(self, time: int) -> list[tuple[Fields, int, int, str]]:
        """What is known from `time` on: answer, label, revision, who told it."""
        self.found = []
        for outcome in self.outcomes:
            if not outcome.effective and outcome.epoch < time:
                outcome.effective = True
                for answer in self.answers:
                    if answer.fields["id"] == outcome.fields["id"] and answer.label is not None:
                        self._revise(answer, outcome.fields)
        due = [answer for answer in self.answers if answer.label is None and answer.due < time]
        for answer in sorted(due, key=lambda one: (one.fields["visible"], one.fields["event_offset"], one.fields["index"])):
            self._settle(answer)
        for outcome in self.outcomes:
            if outcome.forget < time:
                waiting = [one.due for one in self.answers if one.label is None and one.fields["id"] == outcome.fields["id"]]
                outcome.forget = max(waiting, default=-1)
        self.outcomes = [outcome for outcome in self.outcomes if outcome.forget >= 0]
        kept = max(LABEL_HORIZON, LABEL_REVISIONS)
        self.answers = [answer for answer in self.answers if answer.label is None or answer.due + kept >= time]
        return self.found

    def _settle(self, answer: _Answer) -> None:
        deadline = answer.fields["visible"] + LABEL_HORIZON
        told = [one.fields for one in self.outcomes if one.effective and one.fields["id"] == answer.fields["id"]]
        in_time = [outcome for outcome in told if outcome["visible"] <= deadline]
        if in_time:
            newest = max(outcome["visible"] for outcome in in_time)
            last = [outcome for outcome in in_time if outcome["visible"] == newest][-1]
            answer.label, answer.told, origin = last["label"], newest, last["origin"]
        else:
            answer.label, origin = 0, "silence"
        self.found.append((answer.fields, answer.label, 0, origin))
        for outcome in told:
            if outcome["visible"] > deadline:
                self._revise(answer, outcome)

    def _revise(self, answer: _Answer, outcome: Fields) -> None:
        if answer.told <= outcome["visible"] <= answer.fields["visible"] + LABEL_HORIZON + LABEL_REVISIONS:
            answer.told = outcome["visible"]
            if answer.label != outcome["label"]:
                answer.label, answer.revision = outcome["label"], answer.revision + 1
                self.found.append((answer.fields, answer.label, answer.revision, outcome["origin"]))


def labeler(partition: int, log: Sequence[Numbered]) -> list[Fields]:
    """
    Examples and ticks, from the first copies on one partition of `<p>-journal`. Answers and outcomes take effect only when both
    writers' ticks have passed them, so it does not matter how the two are mixed.
    """
    said: list[Fields] = []
    labels = Labels()
    last: dict[int, Fields] = {}
    moved = -1
    for offset, message in log:
        if message["message"] == "answer":
            epoch = last[INFERENCE]["time"] if INFERENCE in last else -1
            labels.answers.append(_Answer(message, max(message["visible"] + LABEL_HORIZON, epoch)))
        elif message["message"] == "outcome":
            epoch = last[FEATURE]["time"] if FEATURE in last else -1
            labels.outcomes.append(_Outcome(message, epoch, max(message["visible"] + LABEL_HORIZON, epoch)))
        else:
            last[message["writer"]] = message
            slower = min(last.values(), key=lambda one: int(one["offset"]))
            if len(last) == 2 and slower["offset"] > moved:
                moved = slower["offset"]
                for index, (answer, label, revision, origin) in enumerate(labels.move(slower["time"])):
                    said.append(_example(partition, offset, index, slower["time"], answer, label, revision, origin))
                said.append({**slower, "writer": LABELER})
    return said


def _example(partition: int, offset: int, index: int, known: int, answer: Fields, label: int, revision: int, origin: str) -> Fields:
    copied = ("event_offset", "id", "key", "deployment", "arm", "share", "shadow", "model", "digest", "score", "flags", "slices")
    return {
        "message": "example",
        "source": JOURNAL,
        "partition": partition,
        "offset": offset,
        "index": index,
        "writer": LABELER,
        "asked": answer["visible"],
        "known": known,
        "label": label,
        "origin": origin,
        "revision": revision,
        "answer_index": answer["index"],
        **{name: answer[name] for name in copied},
    }


# ---- the merge


def merged(
    upstream: Mapping[tuple[int, int], Sequence[tuple[int, Fields]]], steps: Sequence[tuple[int, int]], tick_ms: int
) -> list[tuple[Any, ...]]:
    """
    The one log of a replay: ("tick", number, deployment) and ("event", stream, partition, offset), from each source's good records
    (offset and fields, `visible` among them) and the steps of the clock (until when, exclusive, and which deployment).
    """
    placed = []
    for (stream, partition), records in upstream.items():
        newest = 0
        for offset, record in records:
            newest = max(newest, record["visible"])
            placed.append((newest, stream, partition, offset))
    placed.sort()
    end = steps[-1][0]
    log: list[tuple[Any, ...]] = []
    placed = [one for one in placed if one[0] < end]
    tick = min([steps[0][0], *(time for time, *_ in placed[:1])]) // tick_ms - 1  # the first is the last one before the first record
    for time, stream, partition, offset in placed:
        while (tick + 1) * tick_ms <= time:
            tick += 1
            log.append(("tick", tick, _in_force(steps, tick * tick_ms)))
        log.append(("event", stream, partition, offset))
    while (tick + 1) * tick_ms <= end:
        tick += 1
        log.append(("tick", tick, _in_force(steps, tick * tick_ms)))
    return log


def _in_force(steps: Sequence[tuple[int, int]], time: int) -> int:
    return next(deployment for until, deployment in steps if time <= until)
