"""
What a pipeline file says: streams, views, label, and how to decide, train, judge and roll out. Values only; `driftline.pipeline` reads
them, `driftline.check` finds what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from driftline.errors import Invalid
from driftline.f import Aggregate, Combination, Condition, Direct, Field, Place, duration_ms, place

Duration = str | int
SILENCE = ("positive", "negative", "excluded")


class Stream:
    """
    A topic that exists upstream, and the Avro schema that its records keep to, beside the pipeline file.

    `time` names the field that says when it happened, `visible` when anyone could know of it, if that is later. Records up to `lateness`
    behind the newest of their entity are still folded; an id that was seen within `duplicates[0]` among the last `duplicates[1]` of its
    key has no effect. `arrivals.delay_min` is a field of the stream; write `arrivals["time"]` for one that is named like a setting.
    """

    def __init__(
        self,
        schema: str,
        *,
        topic: str,
        id: str = "",
        key: str = "",
        time: str = "",
        visible: str = "",
        lateness: Duration = "1h",
        duplicates: tuple[Duration, int] = ("2d", 64),
    ) -> None:
        self.schema = schema
        self.topic = topic
        self.id = id
        self.key = key
        self.time = time
        self.visible = visible or time
        self.lateness_ms = duration_ms(lateness)
        self.duplicates_ms = duration_ms(duplicates[0])
        self.duplicates_max = duplicates[1]
        self.place = place()

    def __getattr__(self, name: str) -> Field:
        if name.startswith("_"):
            raise AttributeError(name)
        return Field(self, name)

    def __getitem__(self, name: str) -> Field:
        """The field of that name, whatever else the name means."""
        return Field(self, name)


class View:
    """
    What is known of an entity, from the records of one or several streams. Each keyword names a feature.

    Without `broadcast` the entity must contain the key of the question, so that all its records lie in one partition; with it every
    partition folds all of them, which is for entities that are few.
    """

    def __init__(
        self, *, of: Stream | Sequence[Stream], by: str | Sequence[str], broadcast: bool = False, **features: Aggregate | Combination
    ) -> None:
        self.of = [of] if isinstance(of, Stream) else list(of)
        self.by = [by] if isinstance(by, str) else list(by)
        self.broadcast = broadcast
        self.features = features
        self.place = place()


class Label:
    """
    What a question is asked about: `when` holds for a record of the stream `of`, which names the question by its id.

    Until `horizon` after the question nothing is concluded; then silence means what `if_silent` says. A later record may still revise
    the label for `revisions` longer (commonly another horizon). At most `waiting_max` questions wait in one partition.
    """

    def __init__(
        self,
        name: str,
        *,
        of: Stream,
        when: Condition,
        horizon: Duration,
        if_silent: str = "excluded",
        revisions: Duration | None = None,
        waiting_max: int = 1_000_000,
    ) -> None:
        if if_silent not in SILENCE:
            raise Invalid(f'if_silent="{if_silent}" means nothing; it is "positive", "negative" or "excluded"')
        if waiting_max < 1:
            raise Invalid(f"waiting_max is {waiting_max}; at least one question must be able to wait")
        self.name = name
        self.of = of
        self.when = when
        self.horizon_ms = duration_ms(horizon)
        self.revisions_ms = self.horizon_ms if revisions is None else duration_ms(revisions)
        self.if_silent = if_silent
        self.waiting_max = waiting_max
        self.place = place()


@dataclass(frozen=True, slots=True)
class Budget:
    """Decide by a threshold that alerts on this share of questions."""

    alert_rate: float

    def __post_init__(self) -> None:
        _within("alert_rate", self.alert_rate, 0, 1)


@dataclass(frozen=True, slots=True)
class LightGBM:
    """Gradient-boosted trees."""

    kind: ClassVar[str] = "lightgbm"

    trees: int = 100
    leaves: int = 15
    leaf_rows_min: int = 200
    learning_rate: float = 0.1
    row_sample: float = 0.8
    column_sample: float = 0.7
    l2: float = 5.0
    seed: int = 7

    def __post_init__(self) -> None:
        for name in ("trees", "leaf_rows_min"):
            _at_least(name, getattr(self, name), 1)
        _at_least("leaves", self.leaves, 2)
        for name in ("learning_rate", "row_sample", "column_sample"):
            _within(name, getattr(self, name), 0, 1)
        _at_least("l2", self.l2, 0)


@dataclass(frozen=True, slots=True)
class Logistic:
    """Logistic regression on standardised features; `c` is the inverse of the penalty's strength."""

    kind: ClassVar[str] = "logistic"

    c: float = 1.0
    iterations_max: int = 500
    seed: int = 7

    def __post_init__(self) -> None:
        _within("c", self.c, 0, float("inf"))
        _at_least("iterations_max", self.iterations_max, 1)


Recipe = LightGBM | Logistic


