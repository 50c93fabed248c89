"""
Answer feature rows: one prediction a row for consumers, one answer an arm and shadow for the journal.

A row names the deployment in force when it was made, and an arm depends on that and the key alone, so a replay answers
the same. A row is never dropped: what no model could score gets the fallback score and says so. Nothing here learns, and
nothing here knows what time it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from driftline.contracts import traceparent
from driftline.contracts.avro import pack_strings
from driftline.contracts.messages import Arm, Deployment, Flag
from driftline.errors import Invalid
from driftline.features.row import RowLayout
from driftline.models.bundle import Manifest
from driftline.pipeline import Pipeline, View
from driftline.stream.batch import Batch, Column, Effects, Ints, Messages, Refused, Table, Varlen, distinct

Matrix = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

REASONS_MAX = 3
QUESTION = "question"  # reason for inputs that come from the question itself
NOBODY = Arm("none", "", "", 1.0)


class Model(Protocol):
    """What is needed of a model; `models.bundle.Model` is the real one."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def threshold(self) -> np.float32: ...

    @property
    def medians(self) -> npt.NDArray[np.float32]: ...

    def score(self, matrix: Matrix) -> Scores: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """The rows of a batch, and their features where `readable` says that they are of this layout."""

    rows: Table
    matrix: Matrix
    readable: Bools

    def take(self, index: Ints) -> Asked:
        """The rows at `index`, each at most once, ascending; all of them are not copied."""
        if len(index) == len(self.rows):
            return self
        return Asked(self.rows.take(index), self.matrix[index], self.readable[index])

    def features(self, index: Ints) -> Matrix:
        """Those of the rows at `index`, as `take` has them."""
        return self.matrix if len(index) == len(self.matrix) else self.matrix[index]


@dataclass(slots=True)
class Served:
    """What is said of each row of a batch, filled in deployment by deployment. `arms` are indexes into `names`."""

    names: list[Arm]
    arms: Ints
    scores: Scores
    alerts: Bools
    flags: Ints
    reasons: Ints

    @classmethod
    def nothing(cls, n: int) -> Served:
        """Before anything is known: no arm, no score."""
        scores, alerts = np.full(n, np.nan, np.float32), np.zeros(n, np.bool_)
        return cls([NOBODY], np.zeros(n, np.int64), scores, alerts, np.zeros(n, np.int64), np.zeros(n, np.int64))


