"""
Which model serves which share of keys, decided from the control log and from nothing else.

Time is the end of the last report. A decision is a function of the state and of one record, so a replay of the control log
makes the same deployments again. Every record is answered: with a move, or with nothing and the reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from msgspec.structs import replace

from driftline.contracts.messages import Arm, Deployment, Operator, Release, Report
from driftline.errors import Rejected
from driftline.pipeline import Rollout

from .guards import CANDIDATE_ROWS_MIN, LOG_LOSS_MARGIN, ROWS_MIN, WATCH_ROWS_MIN, Duel, duels, fault_of, rows_of
from .machine import Event, IllegalMove, Model, Stage, State, moved

NOTHING = "nothing"
QUEUE_MAX = 4
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WATCH_MS = 7 * DAY_MS
FALLBACK_SCORE = 0.5

Fact = Report | Release | Operator
ON_TRIAL = (Stage.SHADOW, Stage.CANARY)  # the candidate scores


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from one record of control: the state after it, and the answer that is published."""

    state: State
    deployment: Deployment


def decide(plan: Rollout, state: State, fact: Fact) -> Decision:
    """Apply one record of the control log. What may not be done is answered with nothing and the reason, and changes nothing."""
    try:
        if isinstance(fact, Report):
            return _on_report(plan, state, fact)
        if isinstance(fact, Release):
            return _on_release(plan, state, fact)
        return _on_operator(plan, state, fact)
    except Rejected as refusal:
        return unmoved(plan, state, str(refusal))


def unmoved(plan: Rollout, state: State, reason: str) -> Decision:
    """The answer that changes nothing: the version, and so what serves, stays."""
    return _answer(plan, state, NOTHING, reason)


# Releases


def _on_release(plan: Rollout, state: State, release: Release) -> Decision:
    state = replace(state, time=max(state.time, release.time))
    if release.verdict != "accepted":
        return unmoved(plan, state, f"{release.model} was refused by the gate: {release.reason}")
    model = Model(release.model, release.digest, _base_rate(release))
    if state.champion is None:
        return _first(plan, state, model, release)
    if place := _place_of(state, model.digest):
        return unmoved(plan, state, f"{model.name} is here already: {place}")
    if state.stage is not Stage.IDLE or state.queue or state.paused:
        return _queued(plan, state, model)
    return _offered(plan, state, model, release.reason)


def _base_rate(release: Release) -> float:
    rate = release.evidence.get("base_rate")
    return float(rate) if isinstance(rate, int | float) and 0 <= rate <= 1 else FALLBACK_SCORE


def _first(plan: Rollout, state: State, model: Model, release: Release) -> Decision:
    if not release.first:
        raise Rejected(f"{model.name} is no first model, and there is no champion to try it against")
    after = replace(state, champion=model, frozen=model, promoted=state.time, salt=_salt(state, model))
    return _move(plan, after, Event.FIRST, f"{model.name} is the first model: {release.reason}")


def _place_of(state: State, digest: str) -> str:
    if state.champion is not None and state.champion.digest == digest:
        return "it is the champion"
    if state.candidate is not None and state.candidate.digest == digest:
        return "it is the candidate"
    return "it waits in the queue" if any(model.digest == digest for model in state.queue) else ""


def _queued(plan: Rollout, state: State, model: Model) -> Decision:
    if len(state.queue) >= QUEUE_MAX:
        return _answer(plan, state, "refused", f"{model.name}: {QUEUE_MAX} models wait already")
    after = replace(state, queue=(*state.queue, model))
    ahead = (
        f"{state.candidate.name} is under way" if state.candidate else "the rollout is paused" if state.paused else "others wait before it"
    )
    return _answer(plan, after, "queued", f"{model.name} waits: {ahead}")


def _offered(plan: Rollout, state: State, model: Model, why: str) -> Decision:
    after = replace(_trial_from_now(state), candidate=model, salt=_salt(state, model))
    if plan.approvals:
        return _move(plan, after, Event.HOLD, f"{model.name} waits for an operator's approval: {why}")
    return _move(plan, after, Event.OFFER, f"{model.name} scores along for {_days(plan.shadow_ms)}: {why}")


