"""
What passes between the loop and a core: a `Batch` of one partition in, `Effects` out. Both are values, by column.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Varlen:
    """
    A column of n byte strings that lie in one buffer: value i is `data[starts[i]:ends[i]]`. Null is a start of -1.

    Bytes of messages go from log to log as slices of what was polled; Python objects are made only where asked for.
    """

    data: npt.NDArray[np.uint8]
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, values: Iterable[bytes | str]) -> Varlen:
        """Join `values` into one buffer; text becomes UTF-8."""
        parts = [value.encode() if isinstance(value, str) else value for value in values]
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)), dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if parts else ends
        return cls(np.frombuffer(b"".join(parts), np.uint8), starts, ends)

    @classmethod
    def optional(cls, values: Sequence[bytes | str | None]) -> Varlen:
        """As `of`, of values that may be None, which is null."""
        made = cls.of(b"" if value is None else value for value in values)
        absent = np.fromiter((value is None for value in values), np.bool_, len(values))
        return cls(made.data, np.where(absent, -1, made.starts), np.where(absent, 0, made.ends)) if absent.any() else made

    @classmethod
    def repeat(cls, value: bytes | str, n: int) -> Varlen:
        """`value` n times, stored once."""
        data = np.frombuffer(value.encode() if isinstance(value, str) else value, np.uint8)
        return cls(data, np.zeros(n, np.int64), np.full(n, len(data), np.int64))

    @classmethod
    def concat(cls, columns: Sequence[Varlen]) -> Varlen:
        """Several columns, one after the other."""
        if len(columns) == 1:
            return columns[0]
        shifts = np.cumsum([0] + [len(column.data) for column in columns[:-1]])
        starts = [np.where(column.starts < 0, -1, column.starts + shift) for column, shift in zip(columns, shifts, strict=True)]
        ends = [np.where(column.starts < 0, 0, column.ends + shift) for column, shift in zip(columns, shifts, strict=True)]
        return cls(np.concatenate([column.data for column in columns]), np.concatenate(starts), np.concatenate(ends))

    @classmethod
    def nulls(cls, n: int) -> Varlen:
        """`n` times nothing."""
        return cls(np.zeros(0, np.uint8), np.full(n, -1, np.int64), np.zeros(n, np.int64))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> bytes:
        return self.data[self.starts[index] : self.ends[index]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.tolist())

    def get(self, index: int) -> bytes | None:
        """One value; None for null."""
        return self[index] if self.starts[index] >= 0 else None

    @property
    def arrays(self) -> tuple[npt.NDArray[np.uint8], Ints, Ints]:
        """Data, starts and ends as compiled loops take them: contiguous."""
        return np.ascontiguousarray(self.data), np.ascontiguousarray(self.starts), np.ascontiguousarray(self.ends)

    @property
    def lengths(self) -> Ints:
        """How many bytes each value has; a null has none."""
        return np.where(self.starts < 0, 0, self.ends - self.starts)

    def null_as_empty(self) -> Varlen:
        """An empty string in place of null, for what keeps lengths alone."""
        return Varlen(self.data, np.maximum(self.starts, 0), np.maximum(self.ends, 0))

    def empty_as_null(self) -> Varlen:
        """The inverse, of a column in which nothing is empty."""
        empty = self.starts == self.ends
        return Varlen(self.data, np.where(empty, -1, self.starts), np.where(empty, 0, self.ends))

    def take(self, index: npt.NDArray[Any]) -> Varlen:
        """The values at `index` (positions or a mask), still in the same buffer."""
        return Varlen(self.data, self.starts[index], self.ends[index])

    def tolist(self) -> list[bytes]:
        """All values as `bytes`, in order; a null is empty."""
        raw = self.data.tobytes()
        return [raw[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]

    def texts(self) -> list[str]:
        """All values decoded from UTF-8."""
        return [value.decode() for value in self.tolist()]

    def optional_texts(self) -> list[str | None]:
        """The same, with None for null."""
        return [text if start >= 0 else None for text, start in zip(self.texts(), self.starts.tolist(), strict=True)]


Column = npt.NDArray[Any] | Varlen | Sequence[Any]


def distinct(values: Ints) -> list[int]:
    """The different ones of n numbers, ascending. In most batches they are all alike, which is seen without sorting."""
    if len(values) and (values == values[0]).all():
        return [int(values[0])]
    found: list[int] = np.unique(values).tolist()
    return found


HEADER = ("source", "partition", "offset", "index", "event_offset", "writer")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """
    The n messages of one kind in a batch, by column, the coordinate's fields among the columns.

    Integers and timestamps (milliseconds) are int64, floats float32 or float64 as in the schema, booleans bool,
    strings, bytes and arrays of strings `Varlen` (an array as Avro encodes it: see `contracts.avro.unpack_strings`);
    fields of any other type, on topics of the control plane, are lists of Python values.
    """

    message: str
    offsets: Ints
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def take(self, index: npt.NDArray[Any]) -> Table:
        """The messages at `index` (positions or a mask)."""
        return Table(self.message, self.offsets[index], {name: take(column, index) for name, column in self.columns.items()})

    def records(self) -> list[dict[str, Any]]:
        """One dict a message, strings decoded: for the control plane and for tests, never for the hot path."""
        plain = {name: _plain(column) for name, column in self.columns.items()}
        return [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]


def take(column: Column, index: npt.NDArray[Any]) -> Column:
    """The values of any kind of column at `index` (positions or a mask)."""
    if isinstance(column, Varlen):
        return column.take(index)
    if isinstance(column, np.ndarray):
        taken: npt.NDArray[Any] = column[index]
        return taken
    positions = np.flatnonzero(index) if index.dtype == np.bool_ else index
    return [column[position] for position in positions.tolist()]


def _plain(column: Column) -> Sequence[Any]:
    if isinstance(column, Varlen):
        texts = [value.decode(errors="replace") for value in column.tolist()]
        return (
            texts if (column.starts >= 0).all() else [None if start < 0 else text for text, start in zip(texts, column.starts, strict=True)]
        )
    return column.tolist() if isinstance(column, np.ndarray) else column


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """
    Consecutive messages of one partition of one log, split by kind; within and across kinds, `offsets` gives the log's order.
    Duplicates (not above the last coordinate of their lane) and undecodable messages are already out.
    """

    partition: int
    first_offset: int
    next_offset: int
    tables: Mapping[str, Table]

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables.values())

    def __getitem__(self, message: str) -> Table | None:
        """The messages of one kind, or None when the batch has none."""
        return self.tables.get(message)

    def head(self, n: int) -> Batch:
        """The first `n` messages, in the log's order; `next_offset` is that of the message after them."""
        offsets = np.sort(np.concatenate([table.offsets for table in self.tables.values()]))
        if n >= len(offsets):
            return self
        return self._between(self.first_offset, int(offsets[n]))

    def without(self, refused: Sequence[Refused]) -> Batch:
        """What is left when the messages that were refused are taken out."""
        offsets = np.array([one.offset for one in refused], np.int64)
        kept = {name: table.take(~np.isin(table.offsets, offsets)) for name, table in self.tables.items()}
        return Batch(self.partition, self.first_offset, self.next_offset, {name: table for name, table in kept.items() if len(table)})

    def tail(self, offset: int) -> Batch:
        """What is left from `offset` on."""
        return self._between(offset, self.next_offset)

    def _between(self, first: int, end: int) -> Batch:
        cut = {name: table.take((table.offsets >= first) & (table.offsets < end)) for name, table in self.tables.items()}
        return Batch(self.partition, first, end, {name: table for name, table in cut.items() if len(table)})


