"""The page of features: each in words from its definition, and as bars now and at training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from driftline.judge.summaries import Inputs
from driftline.pipeline import Pipeline, load_pipeline
from services.gateway.console import features

REFERENCE = {"edges": {"wind": [5.0, 10.0]}, "counts": {"wind": [10, 10, 20, 0]}}


@pytest.fixture(scope="module")
def flights() -> Pipeline:
    """The pipeline of the demo."""
    return load_pipeline("flights", Path(__file__).parents[4] / "pipelines")


def manifest(**reference: Any) -> Any:
    """As far as it is looked at."""
    return type("Manifest", (), {"reference": REFERENCE | reference})()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("last_departure_age_s", "seconds since the last of departures, within 7 days"),
        ("departures_12h", "number of departures, over 12 hours"),
        ("arrival_delay_7d", "mean of arrival_delay_min (kept within -30 to 240) of arrivals, over 7 days"),
        ("departure_late_4h", "share with departure_delay_min >= 15 of departures, over 4 hours"),
        ("backlog_3h", "number of flights, over 3 hours ending 1 hour ago less the number of departures, over 3 hours"),
        ("wind", "last wind_mph of weather, within 6 hours"),
        ("weekday", "day of the week, 0 is Monday, of departs_at in America/New_York"),
        ("duration_min", "duration_min of the question, as it is"),
    ],
)
def test_a_definition_is_told_in_words(flights: Pipeline, name: str, words: str) -> None:
    """
    From the pipeline file, so that it cannot be out of date.
    """
    found = {one.name: one for one in features.described(flights, None, Inputs(), {})}
    assert found[name].definition == words
    assert tuple(found) == flights.layout.names


def test_distributions_stand_beside_each_other(flights: Pipeline) -> None:
    """
    Shares by bin, the largest as high as the box; missing last; the bins named.
    """
    now = Inputs(rows=10, bins={"wind": [0, 0, 5, 5]})
    (wind,) = (one for one in features.described(flights, manifest(), now, {"wind": {"psi": 0.5, "missing": 0.5}}) if one.name == "wind")
    assert (wind.psi, wind.missing, wind.missing_at_training) == (0.5, 0.5, 0.0)
    assert [(bar.x, bar.now, bar.training) for bar in wind.bars] == [(0, 0, 20), (25, 0, 20), (50, 40, 40), (75, 40, 0)]
    assert [bar.told.split(":")[0] for bar in wind.bars] == ["below 5", "5 to 10", "10 and above", "missing"]


def test_bins_of_another_reference_are_not_drawn(flights: Pipeline) -> None:
    """
    Counts that do not fit would stand under wrong values; without a model there is nothing to draw.
    """
    for told in (manifest(), None):
        found = features.described(flights, told, Inputs(rows=10, bins={"wind": [10]}), {})
        assert {one.bars for one in found if one.name == "wind"} == {()}
