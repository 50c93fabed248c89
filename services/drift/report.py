"""
What a window showed, as the body of a report: plain maps of numbers, rounded so that the text is stable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from driftline.judge.drift import PSI_LIMIT, Reference, js, psi
from driftline.judge.summaries import UNIT, AnswersSummary, Arm, ExamplesSummary, Inputs, Pairs, Quality, SliceQuality, added

from .answers import CHAMPION

DIGITS = 6


def newest_champion(window: AnswersSummary) -> Arm | None:
    """The champion that the newest deployment of the window served."""
    champions = [arm for arm in window.arms.values() if arm.role == CHAMPION]
    return max(champions, key=lambda arm: (arm.deployment, arm.digest), default=None)


def inputs_of(inputs: Inputs, reference: Reference) -> dict[str, dict[str, Any]]:
    """Each feature of the rows that a model was served, against what it was trained on."""
    if not inputs.rows:
        return {}
    return {
        name: {
            "psi": psi(reference.counts[name], observed),
            "js": js(reference.counts[name], observed),
            "missing": observed[-1] / inputs.rows,
            "missing_at_training": _share(reference.counts[name][-1], sum(reference.counts[name])),
            "out_of_range": inputs.outside.get(name, 0) / inputs.rows if reference.bounded else None,
        }
        for name, observed in inputs.bins.items()
    }


def missing_without_model(window: AnswersSummary) -> dict[str, dict[str, Any]]:
    """Each feature while no model answered: only how often it is missing can be said."""
    inputs = window.inputs.get("")
    return {name: {"missing": counts[-1] / inputs.rows} for name, counts in inputs.bins.items()} if inputs and inputs.rows else {}


def scores_of(champion: Arm, reference: Reference) -> dict[str, Any]:
    """The champion's scores against those that it gave out of time when it was trained."""
    observed = [*champion.scores, champion.invalid]
    expected = [*reference.score_counts, 0][: len(observed)]
    return {"psi": psi(expected, observed), "js": js(expected, observed), "mean": _mean(champion), "n": champion.rows}


def models_of(window: AnswersSummary) -> dict[str, dict[str, Any]]:
    """
    What each model answered, by digest, in all its roles together; `role` is that of its newest deployment. The comparison with
    the champion is of the rows that both scored, or, where there is none (a canary), of the rows of either.
    """
    by_digest: dict[str, list[Arm]] = {}
    for arm in window.arms.values():
        by_digest.setdefault(arm.digest, []).append(arm)
    champion = newest_champion(window)
    return {digest: _model(arms, champion) for digest, arms in by_digest.items() if digest}


def _model(arms: list[Arm], champion: Arm | None) -> dict[str, Any]:
    newest = max(arms, key=lambda arm: (arm.deployment, arm.role == CHAMPION, arm.role))
    whole, valid = newest, 0
    for arm in arms:
        if arm is not newest:
            whole = Arm(**{name: getattr(newest, name) for name in ("role", "model", "digest", "deployment", "since")}, **_sums(whole, arm))
    valid = whole.rows - whole.invalid
    body = {
        "role": newest.role,
        "roles": sorted(arm.role for arm in arms),
        "model": newest.model,
        "deployment": newest.deployment,
        "n": whole.rows,
        "nan": whole.invalid,
        "mean": _mean(whole),
        "alert_rate": _share(whole.alerts, valid),
    }
    if champion is None or champion.digest == newest.digest:
        return body | {"psi_vs_champion": None, "paired_n": 0, "paired_mean_difference": None}
    return body | _beside(whole, champion)


def _sums(one: Arm, other: Arm) -> dict[str, Any]:
    return {name: added(getattr(one, name), getattr(other, name)) for name in ("rows", "invalid", "alerts", "total", "scores", "pairs")}


def _beside(arm: Arm, champion: Arm) -> dict[str, Any]:
    pairs: Pairs = arm.pairs
    if not pairs.rows:
        return {"psi_vs_champion": psi(champion.scores, arm.scores), "paired_n": 0, "paired_mean_difference": None}
    return {
        "psi_vs_champion": psi(pairs.champion_scores, pairs.scores),
        "paired_n": pairs.rows,
        "paired_mean_difference": pairs.difference * UNIT / pairs.rows,
        "paired_champion_mean": pairs.champion_total * UNIT / pairs.rows,
        "paired_alert_rate": pairs.alerts / pairs.rows,
        "paired_champion_alert_rate": pairs.champion_alerts / pairs.rows,
    }


def quality_of(start: int, cohort: ExamplesSummary, dispersion: Callable[[str], float]) -> Iterator[dict[str, Any]]:
    """Each model's quality on the cohort that begins at `start`, in each role."""
    for key in sorted(cohort.models):
        quality = cohort.models[key]
        phi = dispersion(quality.digest) if quality.digest else 1.0
        yield {
            "cohort": start,
            "digest": quality.digest,
            "role": quality.role,
            "model": quality.model,
            "n": quality.rows,
            "nan": quality.invalid,
            "positives": quality.positives,
            "base_rate": _share(quality.positives, quality.rows),
            "mean": _share(quality.expected * UNIT, quality.rows),
            "auc": quality.auc,
            "log_loss": _share(quality.log_loss * UNIT, quality.rows),
            "brier": _share(quality.brier * UNIT, quality.rows),
            "o_over_e": _share(quality.positives, quality.expected * UNIT),
            "z": standardised(quality, phi),
            "slices": {field: {value: _slice(one) for value, one in values.items()} for field, values in quality.slices.items()},
        }


def standardised(quality: Quality, dispersion: float) -> float | None:
    """Observed minus expected positives in standard deviations, the model's own dispersion allowed for."""
    return None if quality.z is None else quality.z / math.sqrt(dispersion)


def _slice(one: SliceQuality) -> dict[str, Any]:
    return {
        "n": one.rows,
        "positives": one.positives,
        "log_loss": _share(one.log_loss * UNIT, one.rows),
        "o_over_e": _share(one.positives, one.expected * UNIT),
    }


def beyond(inputs: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any]) -> dict[str, bool]:
    """For each subject that has a PSI this window, whether it is above the limit. A subject without one is left out."""
    subjects = {f"input:{name}": one.get("psi") for name, one in inputs.items()} | {"score": scores.get("psi")}
    return {subject: value > PSI_LIMIT for subject, value in subjects.items() if value is not None}


def rounded(value: Any) -> Any:
    """`value` with every float to 6 digits, and None for what is no finite number, all the way down."""
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def _mean(arm: Arm) -> float | None:
    return _share(arm.total * UNIT, arm.rows - arm.invalid)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
