"""
The rollout's state machine: `MOVES` is the whole of it, `State` all that it remembers.

A stage and an event that are not in the table make an illegal move, which raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from driftline.errors import Rejected

from .guards import Duel


class Stage(StrEnum):
    """Where a rollout stands."""

    NONE = "none"
    IDLE = "idle"
    AWAITING_APPROVAL = "awaiting_approval"
    SHADOW = "shadow"
    CANARY = "canary"


class Event(StrEnum):
    """What may happen to it."""

    FIRST = "first model"
    OFFER = "candidate"
    HOLD = "candidate that needs approval"
    ENDORSE = "approve, and others have to as well"
    APPROVE = "approve"
    ADVANCE = "next share"
    CROWN = "last share"
    BREACH = "broken guardrail"
    WITHDRAW = "withdrawal"
    REVERT = "return to the previous champion"
    SETTLE = "end of the watch"
    PAUSE = "pause"
    RESUME = "resume"


STANDING = (Stage.IDLE, Stage.AWAITING_APPROVAL, Stage.SHADOW, Stage.CANARY)  # there is a champion

MOVES: Mapping[tuple[Stage, Event], tuple[Stage, str]] = MappingProxyType(
    {
        (Stage.NONE, Event.FIRST): (Stage.IDLE, "champion"),
        (Stage.IDLE, Event.OFFER): (Stage.SHADOW, "shadow"),
        (Stage.IDLE, Event.HOLD): (Stage.AWAITING_APPROVAL, "awaiting_approval"),
        (Stage.AWAITING_APPROVAL, Event.ENDORSE): (Stage.AWAITING_APPROVAL, "awaiting_approval"),
        (Stage.AWAITING_APPROVAL, Event.APPROVE): (Stage.SHADOW, "shadow"),
        (Stage.AWAITING_APPROVAL, Event.WITHDRAW): (Stage.IDLE, "refused"),
        (Stage.SHADOW, Event.ADVANCE): (Stage.CANARY, "canary"),
        (Stage.SHADOW, Event.CROWN): (Stage.IDLE, "champion"),
        (Stage.SHADOW, Event.BREACH): (Stage.IDLE, "refused"),
        (Stage.SHADOW, Event.WITHDRAW): (Stage.IDLE, "refused"),
        (Stage.CANARY, Event.ADVANCE): (Stage.CANARY, "canary"),
        (Stage.CANARY, Event.CROWN): (Stage.IDLE, "champion"),
        (Stage.CANARY, Event.BREACH): (Stage.IDLE, "rolled_back"),
        (Stage.CANARY, Event.WITHDRAW): (Stage.IDLE, "rolled_back"),
        # A candidate was proved against the champion that goes; it starts its shadow again beside the one that comes back.
        (Stage.IDLE, Event.REVERT): (Stage.IDLE, "rolled_back"),
        (Stage.AWAITING_APPROVAL, Event.REVERT): (Stage.AWAITING_APPROVAL, "rolled_back"),
        (Stage.SHADOW, Event.REVERT): (Stage.SHADOW, "rolled_back"),
        (Stage.CANARY, Event.REVERT): (Stage.SHADOW, "rolled_back"),
        **{(stage, Event.SETTLE): (stage, "champion") for stage in STANDING},
        **{(stage, Event.PAUSE): (stage, "paused") for stage in STANDING},
        **{(stage, Event.RESUME): (stage, "resumed") for stage in STANDING},
    }
)


class IllegalMove(Rejected):
    """The stage knows no such event."""


def moved(stage: Stage, event: Event) -> tuple[Stage, str]:
    """The next stage and the name of the move. Raises IllegalMove."""
    try:
        return MOVES[stage, event]
    except KeyError as error:
        raise IllegalMove(f"{event.value}: not possible in the state {stage.value}") from error


class Model(msgspec.Struct, frozen=True):
    """A released model, as far as the rollout must know it."""

    name: str
    digest: str
    base_rate: float


class State(msgspec.Struct, frozen=True):
    """
    All that the rollout remembers. Times are milliseconds on the control log; `since` is when the stage, or the canary's
    present share, began, `shadow_from` and `shadow_to` bound the candidate's whole shadow (0: still on).
    """

    stage: Stage = Stage.NONE
    version: int = 0
    time: int = 0
    paused: bool = False
    champion: Model | None = None
    frozen: Model | None = None
    previous: Model | None = None
    watching: bool = False
    promoted: int = 0
    watch: Duel = Duel()
    candidate: Model | None = None
    since: int = 0
    rows: int = 0
    share: int = 0
    shadow_from: int = 0
    shadow_to: int = 0
    matured: Duel = Duel()
    queue: tuple[Model, ...] = ()
    salt: str = ""
    approved_by: tuple[str, ...] = ()  # the people who have approved the candidate that waits
