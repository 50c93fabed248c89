"""
The drift process: three operators. Two make summaries of the journal and of the examples, partition by partition; the third
merges them into one report a window, and sends the automatic retrain commands.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from driftline.clock import Clock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Invalid
from driftline.judge.drift import Reference
from driftline.judge.summaries import SCORE_BINS
from driftline.logs import log
from driftline.metrics import metric
from driftline.models.bundle import BundleStore, load_public_key
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Effects
from driftline.stream.operators import Operators, Wiring, WorkerSettings, ops
from driftline.stream.process import Process
from driftline.stream.turns import Turns

from .core import ROW_FORMAT, AnswersDrift, ExamplesDrift, Merge

REFERENCES_MAX = 1_000  # a reference is of one model; digests that nobody signed are remembered too


class Settings(WorkerSettings, frozen=True, kw_only=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    model_public_key: str
    model_store: str = "/var/lib/driftline/models"


def wirings(settings: Settings, pipeline: Pipeline) -> list[Wiring]:
    """The operators of this service."""
    topics = Topics.of(pipeline)
    bundles = BundleStore(Path(settings.model_store), trusts=load_public_key(Path(settings.model_public_key)))

    @lru_cache(maxsize=REFERENCES_MAX)
    def reference(digest: str) -> Reference:  # by content, so the cores stay functions of their log
        try:
            manifest = bundles.get(digest).manifest
        except Invalid as error:  # inference refused it too, and flagged what it answered: there is nothing to compare with
            log.error("no reference", digest=digest, because=str(error))
            return Reference({}, {}, [0] * SCORE_BINS)
        return Reference.of(manifest.reference, manifest.dispersion)

    answers = Wiring(
        service="drift-journal",
        reads=topics.journal,
        writes=[topics.summaries],
        writer=Writer.DRIFT_JOURNAL,
        source=Source.JOURNAL,
        core=lambda partition, _: AnswersDrift(pipeline, partition, reference),
        row_format=ROW_FORMAT,
        gathers=True,
        reach_ms=pipeline.window_ms,
    )
    examples = Wiring(
        service="drift-examples",
        reads=topics.examples,
        writes=[topics.summaries],
        writer=Writer.DRIFT_EXAMPLES,
        source=Source.EXAMPLES,
        core=lambda partition, _: ExamplesDrift(pipeline, partition),
        row_format=ROW_FORMAT,
        gathers=True,
    )
    merge = Wiring(
        service="drift",
        reads=topics.summaries,
        writes=[topics.control, topics.retrain],
        writer=Writer.DRIFT,
        source=Source.SUMMARIES,
        core=lambda _, partitions: Merge(pipeline, partitions, reference),
        row_format=ROW_FORMAT,
        gathers=True,
        observe=lambda _partition, _core, effects: show(pipeline.name, effects),
    )
    return [answers, examples, merge]


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline, registry = load_pipeline(settings.pipeline), Registry(settings.registry)
    turns = Turns()  # of the process, whichever operator a partition is of
    parts = [Operators(wiring, settings, pipeline, registry, clock, turns) for wiring in wirings(settings, pipeline)]
    return Process("drift", parts, ops(settings, "drift"))


def show(pipeline: str, effects: Effects) -> None:
    """Tell the metrics what a new report says: drift by feature, quality by arm, the chart, alarms."""
    for messages in effects.messages:
        if messages.message == "report":
            for body in messages.columns["body"]:
                _show(pipeline, msgspec.json.decode(body))


def _show(pipeline: str, body: dict[str, Any]) -> None:
    for feature, told in body["inputs"].items():
        metric("driftline_feature_missing_ratio").labels(pipeline=pipeline, feature=feature).set(told["missing"])
        if told.get("psi") is not None:
            metric("driftline_drift_psi_ratio").labels(pipeline=pipeline, feature=feature).set(told["psi"])
    for cohort in body["quality"]:
        for name in ("auc", "log_loss", "o_over_e"):
            if cohort.get(name) is not None:
                metric("driftline_quality_ratio").labels(pipeline=pipeline, metric=name, arm=cohort["role"], slice="").set(cohort[name])
    if chart := body["chart"]:
        metric("driftline_quality_alarm").labels(pipeline=pipeline).set(chart["alarm"])
        for side in ("high", "low"):
            metric("driftline_quality_chart_ratio").labels(pipeline=pipeline, side=side).set(chart[side] / chart["limit"])
    for alarm in body["alarms"]:
        metric("driftline_alarms_total").labels(pipeline=pipeline, detector=alarm["detector"], subject=alarm["subject"]).inc()
