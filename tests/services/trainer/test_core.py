"""The trainer: which commands it takes, what it makes of them, and what the gate is shown."""

from __future__ import annotations

import dataclasses
import json

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driftline.contracts.messages import Arm, Deployment, Trained
from driftline.declaration import Gate, Logistic, Retrain
from driftline.errors import Invalid
from driftline.models.bundle import BundleStore, Model
from services.trainer import core
from services.trainer.core import Held, Order, State
from services.trainer.dataset import History

DAY_MS = 86_400_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def ended(time, outcome="accepted", id="one"):
    return Trained(id, "quality", outcome, "", time, 0, "", "")


def deployment(version, time, digest="", role="champion"):
    arms = (Arm(role, f"flights-{version}", digest, 1.0),) if digest else ()
    return Deployment(version, "champion", "idle", "", time, arms, (), "", 0.5)


def dataset_of(pipeline, world, until):
    history = History(pipeline.layout)
    world.fill(history)
    return history.dataset(until)


def candidate_of(pipeline, world, day, *, first, model="flights-1"):
    """A candidate as trained by a command at the start of `day`."""
    until = world.start + day * DAY_MS
    order = Order(model, pipeline.model, until, "first" if first else "quality", first)
    return core.train_model(dataset_of(pipeline, world, until), pipeline, order, until)


@pytest.fixture(scope="module")
def candidates(pipeline):
    """Candidates of the plain world, each trained once."""
    known = {}

    def get(world, day, *, first):
        if (day, first) not in known:
            known[day, first] = candidate_of(pipeline, world, day, first=first)
        return known[day, first]

    return get


def as_model(candidate, tmp_path):
    store = BundleStore(tmp_path / "models", KEY.public_key())
    return Model(store.get(store.put(candidate.manifest, candidate.onnx, KEY)))


# ---- commands


def test_a_first_command_may_train(pipeline, command):
    """
    Nothing was tried yet, so nothing holds it back.
    """
    assert core.decide(command(14), 0, State(), pipeline) is None


def test_a_command_that_was_answered_under_another_offset_is_a_duplicate(pipeline, command):
    """
    The same id again; the answered copy itself is not one.
    """
    state = State().with_trained([3], [ended(0, id="flights-quality-1")])
    assert core.decide(command(50), 7, state, pipeline) == Held("duplicate", "the command flights-quality-1 has been answered already")
    assert core.decide(command(50), 3, state, pipeline) is None


@pytest.mark.parametrize("outcome", ["accepted", "refused", "failed"])
def test_after_every_attempt_comes_a_cooldown(pipeline, command, outcome):
    """
    Seven days on the pipeline's clock, whatever came of it; the reason says how many are left.
    """
    state = State().with_trained([0], [ended(command(20).time, outcome)])
    assert core.decide(command(24), 1, state, pipeline) == Held("cooldown", "3 days left of the 7-day cooldown")
    assert core.decide(command(27), 1, state, pipeline) is None


def test_a_command_that_was_held_back_starts_no_cooldown(pipeline, command):
    """
    Nothing was trained.
    """
    state = State().with_trained([0, 1], [ended(command(20).time, "cooldown"), ended(command(20).time, "duplicate")])
    assert core.decide(command(21), 2, state, pipeline) is None


def test_more_commands_than_the_budget_allows_are_held_back(pipeline, command):
    """
    Counted over 28 days; older attempts are forgotten.
    """
    thrifty = dataclasses.replace(pipeline, retrain=Retrain(budget=2, cooldown="1d"))
    state = State().with_trained([0, 1], [ended(command(day).time) for day in (10, 20)])
    held = core.decide(command(30), 2, state, thrifty)
    assert held == Held("budget", "2 commands were trained in 28 days, 2 is the budget")
    assert core.decide(command(38), 2, state, thrifty) is None


def test_the_champion_is_who_was_deployed_before_the_command(pipeline):
    """
    The report that raised a command moves the rollout at the same time: which was quicker must not show.
    """
    state = State().with_deployments([deployment(1, 100, "a"), deployment(2, 200, "b"), deployment(2, 150, "b")])
    assert state.champion(100) is None
    assert state.champion(101).digest == "a"
    assert state.champion(201).digest == "b"


def test_a_deployment_without_a_champion_names_none(pipeline):
    """
    Before the first release rollout answers, but nobody serves.
    """
    assert State().with_deployments([deployment(0, 5)]).champion(10) is None


