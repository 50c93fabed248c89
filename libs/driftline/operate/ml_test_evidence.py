"""
What the ML Test Score is judged by, gathered once: the control topics of a pipeline, the metrics of its processes on this machine, its
declaration, and, where the source tree is here, its tests, pages and results.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftline.contracts.messages import Deployment, Release, Report
from driftline.contracts.topics import Topics
from driftline.local.progress import Sample
from driftline.operate.addresses import Addresses
from driftline.operate.commands import everything, facts_in
from driftline.operate.models import History
from driftline.operate.processes import all_metrics
from driftline.pipeline import Pipeline, check

GIT_TIMEOUT_S = 10.0
DOCUMENTED = "manual-tests.md"  # in the pipeline's folder: a heading for each test that people do, with who, when and the outcome below it
WORDS_MIN = 8  # below a heading; fewer document nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known. What could not be had is empty, or None where empty would say something else."""

    pipeline: Pipeline
    problems: Sequence[str] | None = None  # of the declaration, as `driftline check` tells them; None where nobody checked
    releases: Sequence[Release] = ()
    moves: Sequence[Deployment] = ()
    now: Deployment = field(default_factory=Deployment.none)
    reports: Sequence[Report] = ()
    samples: Sequence[Sample] = ()
    tests: frozenset[str] | None = None  # as path::name; None without a source tree
    files: Mapping[str, str] = field(default_factory=dict)  # text of pages and results, by path in the source tree
    documented: Mapping[str, str] = field(default_factory=dict)  # what people wrote about a test, by its title in lower case
    committed: str = ""  # the commit that last changed the pipeline's folder; empty when it is in none, or was changed since

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of the series of this pipeline with these labels; None when no process tells any."""
        labels = {"pipeline": self.pipeline.name, **labels}
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found) if found else None

    def tested(self, pattern: str) -> list[str]:
        """The tests, as path::name, that `pattern` is found in."""
        return sorted(test for test in self.tests or () if re.search(pattern, test))

    def results(self, path: str) -> Any:
        """A file of results, decoded; None when it is not there or is no JSON."""
        try:
            return json.loads(self.files[path])
        except (KeyError, ValueError):
            return None

    @property
    def trained(self) -> Release | None:
        """The newest release that the trainer made."""
        return next((one for one in reversed(self.releases) if one.evidence.get("dataset")), None)

    @property
    def champion(self) -> Release | None:
        """The release of the model that serves most keys now."""
        served = next((arm.digest for arm in self.now.arms if arm.role == "champion"), None)
        return next((one for one in reversed(self.releases) if one.digest == served), None)

    def cohorts(self) -> Iterator[Mapping[str, Any]]:
        """Quality on matured labels, as the reports tell it: one model and role on one cohort each."""
        for report in self.reports:
            yield from report.body.get("quality", ())


async def gather(addresses: Addresses, pipeline: Pipeline, tree: Path) -> Evidence:
    """Ask topics and processes, and read what is in `tree`. Raises Fatal when Kafka does not answer or the topics are not there."""
    topics, history, reports = Topics.of(pipeline), History(), list[Report]()
    for topic in (topics.control, topics.deployments):
        for batch in await everything(addresses, topic):
            history.take(batch)
            reports += facts_in(batch, "report")
    return Evidence(
        pipeline=pipeline,
        problems=[str(one) for one in check(pipeline.name)],
        releases=history.releases,
        moves=history.moves,
        now=history.now,
        reports=reports,
        samples=[sample for process in await asyncio.to_thread(all_metrics, addresses) for sample in process],
        tests=collected_in(tree),
        files=files_of(tree),
        documented=documented_in(pipeline.folder / DOCUMENTED),
        committed=commit_of(pipeline.folder),
    )


def collected_in(tree: Path) -> frozenset[str] | None:
    """Every test that pytest collects in `tree`, as path::name; None when there is no source tree."""
    if not (tree / "pyproject.toml").exists() or not (tree / "tests").is_dir():
        return None
    return frozenset(
        f"{place.relative_to(tree).as_posix()}::{name}" for place in (tree / "tests").rglob("test_*.py") for name in _functions(place)
    )


def _functions(place: Path) -> Iterator[str]:
    for node in ast.parse(place.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name


def files_of(tree: Path) -> dict[str, str]:
    """Pages, results and alert rules of the source tree."""
    patterns = ("docs/**/*.md", "docs/*.json", "benchmarks/results/*.json", "monitoring/prometheus/*.yml")
    return {place.relative_to(tree).as_posix(): place.read_text() for pattern in patterns for place in sorted(tree.glob(pattern))}


def documented_in(place: Path) -> dict[str, str]:
    """What stands below each heading of a page about tests that people do, where it is more than a few words."""
    if not place.exists():
        return {}
    _, *parts = re.split(r"^#+ ", place.read_text(), flags=re.MULTILINE)
    told = {title.strip().lower(): " ".join(text.split()) for title, _, text in (part.partition("\n") for part in parts)}
    return {title: text for title, text in told.items() if len(text.split()) >= WORDS_MIN}


def commit_of(folder: Path, run: Callable[[Sequence[str]], str] | None = None) -> str:
    """The commit that last changed `folder`, or nothing when it was changed since, or nobody keeps its history."""
    ask = run or _git(folder)
    return "" if ask(["status", "--porcelain", "--", "."]) else ask(["log", "-1", "--format=%h", "--", "."])


def _git(folder: Path) -> Callable[[Sequence[str]], str]:
    def run(words: Sequence[str]) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return run


def counted(values: Iterable[Any], what: str) -> str:
    """How many there are, in words."""
    n = len(list(values))
    return f"{n} {what}{'' if n == 1 else 's'}"
