"""What several tests need of processes and of logs that take their time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 20.0
DRAIN_S = 30
Found = TypeVar("Found")


@contextmanager
def service(name: str, pipeline: str, environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`driftline run`, with its log in `folder`; asked to drain at the end, and killed when it does not."""
    command = [sys.executable, "-m", "driftline", "run", name, "--pipeline", pipeline]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DRAIN_S)
        finally:
            process.kill()
            process.wait()


def until(found: Callable[[], Found], good: Callable[[Found], bool], patience_s: float = PATIENCE_S) -> Found:
    """What `found` gives once it is `good`."""
    deadline = time.monotonic() + patience_s
    while not good(told := found()):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told
