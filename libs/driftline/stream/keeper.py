"""
A small parent in front of a worker: it has imported everything, forks the process that works, and forks again when that one is killed.

What a killed process costs is mostly the start of its successor: Python, numba and the runtimes take seconds to import, the
partition is acquired in a fraction of one (docs/decisions/0011). So the keeper imports once and never works: it holds no
connection, no event loop, no thread and no state, so a fork of it is as good as a fresh process. It restarts only what a signal
ended (`kill -9`, the kernel short of memory, a crash in native code). A worker that ended by itself had its reason, and that is for
whoever started the keeper to see: the keeper ends with the same status. Killing the keeper kills the worker.

Correctness rests on none of it: whoever comes back acquires its partitions by the ledger, as after any restart.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable

from driftline.clock import Clock
from driftline.errors import DriftlineError
from driftline.logs import log

QUICK_S = 10.0  # a worker that was killed sooner than this after its start
QUICK_DEATHS_MAX = 40  # in a row, then give up: a poison record is set aside after 15
BACKOFF_S = 0.01
BACKOFF_AFTER = 3  # quick deaths in a row that are answered at once
PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGTERM, signal.SIGINT)

Work = Callable[[int], None]


def keep(work: Work, clock: Clock) -> int:
    """
    Run `work(restarts)` in a forked child until one ends by itself, and return the exit status for this process.

    SIGTERM and SIGINT go on to the child, which drains. `work` raises DriftlineError for what a person must be told.
    """
    if not sys.platform.startswith("linux"):  # a keeper needs a kernel that ends the worker with it, and a safe fork
        work(0)
        return 0
    gc.freeze()  # what is imported stays shared with the children; to collect first would be a twentieth of the start
    keeper = Keeper(work, clock)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: keeper.forward(number))
    return keeper.run()


class Keeper:
    """One worker at a time."""

    def __init__(self, work: Work, clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._pid = 0
        self._stopping = threading.Event()

    def run(self) -> int:
        """The status of the worker that ended by itself, or of the last one when too many in a row were killed."""
        quick = restarts = 0
        while not self._stopping.is_set():
            began = self._clock.monotonic_s()
            status = self._one(restarts)
            if status >= 0:
                return status
            if self._stopping.is_set():
                return 128 - status
            quick = quick + 1 if self._clock.monotonic_s() - began < QUICK_S else 0
            log.warning("worker killed", signal=signal.Signals(-status).name, restarts=restarts, quick=quick)
            if quick >= QUICK_DEATHS_MAX:
                log.error("giving up", because=f"{quick} workers in a row were killed within {QUICK_S:.0f} s of their start")
                return 128 - status
            restarts += 1
            self._stopping.wait(BACKOFF_S * max(0, quick - BACKOFF_AFTER))
        return 0

    def forward(self, number: int) -> None:
        """Tell the worker, and start no other."""
        self._stopping.set()
        if self._pid:
            os.kill(self._pid, number)

    def _one(self, restarts: int) -> int:
        """Fork, wait, and return the exit status: minus the signal's number when one ended it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # not between the fork and the knowledge of its pid
        keeper = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            self._become_worker(keeper, restarts)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _become_worker(self, keeper: int, restarts: int) -> None:
        """Never returns."""
        status = 1
        try:
            _die_with(keeper)
            for number in FORWARDED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            self._work(restarts)
            status = 0
        except DriftlineError as error:
            print(error, file=sys.stderr)
        except BaseException:  # the last frame of a process: it is told and its status says so
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _die_with(keeper: int) -> None:
    """Have the kernel kill this process when the keeper ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:  # it ended before the kernel was told
        os._exit(1)
