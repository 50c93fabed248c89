"""
The data plane's client of the store: one connection of the Redis protocol (RESP 2), commands in, replies out.

Commands that are asked together leave in one write and are answered in one round trip. Nothing is ever asked twice: a reply that was
lost must not become a second write. After any fault the connection is closed, and the next question makes another; who depends on what
an earlier connection was told, as WATCH is, names that connection. redis-py takes 0.2 s to import and three times as long a command.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis
import numpy as np
import numpy.typing as npt

from driftline import access
from driftline.compiled import READ_BYTES, READ_INTS, njit, types
from driftline.errors import Fatal, Recoverable
from driftline.stream.batch import Ints, Varlen

Word = bytes | str | int

PATIENCE_S = 10.0
CONNECT_S = 5.0
PORT = 6379
LOOK_AT_TLS = "Look at DRIFTLINE_REDIS, DRIFTLINE_REDIS_CA_FILE and DRIFTLINE_REDIS_CERT_FILE"
_NOTHING = object()
DOLLAR, ZERO, CR, LF = b"$0\r\n"
LINES_MAX = 24  # bytes of the protocol around a word: a dollar, its length, and two ends of lines

Bytes = npt.NDArray[np.uint8]


@njit(types.int64(types.uint8[::1], types.int64, READ_BYTES, types.int64, types.int64), cache=True, nogil=True)
def _copy(out: Bytes, at: int, data: Bytes, start: int, end: int) -> int:
    for place in range(start, end):
        out[at] = data[place]
        at += 1
    return at


@njit(types.int64(types.uint8[::1], types.int64, types.int64), cache=True, nogil=True)
def _write_length(out: Bytes, at: int, n: int) -> int:
    """The line that comes before a word of n bytes."""
    digits = 1
    while n >= 10**digits:
        digits += 1
    out[at] = DOLLAR
    for place in range(digits):
        out[at + digits - place] = ZERO + n // 10**place % 10
    out[at + digits + 1], out[at + digits + 2] = CR, LF
    return at + digits + 3


@njit(types.int64(READ_BYTES, READ_BYTES, READ_INTS, READ_INTS, READ_BYTES, READ_INTS, READ_INTS, types.uint8[::1]), cache=True, nogil=True)
def _write_pairs(
    prefix: Bytes, names: Bytes, name_starts: Ints, name_ends: Ints, rows: Bytes, row_starts: Ints, row_ends: Ints, out: Bytes
) -> int:
    """Name and row, name and row, each name behind the prefix. How many bytes that took."""
    at = 0
    for i in range(len(name_starts)):
        at = _write_length(out, at, len(prefix) + name_ends[i] - name_starts[i])
        at = _copy(out, at, prefix, 0, len(prefix))
        at = _copy(out, at, names, name_starts[i], name_ends[i])
        out[at], out[at + 1] = CR, LF
        at = _write_length(out, at + 2, row_ends[i] - row_starts[i])
        at = _copy(out, at, rows, row_starts[i], row_ends[i])
        out[at], out[at + 1] = CR, LF
        at += 2
    return at


@dataclass(frozen=True, slots=True, eq=False)
class Mset:
    """MSET of n rows by column, the name of each behind `prefix`, and of one value more. Its words, for whoever takes them one by one."""

    prefix: bytes
    names: Varlen
    rows: Varlen
    key: bytes
    value: bytes

    def __iter__(self) -> Iterator[Word]:
        yield b"MSET"
        for name, row in zip(self.names.tolist(), self.rows.tolist(), strict=True):
            yield self.prefix + name
            yield row
        yield self.key
        yield self.value

    def packed(self) -> bytes:
        """In the protocol's bytes."""
        names, rows = self.names, self.rows
        n = len(names)
        room = np.empty(int((names.lengths + rows.lengths).sum()) + n * (len(self.prefix) + 2 * LINES_MAX), np.uint8)
        written = _write_pairs(np.frombuffer(self.prefix, np.uint8), *names.arrays, *rows.arrays, room)
        last = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(self.key), self.key, len(self.value), self.value)
        return b"".join([b"*%d\r\n$4\r\nMSET\r\n" % (2 * n + 3), room[:written].tobytes(), last])


Command = Sequence[Word] | Mset


