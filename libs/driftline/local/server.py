"""A server for this machine alone: a free port that is surely ours, a start that waits for its first right answer."""

from __future__ import annotations

import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from driftline.errors import Fatal
from driftline.local.child import Child, Usage

HOST = "127.0.0.1"
PORT_TRIES = 3
ASK_EVERY_S = 0.02


class Server(ABC):
    """
    One server process with its data in `folder`. Started again, it has the same port and the same data.

    Made and used by one thread at a time. It dies with this process.
    """

    name: str
    start_timeout_s: float = 60.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.up_in_s = 0.0
        self.usage_before = Usage()
        self.child: Child | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs. Raises Fatal when none does."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    @property
    def usage(self) -> Usage:
        """Of all its processes since it was made, the killed ones included."""
        return self.usage_before + (self.child.usage if self.child else Usage())

    def start(self) -> None:
        """Start it and return when it answers. Raises Fatal, with the end of its log, when it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tries = 1 if self.port else PORT_TRIES
        for attempt in range(1, tries + 1):
            port = self.port or free_port()
            try:
                self._start_on(port)
            except Fatal:
                if attempt == tries or not self._port_was_taken():
                    raise
            else:
                self.port = port
                return

    def stop(self) -> None:
        """Let it end in order; kill it when that takes longer than ten seconds. Nothing happens when it does not run."""
        if self.child is not None:
            self.child.end()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        self._running().kill()

    def restart(self) -> None:
        """Stop it if it runs; start it on the same port with the same data."""
        self.stop()
        self.start()

    def clear(self) -> None:
        """Remove the data of an earlier run. Call it before `start`."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @abstractmethod
    def _command(self, port: int) -> list[str]:
        """Write what it needs into `folder` and give the command line that starts it on `port`."""

    @abstractmethod
    def _is_ours(self, port: int) -> bool:
        """Whether what answers on `port` is the process that this object started, ready for work. OSError: not yet."""

    def _environment(self) -> Mapping[str, str] | None:
        return None

    def _start_on(self, port: int) -> None:
        begun = time.monotonic()
        self.usage_before = self.usage
        self.child = Child(self.name, self._command(port), log=self.folder / f"{self.name}.log", env=self._environment())
        while not self._answers(port):
            if not self.child.alive:
                raise self._failure(f"ended at once (status {self.child.exit_code})")
            if time.monotonic() - begun > self.start_timeout_s:
                self.child.kill()
                raise self._failure(f"did not answer within {self.start_timeout_s:.0f} s")
            time.sleep(ASK_EVERY_S)
        self.up_in_s = time.monotonic() - begun

    def _answers(self, port: int) -> bool:
        try:
            return self._is_ours(port)
        except OSError:
            return False

    def _failure(self, what: str) -> Fatal:
        log, tail = (self.child.log, self.child.log_tail()) if self.child else ("", "")
        return Fatal(f"{self.name} {what}; the end of {log}:\n{tail}")

    def _port_was_taken(self) -> bool:
        tail = self.child.log_tail(200).lower() if self.child else ""
        return "address already in use" in tail or "failed to bind" in tail

    def _running(self) -> Child:
        if self.child is None or not self.child.alive:
            raise Fatal(f"{self.name} does not run")
        return self.child


def free_port() -> int:
    """A port that nobody listens on now. Somebody may by the time it is used: whoever starts a server checks that it is theirs."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
