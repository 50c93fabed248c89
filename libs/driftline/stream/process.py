"""
One process: its parts run until one fails or the process is told to stop; then all drain. Beside them a small HTTP server for
`/metrics`, `/healthz` and `/readyz`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol

from prometheus_client import generate_latest

from driftline.errors import Fatal
from driftline.logs import log
from driftline.metrics import metric

STALL_S = 30.0
DRAIN_S = 20.0
REQUEST_BYTES_MAX = 8 << 10
EVERYWHERE = "0.0.0.0"


class Part(Protocol):
    """Something that a process runs. `stop` asks it to finish what is in hand; `run` returns when it has."""

    @property
    def ready(self) -> bool: ...

    async def run(self) -> None: ...

    def stop(self) -> None: ...


class Ops:
    """
    `/healthz`: the process answers. `/readyz`: every part is ready and moves, else 503 with what is wrong. `/metrics`: Prometheus.

    The address goes to `<run_dir>/<name>.json`, for whoever started the process with port 0.
    """

    def __init__(self, name: str, port: int = 0, run_dir: Path | None = None, host: str = "127.0.0.1") -> None:
        self._name = name
        self._port = port
        self._host = host
        self._run_dir = run_dir
        self._troubles: Callable[[], list[str]] = lambda: ["not started"]
        self._server: asyncio.Server | None = None
        self._told: dict[str, object] = {}

    async def start(self, troubles: Callable[[], list[str]]) -> None:
        """Listen. `troubles` names what is not ready; none means ready."""
        self._troubles = troubles
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=REQUEST_BYTES_MAX)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.tell(ops=f"http://{_reachable(host)}:{port}", pid=os.getpid())

    def tell(self, **addresses: object) -> None:
        """Add to what is written for whoever started the process."""
        self._told |= addresses
        if self._run_dir is not None:
            place = self._run_dir / f"{self._name}.json"
            place.with_suffix(".part").write_text(json.dumps(self._told))
            place.with_suffix(".part").replace(place)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            status, kind, body = self._answer([*request.split(), b"", b""][1].decode(errors="replace").partition("?")[0])
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    def _answer(self, path: str) -> tuple[str, str, bytes]:
        if path == "/metrics":
            return "200 OK", "text/plain; version=0.0.4; charset=utf-8", generate_latest()
        if path == "/healthz":
            return "200 OK", "application/json", b'{"alive": true}'
        if path == "/readyz":
            troubles = self._troubles()
            body = json.dumps({"service": self._name, "ready": not troubles, "troubles": troubles}).encode()
            return ("503 Service Unavailable" if troubles else "200 OK"), "application/json", body
        return "404 Not Found", "text/plain", b"there are /metrics, /healthz and /readyz\n"


def _reachable(host: str) -> str:
    """Where others find who listens on every address: at this machine's own, where it knows one."""
    if host != EVERYWHERE:
        return host
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:  # a machine without a name: only itself is left to ask
        return "127.0.0.1"


class Process:
    """Runs its parts side by side. SIGTERM and SIGINT drain them; the failure of one stops all."""

    def __init__(self, name: str, parts: Sequence[Part], ops: Ops) -> None:
        self._name = name
        self._parts = parts
        self._ops = ops

    async def run(self) -> None:
        """Return after a clean drain. Raises what a part raised, or Fatal when every partition was refused."""
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        _tell_build()
        await self._ops.start(self.troubles)
        tasks = [asyncio.create_task(part.run(), name=f"{self._name}-{at}") for at, part in enumerate(self._parts)]
        waiting = asyncio.create_task(told.wait())
        log.info("started", service=self._name, parts=len(tasks))
        try:
            await self._until_told(tasks, waiting)
        finally:
            await self._drain(tasks, waiting)
        refused = [refused for part in self._parts if (refused := getattr(part, "refused", ""))]
        if refused:
            raise Fatal("; ".join(refused))

    async def _until_told(self, tasks: Sequence[asyncio.Task[None]], waiting: asyncio.Task[bool]) -> None:
        left = set(tasks)
        while left and not waiting.done():
            done, _ = await asyncio.wait({*left, waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                left.discard(task)
                task.result()

    async def _drain(self, tasks: Sequence[asyncio.Task[None]], waiting: asyncio.Task[bool]) -> None:
        log.info("draining", service=self._name)
        for part in self._parts:
            part.stop()
        _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
        for task in late:
            log.warning("did not drain in time", service=self._name, part=task.get_name())
            task.cancel()
        waiting.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)
        await self._ops.stop()

    def troubles(self) -> list[str]:
        """What keeps this process from being ready, in words."""
        found = []
        for at, part in enumerate(self._parts):
            if refused := getattr(part, "refused", ""):
                found.append(refused)
            elif not part.ready:
                found.append(f"part {at} is not ready")
            elif (stalled := getattr(part, "stalled_s", lambda: 0.0)()) > STALL_S:
                found.append(f"part {at} has been behind without moving for {stalled:.0f} s")
        return found


def _tell_build() -> None:
    labels = {"version": _version("driftline"), "python": platform.python_version(), "onnxruntime": _version("onnxruntime")}
    metric("driftline_build_info").labels(**labels).set(1)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"