class Refused(Recoverable):
    """The store answered with an error, as its reply number `at`; in its own words, which name no key and no value."""

    at = 0


def _refusal(reply: Exception) -> Refused | Fatal:
    """Who is not let in will not be by asking again; any other error is for whoever asked."""
    if str(reply).startswith(("WRONGPASS", "NOAUTH")):
        return Fatal(f"the store refuses the user ({reply}): look at DRIFTLINE_REDIS_USER and DRIFTLINE_REDIS_PASSWORD")
    return Refused(f"the store answered: {reply}")


def _told(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or error.reason or type(error).__name__


class _Wire(asyncio.Protocol):
    """Counts replies. One set of questions at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._replies: list[Any] = []
        self._wanted = 0
        self._answered: asyncio.Future[list[Any]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Write them all; the future has their replies."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("the store closed the connection")
        self._wanted, self._replies = len(commands), []
        self._answered = asyncio.get_running_loop().create_future()
        packed = [
            command.packed() if isinstance(command, Mset) else hiredis.pack_command(tuple(command))  # type: ignore[arg-type]
            for command in commands
        ]
        self.transport.write(b"".join(packed))
        return self._answered

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                self._replies.append(reply)
        except hiredis.ProtocolError as error:
            self._fail(ConnectionResetError(f"no reply of the Redis protocol: {error}"))
            return
        if len(self._replies) >= self._wanted and self._answered is not None and not self._answered.done():
            self._answered.set_result(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionResetError("the store closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
        self.close()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Store:
    """
    A server of the Redis protocol at `url`: redis://, rediss:// or unix://, with user, password and number of the database. For one task
    at a time.
    """

    def __init__(self, url: str) -> None:
        self._place = urlsplit(url)
        if self._place.scheme not in ("redis", "rediss", "unix") or self._place.query:
            raise Fatal("DRIFTLINE_REDIS must be redis://[user:password@]host[:port][/number], or rediss:// or unix:// in its place")
        self._wire: _Wire | None = None
        self.connection = 0  # the number of the connection in use

    async def ask(self, *commands: Command, on: int | None = None) -> list[Any]:
        """
        One reply for each command, in order. Raises Refused when one of them is an error, Recoverable when the store does not answer, or
        when it would be asked on another connection than number `on`.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._wire is None:
                    self._wire = await self._connected()
                if on not in (None, self.connection):
                    raise Recoverable("the connection to the store was lost")
                replies = await self._wire.send(commands)
        except ssl.SSLError as error:
            self._drop()
            raise Fatal(f"the store's certificate, or its TLS, is refused: {_told(error)}. {LOOK_AT_TLS}") from error
        except (OSError, EOFError) as error:  # a TimeoutError is an OSError
            self._drop()
            raise Recoverable(f"the store did not answer: {error!r}") from error
        except asyncio.CancelledError:  # what is answered to this one is no answer to the next
            self._drop()
            raise
        for at, reply in enumerate(replies):
            if isinstance(reply, Exception):
                self._drop()
                refusal = _refusal(reply)
                if isinstance(refusal, Refused):
                    refusal.at = at
                raise refusal
        return replies

    async def _connected(self) -> _Wire:
        loop, place = asyncio.get_running_loop(), self._place
        secure, names = access.store(place.geturl())
        async with asyncio.timeout(CONNECT_S):
            if place.scheme == "unix":
                _, wire = await loop.create_unix_connection(_Wire, unquote(place.path))
            else:
                _, wire = await loop.create_connection(_Wire, place.hostname or "127.0.0.1", place.port or PORT, ssl=secure)
        self.connection += 1
        if hello := self._hello(names):
            for reply in await wire.send(hello):
                if isinstance(reply, Exception):
                    wire.close()
                    raise _refusal(reply)
        return wire

    def _hello(self, given: Sequence[str]) -> list[Command]:
        """What a connection begins with; user and password are those of the address, or else those that are `given`."""
        place, number = self._place, "" if self._place.scheme == "unix" else self._place.path.strip("/")
        names = [unquote(word) for word in (place.username, place.password) if word] or given
        return [*([("AUTH", *names)] if names else []), *([("SELECT", number)] if number not in ("", "0") else [])]

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    async def close(self) -> None:
        """Let go of the connection."""
        self._drop()
