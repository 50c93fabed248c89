"""
What speaks against a model: guardrails that need no label, and matured quality against the model that it would replace.

Every limit of the rollout is here. A guard judges numbers of one report alone, or sums over reports; it never moves anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

ROWS_MIN = 200  # fewer rows in a window say nothing about a distribution
NAN_SHARE_MAX = 0.001
PSI_MAX = 1.0  # a candidate is there because the world moved away from the champion: its scores may differ, but not in kind
MEAN_FACTOR_MAX = 2.0
ALERT_FACTOR_MIN, ALERT_FACTOR_MAX = 0.1, 3.0  # of one day: calm and stormy ones differ by more than good models do
LOG_LOSS_MARGIN = 0.01
LOG_LOSS_MARGIN_UNPROVEN = 0.05  # with too few days for an interval
DAYS_MIN = 3
T_95 = {2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943}  # one-sided 95 % point of Student's t, by degrees of freedom
T_95_BEYOND = 1.895
CANDIDATE_ROWS_MIN = 500
WATCH_ROWS_MIN = 1_000


class Duel(msgspec.Struct, frozen=True):
    """
    A model against its rival on the matured cohorts that both answered: the differences of their mean log loss, day by day,
    for rows of one day err together and only days are independent.
    """

    rows: int = 0
    days: int = 0
    total: float = 0.0
    squares: float = 0.0

    def plus(self, mine: Mapping[str, Any], rival: Mapping[str, Any]) -> Duel:
        """Count one cohort in, as the report's quality says it of either."""
        difference = mine["log_loss"] - rival["log_loss"]
        rows = self.rows + min(mine["n"], rival["n"])
        return Duel(rows, self.days + 1, self.total + difference, self.squares + difference * difference)

    def lost_by(self, rows_min: int) -> float | None:
        """
        By how much the log loss of a mean day is above the rival's. None when rows are too few, when it is within the margin,
        or when it may be chance: the one-sided 95 % lower bound of the difference is not above 0.
        """
        if not self.days or self.rows < rows_min:
            return None
        mean = self.total / self.days
        if self.days < DAYS_MIN:
            return mean if mean > LOG_LOSS_MARGIN_UNPROVEN else None
        variance = max(0.0, self.squares - self.days * mean * mean) / (self.days - 1)
        bound = mean - T_95.get(self.days - 1, T_95_BEYOND) * math.sqrt(variance / self.days)
        return mean if mean > LOG_LOSS_MARGIN and bound > 0 else None


def rows_of(body: Mapping[str, Any], digest: str) -> int:
    """How many rows the model scored in the report's window."""
    return int(body.get("models", {}).get(digest, {}).get("n", 0))


def fault_of(body: Mapping[str, Any], digest: str, champion: str) -> str | None:
    """
    The first guardrail that the model breaks in this window, in words; None when it breaks none, or has too few rows to tell.

    It is compared on the rows that the champion was served on and that it scored along; where there are too few of those, on
    the rows of either.
    """
    models = body.get("models", {})
    seen, rival = models.get(digest, {}), models.get(champion, {})
    if seen.get("n", 0) < ROWS_MIN:
        return None
    return (
        _no_number(seen) or _other_scores(seen) or _other_mean(seen, rival) or _other_alerts(seen, rival, body.get("alert_rate_declared"))
    )


def _no_number(seen: Mapping[str, Any]) -> str | None:
    share = seen.get("nan", 0) / seen["n"]
    return f"no score on {share:.2%} of {seen['n']} rows, limit {NAN_SHARE_MAX:.1%}" if share > NAN_SHARE_MAX else None


def _other_scores(seen: Mapping[str, Any]) -> str | None:
    spread = seen.get("psi_vs_champion")
    if spread is None or spread <= PSI_MAX:
        return None
    return f"its scores are spread differently from the champion's on the same rows: PSI {spread:.2f}, limit {PSI_MAX}"


def _other_mean(seen: Mapping[str, Any], rival: Mapping[str, Any]) -> str | None:
    mine, other = seen.get("mean"), rival.get("mean")
    if seen.get("paired_n", 0) >= ROWS_MIN:
        other = seen["paired_champion_mean"]
        mine = other + seen["paired_mean_difference"]
    factor = _factor(mine, other)
    if factor is None or 1 / MEAN_FACTOR_MAX <= factor <= MEAN_FACTOR_MAX:
        return None
    return f"its mean score is {factor:.2f} times the champion's on the same rows, limit a factor of {MEAN_FACTOR_MAX:g}"


def _other_alerts(seen: Mapping[str, Any], rival: Mapping[str, Any], declared: float | None) -> str | None:
    """
    Far from what the champion alerts and from what the pipeline declares, on the same side of both: a champion that the world has
    left alerts more or less than declared, and its successor is to bring that back.
    """
    mine, other = seen.get("alert_rate"), rival.get("alert_rate")
    if seen.get("paired_n", 0) >= ROWS_MIN:
        mine, other = seen["paired_alert_rate"], seen["paired_champion_alert_rate"]
    expected = [rate for rate in (other, declared) if rate]
    if mine is None or not expected:
        return None
    lowest, highest = ALERT_FACTOR_MIN * min(expected), ALERT_FACTOR_MAX * max(expected)
    if lowest <= mine <= highest:
        return None
    return f"it alerts on {mine:.1%} of the rows; from {lowest:.1%} to {highest:.1%} would be like the champion or as declared"


def _factor(mine: float | None, other: float | None) -> float | None:
    """One over the other; None where either is unknown, or where there is nothing to be a multiple of."""
    return None if mine is None or not other else mine / other


def duels(
    body: Mapping[str, Any], mine: tuple[str, str], rival: tuple[str, str]
) -> Iterator[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
    """
    The cohorts that became complete with this report and that both models answered, each with its start and the quality of
    either. A model is named by digest and role, for the same one may answer in two roles.
    """
    found: dict[int, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for one in body.get("quality", []):
        if one.get("n", 0) and one.get("log_loss") is not None:
            found.setdefault(int(one["cohort"]), {})[one["digest"], one["role"]] = one
    for cohort, by_model in sorted(found.items()):
        if mine in by_model and rival in by_model:
            yield cohort, by_model[mine], by_model[rival]
