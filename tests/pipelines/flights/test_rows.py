"""
Ten days of flights through the parser, the merge and the features, wrongs included, against the rows that the rule gives when it is
written again with none of our code.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from driftline.contracts.messages import Writer
from driftline.contracts.registry import MemoryRegistry
from driftline.local.faults import REASONS
from driftline.local.player import Play, Script, drain_days, load_applications
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Batch, Messages, Table
from driftline.stream.parse import Parser
from driftline.stream.records import Polled
from services.feature.core import Feature
from services.intake.core import Intake

ROOT = Path(__file__).resolve().parents[3]
DAYS = 10
BATCH_MAX = 3_000


@dataclass
class Log:
    """One partition of the pipeline's log and the feature core that reads it, its batches cut anywhere."""

    core: Feature
    chance: np.random.Generator
    end: int = 0
    rows: dict[str, bytes] = field(default_factory=dict)

    def append(self, messages: Sequence[Messages]) -> None:
        """What intake sent goes on in its order, and is read."""
        sizes = [len(one) for one in messages]
        ranks = np.argsort(np.argsort(np.concatenate([one.order for one in messages]), kind="stable"), kind="stable") + self.end
        tables = {}
        for one, offsets in zip(messages, np.split(ranks, np.cumsum(sizes)[:-1]), strict=True):
            columns = {**one.columns, "writer": np.full(len(one), Writer.INTAKE)}
            tables[one.message] = Table(one.message, offsets, columns).take(np.argsort(offsets))
        start, self.end = self.end, self.end + sum(sizes)
        self._read(Batch(0, start, self.end, tables))

    def _read(self, batch: Batch) -> None:
        while len(batch):
            head = batch.head(int(self.chance.integers(1, BATCH_MAX)))
            while needed := self.core.needs(head):
                self.core.load(dict.fromkeys(needed))
            for one in self.core.step(head).messages:
                if one.message == "row":
                    self._keep(one)
            batch = batch.tail(head.next_offset)

    def _keep(self, told: Messages) -> None:
        for question, row in zip(told.columns["id"].texts(), told.columns["row"].tolist(), strict=True):  # type: ignore[union-attr]
            assert question not in self.rows
            self.rows[question] = row


class Run:
    """The upstream applications, the intake and the features over `partitions` partitions of the log, without a broker."""

    def __init__(self, pipeline: Pipeline, partitions: int) -> None:
        play = Play(DAYS)
        applications = load_applications(pipeline.folder, play.days, play.start)
        registry = MemoryRegistry()
        avro = [stream for stream in pipeline.streams if not applications.is_json(stream.topic)]
        ids = {stream.topic: registry.register(f"{stream.topic}-value", dict(stream.schema)) for stream in avro}
        self._days = play.days + drain_days(pipeline)
        self._script = Script(pipeline.streams, applications, play, ids)
        self._numbers = {stream.topic: stream.number for stream in pipeline.streams}
        self._parsers = [Parser(stream, registry, b"k" * 32) for stream in pipeline.streams]
        self._origins = [(stream.number, partition) for stream in pipeline.streams for partition in range(play.partitions)]
        self._read = dict.fromkeys(self._origins, 0)
        self._intake = Intake(pipeline, partitions, self._origins, None, {})
        self._logs = [Log(Feature(pipeline, partition), np.random.default_rng(partition)) for partition in range(partitions)]
        self.wrong: Counter[tuple[str, str]] = Counter()

    def rows(self) -> dict[str, bytes]:
        """The row of each question, by its id."""
        for day in range(self._days):
            self._arrive(day)
            for messages in self._merged(self._script.day_end_ms(day)):
                for to, log in enumerate(self._logs):
                    log.append([one for one in messages if one.to == to])
        return {question: row for log in self._logs for question, row in log.rows.items()}

    def _arrive(self, day: int) -> None:
        for lot in self._script.lots(day):
            origin = (self._numbers[lot.topic], lot.partition)
            first = self._read[origin]
            self._read[origin] += len(lot.messages)
            offsets = range(first, self._read[origin])
            polled = Polled.of(offsets, [one.key for one in lot.messages], [one.value for one in lot.messages], [0] * len(offsets))
            arrived, refused = self._parsers[origin[0]].parse(polled, self._script.day_end_ms(day))
            self._intake.add(origin, arrived)
            self.wrong.update((lot.messages[one.offset - first].fault, one.reason) for one in refused)

    def _merged(self, until: int) -> Iterator[Sequence[Messages]]:
        while True:
            emitted = self._intake.emit(until, until, 0, BATCH_MAX)
            if not len(emitted):
                return
            yield emitted.messages


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("flights", ROOT / "pipelines")


@pytest.fixture(scope="module")
def by_the_rule() -> dict[str, bytes]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from independent import read_truth, recompute_rows

    truth = read_truth(DAYS)
    return dict(zip(truth.flights["id"].to_list(), recompute_rows(truth).packed(), strict=True))


@pytest.mark.parametrize("partitions", [1, 4])
def test_every_row_is_what_the_rule_says_byte_for_byte(pipeline, by_the_rule, partitions):
    """
    With one partition and with four, with duplicates and broken messages among the real ones, and batches cut anywhere.
    """
    rows = Run(pipeline, partitions).rows()
    assert len(rows) == len(by_the_rule)
    assert [question for question, row in rows.items() if row != by_the_rule[question]] == []


def test_exactly_what_was_broken_is_refused_for_its_reason(pipeline):
    """
    No good message is refused, no broken one is taken, and each has the reason that the player's report promises.
    """
    run = Run(pipeline, 1)
    run.rows()
    assert dict(run.wrong) == {(kind, reason): 1 for kind, reason in REASONS.items()}