def test_models_are_numbered_by_the_releases_before_the_command():
    """
    A command that is answered again after a crash gets the number it had; copies of a release count once.
    """
    state = State().with_releases([2, 5, 5, 9])
    assert [state.number(offset) for offset in (2, 5, 7, 20)] == [1, 2, 3, 4]


def test_looks_are_counted_since_the_last_acceptance():
    """
    Failed attempts showed the gate nothing.
    """
    outcomes = ["refused", "accepted", "refused", "failed", "refused"]
    assert State().with_trained(range(5), [ended(0, outcome) for outcome in outcomes]).looks == 2
    assert State().looks == 0


# ---- cuts


def test_an_embargo_of_one_horizon_lies_between_training_and_holdout(pipeline, world):
    """
    No training row's outcome came after the first question of the holdout.
    """
    until = world.start + 13 * DAY_MS
    dataset = dataset_of(pipeline, world, until)
    cut = core.split(dataset, pipeline, until)
    assert cut.train.asked.max() + world.horizon_ms <= cut.unseen.asked.min()
    assert cut.unseen.asked.max() + world.horizon_ms <= until
    assert len(cut.train) + len(cut.unseen) < len(dataset)


def test_the_holdout_is_made_of_whole_days_counted_back(pipeline, world):
    """
    Each block spans 24 hours, and there are as many as the gate asks for.
    """
    until = world.start + 13 * DAY_MS
    cut = core.split(dataset_of(pipeline, world, until), pipeline, until)
    end = until - world.horizon_ms
    assert sorted(set(cut.blocks.tolist())) == [0, 1, 2]
    assert np.array_equal(cut.blocks, 2 - (end - cut.unseen.asked) // DAY_MS)


def test_a_forward_chained_day_is_predicted_from_matured_days_alone(pipeline, world):
    """
    What was asked within a horizon before it has no label yet when it begins.
    """
    until = world.start + 14 * DAY_MS
    folds = list(core.forward_days(dataset_of(pipeline, world, until), world.horizon_ms, until))
    assert len(folds) == 7
    for past, ahead, _ in folds:
        assert past.asked.max() + world.horizon_ms <= ahead.asked.min()
        assert ahead.asked.max() - ahead.asked.min() <= DAY_MS


# ---- training


def test_the_first_model_trains_on_all_matured_rows_and_beats_the_base_rate(pipeline, world, candidates):
    """
    And says in its manifest what it was made of.
    """
    candidate = candidates(world, 14, first=True)
    verdict = core.judge(candidate, pipeline, None, refresh=False)
    manifest = candidate.manifest
    matured = world.asked + world.horizon_ms <= world.start + 14 * DAY_MS
    assert verdict.accepted, verdict.reason
    assert manifest.dataset["rows"] == matured.sum()
    assert manifest.dataset["positives"] == world.label[matured].sum()
    assert manifest.base_rate == pytest.approx(world.label[matured].mean(), abs=1e-9)
    assert (manifest.layout, manifest.names) == (pipeline.layout.version, pipeline.layout.names)
    assert manifest.dispersion >= 1
    assert np.float32(manifest.threshold) == manifest.threshold


@pytest.mark.parametrize("first", [True, False])
def test_training_again_gives_the_same_bundle(pipeline, world, worlds, candidates, first):
    """
    The same log, read anew: the same digest. Other rows: another.
    """
    one = candidates(world, 14, first=first)
    assert candidate_of(pipeline, world, 14, first=first).digest == one.digest
    assert candidate_of(pipeline, worlds(seed=6), 14, first=first).digest != one.digest


def test_a_first_model_of_noise_is_refused(pipeline, world):
    """
    Where there is nothing to learn the base rate is not beaten.
    """
    world.label = (np.arange(len(world.label)) % 4 == 0).astype(np.int64)
    verdict = core.judge(candidate_of(pipeline, world, 14, first=True), pipeline, None, refresh=False)
    assert not verdict.accepted


def test_too_short_a_history_is_no_history(pipeline, world):
    """
    In words, so that the command can end as failed with a reason.
    """
    with pytest.raises(Invalid, match="2 are needed"):
        candidate_of(pipeline, world, 4, first=True)
    with pytest.raises(Invalid, match="not enough"):
        candidate_of(pipeline, world, 4, first=False)


def test_a_challenger_that_has_seen_the_world_turn_beats_a_champion_that_has_not(pipeline, worlds, tmp_path):
    """
    From day 10 on the labels follow the contrary; the champion was trained before, the challenger mostly after.
    """
    world = worlds(days=40, turn=10)
    champion = as_model(candidate_of(pipeline, world, 10, first=True), tmp_path)
    challenger = candidate_of(pipeline, world, 40, first=False, model="flights-2")
    verdict = core.judge(challenger, pipeline, champion, refresh=False)
    assert verdict.accepted, verdict.reason
    assert verdict.metrics["champion"]["auc"] < 0.5 < verdict.metrics["challenger"]["auc"]


def test_a_challenger_that_is_the_champion_again_is_refused(pipeline, world, candidates, tmp_path):
    """
    The same bytes are not better, in a retraining for quality as in a scheduled one.
    """
    same = candidates(world, 14, first=False)
    champion = as_model(same, tmp_path)
    for refresh in (False, True):
        assert not core.judge(same, pipeline, champion, refresh=refresh).accepted


def test_a_champion_of_other_features_cannot_be_compared(pipeline, world, candidates, tmp_path):
    """
    A changed definition needs its own way to a first model; it is not judged by columns that mean something else.
    """
    candidate = candidates(world, 14, first=False)
    champion = as_model(candidate, tmp_path)
    champion.manifest = msgspec.structs.replace(candidate.manifest, layout="another")
    with pytest.raises(Invalid, match="another"):
        core.judge(candidate, pipeline, champion, refresh=False)


def test_a_pipeline_can_ask_for_the_baseline_recipe(pipeline, world):
    """
    Logistic regression takes the same way to a bundle.
    """
    plain = dataclasses.replace(pipeline, model=Logistic())
    candidate = candidate_of(plain, world, 14, first=True)
    assert candidate.manifest.recipe["kind"] == "logistic"
    assert candidate.proof.invariant
    assert core.judge(candidate, plain, None, refresh=False).accepted


def test_the_threshold_lets_the_declared_share_alert():
    """
    Of the out-of-time scores, and it is a score that occurred.
    """
    scores = np.arange(100, dtype=np.float32) / 100
    threshold = core.alert_threshold(scores, 0.1)
    assert np.count_nonzero(scores >= np.float32(threshold)) == 10
    assert core.alert_threshold(np.array([0.5, np.nan], np.float32), 0.1) == 0.5
    with pytest.raises(Invalid):
        core.alert_threshold(np.array([np.nan], np.float32), 0.1)


# ---- releases


def test_a_release_carries_all_that_the_verdict_rests_on(pipeline, world, candidates, command, tmp_path):
    """
    As JSON, with the base rate where rollout looks for it.
    """
    candidate = candidates(world, 14, first=False)
    champion = as_model(candidates(world, 14, first=True), tmp_path)
    verdict = core.judge(candidate, pipeline, champion, refresh=False)
    told = core.evidence(candidate, verdict, champion, looks=1, without_row=2)
    release = core.release(command(14), candidate, verdict, told)
    sent = json.loads(release.to_record()["evidence"])
    assert sent["base_rate"] == candidate.manifest.base_rate
    assert sent["champion"] == {"model": "flights-1", "digest": champion.digest}
    assert {check["name"] for check in sent["checks"]} >= {"rows", "positives", "bound", "auc", "calibration", "parity", "slices", "cost"}
    assert set(sent["metrics"]) == {"champion", "challenger", "logistic"}
    assert sent["dataset"]["digest"] == candidate.manifest.dataset["digest"]
    assert (release.first, release.digest, release.command) == (False, candidate.digest, "flights-quality-1")
    assert release.verdict == ("accepted" if verdict.accepted else "refused")


def test_a_release_without_a_champion_is_the_first(pipeline, world, candidates, command):
    """
    Rollout lets it go live at once.
    """
    candidate = candidates(world, 14, first=True)
    verdict = core.judge(candidate, pipeline, None, refresh=False)
    release = core.release(command(14), candidate, verdict, core.evidence(candidate, verdict, None, looks=1, without_row=0))
    assert (release.first, release.verdict) == (True, "accepted")
    assert core.trained(command(14), "accepted", "", 9, release).digest == candidate.digest


def test_a_strict_gate_refuses_with_its_reason(pipeline, world, candidates, command):
    """
    Too few rows: the release is published all the same, as refused.
    """
    strict = dataclasses.replace(pipeline, gate=Gate(rows_min=1_000_000))
    candidate = candidates(world, 14, first=True)
    verdict = core.judge(candidate, strict, None, refresh=False)
    release = core.release(command(14), candidate, verdict, core.evidence(candidate, verdict, None, looks=1, without_row=0))
    assert release.verdict == "refused"
    assert "at least 1000000 are needed" in release.reason
