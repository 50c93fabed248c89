"""
Some days of one pipeline through all its cores, kept as the records of each topic: the good ones, among which mutants are put.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import numpy as np
from mutations import Record
from stages import Sent, Stage, Subject

from driftline.contracts.avro import frame
from driftline.contracts.messages import (
    Arm,
    ClockRecord,
    Deployment,
    End,
    Operator,
    Release,
    Retrain,
    Source,
    Trained,
    Writer,
    as_messages,
    schema,
)
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.judge.drift import Reference
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.parse import Parser
from driftline.stream.records import Encoder, Polled
from services.drift.core import AnswersDrift, ExamplesDrift, Merge
from services.feature.core import Feature
from services.inference.core import Inference
from services.intake.core import Intake
from services.labeler.core import Labeler

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
START_MS = 1_699_920_000_000  # midnight UTC, 14 November 2023
WRITTEN_MS = START_MS + 30 * DAY_MS  # the timestamp of every record
DIGEST = "1" * 64
AIRPORTS, CARRIERS = ("EWR", "JFK", "LGA"), ("UA", "AA", "B6")


class Steady:
    """A model whose score depends on the row, never on chance."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.manifest = SimpleNamespace(names=pipeline.layout.names)
        self.threshold = np.float32(0.5)
        self.medians = np.zeros(len(pipeline.layout.names), np.float32)

    def score(self, matrix: Any) -> Any:
        with np.errstate(all="ignore"):
            total = np.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float64).sum(axis=1)
            return (0.5 + 0.5 * np.sin(total)).astype(np.float32)


DEPLOYED = Deployment(1, "champion", "idle", "the first", START_MS, (Arm("champion", "flights-1", DIGEST, 1.0),), (), "s", 0.25)


def polled_of(records: Sequence[Record], first: int) -> Polled:
    n = len(records)
    return Polled.of([*range(first, first + n)], [one.key for one in records], [one.value for one in records], [WRITTEN_MS] * n)


