"""
Train challengers from what was served, and judge them. Pure: the rows and labels of the log in, a signed-to-be bundle and a
verdict out; the same input gives the same bytes.

Time runs like this, for a command at time T with label horizon H and a gate that judges on the newest `on` matured days:

    first row ........ training ........ | embargo H | holdout `on` | not matured H | T

The embargo keeps a training row's outcome from being known only while the holdout was already being asked. A first model has
no champion to meet on a holdout: it trains on all matured rows, and proves itself on days that it predicts from the days before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import Deployment, Release, Retrain, Trained
from driftline.declaration import Logistic, Recipe
from driftline.errors import Invalid
from driftline.judge import quality
from driftline.judge.gate import Holdout, Proof, Verdict, base_rate_gate, challenge, plain
from driftline.models.bundle import Manifest, Model
from driftline.models.onnx import Session, cost
from driftline.models.recipes import Fitted, describe, fit, invariant, parity, versions
from driftline.models.reference import make_reference, medians
from driftline.pipeline import Pipeline
from driftline.stream.batch import Ints

from .dataset import Dataset, joined, take

DAY_MS = 86_400_000
BUDGET_MS = 28 * DAY_MS
ATTEMPTS = ("accepted", "refused", "failed")  # outcomes after which the cooldown runs
INVARIANCE_ROWS = 1_000
FORWARD_DAYS_MIN, FORWARD_DAYS_MAX = 2, 7
FORWARD_ROWS_MIN = 500  # fewer rows before a day make no model worth asking

Scores = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


# ---- the commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Champion:
    """Which model is served, as the deployments say."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class State:
    """What the logs say of earlier commands and of who is champion. Rebuilt from them before every command."""

    answered: Mapping[int, str] = field(default_factory=dict)  # id of each answered command, by its offset
    attempts: Sequence[tuple[int, str]] = ()  # time and outcome of the commands that ended in a training, successful or not
    releases: Sequence[int] = ()  # offsets of the commands that led to a release
    deployments: Sequence[tuple[int, int, Champion | None]] = ()  # time, version, champion

    def with_trained(self, offsets: Sequence[int], outcomes: Sequence[Trained]) -> State:
        """Count in how commands ended."""
        answered = dict(self.answered) | {offset: one.id for offset, one in zip(offsets, outcomes, strict=True)}
        attempts = [*self.attempts, *((one.time, one.outcome) for one in outcomes if one.outcome in ATTEMPTS)]
        return State(answered, attempts, self.releases, self.deployments)

    def with_releases(self, offsets: Sequence[int]) -> State:
        """Count in releases of the trainer's own, by the offset of their command."""
        return State(self.answered, self.attempts, [*self.releases, *offsets], self.deployments)

    def with_deployments(self, deployments: Sequence[Deployment]) -> State:
        """Count in who was served."""
        known = [(one.time, one.version, _champion(one)) for one in deployments]
        return State(self.answered, self.attempts, self.releases, [*self.deployments, *known])

    def champion(self, time: int) -> Champion | None:
        """
        Who was champion before `time`. Strictly before: the report that raised a command moves the rollout at the same time,
        and which of the two is quicker must not matter.
        """
        before = [(version, champion) for at, version, champion in self.deployments if at < time]
        return max(before, key=lambda one: one[0])[1] if before else None

    @property
    def looks(self) -> int:
        """How often a gate has judged since it last accepted: the more looks, the likelier a lucky one."""
        outcomes = [outcome for _, outcome in self.attempts if outcome != "failed"]
        return next((back for back, outcome in enumerate(reversed(outcomes)) if outcome == "accepted"), len(outcomes))

    def number(self, offset: int) -> int:
        """The number of the model that the command at `offset` makes."""
        return 1 + len({release for release in self.releases if release < offset})


def _champion(deployment: Deployment) -> Champion | None:
    return next((Champion(arm.model, arm.digest) for arm in deployment.arms if arm.role == "champion"), None)


@dataclass(frozen=True, slots=True)
class Held:
    """Why a command is not trained: duplicate, cooldown or budget, and the reason in words."""

    outcome: str
    reason: str


