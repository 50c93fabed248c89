"""
The Grafana dashboards, one for operations and one for model quality, made from the panels that are listed here.

    python monitoring/dashboards.py    # writes monitoring/grafana/*.json; a test holds them true

Each panel asks one question, and its description says what to do about the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana"
SCHEMA_VERSION = 39
COLUMNS, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: expressions with their legends, beyond which value it is red, and the words for whoever looks at it."""

    title: str
    description: str
    unit: str  # as Grafana names units
    asked: Sequence[tuple[str, str]]
    red_from: float | None = None
    width: int = 12
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Panels under headings, in order."""

    uid: str
    title: str
    description: str
    rows: Sequence[tuple[str, Sequence[Panel]]]


def quantile(share: float, metric: str, by: str, window: str = "$__rate_interval") -> str:
    """A quantile of a histogram."""
    return f'histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{{pipeline=~"$pipeline"}}[{window}])))'


def rate(metric: str, by: str, matching: str = "") -> str:
    """A counter a second, summed over everything but `by`."""
    return f'sum by ({by}) (rate({metric}{{pipeline=~"$pipeline"{matching}}}[$__rate_interval]))'


def mean(metric: str, by: str, matching: str = "") -> str:
    """The mean of a histogram, over everything but `by`."""
    return f"{rate(f'{metric}_sum', by, matching)} / {rate(f'{metric}_count', by, matching)}"


def of(metric: str, matching: str = "") -> str:
    """A gauge as it is."""
    return f'{metric}{{pipeline=~"$pipeline"{matching}}}'


MOVED = ', move!="nothing"'
ANSWER_PATH = ', service=~"intake|feature|inference"'

OPERATIONS = Dashboard(
    "driftline-operations",
    "driftline: operations",
    "Does the loop run, does it keep up, and is everything that came in accounted for?",
    [
        (
            "Is it well?",
            [
                Panel(
                    "Processes that answer",
                    "Each process of the pipeline that Prometheus reaches. Fewer than there should be: driftline status NAME says which "
                    "one is missing "
                    "and why (runbook process-down).",
                    "short",
                    [('sum by (process) (up{job="driftline"})', "{{process}}")],
                    width=8,
                ),
                Panel(
                    "Messages unaccounted for",
                    "Read less what became of them. Must be 0 all the time; anything else is a defect of ours, not of the data: keep logs "
                    "and topics, "
                    "and see the runbook conservation-broken.",
                    "short",
                    [
                        (
                            f"sum by (service, topic) ({of('driftline_messages_read_total')})"
                            f" - sum by (service, topic) ({of('driftline_messages_total')})",
                            "{{service}} {{topic}}",
                        )
                    ],
                    red_from=1,
                    width=8,
                ),
                Panel(
                    "Seconds without moving, with something to read",
                    "Beyond 30 s a partition is alive but not moving: its /readyz says so in words, and the runbook not-progressing what "
                    "to do.",
                    "s",
                    [
                        (
                            f"(time() - {of('driftline_progress_timestamp_seconds')}) and {of('driftline_lag_messages')} > 0",
                            "{{service}} {{topic}}[{{partition}}]",
                        )
                    ],
                    red_from=30,
                    width=8,
                ),
            ],
        ),
        (
            "Does it keep up?",
            [
                Panel(
                    "Records read",
                    "By service. It follows what the applications send; where one service falls off and those before it do not, look at "
                    "its lag.",
                    "cps",
                    [(rate("driftline_messages_read_total", "service"), "{{service}}")],
                ),
                Panel(
                    "From event to prediction, mean",
                    "What a record spends in intake, feature and inference, one on the other, waiting included. One that grows is behind "
                    "or waits for its "
                    "broker, its store or its model: the panel of stages below says which.",
                    "s",
                    [(mean("driftline_hop_duration_seconds", "service", ANSWER_PATH), "{{service}}")],
                ),
                Panel(
                    "Slowest hundredth of each hop",
                    "The 99th percentile, to the width of a bucket. Spikes with every report or commit are usual; a new plateau is not.",
                    "s",
                    [(quantile(0.99, "driftline_hop_duration_seconds", "service"), "{{service}}")],
                ),
                Panel(
                    "Age of the oldest record that waits",
                    "Beyond a minute in intake, feature or inference, applications wait for answers (runbook lag). Labeler and drift may "
                    "take longer.",
                    "s",
                    [(f"max by (service, topic) ({of('driftline_lag_seconds')})", "{{service}} {{topic}}")],
                    red_from=60,
                ),
                Panel(
                    "Records that wait",
                    "When this grows while processors are idle, a partition stands still; when they are busy, add processes "
                    "(DRIFTLINE_REPLICAS).",
                    "short",
                    [(f"sum by (service, topic) ({of('driftline_lag_messages')})", "{{service}} {{topic}}")],
                ),
                Panel(
                    "Where a batch spends its time",
                    "Seconds a second, by service and stage. send is the broker, commit and open are the store, decode and step are our "
                    "processor.",
                    "s",
                    [(rate("driftline_step_duration_seconds_sum", "service, stage"), "{{service}} {{stage}}")],
                ),
                Panel(
                    "Records in a batch, mean",
                    "Few while a service keeps up with ease; at the limit of 4,000 it is as fast as it gets, and behind.",
                    "short",
                    [(mean("driftline_batch_messages", "service"), "{{service}}")],
                ),
                Panel(
                    "What became of records",
                    "Duplicates follow restarts and stop by themselves. Late ones that stay are a source whose clock or lateness is "
                    "declared wrongly.",
                    "cps",
                    [
                        (rate("driftline_messages_total", "outcome"), "{{outcome}}"),
                        (rate("driftline_merge_late_total", "pipeline"), "behind the merge"),
                    ],
                ),
            ],
        ),
        (
            "What is refused or gives way?",
            [
                Panel(
                    "Refused records",
                    "A sender breaks its contract: driftline dead-letters NAME says who, which and why (runbook dead-letters).",
                    "cps",
                    [(rate("driftline_dead_letters_total", "topic, reason"), "{{topic}} {{reason}}")],
                ),
                Panel(
                    "Commits that did not go through",
                    "fenced: another process has the partition; a few in a takeover are usual, many are two owners (runbook fenced). "
                    "refused: the store would not, for want of memory, disk or rights; the service's log says which. unknown: it did not "
                    "answer. After each, what was in hand is done again.",
                    "cps",
                    [(rate("driftline_ledger_commits_total", "service, result", ', result!="applied"'), "{{service}} {{result}}")],
                ),
                Panel(
                    "Workers that were killed",
                    "Forked again by their keepers, in 10 minutes. Look for what kills them, memory first (runbook worker-restarts).",
                    "short",
                    [(f"sum by (service) (increase({of('driftline_worker_restarts_total')}[10m]))", "{{service}}")],
                    red_from=3,
                ),
                Panel(
                    "Commits",
                    "To the store, by service. None while records are read is a service that cannot write: see its log.",
                    "cps",
                    [(rate("driftline_ledger_commits_total", "service", ', result="applied"'), "{{service}}")],
                ),
            ],
        ),
        (
            "HTTP",
            [
                Panel(
                    "Requests by status",
                    "429 is a limit of one client, 5xx is ours (runbook gateway-errors), 202 a prediction that was not there in time.",
                    "reqps",
                    [(rate("driftline_http_requests_total", "operation, status"), "{{operation}} {{status}}")],
                ),
                Panel(
                    "Slowest hundredth of requests",
                    "For score it cannot be below the way from event to prediction. Higher by much is a gateway without processor: start "
                    "another.",
                    "s",
                    [(quantile(0.99, "driftline_http_request_duration_seconds", "operation"), "{{operation}}")],
                ),
                Panel(
                    "Questions that wait, over their limit",
                    "At 1 further ones get 429. When it rises, look at the way from event to prediction first.",
                    "percentunit",
                    [
                        (
                            f"{of('driftline_gateway_waiting')} / on (pipeline, instance) {of('driftline_gateway_waiting_max')}",
                            "{{instance}}",
                        )
                    ],
                    red_from=0.8,
                ),
                Panel(
                    "Predictions that are remembered, over their limit",
                    "At 1 the oldest go: a client that asks later than that gets 404. Raise DRIFTLINE_ANSWERS_MAX if that is too soon.",
                    "percentunit",
                    [
                        (
                            f"{of('driftline_gateway_predictions_kept')} / on (pipeline, instance) "
                            f"{of('driftline_gateway_predictions_kept_max')}",
                            "{{instance}}",
                        )
                    ],
                ),
            ],
        ),
        (
            "What runs",
            [
                Panel(
                    "Versions",
                    "Of driftline, Python and onnxruntime, with the number of processes. More than one line outside a rollout is a "
                    "forgotten process.",
                    "short",
                    [("sum by (version, python, onnxruntime) (driftline_build_info)", "{{version}}, Python {{python}}, {{onnxruntime}}")],
                    width=24,
                    kind="table",
                ),
            ],
        ),
    ],
)

MODEL_QUALITY = Dashboard(
    "driftline-model-quality",
    "driftline: model quality",
    "Which model answers, is it right, has its world changed, and what is done about it?",
    [
        (
            "Who answers?",
            [
                Panel(
                    "Models in force",
                    "Champion, canary and shadows of the newest deployment. driftline models list NAME says how each came there.",
                    "short",
                    [(of("driftline_model_info"), "{{arm}} {{model}} (deployment {{version}})")],
                    kind="table",
                ),
                Panel(
                    "State of the rollout",
                    "The line at 1 is the state. A candidate that stays in shadow waits for rows, labels or somebody's approval: driftline "
                    "models list NAME.",
                    "short",
                    [(of("driftline_rollout_state"), "{{state}}")],
                ),
                Panel(
                    "Moves of the rollout",
                    "In an hour. A rollback has its reason on the deployments: driftline models list NAME.",
                    "short",
                    [(f"sum by (move) (increase({of('driftline_rollout_moves_total', MOVED)}[1h]))", "{{move}}")],
                ),
                Panel(
                    "Newest deployment by service",
                    "Inference follows rollout within seconds. Where it does not, its log says which model it could not load.",
                    "short",
                    [(f"max by (service) ({of('driftline_deployment_version')})", "{{service}}")],
                ),
            ],
        ),
        (
            "What does it say?",
            [
                Panel(
                    "Predictions",
                    "By arm. The shares are those of the rollout, by key, so small samples are uneven.",
                    "cps",
                    [(rate("driftline_predictions_total", "arm"), "{{arm}}")],
                ),
                Panel(
                    "Answers that had something to say about themselves",
                    "degraded: no model answered, so the fallback did (runbook degraded-answers). stale_view: an entity was silent for "
                    "longer than its windows.",
                    "cps",
                    [(rate("driftline_predictions_total", "arm, flag", ', flag!="none"'), "{{arm}} {{flag}}")],
                ),
                Panel(
                    "Scores: quartiles",
                    "Of what was predicted on all arms. A shift without a new model is a change of the inputs: see their drift below.",
                    "percentunit",
                    [
                        (
                            quantile(share, "driftline_prediction_score", "pipeline", "1h"),
                            f"{{{{pipeline}}}} {word}",
                        )
                        for share, word in ((0.25, "lower quartile"), (0.5, "median"), (0.75, "upper quartile"))
                    ],
                ),
                Panel(
                    "Scores: mean by arm",
                    "Champion and canary see keys of the same kind, so their means should agree; the guardrails act where they do not.",
                    "percentunit",
                    [(mean("driftline_prediction_score", "arm"), "{{arm}}")],
                ),
            ],
        ),
        (
            "Is it right?",
            [
                Panel(
                    "Control chart of the champion",
                    "Sums of its errors over their limit: high is more positives than it says, low fewer. At 1 it signals and a retrain is "
                    "commanded "
                    "(runbook quality-alarm).",
                    "percentunit",
                    [(of("driftline_quality_chart_ratio"), "{{side}}")],
                    red_from=1,
                ),
                Panel(
                    "Quality on matured labels",
                    "Of the newest cohort whose outcomes are all due; a single one is noisy, so act on the chart and not on this.",
                    "short",
                    [(of("driftline_quality_ratio"), "{{arm}} {{metric}}")],
                ),
                Panel(
                    "Alarms told in reports",
                    "In a day. quality retrains by itself; score and input are evidence to look at.",
                    "short",
                    [(f"sum by (detector, subject) (increase({of('driftline_alarms_total')}[1d]))", "{{subject}} ({{detector}})")],
                    width=24,
                ),
            ],
        ),
        (
            "Do outcomes come?",
            [
                Panel(
                    "Outcomes by what became of them",
                    "None joined while answers wait: their source is down, or its ids are not those of the questions (runbook "
                    "labels-stalled).",
                    "cps",
                    [(rate("driftline_labels_total", "outcome"), "{{outcome}}")],
                ),
                Panel(
                    "Answers that wait, over their limit",
                    "Of the fullest partition. At 1 its oldest are left unlabelled (runbook labels-near-limit).",
                    "percentunit",
                    [
                        (
                            f"max by (pipeline) ({of('driftline_labels_waiting')})"
                            f" / max by (pipeline) ({of('driftline_labels_waiting_max')})",
                            "{{pipeline}}",
                        )
                    ],
                    red_from=0.8,
                ),
                Panel(
                    "Delay of outcomes: median and slowest twentieth",
                    "By the pipeline's clock. When it nears the label's horizon, more and more are taken for silent: declare a longer one.",
                    "s",
                    [
                        (quantile(share, "driftline_label_delay_seconds", "pipeline", "1h"), f"{{{{pipeline}}}} {word}")
                        for share, word in ((0.5, "median"), (0.95, "19 of 20 by"))
                    ],
                ),
                Panel(
                    "Share of answers whose outcome was told",
                    "The others are taken for what the declaration says of silence. A fall is a source that tells less.",
                    "percentunit",
                    [(f"avg by (pipeline) ({of('driftline_label_coverage_ratio')})", "{{pipeline}}")],
                ),
            ],
        ),
        (
            "Has the world changed?",
            [
                Panel(
                    "Drift of inputs",
                    "Population stability index of each feature against training, of the last seven windows. Beyond 0.2 look at the "
                    "feature's source; it "
                    "retrains nothing by itself.",
                    "short",
                    [(f"topk(10, {of('driftline_drift_psi_ratio')})", "{{feature}}")],
                    red_from=0.2,
                ),
                Panel(
                    "Missing inputs",
                    "Share of rows that lack the feature. A step is a source that stopped or renamed a field.",
                    "percentunit",
                    [(f"topk(10, {of('driftline_feature_missing_ratio')})", "{{feature}}")],
                ),
            ],
        ),
        (
            "What is done about it?",
            [
                Panel(
                    "Retrain commands",
                    "In a day, by reason and outcome. budget: it retrains again and again without mending anything (runbook "
                    "retrain-budget).",
                    "short",
                    [(f"sum by (reason, outcome) (increase({of('driftline_retrain_commands_total')}[1d]))", "{{reason}} {{outcome}}")],
                ),
                Panel(
                    "Training runs",
                    "In a day, by verdict. A refused model was not better on the same later data: driftline models show MODEL has the "
                    "evidence.",
                    "short",
                    [(f"sum by (verdict) (increase({of('driftline_training_runs_total')}[1d]))", "{{verdict}}")],
                ),
            ],
        ),
    ],
)

DASHBOARDS = {"operations": OPERATIONS, "model-quality": MODEL_QUALITY}


def as_grafana(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports and provisions it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["driftline"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": [_source(), _pipeline()]},
        "panels": list(_placed(dashboard)),
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _pipeline() -> dict[str, Any]:
    asked = "label_values(driftline_messages_read_total, pipeline)"
    return {
        "name": "pipeline",
        "label": "Pipeline",
        "type": "query",
        "datasource": SOURCE,
        "definition": asked,
        "query": {"query": asked, "refId": "pipelines"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _placed(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """Headings and panels from the left to the right, from the top down."""
    number, top = 0, 0
    for heading, panels in dashboard.rows:
        number += 1
        yield {"id": number, "type": "row", "title": heading, "collapsed": False, "panels": [], "gridPos": _place(0, top, COLUMNS, 1)}
        top, left = top + 1, 0
        for panel in panels:
            if left + panel.width > COLUMNS:
                top, left = top + HEIGHT, 0
            number += 1
            yield _as_panel(panel, number) | {"gridPos": _place(left, top, panel.width, HEIGHT)}
            left += panel.width
        top += HEIGHT


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _as_panel(panel: Panel, number: int) -> dict[str, Any]:
    red = [] if panel.red_from is None else [{"color": "red", "value": panel.red_from}]
    drawn = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "thresholdsStyle": {"mode": "dashed" if red else "off"}}
    table = panel.kind == "table"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}, *red]},
                "custom": {} if table else drawn,
            },
            "overrides": [],
        },
        "options": {}
        if table
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            | ({"instant": True, "format": "table"} if table else {})
            for at, (expression, legend) in enumerate(panel.asked)
        ],
    }


def text_of(name: str) -> str:
    """The file of one dashboard."""
    return json.dumps(as_grafana(DASHBOARDS[name]), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text_of(name))


if __name__ == "__main__":
    main()
