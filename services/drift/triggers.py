"""
When to retrain, by the pipeline's clock alone. One command at a time, none within the cooldown of the last one that was answered.

Evidence such as PSI never triggers: on a healthy model it alarms every week. What may: there is no model and enough time has
passed (first); the control chart of the champion's quality (quality); enough new labels (new_labels); enough time (schedule).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from driftline.judge.charts import Adwin, Cusum, PageHinkley, Signal, cusum_limit
from driftline.judge.summaries import Arm
from driftline.pipeline import Retrain

ALLOWANCE = 0.25  # of the CUSUM, in standard deviations: tuned to shifts of half of one
ROWS_MIN = 100  # rows of a cohort from which its residual goes on the chart; fewer are far from normal
ATTEMPTS = ("accepted", "refused", "failed")


class Attempt(msgspec.Struct, frozen=True):
    """The last time that the trainer trained, or tried: when by the pipeline's clock, on how many rows, how it ended."""

    time: int
    rows: int
    outcome: str


class Champion(msgspec.Struct):
    """The model in force, and what its charts remember. Made anew for each champion, so everything starts again."""

    digest: str
    model: str
    deployment: int
    judged_from: int  # cohorts that begin here or later were asked wholly after it first served
    cusum: Cusum
    page_hinkley: PageHinkley = msgspec.field(default_factory=PageHinkley)
    adwin: Adwin = msgspec.field(default_factory=Adwin)
    z: float | None = None
    blocks: int = 0
    alarmed: int | None = None  # end of the window in which the CUSUM first signalled
    signal: Signal | None = None
    evidence: dict[str, int] = msgspec.field(default_factory=dict)  # last signal of the detectors that never trigger, by name

    def judge(self, z: float, end: int) -> None:
        """Take one cohort's residual, in standard deviations, in the window that ends at `end`."""
        self.z, self.blocks = z, self.blocks + 1
        signal = self.cusum.update(z)
        if signal and self.alarmed is None:
            self.alarmed, self.signal = end, signal
        for name, found in (("page_hinkley", self.page_hinkley.update(abs(z))), ("adwin", self.adwin.update(z))):
            if found:
                self.evidence[name] = end

    def chart(self) -> dict[str, Any]:
        """The chart as a report shows it."""
        return {
            "model": self.model,
            "digest": self.digest,
            "z": self.z,
            "high": self.cusum.high,
            "low": self.cusum.low,
            "limit": self.cusum.limit,
            "blocks": self.blocks,
            "alarm": self.alarmed is not None,
            "alarmed": self.alarmed,
            "evidence": self.evidence,
        }


class Retraining(msgspec.Struct):
    """What has to be remembered to say when to retrain."""

    attempt: Attempt | None = None
    answered: int | None = None  # time of the last command that was answered, whatever the answer was
    unanswered: str = ""  # id of the command that waits for the trainer

    def take(self, id: str, outcome: str, time: int, rows: int) -> None:
        """How a command ended, ours or an operator's."""
        if id == self.unanswered:
            self.unanswered = ""
            self.answered = time
        if outcome in ATTEMPTS:
            self.attempt = Attempt(time, rows, outcome)


def new_champion(served: Arm, judged_from: int, plan: Retrain, block_ms: int) -> Champion:
    """The champion that `served` shows, with fresh charts; the limit follows from the run length declared, in blocks of `block_ms`."""
    limit = cusum_limit(ALLOWANCE, plan.quality_run_length_ms / block_ms)
    return Champion(served.digest, served.model, served.deployment, judged_from, Cusum(ALLOWANCE, limit))


def trigger_of(
    plan: Retrain, retraining: Retraining, champion: Champion | None, *, began: int, now: int, trainable: int
) -> tuple[str, Mapping[str, Any]] | None:
    """
    Why to retrain at `now`, with the evidence; None for no reason, or not yet. `began` is the start of the first window,
    `trainable` how many rows have labels.
    """
    last = max((time for time in (retraining.answered, _time(retraining.attempt)) if time is not None), default=None)
    if retraining.unanswered or (last is not None and now - last < plan.cooldown_ms):
        return None
    reason = _first(plan, began, now) if champion is None else _again(plan, retraining.attempt, champion, now=now, trainable=trainable)
    return None if reason is None else (reason[0], {**reason[1], "trainable_rows": trainable})


def _first(plan: Retrain, began: int, now: int) -> tuple[str, dict[str, Any]] | None:
    if now - began < plan.first_after_ms:
        return None
    return "first", {"since_ms": now - began, "after_ms": plan.first_after_ms}


def _again(plan: Retrain, attempt: Attempt | None, champion: Champion, *, now: int, trainable: int) -> tuple[str, dict[str, Any]] | None:
    if champion.alarmed is not None:
        return "quality", {"chart": champion.chart(), "signal": msgspec.to_builtins(champion.signal)}
    if attempt is None:
        return None
    if attempt.rows > 0 and trainable >= plan.new_labels * attempt.rows:
        return "new_labels", {"rows_at_last_attempt": attempt.rows, "factor": plan.new_labels}
    if now - attempt.time >= plan.every_ms:
        return "schedule", {"last_attempt": attempt.time, "every_ms": plan.every_ms}
    return None


def _time(attempt: Attempt | None) -> int | None:
    return attempt.time if attempt else None
