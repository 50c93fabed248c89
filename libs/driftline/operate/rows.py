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

from driftline.errors import Recoverable, Rejected
from driftline.stream.ledger import ALONE, ENCODE, LEDGER, TRIES, Entry, prefix_of
from driftline.stream.store import Command, Store

KEYS_AT_ONCE = 1_000
BYTES_AT_ONCE = 512 << 10
CLAIM = b"rebuild"
NO_ROWS = (LEDGER, TRIES, ALONE, CLAIM)


class Rows:
    """Everything that the store keeps of one partition. Raises Recoverable when the store does not answer."""

    def __init__(self, store: Store, group: str, partition: int) -> None:
        self._store = store
        self._prefix = prefix_of(group, partition)
        self._claim = uuid4().bytes

    async def ledger(self) -> bytes | None:
        """The ledger as it is."""
        (found,) = await self._store.ask((b"GET", self._prefix + LEDGER))
        return cast("bytes | None", found)

    async def read(self) -> dict[bytes, bytes]:
        """All rows by their keys."""
        rows: dict[bytes, bytes] = {}
        for some in _chunks(await self._keys()):
            (found,) = await self._store.ask((b"MGET", *some))
            rows.update({key.removeprefix(self._prefix): row for key, row in zip(some, found, strict=True) if row is not None})
        return rows

    async def _keys(self) -> list[bytes]:
        """Names of rows; SCAN may tell one twice."""
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            ((cursor, some),) = await self._store.ask((b"SCAN", cursor, b"MATCH", _literally(self._prefix) + b"*", b"COUNT", KEYS_AT_ONCE))
            found.update(some)
            if cursor == b"0":
                break
        return sorted(found - {self._prefix + name for name in NO_ROWS})

    async def forget(self) -> int:
        """Delete ledger and rows, the ledger first. Returns how many rows there were."""
        await self._store.ask((b"DEL", self._prefix + LEDGER))
        keys = await self._keys()
        for some in _chunks(keys):
            await self._store.ask((b"DEL", *some))
        await self._store.ask((b"DEL", *(self._prefix + name for name in NO_ROWS)))
        return len(keys)

    async def replace(self, known: bytes | None, entry: Entry, rows: Mapping[bytes, bytes]) -> None:
        """
        Put `rows` and `entry` in the place of all that is there. Raises Rejected, with nothing of it in force, when the ledger is not the
        `known` one any more, or when another rebuild has begun.
        """
        try:
            await self._take_claim(known)
            for some in _chunks(await self._keys()):
                await self._guarded((b"DEL", *some))
            for writes in _portions(rows):
                await self._guarded((b"MSET", *(word for key, row in writes.items() for word in (self._prefix + key, row))))
            await self._guarded((b"SET", self._prefix + LEDGER, ENCODE(entry)), (b"DEL", self._prefix + CLAIM))
        except Recoverable as error:
            raise Recoverable(f"{error}. Nothing is in force: run it again") from error

    async def _take_claim(self, known: bytes | None) -> None:
        """From here on there is no ledger, until it is written again."""
        gone = (b"DEL", *(self._prefix + name for name in (LEDGER, TRIES, ALONE)))
        await self._swap(LEDGER, known, (b"SET", self._prefix + CLAIM, self._claim), gone)

    async def _guarded(self, *writes: Command) -> None:
        await self._swap(CLAIM, self._claim, *writes)

    async def _swap(self, name: bytes, known: bytes | None, *writes: Command) -> None:
        """All of `writes` at once, if what is called `name` is `known`. Raises Rejected when it is not."""
        _, found = await self._store.ask((b"WATCH", self._prefix + name), (b"GET", self._prefix + name))
        done = None
        if found == known:
            *_, done = await self._store.ask((b"MULTI",), *writes, (b"EXEC",), on=self._store.connection)
        if done is None:
            raise Rejected("the state was changed by somebody else meanwhile: is the service running, or another rebuild?")


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
