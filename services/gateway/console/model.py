"""
The page of the model: who serves and who would, with how sure one can be; what the gate said of every release; how the rollout went;
and what an operator may do now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from driftline.contracts.messages import Arm, Deployment, Release, Report
from driftline.operate.board import Commanded
from driftline.operate.models import History
from driftline.operate.tokens import Holder
from driftline.pipeline import Pipeline

from ..access import ROLES
from . import words

DAYS = 14  # matured days that the two are compared on
CONFIDENCE = 0.95  # on either side
MOVES_SHOWN = 40
RELEASES_SHOWN = 40
DIFFERS = re.compile(r"difference ([+-][0-9.]+)|differs by ([+-][0-9.]+)")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of days with what it may as well be."""

    mean: float
    low: float
    high: float
    days: int


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the comparison: what it is, for either model, and how to read it."""

    name: str
    unit: str
    champion: str
    challenger: str
    means: str


@dataclass(frozen=True, slots=True)
class Side:
    """A model with a part in the deployment."""

    role: str
    model: str
    digest: str
    share: float
    trained: int | None
    trigger: str


@dataclass(frozen=True, slots=True)
class Scale:
    """An interval drawn on a line, in per cent of its width; `zero` is where no difference would be."""

    low: float
    mean: float
    high: float
    zero: float


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the gate's table; `passed` is None for what is only told."""

    name: str
    passed: bool | None
    found: str
    needed: str
    told: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A release with the checks of the gate, and the difference that it was judged by."""

    release: Release
    role: str
    checks: tuple[Check, ...]
    difference: Interval | None
    scale: Scale | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way from candidate to champion."""

    name: str
    state: str  # done, now, ahead
    told: str


@dataclass(frozen=True, slots=True)
class Action:
    """A button: what it does, whether it makes sense now, and whether this visitor may."""

    operation: str
    title: str
    told: str
    sensible: bool
    allowed: bool

    @property
    def kind(self) -> str:
        """How it looks: what puts a model before people stands out, what takes one back does so in another way."""
        if self.operation == "roll_back_model":
            return "risky"
        return "primary" if self.sensible and self.allowed and self.operation in ("approve_model", "promote_model") else ""

    @property
    def path(self) -> str:
        """The last part of its address."""
        return self.title.lower().replace(" ", "")


def sides(history: History) -> tuple[Side | None, Side | None]:
    """Champion and challenger; the challenger is the canary, the candidate in shadow, or the one that waits for approval."""
    now = history.now
    champion = next((one for one in now.arms if one.role == "champion"), None)
    rivals = [one for one in (*now.arms, *now.shadows) if one.role in ("canary", "candidate")]
    rival = next(iter(sorted(rivals, key=lambda one: one.role)), None) or awaited(history)
    return (None if champion is None else _side(champion, history)), (None if rival is None else _side(rival, history))


def awaited(history: History) -> Arm | None:
    """The candidate that waits for approval. No deployment names it, for it scores nothing yet: the move that held it back does."""
    if not history.now.state.startswith("awaiting_approval"):
        return None
    held = next((move for move in reversed(history.moves) if move.move == "awaiting_approval"), None)
    named = [one for one in history.releases if held is not None and held.reason.split(" ", 1)[0] == one.model]
    return Arm("candidate", named[-1].model, named[-1].digest, 0.0) if named else None


def _side(arm: Arm, history: History) -> Side:
    release = next((one for one in reversed(history.releases) if one.digest == arm.digest), None)
    trained, trigger = (None, "") if release is None else (release.time, release.trigger)
    return Side(arm.role, arm.model, arm.digest, arm.share, trained, trigger)


def interval(values: Sequence[float]) -> Interval | None:
    """The mean of independent days between its one-sided bounds, so that nine in ten such intervals hold the true mean."""
    if len(values) < 2:
        return None
    from driftline.judge.gate import upper_bound  # scipy is slow to load, and the gateway starts without it

    bound = upper_bound(np.asarray(values, np.float64), CONFIDENCE)
    return Interval(bound.mean, 2 * bound.mean - bound.upper, bound.upper, bound.days)


