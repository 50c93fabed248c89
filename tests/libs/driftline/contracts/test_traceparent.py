"""W3C Trace Context is read strictly, written in one form, and never a reason to refuse anything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.contracts.traceparent import accepted, foreign, headers, joined, one_of, sampled, taken, trace_id
from driftline.stream.batch import Varlen

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"


def read(value: str) -> str | None:
    """In its one form; None when it is ignored."""
    found = accepted(Varlen.of([value]))
    return None if found is None else found.texts()[0]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        (f"00-{TRACE}-{PARENT}-ff", GOOD),
        (f"00-{TRACE}-{PARENT}-02", f"00-{TRACE}-{PARENT}-00"),
        (f"00-{TRACE}-{PARENT}-0b", GOOD),
        (f"cc-{TRACE}-{PARENT}-01", GOOD),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", GOOD),
        (f"01-{TRACE}-{PARENT}-00-", f"00-{TRACE}-{PARENT}-00"),
    ],
)
def test_what_the_recommendation_lets_in_is_written_in_one_form(value: str, written: str) -> None:
    """
    Flags that are not known are set to zero, and a version that is not known yet is read as far as 00 goes, and written as 00.
    """
    assert read(value) == written
    assert read(written) == written


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        GOOD[:-1],
        f"{GOOD}-",
        f"{GOOD}-what-the-future-will-not-be-like",
        f"{GOOD}.",
        f" {GOOD}",
        f"{GOOD} ",
        f"ff-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.what",
        f"0-{TRACE}-{PARENT}-01",
        f".0-{TRACE}-{PARENT}-01",
        f"0X-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT[:-1]}.-01",
        f"00-{TRACE}-{PARENT}-0",
        f"00-{TRACE}-{PARENT}-.0",
        f"00-{TRACE}-{PARENT}-0X",
        f"00_{TRACE}_{PARENT}_01",
    ],
)
def test_what_does_not_parse_is_ignored(value: str) -> None:
    """
    The cases of the working group's own test suite are among them.
    """
    assert read(value) is None
    assert one_of([value.encode()]) is None


@given(st.lists(st.none() | st.sampled_from([GOOD, GOOD[:-2] + "00", "cc" + GOOD[2:], GOOD + "-", "x" * 55]) | st.text(max_size=60)))
def test_a_column_is_read_value_by_value(values: list[str | None]) -> None:
    """
    Each as it is by itself, nulls and what is ignored among them; and nothing that was read is foreign.
    """
    found = accepted(Varlen.optional(values))
    alone = [None if value is None else read(value) for value in values]
    if found is None:
        assert not any(alone)
        return
    assert found.optional_texts() == alone
    assert not foreign(found).any()
    assert sampled(found).texts() == [value for value in alone if value and value.endswith("1")]


@given(st.binary(max_size=70) | st.sampled_from([GOOD.encode(), GOOD[:-2].encode() + b"03", b"01" + GOOD[2:].encode()]))
def test_a_value_is_foreign_unless_it_is_what_would_be_written_for_it(value: bytes) -> None:
    """
    Whatever the bytes are.
    """
    assert foreign(Varlen.of([value])).tolist() == [one_of([value]) != value]
    assert not foreign(Varlen.nulls(1)).any()


def test_more_than_one_says_nothing() -> None:
    """
    Nor does none, nor a header without a value.
    """
    assert one_of([GOOD.encode()]) == GOOD.encode()
    assert [one_of(values) for values in ([GOOD.encode()] * 2, [], [None])] == [None] * 3


def test_the_id_of_the_trace_is_its_32_digits() -> None:
    """
    Of bytes as of text.
    """
    assert trace_id(GOOD) == trace_id(GOOD.encode()) == TRACE


def test_columns_that_are_not_there_are_joined_as_nulls() -> None:
    """
    And none at all stays none.
    """
    one = Varlen.of([GOOD])
    found = joined([(None, 2), (one, 1)])
    assert found is not None and found.optional_texts() == [None, None, GOOD]
    assert joined([(None, 2), (None, 0)]) is None
    assert taken(None, np.array([0])) is None


def test_headers_are_made_for_those_that_have_a_trace() -> None:
    """
    As Kafka has them in a record: how many there are, and of each the lengths and bytes of name and value.
    """
    made = headers(Varlen.optional([None, GOOD]))
    assert made.get(0) is None
    assert made[1] == bytes([2, 22]) + b"traceparent" + bytes([110]) + GOOD.encode()
