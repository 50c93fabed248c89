"""Rows that are written by column are the command that the protocol's own packer would make of them."""

from __future__ import annotations

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from driftline.stream.batch import Rows
from driftline.stream.store import Mset


@given(st.dictionaries(st.binary(max_size=40), st.binary(max_size=1_200), max_size=40), st.binary(max_size=30))
def test_the_bytes_are_those_of_the_protocol(rows: dict[bytes, bytes], prefix: bytes):
    """
    Empty names and rows, lengths of one digit to four, no rows at all.
    """
    columns = Rows.of(rows)
    command = Mset(prefix, columns.names, columns.rows, b"ledger", b"entry")
    assert command.packed() == hiredis.pack_command(tuple(command))
    assert tuple(command)[1:-2] == tuple(word for name, row in rows.items() for word in (prefix + name, row))


@given(st.dictionaries(st.binary(max_size=9), st.none() | st.binary(max_size=9), max_size=9))
def test_rows_by_column_are_the_mapping_that_they_came_from(rows: dict[bytes, bytes | None]):
    """
    Deleted ones among them, and with one more.
    """
    assert Rows.of(rows) == rows
    assert list(Rows.of(rows)) == list(rows)
    more = {name: row for name, row in rows.items() if name != b"one more"}
    assert Rows.of(more).plus(b"one more", b"1") == more | {b"one more": b"1"}
