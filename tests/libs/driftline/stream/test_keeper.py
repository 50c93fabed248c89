"""The keeper: who is started again, who is not, and that nobody is left behind. Each keeper is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from driftline.stream.keeper import QUICK_DEATHS_MAX

PATIENCE_S = 30.0
HEAD = """
import os, pathlib, signal, sys, time
from driftline.clock import SystemClock
from driftline.errors import Fatal
from driftline.stream.keeper import keep
told = pathlib.Path(sys.argv[1])
def tell(word):
    with told.open("a") as file:
        file.write(word + chr(10))
def wait_for_ever():
    while True:
        time.sleep(0.05)
"""
TAIL = """
sys.exit(keep(work, SystemClock()))
"""
WAITS = """
def work(restarts):
    tell(f"{restarts} {os.getpid()}")
    wait_for_ever()
"""
DRAINS = """
def work(restarts):
    def drain(*_):
        tell("drained")
        os._exit(0)
    signal.signal(signal.SIGTERM, drain)
    tell(f"{restarts} {os.getpid()}")
    wait_for_ever()
"""
IS_KILLED_AT_ONCE = """
def work(restarts):
    tell(f"{restarts} {os.getpid()}")
    os.kill(os.getpid(), signal.SIGKILL)
"""
REFUSES = """
def work(restarts):
    tell(f"{restarts} {os.getpid()}")
    raise Fatal("the partition was refused")
"""
FAILS = """
def work(restarts):
    raise ZeroDivisionError("nobody foresaw this")
"""


class Kept:
    """A keeper that runs, and the words that its workers wrote."""

    def __init__(self, folder: Path, work: str) -> None:
        self._told = folder / "told"
        command = [sys.executable, "-c", HEAD + work + TAIL, str(self._told)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def words(self) -> list[str]:
        return self._told.read_text().splitlines() if self._told.exists() else []

    def worker(self, restarts: int) -> int:
        """The pid of the worker that was started after so many restarts."""
        line = until(lambda: next((word for word in self.words() if word.startswith(f"{restarts} ")), None))
        return int(line.split()[1])


def until(found: Callable[[], str | None]) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while (answer := found()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Callable[[str], Kept]]:
    """Starts keepers, and ends what is left of them."""
    started: list[Kept] = []

    def start(work: str) -> Kept:
        started.append(Kept(tmp_path, work))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.communicate()


def test_a_worker_that_is_killed_is_forked_again_and_told_how_often(kept: Callable[[str], Kept]) -> None:
    """
    By the same keeper, as often as it takes.
    """
    one = kept(WAITS)
    for restarts in range(3):
        os.kill(one.worker(restarts), signal.SIGKILL)
    assert one.worker(3) != one.worker(2)
    assert one.process.poll() is None


def test_a_keeper_that_is_told_to_stop_drains_its_worker_and_starts_no_other(kept: Callable[[str], Kept]) -> None:
    """
    SIGTERM goes on to the worker, whose status becomes the keeper's.
    """
    one = kept(DRAINS)
    one.worker(0)
    one.process.terminate()
    assert one.process.wait(PATIENCE_S) == 0
    assert one.words()[-1] == "drained"
    assert len(one.words()) == 2


def test_a_worker_that_is_told_before_it_listens_is_not_started_again(kept: Callable[[str], Kept]) -> None:
    """
    The signal ends it, as it would without a keeper, and the status names the signal.
    """
    one = kept(WAITS)
    one.worker(0)
    one.process.terminate()
    assert one.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert len(one.words()) == 1


def test_a_worker_that_refuses_ends_the_keeper_with_its_status(kept: Callable[[str], Kept]) -> None:
    """
    What driftline raises on purpose is words, said once.
    """
    one = kept(REFUSES)
    _, words = one.process.communicate(timeout=PATIENCE_S)
    assert (one.process.returncode, words) == (1, "the partition was refused\n")
    assert len(one.words()) == 1


def test_an_error_that_nobody_foresaw_is_told_and_not_repeated(kept: Callable[[str], Kept]) -> None:
    """
    With its traceback, and a status for whoever started the keeper.
    """
    one = kept(FAILS)
    _, words = one.process.communicate(timeout=PATIENCE_S)
    assert one.process.returncode == 1
    assert "ZeroDivisionError: nobody foresaw this" in words


def test_a_worker_that_is_killed_over_and_over_is_given_up(kept: Callable[[str], Kept]) -> None:
    """
    After more tries than a poison record needs to be set aside.
    """
    one = kept(IS_KILLED_AT_ONCE)
    assert one.process.wait(2 * PATIENCE_S) == 128 + signal.SIGKILL
    assert len(one.words()) == QUICK_DEATHS_MAX


def test_killing_the_keeper_kills_its_worker(kept: Callable[[str], Kept]) -> None:
    """
    Or else a supervisor would start a second worker beside the first.
    """
    one = kept(WAITS)
    worker = psutil.Process(one.worker(0))
    one.process.kill()
    worker.wait(PATIENCE_S)
    assert not worker.is_running()
