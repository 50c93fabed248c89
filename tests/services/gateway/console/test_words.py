"""Numbers as people read them."""

from __future__ import annotations

import pytest

from services.gateway.console import words


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (words.number(1234567), "1,234,567"),
        (words.number(0.12345, 2), "0.12"),
        (words.number(None), "–"),
        (words.number(float("nan")), "–"),
        (words.signed(-0.0124, 4), "−0.0124"),
        (words.share(0.2545), "25.4 %"),
        (words.share(1.0, 0), "100 %"),
        (words.rate(0.0), "0/s"),
        (words.rate(2.34), "2.3/s"),
        (words.rate(1234.5), "1,234/s"),
        (words.span(0), "0 s"),
        (words.span(3.21), "3.2 s"),
        (words.span(90), "90 s"),
        (words.span(86_400), "1 d"),
        (words.span(7_200), "2 h"),
        (words.span(5_400), "90 min"),
        (words.value(123456.0), "123,456"),
        (words.value(None), "missing"),
        (words.moment(1_359_417_600_000), "2013-01-29 00:00"),
        (words.moment(0), "–"),
        (words.day(1_359_417_600_000), "2013-01-29"),
        (words.plural(1, "record"), "1 record"),
        (words.plural(2_000, "person", "people"), "2,000 people"),
    ],
)
def test_a_number_is_told_with_its_unit(told: str, expected: str) -> None:
    """
    And a dash where it is not known.
    """
    assert told == expected
