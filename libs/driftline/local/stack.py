"""The servers that driftline needs on this machine, started in order, with the processes that run on them.

A server that the user has (DRIFTLINE_KAFKA, DRIFTLINE_REDIS, DRIFTLINE_REGISTRY) is used instead of an own one. Whatever
was started is stopped by `stop`, and is killed when this process ends without it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from driftline.errors import Rejected
from driftline.local.broker import Broker
from driftline.local.child import Child, Usage
from driftline.local.server import HOST, Server
from driftline.local.valkey import Valkey

GRACE_S = 15.0
ANSWER_TIMEOUT_S = 2.0
ADDRESSES = "stack.json"


class RegistryServer(Server):
    """The embedded schema registry in a process of its own, on the Kafka at `kafka` (host:port)."""

    name = "registry"

    def __init__(self, folder: Path, kafka: str) -> None:
        super().__init__(folder)
        self._kafka = kafka
        self._identity = secrets.token_hex(8)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def _command(self, port: int) -> list[str]:
        given = ["--kafka", self._kafka, "--port", str(port), "--identity", self._identity]
        return [sys.executable, "-m", "driftline.local.registry", *given]

    def _is_ours(self, port: int) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://{HOST}:{port}/v1/metadata/id", timeout=ANSWER_TIMEOUT_S) as answer:
            return bool(json.load(answer)["id"] == self._identity)


class Stack:
    """
    Kafka, Valkey and the registry, and the service processes on them, with all their files in `folder`.

    `start`, `spawn`, `restart` and `stop` may be called from any thread, and `stop` from a signal handler, more than once.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str] = os.environ) -> None:
        self.folder = folder.resolve()
        self.kafka: Broker | None = None
        self.valkey: Valkey | None = None
        self.registry: RegistryServer | None = None
        self.children: dict[str, Child] = {}
        self._kafka_address = environment.get("DRIFTLINE_KAFKA", "")
        self._redis_url = environment.get("DRIFTLINE_REDIS", "")
        self._registry_url = environment.get("DRIFTLINE_REGISTRY", "")
        self._spawned: dict[str, tuple[tuple[str, ...], dict[str, str], Path]] = {}
        self._usage: dict[str, Usage] = {}
        self._lock = threading.RLock()
        self._stopped = False
        self._claim: IO[str] | None = None

    @property
    def run_dir(self) -> Path:
        """Where each service writes the address of its ops port."""
        return self.folder / "run"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def start(self, on_up: Callable[[str, str, float], None] | None = None) -> None:
        """
        Start what the environment does not name, from empty data, and return when all of it answers.

        `on_up(name, address, seconds)` is told of each server. Raises Rejected while another stack uses the folder,
        Fatal, in words, when a server does not start; what had started is stopped then.
        """
        with self._lock:
            self._claim_folder()
            try:
                self._start_servers(on_up or (lambda name, address, seconds: None))
            except BaseException:
                self.stop()
                raise
            self._write_addresses()

    def environment(self) -> dict[str, str]:
        """What a process needs to find the stack. Call it after `start`."""
        return {
            "DRIFTLINE_KAFKA": self._kafka_address,
            "DRIFTLINE_REDIS": self._redis_url,
            "DRIFTLINE_REGISTRY": self._registry_url,
            "DRIFTLINE_RUN_DIR": str(self.run_dir),
        }

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, log: Path | None = None) -> Child:
        """
        Start a process with this process's environment, that of the stack and `env`, its output in logs/`name`.log.

        Raises Rejected when one of that name runs, or when the stack was stopped.
        """
        with self._lock:
            if self._stopped:
                raise Rejected(f"{name} is not started: the stack was stopped")
            if name in self.children:
                if self.children[name].alive:
                    raise Rejected(f"{name} runs already (pid {self.children[name].pid})")
                self._usage[name] = self._usage.get(name, Usage()) + self.children[name].usage
            self._spawned[name] = (tuple(argv), dict(env or {}), log or self.logs / f"{name}.log")
            command, extra, output = self._spawned[name]
            child = Child(name, command, log=output, env={**os.environ, **self.environment(), **extra})
            self.children[name] = child
            return child

    def restart(self, name: str) -> None:
        """Start a server or a process again as it was, after ending it in order if it still runs."""
        server = self._servers().get(name)
        if server is not None:
            server.restart()
            return
        if name not in self._spawned:
            raise Rejected(f"nothing of the name {name} was started here")
        self.children[name].end(GRACE_S)
        command, extra, output = self._spawned[name]
        self.spawn(name, command, extra, output)

    def usage(self) -> dict[str, Usage]:
        """Of each server and process by name, over all its restarts, also after its end."""
        with self._lock:
            used = {name: server.usage for name, server in self._servers().items()}
            for name, child in self.children.items():
                used[name] = self._usage.get(name, Usage()) + child.usage
            return used

    def stop(self) -> None:
        """End the processes, then the registry, then the servers, each in order or else killed. Leaves none behind."""
        with self._lock:
            self._stopped = True
            self._end_children()
            for server in (self.registry, self.valkey, self.kafka):
                if server is not None:
                    server.stop()
            (self.folder / ADDRESSES).unlink(missing_ok=True)
            if self._claim is not None:
                self._claim.close()
                self._claim = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _servers(self) -> dict[str, Server]:
        own = {"kafka": self.kafka, "valkey": self.valkey, "registry": self.registry}
        return {name: server for name, server in own.items() if server is not None}

    def _start_servers(self, on_up: Callable[[str, str, float], None]) -> None:
        if not self._kafka_address:
            self.kafka = Broker(self.folder / "kafka")
        if not self._redis_url:
            self.valkey = Valkey(self.folder / "valkey")
        self._start_at_once([server for server in (self.kafka, self.valkey) if server is not None])
        if self.kafka is not None:
            self._kafka_address = self.kafka.address
            on_up("kafka", self.kafka.address, self.kafka.up_in_s)
        if self.valkey is not None:
            self._redis_url = self.valkey.url
            on_up("valkey", f"{HOST}:{self.valkey.port}", self.valkey.up_in_s)
        if not self._registry_url:
            self.registry = RegistryServer(self.folder / "registry", self._kafka_address)
            self._start_at_once([self.registry])
            self._registry_url = self.registry.url
            on_up("registry", f"{HOST}:{self.registry.port}", self.registry.up_in_s)

    def _start_at_once(self, servers: Sequence[Server]) -> None:
        for server in servers:
            server.clear()
        if not servers:
            return
        with ThreadPoolExecutor(len(servers)) as pool:
            for started in [pool.submit(server.start) for server in servers]:
                started.result()

    def _end_children(self) -> None:
        """All are asked at once, and share the time that they have to end."""
        running = [child for child in self.children.values() if child.alive]
        for child in running:
            child.terminate()
        until = time.monotonic() + GRACE_S
        for child in running:
            if child.wait(max(0.0, until - time.monotonic())) is None:
                child.kill()

    def _claim_folder(self) -> None:
        if self._stopped or self._claim is not None:
            raise Rejected("this stack was started before; make a new one")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._claim.close()
            self._claim = None
            raise Rejected(f"another stack runs in {self.folder}; stop it, or give another folder") from error
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.logs, ignore_errors=True)
        self.run_dir.mkdir()

    def _write_addresses(self) -> None:
        """Whole or not at all: others wait for this file."""
        addresses = {"kafka": self._kafka_address, "redis": self._redis_url, "registry": self._registry_url}
        written = self.folder / f".{ADDRESSES}"
        written.touch(mode=0o600)  # an address may hold a password
        written.write_text(json.dumps(addresses, indent=2) + "\n")
        written.replace(self.folder / ADDRESSES)
