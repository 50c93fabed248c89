"""
The ledger: where one partition of one operator stands, kept beside its state and moved with it in one write.

Whoever commits proves that nobody else has since: the ledger's bytes are compared and set. That, not the group protocol of
Kafka, is what keeps a process that was believed dead from writing over its successor. All keys of a partition share a hash
tag, so they lie in one slot of a Redis Cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from driftline.errors import Fatal, Invalid, Recoverable
from driftline.stream.batch import Rows
from driftline.stream.records import Coordinate, Lane
from driftline.stream.store import Command, Mset, Refused, Store


class Entry(msgspec.Struct, frozen=True):
    """What the ledger says of one partition."""

    next: int
    seen: dict[Lane, Coordinate]
    anchor: tuple[int, int, int] | None  # offset, timestamp and CRC of the last applied record
    cluster: str
    partitions: dict[str, int]  # of the topics read and written
    digest: str  # of the definition that the state was folded by
    row_format: int


class Fenced(Recoverable):
    """Somebody else moved the ledger: whatever is in memory is not to be trusted."""


class Declined(Refused):
    """The store said that it would not commit, for want of memory or of a right: nothing was written."""


class Ledger(Protocol):
    """One partition's ledger and rows. Not for use by two tasks at once."""

    async def open(self) -> Entry | None:
        """
        Read the entry, and from now on compare with it; None where there is none yet. Raises Invalid when it is no entry, Recoverable.
        """

    async def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Rows by key, read in one command with the entry. Raises Fenced when the entry is not the one last known."""

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        """
        Write `entry` and `rows` (None deletes) at once, and clear the tries, if any were counted: a count that outlived the progress
        would be held against the next record. Raises Fenced when the entry moved, Declined, Recoverable when unsure.
        """

    async def check(self) -> None:
        """Raises Fenced when the entry is not the one last known."""

    async def count_try(self) -> int:
        """Count one attempt to go on from here, and say how many there were since the last commit."""

    async def count_alone(self) -> int:
        """The same for attempts with one single record, and nothing else in hand."""

    async def clear_tries(self) -> None:
        """No attempt counts any more."""

    async def close(self) -> None:
        """Let go of the connection."""


ENCODE = msgspec.msgpack.Encoder().encode
DECODE = msgspec.msgpack.Decoder(Entry).decode


def decoded(value: bytes) -> Entry:
    """The entry in a ledger's bytes. Raises Invalid when they are none."""
    try:
        return DECODE(value)
    except msgspec.MsgspecError as error:
        raise Invalid(f"the ledger in the store cannot be read ({error})") from error


LEDGER, TRIES, ALONE = b"ledger", b"tries", b"alone"  # what lies beside the rows of a partition, by the names behind its prefix


def prefix_of(group: str, partition: int) -> bytes:
    """What all keys of one partition begin with; the braces are the hash tag."""
    return f"{{{group}:{partition}}}:".encode()


async def refuse_unsafe_store(url: str) -> None:
    """Raises Fatal unless the server keeps what it is given and lets us commit, Recoverable when it does not answer yet."""
    store = Store(url)
    try:
        (told,) = await store.ask(("CONFIG", "GET", "maxmemory-policy"))
    except Refused as error:
        if "LOADING" in str(error):
            raise
        raise Fatal(f"DRIFTLINE_REDIS: cannot ask for maxmemory-policy: {error}") from error
    else:
        await _refuse_unfenced(store)
    finally:
        await store.close()
    policy = told[1].decode() if len(told) == 2 else "unknown"
    if policy != "noeviction":
        raise Fatal(f"DRIFTLINE_REDIS: maxmemory-policy is {policy}; set it to noeviction, for an evicted row is a wrong feature")


async def _refuse_unfenced(store: Store) -> None:
    """Raises Fatal for a user whose MULTI would be refused: what follows it would be written, fenced or not. Recoverable."""
    try:
        await store.ask(("WATCH", LEDGER), ("MULTI",), ("EXEC",))
    except Refused as error:
        if "NOPERM" not in str(error):  # as from a server that cannot write to its disk now
            raise
        raise Fatal(f"DRIFTLINE_REDIS: a commit needs the rights of +@transaction: {error}") from error