def _trial_from_now(state: State) -> State:
    """Whatever was counted for a candidate starts again at this time."""
    return replace(state, since=state.time, rows=0, share=-1, shadow_from=state.time, shadow_to=0, matured=Duel(), approved_by=())


def _salt(state: State, model: Model) -> str:
    """Another one for each rollout, the same in each replay."""
    return hashlib.blake2b(f"{model.digest}:{state.version + 1}".encode(), digest_size=8).hexdigest()


# Reports


def _on_report(plan: Rollout, state: State, report: Report) -> Decision:
    state = _counted(_watched(plan, replace(state, time=max(state.time, report.end)), report), report)
    if state.watching and (excess := state.watch.lost_by(WATCH_ROWS_MIN)) is not None:
        return _reverted(plan, state, f"{excess:.4f} worse in log loss on {state.watch.rows} matured rows, limit {LOG_LOSS_MARGIN}")
    if state.stage in ON_TRIAL and (fault := _fault(state, report)):
        return _dropped(plan, state, Event.BREACH, fault)
    return _moved_by_time(plan, state)


def _watched(plan: Rollout, state: State, report: Report) -> State:
    """Count in the matured cohorts of a new champion that the previous one scored too."""
    if not state.watching or state.champion is None or state.previous is None:
        return state
    mine, rival = (state.champion.digest, "champion"), (state.previous.digest, _role_along(plan, state, state.previous))
    watch = state.watch
    for cohort, quality, other in duels(report.body, mine, rival):
        if cohort >= state.promoted:
            watch = watch.plus(quality, other)
    return replace(state, watch=watch)


def _counted(state: State, report: Report) -> State:
    """Count in what the report says of the candidate; its quality, of the cohorts that it scored in shadow alone."""
    if state.stage not in ON_TRIAL or state.candidate is None or state.champion is None:
        return state
    matured = state.matured
    for cohort, mine, rival in duels(report.body, (state.candidate.digest, "candidate"), (state.champion.digest, "champion")):
        if state.shadow_from <= cohort and (not state.shadow_to or cohort < state.shadow_to):
            matured = matured.plus(mine, rival)
    return replace(state, rows=state.rows + rows_of(report.body, state.candidate.digest), matured=matured)


def _fault(state: State, report: Report) -> str | None:
    """What speaks against the candidate, in words."""
    if state.candidate is None or state.champion is None:
        return None
    if fault := fault_of(report.body, state.candidate.digest, state.champion.digest):
        return fault
    excess = state.matured.lost_by(CANDIDATE_ROWS_MIN)
    if excess is None:
        return None
    return f"its log loss on {state.matured.rows} matured rows is {excess:.4f} above the champion's, limit {LOG_LOSS_MARGIN}"


def _moved_by_time(plan: Rollout, state: State) -> Decision:
    """What the clock asks for: the next share, the end of a watch, the next in the queue, or nothing."""
    over = state.watching and state.time - state.promoted >= WATCH_MS
    if over:
        state = replace(state, watching=False, watch=Duel())
    if _due(plan, state):
        return _advanced(plan, state, "")
    if over and state.champion is not None:
        return _move(plan, state, Event.SETTLE, f"{state.champion.name} stays champion after {_days(WATCH_MS)} of watch")
    if state.stage is Stage.IDLE and state.queue and not state.paused:
        return _offered(plan, replace(state, queue=state.queue[1:]), state.queue[0], "it waited in the queue")
    return unmoved(plan, state, _standing(plan, state))


def _due(plan: Rollout, state: State) -> bool:
    """The time of the stage is up, and the candidate was seen at work in it."""
    if state.stage not in ON_TRIAL or state.paused:
        return False
    return state.time - state.since >= _stage_ms(plan, state) and state.rows >= ROWS_MIN