@dataclass
class World:
    """The pipeline, its registry, and the good records by topic; upstream topics by name, ours by kind."""

    days: int
    seed: int = 7
    logs: dict[str, list[Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pipeline = replace(load_pipeline("flights", ROOT / "pipelines"), predictions="avro")
        self.registry = MemoryRegistry()
        self.topics = Topics.of(self.pipeline)
        self.encoder = Encoder(self.topics.by_kind(), self.registry, Writer.OPERATOR)
        ids = {self.registry.register(f"driftline.{schema(name)['name']}", schema(name)): name for name in self._messages()}
        self.messages = ids
        self.upstream_ids = {
            stream.number: self.registry.register(f"{stream.topic}-value", dict(stream.schema)) for stream in self.pipeline.streams
        }
        self.older = self._register_versions()

    def _messages(self) -> set[str]:
        return {message for topic in self.topics.by_kind().values() for message in topic.messages}

    def _register_versions(self) -> dict[int, Any]:
        """Another version of each stream's schema, with a field more: what it writes has to be resolved, record by record."""
        found = {}
        for stream in self.pipeline.streams:
            wider = {**stream.schema, "fields": [*stream.schema["fields"], {"name": "gate", "type": ["null", "string"], "default": None}]}
            found[stream.number] = wider
            self.upstream_ids[100 + stream.number] = self.registry.register(f"{stream.topic}-wider", wider)
        return found

    # What applications publish.

    def told(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(visible time, number of the stream, fields) in order of time."""
        chance, found = random.Random(self.seed), []
        for number in range(self.days * 300):
            asked = START_MS + int(number / 300 * DAY_MS)
            origin, carrier, tail = chance.choice(AIRPORTS), chance.choice(CARRIERS), f"N{chance.randrange(40)}"
            late, id = chance.randrange(-20, 90), f"{carrier}{number}"
            flight = {
                "tail": tail,
                "origin": origin,
                "destination": chance.choice(AIRPORTS),
                "carrier": carrier,
                "scheduled_departure": 515,
            }
            departs, arrives = asked + HOUR_MS, asked + 4 * HOUR_MS + late * 60_000
            found.append((asked, 0, {"flight_id": id, "asked_at": asked, "departs_at": departs, **flight, "duration_min": 180}))
            departure = {name: value for name, value in flight.items() if name != "scheduled_departure"}
            found.append((departs, 1, {"flight_id": id, "departed_at": departs, **departure, "departure_delay_min": late}))
            found.append((arrives, 2, {"flight_id": id, "arrived_at": arrives, **flight, "arrival_delay_min": late}))
        for hour in range(self.days * 24):
            for origin in AIRPORTS:
                at = START_MS + (hour + 1) * HOUR_MS
                weather = {"visibility_mi": 10.0, "precipitation_in": None, "wind_mph": chance.random() * 30, "humidity_pct": 50.0}
                found.append(
                    (at, 3, {"report_id": f"{origin}{hour}", "hour": at - HOUR_MS, "published_at": at, "origin": origin, **weather})
                )
        return iter(sorted(found, key=lambda one: one[:2]))

    def json(self, fields: dict[str, Any]) -> bytes:
        return json.dumps(fields).encode()

    def avro(self, number: int, fields: dict[str, Any], *, wider: bool = False) -> bytes:
        stream = self.pipeline.streams[number]
        out = io.BytesIO()
        written = self.older[number] if wider else dict(stream.schema)
        fastavro.schemaless_writer(out, fastavro.parse_schema(written), {**fields, "gate": "A1"} if wider else fields)
        return frame(self.upstream_ids[100 * wider + number]) + out.getvalue()

    def upstream(self) -> None:
        """The upstream topics: JSON, Avro, and Avro of another version."""
        for _, number, fields in self.told():
            key = fields["flight_id" if number < 3 else "report_id"].encode()
            topic = self.pipeline.streams[number].topic
            for form, value in (
                ("JSON", self.json(fields)),
                ("Avro", self.avro(number, fields)),
                ("Avro, another version", self.avro(number, fields, wider=True)),
            ):
                self.logs.setdefault(f"{topic} ({form})", []).append(Record(key, value))

    # What the services make of it.

    async def play(self) -> None:
        """Fill in every topic."""
        self.upstream()
        self.logs["events"] = self._events()
        sent = await self._through(self.subject("feature"), self.logs["events"])
        self.logs["features"] = _records(sent, "features")
        answered = await self._through(self.subject("inference"), self.logs["features"])
        self.logs["journal"] = _interleaved(_records(sent, "journal"), _records(answered, "journal"))
        self.logs["examples"] = _records(await self._through(self.subject("labeler"), self.logs["journal"]), "examples")
        counted = _records(await self._through(self.subject("drift-journal"), self.logs["journal"]), "summaries")
        cohorts = _records(await self._through(self.subject("drift-examples"), self.logs["examples"]), "summaries")
        ended = [Trained(f"r{n}", "operator", "accepted", "why", START_MS, 10, "m", DIGEST) for n in range(20)]
        trained = self._facts("summaries", ended, Source.RETRAIN, Writer.TRAINER)
        self.logs["summaries"] = _interleaved(_interleaved(counted, cohorts), trained)
        merged = await self._through(self.subject("drift"), self.logs["summaries"])
        self.logs["control"] = self._control(_records(merged, "control"))
        self.logs["retrain"] = self._retrain()
        self.logs["deployments"] = self._facts(
            "deployments", [replace(DEPLOYED, version=n) for n in range(1, 60)], Source.CONTROL, Writer.ROLLOUT
        )
        ends = tuple(End(stream.topic, 0, 100) for stream in self.pipeline.streams)
        clocks = [ClockRecord(START_MS + day * DAY_MS, 1, ends, False) for day in range(1, 25)]
        self.logs["clock"] = self._facts("clock", clocks, Source.CLOCK, Writer.PLAYER)

    def _events(self) -> list[Record]:
        streams = self.pipeline.streams
        parsers = [Parser(stream, self.registry, b"") for stream in streams]
        intake = Intake(self.pipeline, 1, [(stream.number, 0) for stream in streams], None, {})
        encoder = Encoder({"events": self.topics.events}, self.registry, Writer.INTAKE)
        offsets = [0] * len(streams)
        by_hour: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for at, number, fields in self.told():
            by_hour.setdefault(at // HOUR_MS, []).append((number, fields))
        records: list[Record] = []
        for hour in sorted(by_hour):
            for number in range(len(streams)):
                values = [Record(None, self.json(fields)) for other, fields in by_hour[hour] if other == number]
                if values:
                    arrived, refused = parsers[number].parse(polled_of(values, offsets[number]), WRITTEN_MS)
                    assert not refused
                    offsets[number] += len(values)
                    intake.add((number, 0), arrived)
            until = (hour + 1) * HOUR_MS
            records += [Record(key, value) for _, key, value in _encoded(encoder, intake.emit(until, until, 1, 10**6).messages)]
        return records

    async def _through(self, subject: Subject, records: Sequence[Record]) -> list[Sent]:
        stage, sent = Stage(subject), list[Sent]()
        for first in range(0, len(records), 1_000):
            found, letters = await stage.feed(polled_of(records[first : first + 1_000], first))
            assert not letters, letters
            sent += found
        await stage.stop()
        return sent

    def _control(self, reports: list[Record]) -> list[Record]:
        told = {"base_rate": 0.24, "gate": {"passed": True, "slices": [1, 2]}}
        release = Release("flights-1", DIGEST, "accepted", "first", True, START_MS, "first", "c", "drift", told)
        releases = [replace(release, model=f"flights-{n}", digest=f"{n}" * 64, first=n == 1) for n in range(1, 9)]
        commands = [Operator(f"c{n}", ("pause", "resume")[n % 2], "", "ops", "because") for n in range(10)]
        made = self._facts("control", releases, Source.RETRAIN, Writer.TRAINER)
        made += self._facts("control", commands, Source.OPERATORS, Writer.OPERATOR)
        return _interleaved(reports, made)

    def _retrain(self) -> list[Record]:
        commands = [Retrain(f"r{n}", "operator", START_MS, "ops", {"because": "x", "deep": {"er": [1]}}) for n in range(20)]
        return self._facts("retrain", commands, Source.OPERATORS, Writer.OPERATOR)

    def _facts(self, topic: str, facts: Sequence[Any], source: int, writer: Writer) -> list[Record]:
        n = range(1, len(facts) + 1)
        encoder = Encoder({topic: self.topics[topic]}, self.registry, writer)
        sent: list[Record] = []
        for message in dict.fromkeys(one.message for one in facts):
            mine = [one for one in facts if one.message == message]
            made = as_messages(topic, message, mine, source=source, offsets=[*n][: len(mine)], indexes=[0] * len(mine), partition=0)
            sent += [Record(None, value) for value in encoder.values(made, 0)]
        return sent

    # The operators, as their apps wire them.

    def subject(self, service: str) -> Subject:
        pipeline, topics = self.pipeline, self.topics
        nothing = Reference({}, {}, [0] * 20)

        def inference() -> Inference:
            core = Inference(pipeline)
            core.add(DEPLOYED, {DIGEST: Steady(pipeline)})  # type: ignore[dict-item]  # as much of a model as is needed
            return core

        data, wired = [topics.summaries], dict[str, tuple[Any, ...]]()
        wired["feature"] = topics.events, [topics.features, topics.journal], Writer.FEATURE, Source.EVENTS, lambda: Feature(pipeline, 0)
        wired["inference"] = topics.features, [topics.predictions, topics.journal], Writer.INFERENCE, Source.FEATURES, inference
        wired["labeler"] = topics.journal, [topics.examples], Writer.LABELER, Source.JOURNAL, lambda: Labeler(pipeline, 0)
        answers, examples = lambda: AnswersDrift(pipeline, 0, lambda _: nothing), lambda: ExamplesDrift(pipeline, 0)
        wired["drift-journal"] = topics.journal, data, Writer.DRIFT_JOURNAL, Source.JOURNAL, answers
        wired["drift-examples"] = topics.examples, data, Writer.DRIFT_EXAMPLES, Source.EXAMPLES, examples
        merge = lambda: Merge(pipeline, 1, lambda _: nothing)  # noqa: E731  # one of a row of its like
        wired["drift"] = topics.summaries, [topics.control, topics.retrain], Writer.DRIFT, Source.SUMMARIES, merge
        reads, writes, writer, source, core = wired[service]
        return Subject(service, pipeline, self.registry, reads, writes, writer, source, core, stateful=service != "inference")


def _encoded(encoder: Encoder, messages: Sequence[Any]) -> list[Sent]:
    found: list[tuple[int, int, Sent]] = []
    for one in messages:
        if len(one):
            keys = [None] * len(one) if one.keys is None else one.keys.tolist()
            rows = zip(one.order.tolist(), keys, encoder.values(one, 0), strict=True)
            found += [(order, len(found), (one.topic, key, value)) for order, key, value in rows]
    return [sent for *_, sent in sorted(found, key=lambda row: row[:2])]


def _records(sent: Sequence[Sent], kind: str) -> list[Record]:
    return [Record(key, value) for topic, key, value in sent if topic == kind]


def _interleaved(one: list[Record], other: list[Record]) -> list[Record]:
    """Both in their own order, spread evenly: as two writers interleave that are about as fast."""
    places = [(at / max(1, len(one)), 0, record) for at, record in enumerate(one)] + [
        (at / max(1, len(other)), 1, record) for at, record in enumerate(other)
    ]
    return [record for *_, record in sorted(places, key=lambda place: place[:2])]
