"""The dashboards are made by their script, and ask for what there is."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from monitoring.dashboards import COLUMNS, DASHBOARDS, FOLDER, text_of

from .expressions import faults

PANELS_MIN = 30
DASHBOARD_NAMES = sorted(DASHBOARDS)


def panels(name: str) -> list[dict[str, Any]]:
    """The charts of a committed file, without headings."""
    return [panel for panel in json.loads((FOLDER / f"{name}.json").read_text())["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("name", DASHBOARD_NAMES)
def test_the_committed_file_is_what_the_script_makes(name: str):
    """
    Nobody edits them by hand; `python monitoring/dashboards.py` makes them again.
    """
    assert (FOLDER / f"{name}.json").read_text() == text_of(name)


def test_there_is_no_file_of_a_dashboard_that_is_gone():
    """
    And the charts were found at all.
    """
    assert sorted(place.stem for place in FOLDER.glob("*.json")) == DASHBOARD_NAMES
    assert sum(len(panels(name)) for name in DASHBOARD_NAMES) >= PANELS_MIN


@pytest.mark.parametrize("name", DASHBOARD_NAMES)
def test_each_panel_says_what_it_is_in_which_unit_and_what_to_do(name: str):
    """
    Somebody looks at it for the first time in the middle of the night.
    """
    assert [panel["id"] for panel in panels(name) if not (panel["title"] and panel["fieldConfig"]["defaults"]["unit"])] == []
    assert [panel["title"] for panel in panels(name) if not re.search(r"\w.{40,}\.$", panel["description"])] == []


@pytest.mark.parametrize("name", DASHBOARD_NAMES)
def test_each_expression_asks_for_metrics_and_labels_of_the_catalogue(name: str):
    """
    Its legend too: what is misspelt stays empty without a word.
    """
    asked = [
        (panel["title"], target["expr"], re.findall(r"{{(\w+)}}", target["legendFormat"]))
        for panel in panels(name)
        for target in panel["targets"]
    ]
    assert {title: found for title, expression, legend in asked if (found := faults(expression, *legend))} == {}


@pytest.mark.parametrize("name", DASHBOARD_NAMES)
def test_no_two_panels_lie_on_one_another(name: str):
    """
    Every place of the grid is taken once at most, and none is beyond its edge.
    """
    taken = [
        (x, y)
        for panel in json.loads((FOLDER / f"{name}.json").read_text())["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < COLUMNS


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rate(driftline_made_up_total[5m])", "no metric driftline_made_up_total"),
        ('driftline_lag_seconds{arm="champion"}', "driftline_lag_seconds has no label arm"),
        ("sum by (arm) (driftline_lag_messages)", "nothing there has the label arm"),
        ("rate(driftline_hop_duration_seconds[5m])", "no metric driftline_hop_duration_seconds"),
        ("rate(driftline_lag_seconds_bucket[5m])", "no metric driftline_lag_seconds_bucket"),
    ],
)
def test_what_is_not_in_the_catalogue_is_found(expression: str, fault: str):
    """
    The check itself refuses names, labels, and a histogram asked for as if it were a number.
    """
    assert faults(expression)[0] == fault


def test_a_legend_with_a_label_that_nothing_has_is_found():
    """
    It would be printed as an empty word.
    """
    assert faults("driftline_lag_messages", "service") == []
    assert faults("driftline_lag_messages", "arm") == ["nothing there has the label arm"]