def _stage_ms(plan: Rollout, state: State) -> int:
    return plan.shadow_ms if state.stage is Stage.SHADOW else plan.hold_ms


def _standing(plan: Rollout, state: State) -> str:
    paused = ", paused" if state.paused else ""
    if state.champion is None:
        return "there is no model yet"
    if state.candidate is None:
        return f"{state.champion.name} is champion{paused}"
    if state.stage is Stage.AWAITING_APPROVAL:
        given = f", approved by {', '.join(state.approved_by)}" if state.approved_by else ""
        whose = "an operator's approval" if plan.approvals == 1 else f"the approval of {plan.approvals} operators"
        return f"{state.candidate.name} waits for {whose}{given}{paused}"
    few = f", scored {state.rows} of at least {ROWS_MIN} rows" if state.rows < ROWS_MIN else ""
    passed = f"{_days(state.time - state.since)} of {_days(_stage_ms(plan, state))}"
    return f"{state.candidate.name} in {state.stage.value} for {passed}{few}{paused}"


# Operators


def _on_operator(plan: Rollout, state: State, command: Operator) -> Decision:
    why = f"{command.who}: {command.reason}" if command.reason else command.who
    _refuse_another_model(state, command)
    if command.action == "approve":
        return _approved(plan, state, command.who, why)
    if command.action == "promote":
        return _advanced(plan, state, why)
    if command.action == "rollback":
        return _dropped(plan, state, Event.WITHDRAW, why) if state.candidate else _reverted(plan, state, why)
    if command.action in ("pause", "resume"):
        return _paused(plan, state, command.action == "pause", why)
    raise Rejected(f"{command.action} is no command; there are approve, promote, rollback, pause and resume")


def _refuse_another_model(state: State, command: Operator) -> None:
    """A command that names a model is for that one alone: what it names may have come or gone since it was sent."""
    meant = state.candidate or state.champion
    if command.model and (meant is None or command.model not in (meant.name, meant.digest)):
        raise Rejected(f"{command.action} {command.model}: the model at hand is {meant.name if meant else 'none'}")


def _approved(plan: Rollout, state: State, who: str, why: str) -> Decision:
    """Into shadow, once as many different people have approved as the plan asks for. Raises Rejected for one who has already."""
    moved(state.stage, Event.APPROVE)
    name = state.candidate.name if state.candidate else ""
    if who in state.approved_by:
        raise Rejected(f"{who} has approved {name} already; somebody else has to")
    approved_by = (*state.approved_by, who)
    if (missing := plan.approvals - len(approved_by)) > 0:
        after = replace(state, approved_by=approved_by)
        return _move(plan, after, Event.ENDORSE, f"{name} is approved by {why}; of others {missing} more must approve")
    return _move(plan, _trial_from_now(state), Event.APPROVE, f"{name} scores along for {_days(plan.shadow_ms)}: approved by {why}")


def _paused(plan: Rollout, state: State, pause: bool, why: str) -> Decision:
    if state.paused == pause:
        raise Rejected(f"the rollout is {'paused already' if pause else 'not paused'}")
    return _move(plan, replace(state, paused=pause), Event.PAUSE if pause else Event.RESUME, why)


# Steps


def _advanced(plan: Rollout, state: State, why: str) -> Decision:
    """The candidate's next share; the last one makes it champion. Raises IllegalMove when no candidate is on trial."""
    step = state.share + 1
    last = step >= len(plan.shares) or plan.shares[step] >= 1
    moved(state.stage, Event.CROWN if last else Event.ADVANCE)
    if state.candidate is None:
        raise IllegalMove("there is no candidate")
    reason = why or f"{_days(state.time - state.since)} {_where(plan, state)} without a broken guardrail"
    if last:
        return _crowned(plan, state, state.candidate, reason)
    after = replace(state, since=state.time, rows=0, share=step, shadow_to=state.shadow_to or state.time)
    return _move(plan, after, Event.ADVANCE, f"{state.candidate.name} serves {plan.shares[step]:.0%} of the keys: {reason}")


