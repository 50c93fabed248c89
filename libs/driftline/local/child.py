"""Processes that never outlive their parent, not even when it is killed with -9; their CPU and memory stay known.

A parent that is killed runs no code, so a watcher does it: one `sh`, in a session of its own, that reads from a pipe whose
only other end the parent holds. The pipe closes when the parent ends, however it ends; the watcher then kills the group of
each child that it was told of. (Linux could do it with PR_SET_PDEATHSIG, but that fires when the *thread* ends that started
the child, and other systems have nothing like it.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.5
POLL_S = 0.01
_WATCH = """
trap '' INT TERM HUP
pids=
while read -r what pid; do
  if [ "$what" = + ]; then pids="$pids $pid"; continue; fi
  left=
  for p in $pids; do [ "$p" = "$pid" ] || left="$left $p"; done
  pids=$left
done
for p in $pids; do kill -s KILL -- "-$p" 2>/dev/null; done
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has cost so far: CPU seconds (of the user and the system), and the most memory that it held."""

    cpu_s: float = 0.0
    memory_peak_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Of two runs of the same service: the CPU of both, the higher of the peaks."""
        return Usage(self.cpu_s + other.cpu_s, max(self.memory_peak_bytes, other.memory_peak_bytes))


class _Watcher:
    """The one `sh` of this process that kills what is left when this process is gone. Started with the first child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: int | None = None
        self._owner = 0

    def add(self, pid: int) -> None:
        self._tell("+", pid)

    def remove(self, pid: int) -> None:
        self._tell("-", pid)

    def _tell(self, what: str, pid: int) -> None:
        with self._lock:
            if self._pipe is None or self._owner != os.getpid():
                self._start()
            assert self._pipe is not None
            os.write(self._pipe, f"{what} {pid}\n".encode())

    def _start(self) -> None:
        read, self._pipe = os.pipe()
        self._owner = os.getpid()
        subprocess.Popen(
            ["/bin/sh", "-c", _WATCH], stdin=read, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(read)


_watcher = _Watcher()


class Child:
    """
    A process of its own session, started at once. Its output goes to the end of `log`. It dies with this process.

    Safe to use from several threads. A terminal's Ctrl-C does not reach it: its parent decides when it ends.
    """

    def __init__(self, name: str, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.log = log
        self._lock = threading.RLock()
        self._exit_code: int | None = None
        self._usage = Usage()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                start_new_session=True,
            )
        self.pid = process.pid
        process.returncode = 0  # this class reaps the process itself, to learn what it used
        _watcher.add(self.pid)
        threading.Thread(target=self._sample, name=f"usage of {name}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._reap() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it, as in `subprocess`."""
        return self._reap()

    @property
    def usage(self) -> Usage:
        """Up to now, or up to its end. The peak is at most half a second old."""
        with self._lock:
            if self._reap() is None:
                self._usage = self._measure()
            return self._usage

    def terminate(self) -> None:
        """Ask it to end (SIGTERM). Nothing happens when it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it started (SIGKILL), and wait until it is gone."""
        self._signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit code; None when it still runs after `timeout_s`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while self._reap() is None and (until is None or time.monotonic() < until):
            time.sleep(POLL_S)
        return self._exit_code

    def end(self, grace_s: float = 10.0) -> None:
        """Ask it to end, wait `grace_s` for it, then kill it."""
        self.terminate()
        if self.wait(grace_s) is None:
            self.kill()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log, for an error message."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:  # not between its end and its reaping: the pid could be another's by then
            if self._reap() is None:
                with contextlib.suppress(ProcessLookupError):
                    if number is signal.SIGKILL:
                        os.killpg(self.pid, number)
                    else:
                        os.kill(self.pid, number)

    def _reap(self) -> int | None:
        with self._lock:
            if self._exit_code is None:
                pid, status, used = os.wait4(self.pid, os.WNOHANG)
                if pid:
                    self._exit_code = os.waitstatus_to_exitcode(status)
                    cpu_s = max(used.ru_utime + used.ru_stime, self._usage.cpu_s)  # a worker killed with its keeper was not waited for
                    self._usage = Usage(cpu_s, self._usage.memory_peak_bytes)
                    _watcher.remove(self.pid)
            return self._exit_code

    def _sample(self) -> None:
        while self.usage and self._exit_code is None:
            time.sleep(SAMPLE_S)

    def _measure(self) -> Usage:
        """
        CPU of the process, of those that it waited for and of those that run: a keeper and its worker. The memory is that of the
        largest, for these two share most of it. Not `ru_maxrss`: that begins with the memory of the parent.
        """
        try:
            process = psutil.Process(self.pid)
            times = process.cpu_times()
            waited_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            found = Usage(times.user + times.system + waited_s, max(self._usage.memory_peak_bytes, _memory(process)))
            for running in process.children():
                times = running.cpu_times()
                found += Usage(times.user + times.system, _memory(running))
        except (psutil.Error, OSError):
            return self._usage
        return Usage(max(found.cpu_s, self._usage.cpu_s), found.memory_peak_bytes)


def _memory(process: psutil.Process) -> int:
    """The most memory that it held, where the system tells; else what it holds."""
    resident: int = process.memory_info().rss
    return _memory_peak(process.pid) if sys.platform == "linux" else resident


def _memory_peak(pid: int) -> int:
    """The high-water mark in bytes that Linux keeps of the program (0 once it has ended)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
