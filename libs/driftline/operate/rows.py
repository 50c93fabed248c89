"""
The rows of one partition in the store, beside the ledger: all read, all put aside, all written anew.

Whoever writes them anew holds a *claim*, a key of the partition that each of its writes compares and sets: of two rebuilds at once the
later takes the claim, and the earlier stops. The ledger is deleted first and written last, so a service that finds rows that are not
whole finds no ledger, and refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError, WatchError

from driftline.errors import Recoverable, Rejected
from driftline.stream.ledger import ALONE, ENCODE, LEDGER, TRIES, Entry, prefix_of

KEYS_AT_ONCE = 1_000
BYTES_AT_ONCE = 512 << 10
CLAIM = b"rebuild"
NO_ROWS = (LEDGER, TRIES, ALONE, CLAIM)


class Rows:
    """Everything that the store keeps of one partition. Raises Recoverable when the store does not answer."""

    def __init__(self, client: Redis, group: str, partition: int) -> None:
        self._client = client
        self._prefix = prefix_of(group, partition)
        self._claim = uuid4().bytes

    async def ledger(self) -> bytes | None:
        """The ledger as it is."""
        return cast("bytes | None", await self._client.get(self._prefix + LEDGER))

    async def read(self) -> dict[bytes, bytes]:
        """All rows by their keys."""
        rows: dict[bytes, bytes] = {}
        for some in _chunks(await self._keys()):
            found = cast("list[bytes | None]", await self._client.mget(some))
            rows.update({key.removeprefix(self._prefix): row for key, row in zip(some, found, strict=True) if row is not None})
        return rows

    async def _keys(self) -> list[bytes]:
        """Names of rows; SCAN may tell one twice."""
        found = {key async for key in self._client.scan_iter(match=_literally(self._prefix) + b"*", count=KEYS_AT_ONCE)}
        return sorted(found - {self._prefix + name for name in NO_ROWS})

    async def forget(self) -> int:
        """Delete ledger and rows, the ledger first. Returns how many rows there were."""
        await self._client.delete(self._prefix + LEDGER)
        keys = await self._keys()
        for some in _chunks(keys):
            await self._client.delete(*some)
        await self._client.delete(*(self._prefix + name for name in NO_ROWS))
        return len(keys)

    async def replace(self, known: bytes | None, entry: Entry, rows: Mapping[bytes, bytes]) -> None:
        """
        Put `rows` and `entry` in the place of all that is there. Raises Rejected, with nothing of it in force, when the ledger is not the
        `known` one any more, or when another rebuild has begun.
        """
        try:
            await self._take_claim(known)
            for some in _chunks(await self._keys()):
                await self._guarded({}, deletes=some)
            for writes in _portions(rows):
                await self._guarded({self._prefix + key: row for key, row in writes.items()})
            await self._guarded({self._prefix + LEDGER: ENCODE(entry)}, deletes=[self._prefix + CLAIM])
        except WatchError as error:
            raise Rejected("the state was changed by somebody else meanwhile: is the service running, or another rebuild?") from error
        except (RedisError, OSError, TimeoutError) as error:
            raise Recoverable(f"the store did not answer: {error!r}. Nothing is in force: run it again") from error

    async def _take_claim(self, known: bytes | None) -> None:
        """From here on there is no ledger, until it is written again."""
        async with self._client.pipeline(transaction=True) as pipe:
            await pipe.watch(self._prefix + LEDGER)
            if await pipe.get(self._prefix + LEDGER) != known:
                raise WatchError("the ledger moved")
            pipe.multi()  # type: ignore[no-untyped-call]  # redis leaves it without types
            pipe.set(self._prefix + CLAIM, self._claim)
            pipe.delete(*(self._prefix + name for name in (LEDGER, TRIES, ALONE)))
            await pipe.execute()

    async def _guarded(self, writes: Mapping[bytes, bytes], deletes: Sequence[bytes] = ()) -> None:
        async with self._client.pipeline(transaction=True) as pipe:
            await pipe.watch(self._prefix + CLAIM)
            if await pipe.get(self._prefix + CLAIM) != self._claim:
                raise WatchError("another rebuild has begun")
            pipe.multi()  # type: ignore[no-untyped-call]  # redis leaves it without types
            if writes:
                pipe.mset(dict(writes))
            if deletes:
                pipe.delete(*deletes)
            await pipe.execute()


def _literally(prefix: bytes) -> bytes:
    """A name that a pattern matches as it is."""
    return b"".join(b"\\" + bytes([octet]) if octet in b"*?[]\\^" else bytes([octet]) for octet in prefix)


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[at : at + KEYS_AT_ONCE] for at in range(0, len(keys), KEYS_AT_ONCE))


def _portions(rows: Mapping[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    """`rows` in parts of what one commit may carry."""
    portion: dict[bytes, bytes] = {}
    size = 0
    for key, row in rows.items():
        if portion and (len(portion) == KEYS_AT_ONCE or size + len(row) > BYTES_AT_ONCE):
            yield portion
            portion, size = {}, 0
        portion[key] = row
        size += len(row)
    if portion:
        yield portion
