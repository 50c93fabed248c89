"""The proxy does to a connection what it says, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from proxy import BLACK_HOLE, CLEAR, DELAY, HOST, SWALLOW_REPLIES, Proxy

WAIT_S = 0.2


class Echo:
    """A server that answers every line with itself, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.heard.append(line)
            writer.write(line)
        writer.close()


@asynccontextmanager
async def behind_proxy() -> AsyncIterator[tuple[Proxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.start()
    try:
        yield proxy, echo
    finally:
        await proxy.stop()
        server.close()


async def ask(proxy: Proxy, line: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(line)
    return reader, writer


async def test_what_goes_through_a_clear_proxy_is_the_same_both_ways():
    """
    A megabyte of lines comes back as it went.
    """
    async with behind_proxy() as (proxy, echo):
        lines = [b"%d %s\n" % (number, b"x" * 1_000) for number in range(1_000)]
        reader, writer = await ask(proxy, b"".join(lines))
        assert [await reader.readline() for _ in lines] == lines
        assert echo.heard == lines
        writer.close()


async def test_swallowed_replies_leave_the_request_done():
    """
    The server has heard the request, its answer never comes, and nothing comes on that connection afterwards either.
    """
    async with behind_proxy() as (proxy, echo):
        reader, writer = await ask(proxy, b"before\n")
        assert await reader.readline() == b"before\n"
        proxy.mode = SWALLOW_REPLIES
        writer.write(b"do it\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), WAIT_S)
        proxy.mode = CLEAR
        writer.write(b"again\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), WAIT_S)
        assert echo.heard == [b"before\n", b"do it\n", b"again\n"]
        assert proxy.vanished_bytes == len(b"do it\nagain\n")
        assert proxy.reset_deaf() == 1


async def test_a_black_hole_lets_nothing_arrive():
    """
    Neither way; a connection made afterwards is clear.
    """
    async with behind_proxy() as (proxy, echo):
        reader, _ = await ask(proxy, b"one\n")
        await reader.readline()
        proxy.mode = BLACK_HOLE
        lost, writer = await ask(proxy, b"two\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lost.readline(), WAIT_S)
        proxy.mode = CLEAR
        clear, _ = await ask(proxy, b"three\n")
        assert await clear.readline() == b"three\n"
        assert echo.heard == [b"one\n", b"three\n"]
        writer.close()


async def test_a_reset_is_seen_as_a_reset():
    """
    The client gets an error, not an end of file: it cannot know what was done.
    """
    async with behind_proxy() as (proxy, _):
        reader, writer = await ask(proxy, b"one\n")
        await reader.readline()
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            await reader.readline()
            writer.write(b"two\n")
            await writer.drain()
            await reader.readline()


async def test_a_delay_keeps_the_order():
    """
    Each chunk waits, and they come in order.
    """
    async with behind_proxy() as (proxy, _):
        proxy.mode, proxy.delay_s = DELAY, 0.02
        reader, writer = await ask(proxy, b"1\n")
        for number in (b"2\n", b"3\n"):
            await asyncio.sleep(0.005)
            writer.write(number)
        assert [await reader.readline() for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]
