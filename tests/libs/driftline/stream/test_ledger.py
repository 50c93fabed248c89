"""One suite for both ledgers: in memory and on a real Redis-protocol server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from driftline.errors import Fatal, Recoverable
from driftline.stream.ledger import Declined, Entry, Fenced, Ledger, MemoryLedger, MemoryStore, RedisLedger, refuse_unsafe_store
from driftline.stream.store import Command, Refused, Store

Make = Callable[[], Ledger]


def entry(next_offset: int) -> Entry:
    return Entry(next_offset, {5: (7, 0)}, (next_offset - 1, 0, 1), "cluster", {"events": 2}, "digest", 1)


@pytest.fixture
async def redis_ledger(redis_url: str) -> AsyncIterator[Callable[[str], RedisLedger]]:
    """Makes ledgers on the real server by group, and closes them."""
    made: list[RedisLedger] = []

    def one(group: str) -> RedisLedger:
        made.append(RedisLedger(Store(redis_url), group, 0))
        return made[-1]

    yield one
    for ledger in made:
        await ledger.close()


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest, redis_ledger: Callable[[str], RedisLedger]) -> Make:
    """Makes ledgers of one and the same partition, as two processes would."""
    group = f"test-{uuid.uuid4()}"
    if request.param == "memory":
        store = MemoryStore()
        return lambda: MemoryLedger(store, group, 0)
    return lambda: redis_ledger(group)


async def test_a_commit_is_read_back_with_its_rows(make: Make):
    """
    Entry and rows appear together, for the next process too.
    """
    one = make()
    assert await one.open() is None
    await one.commit(entry(5), {b"a": b"1", b"b": b"2"})
    other = make()
    assert entry(5) == await other.open()
    assert await other.rows([b"b", b"c", b"a"]) == [b"2", None, b"1"]


async def test_none_deletes_a_row(make: Make):
    """
    A row that is no longer needed goes with the same write.
    """
    one = make()
    await one.open()
    await one.commit(entry(1), {b"a": b"1", b"b": b"2"})
    await one.commit(entry(2), {b"a": None})
    assert await one.rows([b"a", b"b"]) == [None, b"2"]


async def test_whoever_was_overtaken_cannot_commit(make: Make):
    """
    A process that was believed dead is fenced, and changes nothing.
    """
    old, new = make(), make()
    await old.open()
    await old.commit(entry(1), {b"a": b"1"})
    await new.open()
    await new.commit(entry(2), {b"a": b"2"})
    with pytest.raises(Fenced):
        await old.commit(entry(9), {b"a": b"old"})
    assert await new.rows([b"a"]) == [b"2"]


async def test_rows_read_by_whoever_was_overtaken_are_refused(make: Make):
    """
    A row is never taken without the ledger that belongs to it.
    """
    old, new = make(), make()
    await old.open()
    await new.open()
    await new.commit(entry(2), {b"a": b"2"})
    with pytest.raises(Fenced):
        await old.rows([b"a"])
    with pytest.raises(Fenced):
        await old.check()


async def test_of_two_that_commit_from_one_entry_only_the_first_wins(make: Make):
    """
    Compare and set, also when there was no entry before.
    """
    ledgers = [make() for _ in range(4)]
    for one in ledgers:
        await one.open()
    results = await asyncio.gather(*(one.commit(entry(n + 1), {b"a": bytes([n])}) for n, one in enumerate(ledgers)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, Recoverable) for result in results) == 3


async def test_tries_are_counted_until_they_are_cleared(make: Make):
    """
    The count outlives the process that made it.
    """
    assert [await make().count_try(), await make().count_try()] == [1, 2]
    await make().clear_tries()
    assert await make().count_try() == 1


async def test_a_commit_clears_the_tries_in_the_same_write(make: Make):
    """
    Were they cleared behind it, a process that dies in between would leave the count of one record to the next.
    """
    one = make()
    await one.open()
    assert [await one.count_try(), await one.count_try()] == [1, 2]
    assert [await one.count_alone(), await one.count_alone()] == [1, 2]
    await one.commit(entry(1), {})
    assert [await make().count_try(), await make().count_alone()] == [1, 1]


class Overtaken(Store):
    """A store's client on which somebody else does something just before or just behind EXEC."""

    def __init__(self, url: str, meanwhile: Callable[[], Awaitable[None]], *, behind: bool) -> None:
        super().__init__(url)
        self._meanwhile = meanwhile
        self._behind = behind

    async def ask(self, *commands: Command, on: int | None = None) -> list[Any]:
        if (b"EXEC",) not in commands:
            return await super().ask(*commands, on=on)
        at = commands.index((b"EXEC",)) + self._behind
        first = await super().ask(*commands[:at], on=on)
        await self._meanwhile()
        return first + await super().ask(*commands[at:], on=on)


