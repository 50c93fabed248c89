"""
Counts of one partition and one window that add up: in any order and grouping, to exactly the same bytes.

Sums of real numbers are kept as integers in units of 1e-9 (`fixed`), because float addition is not associative and a
report must not depend on how batches were cut or which partition spoke first.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

SCORE_BINS = 20  # equal bins of the probability, for pictures and PSI
LABEL_BINS = 400  # equal bins of the log odds within +-LOGIT_MAX, for AUC: fine where probabilities crowd near 0 or 1
LOGIT_MAX = 10.0
SCORE_EDGES = np.array([step / SCORE_BINS for step in range(1, SCORE_BINS)])  # as in the bundle's reference
UNIT = 1e-9
PROBABILITY_MIN = 1e-7
SLICE_VALUES_MAX = 200  # values kept for each slice and window; what comes after goes to OTHER
OTHER = "(other)"

Scores = npt.NDArray[np.float64]
T = TypeVar("T")
S = TypeVar("S", bound="Summary")


def units(values: Scores) -> npt.NDArray[np.int64]:
    """`values` in units of 1e-9, each rounded by itself, so that sums of sums are exact."""
    return np.rint(values / UNIT).astype(np.int64)


def fixed(values: Scores) -> int:
    """The sum of `values` in units of 1e-9."""
    return int(units(values).sum())


def by_group(codes: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> list[int]:
    """The sum of whole numbers by group, for each code from 0 on; exact where the sums are below 2**53."""
    sums: list[int] = np.bincount(codes, values).astype(np.int64).tolist()
    return sums


class Summary(msgspec.Struct, omit_defaults=True):
    """
    A bundle of counts. `a + b` adds field by field: numbers and lists of numbers add, maps join by key, texts must agree;
    the fields in `largest` and `smallest` keep the extreme instead.
    """

    largest: ClassVar[frozenset[str]] = frozenset()
    smallest: ClassVar[frozenset[str]] = frozenset()

    def __add__(self: S, other: S) -> S:
        fields = {name: self._joined(name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__}
        return type(self)(**fields)

    def _joined(self, name: str, one: Any, other: Any) -> Any:
        if name in self.largest:
            return max(one, other)
        return min(one, other) if name in self.smallest else added(one, other)


def added(one: T, other: T) -> T:
    """The sum of two values of one type: numbers, texts that agree, lists of as many numbers, maps, summaries."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = {key: added(value, other[key]) for key, value in one.items() if key in other}
        return one | other | both  # type: ignore[return-value]
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]  # type: ignore[return-value]
    if isinstance(one, str):
        if one != other:
            raise ValueError(f"summaries of {one!r} and {other!r} cannot be added")
        return one
    return one + other  # type: ignore[operator, no-any-return]


def _score_bins() -> list[int]:
    return [0] * SCORE_BINS


class Pairs(Summary):
    """A model beside the champion that was served, on the same rows; both scores must be numbers."""

    rows: int = 0
    difference: int = 0  # sum of own score minus champion's, fixed
    champion_total: int = 0  # sum of the champion's scores, fixed
    alerts: int = 0
    champion_alerts: int = 0
    scores: list[int] = msgspec.field(default_factory=_score_bins)
    champion_scores: list[int] = msgspec.field(default_factory=_score_bins)


class Arm(Summary):
    """What one model answered in one role."""

    largest: ClassVar[frozenset[str]] = frozenset({"deployment"})
    smallest: ClassVar[frozenset[str]] = frozenset({"since", "model"})

    role: str
    model: str  # the digest is what counts: a name that somebody told otherwise must not keep two windows from being added
    digest: str
    deployment: int  # newest version that named it in this role
    since: int  # visible time of its first answer in the window, ms
    rows: int = 0
    invalid: int = 0  # the model gave no number
    alerts: int = 0
    total: int = 0  # sum of scores, fixed
    scores: list[int] = msgspec.field(default_factory=_score_bins)
    pairs: Pairs = msgspec.field(default_factory=Pairs)


