"""
The flights pipeline as the services read it, and what its version depends on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from driftline.contracts.avro import Codec, column
from driftline.pipeline import Pipeline, View, load_pipeline

PIPELINES = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists()) / "pipelines"
Variant = Callable[..., Pipeline]


@pytest.fixture
def flights() -> Pipeline:
    """The pipeline of the demo."""
    return load_pipeline("flights", PIPELINES)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    """The flights pipeline with changes in its file: each text and what to write instead."""

    def changed(*changes: tuple[str, str]) -> Pipeline:
        folder = tmp_path / "flights"
        shutil.copytree(PIPELINES / "flights", folder, dirs_exist_ok=True)
        text = (PIPELINES / "flights" / "pipeline.py").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / "pipeline.py").write_text(text)
        return load_pipeline("flights", tmp_path)

    return changed


def test_the_flights_pipeline_has_its_22_inputs_in_order(flights: Pipeline) -> None:
    """
    The row has the features of the views, then what the question says, then an age for each view.
    """
    names = flights.layout.names
    assert len(names) == 22
    assert tuple(names[at] for at in (0, 8, 18, 19, 20, 21)) == (
        "last_departure_age_s",
        "backlog_3h",
        "humidity",
        "minute_of_day",
        "weekday",
        "duration_min",
    )
    assert flights.layout.views == ("aircraft", "airport", "carrier", "destination", "line", "sky")
    assert flights.layout.view_of == (*[0] * 5, *[1] * 4, *[2] * 2, *[3] * 3, 4, *[5] * 4, *[-1] * 3)
    assert flights.layout.version == flights.digest
    assert flights.layout.row_bytes == 4 * 28


def test_streams_are_numbered_as_they_are_declared(flights: Pipeline) -> None:
    """
    The number of a stream is its source on the log, so the order in the file is part of the definition.
    """
    assert [(one.number, one.topic) for one in flights.streams] == [(0, "flights"), (1, "departures"), (2, "arrivals"), (3, "weather")]
    weather = flights.streams[3]
    assert (weather.time, weather.visible, weather.key) == ("hour", "published_at", "origin")
    assert flights.streams[0].visible == "asked_at"


def test_settings_are_milliseconds_and_defaults_are_filled_in(flights: Pipeline) -> None:
    """
    What the file says in words is numbers for the services.
    """
    day = 86_400_000
    assert (600_000, 60 * day, day) == (flights.tick_ms, flights.retention_ms, flights.window_ms)
    assert flights.label is not None
    assert (flights.label.horizon_ms, flights.label.revisions_ms, flights.label.if_silent) == (36 * 3_600_000, 36 * 3_600_000, "positive")
    assert (7 * day, 0.002) == (flights.gate.on_ms, flights.gate.refresh_margin)
    assert (14 * day, 180 * day, 28 * day, 7 * day, 8) == (
        flights.retrain.first_after_ms,
        flights.retrain.quality_run_length_ms,
        flights.retrain.every_ms,
        flights.retrain.cooldown_ms,
        flights.retrain.budget,
    )
    assert (3 * day, (0.25, 1.0), day, 0, True) == (
        flights.rollout.shadow_ms,
        flights.rollout.shares,
        flights.rollout.hold_ms,
        flights.rollout.approvals,
        flights.rollout.frozen_shadow,
    )
    assert (3_600_000, 2 * day, 64) == (flights.streams[0].lateness_ms, flights.streams[0].duplicates_ms, flights.streams[0].duplicates_max)


def test_only_streams_of_broadcast_views_are_broadcast(flights: Pipeline, variant: Variant) -> None:
    """
    Intake copies a stream everywhere when some broadcast view reads it, and only then.
    """
    assert [stream.broadcast for stream in flights.streams] == [True] * 4
    unread = variant(("of=[flights, departures],", "of=departures,"), ('f.count(flights, "3h", ending="60m ago") - ', ""))
    assert [stream.broadcast for stream in unread.streams] == [False, True, True, True]


def test_the_pipeline_is_found_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    DRIFTLINE_PIPELINES names the folder, wherever the process was started.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_PIPELINES", str(PIPELINES))
    assert load_pipeline("flights").name == "flights"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('f.count(departures, "12h")', 'f.count(departures, "24h")'),
        ("-15, 240", "-15, 241"),
        ('ending="60m ago"', 'ending="30m ago"'),
        ("departures.departure_delay_min >= 15", "departures.departure_delay_min > 15"),
        ('key="tail", time="asked_at"', 'key="tail", time="asked_at", lateness="2h"'),
        ('key="tail", time="asked_at"', 'key="tail", time="asked_at", duplicates=("1d", 64)'),
        ('visible="published_at"', 'visible="hour"'),
        ('f.value("duration_min")', 'f.value("scheduled_departure")'),
        ("        aircraft,\n        airport,", "        airport,\n        aircraft,"),
        ('f.weekday("departs_at", zone="America/New_York")', 'f.weekday("departs_at")'),
    ],
)
def test_whatever_changes_a_row_changes_the_version(flights: Pipeline, variant: Variant, old: str, new: str) -> None:
    """
    State and rows of another definition are never mixed up with these.
    """
    assert flights.digest != variant((old, new)).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trees=100", "trees=200"),
        ('cooldown="7d"', 'cooldown="8d"'),
        ("alert_rate=0.10", "alert_rate=0.20"),
        ('owner="ops-research@example.org"', 'owner="somebody-else@example.org"'),
        ('horizon="36h"', 'horizon="48h"'),
        ("# What arrives", "# What comes in"),
    ],
)
def test_what_changes_no_row_changes_no_version(flights: Pipeline, variant: Variant, old: str, new: str) -> None:
    """
    A new gate or recipe does not throw the state away.
    """
    assert flights.digest == variant((old, new)).digest


@pytest.mark.parametrize("name", ["flight", "departure", "arrival", "weather"])
def test_each_schema_of_the_flights_has_a_sample_that_keeps_to_it(name: str) -> None:
    """
    The message beside a schema has exactly its fields, and goes through Avro and back.
    """
    schema = json.loads((PIPELINES / "flights" / f"{name}.v1.avsc").read_text())
    sample = json.loads((PIPELINES / "flights" / f"{name}.v1.json").read_text())
    assert [field["name"] for field in schema["fields"]] == list(sample)
    for field in schema["fields"]:
        if isinstance(field["type"], dict):
            sample[field["name"]] = round(datetime.fromisoformat(sample[field["name"]]).timestamp() * 1000)
    columns = {field["name"]: column(field["type"], [sample[field["name"]]]) for field in schema["fields"]}
    decoded, bad = Codec(schema).decode(Codec(schema).encode(columns))
    assert not bad.any()
    assert list(decoded) == list(sample)


def test_every_view_of_the_flights_is_an_input(flights: Pipeline) -> None:
    """
    The ages in a row are those of the views whose features it has.
    """
    assert flights.views == tuple(value for value in flights.inputs if isinstance(value, View))
