"""The drills: when they happen, what a kill measures, and a model that is bad in nothing but its answers."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from driftline.clock import SystemClock
from driftline.errors import Fatal
from driftline.local.drills import DAYS_MIN, KILLED, Ends, Forge, Victim, inverted, kill, make_plan
from driftline.models.bundle import BundleStore, Manifest, generate_keys, load_private_key, load_public_key
from driftline.models.onnx import Session, check_graph
from driftline.models.reference import make_reference


def graph() -> bytes:
    """A logistic of the first of two features."""
    weights = numpy_helper.from_array(np.array([[1.0], [0.0]], np.float32), "weights")
    nodes = [helper.make_node("MatMul", ["rows", "weights"], ["sums"]), helper.make_node("Sigmoid", ["sums"], ["score"])]
    rows, score = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]) for name, width in (("rows", 2), ("score", 1)))
    made = helper.make_model(helper.make_graph(nodes, "logistic", [rows], [score], [weights]), opset_imports=[helper.make_opsetid("", 15)])
    made.ir_version = 8
    return made.SerializeToString()


def matrix() -> np.ndarray:
    return np.array([[0.0, 9.0], [2.0, 0.0], [-3.0, 1.0]], np.float32)


def manifest() -> Manifest:
    names = ("wind", "hour")
    scores = np.array([0.5, 0.9, 0.1], np.float32)
    return Manifest(
        model="flights-4",
        layout="abc",
        names=names,
        recipe={},
        seed=7,
        onnx_sha256=hashlib.sha256(graph()).hexdigest(),
        threshold=0.5,
        medians=dict.fromkeys(names, 0.0),
        reference=make_reference(names, matrix(), scores),
        dispersion=1.0,
        base_rate=0.3,
        dataset={},
        metrics={},
        trained_at=0,
        trigger="first",
        versions={},
    )


def test_every_drill_has_a_day_of_its_own_within_the_play():
    """
    Three kills and the bad model, none on the day of another.
    """
    for days in (DAYS_MIN, 70, 212, 365):
        plan = make_plan(days, kills=True)
        assert sorted(plan.kills.values()) == sorted(KILLED)
        assert plan.bad_model is not None
        assert len({*plan.kills, plan.bad_model}) == 4
        assert max(*plan.kills, plan.bad_model) < days


def test_a_short_play_has_no_drills():
    """
    There would be no champion to copy.
    """
    plan = make_plan(DAYS_MIN - 1, kills=True)
    assert (plan.kills, plan.bad_model) == ({}, None)


def test_a_play_without_kills_is_offered_the_same_bad_model_on_the_same_day():
    """
    So that its topics can be compared with those of a play with kills.
    """
    plan = make_plan(212, kills=False)
    assert (plan.kills, plan.bad_model) == ({}, make_plan(212, kills=True).bad_model)


def test_the_inverted_graph_is_allowed_and_gives_one_minus_every_score():
    """
    Nothing but what it answers gives it away.
    """
    assert check_graph(inverted(graph())) == 2
    right, wrong = Session(graph()).score(matrix()), Session(inverted(graph())).score(matrix())
    assert wrong == pytest.approx(1 - right, abs=1e-6)


def test_a_graph_whose_output_is_no_float_is_not_inverted():
    """
    It would be no model of ours.
    """
    other = onnx.load_from_string(graph())
    other.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(Fatal, match="no float"):
        inverted(other.SerializeToString())


def test_the_bad_model_passes_every_check_of_the_store(tmp_path: Path):
    """
    It is signed with the demo's own key, under another name and digest.
    """
    private, public = generate_keys(tmp_path / "keys")
    store = BundleStore(tmp_path / "models", trusts=load_public_key(public))
    digest = store.put(manifest(), graph(), load_private_key(private))
    name, bad = Forge(tmp_path / "models", private, public).invert("flights", digest)
    assert name == "flights-bad" and bad != digest
    assert store.model(bad).score(matrix()) == pytest.approx(1 - store.model(digest).score(matrix()), abs=1e-6)


class Log:
    """Stands in for the ends of a topic: longer by one each time that it is asked while something writes."""

    def __init__(self) -> None:
        self.length = 0
        self.written_to = True

    async def total(self) -> int:
        self.length += self.written_to
        return self.length


async def test_a_kill_is_measured_from_the_kill_to_the_next_output():
    """
    While the victim is dead nothing comes; the log grows again once it was started.
    """
    log, told = Log(), []

    def killed() -> None:
        log.written_to = False
        told.append("killed")

    def started() -> None:
        log.written_to = True
        told.append("started")

    ends: Ends = log  # type: ignore[assignment]  # has all that is asked of it
    done = await asyncio.wait_for(
        kill(3, "feature", Victim(42, killed, started), topic="flights-features", ends=ends, clock=SystemClock()), 10
    )
    assert told == ["killed", "started"]
    assert (done.day, done.name, done.pid, done.topic) == (3, "feature", 42, "flights-features")
    assert done.silence_s is not None and done.silence_s > 0


async def test_a_kill_without_any_further_output_has_no_time(monkeypatch: pytest.MonkeyPatch):
    """
    It is reported as silence, not as zero.
    """
    monkeypatch.setattr("driftline.local.drills.OUTPUT_TIMEOUT_S", 0.05)
    log = Log()
    ends: Ends = log  # type: ignore[assignment]  # has all that is asked of it
    victim = Victim(42, lambda: setattr(log, "written_to", False), lambda: None)
    done = await asyncio.wait_for(kill(3, "feature", victim, topic="flights-features", ends=ends, clock=SystemClock()), 10)
    assert done.silence_s is None
