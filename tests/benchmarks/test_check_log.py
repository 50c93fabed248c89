"""The checker of the whole log accepts what is right, and refuses each way of being wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from check_log import (
    Copy,
    Found,
    Recomputed,
    check_events,
    check_examples,
    check_features,
    check_journal,
    check_letters,
    check_predictions,
    recompute,
)
from merge_rule import STREAMS, TICK_MS, UPSTREAM, ClockRecord, Expected, Taken, Tick, expected, murmur2

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
START = 1_357_000_200_000  # a multiple of the tick
PARTITIONS = 2
Events = dict[int, list[Copy]]


class Schemas:
    """A registry that knows the arrivals' schema, as number 7."""

    def get(self, schema_id: int) -> Any:
        return fastavro.parse_schema(STREAMS[2].fields()) if schema_id == 7 else None


def flight(number: int, minute: int, **wrong: Any) -> bytes:
    at = START + minute * MINUTE_MS
    told = {
        "flight_id": f"F{number}",
        "asked_at": at,
        "departs_at": at + HOUR_MS,
        "tail": f"N{number % 5}",
        "origin": "JFK",
        "destination": "LAX",
        "carrier": "UA",
        "scheduled_departure": 900,
        "duration_min": 300,
    }
    return json.dumps(told | wrong).encode()


def departure(number: int, minute: int) -> bytes:
    told = {"flight_id": f"F{number}", "departed_at": START + minute * MINUTE_MS, "tail": f"N{number % 5}"}
    return json.dumps(told | {"origin": "JFK", "destination": "LAX", "carrier": "UA", "departure_delay_min": number}).encode()


def upstream() -> dict[tuple[str, int], list[tuple[int, bytes]]]:
    """Forty flights in ten hours, each gone an hour later; one flight comes twice, one is no JSON, one is from the future."""
    flights = [flight(number, number * 15) for number in range(40)]
    flights[7:7] = [flights[6], b"{", flight(99, 60 * 24)]
    departures = [departure(number, number * 15 + 61) for number in range(36)]
    return {
        ("flights", 0): list(enumerate(flights[0::2])),
        ("flights", 1): list(enumerate(flights[1::2])),
        ("departures", 0): list(enumerate(departures)),
    }