def _where(plan: Rollout, state: State) -> str:
    return "in shadow" if state.stage is Stage.SHADOW else f"at {plan.shares[state.share]:.0%}"


def _crowned(plan: Rollout, state: State, candidate: Model, reason: str) -> Decision:
    after = replace(
        _trial_from_now(state),
        candidate=None,
        champion=candidate,
        previous=state.champion,
        watching=True,
        promoted=state.time,
        watch=Duel(),
    )
    return _move(plan, after, Event.CROWN, f"{candidate.name} is champion: {reason}")


def _dropped(plan: Rollout, state: State, event: Event, reason: str) -> Decision:
    """The candidate goes; who served stays."""
    name = state.candidate.name if state.candidate else ""
    return _move(plan, replace(_trial_from_now(state), candidate=None), event, f"{name}: {reason}")


def _reverted(plan: Rollout, state: State, reason: str) -> Decision:
    """The previous champion serves again. A candidate was proved against the one that goes, so it starts its trial anew."""
    if state.champion is None or state.previous is None:
        raise Rejected("there is no previous champion to go back to")
    after = replace(_trial_from_now(state), champion=state.previous, previous=None, watching=False, promoted=state.time, watch=Duel())
    return _move(plan, after, Event.REVERT, f"{state.champion.name} gives way to {state.previous.name}: {reason}")


# Answers


def _move(plan: Rollout, state: State, event: Event, reason: str) -> Decision:
    """Take `state`, otherwise complete, through the table. Raises IllegalMove."""
    stage, move = moved(state.stage, event)
    return _answer(plan, replace(state, stage=stage), move, reason)


def _answer(plan: Rollout, state: State, move: str, reason: str) -> Decision:
    if move != NOTHING:
        state = replace(state, version=state.version + 1)
    deployment = Deployment(
        version=state.version,
        move=move,
        state=state.stage.value + (", paused" if state.paused else ""),
        reason=reason,
        time=state.time,
        arms=_arms(plan, state),
        shadows=_shadows(plan, state),
        salt=state.salt,
        fallback_score=state.champion.base_rate if state.champion else FALLBACK_SCORE,
    )
    return Decision(state, deployment)


def _arms(plan: Rollout, state: State) -> tuple[Arm, ...]:
    """Who serves: the champion, and in canary the candidate."""
    if state.champion is None:
        return ()
    if state.stage is not Stage.CANARY or state.candidate is None:
        return (_arm("champion", state.champion, 1.0),)
    share = plan.shares[state.share]
    return _arm("champion", state.champion, 1.0 - share), _arm("canary", state.candidate, share)


def _shadows(plan: Rollout, state: State) -> tuple[Arm, ...]:
    """
    Who scores along. The candidate does so in canary too, because guardrails compare it with the champion on the same rows.
    """
    along = {
        "candidate": state.candidate if state.stage in ON_TRIAL else None,
        "frozen": state.frozen if plan.frozen_shadow else None,
        "previous": state.previous if state.watching else None,
    }
    # A champion that is the frozen model scores along in canary, for the keys that it does not serve then.
    taken = {state.champion.digest} if state.champion and state.stage is not Stage.CANARY else set()
    shadows = []
    for role, model in along.items():
        if model is not None and model.digest not in taken:
            taken.add(model.digest)
            shadows.append(_arm(role, model, 0.0))
    return tuple(shadows)


def _role_along(plan: Rollout, state: State, model: Model) -> str:
    """The role in which the previous champion scores along: one that is the frozen model too stays that."""
    return "frozen" if plan.frozen_shadow and state.frozen is not None and state.frozen.digest == model.digest else "previous"


def _arm(role: str, model: Model, share: float) -> Arm:
    return Arm(role=role, model=model.name, digest=model.digest, share=share)


def _days(ms: int) -> str:
    return f"{ms / DAY_MS:g} d" if ms >= DAY_MS else f"{ms / HOUR_MS:g} h"