def days_of(reports: Sequence[Report], digest: str) -> dict[int, Mapping[str, Any]]:
    """The newest matured days on which a model answered, by their start; of several roles the one with more rows."""
    found: dict[int, Mapping[str, Any]] = {}
    for one in (one for report in reports for one in report.body.get("quality", ())):
        if one.get("digest") == digest and one.get("n", 0) > found.get(one["cohort"], {}).get("n", 0):
            found[one["cohort"]] = one
    return dict(sorted(found.items())[-DAYS:])


def measures(reports: Sequence[Report], champion: Side | None, challenger: Side | None) -> tuple[Measure, ...]:
    """Champion and challenger side by side."""
    one, other = ({} if side is None else days_of(reports, side.digest) for side in (champion, challenger))
    now, then = (_answers(reports, side) for side in (champion, challenger))

    def by_day(name: str, digits: int) -> tuple[str, str]:
        return _of_days(one, name, digits), _of_days(other, name, digits)

    def lately(name: str, text: Callable[..., str], *digits: int) -> tuple[str, str]:
        return text(now.get(name), *digits), text(then.get(name), *digits)

    days = (words.number(len(one)), words.number(len(other)))
    return (
        Measure("Log loss", "nats", *by_day("log_loss", 4), "How wrong the probabilities were. Lower is better; the gate judges by it."),
        Measure("AUC", "0 to 1", *by_day("auc", 3), "How often a positive scored above a negative. 0.5 is chance; higher is better."),
        Measure("Observed / expected", "ratio", *by_day("o_over_e", 2), "1 is honest. Above it more happened than was predicted."),
        Measure("Matured days", "days", *days, f"The newest {DAYS} whose labels are all known, of those that it scored."),
        Measure("Answers", "rows", *lately("n", words.number), "Scored in the last window in which it scored any."),
        Measure("Mean score", "probability", *lately("mean", words.number, 3), "Of that window. A jump without a cause is a fault."),
        Measure("Alerts", "of answers", *lately("alert_rate", words.share), "At or above its threshold, in that window."),
        Measure("No number", "rows", *lately("nan", words.number), "What it could not score. More than 0 is a fault."),
    )


def _of_days(days: Mapping[int, Mapping[str, Any]], name: str, digits: int) -> str:
    return _with_bounds([float(day[name]) for day in days.values() if words.known(day.get(name))], digits)


def _with_bounds(values: Sequence[float], digits: int) -> str:
    found = interval(values)
    if found is None:
        return words.number(values[0] if values else None, digits)
    return f"{found.mean:.{digits}f} ± {found.high - found.mean:.{digits}f}"


def _answers(reports: Sequence[Report], side: Side | None) -> Mapping[str, Any]:
    bodies = (report.body.get("models", {}) for report in reversed(reports))
    return next((body[side.digest] for body in bodies if side is not None and side.digest in body), {})


def judged(history: History) -> tuple[Judged, ...]:
    """All releases, newest first, each with the gate's evidence."""
    return tuple(_judged(one, history) for one in reversed(history.releases[-RELEASES_SHOWN:]))


def _judged(release: Release, history: History) -> Judged:
    checks = tuple(one for one in release.evidence.get("checks", ()) if isinstance(one, dict))
    difference = _difference(release, checks)
    drawn = None if difference is None else scale(difference)
    return Judged(release, history.role_of(release.digest), tuple(map(_check, checks)), difference, drawn)


def _check(one: Mapping[str, Any]) -> Check:
    """The gate words a check as what would be wrong; one that passed without a number says nothing more."""
    found, passed = one.get("value"), one.get("passed")
    told = "" if passed and found is None else str(one.get("detail", "")).rstrip(": ")
    shown = words.value(found) if words.known(found) else words.NONE
    return Check(str(one.get("name", "")).replace("_", " "), passed, shown, str(one.get("limit", "")), told)