def clock(logs: dict[tuple[str, int], list[tuple[int, bytes]]]) -> list[ClockRecord]:
    """Two records: two fifths of everything up to five hours, then all of it."""
    half = {place: len(records) * 2 // 5 for place, records in logs.items()}
    return [
        ClockRecord(START + 5 * HOUR_MS, 0, half),
        ClockRecord(START + 11 * HOUR_MS, 3, {place: len(records) for place, records in logs.items()}),
    ]


def merged() -> Expected:
    logs = upstream()
    return expected(logs, clock(logs), Schemas())


def on_the_log(wanted: Expected) -> Events:
    """What intake must have written, as the checker reads it."""
    found: Events = {partition: [] for partition in range(PARTITIONS)}
    for one in wanted.log:
        for partition, copies in found.items():
            copies.append((len(copies), *event_of(one, partition)))
    return found


def event_of(one: Taken | Tick, partition: int) -> tuple[str, dict[str, Any]]:
    if isinstance(one, Tick):
        place = {"source": 0, "partition": 0, "offset": one.number}
        return "Tick", {**place, "time": one.number * TICK_MS, "deployment": one.deployment}
    place = {"source": UPSTREAM + one.stream, "partition": one.partition, "offset": one.offset}
    told = {name: getattr(one, name) for name in ("id", "key", "time", "visible", "body")}
    return "Event", {**place, **told, "home": murmur2(one.key.encode()) % PARTITIONS == partition}


@pytest.fixture
def wanted() -> Expected:
    """The log as it must be."""
    return merged()


@pytest.fixture
def events(wanted: Expected) -> Events:
    """The log as it is."""
    return on_the_log(wanted)


@pytest.fixture
def told(wanted: Expected, events: Events) -> Recomputed:
    """What follows from it."""
    return recompute(wanted, events)


def test_the_merge_is_by_visible_time_with_ticks_before_their_time(wanted: Expected):
    """
    Records of the second clock record come after everything of the first; a tick precedes what is visible at its time.
    """
    times = [one.number * TICK_MS if isinstance(one, Tick) else one.visible for one in wanted.log]
    middle = next(at for at, one in enumerate(wanted.log) if isinstance(one, Tick) and one.number * TICK_MS == START + 5 * HOUR_MS)
    assert times[: middle + 1] == sorted(times[: middle + 1])
    assert times[middle + 1] < times[middle]  # half of the records were not there yet
    numbers = [one.number for one in wanted.log if isinstance(one, Tick)]
    assert numbers == list(range(START // TICK_MS, (START + 11 * HOUR_MS) // TICK_MS + 1))
    assert sum(isinstance(one, Taken) for one in wanted.log) == 41 + 36


def test_what_cannot_be_taken_is_refused_with_its_reason(wanted: Expected):
    """
    No JSON, and a time beyond the clock.
    """
    assert sorted((one.topic, one.reason) for one in wanted.refused) == [("flights", "future"), ("flights", "undecodable")]


def test_the_hash_is_kafkas():
    """
    The values that Kafka's own tests have.
    """
    assert [murmur2(key) for key in (b"21", b"foobar", b"a-little-bit-long-string")] == [
        -973932308 & 0x7FFFFFFF,
        -790332482 & 0x7FFFFFFF,
        -985981536 & 0x7FFFFFFF,
    ]


def test_a_right_log_is_accepted(wanted: Expected, events: Events):
    """
    Nothing is found wrong where nothing is.
    """
    found = Found()
    check_events(wanted, events, found)
    assert found.violations == []
    assert found.figures["events"] == 77


def drop_one(copies: list[Copy]) -> None:
    del copies[20]


def swap_two(copies: list[Copy]) -> None:
    copies[20], copies[21] = copies[21], copies[20]


def alter_a_byte(copies: list[Copy]) -> None:
    event = next(fields for _, name, fields in copies[20:] if name == "Event")
    event["body"] = event["body"][:-1] + bytes([event["body"][-1] ^ 1])


def name_another_deployment(copies: list[Copy]) -> None:
    next(fields for _, name, fields in copies if name == "Tick")["deployment"] = 2


def tell_another_home(copies: list[Copy]) -> None:
    event = next(fields for _, name, fields in copies if name == "Event")
    event["home"] = not event["home"]


def add_one(copies: list[Copy]) -> None:
    copies.insert(5, (5, "Tick", {**copies[0][2], "offset": 1}))


@pytest.mark.parametrize("wrong", [drop_one, swap_two, alter_a_byte, name_another_deployment, tell_another_home, add_one])
def test_a_wrong_log_is_refused(wanted: Expected, events: Events, wrong: Callable[[list[Copy]], None]):
    """
    One record less, two in another order, one bit, one tick's deployment, one record's home, one record more.
    """
    wrong(events[1])
    found = Found()
    check_events(wanted, events, found)
    assert len(found.violations) == 1
    assert "events[1]" in found.violations[0]


def features_of(told: Recomputed) -> Events:
    """What the feature service must have written."""
    return {
        partition: [
            *(
                (n, "Row", {"event_offset": one.event_offset, "id": one.id, "deployment": one.deployment, "row": one.row})
                for n, one in enumerate(questions)
            ),
            *((0, "Tick", {"offset": number}) for number in told.ticks[partition]),
        ]
        for partition, questions in told.questions.items()
    }


def answers_of(told: Recomputed) -> dict[tuple[int, int, int], dict[str, Any]]:
    """What inference must have answered."""
    return {
        (partition, one.event_offset, 0): {
            "event_offset": one.event_offset,
            "index": 0,
            "id": one.id,
            "row": one.row,
            "deployment": one.deployment,
            "digest": "",
            "score": 0.25,
        }
        for partition, questions in told.questions.items()
        for one in questions
    }


def journal_of(told: Recomputed) -> Events:
    """What is on the journal: answers, and ticks of both writers."""
    found: Events = {partition: [] for partition in told.questions}
    for (partition, _, _), answer in answers_of(told).items():
        found[partition].append((0, "Answer", answer))
    for partition, numbers in told.ticks.items():
        found[partition] += [(0, "Tick", {"offset": number, "writer": writer}) for writer in (2, 3) for number in numbers]
        outcomes = told.outcomes[partition]
        found[partition] += [(0, "Outcome", dict(zip(("event_offset", "id", "label", "visible"), one, strict=True))) for one in outcomes]
    return found


def examples_of(told: Recomputed) -> Events:
    """What the labeler must have written: no flight has landed, so silence says that all are late."""
    found: Events = {partition: [] for partition in told.questions}
    for (partition, _, _), answer in answers_of(told).items():
        label = {"answer_index": 0, "revision": 0, "label": 1, **{name: answer[name] for name in ("event_offset", "id", "score", "digest")}}
        found[partition].append((0, "Example", label))
    return found


def predictions_of(told: Recomputed) -> dict[int, list[dict[str, Any]]]:
    """What consumers must have got."""
    return {
        partition: [{"event_offset": one.event_offset, "id": one.id, "score": 0.25} for one in questions]
        for partition, questions in told.questions.items()
    }


def test_each_question_is_asked_once_and_rows_carry_the_ticks_deployment(told: Recomputed):
    """
    The second copy of a flight makes no row.
    """
    asked = [one for questions in told.questions.values() for one in questions]
    assert sorted(one.id for one in asked) == sorted(f"F{number}" for number in range(40))
    assert {one.deployment for one in asked} == {0, 3}


def test_what_follows_from_the_log_is_accepted(told: Recomputed):
    """
    Nothing is found wrong where nothing is.
    """
    found = Found()
    check_features(told, features_of(told), found)
    check_journal(told, journal_of(told), {}, found)
    check_predictions(told, predictions_of(told), answers_of(told), found)
    check_examples(told, examples_of(told), answers_of(told), found)
    assert found.violations == []


def row_altered(copies: list[Copy]) -> None:
    copies[3][2]["row"] = b"\x01" + copies[3][2]["row"][1:]


def dropped(copies: list[Copy]) -> None:
    del copies[3]


def swapped(copies: list[Copy]) -> None:
    copies[3], copies[4] = copies[4], copies[3]


@pytest.mark.parametrize("wrong", [row_altered, dropped, swapped])
def test_wrong_rows_are_refused(told: Recomputed, wrong: Callable[[list[Copy]], None]):
    """
    A byte, a row less, two in another order.
    """
    features, journal, found = features_of(told), copy.deepcopy(journal_of(told)), Found()
    wrong(features[0])
    wrong(journal[0])
    check_features(told, features, found)
    check_journal(told, journal, {}, found)
    assert [("features[0]" in words, "journal[0]" in words) for words in found.violations] == [(True, False), (False, True)]


def test_wrong_predictions_and_labels_are_refused(told: Recomputed):
    """
    A prediction less, another score, another label, an example less.
    """
    predictions, examples, found = predictions_of(told), examples_of(told), Found()
    del predictions[0][2]
    predictions[1][2]["score"] = 0.26
    check_predictions(told, predictions, answers_of(told), found)
    assert ["lost" in words for words in found.violations] == [True, False]
    examples[0][1][2]["label"] = 0
    del examples[1][1]
    check_examples(told, examples, answers_of(told), found)
    assert len(found.violations) == 4


def test_wrong_dead_letters_are_refused(wanted: Expected):
    """
    One that is missing, and one with another reason.
    """
    letters = [
        (0, "DeadLetter", {name: getattr(one, name) for name in ("topic", "partition", "offset", "reason", "value")})
        for one in wanted.refused
    ]
    right, missing, another = Found(), Found(), Found()
    check_letters(wanted.refused, {0: letters}, right)
    check_letters(wanted.refused, {0: letters[1:]}, missing)
    letters[0][2]["reason"] = "contract"
    check_letters(wanted.refused, {0: letters}, another)
    assert right.violations == []
    assert len(missing.violations) == len(another.violations) == 1