class Inputs(Summary):
    """The rows that one model was served: by feature the rows in each bin of its reference, missing last."""

    rows: int = 0
    bins: dict[str, list[int]] = msgspec.field(default_factory=dict)
    outside: dict[str, int] = msgspec.field(default_factory=dict)


class AnswersSummary(Summary):
    """One window of answers: `arms` by role and digest, `inputs` by digest of the served model ("" is none)."""

    arms: dict[str, Arm] = msgspec.field(default_factory=dict)
    inputs: dict[str, Inputs] = msgspec.field(default_factory=dict)


class SliceQuality(Summary):
    """Matured answers of one model with one value of a slice."""

    rows: int = 0
    positives: int = 0
    expected: int = 0  # sum of probabilities, fixed
    log_loss: int = 0  # fixed


class Quality(Summary):
    """Matured answers of one model in one role: enough for log loss, Brier score, calibration, AUC and a control chart."""

    smallest: ClassVar[frozenset[str]] = frozenset({"model"})

    role: str
    model: str
    digest: str
    rows: int = 0
    invalid: int = 0  # labelled, but the model had given no number
    positives: int = 0
    expected: int = 0  # sum of probabilities, fixed
    variance: int = 0  # sum of p (1 - p), fixed
    log_loss: int = 0  # fixed
    brier: int = 0  # fixed
    positive_bins: dict[str, int] = msgspec.field(default_factory=dict)
    negative_bins: dict[str, int] = msgspec.field(default_factory=dict)
    slices: dict[str, dict[str, SliceQuality]] = msgspec.field(default_factory=dict)

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve, a bin's pairs counted half; None without both labels."""
        negatives = self.rows - self.positives
        if not self.positives or not negatives:
            return None
        below, wins = 0, 0.0
        for place in sorted(self.positive_bins.keys() | self.negative_bins.keys(), key=int):
            here = self.negative_bins.get(place, 0)
            wins += self.positive_bins.get(place, 0) * (below + 0.5 * here)
            below += here
        return wins / (self.positives * negatives)

    @property
    def z(self) -> float | None:
        """Observed minus expected positives in binomial standard deviations; None where nothing could vary."""
        return (self.positives - self.expected * UNIT) / math.sqrt(self.variance * UNIT) if self.variance else None


class ExamplesSummary(Summary):
    """
    One cohort of matured answers, by role and digest; and what the partition could train on when the cohort closed.
    """

    models: dict[str, Quality] = msgspec.field(default_factory=dict)
    told: int = 0  # served answers whose label an outcome told
    silent: int = 0  # served answers labelled by silence
    excluded: int = 0  # served answers without a label
    trainable: int = 0  # served answers with a label, since the beginning


def score_bins(scores: Scores) -> npt.NDArray[np.int64]:
    """The bin of each probability, of `SCORE_BINS` equal ones."""
    return np.searchsorted(SCORE_EDGES, scores, side="right").astype(np.int64)


def label_bins(scores: Scores) -> npt.NDArray[np.int64]:
    """The bin of each probability, of `LABEL_BINS` equal ones of its log odds."""
    clipped = np.clip(scores, PROBABILITY_MIN, 1.0 - PROBABILITY_MIN)
    odds = np.log(clipped) - np.log1p(-clipped)
    places = np.floor((odds + LOGIT_MAX) * (LABEL_BINS / (2.0 * LOGIT_MAX))).astype(np.int64)
    return np.clip(places, 0, LABEL_BINS - 1)


def log_losses(scores: Scores, labels: npt.NDArray[np.int64]) -> Scores:
    """The log loss of each answer, probabilities kept `PROBABILITY_MIN` away from 0 and 1."""
    clipped = np.clip(scores, PROBABILITY_MIN, 1.0 - PROBABILITY_MIN)
    return np.asarray(-np.where(labels == 1, np.log(clipped), np.log1p(-clipped)), np.float64)


def counted(places: npt.NDArray[np.int64]) -> dict[str, int]:
    """How often each place occurs, without those that do not."""
    values, counts = np.unique(places, return_counts=True)
    return dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))


def encoded(summary: Summary) -> bytes:
    """Canonical JSON of a summary: equal summaries, equal bytes."""
    return msgspec.json.encode(summary, order="sorted")