class RedisLedger:
    """
    `Ledger` on a Redis-protocol server.

    The entry is watched from when it was read, and watched and read again in the same round trip as each commit. So to compare and set
    costs a commit no question of its own: MULTI and EXEC do nothing when anybody touched the entry since it was last seen to be ours.
    """

    def __init__(self, store: Store, group: str, partition: int) -> None:
        self._store = store
        self._prefix = prefix_of(group, partition)
        self._key = self._prefix + LEDGER
        self._tries, self._alone = self._prefix + TRIES, self._prefix + ALONE
        self._counted: list[bytes] = []
        self._known: bytes | None = None
        self._watched_on = 0  # the connection that watches
        self._look: tuple[Command, Command] = ((b"WATCH", self._key), (b"GET", self._key))

    async def open(self) -> Entry | None:
        _, self._known = await self._store.ask(*self._look)
        self._watched_on = self._store.connection
        return None if self._known is None else decoded(self._known)

    async def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        (found,) = await self._store.ask((b"MGET", self._key, *(self._prefix + key for key in keys)))
        if found[0] != self._known:
            raise Fenced("another process moved the ledger")
        rows: list[bytes | None] = found[1:]
        return rows

    async def check(self) -> None:
        if await self._store.ask((b"GET", self._key)) != [self._known]:
            raise Fenced("another process moved the ledger")

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        after = ENCODE(entry)
        columns = Rows.of(rows)
        there = columns.rows.starts >= 0
        deletes = [self._prefix + name for name in columns.names.take(~there).tolist()]
        writes = Mset(self._prefix, columns.names.take(there), columns.rows.take(there), self._key, after)
        commands: list[Command] = [(b"MULTI",), writes]
        if deletes or self._counted:
            commands.append((b"DEL", *deletes, *self._counted))
        try:
            *_, done, _, now = await self._store.ask(*commands, (b"EXEC",), *self._look, on=self._watched_on)
        except Refused as error:
            if 0 < error.at <= len(commands):  # in the transaction, which does all or nothing, and no longer after it
                raise Declined(str(error)) from error
            raise
        if done is None:
            raise Fenced("another process moved the ledger during the commit")
        if done[0] != b"OK":
            raise Recoverable("commit not acknowledged")
        self._known, self._counted = after, []
        if now != after:
            raise Fenced("another process moved the ledger behind the commit")

    async def count_try(self) -> int:
        return await self._count(self._tries)

    async def count_alone(self) -> int:
        return await self._count(self._alone)

    async def _count(self, key: bytes) -> int:
        self._counted = [self._tries, self._alone]
        (count,) = await self._store.ask((b"INCR", key))
        return int(count)

    async def clear_tries(self) -> None:
        await self._store.ask((b"DEL", self._tries, self._alone))

    async def close(self) -> None:
        await self._store.close()


class MemoryStore:
    """What several `MemoryLedger` share, as processes share a server."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}


class MemoryLedger:
    """`Ledger` in memory, for tests; it passes the suite of the real one."""

    def __init__(self, store: MemoryStore, group: str, partition: int) -> None:
        self._values = store.values
        self._prefix = prefix_of(group, partition)
        self._key = self._prefix + LEDGER
        self._tries, self._alone = self._prefix + TRIES, self._prefix + ALONE
        self._known: bytes | None = None

    async def open(self) -> Entry | None:
        self._known = self._values.get(self._key)
        return None if self._known is None else decoded(self._known)

    async def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        await self.check()
        return [self._values.get(self._prefix + key) for key in keys]

    async def check(self) -> None:
        if self._values.get(self._key) != self._known:
            raise Fenced("another process moved the ledger")

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        await self.check()
        for key, row in rows.items():
            if row is None:
                self._values.pop(self._prefix + key, None)
            else:
                self._values[self._prefix + key] = row
        await self.clear_tries()
        self._known = self._values[self._key] = ENCODE(entry)

    async def count_try(self) -> int:
        return self._count(self._tries)

    async def count_alone(self) -> int:
        return self._count(self._alone)

    def _count(self, key: bytes) -> int:
        count = int(self._values.get(key, b"0")) + 1
        self._values[key] = str(count).encode()
        return count

    async def clear_tries(self) -> None:
        self._values.pop(self._tries, None)
        self._values.pop(self._alone, None)

    async def close(self) -> None:
        pass
