"""
The ledger: where one partition of one operator stands, kept beside its state and moved with it in one write.

Whoever commits proves that nobody else has since: the ledger's bytes are compared and set. That, not the group protocol of
Kafka, is what keeps a process that was believed dead from writing over its successor. All keys of a partition share a hash
tag, so they lie in one slot of a Redis Cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import hiredis
import msgspec
from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from driftline.errors import Fatal, Invalid, Recoverable
from driftline.stream.records import Coordinate, Lane


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
        would be held against the next record. Raises Fenced when the entry moved, Recoverable when unsure.
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


class _Connection(Connection):
    """Packs commands in C; for asyncio redis does it in Python, for half a microsecond a word. (Those of other URLs than redis:// stay.)"""

    def pack_command(self, *args: Any) -> list[bytes]:
        """One command in the protocol's bytes."""
        name = args[0] if isinstance(args[0], bytes) else str(args[0]).encode()
        return [hiredis.pack_command((*name.split(), *args[1:]))]  # CONFIG GET are two words


def connect(url: str) -> Redis:
    """A client that never retries on its own: a reply that was lost must not become a second write."""
    client: Redis = Redis.from_url(
        url,
        connection_class=_Connection,
        single_connection_client=True,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_timeout=10.0,
        socket_connect_timeout=5.0,
    )
    return client


async def refuse_unsafe_store(url: str) -> None:
    """Raises Fatal unless the server keeps what it is given, Recoverable when it does not answer yet."""
    client = connect(url)
    try:
        policy = (await client.config_get("maxmemory-policy")).get("maxmemory-policy")
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:  # among them: it is still loading
        raise Recoverable(f"DRIFTLINE_REDIS: the store does not answer: {error}") from error
    except RedisError as error:
        raise Fatal(f"DRIFTLINE_REDIS: cannot ask for maxmemory-policy: {error}") from error
    finally:
        await client.aclose()
    if policy != "noeviction":
        raise Fatal(f"DRIFTLINE_REDIS: maxmemory-policy is {policy}; set it to noeviction, for an evicted row is a wrong feature")


class RedisLedger:
    """`Ledger` on a Redis-protocol server."""

    def __init__(self, client: Redis, group: str, partition: int) -> None:
        self._client = client
        self._prefix = prefix_of(group, partition)
        self._key = self._prefix + LEDGER
        self._tries, self._alone = self._prefix + TRIES, self._prefix + ALONE
        self._counted: list[bytes] = []
        self._known: bytes | None = None

    async def open(self) -> Entry | None:
        self._known = await self._ask(self._client.get(self._key))
        return None if self._known is None else decoded(self._known)

    async def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = await self._ask(self._client.mget([self._key, *(self._prefix + key for key in keys)]))
        if found[0] != self._known:
            raise Fenced("another process moved the ledger")
        return found[1:]

    async def check(self) -> None:
        if await self._ask(self._client.get(self._key)) != self._known:
            raise Fenced("another process moved the ledger")

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        after = ENCODE(entry)
        writes = {self._prefix + key: row for key, row in rows.items() if row is not None}
        deletes = [self._prefix + key for key, row in rows.items() if row is None]
        async with self._client.pipeline(transaction=True) as pipe:
            try:
                await pipe.watch(self._key)
                if await pipe.get(self._key) != self._known:
                    raise Fenced("another process moved the ledger")
                pipe.multi()  # type: ignore[no-untyped-call]  # redis leaves it without types
                pipe.mset({**writes, self._key: after})
                if deletes or self._counted:
                    pipe.delete(*deletes, *self._counted)
                answers = await pipe.execute()
            except WatchError as error:
                raise Fenced("another process moved the ledger during the commit") from error
            except (RedisError, OSError, TimeoutError) as error:
                raise Recoverable(f"commit of unknown result: {error!r}") from error
        if not answers or answers[0] is not True:
            raise Recoverable(f"commit not acknowledged: {answers!r}")
        self._known = after
        self._counted = []

    async def count_try(self) -> int:
        return await self._count(self._tries)

    async def count_alone(self) -> int:
        return await self._count(self._alone)

    async def _count(self, key: bytes) -> int:
        self._counted = [self._tries, self._alone]
        count: int = await self._ask(self._client.incr(key))
        return count

    async def clear_tries(self) -> None:
        await self._ask(self._client.delete(self._tries, self._alone))

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, question: Any) -> Any:
        try:
            return await question
        except (RedisError, OSError, TimeoutError) as error:
            raise Recoverable(f"the store did not answer: {error!r}") from error


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