@dataclass(frozen=True, slots=True, eq=False)
class Messages:
    """
    n messages of one kind for one topic, by column as in `Table`, all fields of the schema but none that the loop knows:
    the loop fills in `writer`, and `partition` of the coordinate when it is left out (the batch's own).

    They go to the partition that the batch came from, unless `to` says otherwise. Within a topic the messages of one step
    are sent in ascending `order` (commonly the offset of the cause); ties as listed.
    """

    topic: str  # kind of the topic: "features"
    message: str  # kind of the message: "row"
    keys: Varlen | None
    columns: Mapping[str, Column]
    order: Ints
    to: int | None = None

    def __len__(self) -> int:
        return len(self.order)


class Rows(Mapping[bytes, bytes | None]):
    """
    Rows of the store by column, name i with row i; a null row is to be deleted. The names are distinct. To whoever asks for one by its
    name it is a plain mapping.
    """

    def __init__(self, names: Varlen, rows: Varlen) -> None:
        self.names = names
        self.rows = rows

    @classmethod
    def of(cls, rows: Mapping[bytes, bytes | None]) -> Rows:
        """Any mapping by column."""
        return rows if isinstance(rows, Rows) else cls(Varlen.of(rows), Varlen.optional(list(rows.values())))

    def plus(self, name: bytes, row: bytes) -> Rows:
        """With one row more."""
        return Rows(Varlen.concat([self.names, Varlen.of([name])]), Varlen.concat([self.rows, Varlen.of([row])]))

    @cached_property
    def _by_name(self) -> dict[bytes, bytes | None]:
        return dict(zip(self.names.tolist(), map(self.rows.get, range(len(self.rows))), strict=True))

    def __getitem__(self, name: bytes) -> bytes | None:
        return self._by_name[name]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> ItemsView[bytes, bytes | None]:
        return self._by_name.items()


