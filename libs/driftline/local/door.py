"""The gateway on a machine of somebody's own: with which settings it is started, and where it listens."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

HTTP_PORT = 8080


def open_door(environment: Mapping[str, str]) -> dict[str, str]:
    """
    What a gateway on somebody's own machine needs: without a tokens file it is open to this machine alone; another port where the usual
    one is taken.
    """
    made = {"DRIFTLINE_HTTP_PORT": str(HTTP_PORT if _is_free(HTTP_PORT) else 0)}
    return made | ({} if environment.get("DRIFTLINE_TOKENS_FILE") else {"DRIFTLINE_GATEWAY_OPEN": "loopback"})


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def read_http(run_dir: Path) -> str:
    """Where the gateway listens; empty while it does not."""
    try:
        return str(json.loads((run_dir / "gateway.json").read_text()).get("http", ""))
    except (OSError, ValueError):
        return ""
