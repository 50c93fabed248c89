"""The embedded Valkey: nothing evicted, what was synced survives a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from driftline.errors import Fatal
from driftline.local.valkey import Valkey


def test_synced_writes_survive_a_crash(tmp_path: Path) -> None:
    """
    Killed with -9 and started again, it has the same address and what the append-only file held.
    """
    with Valkey(tmp_path / "valkey") as valkey:
        url, former = valkey.url, valkey.pid
        with redis.Redis.from_url(url) as client:
            client.set("entity", b"row")
            client.execute_command("WAITAOF", 1, 0, 5000)
        valkey.kill()
        valkey.restart()
        with redis.Redis.from_url(url) as client:
            assert client.get("entity") == b"row"
        assert (valkey.url, valkey.pid != former) == (url, True)


def test_nothing_is_ever_evicted(redis_url: str) -> None:
    """
    State that vanished under memory pressure would be state that no log explains.
    """
    with redis.Redis.from_url(redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_server_that_does_not_run_cannot_be_killed(tmp_path: Path) -> None:
    """
    Killing what is not there says so, by name.
    """
    with pytest.raises(Fatal, match="valkey does not run"):
        Valkey(tmp_path / "valkey").kill()