def decide(command: Retrain, offset: int, state: State, pipeline: Pipeline) -> Held | None:
    """None when the command at `offset` may train."""
    retrain = pipeline.retrain
    if any(known == command.id for at, known in state.answered.items() if at < offset):
        return Held("duplicate", f"the command {command.id} has been answered already")
    times = [time for time, _ in state.attempts]
    last = max(times, default=None)
    if last is not None and command.time < last + retrain.cooldown_ms:
        left = (last + retrain.cooldown_ms - command.time) / DAY_MS
        return Held("cooldown", f"{left:.3g} days left of the {retrain.cooldown_ms / DAY_MS:.3g}-day cooldown")
    spent = sum(1 for time in times if time > command.time - BUDGET_MS)
    if spent >= retrain.budget:
        return Held("budget", f"{spent} commands were trained in 28 days, {retrain.budget} is the budget")
    return None


# ---- the training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained; with a `Dataset`, all that decides the bytes of a bundle."""

    model: str
    recipe: Recipe
    time: int
    trigger: str
    first: bool


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Training rows, and rows that were not trained on; `blocks` numbers the day of each of those, `cuts` says where the cuts are."""

    train: Dataset
    unseen: Dataset
    blocks: Ints
    cuts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """
    A trained model before anybody has judged it, and what the judges need: its scores of the unseen rows, what was known of
    positives before each one's day, and how a logistic regression did.
    """

    manifest: Manifest
    onnx: bytes
    proof: Proof
    split: Split
    scores: Scores
    base_rates: Floats
    baseline: Mapping[str, float]

    @property
    def digest(self) -> str:
        """Of the bundle."""
        return self.manifest.digest()


def split(dataset: Dataset, pipeline: Pipeline, until: int) -> Split:
    """
    Cut `dataset` for a challenger: the newest matured days are the holdout, one horizon before them is embargoed.

    Days are counted back from the last moment whose rows have matured by `until`, so that each is whole. Raises Invalid when
    either side is empty.
    """
    horizon = _horizon(pipeline)
    end = until - horizon
    start = end - pipeline.gate.on_ms
    train = take(dataset, dataset.asked <= start - horizon)
    holdout = take(dataset, (dataset.asked > start) & (dataset.asked <= end))
    if not len(train) or not len(holdout):
        raise Invalid(f"{len(train)} rows to train on and {len(holdout)} to judge by are not enough")
    cuts = {"kind": "holdout", "until": until, "train_until": start - horizon, "holdout": [start, end]}
    return Split(train, holdout, (holdout.asked - start - 1) // DAY_MS, cuts)


def forward_days(dataset: Dataset, horizon: int, until: int) -> Iterator[tuple[Dataset, Dataset, int]]:
    """
    The newest matured days that have enough of both labels before them, oldest first: the rows that had matured when the day
    began, those that were asked on it, and its number.
    """
    end = until - horizon
    for back in range(FORWARD_DAYS_MAX, 0, -1):
        start = end - back * DAY_MS
        past = take(dataset, dataset.asked <= start - horizon)
        ahead = take(dataset, (dataset.asked > start) & (dataset.asked <= start + DAY_MS))
        if len(past) >= FORWARD_ROWS_MIN and 0 < past.positives < len(past) and len(ahead):
            yield past, ahead, FORWARD_DAYS_MAX - back


def _horizon(pipeline: Pipeline) -> int:
    if pipeline.label is None:
        raise Invalid(f"the pipeline {pipeline.name} declares no label, so nothing can be trained")
    return pipeline.label.horizon_ms


def train_model(dataset: Dataset, pipeline: Pipeline, order: Order, until: int) -> Candidate:
    """
    Train, export and prove a model from rows whose labels were known by `until`. Champions play no part, so that the same
    rows and the same order give the same bundle. Raises Invalid when there is too little to learn from.
    """
    if order.first:
        return _first(dataset, pipeline, order, until)
    cut = split(dataset, pipeline, until)
    fitted = fit(order.recipe, cut.train.matrix, cut.train.label, order.recipe.seed)
    scores = Session(fitted.onnx()).score(cut.unseen.matrix)
    rates = np.full(len(cut.unseen), cut.train.positives / len(cut.train))
    return _candidate(pipeline, order, fitted, cut, (scores, _logistic(cut.train, cut.unseen), rates))


def _first(dataset: Dataset, pipeline: Pipeline, order: Order, until: int) -> Candidate:
    """A model of all matured rows, with forward-chained days for its proof: each predicted from the days before its embargo."""
    horizon = _horizon(pipeline)
    folds = list(forward_days(dataset, horizon, until))
    if len(folds) < FORWARD_DAYS_MIN:
        raise Invalid(
            f"{len(dataset)} rows leave {len(folds)} days that could be predicted from those before, {FORWARD_DAYS_MIN} are needed"
        )
    told = [_predicted(order.recipe, past, ahead) for past, ahead, _ in folds]
    blocks = np.concatenate([np.full(len(ahead), block, np.int64) for _, ahead, block in folds])
    cuts = {"kind": "forward", "until": until, "train_until": until - horizon, "days": len(folds)}
    cut = Split(dataset, joined([ahead for _, ahead, _ in folds]), blocks, cuts)
    fitted = fit(order.recipe, dataset.matrix, dataset.label, order.recipe.seed)
    scores, logistic, rates = (np.concatenate(parts) for parts in zip(*told, strict=True))
    return _candidate(pipeline, order, fitted, cut, (scores, logistic, rates))


def _predicted(recipe: Recipe, past: Dataset, ahead: Dataset) -> tuple[Scores, Floats, Floats]:
    """What `recipe`, a logistic regression and the base rate, all learnt from `past`, say of the rows of `ahead`."""
    scores = Session(fit(recipe, past.matrix, past.label, recipe.seed).onnx()).score(ahead.matrix)
    return scores, _logistic(past, ahead), np.full(len(ahead), past.positives / len(past))


def _logistic(past: Dataset, ahead: Dataset) -> Floats:
    """The baseline: a model that cannot beat it is no gain."""
    baseline = Logistic()
    return fit(baseline, past.matrix, past.label, baseline.seed).predict(ahead.matrix)


def _candidate(pipeline: Pipeline, order: Order, fitted: Fitted, cut: Split, told: tuple[Scores, Floats, Floats]) -> Candidate:
    """`told` is what the model, a logistic regression and the base rate say of the unseen rows."""
    scores, logistic, rates = told
    onnx = fitted.onnx()
    session = Session(onnx)
    # The budget is one of the long run, and a week is calm or stormy: the threshold is set on all the rows that there are.
    everything = scores if order.first else np.concatenate([session.score(cut.train.matrix), scores])
    threshold = alert_threshold(everything, pipeline.decide.alert_rate)
    baseline = quality.summary(cut.unseen.label, logistic)
    return Candidate(
        _manifest(pipeline, order, onnx, cut, scores, threshold), onnx, _prove(fitted, session, cut), cut, scores, rates, baseline
    )


def _prove(fitted: Fitted, session: Session, cut: Split) -> Proof:
    """Parity on every row, those with missing features among them; invariance on some of either end of time."""
    train, unseen = cut.train.matrix, cut.unseen.matrix
    worst = max(parity(fitted, session, train), parity(fitted, session, unseen))
    some = np.concatenate([train[:INVARIANCE_ROWS], unseen[-INVARIANCE_ROWS:]])
    return Proof(worst, len(train) + len(unseen), invariant(session, some))


def alert_threshold(scores: Scores, alert_rate: float) -> float:
    """The score that `alert_rate` of `scores` reach, as an exact float32. Raises Invalid when no score is a number."""
    ranked = np.sort(scores[~np.isnan(scores)])
    if not len(ranked):
        raise Invalid("the model gave no score, so no threshold can be set")
    alerts = max(1, round(alert_rate * len(ranked)))
    return float(ranked[len(ranked) - alerts])


def _manifest(pipeline: Pipeline, order: Order, onnx: bytes, cut: Split, scores: Scores, threshold: float) -> Manifest:
    train, names = cut.train, pipeline.layout.names
    degraded = int(np.count_nonzero(train.degraded))
    return Manifest(
        model=order.model,
        layout=pipeline.layout.version,
        names=names,
        recipe=describe(order.recipe),
        seed=order.recipe.seed,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        threshold=threshold,
        medians=dict(medians(names, train.matrix)),
        reference=make_reference(names, train.matrix, scores),
        dispersion=round(quality.dispersion(cut.unseen.label, scores, cut.blocks), 6),
        base_rate=round(train.positives / len(train), 9),
        dataset={
            "ranges": train.ranges(),
            "digest": train.digest(),
            "rows": len(train),
            "positives": train.positives,
            "served": len(train) - degraded,
            "without_model": degraded,
            "backfilled": 0,
            "split": dict(cut.cuts),
        },
        metrics={name: plain(value) for name, value in quality.summary(cut.unseen.label, scores).items()},
        trained_at=order.time,
        trigger=order.trigger,
        versions=versions(),
    )


# ---- the verdict ----------------------------------------------------------------------------------------------------------


def judge(candidate: Candidate, pipeline: Pipeline, champion: Model | None, *, refresh: bool) -> Verdict:
    """
    Let the gate decide: against `champion` on the rows that neither was trained on, or, where there is none, against the
    base rate. `refresh` is for a scheduled retrain. Raises Invalid when the champion reads other features.
    """
    manifest, cut = candidate.manifest, candidate.split
    if champion is None:
        ahead = Holdout(cut.unseen.label, cut.blocks, candidate.base_rates, candidate.scores)
        return base_rate_gate(pipeline.gate, ahead, candidate.proof, matured=(len(cut.train), cut.train.positives))
    if champion.manifest.layout != manifest.layout:
        theirs = f"the champion {champion.manifest.model} reads the features {champion.manifest.layout}"
        raise Invalid(f"{theirs}, the rows are of {manifest.layout}: the two cannot be compared")
    values = [unpack_strings(packed) for packed in cut.unseen.slices.tolist()]
    slices = {name: [value[at] for value in values] for at, name in enumerate(pipeline.slices)}
    holdout = Holdout(cut.unseen.label, cut.blocks, champion.score(cut.unseen.matrix), candidate.scores, slices)
    return challenge(pipeline.gate, holdout, candidate.proof, refresh=refresh, cost_ratio=cost(candidate.onnx) / champion.cost)


def evidence(candidate: Candidate, verdict: Verdict, champion: Model | None, *, looks: int, without_row: int) -> dict[str, Any]:
    """
    All that the verdict rests on, for the release. `looks` is how often models were judged since one was accepted, this time
    included; `without_row` how many labels found no row.
    """
    manifest, told = candidate.manifest, verdict.to_dict()
    return {
        "base_rate": manifest.base_rate,
        "threshold": manifest.threshold,
        "dispersion": manifest.dispersion,
        "dataset": {**manifest.dataset, "without_row": without_row},
        "champion": None if champion is None else {"model": champion.manifest.model, "digest": champion.digest},
        "checks": told["checks"],
        "metrics": {**told["metrics"], "logistic": {name: plain(value) for name, value in candidate.baseline.items()}},
        "parity": float(f"{candidate.proof.parity:.1e}"),
        "cost": cost(candidate.onnx),
        "looks": looks,
    }


def release(command: Retrain, candidate: Candidate, verdict: Verdict, told: dict[str, Any]) -> Release:
    """The fact that goes to the rollout; `told` is its evidence."""
    return Release(
        model=candidate.manifest.model,
        digest=candidate.digest,
        verdict="accepted" if verdict.accepted else "refused",
        reason=verdict.reason,
        first=told["champion"] is None,
        time=command.time,
        trigger=command.trigger,
        command=command.id,
        who="trainer",
        evidence=told,
    )


def trained(command: Retrain, outcome: str, reason: str, rows: int, release: Release | None = None) -> Trained:
    """How `command` ended."""
    model, digest = (release.model, release.digest) if release else ("", "")
    return Trained(command.id, command.trigger, outcome, reason, command.time, rows, model, digest)
