"""The state of processes, wherever they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from driftline.errors import Invalid
from driftline.local.server import free_port
from driftline.operate.addresses import Addresses, find_addresses
from driftline.operate.status import read_services
from driftline.stream.process import Ops

SERVERS = {"DRIFTLINE_KAFKA": "k:1", "DRIFTLINE_REDIS": "redis://r", "DRIFTLINE_REGISTRY": "http://s"}


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """What two processes listen on, one of them ready and one not; and where something else listens that is none of ours, and nobody."""
    ready, waiting = Ops("intake", run_dir=tmp_path), Ops("feature", run_dir=tmp_path)
    await ready.start(list)
    await waiting.start(lambda: ["part 0 is not ready", "part 1 is not ready"])
    other = await asyncio.start_server(refuses, "127.0.0.1", 0)
    told = {name: json.loads((tmp_path / f"{name}.json").read_text())["ops"] for name in ("intake", "feature")}
    at = [f"http://127.0.0.1:{port}" for port in (other.sockets[0].getsockname()[1], free_port())]
    yield {**told, "another": at[0], "nobody": at[1]}
    other.close()
    await ready.stop()
    await waiting.stop()


async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!")
    await writer.drain()
    writer.close()


async def test_processes_that_are_named_are_asked_where_they_are(processes: dict[str, str], tmp_path: Path):
    """
    As in a cluster, where no run dir is shared: each by its address, in words, those alone that were named.
    """
    addresses = Addresses("", "", "", tmp_path / "nothing", tuple(processes.values()))
    told = await asyncio.to_thread(read_services, addresses)
    assert list(told) == list(processes.values())
    assert list(told.values())[:3] == ["ready", "part 0 is not ready; part 1 is not ready", "not ready (answered 404)"]
    assert told[processes["nobody"]].startswith("does not answer at")


async def test_without_names_the_run_dir_says_where_they_are(processes: dict[str, str], tmp_path: Path):
    """
    Whoever wrote no address there was not started.
    """
    told = await asyncio.to_thread(read_services, Addresses("", "", "", tmp_path))
    assert (told["intake"], told["feature"]) == ("ready", "part 0 is not ready; part 1 is not ready")
    assert told["drift"].startswith("not started here")


def test_names_of_processes_come_from_the_environment(tmp_path: Path):
    """
    With commas between them; a name without a scheme is no address, and is told.
    """
    found = find_addresses(SERVERS | {"DRIFTLINE_OPS": "http://intake:9100/, http://feature-0.feature:9100,"}, tmp_path)
    assert found.ops == ("http://intake:9100", "http://feature-0.feature:9100")
    assert find_addresses(SERVERS, tmp_path).ops == ()
    with pytest.raises(Invalid, match="intake:9100 is no address of a service"):
        find_addresses(SERVERS | {"DRIFTLINE_OPS": "intake:9100"}, tmp_path)
