"""
Is what lies on the topics what the upstream topics and the clock make of it? Proves `<p>-events` to be the merge, by first copies;
then recomputes from it every row, answer, prediction, label and dead letter, and looks that each is there once. For the flights
pipeline, after a replay.

First copies: of one writer, source and partition, whatever is above the last coordinate. Everything else is a repeat, and is counted.
"""

from __future__ import annotations

import gc
import io
import json
import struct
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import onnxruntime
from fold_rule import ARRIVALS, DUPLICATE, LATE_MIN, Fold
from independent import Stack, finish, parser, read_topic
from merge_rule import STREAMS, TICK_MS, UPSTREAM, ClockRecord, Expected, Refusal, Taken, Tick, expected, murmur2, plain

HORIZON_MS = 36 * 3_600_000
DAY_MS = 86_400_000
SOURCE_EVENTS, SOURCE_CONTROL = 1, 6
FEATURE, INFERENCE = 2, 3
FEATURES = 22  # of a row's numbers, before the ages
SHOWN = 2
SCORE_TOLERANCE = 1e-6
Copy = tuple[int, str, dict[str, Any]]  # offset on its topic, kind of message, fields


class PlainSchemas:
    """Schemas by id, asked from the registry; times stay numbers. None for an id that it does not know."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._known: dict[int, Any] = {}

    def get(self, schema_id: int) -> Any:
        if schema_id not in self._known:
            try:
                with urllib.request.urlopen(f"{self._registry}/schemas/ids/{schema_id}", timeout=10) as answer:
                    self._known[schema_id] = fastavro.parse_schema(plain(json.loads(json.load(answer)["schema"])))
            except urllib.error.HTTPError:
                self._known[schema_id] = None
        return self._known[schema_id]


@dataclass
class Found:
    """What was found: figures, and what is wrong, in words."""

    figures: dict[str, Any] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def expect(self, what: str, wanted: Sequence[Any], came: Sequence[Any]) -> bool:
        """Both must be the same, in order; otherwise says what is lost, what is extra, and where they part."""
        if wanted == came:
            return True
        lost, extra = Counter(wanted) - Counter(came), Counter(came) - Counter(wanted)
        apart = next((at for at, pair in enumerate(zip(wanted, came, strict=False)) if pair[0] != pair[1]), min(len(wanted), len(came)))
        self.figures["lost"] = self.figures.get("lost", 0) + sum(lost.values())
        self.violations.append(
            f"{what}: {sum(lost.values())} lost {list(lost)[:SHOWN]}, {sum(extra.values())} extra {list(extra)[:SHOWN]}; "
            f"of {len(wanted)} the order differs from number {apart} on: {wanted[apart : apart + 1]}, came {came[apart : apart + 1]}"
        )
        return False

    def none(self, what: str, wrong: Sequence[Any]) -> None:
        """Nothing may be wrong."""
        if wrong:
            self.violations.append(f"{what}: {len(wrong)}, first {list(wrong[:SHOWN])}")


class Logs:
    """Topics of the pipeline, first copies by partition; counts the repeats."""

    def __init__(self, stack: Stack, pipeline: str) -> None:
        self.stack = stack
        self.schemas = PlainSchemas(stack.registry)
        self.repeats: dict[str, int] = {}
        self._pipeline = pipeline

    def first_copies(self, kind: str) -> dict[int, list[Copy]]:
        """Everything on a topic that is no repeat, in order, by partition."""
        found: dict[int, list[Copy]] = {}
        seen: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        repeats = 0
        for record in read_topic(self.stack, f"{self._pipeline}-{kind}"):
            name, fields = self._decoded(record.value)
            lane = (record.partition, fields["writer"], fields["source"], fields["partition"])
            coordinate = (fields["offset"], fields["index"])
            mine = found.setdefault(record.partition, [])
            if coordinate <= seen.get(lane, (-1, -1)):
                repeats += 1
                continue
            seen[lane] = coordinate
            mine.append((record.offset, name, fields))
        self.repeats[kind] = repeats
        return found

    def predictions(self) -> dict[int, list[dict[str, Any]]]:
        """In JSON, as an application reads them: it keeps the highest event offset of each partition, and drops what is not above it."""
        found: dict[int, list[dict[str, Any]]] = {}
        repeats = 0
        for record in read_topic(self.stack, f"{self._pipeline}-predictions"):
            told = json.loads(record.value)
            mine = found.setdefault(record.partition, [])
            if mine and told["event_offset"] <= mine[-1]["event_offset"]:
                repeats += 1
            else:
                mine.append(told)
        self.repeats["predictions"] = repeats
        return found

    def _decoded(self, value: bytes) -> tuple[str, dict[str, Any]]:
        magic, schema_id = struct.unpack(">bI", value[:5])
        schema = self.schemas.get(schema_id)
        if magic != 0 or schema is None:
            raise SystemExit("a message is not in Confluent's framing")
        return schema["name"].rsplit(".", 1)[-1], fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)  # type: ignore[return-value]


@dataclass(frozen=True)
class Question:
    """A flight that must be answered: its event, and the row that the rule makes for it."""

    event_offset: int
    id: str
    asked: int
    row: bytes
    deployment: int
    day: int  # that it is counted in: of its time, or of the last tick before it if that is later


@dataclass
class Recomputed:
    """What follows from the log, by partition: questions, outcomes (event offset, id, label, visible), ticks."""

    questions: dict[int, list[Question]]
    outcomes: dict[int, list[tuple[int, str, int, int]]]
    ticks: dict[int, list[int]]
    became: Counter[str]


def check_events(wanted: Expected, events: Mapping[int, Sequence[Copy]], found: Found) -> None:
    """Every partition has the ticks and all records (each is broadcast), in the order of the merge, each as upstream told it."""
    partitions = len(events)
    order = [(0, 0, one.number) if isinstance(one, Tick) else (UPSTREAM + one.stream, one.partition, one.offset) for one in wanted.log]
    by_place = dict(zip(order, wanted.log, strict=True))
    homes = {one: murmur2(one.key.encode()) % partitions for one in by_place.values() if isinstance(one, Taken)} if partitions else {}
    for partition, copies in sorted(events.items()):
        came = [(fields["source"], fields["partition"], fields["offset"]) for _, _, fields in copies]
        found.expect(f"events[{partition}] is not the merge", order, came)
        wrong = []
        for place, (offset, _, fields) in zip(came, copies, strict=True):
            one = by_place.get(place)
            if one is not None and not _same(one, fields, homes.get(one) == partition):  # type: ignore[arg-type]
                wrong.append((offset, place))
        found.none(f"events[{partition}] differ from upstream", wrong)
    found.figures["events"] = sum(isinstance(one, Taken) for one in wanted.log)
    found.figures["ticks"] = sum(isinstance(one, Tick) for one in wanted.log)


def _same(one: Taken | Tick, fields: Mapping[str, Any], home: bool) -> bool:
    if isinstance(one, Tick):
        return bool(fields["time"] == one.number * TICK_MS and fields["deployment"] == one.deployment)
    names = ("id", "key", "time", "visible", "body")
    return all(fields[name] == getattr(one, name) for name in names) and fields["home"] == home


def recompute(wanted: Expected, events: Mapping[int, Sequence[Copy]]) -> Recomputed:
    """Fold the log once: as everything is broadcast, all partitions see the same order."""
    partitions = len(events)
    offsets = [
        {(fields["source"], fields["partition"], fields["offset"]): offset for offset, _, fields in events[partition]}
        for partition in range(partitions)
    ]
    told = Recomputed({n: [] for n in events}, {n: [] for n in events}, {n: [] for n in events}, Counter())
    fold, deployment, now = Fold(), 0, 0
    for one in wanted.log:
        if isinstance(one, Tick):
            deployment, now = one.deployment, one.number * TICK_MS
            for ticks in told.ticks.values():
                ticks.append(one.number)
            continue
        became, row = fold.take(one.stream, one.key, one.id, one.visible, one.fields)
        told.became[became] += 1
        home = murmur2(one.key.encode()) % partitions
        place = offsets[home].get((UPSTREAM + one.stream, one.partition, one.offset), -1)
        if row is not None:
            day = max(one.visible, now) // DAY_MS * DAY_MS
            told.questions[home].append(Question(place, one.id, one.visible, row, deployment, day))
        if one.stream == ARRIVALS and became != DUPLICATE:
            label = int(one.fields["arrival_delay_min"] >= LATE_MIN)
            told.outcomes[home].append((place, one.id, label, one.visible))
    return told


def of_kind(copies: Sequence[Copy], *kinds: str) -> list[dict[str, Any]]:
    """The fields of the messages of some kinds."""
    return [fields for _, name, fields in copies if name in kinds]


def check_features(told: Recomputed, features: Mapping[int, Sequence[Copy]], found: Found) -> None:
    """Each question has its row, once, in order, to the byte; ticks are passed on."""
    for partition, questions in told.questions.items():
        copies = features.get(partition, [])
        rows = of_kind(copies, "Row")
        wanted = [(one.event_offset, one.id, one.deployment) for one in questions]
        if found.expect(f"features[{partition}]", wanted, [(one["event_offset"], one["id"], one["deployment"]) for one in rows]):
            wrong = [right.id for right, row in zip(questions, rows, strict=True) if row["row"] != right.row]
            found.none(f"rows of features[{partition}] differ from the rule", wrong)
        found.expect(f"ticks of features[{partition}]", told.ticks[partition], [one["offset"] for one in of_kind(copies, "Tick")])
    found.figures["rows"] = sum(map(len, told.questions.values()))


def check_journal(
    told: Recomputed, journal: Mapping[int, Sequence[Copy]], deployments: Mapping[int, Mapping[str, Any]], found: Found
) -> dict[tuple[int, int, int], dict[str, Any]]:
    """Each question is answered once by an arm of its deployment and by every shadow; outcomes are told once. Gives the answers."""
    answers: dict[tuple[int, int, int], dict[str, Any]] = {}
    for partition, questions in told.questions.items():
        copies = journal.get(partition, [])
        came = of_kind(copies, "Answer")
        shadows = {version: len(one["shadows"]) for version, one in deployments.items()}
        wanted = [(one.event_offset, number, one.id) for one in questions for number in range(1 + shadows.get(one.deployment, 0))]
        found.expect(f"answers of journal[{partition}]", wanted, [(one["event_offset"], one["index"], one["id"]) for one in came])
        rows = {one.event_offset: one for one in questions}
        served = [one for one in came if one["index"] == 0]
        wrong = [one["id"] for one in served if (right := rows.get(one["event_offset"])) and one["row"] != right.row]
        found.none(f"rows of journal[{partition}] differ from the rule", wrong)
        wrong = [one["id"] for one in came if (right := rows.get(one["event_offset"])) and one["deployment"] != right.deployment]
        found.none(f"answers of journal[{partition}] by another deployment than the log names", wrong)
        outcomes = [(one["event_offset"], one["id"], one["label"], one["visible"]) for one in of_kind(copies, "Outcome")]
        found.expect(f"outcomes of journal[{partition}]", told.outcomes[partition], outcomes)
        for writer in (FEATURE, INFERENCE):
            ticks = [one["offset"] for one in of_kind(copies, "Tick") if one["writer"] == writer]
            found.expect(f"ticks of writer {writer} in journal[{partition}]", told.ticks[partition], ticks)
        answers |= {(partition, one["event_offset"], one["index"]): one for one in came}
    found.figures["answers"] = len(answers)
    return answers


def check_scores(answers: Mapping[tuple[int, int, int], Mapping[str, Any]], models: Path, found: Found) -> None:
    """Every score again, from the row that was served and the model's file."""
    by_digest: dict[str, list[tuple[float, bytes]]] = {}
    for (partition, event_offset, _), answer in answers.items():
        served = answers.get((partition, event_offset, 0))
        if answer["digest"] and served is not None:
            by_digest.setdefault(answer["digest"], []).append((answer["score"], served["row"]))
    wrong = []
    for digest, some in by_digest.items():
        graph = models / digest / "model.onnx"
        if not graph.exists():
            wrong.append(f"no model {digest[:12]}")
            continue
        session = onnxruntime.InferenceSession(str(graph))
        matrix = np.stack([np.frombuffer(row, "<f4")[:FEATURES] for _, row in some])
        scores = session.run(None, {session.get_inputs()[0].name: matrix})[0].reshape(-1)
        away = np.abs(scores - np.array([score for score, _ in some])) > SCORE_TOLERANCE
        wrong += [f"{int(away.sum())} scores of model {digest[:12]}"] * bool(away.any())
    found.none("scores differ from the model's", wrong)
    found.figures["scores"] = sum(map(len, by_digest.values()))


