"""What four applications publish: counts, times in UTC, the two wire formats."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType

import fastavro
import polars as pl
import pytest

from driftline.errors import Invalid

FOLDER = Path(__file__).resolve().parents[3] / "pipelines" / "flights"


def load() -> ModuleType:
    """The module as the player loads it: by its place."""
    spec = importlib.util.spec_from_file_location("flights_upstream_under_test", FOLDER / "upstream.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


upstream = load()


@pytest.fixture(scope="module")
def year():
    return upstream.read_upstream(366)


@pytest.fixture(scope="module")
def every():
    folder = upstream.data_folder()
    return upstream.scheduled(upstream._flights(folder), upstream._zones(folder))


def at(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc]  # a date in parts


def schema_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.v1.avsc").read_text())


def one_flight(**changes: object) -> pl.DataFrame:
    told = {"year": 2013, "month": 6, "day": 1, "sched_dep_time": 2355, "dep_delay": 10, "sched_arr_time": 400, "arr_delay": 5}
    named = {"flight": 1, "carrier": "B6", "tailnum": "N1", "origin": "JFK", "dest": "SJU"}
    return pl.DataFrame([{**told, **named, **changes}])


ZONES = pl.DataFrame({"faa": ["LAX", "JFK", "SJU"], "zone": ["America/Los_Angeles", "America/New_York", None]})


def test_the_year_has_as_many_flights_as_the_data_says(every):
    """
    336,776 flights, 334,264 of them with one of 4,043 tail numbers.
    """
    named = every.filter(pl.col("tail").is_not_null())
    assert (every.height, named.height, named["tail"].n_unique()) == (336_776, 334_264, 4_043)


def test_every_flight_of_the_year_is_played_and_those_without_tail_are_counted(year):
    """
    What is left out is exactly the 2,512 flights without a tail number.
    """
    assert (year.topics["flights"].height, year.left_out) == (334_264, 2_512)


def test_first_212_days_are_what_the_demo_plays():
    """
    193,733 flights and 587,595 messages in all, in ascending visible time on each topic.
    """
    played = upstream.read_upstream(212)
    assert played.topics["flights"].height == 193_733
    assert sum(frame.height for frame in played.topics.values()) == 587_595
    assert all(frame["visible"].is_sorted() for frame in played.topics.values())


def test_ids_are_unique_on_each_topic(year):
    """
    An id that named two records would make a duplicate of the second.
    """
    for topic, field in (("flights", "flight_id"), ("departures", "flight_id"), ("arrivals", "flight_id"), ("weather", "report_id")):
        assert year.topics[topic][field].n_unique() == year.topics[topic].height


def test_no_departure_is_visible_before_its_flight_was_asked(year):
    """
    The flight that left earliest left 43 minutes ahead, so an hour ahead nothing leaks.
    """
    asked = year.topics["flights"].select("flight_id", "asked_at")
    early = year.topics["departures"].join(asked, on="flight_id").filter(pl.col("departed_at") <= pl.col("asked_at"))
    assert early.height == 0


def test_every_arrival_comes_within_the_horizon(year):
    """
    36 hours cover the longest delay, so silence does mean cancelled or diverted.
    """
    longest = (year.truth["arrived"] - year.truth["asked"]).max()
    assert longest <= 36 * 3_600_000


def test_outcomes_of_asked_flights_are_played_past_the_last_day():
    """
    A flight of the last evening lands the next day; its arrival is part of what is published.
    """
    played = upstream.read_upstream(1)
    assert played.topics["flights"]["visible"].max() < played.end_ms < played.topics["arrivals"]["visible"].max()


def test_an_arrival_after_midnight_gets_the_next_date():
    """
    Leaves New York at 23:55, scheduled to reach San Juan, four hours by summer time behind UTC, at 04:00 the next day.
    """
    flight = upstream.scheduled(one_flight(), ZONES).to_dicts()[0]
    assert at(2013, 6, 2, 3, 55) == flight["departs_at"]
    assert (at(2013, 6, 2, 8, 0) + 5 * 60_000, 245) == (flight["arrived_at"], flight["duration_min"])


def test_a_westbound_arrival_is_on_the_destinations_clock():
    """
    Leaves New York at 08:00, lands in Los Angeles at 10:30 local: five and a half hours.
    """
    flight = upstream.scheduled(one_flight(dest="LAX", sched_dep_time=800, sched_arr_time=1030), ZONES).to_dicts()[0]
    assert flight["duration_min"] == 330


def test_departures_follow_new_yorks_change_of_the_clock():
    """
    08:00 is 13:00 UTC on the ninth of March, 12:00 UTC a day later.
    """
    before = upstream.scheduled(one_flight(month=3, day=9, sched_dep_time=800, sched_arr_time=1130), ZONES)
    after = upstream.scheduled(one_flight(month=3, day=10, sched_dep_time=800, sched_arr_time=1130), ZONES)
    assert (at(2013, 3, 9, 13), at(2013, 3, 10, 12)) == (before["departs_at"][0], after["departs_at"][0])


@pytest.mark.parametrize("day_and_time", [(3, 10, 230), (11, 3, 130)])
def test_a_time_that_the_clock_skips_or_repeats_is_refused(day_and_time):
    """
    2013 has no such scheduled time; data that has one is not guessed at.
    """
    month, day, hhmm = day_and_time
    with pytest.raises(Invalid, match="skips or repeats"):
        upstream.scheduled(one_flight(month=month, day=day, sched_dep_time=hhmm), ZONES)


def test_a_flight_that_never_arrived_counts_as_late():
    """
    Cancelled and diverted flights are positive, by silence.
    """
    flights = upstream.scheduled(one_flight(arr_delay=None), ZONES).with_columns(pl.col("arr_delay").cast(pl.Int64))
    assert upstream._truth(flights).select("label", "arrived").to_dicts() == [{"label": 1, "arrived": None}]


@pytest.mark.parametrize("days", [0, 367])
def test_days_that_the_data_does_not_have_are_refused(days):
    """
    Zero days are a mistake, more than the year are not there.
    """
    with pytest.raises(Invalid, match="days is"):
        upstream.read_upstream(days)


def test_weather_is_visible_when_its_hour_is_over(year):
    """
    Its precipitation is the hour's maximum, so nobody knows it earlier.
    """
    weather = year.topics["weather"]
    assert (weather["visible"] - weather["hour"]).unique().to_list() == [3_600_000]


def test_json_has_the_schemas_fields_and_new_yorks_offset(year):
    """
    A departure reads as its application would have written it.
    """
    value = year.encode("departures", year.topics["departures"].head(1), schema_of("departure"), 0)[0]
    record = json.loads(value)
    assert [field["name"] for field in schema_of("departure")["fields"]] == list(record)
    assert (record["departed_at"], record["tail"], record["departure_delay_min"]) == ("2013-01-01T05:17:00-05:00", "N14228", 2)


@pytest.mark.parametrize(("topic", "schema"), [("arrivals", "arrival"), ("weather", "weather")])
def test_avro_reads_back_by_another_library(year, topic, schema):
    """
    Framed with the schema's id, null where the data has none, every value as it was.
    """
    records = year.topics[topic].slice(10_000, 300)
    parsed = fastavro.parse_schema(schema_of(schema))
    values = year.encode(topic, records, schema_of(schema), 77)
    read = [fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed, None) for value in values]
    stamped = [{name: _plain(value) for name, value in record.items()} for record in read]
    assert {b"\x00\x00\x00\x00\x4d"} == {value[:5] for value in values}
    assert records.drop("visible").to_dicts() == stamped


def _plain(value: object) -> object:
    return round(value.timestamp() * 1000) if isinstance(value, datetime) else value


def test_missing_measures_are_null_on_the_wire(year):
    """
    Four wind speeds of the year are not in the data; none of them becomes a number.
    """
    records = year.topics["weather"].filter(pl.col("wind_mph").is_null())
    parsed = fastavro.parse_schema(schema_of("weather"))
    values = year.encode("weather", records, schema_of("weather"), 1)
    assert [fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed, None)["wind_mph"] for value in values] == [None] * 4


def test_keys_are_never_the_pipelines():
    """
    The applications key by flight or not at all, so nobody downstream can lean on their partitions.
    """
    played = upstream.read_upstream(1, date(2013, 2, 1))
    assert {None} == set(played.keys("departures", played.topics["departures"]))
    assert played.topics["flights"]["flight_id"][0].encode() == played.keys("flights", played.topics["flights"])[0]
