"""The store's client against a real server."""

from __future__ import annotations

import asyncio
import uuid
from urllib.parse import urlsplit

import pytest

from driftline.errors import Fatal, Recoverable
from driftline.stream.store import Refused, Store


async def test_replies_come_in_the_order_of_the_commands(redis_url: str):
    """
    Several commands, one round trip; every kind of reply.
    """
    key, store = uuid.uuid4().bytes, Store(redis_url)
    assert await store.ask(("SET", key, b"1\r\n"), ("INCR", key + b"n"), ("GET", key), ("GET", b"none" + key)) == [b"OK", 1, b"1\r\n", None]
    big = b"x" * 3_000_000  # comes in many reads
    assert await store.ask((b"MSET", key, big, key + b"2", b"y"), (b"MGET", key, key + b"2")) == [b"OK", [big, b"y"]]
    await store.ask(("DEL", key, key + b"n", key + b"2"))
    await store.close()


async def test_an_error_is_raised_and_the_next_question_has_a_new_connection(redis_url: str):
    """
    Whatever was open on the old one is gone with it.
    """
    store = Store(redis_url)
    with pytest.raises(Refused, match="unknown command"):
        await store.ask(("MULTI",), ("NOSUCHCOMMAND",))
    first = store.connection
    assert await store.ask(("PING",)) == [b"PONG"]
    assert store.connection == first + 1
    with pytest.raises(Recoverable, match="lost"):
        await store.ask(("PING",), on=first)
    await store.close()


async def test_the_reply_to_a_question_that_was_given_up_is_no_answer_to_the_next(redis_url: str):
    """
    A task that was cancelled while it waited leaves a reply behind.
    """
    store = Store(redis_url)
    await store.ask(("PING",))
    waiting = asyncio.create_task(store.ask(("BLPOP", uuid.uuid4().bytes, 5)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await store.ask(("PING",)) == [b"PONG"]
    await store.close()


async def test_a_server_that_closes_the_connection_is_recoverable(redis_url: str):
    """
    Told at once, not after the patience is over.
    """
    one, other = Store(redis_url), Store(redis_url)
    (number,) = await one.ask(("CLIENT", "ID"))
    waiting = asyncio.create_task(one.ask(("BLPOP", uuid.uuid4().bytes, 0)))
    while b"cmd=blpop" not in (await other.ask(("CLIENT", "LIST", "ID", number)))[0]:
        await asyncio.sleep(0.01)
    await other.ask(("CLIENT", "KILL", "ID", number))
    with pytest.raises(Recoverable, match="did not answer"):
        await waiting
    await one.close()
    await other.close()


async def test_user_password_and_number_are_of_the_address(redis_url: str):
    """
    As in redis://user:password@host:port/number; a wrong password is refused in the server's words.
    """
    user, store = f"user-{uuid.uuid4()}", Store(redis_url)
    await store.ask(("ACL", "SETUSER", user, "on", ">s/cret", "+@all", "~*"))
    place = urlsplit(redis_url)
    theirs = Store(f"redis://{user}:s%2Fcret@{place.hostname}:{place.port}/3")
    assert (await theirs.ask(("ACL", "WHOAMI")))[0] == user.encode()
    assert b"db=3" in (await theirs.ask(("CLIENT", "INFO")))[0]
    wrong = Store(f"redis://{user}:other@{place.hostname}:{place.port}")
    with pytest.raises(Fatal, match="WRONGPASS"):
        await wrong.ask(("PING",))
    await store.ask(("ACL", "DELUSER", user))
    for one in (store, theirs, wrong):
        await one.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", "redis://127.0.0.1:6379/0?retry_on_timeout=true"])
def test_an_address_that_cannot_be_used_is_refused_with_the_settings_name(url: str):
    """
    What is asked for beside it, too: better than to go on without.
    """
    with pytest.raises(Fatal, match="DRIFTLINE_REDIS must be"):
        Store(url)
