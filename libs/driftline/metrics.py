"""
The catalogue of metrics: every name, type, label and meaning is declared here and nowhere else.

Prometheus conventions: one prefix, base units, `_total` on counters; never a key, an id or an event's digest in a label.
`python -m driftline.metrics` writes the page for operators, docs/metrics.md, from this catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, cast

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it without types

FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

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
        "driftline_ledger_commits_total",
        "counter",
        "commits",
        ("pipeline", "service", "result"),
        "Commits: applied, fenced (a process believed dead was seen off) or unknown.",
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
        "driftline_quality_ratio",
        "gauge",
        "ratio",
        ("pipeline", "metric", "arm", "slice"),
        "Quality on matured labels: auc, log_loss or o_over_e.",
    ),
    Metric("driftline_drift_psi_ratio", "gauge", "ratio", ("pipeline", "feature"), "Population stability of an input against training."),
    Metric("driftline_feature_missing_ratio", "gauge", "ratio", ("pipeline", "feature"), "Share of rows that lack the feature."),
    Metric("driftline_alarms_total", "counter", "alarms", ("pipeline", "detector", "subject"), "Alarms: subject input, score or quality."),
    Metric(
        "driftline_retrain_commands_total",
        "counter",
        "commands",
        ("pipeline", "reason", "outcome"),
        "Retrain commands by trigger and how they ended.",
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
