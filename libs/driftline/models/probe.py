"""
Try a graph in a process of its own before this one loads it: what only running shows must not show here.

A graph that has passed every check can still divide the smallest integer by -1, which ends the process (the processor's fault,
not an exception), multiply for an hour, ask for a terabyte, or answer by which rows stand beside a row. So a child loads it
first and scores rows with it: the training medians and what lies between the lowest and highest values that training saw, then
rows of nothing, infinities and absurd numbers, in several sizes of batch. The child opens no file, starts no process, knows no
secret, and has limits for memory and for processor time. Whatever becomes of it, this process goes on.

Verdicts are kept in memory alone: a file in the store could be written by whoever wrote the model. A verdict does not depend on
what was tried before: a child that has tried another graph and then refuses one, or dies, is replaced, and its word not taken.
Time that is judged is processor time, so that a busy machine refuses no good model; the wall clock only ends what stands still.

`python -m driftline.models.probe` is the child: trials come in on its standard input, one line goes out for each.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid, Recoverable
from driftline.models.reference import Reference
from driftline.models.runtime import ROWS_MAX, Loaded, invariant

Matrix = npt.NDArray[np.float32]

ROWS = 64
ORDINARY_ROWS = 32  # of those; the others are extreme
CHUNKS = (1, 2, 7, ROWS)
EXTREMES = (np.nan, np.inf, -np.inf, 0.0, 1e38, -1e38)
SEED = 20

TRIAL_CPU_S = 5  # of processor time, to load a graph and to score with it
FULL_BATCH_CPU_S = 1.0  # for ROWS_MAX rows; 100 trees of 31 leaves take a fiftieth
MEMORY_BYTES_MAX = 768 << 20  # on top of what the child has before it has seen a graph
TRIAL_WALL_S = 60.0  # processor time is what is judged; this is for a child that stands still
IDLE_S = 10.0  # after so long without a trial the child leaves
REPLY_BYTES_MAX = 4_096
TRIALS_MAX = 3  # without an end, before that is taken for a refusal
VERDICTS_MAX = 1_000

_LIBS = Path(__file__).resolve().parents[2]
_PASSED_ON = ("LD_LIBRARY_PATH", "PATH")  # what an interpreter may need to start; nothing that could be a secret


@dataclass(frozen=True, slots=True)
class Trial:
    """A checked graph and the rows to try it with: the first `ordinary` of them are like those that it was trained on."""

    digest: str
    graph: bytes = field(repr=False)
    rows: Matrix = field(repr=False)
    ordinary: int


class _Header(msgspec.Struct, frozen=True, array_like=True):
    """What the child must know of the bytes that follow: the rows, then the graph."""

    rows: int
    features: int
    ordinary: int
    graph_bytes: int


class _Reply(msgspec.Struct, frozen=True):
    refused: str  # because of what, in words; empty when the graph passed


def trial_rows(names: Sequence[str], medians: Mapping[str, float | None], reference: Reference) -> tuple[Matrix, int]:
    """
    Rows to try a model with, in order of `names`, and how many of them are ordinary: the medians, the lowest, the highest, and
    seeded ones between. What training never saw is missing in those.
    """
    chance = np.random.default_rng([SEED, len(names)])
    with np.errstate(over="ignore"):
        middle = np.array([np.nan if medians[name] is None else medians[name] for name in names], np.float32)
        lowest, highest = (np.array([reference[end][name] for name in names], np.float32) for end in ("lowest", "highest"))
    lowest, highest = (np.where(np.isnan(middle), np.nan, end).astype(np.float32) for end in (lowest, highest))
    share = chance.random((ORDINARY_ROWS - 3, len(names)), np.float32)
    between = lowest * (1 - share) + highest * share
    whole = np.repeat(np.array(EXTREMES, np.float32)[:, None], len(names), axis=1)
    mixed = np.array(EXTREMES, np.float32)[chance.integers(len(EXTREMES), size=(ROWS - ORDINARY_ROWS - len(EXTREMES), len(names)))]
    return np.concatenate([middle[None], lowest[None], highest[None], between, whole, mixed]).astype(np.float32), ORDINARY_ROWS


# ---- the parent -----------------------------------------------------------------------------------------------------------


class Probe:
    """
    The process in which graphs are tried, started when first needed; `start` does it ahead. Safe to use from several threads,
    one trial at a time. It ends when idle, when its standard input closes, and so with this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._verdicts: OrderedDict[str, str] = OrderedDict()
        self._unsettled: dict[str, int] = {}  # how often a trial came to no end; a verdict takes it out
        self.children = 0  # that there were so far

    def start(self) -> None:
        """Start the child now, so that the first trial need not wait for it."""
        with self._lock:
            self._standing()

    def close(self) -> None:
        """End the child, also in the middle of a trial, and do not wait for that. The next trial starts another."""
        if (child := self._child) is not None:
            child.kill()

    def try_out(self, trial: Trial) -> None:
        """
        Raises Invalid when the graph does what a model may not, saying what; asking again costs nothing. Raises Recoverable when
        the trial came to no end, which may be the machine's fault, not the graph's: ask again, the third time is a verdict.
        """
        with self._lock:
            refused = self._verdicts.get(trial.digest)
            if refused is None:
                refused = self._keep(trial.digest, self._verdict(trial))
        if refused:
            raise Invalid(f"the probe refuses {trial.digest[:12]}: {refused}")

    def _keep(self, digest: str, refused: str | None) -> str:
        if refused is None:
            times = self._unsettled[digest] = self._unsettled.get(digest, 0) + 1
            if times < TRIALS_MAX:
                raise Recoverable(
                    f"the probe came to no verdict about {digest[:12]}, time {times} of {TRIALS_MAX}; it is to be tried again"
                )
            refused = f"{TRIALS_MAX} trials of it came to no end"
        self._unsettled.pop(digest, None)
        self._verdicts[digest] = refused
        if len(self._verdicts) > VERDICTS_MAX:
            self._verdicts.popitem(last=False)
        return refused

    def _verdict(self, trial: Trial) -> str | None:
        """Why the graph is refused, empty when it passed, None when there is no saying."""
        try:
            child = self._standing()
            refused = child.ask(trial)
            if refused is None or (refused and child.trials > 1):  # it left or was killed, or what came before may be to blame
                self._end()
                child = self._standing()
                refused = child.ask(trial)
        except OSError:  # there is no starting it
            return None
        if refused != "":
            self._end()
        return refused

    def _standing(self) -> _Child:
        if self._child is None or not self._child.alive:
            self._end()
            self._child = _Child()
            self.children += 1
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """One process. `ask` never raises: whatever the child does is an answer."""

    def __init__(self) -> None:
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-m", "driftline.models.probe"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=passed_on | {"PYTHONPATH": str(_LIBS), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,  # a terminal's Ctrl-C is for the parent
        )
        self.trials = 0

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Whoever waits for its reply gets none."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def ask(self, trial: Trial) -> str | None:
        """Why the graph is refused; empty when it passed, None when the child left, was killed, or came to no end in time."""
        self.trials += 1
        watch = threading.Timer(TRIAL_WALL_S, self.kill)
        watch.start()
        try:
            line = self._asked(trial)
        except OSError:  # it is gone
            line = b""
        finally:
            watch.cancel()
        if line:
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(line, type=_Reply).refused
        self._process.kill()
        return self._words(self._process.wait())

    def _asked(self, trial: Trial) -> bytes:
        source, replies = self._process.stdin, self._process.stdout
        if source is None or replies is None:
            raise BrokenPipeError
        header = msgspec.msgpack.encode(_Header(len(trial.rows), trial.rows.shape[1], trial.ordinary, len(trial.graph)))
        for part in (len(header).to_bytes(1), header, np.ascontiguousarray(trial.rows, np.float32).tobytes(), trial.graph):
            left = memoryview(part)
            while left:
                left = left[source.write(left) :]
        return replies.readline(REPLY_BYTES_MAX)

    def _words(self, status: int) -> str | None:
        if status == 0 or status in (-signal.SIGKILL, -signal.SIGTERM):  # nobody kills himself by these
            return None
        if status == -signal.SIGXCPU:
            return f"it takes more than {TRIAL_CPU_S} s of processor time to load and to score some rows"
        if status < 0:
            return f"it ended the process that loaded it by {signal.Signals(-status).name}"
        return f"its process ended with status {status}"


