"""
Count what was answered: per window of the pipeline's clock the inputs on the bins of the model's own reference, the scores of
every arm and shadow, and each shadow beside the champion on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from driftline.contracts.messages import Flag, Source, Writer
from driftline.judge.drift import Reference
from driftline.judge.summaries import SCORE_BINS, AnswersSummary, Arm, Inputs, Pairs, fixed, score_bins
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Effects, Ints, Table, Varlen
from driftline.stream.journal import JournalTime, Ticks

from .windows import Closed, Memory, State, grouped, summary_messages

KIND = "answers"
CHAMPION = "champion"

Bools = npt.NDArray[np.bool_]


class LastServed(msgspec.Struct, frozen=True, array_like=True):
    """The newest served answer, kept for shadows of the same row that come in the next batch."""

    event_offset: int
    score: float
    alert: bool
    comparable: bool  # it was the champion's, and a number


class AnswersMemory(Memory):
    """What `AnswersDrift` remembers besides its windows."""

    time: JournalTime = msgspec.field(default_factory=JournalTime)
    last: LastServed = LastServed(-1, 0.0, False, False)


class AnswersDrift:
    """
    The core of drift over one partition of the journal. An answer belongs to the window of its visible time; one that comes
    late, to the window of inference's last tick, so that a window that closed never changes.

    `references` gives what a model was trained on, by digest: content-addressed, so the core stays a function of the log.
    """

    def __init__(self, pipeline: Pipeline, partition: int, references: Callable[[str], Reference]) -> None:
        self._layout = pipeline.layout
        self._references = references
        self._state = State(AnswersMemory, {KIND: AnswersSummary}, pipeline.window_ms)

    @property
    def windows_open(self) -> int:
        """How many windows are open."""
        return self._state.windows_open

    def needs(self, batch: Batch) -> Sequence[bytes]:
        return sorted(self._state.missing)

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        self._state.load(rows)

    def touches(self, batch: Batch) -> int:
        answers = len(batch["answer"] or ())
        return 1 + self._state.windows_open + answers

    def step(self, batch: Batch) -> Effects:
        answers, passage = batch["answer"], self._state.memory.time.take(batch["tick"])
        if answers is not None:
            self._fold(answers, passage.epochs(Writer.INFERENCE, answers.offsets))
        closed = self._close(passage.moves)
        counts = {"applied": len(answers or ()) + len(batch["outcome"] or ()), "tick": len(batch["tick"] or ())}
        return Effects(self._state.changed(), summary_messages(KIND, Source.JOURNAL, closed, self._state.window_ms), counts=counts)

    def _close(self, moves: Ticks) -> list[Closed]:
        """The windows that end by these moves of the journal's time, each at the first that is not before its end."""
        state, closed = self._state, []
        if len(moves) and state.memory.next is None:
            state.memory.next = min([state.start(int(moves.times[0])), *state.starts(KIND)])
        while state.memory.next is not None:
            at = int(np.searchsorted(moves.times, state.memory.next + state.window_ms))
            if at == len(moves):
                break
            closed.append(Closed(int(moves.offsets[at]), state.memory.next, state.take(KIND, state.memory.next)))
            state.memory.next += state.window_ms
        return closed

    def _fold(self, answers: Table, epochs: Ints) -> None:
        served = self._served_before(answers)
        window = np.maximum(answers["visible"], epochs) // self._state.window_ms * self._state.window_ms
        for start in np.unique(window).tolist():
            inside = window == start
            summary = self._summary(answers.take(inside), {name: values[inside] for name, values in served.items()})
            self._state.add(KIND, start, summary)

    def _served_before(self, answers: Table) -> dict[str, npt.NDArray[Any]]:
        """For each answer the score and alert that were served for its row, and whether they were the champion's, and a number."""
        memory = self._state.memory
        served = np.flatnonzero(answers["index"] == 0)
        arms = np.array([arm == CHAMPION.encode() for arm in answers["arm"].take(served).tolist()], np.bool_)
        last = memory.last
        events = np.concatenate([[last.event_offset], answers["event_offset"][served]])
        scores = np.concatenate([[last.score], answers["score"][served].astype(np.float64)])
        alerts = np.concatenate([[last.alert], answers["alert"][served]])
        comparable = np.concatenate([[last.comparable], arms & ~_invalid(answers)[served]])
        place = np.searchsorted(served, np.arange(len(answers)), side="right")
        if len(served):
            memory.last = LastServed(int(events[-1]), float(scores[-1]), bool(alerts[-1]), bool(comparable[-1]))
        same = comparable[place] & (events[place] == answers["event_offset"]) & (answers["index"] > 0)
        return {"score": scores[place], "alert": alerts[place], "comparable": same}

    def _summary(self, answers: Table, served: Mapping[str, npt.NDArray[Any]]) -> AnswersSummary:
        groups = grouped(answers["arm"], answers["digest"])
        arms = {}
        for code, (role, digest) in enumerate(groups.names):
            mine = groups.codes == code
            arms[f"{role}|{digest}"] = _arm(role, digest, answers.take(mine), {key: values[mine] for key, values in served.items()})
        return AnswersSummary(arms, self._inputs(answers))

    def _inputs(self, answers: Table) -> dict[str, Inputs]:
        rows: Varlen = answers["row"]
        # A row of another layout (the definition changed, its model has not) cannot be compared by column.
        served = answers.take((answers["index"] == 0) & (rows.ends - rows.starts == self._layout.row_bytes))
        if not len(served):
            return {}
        groups = grouped(served["digest"])
        matrix = self._layout.matrix(served["row"])
        return {name: self._inputs_of(name, matrix[groups.codes == code]) for code, (name,) in enumerate(groups.names)}

    def _inputs_of(self, digest: str, matrix: npt.NDArray[np.float32]) -> Inputs:
        columns = dict(zip(self._layout.names, matrix.T, strict=True))
        if not digest:  # no model, no reference: what is missing can be said all the same
            missing = {name: int(np.isnan(values).sum()) for name, values in columns.items()}
            return Inputs(len(matrix), {name: [len(matrix) - count, count] for name, count in missing.items()})
        reference = self._references(digest)
        columns = {name: values for name, values in columns.items() if name in reference.edges}
        return Inputs(
            len(matrix),
            {name: reference.bins(name, values) for name, values in columns.items()},
            {name: reference.outside(name, values) for name, values in columns.items()},
        )


