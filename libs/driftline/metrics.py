"""
The catalogue of metrics: every name, type, label and meaning is declared here and nowhere else.

What is known of every message of a batch (a score, an age) is told by column, with `distribution`; all else with `metric`, once a batch.

Prometheus conventions: one prefix, base units, `_total` on counters; never a key, an id or an event's digest in a label.
`python -m driftline.metrics` writes the page for operators, docs/metrics.md, from this catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it without types

FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

HOP_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)  # record timestamps are in ms

SCORES = tuple(part / 20 for part in range(1, 21))

DAY_S = 86_400.0
DELAYS_S = (60.0, 600.0, 3_600.0, 10_800.0, 21_600.0, 43_200.0, *(days * DAY_S for days in (1, 2, 3, 7, 14, 30, 60, 90)))

BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it counts or measures, in which unit, told apart by which labels."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


class Series(Protocol):
    """One series of a metric; a counter knows `inc`, a gauge `inc` and `set`, a histogram `observe`."""

    def inc(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...


class Instrument(Protocol):
    """A metric of this process. Every label of the catalogue must be given a value."""

    def labels(self, **labels: object) -> Series: ...

    def remove(self, *labels: object) -> None: ...

    def clear(self) -> None: ...


METRICS = (
    Metric(
        "driftline_messages_read_total",
        "counter",
        "messages",
        ("pipeline", "service", "topic"),
        "Messages read: the left side of the conservation sum.",
    ),
    Metric(
        "driftline_messages_total",
        "counter",
        "messages",
        ("pipeline", "service", "topic", "outcome"),
        "What became of them: applied, duplicate, late, dead_lettered, tick or broadcast. The right side; the two sides must be equal.",
    ),
    Metric(
        "driftline_merge_late_total", "counter", "messages", ("pipeline",), "Records that came behind the merge: taken, but out of order."
    ),
    Metric(
        "driftline_dead_letters_total",
        "counter",
        "messages",
        ("pipeline", "topic", "reason"),
        "Records refused and kept raw: undecodable, contract, missing_id, bad_time, future, too_large, schema, poison or late.",
    ),
    Metric(
        "driftline_step_duration_seconds",
        "histogram",
        "seconds",
        ("pipeline", "service", "stage"),
        "Where a batch spends its time: decode, open, step, send or commit.",
        FAST_S,
    ),
    Metric(
        "driftline_batch_messages",
        "histogram",
        "messages",
        ("pipeline", "service"),
        "How many records a batch had: what had arrived, up to the limit. Few while the service keeps up with ease.",
        BATCHES,
    ),
    Metric(
        "driftline_hop_duration_seconds",
        "histogram",
        "seconds",
        ("pipeline", "service", "topic"),
        "From a record's timestamp, which is its sender's clock, to when all that was made of it is acknowledged, what it waited included. "
        "From event to prediction it is intake, feature and inference one after the other.",
        HOP_S,
    ),
    Metric(
        "driftline_lag_seconds",
        "gauge",
        "seconds",
        ("pipeline", "service", "topic", "partition"),
        "Age of the oldest record that is not applied yet.",
    ),
    Metric("driftline_lag_messages", "gauge", "messages", ("pipeline", "service", "topic", "partition"), "Records not applied yet."),
    Metric(
        "driftline_progress_timestamp_seconds",
        "gauge",
        "seconds",
        ("pipeline", "service", "topic", "partition"),
        "When the partition last moved or was seen to be caught up. Old while lag is above 0: alive but not moving.",
    ),
    Metric(
        "driftline_partition_ready",
        "gauge",
        "0 or 1",
        ("pipeline", "service", "topic", "partition"),
        "1 while the partition is worked on; 0 before it was acquired, after a fault, when it was refused. Intake's sources are one.",
    ),
    Metric(
        "driftline_ledger_commits_total",
        "counter",
        "commits",
        ("pipeline", "service", "result"),
        "Commits: applied, fenced (another process had moved the ledger, and this one gave way), refused (the store would not, as when it "
        "is out of memory; nothing was written) or unknown (the store did not say).",
    ),
    Metric(
        "driftline_worker_restarts_total",
        "counter",
        "restarts",
        ("pipeline", "service"),
        "Workers that were killed by a signal and forked again by their keeper, since the keeper started.",
    ),
    Metric(
        "driftline_predictions_total",
        "counter",
        "predictions",
        ("pipeline", "arm", "flag"),
        "Answers: flag none, degraded, no_score or stale_view.",
    ),
    Metric(
        "driftline_prediction_score",
        "histogram",
        "probability",
        ("pipeline", "arm"),
        "What was predicted, on each arm; the fallback where no model could score.",
        SCORES,
    ),
    Metric(
        "driftline_model_info", "gauge", "1", ("pipeline", "arm", "model", "version"), "Which model answers on which arm: 1 while it does."
    ),
    Metric("driftline_rollout_state", "gauge", "0 or 1", ("pipeline", "state"), "A state set: 1 on the state that the rollout is in."),
    Metric(
        "driftline_rollout_moves_total",
        "counter",
        "moves",
        ("pipeline", "move"),
        "Answers of the rollout to control records, nothing included.",
    ),
    Metric("driftline_deployment_version", "gauge", "version", ("pipeline", "service"), "Newest deployment that the service knows."),
    Metric("driftline_labels_total", "counter", "labels", ("pipeline", "outcome"), "Outcomes: joined, revised, early, orphan or expired."),
    Metric("driftline_labels_waiting", "gauge", "answers", ("pipeline", "partition"), "Answers that wait for their outcome."),
    Metric("driftline_labels_waiting_max", "gauge", "answers", ("pipeline",), "The limit of that."),
    Metric(
        "driftline_label_coverage_ratio",
        "gauge",
        "ratio",
        ("pipeline", "partition"),
        "Share of settled answers whose outcome was told, not silent.",
    ),
    Metric(
        "driftline_label_delay_seconds",
        "histogram",
        "seconds",
        ("pipeline",),
        "From a question to its first outcome, by the pipeline's clock; outcomes that silence or a limit stands for are not among them.",
        DELAYS_S,
    ),
    Metric(
        "driftline_quality_ratio",
        "gauge",
        "ratio",
        ("pipeline", "metric", "arm", "slice"),
        "Quality on matured labels: auc, log_loss or o_over_e.",
    ),
    Metric(
        "driftline_quality_chart_ratio",
        "gauge",
        "ratio",
        ("pipeline", "side"),
        "The champion's control chart over its limit: side high (more positives than it says) and low. Above 1 it has signalled.",
    ),
    Metric(
        "driftline_quality_alarm",
        "gauge",
        "0 or 1",
        ("pipeline",),
        "1 from when the champion's control chart has signalled until another model is champion.",
    ),
    Metric("driftline_drift_psi_ratio", "gauge", "ratio", ("pipeline", "feature"), "Population stability of an input against training."),
    Metric("driftline_feature_missing_ratio", "gauge", "ratio", ("pipeline", "feature"), "Share of rows that lack the feature."),
    Metric(
        "driftline_alarms_total",
        "counter",
        "alarms",
        ("pipeline", "detector", "subject"),
        "Alarms open in a report, told with each: subject quality, score or input:FEATURE.",
    ),
    Metric(
        "driftline_retrain_commands_total",
        "counter",
        "commands",
        ("pipeline", "reason", "outcome"),
        "Retrain commands by trigger and how they ended: accepted, refused, failed, duplicate, cooldown or budget.",
    ),
    Metric("driftline_training_runs_total", "counter", "runs", ("pipeline", "verdict"), "Training runs: accepted, refused or failed."),
    Metric(
        "driftline_http_requests_total",
        "counter",
        "requests",
        ("pipeline", "operation", "status"),
        "Requests that the gateway answered, by operation (none where the path is not known) and HTTP status.",
    ),
    Metric(
        "driftline_http_request_duration_seconds",
        "histogram",
        "seconds",
        ("pipeline", "operation"),
        "From a request's headers to the end of its answer.",
        FAST_S,
    ),
    Metric("driftline_gateway_waiting", "gauge", "questions", ("pipeline",), "Questions that came by HTTP and wait for their predictions."),
    Metric("driftline_gateway_waiting_max", "gauge", "questions", ("pipeline",), "The limit of that."),
    Metric("driftline_gateway_predictions_kept", "gauge", "predictions", ("pipeline",), "Predictions that the gateway remembers by id."),
    Metric("driftline_gateway_predictions_kept_max", "gauge", "predictions", ("pipeline",), "The limit of that."),
    Metric("driftline_build_info", "gauge", "1", ("version", "python", "onnxruntime"), "What runs here."),
)

CATALOGUE = {one.name: one for one in METRICS}


class Column:
    """One series of a `Distribution`."""

    def __init__(self, bounds: npt.NDArray[np.float64]) -> None:
        self._bounds = bounds
        self.counts = np.zeros(len(bounds) + 1, np.int64)  # by bucket, those beyond the last bound at the end
        self.sum = 0.0

    def observe(self, values: npt.NDArray[Any]) -> None:
        """Count in n numbers, none of them NaN; what a bucket's bound equals is in that bucket."""
        self.counts += np.bincount(self._bounds.searchsorted(values), minlength=len(self.counts))
        self.sum += float(values.sum())


