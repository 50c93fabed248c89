"""
Releases and rollouts as the logs tell them: what was trained, what the gate said, what the rollout did with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from driftline.contracts.messages import Deployment, Release
from driftline.contracts.topics import Topics
from driftline.errors import Invalid
from driftline.operate.addresses import Addresses
from driftline.operate.commands import everything, facts_in
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch

DIGEST_SHOWN = 12
DIGEST_CHARACTERS = 64


@dataclass
class History:
    """All releases, in order, and all deployments that moved something."""

    releases: list[Release] = field(default_factory=list)
    moves: list[Deployment] = field(default_factory=list)
    now: Deployment = field(default_factory=Deployment.none)

    def take(self, batch: Batch) -> None:
        """What a batch of control or of deployments adds."""
        self.releases += facts_in(batch, "release")
        if deployments := facts_in(batch, "deployment"):
            self.moves += [one for one in deployments if one.move != "nothing"]
            self.now = deployments[-1]

    def role_of(self, digest: str) -> str:
        """What a model does now: champion, canary 25 %, candidate, frozen, previous, or nothing."""
        arms = [f"{arm.role} {arm.share:.0%}" if arm.role == "canary" else arm.role for arm in self.now.arms if arm.digest == digest]
        return ", ".join(arms or [arm.role for arm in self.now.shadows if arm.digest == digest])

    def release(self, name: str) -> Release:
        """By name, digest or the beginning of a digest. Raises Invalid when there is none, or more than one."""
        found = {one.digest: one for one in self.releases if one.model == name or one.digest.startswith(name)}
        if len(found) != 1:
            raise Invalid(f"{'no release' if not found else f'{len(found)} releases'} named {name}; see: driftline models list")
        return next(iter(found.values()))

    def model_meant(self, name: str) -> str:
        """The digest of the release `name`, or of the champion where nobody is named. Raises Invalid when there is none."""
        if name:
            return self.release(name).digest
        champion = next((arm.digest for arm in self.now.arms if arm.role == "champion"), "")
        if not champion:
            raise Invalid("there is no champion yet: name a model with --model; see: driftline models list")
        return champion


def is_digest(name: str) -> bool:
    """Whether it is a whole digest, which needs no history to be understood."""
    return len(name) == DIGEST_CHARACTERS and not set(name) - set("0123456789abcdef")


async def read_history(addresses: Addresses, pipeline: Pipeline) -> History:
    """Everything that control and deployments say."""
    topics = Topics.of(pipeline)
    history = History()
    for topic in (topics.control, topics.deployments):
        for batch in await everything(addresses, topic):
            history.take(batch)
    return history


def print_list(history: History, console: Console) -> None:
    """A table of releases with their verdicts, then the moves."""
    grid = Grid("model", "trained as of", "trigger", "verdict", "now", "digest", "reason", box=None, pad_edge=False)
    for one in history.releases:
        grid.add_row(one.model, day(one.time), one.trigger, one.verdict, history.role_of(one.digest), one.digest[:DIGEST_SHOWN], one.reason)
    console.print(grid if history.releases else "no release yet")
    if history.moves:
        console.print()
    for move in history.moves:
        console.print(f"{day(move.time)}  version {move.version:<3} {move.move:<18} {move.reason}", highlight=False)
    console.print(f"\nnow: version {history.now.version}, {history.now.state}: {history.now.reason}", highlight=False)


def print_release(release: Release, history: History, console: Console) -> None:
    """One release with all its evidence."""
    console.print(f"{release.model}  {release.verdict}: {release.reason}", highlight=False)
    for name, value in _facts_of(release, history).items():
        console.print(f"  {name:<10} {value}", highlight=False)
    console.print_json(json.dumps(release.evidence, sort_keys=True))


def _facts_of(release: Release, history: History) -> dict[str, Any]:
    return {
        "digest": release.digest,
        "time": day(release.time),
        "trigger": f"{release.trigger} {release.command}".strip(),
        "by": release.who,
        "now": history.role_of(release.digest) or "not deployed",
    }


def day(time_ms: int) -> str:
    """A time on the pipeline's clock, for people."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M") if time_ms else "-"
