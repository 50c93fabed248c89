"""
What a running loop has done so far: a picture folded from the facts on its small topics, and gauges read from its services.

The picture is a function of the facts alone, in the order of their logs; nothing here is needed for the loop to work.
"""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from driftline.contracts.messages import ClockRecord, Deployment, Release, Report, Trained, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.stream.kafka import LogReader

DAY_MS = 86_400_000
LINES_MAX = 200
COHORTS_MAX = 400  # a year of days
FETCH_WAIT_MS = 500  # a broker answers at once when there is something
ANSWER_TIMEOUT_S = 0.5

Fact = ClockRecord | Deployment | Release | Report | Trained


class Line(NamedTuple):
    """One thing that happened: when on the pipeline's clock (ms), who did it, and what, in words."""

    time: int
    who: str
    text: str


@dataclass(frozen=True, slots=True)
class Cohort:
    """Matured quality of one day for one role."""

    start: int
    rows: int
    auc: float | None
    log_loss: float | None


@dataclass(slots=True)
class Progress:
    """
    The picture. `deployment` is the last that moved something, `quality` holds by role (champion, frozen) the days that have
    matured, `psi` by feature the values of the windows, `lines` what is worth telling, of which `told` counts all there were.
    """

    time: int = 0
    last: bool = False
    deployment: Deployment = field(default_factory=Deployment.none)
    quality: dict[str, list[Cohort]] = field(default_factory=dict)
    psi: dict[str, list[float]] = field(default_factory=dict)
    alarms: int = 0
    trainable_rows: int = 0
    commands: int = 0
    trainings: int = 0
    lines: list[Line] = field(default_factory=list)
    told: int = 0

    def take(self, fact: Fact) -> None:
        """Fold one fact into the picture."""
        if isinstance(fact, ClockRecord):
            self.time, self.last = fact.time, fact.last
        elif isinstance(fact, Deployment):
            self._deployed(fact)
        elif isinstance(fact, Release):
            self.tell(fact.time, fact.who, f"{fact.model} {fact.verdict} ({fact.trigger}): {fact.reason}")
        elif isinstance(fact, Report):
            self._reported(fact)
        else:
            self._trained(fact)

    def tell(self, time: int, who: str, text: str) -> None:
        """Add a line; only the newest are kept."""
        self.lines = [*self.lines, Line(time, who, text)][-LINES_MAX:]
        self.told += 1

    def lines_since(self, told: int) -> Sequence[Line]:
        """The lines that came after the first `told`, as far as they are kept."""
        new = self.told - told
        return self.lines[-new:] if new > 0 else ()

    def _deployed(self, deployment: Deployment) -> None:
        if deployment.move == "nothing":
            return
        self.deployment = deployment
        self.tell(deployment.time, "rollout", f"{deployment.move}: {deployment.reason}")

    def _reported(self, report: Report) -> None:
        for one in report.body.get("quality", ()):
            if one["role"] in ("champion", "frozen") and one["n"]:
                days = self.quality.get(one["role"], [])
                self.quality[one["role"]] = [*days, Cohort(one["cohort"], one["n"], one["auc"], one["log_loss"])][-COHORTS_MAX:]
        for name, one in report.body.get("inputs", {}).items():
            if one.get("psi") is not None:
                self.psi[name] = [*self.psi.get(name, []), one["psi"]][-COHORTS_MAX:]
        self.alarms = len(report.body.get("alarms", ()))
        self.trainable_rows = report.body.get("trainable_rows") or self.trainable_rows
        self.commands += len(report.retrains)
        for command in report.retrains:
            self.tell(report.end, "drift", f"retrain sent: {command}, {self.trainable_rows:,} rows can be trained on")

    def _trained(self, outcome: Trained) -> None:
        self.trainings += 1
        if outcome.outcome not in ("accepted", "refused"):  # those two come with a release, which says more
            self.tell(outcome.time, "trainer", f"{outcome.id} {outcome.outcome}: {outcome.reason}")


