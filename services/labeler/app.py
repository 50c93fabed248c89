"""
The labeler process: the journal in, examples out; what waits for its outcome is kept in Redis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from driftline.clock import Clock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.metrics import distribution, metric
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Effects, Messages
from driftline.stream.operators import Operators, Wiring, WorkerSettings, ops
from driftline.stream.process import Process

from .core import ORIGINS, ROW_FORMAT, Labeler

Settings = WorkerSettings
TOLD = ("joined", "revised", "early", "orphan", "expired")


class Observer:
    """Tells the metrics how many answers wait, and what became of the others, and how long outcomes took."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._told: dict[tuple[int, str], int] = {}

    def __call__(self, partition: int, labeler: Labeler, effects: Effects) -> None:
        where = {"pipeline": self._pipeline, "partition": str(partition)}
        metric("driftline_labels_waiting").labels(**where).set(labeler.waiting)
        metric("driftline_labels_waiting_max").labels(pipeline=self._pipeline).set(labeler.waiting_max)
        if labeler.coverage is not None:
            metric("driftline_label_coverage_ratio").labels(**where).set(labeler.coverage)
        for outcome in TOLD:
            total = labeler.totals.get(outcome, 0)
            new = total - self._told.get((partition, outcome), 0)
            self._told[(partition, outcome)] = total
            metric("driftline_labels_total").labels(pipeline=self._pipeline, outcome=outcome).inc(max(0, new))
        for messages in effects.messages:
            if messages.message == "example":
                tell_delays(self._pipeline, messages)


def tell_delays(pipeline: str, examples: Messages) -> None:
    """How long each answer's first outcome took. Shadows, revisions, and what silence or a limit decided, are left out."""
    origins: Any = examples.columns["origin"]
    starts, first = np.unique(origins.starts, return_index=True)
    told = starts[[origins[at].decode() not in ORIGINS.values() for at in first.tolist()]]
    counted = np.isin(origins.starts, told)
    for name in ("revision", "answer_index"):
        counted &= np.asarray(examples.columns[name]) == 0
    if counted.any():
        delays_ms = np.asarray(examples.columns["known"])[counted] - np.asarray(examples.columns["asked"])[counted]
        distribution("driftline_label_delay_seconds").labels(pipeline=pipeline).observe(delays_ms / 1000)


def wirings(settings: Settings, pipeline: Pipeline) -> list[Wiring]:
    """The operators of this service."""
    topics = Topics.of(pipeline)
    label = pipeline.label
    labeler = Wiring(
        service="labeler",
        reads=topics.journal,
        writes=[topics.examples],
        writer=Writer.LABELER,
        source=Source.JOURNAL,
        core=lambda partition, _: Labeler(pipeline, partition),
        row_format=ROW_FORMAT,
        observe=Observer(pipeline.name),
        gathers=True,
        reach_ms=2 * label.horizon_ms + label.revisions_ms if label else 0,
    )
    return [labeler]


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline, registry = load_pipeline(settings.pipeline), Registry(settings.registry)
    parts = [Operators(wiring, settings, pipeline, registry, clock) for wiring in wirings(settings, pipeline)]
    return Process("labeler", parts, ops(settings, "labeler"))