class Inference:
    """
    The deployments that rows may name, each with its models warm. Version 0 has no model: every answer is degraded.

    Knows no state of its own, so one serves all partitions of a process; `add` may be called from another thread.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._layout: RowLayout = pipeline.layout
        self._deployments: dict[int, Deployment] = {0: Deployment.none()}
        self._models: dict[str, Model] = {}
        self._reasons = Reasons(self._layout)
        self._memory_s = np.array([memory_s(view) for view in pipeline.views], np.float32)

    def add(self, deployment: Deployment, models: Mapping[str, Model]) -> None:
        """
        Make rows answerable that name `deployment`. What one of its models that is not in `models` would have scored gets the
        fallback score, flagged. Raises Invalid, and adds nothing, when a model reads other features than this pipeline makes.
        """
        for digest in deployment.digests:
            if digest in models:
                self.refuse_unfit(models[digest], f"model {digest[:12]} of deployment {deployment.version}")
        self._models.update(models)
        self._deployments.setdefault(deployment.version, deployment)

    def refuse_unfit(self, model: Model, what: str) -> None:
        """Raises Invalid when `model`, named by `what`, reads other features than this pipeline makes."""
        if tuple(model.manifest.names) != tuple(self._layout.names):
            raise Invalid(f"{what} reads other features than {self._layout.version}")

    def missing(self, batch: Batch) -> set[int]:
        """The versions that rows of `batch` name and that were not added yet; `step` must wait for them, and refuses what names others."""
        rows = batch["row"]
        return set() if rows is None else set(distinct(rows["deployment"])) - self._deployments.keys()

    def needs(self, batch: Batch) -> Sequence[bytes]:
        return ()

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        return

    def touches(self, batch: Batch) -> int:
        return 0

    def step(self, batch: Batch) -> Effects:
        messages: list[Messages] = []
        refused: list[Refused] = []
        rows, ticks = batch["row"], batch["tick"]
        if rows is not None:
            if unknown := self.missing(batch):
                rows, refused = self._known(rows, unknown)
            messages += self._answered(rows)
        if ticks is not None:
            passed = {name: ticks[name] for name in (*COORDINATE, "time", "deployment")}
            messages.append(Messages("journal", "tick", None, passed, ticks.offsets))
        return Effects(messages=messages, refused=refused, counts={"applied": len(rows or ()), "tick": len(ticks or ())})

    def _known(self, rows: Table, unknown: Collection[int]) -> tuple[Table, list[Refused]]:
        """A deployment is on its topic before a tick can name it, so a row that names one which is not there was not made by feature."""
        bad = np.isin(rows["deployment"], sorted(unknown))
        named = zip(rows.offsets[bad].tolist(), rows["deployment"][bad].tolist(), strict=True)
        return rows.take(~bad), [
            Refused(offset, "contract", f"it names deployment {version}, which there is not") for offset, version in named
        ]

    def say(self, rows: Table) -> Served:
        """What `step` says of each row, without messages. Read are the columns `deployment`, `key`, `layout` and `row`."""
        return self._said(self._asked(rows), self._by_deployment(rows))

    def _answered(self, rows: Table) -> list[Messages]:
        asked, parts = self._asked(rows), self._by_deployment(rows)
        served = self._said(asked, parts)
        shadows = [one for deployment, mine in parts for one in self._shadowed(deployment, asked.take(mine))]
        return [self._predictions(rows, served), _answers(rows, served), *shadows]

    def _said(self, asked: Asked, parts: Sequence[tuple[Deployment, Ints]]) -> Served:
        served = Served.nothing(len(asked.rows))
        for deployment, mine in parts:
            self._serve(deployment, asked, mine, served)
        served.flags |= self._stale(asked)
        return served

    def _by_deployment(self, rows: Table) -> list[tuple[Deployment, Ints]]:
        """The deployments that rows name, each with the places of its rows."""
        named = rows["deployment"]
        return [(self._deployments[version], np.flatnonzero(named == version)) for version in distinct(named)]

    def _asked(self, rows: Table) -> Asked:
        """A row of another layout, or of another length, can be read by nobody."""
        version, row = self._layout.version.encode(), rows["row"]
        readable: Bools = _equal(rows["layout"], version) & (row.ends - row.starts == self._layout.row_bytes)
        if readable.all():
            return Asked(rows, np.ascontiguousarray(self._layout.matrix(row)), readable)  # once, for all the models
        matrix = np.full((len(rows), len(self._layout.names)), np.nan, np.float32)
        matrix[readable] = self._layout.matrix(row.take(readable))
        return Asked(rows, matrix, readable)

    def _stale(self, asked: Asked) -> Ints:
        """
        The flag of rows of which a view has not heard of its entity for longer than it remembers. One that it never heard of is
        new, not stale.
        """
        flags = np.zeros(len(asked.rows), np.int64)
        stale = (self._layout.ages(asked.rows["row"].take(asked.readable)) > self._memory_s).any(axis=1)
        flags[asked.readable] = np.where(stale, int(Flag.STALE_VIEW), int(Flag.NONE))
        return flags

    def _serve(self, deployment: Deployment, asked: Asked, mine: Ints, served: Served) -> None:
        """Give the rows at `mine` the score of the arm that their key has in `deployment`."""
        if not deployment.arms:
            served.scores[mine] = deployment.fallback_score
            served.flags[mine] |= int(Flag.DEGRADED)
            return
        assigned = deployment.assign(asked.rows["key"].take(mine))
        for number, arm in enumerate(deployment.arms):
            at = mine[assigned == number]
            if len(at):
                served.arms[at] = len(served.names)
                served.names.append(arm)
                self._score(arm, asked, at, served)
        unscored = mine[np.isnan(served.scores[mine])]
        served.scores[unscored] = deployment.fallback_score
        served.flags[unscored] |= int(Flag.DEGRADED | Flag.NO_SCORE)

    def _score(self, arm: Arm, asked: Asked, at: Ints, served: Served) -> None:
        model = self._models.get(arm.digest)
        at = at[asked.readable[at]]
        if model is None or not len(at):
            return
        scores = model.score(asked.features(at))
        served.scores[at] = scores
        served.alerts[at] = scores >= model.threshold
        alerted = at[served.alerts[at]]
        served.reasons[alerted] = self._reasons.of(model, asked.matrix[alerted], served.scores[alerted])

    def _shadowed(self, deployment: Deployment, asked: Asked) -> Iterator[Messages]:
        """What each shadow would have said. Index 1 + n is the nth; the row is on index 0 of the same cause."""
        for number, shadow in enumerate(deployment.shadows):
            told = Served.nothing(len(asked.rows))
            told.names = [shadow]
            model = self._models.get(shadow.digest)
            if model is not None:
                readable = np.flatnonzero(asked.readable)
                told.scores[readable] = model.score(asked.features(readable))
                told.alerts = told.scores >= model.threshold
            told.flags = np.where(np.isnan(told.scores), int(Flag.NO_SCORE), int(Flag.NONE)) | self._stale(asked)
            yield _answers(asked.rows, told, index=1 + number)

    def reasons(self, served: Served) -> Varlen:
        """Why each score is as high as it is, as Avro encodes an array of strings; nothing where there is no alert."""
        return self._reasons.words(served.reasons)

    def _predictions(self, rows: Table, served: Served) -> Messages:
        columns = _copied(rows, "id", "key", "time") | {
            traceparent.NAME: traceparent.column_of(rows),
            "index": np.zeros(len(rows), np.int64),
            "score": served.scores,
            "decision": DECISIONS.take(served.alerts.astype(np.int64)),
            "reasons": self.reasons(served),
            "model": _of_arms(served, "model"),
            "arm": _of_arms(served, "role"),
            "flags": FLAGS.take(served.flags),
        }
        return Messages("predictions", "prediction", rows["key"], columns, rows.offsets)


class Reasons:
    """
    Why a score is as high as it is: the views whose features, set to the training medians, would lower it most. Reasons are
    kept as numbers of the ordered choice of views, so that no text is made for a row.
    """

    def __init__(self, layout: RowLayout) -> None:
        views = np.asarray(layout.view_of, np.int64)
        groups = [(name, np.flatnonzero(views == at)) for at, name in enumerate(layout.views)] + [(QUESTION, np.flatnonzero(views < 0))]
        self._names = [name for name, features in groups if len(features)]
        self._features = [features for _, features in groups if len(features)]

    def of(self, model: Model, matrix: Matrix, scores: Scores) -> Ints:
        """The number of each row's reasons. All views are ablated in one batch."""
        n, views = len(matrix), len(self._features)
        if not n or not views:
            return np.zeros(n, np.int64)
        ablated = np.tile(matrix, (views, 1))
        for view, features in enumerate(self._features):
            ablated[view * n : (view + 1) * n, features] = model.medians[features]
        drops = scores[None, :] - model.score(ablated).reshape(views, n)
        drops = np.where(drops > 0, drops, np.float32(0))  # not a number is no reason either
        best = np.argsort(-drops, axis=0, kind="stable")[:REASONS_MAX]
        told = np.take_along_axis(drops, best, axis=0) > 0
        number = np.zeros(n, np.int64)
        for place in range(len(best)):
            number = number * (views + 1) + np.where(told[place], best[place] + 1, 0)
        return number

    def words(self, numbers: Ints) -> Varlen:
        """The names behind each number, as Avro encodes an array of strings."""
        found = distinct(numbers)
        return Varlen.of(pack_strings(self._named(number)) for number in found).take(np.searchsorted(found, numbers))

    def _named(self, number: int) -> list[str]:
        names: list[str] = []
        while number:
            number, digit = divmod(number, len(self._names) + 1)
            names += [self._names[digit - 1]] if digit else []
        return names[::-1]