def check_predictions(
    told: Recomputed,
    predictions: Mapping[int, Sequence[Mapping[str, Any]]],
    answers: Mapping[tuple[int, int, int], Mapping[str, Any]],
    found: Found,
) -> None:
    """A reader that keeps one number a partition sees each question once, in order, with the score of its answer."""
    for partition, questions in told.questions.items():
        came = predictions.get(partition, [])
        wanted = [(one.event_offset, one.id) for one in questions]
        found.expect(f"predictions[{partition}]", wanted, [(one["event_offset"], one["id"]) for one in came])
        served = [(one, answers.get((partition, one["event_offset"], 0))) for one in came]
        wrong = [one["id"] for one, answer in served if answer is not None and abs(one["score"] - answer["score"]) > SCORE_TOLERANCE]
        found.none(f"predictions[{partition}] with another score than the answer", wrong)
    found.figures["asked"] = sum(map(len, told.questions.values()))
    found.figures["predicted_once"] = sum(map(len, predictions.values()))


def check_examples(
    told: Recomputed, examples: Mapping[int, Sequence[Copy]], answers: Mapping[tuple[int, int, int], Mapping[str, Any]], found: Found
) -> None:
    """Each answer has one first example; the last revision of each is the label that the outcomes, or silence, give."""
    last: dict[tuple[int, int, int], dict[str, Any]] = {}
    firsts: Counter[tuple[int, int, int]] = Counter()
    for partition, copies in examples.items():
        for one in of_kind(copies, "Example"):
            place = (partition, one["event_offset"], one["answer_index"])
            firsts[place] += one["revision"] == 0
            if place not in last or one["revision"] > last[place]["revision"]:
                last[place] = one
    found.expect("first examples", sorted(answers), sorted(firsts.elements()))
    outcome = {id: (label, visible) for some in told.outcomes.values() for _, id, label, visible in some}
    asked = {one.id: one.asked for some in told.questions.values() for one in some}
    wrong = []
    for place, one in last.items():
        label, visible = outcome.get(one["id"], (1, 2**62))
        right = label if visible <= asked.get(one["id"], 0) + HORIZON_MS else 1
        answer = answers.get(place, one)
        if one["label"] != right or one["score"] != answer["score"] or one["digest"] != answer["digest"]:
            wrong.append((one["id"], one["label"], right))
    found.none("examples that are not the truth", wrong)
    found.figures["examples"] = len(last)
    found.figures["revised"] = sum(one["revision"] > 0 for one in last.values())


