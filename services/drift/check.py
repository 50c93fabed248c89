"""
What a summary has to be, beyond its types, so that it can be added up and reported: checked before it touches any state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from driftline.judge.drift import Reference
from driftline.judge.summaries import LABEL_BINS, SCORE_BINS, AnswersSummary, ExamplesSummary

NUMBER_MAX = 1 << 62  # sums are kept in 64 bits
ENTRIES_MAX = 10_000
TEXT_MAX = 1_024


def check_numbers(value: Any) -> None:
    """Raises ValueError for numbers that do not fit a state row, and for texts and maps without end."""
    if isinstance(value, dict):
        if len(value) > ENTRIES_MAX:
            raise ValueError(f"a map of more than {ENTRIES_MAX} entries")
        if value and max(map(len, value)) > TEXT_MAX:
            raise ValueError(f"a text of more than {TEXT_MAX} characters")
        check_numbers(list(value.values()))
    elif isinstance(value, list):
        if value and all(type(one) is int for one in value):  # as nearly all are: at once
            value = [min(value), max(value)]
        for one in value:
            check_numbers(one)
    elif isinstance(value, str):
        if len(value) > TEXT_MAX:
            raise ValueError(f"a text of more than {TEXT_MAX} characters")
    elif not -NUMBER_MAX < value < NUMBER_MAX:
        raise ValueError("a number of more than 62 bits")


def check_answers(summary: AnswersSummary, references: Callable[[str], Reference]) -> None:
    """Raises ValueError when arms or inputs are not of the shape that the answers of a window give."""
    for key, arm in summary.arms.items():
        histograms = (arm.scores, arm.pairs.scores, arm.pairs.champion_scores)
        if key != f"{arm.role}|{arm.digest}" or any(len(histogram) != SCORE_BINS for histogram in histograms):
            raise ValueError("an arm under another name, or with other bins")
        if not 0 <= arm.invalid <= arm.rows or not 0 <= arm.pairs.rows <= arm.rows:
            raise ValueError("an arm with more answers of a kind than answers")
    for digest, inputs in summary.inputs.items():
        counts = references(digest).counts if digest else {}
        for name, bins in inputs.bins.items():
            if len(bins) != (len(counts.get(name, ())) if digest else 2):
                raise ValueError("inputs with other bins than the model's reference")
        if inputs.rows < 0 or not inputs.outside.keys() <= inputs.bins.keys():
            raise ValueError("inputs that do not add up")


def check_examples(summary: ExamplesSummary) -> None:
    """Raises ValueError when the models of a cohort are not of the shape that its examples give."""
    for key, quality in summary.models.items():
        if key != f"{quality.role}|{quality.digest}" or quality.positives > quality.rows or quality.variance < 0:
            raise ValueError("a model under another name, or with more positives than rows")
        for place in (*quality.positive_bins, *quality.negative_bins):
            if not place.isascii() or not place.isdigit() or int(place[:9]) >= LABEL_BINS:
                raise ValueError("a bin that there is not")
