"""The rollout's decisions, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline import Rollout
from driftline.contracts.messages import Deployment, Operator, Release, Report
from services.rollout.core import QUEUE_MAX, WATCH_MS, Decision, Fact, decide
from services.rollout.guards import fault_of
from services.rollout.machine import MOVES, Event, IllegalMove, Stage, State, moved

DAY = 86_400_000
START = 15_706 * DAY


PAIRED = {
    "psi_vs_champion": 0.01,
    "paired_n": 1_500,
    "paired_mean_difference": 0.0,
    "paired_champion_mean": 0.2,
    "paired_alert_rate": 0.1,
    "paired_champion_alert_rate": 0.1,
}


def plan(*, approval: bool = False, approvals: int = 0, frozen: bool = True) -> Rollout:
    return Rollout(shadow="3d", shares=[0.25, 1.0], hold="1d", approval=approval, approvals=approvals, frozen_shadow=frozen)


class Play:
    """Feeds facts to the rollout and keeps what it answers."""

    def __init__(self, rules: Rollout | None = None) -> None:
        self.plan = rules or plan()
        self.state = State()
        self.answers: list[Deployment] = []
        self.day = 0

    def take(self, fact: Fact) -> Deployment:
        decision: Decision = decide(self.plan, self.state, fact)
        self.state = decision.state
        self.answers.append(decision.deployment)
        return decision.deployment

    def report(self, **body: Any) -> Deployment:
        self.day += 1
        return self.take(Report(start=self.now - DAY, end=self.now, retrains=(), body=body))

    def quiet_report(self) -> Deployment:
        """A report in which the candidate looks like the champion."""
        return self.report(models=self.models())

    def models(self, **changed: Any) -> dict[str, Any]:
        champion = self.state.champion.digest if self.state.champion else "none"
        models = {champion: seen("champion")}
        if self.state.candidate:
            models[self.state.candidate.digest] = seen("candidate", **PAIRED) | changed
        return models

    @property
    def now(self) -> int:
        return START + self.day * DAY

    def release(self, name: str, **changed: Any) -> Deployment:
        return self.take(release(name, self.now, **changed))

    def operator(self, action: str, model: str = "", reason: str = "", who: str = "ann") -> Deployment:
        return self.take(Operator(id="1", action=action, model=model, who=who, reason=reason))

    def with_champion(self) -> Play:
        self.report()
        self.release("m-1", first=True)
        return self


def seen(role: str, **changed: Any) -> dict[str, Any]:
    return {"role": role, "model": role, "n": 2_000, "mean": 0.2, "nan": 0, "alert_rate": 0.1} | changed


def release(name: str, time: int, **changed: Any) -> Release:
    plain = Release(
        model=name,
        digest=f"digest of {name}",
        verdict="accepted",
        reason="better",
        first=False,
        time=time,
        trigger="quality",
        command="c",
        who="trainer",
        evidence={"base_rate": 0.24},
    )
    return replace(plain, **changed)


def quality(cohort: int, digest: str, role: str, log_loss: float, n: int = 1_000) -> dict[str, Any]:
    return {"cohort": cohort, "digest": digest, "role": role, "model": role, "n": n, "positives": 200, "log_loss": log_loss}


def roles(deployment: Deployment) -> list[tuple[str, str, float]]:
    return [(arm.role, arm.model, round(arm.share, 3)) for arm in (*deployment.arms, *deployment.shadows)]


def test_without_a_model_every_record_is_answered_with_nothing():
    """
    Before the first release the deployment stays at version 0, without arms, with the fallback score one half.
    """
    play = Play()
    answer = play.report()
    assert (answer.version, answer.move, answer.state, answer.arms, answer.fallback_score) == (0, "nothing", "none", (), 0.5)


def test_the_first_accepted_model_is_champion_at_once():
    """
    There is nobody to compare it with; its base rate is the fallback score from then on.
    """
    play = Play()
    play.report()
    answer = play.release("m-1", first=True)
    assert (answer.version, answer.move, answer.state, answer.fallback_score) == (1, "champion", "idle", 0.24)
    assert roles(answer) == [("champion", "m-1", 1.0)]


def test_a_release_that_is_not_first_needs_a_champion():
    """
    A candidate cannot be tried against nobody.
    """
    assert Play().release("m-1").move == "nothing"


def test_a_model_that_the_gate_refused_moves_nothing():
    """
    The verdict is the trainer's; the rollout only says so.
    """
    answer = Play().with_champion().release("m-2", verdict="refused", reason="worse")
    assert answer.move == "nothing"
    assert "worse" in answer.reason


def test_a_candidate_goes_from_shadow_through_canary_to_champion_by_the_time_on_the_log():
    """
    Three days in shadow, a day with a quarter of the keys, then all: four days after its release.
    """
    play = Play().with_champion()
    moves = [play.release("m-2").move] + [play.quiet_report().move for _ in range(4)]
    assert moves == ["shadow", "nothing", "nothing", "canary", "champion"]
    assert roles(play.answers[-2]) == [
        ("champion", "m-1", 0.75),
        ("canary", "m-2", 0.25),
        ("candidate", "m-2", 0.0),
        ("frozen", "m-1", 0.0),
    ]
    assert roles(play.answers[-1]) == [("champion", "m-2", 1.0), ("frozen", "m-1", 0.0)]


def test_versions_rise_with_moves_alone():
    """
    Nothing keeps the version and everything that serves.
    """
    play = Play().with_champion()
    play.release("m-2")
    for _ in range(4):
        play.quiet_report()
    assert [answer.version for answer in play.answers] == [0, 1, 2, 2, 2, 3, 4]
    assert replace(play.answers[3], reason="", move="", time=0) == replace(play.answers[2], reason="", move="", time=0)


def test_shares_add_up_to_one():
    """
    Whatever the shares of the plan, the arms of a deployment do.
    """
    play = Play(Rollout(shadow="1d", shares=[0.01, 0.1, 0.5, 1.0], hold="1d")).with_champion()
    play.release("m-2")
    for _ in range(5):
        play.quiet_report()
    assert [round(sum(arm.share for arm in answer.arms), 9) for answer in play.answers[1:]] == [1.0] * 7


def test_each_rollout_has_a_salt_of_its_own():
    """
    So that not the same keys are the first to meet every new model.
    """
    play = Play().with_champion()
    first = play.release("m-2").salt
    play.operator("rollback")
    assert len({play.answers[1].salt, first, play.release("m-3").salt}) == 3


def test_a_candidate_that_scored_too_few_rows_waits():
    """
    Time alone proves nothing: it must have been seen at work.
    """
    play = Play().with_champion()
    play.release("m-2")
    answers = [play.report(models=play.models(n=10)) for _ in range(5)]
    assert {answer.move for answer in answers} == {"nothing"}
    assert "scored 50 of at least 200 rows" in answers[-1].reason


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"nan": 3}, "no score"),
        ({"psi_vs_champion": 1.01}, "PSI 1.01"),
        ({"paired_mean_difference": 0.21}, "2.05 times"),
        ({"paired_mean_difference": -0.11}, "0.45 times"),
        ({"paired_alert_rate": 0.31}, "alerts on 31.0%"),
        ({"paired_alert_rate": 0.009}, "alerts on 0.9%"),
        ({"paired_n": 0, "mean": 0.41}, "2.05 times"),
        ({"paired_n": 0, "alert_rate": 0.31}, "alerts on 31.0%"),
    ],
)
def test_a_guardrail_refuses_a_candidate_in_shadow_and_takes_it_back_in_canary(fault: dict[str, float], words: str):
    """
    No label is needed: what the candidate does on the champion's rows is enough.
    """
    for days, move in ((0, "refused"), (3, "rolled_back")):
        play = Play().with_champion()
        play.release("m-2")
        for _ in range(days):
            play.quiet_report()
        answer = play.report(models=play.models(**fault))
        assert (answer.move, answer.state) == (move, "idle")
        assert words in answer.reason
        assert roles(answer) == [("champion", "m-1", 1.0)]


def test_a_broken_guardrail_weighs_more_than_the_time_that_is_up():
    """
    The report that would have promoted the candidate takes it back.
    """
    play = Play().with_champion()
    play.release("m-2")
    for _ in range(2):
        play.quiet_report()
    assert play.report(models=play.models(psi_vs_champion=1.5)).move == "refused"


def test_few_rows_break_no_guardrail():
    """
    A distribution of fewer than 200 rows says nothing.
    """
    play = Play().with_champion()
    play.release("m-2")
    assert play.report(models=play.models(n=199, psi_vs_champion=3.0)).move == "nothing"


def matured(play: Play, cohort: int, mine: float, rival: float, n: int = 600) -> dict[str, Any]:
    champion, candidate = play.state.champion, play.state.candidate
    assert champion is not None
    assert candidate is not None
    quality_of = [quality(cohort, candidate.digest, "candidate", mine, n), quality(cohort, champion.digest, "champion", rival, n)]
    return {"models": play.models(), "quality": quality_of}


def test_matured_quality_refuses_a_candidate_in_shadow():
    """
    With too few days for an interval, worse by more than five hundredths in log loss on at least 500 rows that both scored.
    """
    play = Play().with_champion()
    play.release("m-2")
    began = play.now
    assert play.report(**matured(play, began, 0.56, 0.50, n=400)).move == "nothing"
    answer = play.report(**matured(play, began + DAY, 0.56, 0.50, n=400))
    assert answer.move == "refused"
    assert "800 matured rows" in answer.reason


def test_matured_cohorts_of_the_shadow_count_in_canary_too():
    """
    Labels come late: what the shadow did is known when the candidate serves already.
    """
    play = Play().with_champion()
    play.release("m-2")
    began = play.now
    for _ in range(3):
        play.quiet_report()
    assert play.report(**matured(play, began, 0.56, 0.50)).move == "rolled_back"


def test_cohorts_from_before_the_shadow_do_not_count():
    """
    Whoever answered then, the candidate was not meant.
    """
    play = Play().with_champion()
    play.release("m-2")
    assert play.report(**matured(play, play.now - DAY, 0.9, 0.50)).move == "nothing"


def promoted(play: Play) -> Play:
    play.release("m-2")
    for _ in range(4):
        play.quiet_report()
    return play


def watch(play: Play, cohort: int, mine: float, rival: float, n: int = 2_000) -> dict[str, Any]:
    return {
        "models": play.models(),
        "quality": [quality(cohort, "digest of m-2", "champion", mine, n), quality(cohort, "digest of m-1", "frozen", rival, n)],
    }


def test_a_new_champion_that_disappoints_gives_way_to_the_previous():
    """
    For a week the previous one scores along; on matured rows the new one must not be worse.
    """
    play = promoted(Play().with_champion())
    since = play.now
    play.report()
    moves = [play.report(**watch(play, since + day * DAY, 0.52 + day / 1000, 0.50)).move for day in range(3)]
    assert moves == ["nothing", "nothing", "rolled_back"]
    answer = play.answers[-1]
    assert answer.state == "idle"
    assert roles(answer) == [("champion", "m-1", 1.0)]


def test_bad_days_among_good_ones_are_no_proof_against_a_new_champion():
    """
    Worse on the mean day, but by chance: days scatter, and the 95 % bound says that it may be better.
    """
    play = promoted(Play().with_champion())
    since = play.now
    play.report()
    losses = [0.58, 0.47, 0.56, 0.48]
    assert {play.report(**watch(play, since + day * DAY, loss, 0.50, n=600)).move for day, loss in enumerate(losses)} == {"nothing"}


def test_a_new_champion_that_keeps_its_promise_stays():
    """
    Better, or worse within the margin, is no reason to go back; the watch ends after a week, and with it the extra shadow.
    """
    play = promoted(Play(plan(frozen=False)).with_champion())
    since = play.now
    assert roles(play.answers[-1]) == [("champion", "m-2", 1.0), ("previous", "m-1", 0.0)]
    moves = [play.report(**watch(play, since + day * DAY, 0.505, 0.50)).move for day in range(7)]
    assert moves == ["nothing"] * 6 + ["champion"]
    assert roles(play.answers[-1]) == [("champion", "m-2", 1.0)]
    assert WATCH_MS == 7 * DAY


def test_when_the_champion_gives_way_a_candidate_starts_its_shadow_again():
    """
    It was proved against the one that goes, not against the one that comes back.
    """
    play = promoted(Play().with_champion())
    since = play.now
    play.release("m-3")
    play.quiet_report()
    answer = play.report(**watch(play, since, 0.56, 0.50))
    assert (answer.move, answer.state) == ("rolled_back", "shadow")
    assert roles(answer)[:2] == [("champion", "m-1", 1.0), ("candidate", "m-3", 0.0)]
    assert [play.quiet_report().move for _ in range(3)] == ["nothing", "nothing", "canary"]


def test_the_first_champion_stays_as_a_frozen_shadow():
    """
    So that everybody can see what the loop has gained since.
    """
    play = promoted(Play().with_champion())
    play.release("m-3")
    for _ in range(20):
        play.quiet_report()
    assert roles(play.answers[-1]) == [("champion", "m-3", 1.0), ("frozen", "m-1", 0.0)]


def test_releases_wait_in_a_queue_of_limited_length():
    """
    One rollout at a time; beyond four that wait, a release is refused.
    """
    play = Play().with_champion()
    moves = [play.release(f"m-{number}").move for number in range(2, 2 + QUEUE_MAX + 2)]
    assert moves == ["shadow", *["queued"] * QUEUE_MAX, "refused"]
    play.operator("rollback")
    assert [arm.model for arm in play.quiet_report().shadows] == ["m-3"]


def test_a_model_that_is_here_already_is_not_offered_twice():
    """
    Champion, candidate or waiting: the same digest changes nothing.
    """
    play = Play().with_champion()
    play.release("m-2")
    play.release("m-3")
    assert [play.release(name).move for name in ("m-1", "m-2", "m-3")] == ["nothing"] * 3


def test_approval_is_waited_for_where_the_plan_asks_for_it():
    """
    No time passes for a candidate that nobody has approved, and none before the approval counts.
    """
    play = Play(plan(approval=True)).with_champion()
    assert play.release("m-2").move == "awaiting_approval"
    assert [play.quiet_report().move for _ in range(5)] == ["nothing"] * 5
    assert play.answers[-1].shadows == ()
    assert play.operator("promote").move == "nothing"
    assert play.operator("approve").move == "shadow"
    assert [play.quiet_report().move for _ in range(3)] == ["nothing", "nothing", "canary"]


def test_two_people_have_to_approve_where_the_plan_asks_for_two():
    """
    The same one twice is one; who approved a candidate has not approved the next, nor one that is to be tried against another champion.
    """
    play = Play(plan(approvals=2)).with_champion()
    play.release("m-2")
    first = play.operator("approve", who="ann", reason="looked")
    assert (first.move, first.state, first.shadows) == ("awaiting_approval", "awaiting_approval", ())
    assert "of others 1 more" in first.reason
    again = play.operator("approve", who="ann")
    assert (again.move, again.version) == ("nothing", first.version)
    assert play.quiet_report().move == "nothing"
    assert play.operator("approve", who="bob").move == "shadow"
    assert play.operator("rollback").move == "refused"
    play.release("m-3")
    assert play.operator("approve", who="bob").move == "awaiting_approval"
    assert play.operator("approve", who="ann").move == "shadow"


def test_an_operator_can_promote_step_by_step():
    """
    From shadow to the first share, from there to champion.
    """
    play = Play().with_champion()
    play.release("m-2")
    assert [play.operator("promote", reason="urgent").move for _ in range(3)] == ["canary", "champion", "nothing"]
    assert "ann: urgent" in play.answers[-2].reason


def test_an_operator_can_roll_back_to_the_previous_champion_once():
    """
    A second time there is nobody to go back to.
    """
    play = promoted(Play().with_champion())
    assert [play.operator("rollback").move for _ in range(2)] == ["rolled_back", "nothing"]
    assert roles(play.answers[-1]) == [("champion", "m-1", 1.0)]


def test_a_paused_rollout_takes_no_step_but_its_guardrails_stay_at_work():
    """
    Pausing holds what time would do; it does not switch off what protects.
    """
    play = Play().with_champion()
    play.release("m-2")
    assert play.operator("pause").state == "shadow, paused"
    assert [play.quiet_report().move for _ in range(5)] == ["nothing"] * 5
    assert play.operator("pause").move == "nothing"
    assert play.report(models=play.models(psi_vs_champion=2.0)).move == "refused"
    assert play.release("m-3").move == "queued"
    assert play.operator("resume").move == "resumed"
    assert play.quiet_report().move == "shadow"


def test_a_command_that_names_another_model_is_not_obeyed():
    """
    What an operator saw may have gone since.
    """
    play = Play().with_champion()
    play.release("m-2")
    assert play.operator("promote", model="m-1").move == "nothing"
    assert play.operator("promote", model="m-2").move == "canary"


def test_an_unknown_command_is_answered():
    """
    Every record of control is.
    """
    assert "no command" in Play().with_champion().operator("explode").reason


@pytest.mark.parametrize(("stage", "event"), [(stage, event) for stage in Stage for event in Event if (stage, event) not in MOVES])
def test_a_move_that_is_not_in_the_table_raises(stage: Stage, event: Event):
    """
    The table is the whole machine.
    """
    with pytest.raises(IllegalMove):
        moved(stage, event)


def test_every_stage_can_be_reached_and_left():
    """
    No stage is a trap, and none is only written down.
    """
    assert {to for to, _ in MOVES.values()} == set(Stage) - {Stage.NONE}
    assert {stage for stage, _ in MOVES} == set(Stage)


FACTS = st.lists(
    st.one_of(
        st.tuples(st.just("release"), st.integers(1, 6), st.booleans(), st.booleans()),
        st.tuples(st.just("report"), st.sampled_from([0.0, 0.1, 2.0]), st.integers(0, 3_000), st.booleans()),
        st.tuples(st.just("operator"), st.sampled_from(["approve", "promote", "rollback", "pause", "resume"]), st.just(0), st.booleans()),
    ),
    max_size=40,
)


@given(FACTS, st.booleans(), st.booleans())
def test_whatever_comes_the_deployment_is_sound(facts: list[tuple[str, Any, Any, bool]], approval: bool, frozen: bool):
    """
    Shares add up to one, no digest serves twice, versions rise with moves alone, and the state survives its encoding.
    """
    play = Play(plan(approval=approval, frozen=frozen))
    for kind, what, more, flag in facts:
        before = play.state
        if kind == "release":
            answer = play.release(f"m-{what}", first=flag, verdict="accepted" if more else "refused")
        elif kind == "operator":
            answer = play.operator(what)
        else:
            answer = play.report(models=play.models(psi_vs_champion=what, n=more))
        assert answer.version == before.version + (answer.move != "nothing")
        assert sum(arm.share for arm in answer.arms) == pytest.approx(1.0 if answer.arms else 0.0)
        assert len({arm.digest for arm in answer.arms}) == len(answer.arms)
        assert len({arm.digest for arm in answer.shadows}) == len(answer.shadows)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(play.state), type=State) == play.state


def test_a_candidate_that_brings_the_alerts_back_to_what_is_declared_is_no_fault():
    """
    The champion alerts on four rows of ten since the world moved; its successor on one of ten, as the pipeline declares.
    """
    body = {"alert_rate_declared": 0.1, "models": {"new": {"n": 900, **PAIRED, "paired_champion_alert_rate": 0.4}}}
    assert fault_of(body, "new", "old") is None
    assert "alerts on 0.5%" in str(
        fault_of({**body, "models": {"new": {**body["models"]["new"], "paired_alert_rate": 0.005}}}, "new", "old")
    )