def check_letters(refused: Sequence[Refusal], letters: Mapping[int, Sequence[Copy]], found: Found) -> None:
    """What could not be taken is among the dead letters, raw, with the reason; nothing else is."""
    came = [
        (one["topic"], one["partition"], one["offset"], one["reason"], one["value"])
        for copies in letters.values()
        for one in of_kind(copies, "DeadLetter")
    ]
    wanted = [(one.topic, one.partition, one.offset, one.reason, one.value) for one in refused]
    found.expect("dead letters", sorted(wanted), sorted(came))
    found.figures["dead_letters"] = dict(Counter(reason for _, _, _, reason, _ in came))


def check_control(logs: Logs, control: Sequence[Copy], deployments: Sequence[Copy], found: Found) -> None:
    """One report a day without a gap, one outcome a command, one deployment for each record of control; no version twice."""
    retrains = [one["id"] for one in of_kind(_one(logs.first_copies("retrain")), "Retrain")]
    summaries = _one(logs.first_copies("summaries"))
    trained = [one["id"] for one in of_kind(summaries, "Trained")]
    found.expect("outcomes of retrain commands", retrains, trained)
    ends = [one["end"] for one in of_kind(control, "Report")]
    found.expect("reports, one a day", [ends[0] + DAY_MS * n for n in range(len(ends))] if ends else [], ends)
    heard = [one["offset"] for one in of_kind(deployments, "Deployment") if one["source"] == SOURCE_CONTROL]
    last = heard[-1] + 1 if heard else 0
    found.expect("answers of rollout to control", list(range(last)), heard)
    versions = [one["version"] for one in of_kind(deployments, "Deployment") if one["move"] != "nothing"]
    found.expect("versions of the rollout", sorted(set(versions)), versions)
    found.figures |= {"reports": len(ends), "commands": len(retrains), "moves": len(versions)}


