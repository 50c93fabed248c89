"""The catalogue of metrics."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from driftline.metrics import CATALOGUE, METRICS, Column, Distribution, Metric, distribution, forget, metric, page

ROOT = Path(__file__).parents[3]
SOURCES = [path for folder in ("libs", "services") for path in sorted((ROOT / folder).rglob("*.py"))]
CALLS_MIN = 5


def test_the_page_for_operators_is_the_catalogue():
    """
    docs/metrics.md is made by `python -m driftline.metrics` and by nobody else.
    """
    assert (ROOT / "docs" / "metrics.md").read_text() == page()


def test_names_follow_the_conventions_of_prometheus():
    """
    One prefix, `_total` on counters alone, base units at the end of what has one, no name twice.
    """
    assert len(CATALOGUE) == len(METRICS)
    assert [one.name for one in METRICS if not re.fullmatch(r"driftline(_[a-z0-9]+)+", one.name)] == []
    assert [one.name for one in METRICS if (one.kind == "counter") != one.name.endswith("_total")] == []
    assert [one.name for one in METRICS if one.unit in ("seconds", "ratio") and one.kind != "counter" and one.unit not in one.name] == []


def test_histograms_alone_have_buckets():
    """
    And each histogram has its own, rising.
    """
    assert [one.name for one in METRICS if (one.kind == "histogram") != bool(one.buckets)] == []
    assert [one.name for one in METRICS if list(one.buckets) != sorted(set(one.buckets))] == []


def test_no_label_can_grow_without_bound():
    """
    Keys, ids and digests are for logs and topics.
    """
    assert {label for one in METRICS for label in one.labels} & {"key", "id", "digest", "event", "offset"} == set()


def test_a_partition_that_is_anothers_is_told_of_no_more():
    """
    Its gauges alone go: counters have counted what they have counted, and other partitions and services are still ours.
    """
    where = {"pipeline": "forgetting", "service": "labeler", "topic": "forgetting-journal"}
    for partition in ("0", "1"):
        metric("driftline_lag_messages").labels(**where, partition=partition).set(5)
        metric("driftline_labels_waiting").labels(pipeline="forgetting", partition=partition).set(7)
    metric("driftline_lag_messages").labels(**{**where, "service": "drift-journal"}, partition="0").set(9)
    metric("driftline_messages_read_total").labels(**where).inc()
    forget(**where, partition="0")
    told = [line for line in generate_latest().decode().splitlines() if "forgetting" in line]
    assert sorted(line for line in told if 'partition="0"' in line) == [
        'driftline_lag_messages{partition="0",pipeline="forgetting",service="drift-journal",topic="forgetting-journal"} 9.0'
    ]
    assert len([line for line in told if 'partition="1"' in line]) == 2
    assert len(told) == 4


def labels_used() -> list[tuple[str, str, set[str] | None]]:
    """
    Every `metric("name").labels(...)` and `distribution("name").labels(...)` in the sources: where, which, and the labels, None where
    they are handed on as a dict.
    """
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("metric", "distribution")
                and isinstance(node.args[0], ast.Constant)
            ):
                found.append((path.name, str(node.args[0].value), None))
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "labels"):
                continue
            inner = node.func.value
            if (
                isinstance(inner, ast.Call)
                and isinstance(inner.func, ast.Name)
                and inner.func.id in ("metric", "distribution")
                and isinstance(inner.args[0], ast.Constant)
            ):
                names = {keyword.arg for keyword in node.keywords}
                found.append((path.name, str(inner.args[0].value), None if None in names else {str(name) for name in names}))
    return found


def test_every_metric_that_the_code_uses_is_in_the_catalogue_with_its_labels():
    """
    A name or a label that is not declared would fail at the worst moment: when it is first counted.
    """
    used = labels_used()
    assert len(used) >= CALLS_MIN
    assert [(where, name) for where, name, _ in used if name not in CATALOGUE] == []
    assert [(where, name, labels) for where, name, labels in used if labels is not None and labels != set(CATALOGUE[name].labels)] == []


def test_a_metric_that_is_not_declared_is_refused():
    """
    There is one place to declare it.
    """
    with pytest.raises(KeyError):
        metric("driftline_made_up_total")


def test_every_metric_of_the_catalogue_is_told_somewhere():
    """
    A name that nobody sets promises what is not there.
    """
    source = "".join(
        path.read_text() for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py") if path.name != "metrics.py"
    )
    assert [one.name for one in METRICS if f'"{one.name}"' not in source] == []


def test_a_column_is_told_as_a_histogram_told_one_by_one():
    """
    The same text for Prometheus, bounds themselves and values beyond the last included.
    """
    declared = Metric("driftline_waits_seconds", "histogram", "seconds", ("service",), "How long.", (0.5, 1.0, 2.5))
    one_by_one, by_column = CollectorRegistry(), CollectorRegistry()
    plain = Histogram(declared.name, declared.meaning, declared.labels, buckets=declared.buckets, registry=one_by_one)
    columns = Distribution(declared)
    by_column.register(columns)
    for values in ([0.25, 0.5, 7.0], [1.0, 1.25], []):
        columns.labels(service="feature").observe(np.array(values))
        for value in values:
            plain.labels(service="feature").observe(value)
    assert generate_latest(by_column) == generate_latest(one_by_one)
    assert b'le="2.5",service="feature"} 4.0' in generate_latest(by_column)


def test_a_distribution_that_is_not_declared_or_lacks_a_label_is_refused():
    """
    As with every other metric.
    """
    with pytest.raises(KeyError):
        distribution("driftline_made_up_seconds")
    with pytest.raises(KeyError, match="arm"):
        distribution("driftline_prediction_score").labels(pipeline="flights")


def test_a_series_is_the_same_each_time_it_is_asked_for():
    """
    Or else what was counted would be forgotten.
    """
    first: Column = distribution("driftline_prediction_score").labels(pipeline="again", arm="champion")
    first.observe(np.array([0.5]))
    assert distribution("driftline_prediction_score").labels(pipeline="again", arm="champion").counts.sum() == 1
