"""
What is read of records: bounds, conditions, keys and the question's own inputs, with null kept null.
"""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from driftline.features import readings
from driftline.pipeline import Condition, Direct, Reading
from driftline.stream.batch import Varlen

NAN = float("nan")
NEW_YORK = ZoneInfo("America/New_York")


def nullable(*values: str | None) -> Varlen:
    column = Varlen.of(value or "" for value in values)
    return Varlen(column.data, np.where([value is None for value in values], -1, column.starts), column.ends)


def test_a_number_is_kept_within_its_bounds() -> None:
    """
    Clipping moves what is outside to the nearest bound; null stays null.
    """
    column = np.array([-20.0, 3.0, 999.0, NAN])
    np.testing.assert_array_equal(readings.number(column, Reading("x", -15, 240)), [-15, 3, 240, NAN])


@pytest.mark.parametrize(
    ("op", "holds"), [(">=", [0, 1, 1]), (">", [0, 0, 1]), ("<=", [1, 1, 0]), ("<", [1, 0, 0]), ("==", [0, 1, 0]), ("!=", [1, 0, 1])]
)
def test_a_condition_holds_or_not_and_is_missing_for_null(op: str, holds: list[int]) -> None:
    """
    Every comparison is told as 1 or 0, and where the field is null as neither.
    """
    found = readings.holds(np.array([14.0, 15.0, 16.0, NAN]), Condition("x", op, 15))
    np.testing.assert_array_equal(found, [*holds, NAN])


def test_text_and_booleans_are_compared_with_their_like() -> None:
    """
    Text is equal or not; a boolean is compared as 0 or 1.
    """
    kinds = nullable("sale", None, "refund")
    np.testing.assert_array_equal(readings.holds(kinds, Condition("kind", "==", "refund")), [0, NAN, 1])
    np.testing.assert_array_equal(readings.holds(kinds, Condition("kind", "!=", "refund")), [1, NAN, 0])
    np.testing.assert_array_equal(readings.holds(np.array([True, False]), Condition("x", "==", True)), [1, 0])


def test_an_entity_is_named_by_its_fields_in_order() -> None:
    """
    Text and whole numbers make one key; a null in any field makes none.
    """
    columns = {"carrier": Varlen.of(["UA", "AA", "B6"]), "time": np.array([515.0, -5.0, NAN])}
    keys = readings.entity(columns, ["carrier", "time"])
    assert keys.take(np.array([0, 1])).tolist() == [b"UA\x1f515", b"AA\x1f-5"]
    assert keys.starts[2] == -1


@pytest.mark.parametrize("text", ["2013-01-01T00:30", "2013-03-10T01:59", "2013-03-10T03:00", "2013-07-07T23:59", "2013-11-03T00:30"])
def test_minute_of_day_and_weekday_are_those_of_the_place(text: str) -> None:
    """
    The clock on the wall counts, in winter and in summer; Monday is 0.
    """
    local = datetime.fromisoformat(text).replace(tzinfo=NEW_YORK)
    column = np.array([int(local.timestamp() * 1000), int(local.timestamp() * 1000) + 59_999])
    minutes = readings.direct(column, Direct("m", "minute_of_day", "at", "America/New_York"))
    days = readings.direct(column, Direct("d", "weekday", "at", "America/New_York"))
    assert minutes.tolist() == [local.hour * 60 + local.minute] * 2
    assert days.tolist() == [local.weekday()] * 2


def test_inputs_of_the_question_are_missing_where_they_are_null() -> None:
    """
    A null number or time is missing in the row.
    """
    column = np.array([NAN, 86_400_000.0])
    np.testing.assert_array_equal(readings.direct(column, Direct("d", "weekday", "at", "UTC")), [NAN, 4])
    np.testing.assert_array_equal(readings.direct(column, Direct("v", "value", "x", "")), column)
    np.testing.assert_array_equal(readings.direct(np.array([True, False]), Direct("v", "value", "x", "")), [1, 0])


def test_a_time_that_no_calendar_has_is_missing():
    """
    The row says so; it does not stop the fold of its neighbours.
    """
    wanted = Direct("m", "minute_of_day", "at", "America/New_York")
    times = np.array([2**63 - 1, -(2**63), 1_700_000_000_000], np.int64)
    assert np.isnan(readings.direct(times, wanted)).tolist() == [True, True, False]