@pytest.mark.parametrize("behind", [False, True])
async def test_a_commit_of_somebody_else_right_before_or_behind_ours_is_noticed(
    redis_url: str, redis_ledger: Callable[[str], RedisLedger], behind: bool
):
    """
    A nil EXEC is no success; and what was written before the entry is watched again is not what is known of it.
    """
    group = f"test-{uuid.uuid4()}"
    quick = redis_ledger(group)

    async def overtake() -> None:
        await quick.open()
        await quick.commit(entry(9), {b"a": b"quick"})

    store = Overtaken(redis_url, overtake, behind=behind)
    slow = RedisLedger(store, group, 0)
    await slow.open()
    with pytest.raises(Fenced):
        await slow.commit(entry(2), {b"a": b"slow"})
    assert await quick.rows([b"a"]) == [b"quick"]
    await store.close()


async def test_on_another_connection_nothing_is_committed(redis_url: str):
    """
    The watch went with the connection that was lost.
    """
    group, store = f"test-{uuid.uuid4()}", Store(redis_url)
    ledger = RedisLedger(store, group, 0)
    await ledger.open()
    await store.close()
    with pytest.raises(Recoverable, match="the connection to the store was lost"):
        await ledger.commit(entry(1), {b"a": b"1"})
    assert await ledger.rows([b"a"]) == [None]
    await ledger.close()


async def test_a_store_that_may_evict_is_refused(redis_url: str):
    """
    The setting is named; noeviction is accepted.
    """
    await refuse_unsafe_store(redis_url)
    store = Store(redis_url)
    try:
        await store.ask(("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"))
        with pytest.raises(Fatal, match="noeviction"):
            await refuse_unsafe_store(redis_url)
    finally:
        await store.ask(("CONFIG", "SET", "maxmemory-policy", "noeviction"))
        await store.close()


async def test_a_user_who_may_not_use_transactions_is_refused(user: Callable[..., Awaitable[str]]):
    """
    His MULTI would be refused and his MSET written, fenced or not.
    """
    with pytest.raises(Fatal, match=r"@transaction.*NOPERM"):
        await refuse_unsafe_store(await user("+@read", "+@write", "+@connection", "+config|get", "-multi"))
    await refuse_unsafe_store(await user("+@transaction"))


async def test_a_store_that_does_not_answer_is_recoverable():
    """
    Nobody listens there: try again later, and do not guess.
    """
    ledger = RedisLedger(Store("redis://127.0.0.1:1/0"), "group", 0)
    with pytest.raises(Recoverable):
        await ledger.open()
    await ledger.close()


@pytest.fixture
async def user(redis_url: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Gives a user of its own the rights that are named, and returns the address with its name."""
    store, name, password = Store(redis_url), f"user-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex

    async def may(*rights: str) -> str:
        await store.ask(("ACL", "SETUSER", name, "on", f">{password}", "~*", *rights))
        return redis_url.replace("://", f"://{name}:{password}@", 1)

    yield may
    await store.ask(("ACL", "DELUSER", name))
    await store.close()


async def test_a_commit_that_the_store_refuses_is_told_from_one_of_which_nobody_knows(
    redis_ledger: Callable[[str], RedisLedger], user: Callable[..., Awaitable[str]]
):
    """
    An error in the transaction: nothing was written. One after it, to the look behind the commit: it may well have been, and here it was.
    """
    group = f"test-{uuid.uuid4()}"
    mine = RedisLedger(Store(await user("+@read", "+@transaction", "+@connection")), group, 0)
    await mine.open()
    with pytest.raises(Declined, match="NOPERM"):
        await mine.commit(entry(5), {b"a": b"1"})
    assert await redis_ledger(group).open() is None
    await user("+@write")
    await mine.open()
    await user("-get")
    with pytest.raises(Refused, match="NOPERM") as unsure:
        await mine.commit(entry(5), {b"a": b"1"})
    assert not isinstance(unsure.value, Declined)
    assert await redis_ledger(group).open() == entry(5)
    await mine.close()
