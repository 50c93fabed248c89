"""
Count what became of the answers: per cohort (a window of asking) and model, once every label of the cohort is settled.

Only first labels are counted, those of maturity: a revision supersedes them for training, but a cohort that was judged stays
judged, or the control chart would run over the same days twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import Flag, Source
from driftline.errors import Invalid
from driftline.features import texts
from driftline.judge.summaries import (
    OTHER,
    SLICE_VALUES_MAX,
    ExamplesSummary,
    Quality,
    SliceQuality,
    by_group,
    counted,
    fixed,
    label_bins,
    log_losses,
    units,
)
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Effects, Ints, Table

from .windows import NEVER, Closed, Memory, State, grouped, summary_messages

KIND = "examples"
SILENCE = b"silence"


class ExamplesMemory(Memory):
    """What `ExamplesDrift` remembers besides its cohorts."""

    trainable: int = 0  # served answers with a label so far


class ExamplesDrift:
    """
    The core of drift over one partition of examples. A cohort closes with the tick at its end plus the horizon; the labeler
    has settled all of it by then, and what still comes is counted as `late`.
    """

    def __init__(self, pipeline: Pipeline, partition: int) -> None:
        if pipeline.label is None:
            raise Invalid(f"pipeline {pipeline.name!r} declares no label, so there are no examples")
        self._horizon = pipeline.label.horizon_ms
        self._slices = pipeline.slices
        self._state = State(ExamplesMemory, {KIND: ExamplesSummary}, pipeline.window_ms)

    @property
    def windows_open(self) -> int:
        """How many cohorts are open."""
        return self._state.windows_open

    def needs(self, batch: Batch) -> Sequence[bytes]:
        return sorted(self._state.missing)

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        self._state.load(rows)

    def touches(self, batch: Batch) -> int:
        return 1 + self._state.windows_open + len(batch["example"] or ())

    def step(self, batch: Batch) -> Effects:
        examples, ticks = batch["example"], batch["tick"]
        closed: list[Closed] = []
        late, folded, at = 0, -1, 0
        times = np.zeros(0, np.int64) if ticks is None else ticks["time"]
        while ticks is not None and (at := self._next_to_close(times, at)) < len(times):
            offset = int(ticks.offsets[at])
            late += self._fold(examples, folded, offset)
            folded = offset
            closed += self._move_to(int(times[at]), offset)
        late += self._fold(examples, folded, batch.next_offset)
        counts = {"applied": len(examples or ()) - late, "late": late, "tick": len(times)}
        return Effects(self._state.changed(), summary_messages(KIND, Source.EXAMPLES, closed, self._state.window_ms), counts=counts)

    def _next_to_close(self, times: Ints, after: int) -> int:
        """The place, from `after` on, of the next tick that ends a cohort, or begins time. What changes nothing cuts nothing."""
        following = self._state.memory.next
        if following is None:
            return after
        ends = np.flatnonzero(times[after:] >= following + self._state.window_ms + self._horizon)
        return after + int(ends[0]) if len(ends) else len(times)

    def _move_to(self, time: int, offset: int) -> list[Closed]:
        state, memory = self._state, self._state.memory
        if memory.next is None:
            memory.next = min([state.start(time), *state.starts(KIND)])
        closed = []
        while memory.next + state.window_ms + self._horizon <= time:
            summary: ExamplesSummary = state.take(KIND, memory.next)
            summary.trainable = memory.trainable
            closed.append(Closed(offset, memory.next, summary))
            memory.next += state.window_ms
        return closed

    def _fold(self, examples: Table | None, after: int, end: int) -> int:
        """Count the examples between two offsets. How many came too late for their cohort."""
        if examples is None:
            return 0
        state, memory = self._state, self._state.memory
        examples = examples.take((examples.offsets > after) & (examples.offsets < end))
        first = examples["revision"] == 0
        memory.trainable += int(np.count_nonzero(first & (examples["answer_index"] == 0) & (examples["label"] >= 0)))
        cohort = examples["asked"] // state.window_ms * state.window_ms
        late = first & (cohort < (NEVER if memory.next is None else memory.next))
        for start in np.unique(cohort[first & ~late]).tolist():
            state.add(KIND, start, self._summary(state.get(KIND, start), examples.take(first & ~late & (cohort == start))))
        return int(np.count_nonzero(late))

    def _summary(self, held: ExamplesSummary, examples: Table) -> ExamplesSummary:
        served = examples.take(examples["answer_index"] == 0)
        labelled = served["label"] >= 0
        silent = np.array([origin == SILENCE for origin in served["origin"].tolist()], np.bool_)
        summary = ExamplesSummary(
            told=int(np.count_nonzero(labelled & ~silent)),
            silent=int(np.count_nonzero(labelled & silent)),
            excluded=int(np.count_nonzero(~labelled)),
        )
        examples = examples.take(examples["label"] >= 0)
        groups = grouped(examples["arm"], examples["digest"])
        for code, (role, digest) in enumerate(groups.names):
            key = f"{role}|{digest}"
            known = held.models[key].slices if key in held.models else {}
            summary.models[key] = self._quality(role, digest, examples.take(groups.codes == code), known)
        return summary

    def _quality(self, role: str, digest: str, examples: Table, known: Mapping[str, Mapping[str, Any]]) -> Quality:
        model = examples["model"][0].decode()
        invalid = np.isnan(examples["score"]) | ((examples["flags"] & Flag.NO_SCORE) != 0)
        examples = examples.take(~invalid)
        scores, labels = examples["score"].astype(np.float64), examples["label"]
        losses, places = log_losses(scores, labels), label_bins(scores)
        return Quality(
            role=role,
            model=model,
            digest=digest,
            rows=len(examples),
            invalid=int(np.count_nonzero(invalid)),
            positives=int(labels.sum()),
            expected=fixed(scores),
            variance=fixed(scores * (1.0 - scores)),
            log_loss=fixed(losses),
            brier=fixed((scores - labels) ** 2),
            positive_bins=counted(places[labels == 1]),
            negative_bins=counted(places[labels == 0]),
            slices=self._by_slice(examples, scores, losses, known),
        )

    def _by_slice(
        self, examples: Table, scores: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], known: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, dict[str, SliceQuality]]:
        codes, firsts = texts.groups(examples["slices"])
        distinct = examples["slices"].take(firsts).tolist()
        sums = [by_group(codes, values) for values in (np.ones_like(codes), examples["label"], units(scores), units(losses))]
        counts = [SliceQuality(*numbers) for numbers in zip(*sums, strict=True)]
        found: dict[str, dict[str, SliceQuality]] = {}
        for value, counted_here in zip(distinct, counts, strict=True):
            values_here = unpack_strings(value)
            if len(values_here) != len(self._slices):
                continue  # of another definition of the pipeline: it counts in the whole alone
            for field, text in zip(self._slices, values_here, strict=True):
                values = found.setdefault(field, {})
                name = text if _has_room(text, values, known.get(field, {})) else OTHER
                values[name] = values[name] + counted_here if name in values else counted_here
        return found


def _has_room(value: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether a slice's value may have a place of its own: it has one, or there are not too many yet."""
    return value in found or value in known or len(found.keys() | known.keys()) < SLICE_VALUES_MAX
