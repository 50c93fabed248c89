"""Which metrics and labels an expression of Prometheus names, for one that names others than the catalogue has stays empty for ever."""

from __future__ import annotations

import re

from driftline.metrics import CATALOGUE

OF_PROMETHEUS = {"le", "instance", "job", "process"}  # labels that a scrape adds, or a histogram
METRIC = re.compile(r"\bdriftline_[a-z_]+")
MATCHED = re.compile(r"\b(driftline_[a-z_]+|up)\{([^}]*)\}")
GROUPED = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def declared_as(name: str) -> str | None:
    """The catalogue's name behind a name in an expression; None where there is none. A histogram is asked for by its parts alone."""
    if name in CATALOGUE:
        return name if CATALOGUE[name].kind != "histogram" else None
    whole = next((name.removesuffix(part) for part in HISTOGRAM_PARTS if name.endswith(part)), "")
    return whole if whole in CATALOGUE and CATALOGUE[whole].kind == "histogram" else None


def faults(expression: str, *more_labels: str) -> list[str]:
    """What of `expression`, and of labels that a text about it uses, is not in the catalogue."""
    names = METRIC.findall(expression)
    found = [f"no metric {name}" for name in names if declared_as(name) is None]
    for name, matchers in MATCHED.findall(expression):
        declared = declared_as(name)
        known = set(CATALOGUE[declared].labels) if declared else set()
        found += [f"{name} has no label {label}" for label in re.findall(r"(\w+)\s*[=!]", matchers) if label not in known | OF_PROMETHEUS]
    known = {label for name in names if (declared := declared_as(name)) for label in CATALOGUE[declared].labels} | OF_PROMETHEUS
    grouped = [label.strip() for labels in GROUPED.findall(expression) for label in labels.split(",")]
    return found + [f"nothing there has the label {label}" for label in [*grouped, *more_labels] if label not in known]