class Distribution(Collector):
    """A histogram that takes whole columns. For the event loop, which also answers /metrics; not for threads."""

    def __init__(self, declared: Metric) -> None:
        self._declared = declared
        self._bounds = np.array(declared.buckets)
        self._names = [*map(floatToGoString, declared.buckets), "+Inf"]
        self._series: dict[tuple[str, ...], Column] = {}

    def labels(self, **labels: str) -> Column:
        """The series of these labels; every label of the catalogue must be given. Keep it where it is used often."""
        return self._series.setdefault(tuple(labels[name] for name in self._declared.labels), Column(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As Prometheus wants it: buckets that include those below."""
        family = HistogramMetricFamily(self._declared.name, self._declared.meaning, labels=self._declared.labels)
        for labels, column in self._series.items():
            counts = accumulate(map(float, column.counts.tolist()))
            family.add_metric(labels, list(zip(self._names, counts, strict=True)), column.sum)
        yield family


@cache
def distribution(name: str) -> Distribution:
    """The catalogue's histogram `name`, by column. Raises KeyError for a name that is not in the catalogue."""
    found = Distribution(CATALOGUE[name])
    REGISTRY.register(found)
    return found


@cache
def metric(name: str) -> Instrument:
    """
    The instrument of the catalogue's `name`, made when first asked for, so that a process shows what it uses.

    Raises KeyError for a name that is not in the catalogue.
    """
    declared = CATALOGUE[name]
    if declared.kind == "histogram":
        return cast(Instrument, Histogram(name, declared.meaning, declared.labels, buckets=declared.buckets))
    kind = Counter if declared.kind == "counter" else Gauge
    return cast(Instrument, kind(name, declared.meaning, declared.labels))


def forget(**where: str) -> None:
    """Tell no more what gauges told of a partition that is another process's now: they would go on claiming what they last saw."""
    for declared in METRICS:
        if declared.kind == "gauge" and "partition" in declared.labels and set(declared.labels) <= where.keys():
            metric(declared.name).remove(*(where[name] for name in declared.labels))


def page() -> str:
    """The catalogue as a page in Markdown."""
    rows = [f"| `{one.name}` | {one.kind} | {one.unit} | {', '.join(one.labels)} | {one.meaning} |" for one in METRICS]
    return "\n".join(
        [
            "# Metrics",
            "",
            "Every service answers `/metrics` on its own port. This page is made from the catalogue in `libs/driftline/metrics.py`",
            "(`python -m driftline.metrics`); a test holds it true.",
            "",
            "| metric | type | unit | labels | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## The sums that must hold",
            "",
            "For each service and topic, `driftline_messages_read_total` equals the sum of `driftline_messages_total` over its outcomes.",
            "Alert when the two differ for a minute: something was lost or counted twice.",
            "",
        ]
    )


def main(place: Path = Path("docs/metrics.md")) -> None:
    """Write the page."""
    place.write_text(page())


if __name__ == "__main__":
    main()
