"""
What the topics of the control plane say of one pipeline, kept in memory and growing with them: for a process that is asked again
and again, where a command reads whole topics once.

Everything has a limit; past it the oldest goes, for the log has it still. What readers are given are copies or values.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from driftline.contracts.messages import Deployment, Operator, Report, Retrain, Source, Trained
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.judge.summaries import Inputs
from driftline.operate.commands import facts_in
from driftline.operate.dead_letters import Letter, letters_in
from driftline.operate.models import History
from driftline.operate.windows import Group as Reliable
from driftline.operate.windows import Windows
from driftline.stream.batch import Batch
from driftline.stream.operators import Follower

RELEASES_MAX = 1_000
MOVES_MAX = 5_000
REPORTS_MAX = 1_000
COMMANDS_MAX = 1_000
GROUPS_MAX = 1_000  # of refused records: topic, service, reason
SAMPLES_MAX = 20  # of one group

Group = tuple[str, str, str]
Name = TypeVar("Name", str, int)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Refusals:
    """Refused records of one topic, service and reason: how many, and the newest of them, without what they held."""

    topic: str
    service: str
    reason: str
    count: int
    newest: tuple[Letter, ...]


@dataclass(frozen=True, slots=True)
class Commanded:
    """A retrain command with its outcome, None while there is none."""

    command: Retrain
    outcome: Trained | None


class Bell:
    """Rung from any thread when something has changed; whoever waits in the event loop looks again."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody who waits."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Until it rings, or until `timeout_s` have passed."""
        self._loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), timeout_s)


@dataclass
class _Kept:
    """Everything, in order of the logs."""

    history: History = field(default_factory=History)
    reports: deque[Report] = field(default_factory=lambda: deque(maxlen=REPORTS_MAX))
    retrains: OrderedDict[str, Retrain] = field(default_factory=OrderedDict)
    outcomes: OrderedDict[str, Trained] = field(default_factory=OrderedDict)
    commands: OrderedDict[str, int] = field(default_factory=OrderedDict)  # operators' commands by id: their offset on control
    answers: OrderedDict[int, Deployment] = field(default_factory=OrderedDict)  # by the offset on control that they answer
    counts: Counter[Group] = field(default_factory=Counter)
    samples: OrderedDict[Group, deque[Letter]] = field(default_factory=OrderedDict)
    windows: Windows = field(default_factory=Windows)


class Board:
    """
    The control plane of one pipeline. `take` gets batches of control, deployments, retrain, summaries and dead letters, from any
    thread; everything else may be called at any time, and costs no I/O.
    """

    def __init__(self) -> None:
        self._kept = _Kept()
        self._lock = threading.Lock()
        self.commanded_ns = 0  # the highest coordinate of an operator's command so far
        self.changed = Bell()

    def take(self, batch: Batch) -> None:
        """What a batch adds. What is decoded is decoded before anybody is kept waiting."""
        reports, retrains, outcomes, letters = (
            facts_in(batch, "report"),
            facts_in(batch, "retrain"),
            facts_in(batch, "trained"),
            [replace(letter, key=None, value=None) for letter in letters_in(batch)],
        )
        with self._lock:
            kept = self._kept
            kept.history.take(batch)
            del kept.history.releases[:-RELEASES_MAX], kept.history.moves[:-MOVES_MAX]
            kept.reports.extend(reports)
            _put(kept.retrains, {one.id: one for one in retrains})
            _put(kept.outcomes, {one.id: one for one in outcomes})
            self._take_commands(batch)
            kept.windows.take(batch)
            for letter in letters:
                self._take_letter(letter)
        self.changed.ring()

    def _take_commands(self, batch: Batch) -> None:
        commands: list[Operator] = facts_in(batch, "operator")
        if (table := batch["operator"]) is not None:
            _put(self._kept.commands, {one.id: at for one, at in zip(commands, table.offsets.tolist(), strict=True)})
        for message in ("operator", "retrain"):
            if (table := batch[message]) is not None:
                sent = table["offset"][table["source"] == Source.OPERATORS].tolist()
                self.commanded_ns = max([self.commanded_ns, *sent])
        if (table := batch["deployment"]) is not None:
            _put(self._kept.answers, dict(zip(table["offset"].tolist(), facts_in(batch, "deployment"), strict=True)))

    def _take_letter(self, letter: Letter) -> None:
        group = (letter.topic, letter.service, letter.reason)
        if group not in self._kept.samples and len(self._kept.samples) >= GROUPS_MAX:
            oldest, _ = self._kept.samples.popitem(last=False)
            del self._kept.counts[oldest]
        self._kept.counts[group] += 1
        self._kept.samples.setdefault(group, deque(maxlen=SAMPLES_MAX)).append(letter)

    def history(self) -> History:
        """Releases, moves and the deployment in force."""
        with self._lock:
            kept = self._kept.history
            return History(list(kept.releases), list(kept.moves), kept.now)

    def reports(self) -> list[Report]:
        """The newest reports, oldest first."""
        with self._lock:
            return list(self._kept.reports)

    def retrains(self) -> list[Commanded]:
        """The newest retrain commands with their outcomes, oldest first."""
        with self._lock:
            return [Commanded(one, self._kept.outcomes.get(one.id)) for one in self._kept.retrains.values()]

    def refusals(self) -> list[Refusals]:
        """Refused records by topic, service and reason."""
        with self._lock:
            return [Refusals(*group, self._kept.counts[group], tuple(newest)) for group, newest in sorted(self._kept.samples.items())]

    def inputs(self, digest: str, newest: int) -> Inputs:
        """The rows that a model was served, counted by bin, in the newest windows in which it was served any."""
        with self._lock:
            return self._kept.windows.inputs(digest, newest)

    def reliability(self, role: str, digest: str, newest: int) -> list[Reliable]:
        """Matured answers of a model in a role, of the newest windows, grouped by score."""
        with self._lock:
            return self._kept.windows.reliability(role, digest, newest)

    def answer_to(self, command: str) -> Deployment | None:
        """The rollout's answer to an operator's command."""
        with self._lock:
            offset = self._kept.commands.get(command)
            return None if offset is None else self._kept.answers.get(offset)

    def outcome_of(self, command: str) -> Trained | None:
        """How a retrain command ended."""
        with self._lock:
            return self._kept.outcomes.get(command)


def _put(kept: OrderedDict[Name, Value], found: Mapping[Name, Value]) -> None:
    kept.update(found)
    while len(kept) > COMMANDS_MAX:
        kept.popitem(last=False)


def followers(board: Board, kafka: str, topics: Topics, registry: Registry) -> list[Follower]:
    """What keeps a board true, one part of a process for each topic."""
    read = (topics.control, topics.deployments, topics.retrain, topics.summaries, topics.dead_letters)
    return [Follower(kafka, topic, registry, board.take) for topic in read]