@dataclass(frozen=True, slots=True, init=False)
class Gate:
    """
    What a challenger must show, on the newest matured data of the length `on`, to replace the champion: the upper bound of its paired
    daily difference in `metric`, at this `confidence`, below 0 (for a scheduled refresh below `refresh_margin`, with a better mean).
    """

    metric: str
    on_ms: int
    rows_min: int
    positives_min: int
    confidence: float
    refresh_margin: float
    auc_margin: float

    def __init__(
        self,
        metric: str = "log_loss",
        *,
        on: Duration = "7d",
        rows_min: int = 5_000,
        positives_min: int = 500,
        confidence: float = 0.95,
        refresh_margin: float = 0.002,
        auc_margin: float = 0.005,
    ) -> None:
        if metric != "log_loss":
            raise Invalid(f'Gate("{metric}"): models are compared by "log_loss"')
        _within("confidence", confidence, 0, 1)
        _at_least("rows_min", rows_min, 1)
        _at_least("positives_min", positives_min, 1)
        _set(
            self,
            metric=metric,
            on_ms=_positive("on", on),
            rows_min=rows_min,
            positives_min=positives_min,
            confidence=confidence,
            refresh_margin=refresh_margin,
            auc_margin=auc_margin,
        )


@dataclass(frozen=True, slots=True, init=False)
class Retrain:
    """
    When to train again. `quality_run_length` is how long a healthy model goes, on average, before the control chart alarms; `new_labels`
    the growth of the trainable rows since the last attempt; `budget` the most commands that are trained in 28 days.
    """

    first_after_ms: int
    quality_run_length_ms: int
    new_labels: float
    every_ms: int
    cooldown_ms: int
    budget: int

    def __init__(
        self,
        *,
        first_after: Duration = "14d",
        quality_run_length: Duration = "180d",
        new_labels: float = 1.5,
        every: Duration = "28d",
        cooldown: Duration = "7d",
        budget: int = 8,
    ) -> None:
        _at_least("new_labels", new_labels, 1)
        _at_least("budget", budget, 1)
        _set(
            self,
            first_after_ms=_positive("first_after", first_after),
            quality_run_length_ms=_positive("quality_run_length", quality_run_length),
            new_labels=float(new_labels),
            every_ms=_positive("every", every),
            cooldown_ms=duration_ms(cooldown),
            budget=budget,
        )


@dataclass(frozen=True, slots=True, init=False)
class Rollout:
    """
    How an accepted model goes live: as a shadow, then on rising `shares` of the keys, each held for `hold`. `approval` makes it wait for
    an operator first, `approvals=2` for two different people; `frozen_shadow` keeps the first champion scoring for ever, so that it can be
    seen what was gained.
    """

    shadow_ms: int
    shares: tuple[float, ...]
    hold_ms: int
    approvals: int
    frozen_shadow: bool

    def __init__(
        self,
        *,
        shadow: Duration = "3d",
        shares: Sequence[float] = (0.25, 1.0),
        hold: Duration = "1d",
        approval: bool = False,
        approvals: int = 0,
        frozen_shadow: bool = False,
    ) -> None:
        rising = list(shares) == sorted(set(shares))
        if not shares or not rising or shares[0] <= 0 or shares[-1] != 1:
            raise Invalid(f"shares={list(shares)} must rise from above 0 to 1, as in [0.25, 1.00]")
        _at_least("approvals", approvals, 0)
        _set(
            self,
            shadow_ms=duration_ms(shadow),
            shares=tuple(map(float, shares)),
            hold_ms=duration_ms(hold),
            approvals=max(approvals, int(approval)),
            frozen_shadow=frozen_shadow,
        )


class Pipeline:
    """
    One use case. `inputs` are views, each giving all its features, and inputs taken from the question, in the order of the row.

    `tick` is how finely the pipeline's time moves, `window` what one report covers, `retention` how long its events are kept.
    """

    def __init__(
        self,
        name: str,
        *,
        owner: str,
        question: Stream,
        inputs: Sequence[View | Direct],
        label: Label | None = None,
        decide: Budget | None = None,
        model: Recipe | None = None,
        slices: Sequence[str] = (),
        gate: Gate | None = None,
        retrain: Retrain | None = None,
        rollout: Rollout | None = None,
        tick: Duration = "5s",
        window: Duration = "1d",
        retention: Duration = "7d",
        predictions: str = "avro",
    ) -> None:
        if predictions not in ("json", "avro"):
            raise Invalid(f'predictions="{predictions}": they are served as "json" or as "avro"')
        self.name = name
        self.owner = owner
        self.question = question
        self.inputs: list[Any] = list(inputs)  # the file is not type-checked: anything may be among them
        self.label = label
        self.decide = decide or Budget(0.1)
        self.model: Recipe = model or LightGBM()
        self.slices = tuple(slices)
        self.gate = gate or Gate()
        self.retrain = retrain or Retrain()
        self.rollout = rollout or Rollout()
        self.tick_ms = _positive("tick", tick)
        self.window_ms = _positive("window", window)
        self.retention_ms = _positive("retention", retention)
        self.predictions = predictions
        self.place: Place = place()


def _set(target: Any, **values: Any) -> None:
    """Fill in a frozen value that its constructor translates."""
    for name, value in values.items():
        object.__setattr__(target, name, value)


def _positive(name: str, duration: Duration) -> int:
    ms = duration_ms(duration)
    if ms == 0:
        raise Invalid(f"{name} must be longer than nothing")
    return ms


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        raise Invalid(f"{name} is {value}; it must be above {low} and at most {high}")


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise Invalid(f"{name} is {value}; it must be at least {least}")
