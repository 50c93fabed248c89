"""A process and its parts: what the operations endpoints say, how it drains, and what one failure does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from driftline.errors import Fatal
from driftline.stream.process import STALL_S, Ops, Process


class Part:
    """Runs until stopped; then says that it drained."""

    def __init__(self, *, ready: bool = True, refused: str = "", stalled_s: float = 0.0) -> None:
        self.ready = ready
        self.refused = refused
        self.drained = False
        self._stalled_s = stalled_s
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(0.05)  # the batch in hand
        self.drained = True

    def stop(self) -> None:
        self._stopping.set()

    def stalled_s(self) -> float:
        return self._stalled_s


class Failing(Part):
    """Fails at once."""

    async def run(self) -> None:
        raise ZeroDivisionError("nobody foresaw this")


async def ask(ops: str, request: bytes) -> tuple[int, bytes]:
    """Status and body; the status is 0 when there was no answer."""
    host, port = ops.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def get(ops: str, path: str) -> tuple[int, bytes]:
    return await ask(ops, f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())


async def through(folder: Path, parts: list[Part], asking: Callable[[str], Awaitable[Any]]) -> Any:
    """Run a process of `parts`, do `asking` at its address, drain it by SIGTERM, and return what was asked for."""
    task = asyncio.create_task(Process("toy", parts, Ops("toy", 0, folder)).run())
    place = folder / "toy.json"
    while not place.exists():
        await asyncio.sleep(0.01)
    try:
        return await asking(json.loads(place.read_text())["ops"])
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.gather(task, return_exceptions=True)


async def test_who_listens_everywhere_tells_an_address_that_others_can_ask(tmp_path: Path) -> None:
    """
    In a container: the file is read from another one, for which 0.0.0.0 would be itself.
    """
    ops = Ops("toy", 0, tmp_path, "0.0.0.0")
    await ops.start(list)
    try:
        told = json.loads((tmp_path / "toy.json").read_text())["ops"]
        assert "0.0.0.0" not in told
        assert await get(told, "/readyz") == (200, b'{"service": "toy", "ready": true, "troubles": []}')
    finally:
        await ops.stop()


async def test_a_process_that_works_is_alive_and_ready_and_shows_its_metrics(tmp_path: Path) -> None:
    """
    Each endpoint answers; others are not there.
    """

    async def asking(ops: str) -> list[tuple[int, bytes]]:
        return [await get(ops, path) for path in ("/healthz", "/readyz", "/readyz?verbose", "/metrics", "/elsewhere")]

    alive, ready, asked, metrics, elsewhere = await through(tmp_path, [Part()], asking)
    assert alive == (200, b'{"alive": true}')
    assert ready == asked == (200, b'{"service": "toy", "ready": true, "troubles": []}')
    assert metrics[0] == 200 and b"driftline_build_info" in metrics[1]
    assert elsewhere[0] == 404


async def test_readiness_says_in_words_what_is_wrong(tmp_path: Path) -> None:
    """
    A refused partition, a part that is not ready, and one that stands still are three different troubles.
    """
    parts = [Part(refused="log[3]: another log. Rebuild it"), Part(ready=False), Part(stalled_s=STALL_S + 1), Part()]
    still = f"part 2 has been behind without moving for {STALL_S + 1:.0f} s"
    status, body = await through(tmp_path, parts, lambda ops: get(ops, "/readyz"))
    assert status == 503
    assert json.loads(body) == {
        "service": "toy",
        "ready": False,
        "troubles": ["log[3]: another log. Rebuild it", "part 1 is not ready", still],
    }


@pytest.mark.parametrize("request_", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET \xff\xfe HTTP/1.1\r\n\r\n", b"x" * 20_000])
async def test_a_request_that_is_none_is_answered_or_cut_off(tmp_path: Path, request_: bytes) -> None:
    """
    The connection is closed in any case, and the next request is answered.
    """

    async def asking(ops: str) -> tuple[int, int]:
        try:
            bad, _ = await ask(ops, request_)
        except ConnectionError:
            bad = 0
        return bad, (await get(ops, "/healthz"))[0]

    bad, good = await through(tmp_path, [Part()], asking)
    assert bad in (0, 404) and good == 200


async def test_a_termination_signal_drains_every_part(tmp_path: Path) -> None:
    """
    Each finishes what it has in hand before the process ends.
    """
    parts = [Part(), Part()]
    await through(tmp_path, parts, lambda ops: get(ops, "/healthz"))
    assert [part.drained for part in parts] == [True, True]


async def test_the_failure_of_one_part_drains_the_others_and_ends_the_process() -> None:
    """
    Whoever started it learns why.
    """
    other = Part()
    with pytest.raises(ZeroDivisionError, match="foresaw"):
        await Process("toy", [other, Failing()], Ops("toy")).run()
    assert other.drained


async def test_a_process_whose_partitions_were_all_refused_ends_with_the_reason() -> None:
    """
    It has nothing left to do, and its end is no success.
    """
    part = Part(refused="log[0]: another log. Rebuild it")
    part.stop()
    with pytest.raises(Fatal, match="another log"):
        await Process("toy", [part], Ops("toy")).run()