def _difference(release: Release, checks: Sequence[Mapping[str, Any]]) -> Interval | None:
    """By how much the log loss of the challenger differs from its rival's: the mean is in the gate's words, the bound a number."""
    bound = next((one for one in checks if one.get("name") == "bound"), {})
    told = DIFFERS.search(f"{bound.get('detail', '')}; {release.reason}")
    if told is None or not words.known(bound.get("value")):
        return None
    mean, upper = float(told[1] or told[2]), float(bound["value"])
    return Interval(mean, 2 * mean - upper, upper, 0)


def scale(found: Interval) -> Scale:
    """Zero and the interval on one line, with room on either side."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    room = (high - low) * 0.08 or 1.0
    left, width = low - room, high - low + 2 * room
    return Scale(*(round(100 * (at - left) / width, 2) for at in (found.low, found.mean, found.high, 0.0)))


def steps(pipeline: Pipeline, deployment: Deployment) -> tuple[Step, ...]:
    """The way of a candidate, with where it is."""
    plan, stage = pipeline.rollout, deployment.state.split(",")[0]
    ahead = [("shadow", "Shadow", f"scores along for {words.span(plan.shadow_ms / 1000)}, answers nobody")]
    if plan.approvals:
        ahead = [("awaiting_approval", "Approval", f"waits for {words.plural(plan.approvals, 'person', 'people')}"), *ahead]
    for share in plan.shares:
        name = f"canary {share:.0%}"
        told = "serves everybody, and is watched for 7 d" if share >= 1 else f"serves these keys for {words.span(plan.hold_ms / 1000)}"
        ahead.append(("champion", "Champion", told) if share >= 1 else (name, f"{share:.0%} of keys", told))
    at = _place(stage, deployment, [id for id, _, _ in ahead])
    return tuple(
        Step(name, "now" if place == at else "done" if at is not None and place < at else "ahead", told)
        for place, (_, name, told) in enumerate(ahead)
    )


def _place(stage: str, deployment: Deployment, ids: Sequence[str]) -> int | None:
    """The place of the step that a candidate is at; None while there is no candidate."""
    share = next((arm.share for arm in deployment.arms if arm.role == "canary"), 0.0)
    wanted = f"canary {share:.0%}" if stage == "canary" else stage
    return ids.index(wanted) if wanted in ids else None


def actions(history: History, holder: Holder) -> tuple[Action, ...]:
    """What may be done. A button that makes no sense now is shown, and does nothing: one sees what there is."""
    stage = history.now.state.split(",")[0]
    paused, champion = "paused" in history.now.state, bool(history.now.arms)
    on_trial = stage in ("shadow", "canary")
    rival = on_trial or stage == "awaiting_approval"
    back = "Take the candidate out; the champion stays." if rival else "Go back to the champion before this one."
    return (
        _action(holder, "approve_model", "Approve", "Let the candidate score along.", stage == "awaiting_approval"),
        _action(holder, "promote_model", "Promote", "Take the candidate to its next share now.", on_trial),
        _action(holder, "pause_rollout", "Pause", "Stop the steps that time takes.", champion and not paused),
        _action(holder, "resume_rollout", "Resume", "Let time take its steps again.", paused),
        _action(holder, "roll_back_model", "Roll back", back, champion),
    )


def _action(holder: Holder, operation: str, title: str, told: str, sensible: bool) -> Action:
    return Action(operation, title, told, sensible, holder.may(ROLES[operation]))


def moves(history: History) -> tuple[Deployment, ...]:
    """What the rollout did, newest first."""
    return tuple(reversed(history.moves[-MOVES_SHOWN:]))


def commanded(retrains: Sequence[Commanded]) -> tuple[Commanded, ...]:
    """Retrain commands, newest first."""
    return tuple(reversed(retrains[-20:]))


def answer(deployment: Deployment | None, command: str) -> tuple[str, str] | None:
    """What became of a command, in words, and whether it moved anything: moved, refused or waiting."""
    if not command:
        return None
    name = command.rsplit("-", 1)[0]
    if deployment is None:
        return "waiting", f"{name} is on the log, and the rollout has not answered yet. It will: look again."
    if deployment.move == "nothing":
        return "refused", f"{name} changed nothing: {deployment.reason}"
    return "moved", f"{name} is done, now version {deployment.version}: {deployment.reason}"