def check_summaries(told: Recomputed, logs: Logs, answers: Mapping[tuple[int, int, int], Mapping[str, Any]], found: Found) -> None:
    """What drift counted by day and partition is what was answered."""
    counted: Counter[tuple[int, int]] = Counter()
    for one in of_kind(_one(logs.first_copies("summaries")), "Summary"):
        if one["kind"] == "answers":
            counted[(one["partition"], one["start"])] += sum(arm["rows"] for arm in json.loads(one["body"]).get("arms", {}).values())
    days = {(partition, one.event_offset): one.day for partition, some in told.questions.items() for one in some}
    right = Counter((partition, days.get((partition, event_offset), -1)) for partition, event_offset, _ in answers)
    found.expect("answers counted by drift", sorted(right.items()), sorted((place, n) for place, n in counted.items() if n))


def _one(by_partition: Mapping[int, Sequence[Copy]]) -> Sequence[Copy]:
    return [copy for copies in by_partition.values() for copy in copies]


def read_clock(logs: Logs) -> list[ClockRecord]:
    """What the player told of the time."""
    return [
        ClockRecord(one["time"], one["deployment"], {(end["topic"], end["partition"]): end["offset"] for end in one["ends"]})
        for one in of_kind(_one(logs.first_copies("clock")), "Clock")
    ]