@dataclass(frozen=True, slots=True)
class Refused:
    """One message of the batch that can never be accepted: the reason from the closed list, and the detail in words."""

    offset: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Effects:
    """
    All that a step wants done. The messages are sent and acked first, then the ledger takes state and position in one write.

    `state` maps a key to its new row, or to None where it is to be deleted. `counts` says what became of the batch's
    messages, by outcome (applied, duplicate, late, tick, broadcast): with the refused ones they add up to `len(batch)`.
    """

    state: Mapping[bytes, bytes | None] = field(default_factory=dict)
    messages: Sequence[Messages] = ()
    refused: Sequence[Refused] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class Core(Protocol):
    """
    The logic of one service over one partition. Pure: no clock, no client, no chance; called by the loop alone, one call at a
    time. After a failure the loop drops the core and builds a new one, so a core may keep in memory whatever it was given.
    """

    def needs(self, batch: Batch) -> Sequence[bytes]:
        """
        The state keys that must be loaded before `step` may see `batch`; asked again after each `load`, until none is left.
        """

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Take rows as the store has them; None where there is none."""

    def touches(self, batch: Batch) -> int:
        """An upper bound of the rows that `step` would write, so that the loop can keep a commit small."""

    def step(self, batch: Batch) -> Effects:
        """Apply `batch` in the log's order."""


@runtime_checkable
class Sifting(Protocol):
    """A core that can tell without its state what is no message of its log."""

    def unfit(self, batch: Batch) -> Sequence[Refused]:
        """
        What of `batch`, as it was polled, can never be accepted, whatever the state is. It is taken out before coordinates are
        compared, or else a record that is refused would stand in the way of the true one with the same coordinate.
        """


def sifted(core: object, batch: Batch, refused: list[Refused]) -> tuple[Batch, list[Refused]]:
    """What is left of `batch` when a core that sifts has done so; `refused`, by offset, with what it took out."""
    unfit = core.unfit(batch) if isinstance(core, Sifting) else ()
    if not unfit:
        return batch, refused
    together = sorted([*refused, *unfit], key=lambda one: one.offset)
    return batch.without(unfit), together
