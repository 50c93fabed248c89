"""
A TCP proxy on the loopback that spoils what goes through it: late, cut off, vanished, or heard but never answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field

HOST = "127.0.0.1"
CHUNK = 256 << 10
CLEAR, DELAY, BLACK_HOLE, SWALLOW_REPLIES = "clear", "delay", "black_hole", "swallow_replies"


@dataclass(eq=False)
class Link:
    """One connection through the proxy. What is lost of a stream cannot be mended: from then on nothing goes that way."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    deaf: set[str] = field(default_factory=set)  # ways, `requests` or `replies`, of which something has vanished

    def reset(self) -> None:
        """Cut it off on both sides, as a crash of the network would: RST, not FIN."""
        for writer in (self.client, self.server):
            plug: socket.socket | None = writer.get_extra_info("socket")
            if plug is not None:
                with contextlib.suppress(OSError):
                    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """
    Listens on `port` and goes on to `target`, a port of this machine that may change and need not answer.

    `mode` holds for all connections, from the next bytes on: CLEAR; DELAY (each chunk waits `delay_s`); BLACK_HOLE (what comes on either
    way vanishes); SWALLOW_REPLIES (requests arrive and are done, and their answers vanish).
    """

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self.port = 0
        self.mode = CLEAR
        self.delay_s = 0.0
        self.vanished_bytes = 0
        self.links: set[Link] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut everything off."""
        if self._server is not None:
            self._server.close()
        self.reset()

    def reset(self) -> int:
        """Reset all connections; how many there were."""
        links = list(self.links)
        for link in links:
            link.reset()
        return len(links)

    def reset_deaf(self) -> int:
        """Reset the connections of which something has vanished."""
        links = [link for link in self.links if link.deaf]
        for link in links:
            link.reset()
        return len(links)

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        try:
            server_in, server_out = await asyncio.open_connection(HOST, self.target)
        except OSError:
            client_out.close()
            return
        link = Link(client_out, server_out)
        self.links.add(link)
        ways = [
            asyncio.create_task(self._carry(link, "requests", client_in, server_out)),
            asyncio.create_task(self._carry(link, "replies", server_in, client_out)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.links.discard(link)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            client_out.close()
            server_out.close()

    async def _carry(self, link: Link, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self.mode == DELAY:
                    await asyncio.sleep(self.delay_s)
                if way in link.deaf or self.mode == BLACK_HOLE or (self.mode == SWALLOW_REPLIES and way == "replies"):
                    link.deaf.add(way)
                    self.vanished_bytes += len(chunk)
                    continue
                writer.write(chunk)
                await writer.drain()