def read_upstream(stack: Stack) -> dict[tuple[str, int], list[tuple[int, bytes]]]:
    """Every upstream record."""
    found: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
    for stream in STREAMS:
        for record in read_topic(stack, stream.topic):
            found.setdefault((stream.topic, record.partition), []).append((record.offset, record.value))
    return found


def check(stack: Stack, pipeline: str, models: Path, say: Callable[[str], None]) -> Found:
    """Everything."""
    found, logs = Found(), Logs(stack, pipeline)
    wanted = expected(read_upstream(stack), read_clock(logs), logs.schemas)
    say("upstream merged")
    events = logs.first_copies("events")
    check_events(wanted, events, found)
    say("events compared")
    told = recompute(wanted, events)
    del events
    say("rows recomputed")
    check_features(told, logs.first_copies("features"), found)
    deployments = _one(logs.first_copies("deployments"))
    by_version = {one["version"]: one for one in of_kind(deployments, "Deployment")}
    answers = check_journal(told, logs.first_copies("journal"), by_version, found)
    say("answers compared")
    check_scores(answers, models, found)
    check_predictions(told, logs.predictions(), answers, found)
    check_examples(told, logs.first_copies("examples"), answers, found)
    say("labels compared")
    check_letters(wanted.refused, logs.first_copies("dead-letters"), found)
    check_control(logs, _one(logs.first_copies("control")), deployments, found)
    check_summaries(told, logs, answers, found)
    found.figures |= {"became": dict(told.became), "repeated": logs.repeats, "lost": found.figures.get("lost", 0)}
    return found


def timed() -> Iterator[str]:
    """Seconds since the beginning, for whoever waits."""
    began = time.monotonic()
    while True:
        yield f"{time.monotonic() - began:.0f} s"


def main(arguments: list[str]) -> int:
    """Exit status 0 when nothing is lost, double or wrong."""
    chosen = parser(__doc__).parse_args(arguments)
    gc.disable()  # millions of small things that live to the end: looking for garbage among them takes as long as the rest
    clock = timed()
    models = chosen.stack.parent / "models"
    found = check(Stack.read(chosen.stack), chosen.pipeline, models, lambda what: print(f"{what} after {next(clock)}", file=sys.stderr))
    return finish(found.figures, found.violations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
