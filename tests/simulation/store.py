"""
A simulated Redis: values, an append-only file that may be cut, and clients whose connections break.

What `driftline.stream.ledger` asks is answered here in the same words: it is the real `RedisLedger` that runs on it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

from driftline.errors import Recoverable
from driftline.stream.store import Refused

from .faults import Wire

PATIENCE_S = 2.0  # a fifth of the real client's, so that a run is a few seconds of virtual time
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
    """
    One task's client, in the place of `driftline.stream.store.Store`. Commands that are asked together arrive one by one, and others' may
    come in between; what is between MULTI and EXEC arrives with EXEC.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.epoch = store.epoch
        self.connection = 1
        self._queued: Writes | None = None
        self._answers: list[Any] = []
        self._watched: dict[bytes, int] = {}

    async def ask(self, *commands: Sequence[Any], on: int | None = None) -> list[Any]:
        """After a restart of the server the first command fails, the next one finds a new connection."""
        if on not in (None, self.connection):
            raise Recoverable("the connection to the store was lost")
        return [await self._one(*command) for command in commands]

    async def asked_again(self, *commands: Sequence[Any]) -> list[Any]:
        """What a client does that asks again by itself: on whichever connection, ten times. (A mutant's.)"""
        for _ in range(10):
            try:
                return await self.ask(*commands)
            except Recoverable:
                await asyncio.sleep(self.store.wire.random.random())  # until there is a new connection
        return await self.ask(*commands)

    async def close(self) -> None:
        pass

    async def _one(self, name: Any, *words: Any) -> Any:
        name = name.decode() if isinstance(name, bytes) else name
        if self._queued is not None and name != "EXEC":
            return self._queue(name, words)
        if name == "MULTI":
            self._queued, self._answers = {}, []
            return b"OK"
        if name == "EXEC":  # with what it was given: it may arrive when this client has given it up
            words, self._queued, self._watched = (self._queued, self._answers, self._watched), None, {}
        effect = functools.partial(getattr(self, f"_{name.lower()}"), *words)
        found = functools.partial(self._on_connection, self.epoch, name in ("EXEC", "INCR", "DEL"), effect)
        try:
            return await self.store.wire.exchange(name, found, _lost, PATIENCE_S)
        except Recoverable:
            self._watched, self.connection = {}, self.connection + 1
            raise

    def _on_connection(self, epoch: int, writes: bool, effect: Any) -> Any:
        store = self.store
        if epoch != store.epoch:
            self.epoch = store.epoch
            raise Recoverable("the server closed the connection")
        if writes and store.wire.happens(store.wire.dose.refused):
            store.wire.fault("the store refuses a write")
            raise Refused("MISCONF errors writing to disk")
        return effect()

    def _queue(self, name: str, words: Sequence[Any]) -> bytes:
        assert self._queued is not None
        if name == "MSET":
            self._queued |= dict(zip(words[::2], words[1::2], strict=True))
            self._answers.append(b"OK")
        else:
            self._queued |= dict.fromkeys(words)
            self._answers.append(len(words))
        return b"QUEUED"

    def _exec(self, writes: Writes, answers: list[Any], watched: dict[bytes, int]) -> list[Any] | None:
        if any(self.store.versions.get(key, 0) != version for key, version in watched.items()):
            return None
        self.store.write(writes)
        return answers

    def _watch(self, *keys: bytes) -> bytes:
        self._watched |= {key: self.store.versions.get(key, 0) for key in keys}
        return b"OK"

    def _unwatch(self) -> bytes:
        self._watched = {}
        return b"OK"

    def _get(self, key: bytes) -> bytes | None:
        return self.store.values.get(key)

    def _mget(self, *keys: bytes) -> list[bytes | None]:
        return [self.store.values.get(key) for key in keys]

    def _incr(self, key: bytes) -> int:
        number = int(self.store.values.get(key, b"0")) + 1
        self.store.write({key: b"%d" % number})
        return number

    def _del(self, *keys: bytes) -> int:
        found = [key for key in keys if key in self.store.values]
        if found:
            self.store.write(dict.fromkeys(found))
        return len(found)

    def _config(self, _get: str, name: str) -> list[bytes]:
        return [name.encode(), b"noeviction"]


def _lost(kind: str) -> Recoverable:
    return Recoverable("no reply" if kind == "late" else "connection reset")
