"""
The state of a drift core: the windows that it keeps open, one row each, and the row that names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from driftline.errors import Invalid
from driftline.features import texts
from driftline.judge.summaries import Summary, encoded
from driftline.stream.batch import Column, Messages, Varlen

ROW_FORMAT = 1
META = b"meta"
NEVER = -1


class Memory(msgspec.Struct):
    """What a core remembers besides windows; cores add fields. `open` names the windows, by kind and start in ms."""

    open: dict[str, list[int]] = msgspec.field(default_factory=dict)
    next: int | None = None  # start of the next window to close; None before time began


M = TypeVar("M", bound=Memory)


class State(Generic[M]):
    """
    The memory and the open windows of one partition, written through: `changed` gives the rows to store. A window's row is
    named by its kind and its start.
    """

    def __init__(self, memory: type[M], kinds: Mapping[str, type[Summary]], window_ms: int) -> None:
        self._memory_type, self._kinds = memory, kinds
        self.window_ms = window_ms
        self.missing: set[bytes] = {META}
        self._memory: M | None = None
        self._open: dict[tuple[str, int], Summary] = {}
        self._dirty: set[tuple[str, int]] = set()

    @property
    def memory(self) -> M:
        """What the core remembers besides windows. Raises Invalid before it was loaded."""
        if self._memory is None:
            raise Invalid("the state of drift was not loaded")
        return self._memory

    @property
    def windows_open(self) -> int:
        """How many windows are open."""
        return len(self._open)

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Take rows as the store has them. Raises Invalid when one that another names is gone."""
        for key, row in rows.items():
            self.missing.discard(key)
            if key == META:
                self._memory = self._memory_type() if row is None else msgspec.msgpack.decode(row, type=self._memory_type)
                self.missing.update(_row_key(kind, start) for kind, starts in self._memory.open.items() for start in starts)
            elif row is None:
                raise Invalid(f"drift's state row {key!r} is gone: driftline rebuild drift")
            else:
                kind, start = key.decode().split(":")
                self._open[kind, int(start)] = msgspec.msgpack.decode(row, type=self._kinds[kind])

    def start(self, time: int) -> int:
        """The start of the window that holds `time`."""
        return time // self.window_ms * self.window_ms

    def get(self, kind: str, start: int) -> Any:
        """The window as it is; an empty one when nothing was added."""
        return self._open.get((kind, start)) or self._kinds[kind]()

    def add(self, kind: str, start: int, summary: Summary) -> None:
        """Add `summary` to the window of `kind` that begins at `start`."""
        held = self._open.get((kind, start))
        self._open[kind, start] = summary if held is None else held + summary
        self._dirty.add((kind, start))

    def take(self, kind: str, start: int) -> Any:
        """The window, which is open no more; an empty one when nothing was added."""
        summary = self.get(kind, start)
        if self._open.pop((kind, start), None) is not None:
            self._dirty.add((kind, start))
        return summary

    def starts(self, kind: str) -> list[int]:
        """The starts of the open windows of `kind`, oldest first."""
        return sorted(start for other, start in self._open if other == kind)

    def changed(self) -> dict[bytes, bytes | None]:
        """The rows that changed since the last call; None for windows that closed."""
        self.memory.open = {kind: self.starts(kind) for kind in self._kinds}
        rows: dict[bytes, bytes | None] = {META: msgspec.msgpack.encode(self.memory, order="sorted")}
        for kind, start in sorted(self._dirty):
            held = self._open.get((kind, start))
            rows[_row_key(kind, start)] = None if held is None else msgspec.msgpack.encode(held, order="sorted")
        self._dirty.clear()
        return rows


def _row_key(kind: str, start: int) -> bytes:
    return f"{kind}:{start}".encode()


class Closed(NamedTuple):
    """A window that closed: the offset of the tick that closed it, its start, what it held."""

    offset: int
    start: int
    summary: Summary


def summary_messages(kind: str, source: int, closed: Sequence[Closed], window_ms: int) -> list[Messages]:
    """One `summary` a closed window, for the one partition of summaries."""
    if not closed:
        return []
    offsets = np.array([one.offset for one in closed], np.int64)
    starts = np.array([one.start for one in closed], np.int64)
    columns: dict[str, Column] = {
        "source": np.full(len(closed), source, np.int64),
        "offset": offsets,
        "index": np.arange(len(closed), dtype=np.int64) - np.searchsorted(offsets, offsets),
        "event_offset": np.full(len(closed), -1, np.int64),
        "kind": Varlen.repeat(kind, len(closed)),
        "start": starts,
        "end": starts + window_ms,
        "body": Varlen.of(encoded(one.summary) for one in closed),
    }
    return [Messages("summaries", "summary", None, columns, offsets, to=0)]


class Groups(NamedTuple):
    """Which of a few named groups each message belongs to."""

    codes: np.ndarray[Any, np.dtype[np.int64]]
    names: list[tuple[str, ...]]  # in order of first appearance


def grouped(*columns: Varlen) -> Groups:
    """Group messages by the texts in `columns`."""
    codes, firsts = texts.groups(*columns)
    return Groups(codes, list(zip(*(column.take(firsts).texts() for column in columns), strict=True)))