def weekly_auc(cohorts: Sequence[Cohort]) -> list[float]:
    """The mean AUC of each week of `cohorts`, weighted by rows, oldest first; weeks that have none are left out."""
    weeks: dict[int, list[tuple[float, int]]] = {}
    for one in cohorts:
        if one.auc is not None:
            weeks.setdefault(one.start // (7 * DAY_MS), []).append((one.auc, one.rows))
    return [sum(auc * rows for auc, rows in week) / sum(rows for _, rows in week) for _, week in sorted(weeks.items())]


def most_drifted(psi: Mapping[str, Sequence[float]]) -> tuple[str, Sequence[float]] | None:
    """The input whose newest PSI is the highest, with its course; None before the first."""
    return max(psi.items(), key=lambda one: one[1][-1], default=None)


def day_text(time_ms: int) -> str:
    """A time on the pipeline's clock, as 14 July 2013."""
    at = datetime.fromtimestamp(time_ms / 1000, UTC)
    return f"{at.day} {at:%B %Y}"


class Watch:
    """Follows clock, control, summaries and deployments from their start, and hands every fact to `take`."""

    def __init__(self, kafka: str, topics: Topics, registry: Registry, take: Callable[[Fact], None]) -> None:
        self._take = take
        self._readers = [
            LogReader(kafka, topic, registry, wait_ms=FETCH_WAIT_MS)
            for topic in (topics.clock, topics.control, topics.summaries, topics.deployments)
        ]

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            await asyncio.gather(*(reader.start() for reader in self._readers))
            async with asyncio.TaskGroup() as group:
                for reader in self._readers:
                    group.create_task(self._follow(reader))
        finally:
            await asyncio.gather(*(reader.stop() for reader in self._readers))

    async def _follow(self, reader: LogReader) -> None:
        wanted = (ClockRecord.message, Deployment.message, Release.message, Report.message, Trained.message)
        while True:
            for batch in await reader.next(1.0):
                tables = [table for name in wanted if (table := batch[name]) is not None]
                placed = [one for table in tables for one in zip(table.offsets.tolist(), facts(table), strict=True)]
                for _, fact in sorted(placed, key=lambda one: one[0]):
                    self._take(fact)


class Sample(NamedTuple):
    """One line of a /metrics page."""

    name: str
    labels: Mapping[str, str]
    value: float


_SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def samples(page: str) -> Iterator[Sample]:
    """The samples of a /metrics page."""
    for name, labels, value in _SAMPLE.findall(page):
        yield Sample(name, dict(_LABEL.findall(labels)), float(value))


def read_metrics(run_dir: Path, service: str) -> list[Sample]:
    """What `service` shows now, at the address that it wrote into the run dir; nothing while it cannot be asked."""
    ops = ops_told(run_dir, service)
    return metrics_at(ops) if ops else []


def ops_told(run_dir: Path, service: str) -> str:
    """Where the service answers, as it wrote it into the run dir; empty where it wrote nothing."""
    try:
        return str(json.loads((run_dir / f"{service}.json").read_text())["ops"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def metrics_at(ops: str) -> list[Sample]:
    """What the process at this address shows now; nothing while it cannot be asked."""
    try:
        with urllib.request.urlopen(f"{ops}/metrics", timeout=ANSWER_TIMEOUT_S) as answer:
            return list(samples(answer.read().decode()))
    except (OSError, ValueError, HTTPException):
        return []


def total(found: Sequence[Sample], name: str, **labels: str) -> float:
    """The sum of all samples called `name` that have these labels."""
    return sum(one.value for one in found if one.name == name and labels.items() <= one.labels.items())


@dataclass(slots=True)
class Meters:
    """Counts by service, as they stood when last asked; a service that was started again goes on from what it had counted."""

    read: dict[str, float] = field(default_factory=dict)
    behind: dict[str, float] = field(default_factory=dict)
    dead_letters: float = 0.0
    _before: dict[str, dict[str, float]] = field(default_factory=dict)
    _now: dict[str, dict[str, float]] = field(default_factory=dict)

    def take(self, service: str, found: Sequence[Sample]) -> None:
        """Count in what `service` shows. Counters that fell belong to a new process."""
        if not found:
            return
        now = {name: total(found, f"driftline_{name}_total") for name in ("messages_read", "dead_letters")}
        before = self._now.get(service, {})
        if any(now[name] < before.get(name, 0.0) for name in now):
            kept = self._before.setdefault(service, {})
            for name, value in before.items():
                kept[name] = kept.get(name, 0.0) + value
        self._now[service] = now
        self.behind[service] = total(found, "driftline_lag_messages")
        self.read[service] = self._count(service, "messages_read")
        self.dead_letters = sum(self._count(one, "dead_letters") for one in self._now)

    def _count(self, service: str, name: str) -> float:
        return self._now[service].get(name, 0.0) + self._before.get(service, {}).get(name, 0.0)
