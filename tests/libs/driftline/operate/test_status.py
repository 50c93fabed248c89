"""The state of processes, wherever they are."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from driftline.contracts.topics import LOOP
from driftline.errors import Invalid
from driftline.local.server import free_port
from driftline.operate.addresses import Addresses, find_addresses
from driftline.operate.processes import all_metrics, named, read_services
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
    assert list(told) == ["intake", "feature", processes["another"], processes["nobody"]]
    assert list(told.values())[:3] == ["ready", "part 0 is not ready; part 1 is not ready", "not ready (answered 404)"]
    assert told[processes["nobody"]].startswith("does not answer at")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that stand for addresses of this machine, as in a cluster those of headless Services do."""
    found: dict[str, list[str]] = {}
    ask = socket.getaddrinfo

    def answer(host: str, port: int, family: int = 0, kind: int = 0, *rest: int) -> list[Any]:
        if host not in found:
            return ask(host, port, family, kind, *rest)
        places = [ip for ip in found[host] if (":" in ip) == (family == socket.AF_INET6)]
        if not places:
            raise socket.gaierror("no address of this family")
        return [(family, kind, 0, "", (ip, port)) for ip in places]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return found


async def test_a_name_that_stands_for_several_processes_is_asked_at_each(names: dict[str, list[str]], tmp_path: Path):
    """
    A headless Service has the address of each pod. Of a service with several, each is shown with its own.
    """
    first = Ops("feature", 0, tmp_path)
    await first.start(list)
    port = int(json.loads((tmp_path / "feature.json").read_text())["ops"].rpartition(":")[2])
    second = Ops("feature", port, None, "127.0.0.2")
    await second.start(lambda: ["not started"])
    names["feature"] = ["127.0.0.2", "127.0.0.1"]
    addresses = Addresses("", "", "", tmp_path, (f"http://feature:{port}",))
    told = await asyncio.to_thread(read_services, addresses)
    shown = await asyncio.to_thread(all_metrics, addresses)
    others = dict.fromkeys([service for service in LOOP if service != "feature"], "no process of it answers")
    assert told == {f"feature (127.0.0.1:{port})": "ready", f"feature (127.0.0.2:{port})": "not started"} | others
    assert [bool(process) for process in shown] == [True, True]
    await first.stop()
    await second.stop()


def test_a_name_is_looked_up_where_that_says_more(names: dict[str, list[str]]):
    """
    Version 4 before 6, as services listen; a name with one address stays as it is, as does one that a certificate is made out to.
    """
    names |= {"six": ["fd00::1", "fd00::2"], "both": ["fd00::1", "10.0.0.1", "10.0.0.2"], "one": ["10.0.0.1"], "gone": []}
    long = "http://" + "x" * 64 + ":9100"  # no name of a host can be
    asked = ["http://six:9100", "http://both:9100", "http://one:9100", "https://both:9100", "http://gone:9100", "http://one:9100", long]
    assert named(asked) == [
        "http://[fd00::1]:9100",
        "http://[fd00::2]:9100",
        "http://10.0.0.1:9100",
        "http://10.0.0.2:9100",
        "http://one:9100",
        "https://both:9100",
        "http://gone:9100",
        long,
    ]


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
    for wrong in ("intake:9100", "http://intake:91O0", "http://intake:99999", "http://:9100", "http://[::1", "ftp://intake"):
        with pytest.raises(Invalid, match="is no address of a service; name it in DRIFTLINE_OPS"):
            find_addresses(SERVERS | {"DRIFTLINE_OPS": wrong}, tmp_path)
