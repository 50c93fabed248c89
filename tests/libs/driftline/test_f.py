"""
Expressions remember what was written; durations are what they say.
"""

from __future__ import annotations

import pytest

from driftline import Stream, f
from driftline.errors import Invalid

arrivals = Stream("arrival.avsc", topic="arrivals", id="flight_id", key="tail", time="arrived_at")


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("250ms", 250),
        ("15s", 15_000),
        ("15m", 900_000),
        ("1h", 3_600_000),
        ("7d", 604_800_000),
        ("2w", 1_209_600_000),
        ("60m ago", 3_600_000),
    ],
)
def test_a_duration_is_a_whole_number_and_a_unit(text: str, ms: int) -> None:
    """
    All units that a person would write are known, and `ago` may follow.
    """
    assert ms == f.duration_ms(text)


@pytest.mark.parametrize("text", ["", "h", "1", "1.5h", "one hour", "-1h", "1 hour", True, None])
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    """
    The words show how to write one.
    """
    with pytest.raises(Invalid, match=r'Write a whole number and a unit .* "7d"'):
        f.duration_ms(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ms", "text"), [(86_400_000, "1 day"), (5_400_000, "90 minutes"), (1_500, "1500 milliseconds"), (7_200_000, "2 hours")]
)
def test_a_duration_is_told_in_the_largest_unit_that_fits(ms: int, text: str) -> None:
    """
    Messages speak of days and hours, not of milliseconds.
    """
    assert text == f.duration_text(ms)


def test_comparing_a_field_gives_a_condition() -> None:
    """
    Each comparison keeps field, operator and value.
    """
    field = arrivals.delay_min
    conditions = [field >= 1, field > 2, field <= 3, field < 4, field == 5, field != 6]
    assert [(one.field, one.op, one.value) for one in conditions] == [
        ("delay_min", op, value) for value, op in enumerate([">=", ">", "<=", "<", "==", "!="], 1)
    ]


def test_a_field_or_condition_is_no_truth() -> None:
    """
    `and` between two conditions would silently drop one of them.
    """
    with pytest.raises(Invalid, match="is a condition, not a truth"):
        assert (arrivals.delay_min > 1) and (arrivals.delay_min < 5)
    with pytest.raises(Invalid, match="is a field, not a value"):
        assert arrivals.delay_min


def test_a_field_that_is_named_like_a_setting_is_reached_by_brackets() -> None:
    """
    `arrivals.time` is the setting; `arrivals["time"]` is the field.
    """
    assert arrivals.time == "arrived_at"
    assert (arrivals["time"] > 3).field == "time"


def test_sums_and_differences_keep_every_sign() -> None:
    """
    Aggregates add up in any nesting.
    """
    one, two, three = (f.count(f"{hours}h") for hours in (1, 2, 3))
    signs = [(sign, aggregate.window_ms) for sign, aggregate in f.terms_of(one - (two - three) + one)]
    assert signs == [(1.0, 3_600_000), (-1.0, 7_200_000), (1.0, 10_800_000), (1.0, 3_600_000)]


def test_only_aggregates_add_up() -> None:
    """
    A number is no feature.
    """
    with pytest.raises(Invalid, match="only aggregates"):
        f.count("1h") + 3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: f.clip("x", 5, 5), "lower bound comes first"),
        (lambda: f.count(arrivals), "'Stream'|no duration|is no duration"),
        (lambda: f.rate("late", "1h"), "f.rate takes a condition"),  # type: ignore[arg-type]
        (lambda: f.distinct("kind", "1h", most=0), "between 1 and 4096"),
    ],
)
def test_a_function_that_is_used_wrongly_says_how_it_is_meant(made: object, words: str) -> None:
    """
    What can be told at once is not left for later.
    """
    assert callable(made)
    with pytest.raises(Invalid, match=words):
        made()


def test_an_expression_knows_where_it_was_written() -> None:
    """
    The place is the call itself, also where it spans lines.
    """
    aggregate = f.mean(
        "delay_min",
        "7d",
    )
    assert aggregate.place.file == __file__
    assert aggregate.place.text.replace(" ", "") == 'f.mean("delay_min","7d",)'
