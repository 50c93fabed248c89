"""Deployments as inference hears of them: which models are made ready when, and what becomes of those that may not be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from driftline.contracts.avro import pack_strings
from driftline.contracts.messages import Arm, Deployment, Source, as_messages
from driftline.errors import Invalid, Recoverable
from driftline.metrics import distribution, metric
from driftline.pipeline import load_pipeline
from driftline.stream.batch import Batch, Effects, Messages, Table, Varlen
from services.inference.app import Deployed, count
from services.inference.core import Inference

PIPELINES = Path(__file__).resolve().parents[3] / "pipelines"
ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


class Bundles:
    """A store of models by digest; a digest may stand for an error instead."""

    def __init__(self, **models: Any) -> None:
        self.models = {digest.removeprefix("d"): model for digest, model in models.items()}
        self.asked: list[str] = []

    def model(self, digest: str) -> Any:
        self.asked.append(digest)
        found = self.models[digest]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def inference() -> Inference:
    return Inference(load_pipeline("flights", PIPELINES))


def model(inference: Inference, *names: str) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(names=names or inference._layout.names))


def batch(*deployments: Deployment) -> Batch:
    n = len(deployments)
    messages = as_messages("deployments", "deployment", deployments, source=Source.CONTROL, offsets=range(n), indexes=[0] * n, partition=0)
    return Batch(0, 0, n, {"deployment": Table("deployment", messages.order, messages.columns)})


def deployment(version: int, *digests: str) -> Deployment:
    arms = tuple(Arm("champion" if at == 0 else "canary", "m", digest, 0.5) for at, digest in enumerate(digests))
    return Deployment(version, "canary", "canary", "", 0, arms, (), "salt", 0.5)


def rows(*versions: int) -> Batch:
    return Batch(0, 0, 1, {"row": Table("row", np.arange(len(versions)), {"deployment": np.array(versions)})})


def test_of_a_history_only_the_newest_is_made_ready(inference: Inference) -> None:
    """
    However long it is: an older one is made ready when a row names it, once.
    """
    bundles = Bundles(**{f"d{digest}": model(inference) for digest in (ONE, TWO, THREE)})
    deployed = Deployed("flights", inference, bundles)  # type: ignore[arg-type]  # models in memory
    deployed.take(batch(deployment(1, ONE), deployment(2, ONE, TWO), deployment(3, THREE)))
    assert bundles.asked == [THREE]
    assert inference.missing(rows(1, 3)) == {1}
    assert deployed.heard_of({1, 2, 3}) and not deployed.heard_of({4})
    deployed.serve({1, 3})
    deployed.serve({1, 3})
    assert bundles.asked == [THREE, ONE]
    assert inference.missing(rows(1, 2, 3)) == {2}


def test_a_model_that_may_not_be_loaded_or_reads_other_features_stops_nobody(inference: Inference) -> None:
    """
    The deployment is answered, the other models are there; what the refused ones would score gets the fallback.
    """
    bundles = Bundles(d1=model(inference), d2=Invalid("it was altered"), d3=model(inference, "other"))
    bundles.models = {digit * 64: found for digit, found in bundles.models.items()}
    deployed = Deployed("flights", inference, bundles)  # type: ignore[arg-type]  # models in memory
    deployed.take(batch(deployment(1, ONE, TWO, THREE)))
    assert inference.missing(rows(1)) == set()
    assert set(inference._models) == {ONE}


def test_without_a_verdict_nothing_is_answered_yet(inference: Inference) -> None:
    """
    An answer must not depend on how busy the machine is: rows wait, and whoever asks again has it tried again.
    """
    bundles = Bundles(**{f"d{ONE}": Recoverable("no verdict")})
    deployed = Deployed("flights", inference, bundles)  # type: ignore[arg-type]  # models in memory
    deployed.take(batch(deployment(1, ONE)))
    with pytest.raises(Recoverable):
        deployed.serve({1})
    assert deployed.heard_of({1}) and inference.missing(rows(1)) == {1}
    bundles.models[ONE] = model(inference)
    deployed.serve({1})
    assert inference.missing(rows(1)) == set()


SCORES = np.array([0.07, 0.18, 0.22, 0.52, 0.97], np.float32)


def test_predictions_are_counted_by_arm_and_flag():
    """
    One with two flags counts under each; one with none counts as none. Scores are counted by arm, in twentieths.
    """
    arms = Varlen.of(["champion", "canary"]).take(np.array([0, 1, 1, 0, 0]))
    flags = Varlen.of([pack_strings([]), pack_strings(["degraded", "no_score"])]).take(np.array([0, 0, 1, 0, 1]))
    said = Messages("predictions", "prediction", None, {"arm": arms, "flags": flags, "score": SCORES}, np.arange(5))
    count("counted", Effects(messages=[said]))

    def told(arm: str, flag: str) -> float:
        return metric("driftline_predictions_total").labels(pipeline="counted", arm=arm, flag=flag)._value.get()

    assert [told("champion", flag) for flag in ("none", "degraded", "no_score")] == [2, 1, 1]
    assert [told("canary", flag) for flag in ("none", "degraded", "no_score")] == [1, 1, 1]
    scores = distribution("driftline_prediction_score")
    assert [scores.labels(pipeline="counted", arm=arm).counts.nonzero()[0].tolist() for arm in ("champion", "canary")] == [
        [1, 10, 19],
        [3, 4],
    ]
