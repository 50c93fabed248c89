"""
What a stack answered and learned, read from its journal and its examples with confluent-kafka and fastavro; first copies only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from independent import Schemas, Stack, first_copies, ms


@dataclass(frozen=True)
class Answer:
    """What was served for one question."""

    partition: int
    event_offset: int
    asked: int
    row: bytes
    score: float
    digest: str
    arm: str
    deployment: int
    flags: int


@dataclass
class Served:
    """
    Answers by question: the served one, how many there were of it, and what every model said, by digest. Labels by question, the highest
    revision; `origins` tells how a label was told, `labelled` how many arms and shadows of a question have a first example.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    times_answered: dict[str, int] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    every_label: dict[str, set[int]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    labelled: dict[str, int] = field(default_factory=dict)
    _revisions: dict[str, int] = field(default_factory=dict)

    def add_answer(self, partition: int, fields: dict[str, Any]) -> None:
        """One record of the journal."""
        question = fields["id"]
        if fields["digest"]:
            self.scores.setdefault(question, {})[fields["digest"]] = fields["score"]
        if fields["shadow"]:
            return
        self.times_answered[question] = self.times_answered.get(question, 0) + 1
        names = ("event_offset", "row", "score", "digest", "arm", "deployment", "flags")
        self.answers[question] = Answer(partition=partition, asked=ms(fields["visible"]), **{name: fields[name] for name in names})

    def add_example(self, fields: dict[str, Any]) -> None:
        """One record of the examples. Arms and shadows of one question must agree; `every_label` keeps what they say."""
        question, revision = fields["id"], fields["revision"]
        if revision == 0:
            self.labelled[question] = self.labelled.get(question, 0) + 1
        if revision > self._revisions.get(question, -1):
            self._revisions[question] = revision
            self.labels[question], self.origins[question] = fields["label"], fields["origin"]
            self.every_label[question] = {fields["label"]}
        elif revision == self._revisions[question]:
            self.every_label[question].add(fields["label"])


def read_served(stack: Stack, pipeline: str, schemas: Schemas) -> Served:
    """Read `<pipeline>-journal` and `<pipeline>-examples` to their ends."""
    served = Served()
    for record, _, fields in first_copies(stack, f"{pipeline}-journal", schemas, ["Answer"]):
        served.add_answer(record.partition, fields)
    for _, _, fields in first_copies(stack, f"{pipeline}-examples", schemas, ["Example"]):
        served.add_example(fields)
    return served
