"""The catalogue of metrics."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from driftline.metrics import CATALOGUE, METRICS, metric, page

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


def labels_used() -> list[tuple[str, str, set[str] | None]]:
    """Every `metric("name").labels(...)` in the sources: where, which, and the labels, None where they are handed on as a dict."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "metric"
                and isinstance(node.args[0], ast.Constant)
            ):
                found.append((path.name, str(node.args[0].value), None))
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "labels"):
                continue
            inner = node.func.value
            if (
                isinstance(inner, ast.Call)
                and isinstance(inner.func, ast.Name)
                and inner.func.id == "metric"
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