def _invalid(answers: Table) -> Bools:
    """Answers that no model gave a number for; what was served then is a fallback."""
    invalid: Bools = np.isnan(answers["score"]) | ((answers["flags"] & (Flag.NO_SCORE | Flag.DEGRADED)) != 0)
    return invalid


def _arm(role: str, digest: str, answers: Table, served: Mapping[str, npt.NDArray[Any]]) -> Arm:
    valid = ~_invalid(answers)
    scores = answers["score"].astype(np.float64)
    return Arm(
        role=role,
        model=answers["model"][0].decode(),
        digest=digest,
        deployment=int(answers["deployment"].max()),
        since=int(answers["visible"].min()),
        rows=len(answers),
        invalid=int(np.count_nonzero(~valid)) if digest else 0,
        alerts=int(np.count_nonzero(answers["alert"] & valid)),
        total=fixed(scores[valid]),
        scores=_histogram(scores[valid]),
        pairs=_pairs(scores, answers["alert"], served, valid & served["comparable"]),
    )


def _pairs(scores: npt.NDArray[np.float64], alerts: Bools, served: Mapping[str, npt.NDArray[Any]], both: Bools) -> Pairs:
    own, champion = scores[both], served["score"][both]
    return Pairs(
        rows=len(own),
        difference=fixed(own) - fixed(champion),
        champion_total=fixed(champion),
        alerts=int(np.count_nonzero(alerts[both])),
        champion_alerts=int(np.count_nonzero(served["alert"][both])),
        scores=_histogram(own),
        champion_scores=_histogram(champion),
    )


def _histogram(scores: npt.NDArray[np.float64]) -> list[int]:
    counts: list[int] = np.bincount(score_bins(scores), minlength=SCORE_BINS).tolist()
    return counts