# ---- the child ------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Try what comes in, say what came out, until nothing comes any more."""
    source = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what is said there by others is no reply
    _close_doors()
    while select.select([source], [], [], IDLE_S)[0] and (size := source.read(1)):
        header = msgspec.msgpack.decode(source.read(size[0]), type=_Header)
        rows = np.frombuffer(source.read(4 * header.rows * header.features), np.float32).reshape(header.rows, header.features)
        graph = source.read(header.graph_bytes)
        _allow_cpu(TRIAL_CPU_S)
        try:
            refused = _refusal(graph, rows, header.ordinary)
        except (Invalid, MemoryError) as error:
            refused = str(error) or "it asks for more memory than a model may have"
        replies.write(msgspec.json.encode(_Reply(refused)) + b"\n")
        replies.flush()


def _close_doors() -> None:
    """No file is opened and none written, no process and no thread started, no core dumped, and memory has an end."""
    statm = Path("/proc/self/statm")  # the limit is for what is mapped, most of which is code
    if statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, mapped + MEMORY_BYTES_MAX)
    for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        _lower(what, 0)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _allow_cpu(seconds: int) -> None:
    """Processor time for one more trial; whoever uses more is ended by SIGXCPU."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(_cpu_s()) + 1 + seconds, hard))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _refusal(graph: bytes, rows: Matrix, ordinary: int) -> str:
    """What is wrong with what the graph says of `rows`; empty when nothing is. Raises Invalid as `Loaded` does."""
    loaded = Loaded(graph, rows.shape[1])
    if np.isnan(loaded.score(rows[:ordinary])).any():
        return "it gives no number for rows like those that it was trained on"
    scores = loaded.score(rows)
    if (scores < 0).any() or (scores > 1).any():
        return "it gives numbers below 0 or above 1, which are no probabilities"
    if not invariant(loaded, rows, CHUNKS):
        return "the score of a row changes with the rows that it is scored with"
    before = _cpu_s()
    full = loaded.score(np.resize(rows, (ROWS_MAX, rows.shape[1])))
    if _cpu_s() - before > FULL_BATCH_CPU_S:
        return f"it takes more than {FULL_BATCH_CPU_S} s of processor time for {ROWS_MAX} rows"
    if full.tobytes() != np.resize(scores, ROWS_MAX).tobytes():
        return "the score of a row changes with the rows that it is scored with"
    return ""


if __name__ == "__main__":
    main()
