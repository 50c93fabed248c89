"""Child processes: they end with their parent, and what they used stays known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from driftline.local.child import Child, Usage

PATIENCE_S = 20.0
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = """
import sys, time
from pathlib import Path
from driftline.local.child import Child
child = Child("child", [sys.executable, "-c", "import time; time.sleep(600)"], log=Path(sys.argv[1]))
print(child.pid, flush=True)
time.sleep(600)
"""


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return holds()


def is_gone(pid: int) -> bool:
    """Ended: unknown, or a zombie that nobody has asked about yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """
    A parent that is killed with -9 runs no code, and still leaves no process behind.
    """
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not is_gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: is_gone(child))


def test_what_a_child_used_is_known_after_its_end(tmp_path: Path) -> None:
    """
    CPU seconds and peak memory of a process that has ended are those it had.
    """
    work = "import time; held = bytearray(80_000_000); sum(range(5_000_000)); time.sleep(1.5)"
    child = Child("worker", [sys.executable, "-c", work], log=tmp_path / "log")
    assert child.wait(PATIENCE_S) == 0
    assert child.usage.cpu_s > 0.01
    assert 80_000_000 < child.usage.memory_peak_bytes < 400_000_000


def test_two_runs_add_their_cpu_and_keep_the_higher_peak() -> None:
    """
    The usage of a restarted service is the CPU of all its runs and the highest of their peaks.
    """
    assert Usage(1.0, 50) + Usage(2.0, 40) == Usage(3.0, 50)


def test_a_child_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    """
    `end` waits its grace for a process that does not listen to SIGTERM, then kills it.
    """
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    child = Child("deaf", [sys.executable, "-c", deaf], log=tmp_path / "log")
    assert eventually(lambda: "deaf" in child.log_tail())
    child.end(grace_s=0.2)
    assert child.exit_code == -signal.SIGKILL


def test_killing_a_child_ends_what_it_started(tmp_path: Path) -> None:
    """
    A process that the child had started is killed with it.
    """
    starts = f"import subprocess, sys, time; p = subprocess.Popen({SLEEP!r}); print(p.pid, flush=True); time.sleep(600)"
    child = Child("starter", [sys.executable, "-c", starts], log=tmp_path / "log")
    assert eventually(lambda: child.log_tail().strip().isdecimal())
    grandchild = int(child.log_tail())
    child.kill()
    assert eventually(lambda: is_gone(grandchild))


def test_signals_to_a_child_that_has_ended_do_nothing(tmp_path: Path) -> None:
    """
    Its pid may be another process's by then, so nothing is sent.
    """
    child = Child("quick", [sys.executable, "-c", "print('done')"], log=tmp_path / "log")
    assert child.wait(PATIENCE_S) == 0
    child.terminate()
    child.kill()
    assert (child.exit_code, child.alive, child.log_tail()) == (0, False, "done")
