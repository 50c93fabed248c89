"""
The data plane's client of the store: one connection of the Redis protocol (RESP 2), commands in, replies out.

Commands that are asked together leave in one write and are answered in one round trip. Nothing is ever asked twice: a reply that was
lost must not become a second write. After any fault the connection is closed, and the next question makes another; who depends on what
an earlier connection was told, as WATCH is, names that connection. redis-py takes 0.2 s to import and three times as long a command.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

from driftline.errors import Fatal, Recoverable

Word = bytes | str | int
Command = Sequence[Word]

PATIENCE_S = 10.0
CONNECT_S = 5.0
PORT = 6379
_NOTHING = object()


class Refused(Recoverable):
    """The store answered with an error; in its own words, which name no key and no value."""


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
        packed = [hiredis.pack_command(tuple(command)) for command in commands]  # type: ignore[arg-type]  # words of several types
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
        except (OSError, EOFError) as error:  # a TimeoutError is an OSError
            self._drop()
            raise Recoverable(f"the store did not answer: {error!r}") from error
        except asyncio.CancelledError:  # what is answered to this one is no answer to the next
            self._drop()
            raise
        for reply in replies:
            if isinstance(reply, Exception):
                self._drop()
                raise Refused(f"the store answered: {reply}")
        return replies

    async def _connected(self) -> _Wire:
        loop, place = asyncio.get_running_loop(), self._place
        async with asyncio.timeout(CONNECT_S):
            if place.scheme == "unix":
                _, wire = await loop.create_unix_connection(_Wire, unquote(place.path))
            else:
                secure = ssl.create_default_context() if place.scheme == "rediss" else None
                _, wire = await loop.create_connection(_Wire, place.hostname or "127.0.0.1", place.port or PORT, ssl=secure)
        self.connection += 1
        if hello := self._hello():
            for reply in await wire.send(hello):
                if isinstance(reply, Exception):
                    wire.close()
                    raise Refused(f"the store answered: {reply}")
        return wire

    def _hello(self) -> list[Command]:
        """What a connection begins with."""
        place, number = self._place, "" if self._place.scheme == "unix" else self._place.path.strip("/")
        names = [unquote(word) for word in (place.username, place.password) if word]
        return [*([("AUTH", *names)] if names else []), *([("SELECT", number)] if number not in ("", "0") else [])]

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    async def close(self) -> None:
        """Let go of the connection."""
        self._drop()
