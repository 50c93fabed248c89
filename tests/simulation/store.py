"""
A simulated Redis: values, an append-only file that may be cut, and clients whose connections break.

What `driftline.stream.ledger` uses of redis-py is here with the same names: it is the real `RedisLedger` that runs on it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Mapping
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .faults import Wire

Writes = dict[bytes, bytes | None]


class Store:
    """The server. Each entry of its append-only file is one command, or one transaction whole."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.values: dict[bytes, bytes] = {}
        self.appended: list[Writes] = []
        self.versions: dict[bytes, int] = {}
        self.epoch = 0  # of connections: a restart breaks them all
        self._writes = 0

    def write(self, writes: Writes) -> None:
        """Apply and append."""
        self.appended.append(writes)
        self._writes += 1
        for key, value in writes.items():
            self.versions[key] = self._writes
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value

    def restart(self, kept: int) -> None:
        """Come back with the first `kept` entries of the append-only file."""
        self.epoch += 1
        self.appended = self.appended[:kept]
        self.values.clear()
        for writes in self.appended:
            for key, value in writes.items():
                if value is None:
                    self.values.pop(key, None)
                else:
                    self.values[key] = value


class Client:
    """One connection. `retries` is how often it would ask again by itself; `patience_s`, how long it waits for a reply."""

    def __init__(self, store: Store, retries: int, patience_s: float) -> None:
        self.store = store
        self.retries = retries
        self._patience_s = patience_s
        self.epoch = store.epoch
        self.attempt = 0

    async def ask(self, what: str, effect: Any, *, writes: bool = False) -> Any:
        """One command. After a restart of the server the first one fails, the next one finds a new connection."""
        wire = self.store.wire
        for attempt in range(self.retries + 1):
            found = functools.partial(self._on_connection, self.epoch, attempt, effect, writes)
            try:
                return await wire.exchange(what, found, _lost, self._patience_s)
            except (RedisConnectionError, RedisTimeoutError):
                if attempt == self.retries:
                    raise
                await asyncio.sleep(wire.random.random())  # until there is a new connection

    def _on_connection(self, epoch: int, attempt: int, effect: Any, writes: bool) -> Any:
        store = self.store
        if epoch != store.epoch:
            self.epoch = store.epoch
            raise RedisConnectionError("the server closed the connection")
        if writes and store.wire.happens(store.wire.dose.refused):
            store.wire.fault("the store refuses a write")
            raise ResponseError("MISCONF errors writing to disk")
        self.attempt = attempt
        return effect()

    def get(self, key: bytes) -> Awaitable[Any]:
        return self.ask("GET", lambda: self.store.values.get(key))

    def mget(self, keys: list[bytes]) -> Awaitable[Any]:
        return self.ask("MGET", lambda: [self.store.values.get(key) for key in keys])

    def incr(self, key: bytes) -> Awaitable[Any]:
        def incremented() -> int:
            number = int(self.store.values.get(key, b"0")) + 1
            self.store.write({key: b"%d" % number})
            return number

        return self.ask("INCR", incremented, writes=True)

    def delete(self, *keys: bytes) -> Awaitable[Any]:
        def deleted() -> int:
            found = [key for key in keys if key in self.store.values]
            if found:
                self.store.write(dict.fromkeys(found))
            return len(found)

        return self.ask("DEL", deleted, writes=True)

    def config_get(self, name: str) -> Awaitable[Any]:
        return self.ask("CONFIG GET", lambda: {name: "noeviction"})

    def pipeline(self, transaction: bool) -> Pipeline:
        return Pipeline(self)

    async def aclose(self) -> None:
        pass


class Pipeline:
    """WATCH, reads, MULTI, writes, EXEC on one connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watched: dict[bytes, int] = {}
        self._watched_epoch = -1
        self._writes: Writes = {}
        self._answers: list[Any] = []

    async def __aenter__(self) -> Pipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watched.clear()

    async def watch(self, *keys: bytes) -> None:
        store = self._client.store

        def watched() -> None:
            self._watched = {key: store.versions.get(key, 0) for key in keys}
            self._watched_epoch = store.epoch

        await self._client.ask("WATCH", watched)

    async def get(self, key: bytes) -> Any:
        return await self._client.get(key)

    def multi(self) -> None:
        self._writes, self._answers = {}, []

    def mset(self, values: Mapping[bytes, bytes]) -> None:
        self._writes |= values
        self._answers.append(True)

    def delete(self, *keys: bytes) -> None:
        self._writes |= dict.fromkeys(keys)
        self._answers.append(len(keys))

    async def execute(self) -> list[Any]:
        """
        Raises WatchError where the server answers nil. A client that asks again by itself has lost its watch with the connection, so
        what it sends the second time is written whatever has happened since.
        """
        writes, answers, watched, epoch = self._writes, self._answers, dict(self._watched), self._watched_epoch
        client, store = self._client, self._client.store

        def executed() -> list[Any] | None:
            changed = epoch != store.epoch or any(store.versions.get(key, 0) != version for key, version in watched.items())
            if client.attempt == 0 and watched and changed:
                return None
            store.write(writes)
            return answers

        found = await self._client.ask("EXEC", executed, writes=True)
        if found is None:
            raise WatchError("a watched key changed")
        return found  # type: ignore[no-any-return]


def _lost(kind: str) -> RedisError:
    return RedisTimeoutError("no reply") if kind == "late" else RedisConnectionError("connection reset")
