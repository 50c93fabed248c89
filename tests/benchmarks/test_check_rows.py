"""The vectorised recomputation against the rule written out record by record, and the comparison fed with wrong rows."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from check_rows import compare, digest
from independent import DAY_MS, FEATURES, HOUR_MS, NEW_YORK, START_MS, VIEWS, Rows, Truth, read_truth, recompute_rows

MINUTE_MS = 60_000


def generated(seed: int, flights: int = 300) -> Truth:
    """
    A small crowded world: few entities, times on whole minutes and often on whole tiles, so that every border of the rule is met.
    """
    chance = np.random.default_rng(seed)
    minutes = np.sort(chance.integers(2 * 60, 34 * 24 * 60, flights))
    minutes[::3] = minutes[::3] // 35 * 35
    asked = START_MS + np.sort(minutes) * MINUTE_MS
    departure_delay = chance.integers(-40, 400, flights)
    arrival_delay = departure_delay + chance.integers(-30, 30, flights)
    left, landed = chance.random(flights) < 0.95, chance.random(flights) < 0.9
    departs = asked + HOUR_MS
    frame = pl.DataFrame(
        {
            "id": [f"F{at}" for at in range(flights)],
            "tail": chance.choice(["N1", "N2", "N3", "N4"], flights),
            "origin": chance.choice(["EWR", "JFK"], flights),
            "destination": chance.choice(["LAX", "SJU", "BOS"], flights),
            "carrier": chance.choice(["UA", "B6"], flights),
            "scheduled": chance.choice([800, 1730], flights),
            "asked": asked,
            "departs": departs,
            "departed": [int(at) if there else None for at, there in zip(departs + departure_delay * MINUTE_MS, left, strict=True)],
            "arrived": [
                int(at) if there else None for at, there in zip(departs + (120 + arrival_delay) * MINUTE_MS, left & landed, strict=True)
            ],
            "departure_delay": departure_delay,
            "arrival_delay": arrival_delay,
            "duration": chance.integers(40, 400, flights),
        }
    )
    hours = np.flatnonzero(chance.random(34 * 24) < 0.6)
    measures = {name: [None if chance.random() < 0.2 else float(chance.integers(0, 30)) for _ in hours] for name in MEASURES}
    weather = pl.DataFrame({"origin": chance.choice(["EWR", "JFK"], len(hours)), **measures, "visible": START_MS + hours * HOUR_MS})
    return Truth(frame, weather)


MEASURES = ("visib", "precip", "wind_speed", "humid")


def in_window(visible: int, asked: int, length: int, ending: int = 0) -> bool:
    """The rule, as it is written: by tiles of a twelfth of the window, the newest one exact."""
    tile_ms = length // 12
    tile = visible // tile_ms
    if ending == 0:
        return visible < asked and tile >= (asked - length) // tile_ms
    return (asked - ending - length) // tile_ms <= tile <= (asked - ending) // tile_ms - 1


class Plain:
    """The rule record by record, for one question at a time."""

    def __init__(self, truth: Truth) -> None:
        self.flights = truth.flights.to_dicts()
        self.weather = truth.weather.to_dicts()

    def row(self, question: dict) -> list[float]:
        asked = question["asked"]
        day = 24 * HOUR_MS

        def departures(*names: str) -> list[tuple[int, int]]:
            return self._told(question, names, "departed", "departure_delay")

        def arrivals(*names: str) -> list[tuple[int, int]]:
            return self._told(question, names, "arrived", "arrival_delay")

        def asks(*names: str) -> list[tuple[int, int]]:
            return [(one["asked"], 0) for one in self.flights if all(one[name] == question[name] for name in names)]

        def mean(told: list[tuple[int, int]], length: int, low: int, high: int) -> float:
            values = [min(max(delay, low), high) for at, delay in told if in_window(at, asked, length)]
            return sum(values) / len(values) if values else math.nan

        def late(told: list[tuple[int, int]], length: int) -> float:
            values = [delay >= 15 for at, delay in told if in_window(at, asked, length)]
            return sum(values) / len(values) if values else math.nan

        def count(told: list[tuple[int, int]], length: int, ending: int = 0) -> float:
            return float(sum(in_window(at, asked, length, ending) for at, _ in told))

        def newest(*logs: list[tuple[int, int]]) -> tuple[int, int] | None:
            before = [one for log in logs for one in log if one[0] < asked]
            return max(before, key=lambda one: one[0]) if before else None

        def age(*logs: list[tuple[int, int]], within: int | None = None) -> float:
            found = newest(*logs)
            return math.nan if found is None or (within and found[0] < asked - within) else (asked - found[0]) / 1000

        line = ("carrier", "origin", "destination", "scheduled")
        last_arrival = newest(arrivals("tail"))
        fresh = last_arrival is not None and last_arrival[0] >= asked - 7 * day
        local = datetime.fromtimestamp(question["departs"] / 1000, NEW_YORK)
        reports = [(one["visible"], 0) for one in self.weather if one["origin"] == question["origin"]]
        return [
            age(departures("tail"), within=7 * day),
            age(arrivals("tail"), within=7 * day),
            float(min(max(last_arrival[1], -30), 240)) if fresh else math.nan,
            count(departures("tail"), 12 * HOUR_MS),
            mean(arrivals("tail"), 7 * day, -30, 240),
            count(departures("origin"), HOUR_MS),
            mean(departures("origin"), HOUR_MS, -15, 240),
            late(departures("origin"), 4 * HOUR_MS),
            count(asks("origin"), 3 * HOUR_MS, HOUR_MS) - count(departures("origin"), 3 * HOUR_MS),
            mean(departures("carrier"), 6 * HOUR_MS, -15, 240),
            late(arrivals("carrier"), day),
            mean(arrivals("destination"), 3 * HOUR_MS, -30, 240),
            mean(arrivals("destination"), day, -30, 240),
            late(arrivals("destination"), 7 * day),
            mean(arrivals(*line), 28 * day, -30, 240),
            *[self._measure(name, question) for name in MEASURES],
            local.hour * 60 + local.minute,
            local.weekday(),
            question["duration"],
            age(departures("tail"), arrivals("tail")),
            age(departures("origin"), asks("origin")),
            age(departures("carrier"), arrivals("carrier")),
            age(arrivals("destination")),
            age(arrivals(*line)),
            age(reports),
        ]

    def _told(self, question: dict, names: tuple[str, ...], time: str, delay: str) -> list[tuple[int, int]]:
        mine = [one for one in self.flights if one[time] is not None and all(one[name] == question[name] for name in names)]
        return [(one[time], one[delay]) for one in mine]

    def _measure(self, name: str, question: dict) -> float:
        asked = question["asked"]
        told = [one for one in self.weather if one["origin"] == question["origin"] and one[name] is not None]
        seen = [one for one in told if asked - 6 * HOUR_MS <= one["visible"] < asked]
        return max(seen, key=lambda one: one["visible"])[name] if seen else math.nan


@pytest.mark.parametrize("seed", range(4))
def test_recomputation_equals_the_rule_record_by_record(seed):
    """
    Sorted sums and searches give the bytes that counting tile by tile gives, wherever there is no tie.
    """
    truth = generated(seed)
    rows = recompute_rows(truth)
    plain = Plain(truth)
    right = np.array([plain.row(question) for question in truth.flights.iter_rows(named=True)], np.float64).astype("<f4")
    right[rows.ties, FEATURES.index("last_arrival_delay")] = rows.matrix[rows.ties, FEATURES.index("last_arrival_delay")]
    assert [row.tobytes() for row in right] == rows.packed()


def test_a_row_knows_nothing_that_came_later():
    """
    Taking away all that is visible from the middle on changes no earlier row.
    """
    truth = generated(9)
    middle = truth.flights["asked"][150]
    told = [pl.when(pl.col(name) < middle).then(pl.col(name)).alias(name) for name in ("departed", "arrived")]
    past = Truth(truth.flights.with_columns(told), truth.weather.filter(pl.col("visible") < middle))
    early = (truth.flights["asked"] <= middle).to_numpy()
    assert recompute_rows(truth).matrix[early].tobytes() == recompute_rows(past).matrix[early].tobytes()


def as_served(truth: Truth, rows: Rows) -> dict[str, bytes]:
    return dict(zip(truth.flights["id"].to_list(), rows.packed(), strict=True))


def test_equal_rows_are_found_equal():
    """
    Every flight is compared, and none differs.
    """
    truth = generated(3)
    rows = recompute_rows(truth)
    found = compare(truth.flights["id"].to_list(), rows, as_served(truth, rows))
    assert (found.compared, found.equal, found.missing) == (300, 300, 0)


def test_one_changed_bit_is_found_and_named():
    """
    The last bit of one age is enough, and the words say which age of which flight.
    """
    truth = generated(3)
    rows = recompute_rows(truth)
    served = as_served(truth, rows)
    wrong = bytearray(served["F100"])
    wrong[4 * (len(FEATURES) + VIEWS.index("line"))] ^= 1
    found = compare(truth.flights["id"].to_list(), rows, {**served, "F100": bytes(wrong)})
    assert (found.equal, dict(found.unequal)) == (299, {"line": 1})
    assert found.examples[0].startswith("F100: line ")


def test_a_missing_row_is_counted():
    """
    A flight that was asked and has no row is no equal row.
    """
    truth = generated(3)
    rows = recompute_rows(truth)
    served = as_served(truth, rows)
    del served["F7"]
    assert compare(truth.flights["id"].to_list(), rows, served).missing == 1


def test_another_nan_is_another_row():
    """
    Bytes are compared, so a NaN with its sign set is not the NaN of the rule.
    """
    truth = generated(3)
    rows = recompute_rows(truth)
    name = FEATURES.index("line_arrival_delay_28d")
    at = int(np.flatnonzero(np.isnan(rows.matrix[:, name]))[0])
    served = as_served(truth, rows)
    other = bytearray(served[f"F{at}"])
    other[4 * name : 4 * name + 4] = (0xFFC00000).to_bytes(4, "little")
    assert compare(truth.flights["id"].to_list(), rows, {**served, f"F{at}": bytes(other)}).unequal[FEATURES[name]] == 1


def test_digest_depends_on_the_rows_alone():
    """
    The order in which they were read changes nothing, a byte changes it.
    """
    rows = {"A": b"1", "B": b"2"}
    assert digest(rows) == digest(dict(reversed(rows.items())))
    assert digest(rows) != digest({**rows, "B": b"3"})


def test_real_flights_have_rows_of_the_declared_width():
    """
    A week of the data: 22 features and six ages a row, ascending by the time of the question.
    """
    truth = read_truth(7)
    assert (truth.flights.height, len(FEATURES) + len(VIEWS)) == recompute_rows(truth).matrix.shape
    assert truth.flights["asked"].is_sorted() and truth.flights["asked"].max() < START_MS + 7 * DAY_MS
