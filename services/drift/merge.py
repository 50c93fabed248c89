"""
Merge what the partitions counted, publish one report a window, and raise retrain commands.

A window is reported once every partition has passed it, with the cohorts that have become complete by its end. Which summary
came first never matters: they add up in any order, and a report waits for exactly the same ones.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from driftline.contracts.messages import Report, Retrain, Source, Trained, as_messages, facts
from driftline.judge.drift import HELD_OF, Reference, held
from driftline.judge.summaries import AnswersSummary, ExamplesSummary, Inputs
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Effects, Messages, Refused, Table

from . import answers, examples
from .check import check_answers, check_examples, check_numbers
from .report import beyond, inputs_of, missing_without_model, models_of, newest_champion, quality_of, rounded, scores_of, standardised
from .triggers import ROWS_MIN, Champion, Retraining, new_champion, trigger_of
from .windows import Memory, State

EVIDENCE_WINDOWS = 7
KINDS: dict[str, type[AnswersSummary | ExamplesSummary]] = {answers.KIND: AnswersSummary, examples.KIND: ExamplesSummary}


class MergeMemory(Memory):
    """What `Merge` remembers besides the windows that some partition has not passed yet."""

    passed: dict[str, dict[str, int]] = msgspec.field(default_factory=lambda: {kind: {} for kind in KINDS})  # kind, partition: end
    began: int | None = None  # start of the first window
    trainable: int = 0  # rows with labels when the last complete cohort closed
    champion: Champion | None = None
    retraining: Retraining = msgspec.field(default_factory=Retraining)
    beyond: dict[str, list[bool]] = msgspec.field(default_factory=dict)  # by subject, its last windows
    recent: list[Inputs] = msgspec.field(default_factory=list)  # the champion's rows of the last windows


class Overdue(Exception):
    """What was to be added is closed."""


class Merge:
    """
    The last core of drift, over summaries. `references` gives what a model was trained on, by digest.

    Gauges for operations: `report`, the body of the last report of this process; `windows_open`.
    """

    def __init__(self, pipeline: Pipeline, partitions: int, references: Callable[[str], Reference]) -> None:
        self._pipeline = pipeline
        self._partitions = partitions
        self._references = references
        self._horizon = pipeline.label.horizon_ms if pipeline.label else None
        self._state = State(MergeMemory, KINDS, pipeline.window_ms)
        self.report: Mapping[str, Any] = {}

    @property
    def windows_open(self) -> int:
        """How many windows wait for a partition."""
        return self._state.windows_open

    def unfit(self, batch: Batch) -> Sequence[Refused]:
        found = (self._taken(offset, table) for offset, table in _one_by_one(batch) if table.message == "summary")
        return [one for one in found if isinstance(one, Refused)]

    def _taken(self, offset: int, table: Table) -> AnswersSummary | ExamplesSummary | Refused:
        """A summary, or why it is none."""
        try:
            return self._read(table)
        except (msgspec.DecodeError, KeyError, RecursionError) as error:
            return Refused(offset, "undecodable", f"a summary: {error}")
        except (ValueError, TypeError) as error:
            return Refused(offset, "contract", f"a summary: {error}")

    def needs(self, batch: Batch) -> Sequence[bytes]:
        return sorted(self._state.missing)

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        self._state.load(rows)

    def touches(self, batch: Batch) -> int:
        return 1 + self._state.windows_open + len(batch["summary"] or ())

    def step(self, batch: Batch) -> Effects:
        messages: list[Messages] = []
        refused: list[Refused] = []
        for offset, table in _one_by_one(batch):
            if table.message == Trained.message:
                ended: Trained = facts(table)[0]
                self._state.memory.retraining.take(ended.id, ended.outcome, ended.time, ended.rows)
                continue
            summary = self._taken(offset, table)
            if isinstance(summary, Refused):
                refused.append(summary)
                continue
            try:
                self._add(table, summary)
            except ValueError as error:  # it cannot be added to what the window has: texts or lengths differ
                refused.append(Refused(offset, "contract", f"a summary: {error}"))
                continue
            except Overdue as error:
                refused.append(Refused(offset, "late", str(error)))
                continue
            messages += self._reports(offset)
        return Effects(self._state.changed(), messages, refused, {"applied": len(batch) - len(refused)})

    def _add(self, table: Table, summary: AnswersSummary | ExamplesSummary) -> None:
        memory = self._state.memory
        kind, start, partition = table["kind"][0].decode(), int(table["start"][0]), str(int(table["partition"][0]))
        if kind == answers.KIND and memory.next is not None and start < memory.next:
            raise Overdue("its window is reported already")
        self._state.add(kind, start, summary)
        if kind == answers.KIND and memory.next is None:
            memory.began = min(start, start if memory.began is None else memory.began)
        memory.passed[kind][partition] = int(table["end"][0])

    def _read(self, table: Table) -> AnswersSummary | ExamplesSummary:
        """Raises ValueError when this is not what a partition counted in a window: it would stay, and stop the reports to come."""
        start, end, partition = (int(table[name][0]) for name in ("start", "end", "partition"))
        summary = msgspec.json.decode(table["body"][0], type=KINDS[table["kind"][0].decode()])
        if partition >= self._partitions or start % self._state.window_ms or end != start + self._state.window_ms:
            raise ValueError("it is of no partition or of no window of this pipeline")
        check_numbers(msgspec.to_builtins(summary))
        if isinstance(summary, ExamplesSummary):
            check_examples(summary)
        else:
            check_answers(summary, self._references)
        return summary

    def _reports(self, offset: int) -> Iterator[Messages]:
        """All reports that are complete now, each with its command, if it raises one."""
        memory, index = self._state.memory, 0
        if memory.next is None and len(memory.passed[answers.KIND]) == self._partitions:
            memory.next = memory.began
        while memory.next is not None and self._complete(memory.next):
            report, command = self._close(memory.next)
            yield as_messages("control", "report", [report], source=Source.SUMMARIES, offsets=[offset], indexes=[index])
            index += 1
            if command:
                yield as_messages("retrain", "retrain", [command], source=Source.SUMMARIES, offsets=[offset], indexes=[index])
                index += 1
            memory.next += self._state.window_ms

    def _complete(self, start: int) -> bool:
        end = start + self._state.window_ms
        return self._all_passed(answers.KIND, end) and self._all_passed(examples.KIND, self._cohorts_until(end))

    def _cohorts_until(self, end: int) -> int:
        """The end of the last cohort that is complete at `end`; before the first one when there is none, or no label at all."""
        began = self._state.memory.began
        if self._horizon is None or began is None:
            return 0
        until = self._state.start(end - self._horizon)
        return until if until > began else 0

    def _all_passed(self, kind: str, end: int) -> bool:
        if end <= 0:
            return True
        passed = self._state.memory.passed[kind]
        return len(passed) == self._partitions and min(passed.values()) >= end

    def _close(self, start: int) -> tuple[Report, Retrain | None]:
        memory, end = self._state.memory, start + self._state.window_ms
        window: AnswersSummary = self._state.take(answers.KIND, start)
        self._crown(window, end)
        until = self._cohorts_until(end)
        cohorts = [(cohort, self._state.take(examples.KIND, cohort)) for cohort in self._state.starts(examples.KIND) if cohort < until]
        memory.trainable = cohorts[-1][1].trainable if cohorts else memory.trainable
        self._judge(cohorts, end)
        body = self._body(window, cohorts)
        command = self._command(end)
        self.report = rounded(body)
        return Report(start, end, (command.id,) if command else (), dict(self.report)), command

    def _crown(self, window: AnswersSummary, end: int) -> None:
        """Follow the champion: the one that the newest deployment served. Another digest starts with fresh charts."""
        memory, served = self._state.memory, newest_champion(window)
        if served is None or (memory.champion and served.deployment < memory.champion.deployment):
            return
        if memory.champion is None or memory.champion.digest != served.digest:
            memory.champion = new_champion(served, end, self._pipeline.retrain, self._state.window_ms)
            memory.beyond, memory.recent = {}, []
        memory.champion.deployment = served.deployment

    def _judge(self, cohorts: Sequence[tuple[int, ExamplesSummary]], end: int) -> None:
        """Put the champion's residual of each cohort that it answered from start to end on its chart."""
        champion = self._state.memory.champion
        if champion is None:
            return
        for start, cohort in cohorts:
            quality = cohort.models.get(f"{answers.CHAMPION}|{champion.digest}")
            if quality is None or start < champion.judged_from or quality.rows < ROWS_MIN:
                continue
            z = standardised(quality, self._references(champion.digest).dispersion)
            if z is not None:
                champion.judge(z, end)

    def _body(self, window: AnswersSummary, cohorts: Sequence[tuple[int, ExamplesSummary]]) -> dict[str, Any]:
        memory, arm = self._state.memory, newest_champion(window)
        reference = self._references(arm.digest) if arm else None
        inputs = inputs_of(self._lately(window, arm.digest), reference) if arm and reference else missing_without_model(window)
        scores = scores_of(arm, reference) if arm and reference else {}
        told, silent = (sum(getattr(cohort, name) for _, cohort in cohorts) for name in ("told", "silent"))
        return {
            "inputs": inputs,
            "scores": scores,
            "models": models_of(window),
            "alert_rate_declared": self._pipeline.decide.alert_rate,
            "answers": sum(one.rows for one in window.inputs.values()),
            "quality": [one for start, cohort in cohorts for one in quality_of(start, cohort, self._dispersion)],
            "chart": memory.champion.chart() if memory.champion else {},
            "alarms": list(self._alarms(inputs, scores)),
            "trainable_rows": memory.trainable,
            "coverage": told / (told + silent) if told + silent else None,
            "excluded": sum(cohort.excluded for _, cohort in cohorts),
        }

    def _lately(self, window: AnswersSummary, digest: str) -> Inputs:
        """
        The rows of the last seven windows: a single day has one weekday, and weather of its own, and is far from any reference.
        """
        memory = self._state.memory
        memory.recent = [*memory.recent, window.inputs.get(digest, Inputs())][-EVIDENCE_WINDOWS:]
        return functools.reduce(operator.add, memory.recent)

    def _dispersion(self, digest: str) -> float:
        return self._references(digest).dispersion

    def _alarms(self, inputs: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What stands out: the quality chart, and as evidence whatever was beyond its limit in most of its last windows."""
        memory = self._state.memory
        if memory.champion and memory.champion.alarmed is not None:
            yield {"subject": "quality", "detector": "cusum", "since": memory.champion.alarmed}
        for subject, over in beyond(inputs, scores).items():
            memory.beyond[subject] = [*memory.beyond.get(subject, []), over][-HELD_OF:]
        for subject in sorted(memory.beyond):
            if held(memory.beyond[subject]):
                yield {"subject": subject, "detector": "psi", "windows": sum(memory.beyond[subject]), "of": HELD_OF}

    def _command(self, end: int) -> Retrain | None:
        memory = self._state.memory
        began = end if memory.began is None else memory.began
        found = trigger_of(self._pipeline.retrain, memory.retraining, memory.champion, began=began, now=end, trainable=memory.trainable)
        if found is None:
            return None
        trigger, evidence = found
        command = Retrain(f"{self._pipeline.name}-{trigger}-{_date(end)}", trigger, end, "drift", rounded(evidence))
        memory.retraining.unanswered = command.id
        return command


def _one_by_one(batch: Batch) -> Iterator[tuple[int, Table]]:
    """The messages of a batch in the log's order, each as a table of one: a few a window, so columns gain nothing."""
    ones = [(int(offset), table, at) for table in batch.tables.values() for at, offset in enumerate(table.offsets)]
    for offset, table, at in sorted(ones, key=lambda one: one[0]):
        mask = table.offsets == table.offsets[at]
        yield offset, table.take(mask)


def _date(time: int) -> str:
    """The day of a time in ms; with hour and minute where it is not midnight."""
    moment = datetime.fromtimestamp(time / 1000, UTC)
    return moment.strftime("%Y-%m-%d" if (moment.hour, moment.minute) == (0, 0) else "%Y-%m-%dT%H:%M")