def memory_s(view: View) -> float:
    """How far back the longest window of `view` reaches."""
    aggregates = [aggregate for feature in view.features for _, aggregate in feature.terms]
    return max(aggregate.ending_ms + aggregate.window_ms for aggregate in aggregates) / 1000


COORDINATE = ("source", "partition", "offset", "index", "event_offset")
DECISIONS = Varlen.of(["pass", "alert"])
FLAGS = Varlen.of(pack_strings([str(flag.name).lower() for flag in Flag if flag and flag & bits]) for bits in range(8))


def _answers(rows: Table, served: Served, index: int = 0) -> Messages:
    """Answers of what was served, with their rows; or of the shadow whose answers have `index`, without."""
    n, shadow = len(rows), index > 0
    shares = np.array([0.0 if shadow else arm.share for arm in served.names], np.float32)
    columns = _copied(rows, "id", "key", "time", "visible", "deployment", "layout", "slices") | {
        traceparent.NAME: traceparent.column_of(rows),
        "index": np.full(n, index, np.int64),
        "arm": _of_arms(served, "role"),
        "share": shares[served.arms],
        "shadow": np.full(n, shadow),
        "model": _of_arms(served, "model"),
        "digest": _of_arms(served, "digest"),
        "score": served.scores,
        "alert": served.alerts,
        "flags": served.flags,
        "row": Varlen.repeat(b"", n) if shadow else rows["row"],
    }
    return Messages("journal", "answer", rows["key"], columns, rows.offsets)


def _copied(rows: Table, *names: str) -> dict[str, Column]:
    return {name: rows[name] for name in (*COORDINATE, *names)}


def _of_arms(served: Served, field: str) -> Varlen:
    return Varlen.of(str(getattr(arm, field)) for arm in served.names).take(served.arms)


def _equal(column: Varlen, value: bytes) -> Bools:
    """Which values of `column` are `value`, without making Python objects of them."""
    same: Bools = column.ends - column.starts == len(value)
    at: Any = column.starts[same][:, None] + np.arange(len(value))
    same[same] = (column.data[at] == np.frombuffer(value, np.uint8)).all(axis=1)
    return same
