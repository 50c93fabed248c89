"""What the routes are given: everything that one gateway is made of, reached from a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request

from driftline.clock import Clock
from driftline.operate.desk import Desk
from driftline.pipeline import Pipeline

from .access import Access
from .scoring import Scorer
from .served import Served
from .state import State


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one gateway: what a request may ask for, and how long it may wait."""

    body_bytes_max: int
    batch_max: int
    wait_s: float
    wait_max_s: float
    command_wait_s: float
    live_max: int


@dataclass(frozen=True, slots=True)
class Site:
    """One pipeline's gateway."""

    pipeline: Pipeline
    state: State
    scorer: Scorer
    desk: Desk
    served: Served
    access: Access
    bounds: Bounds
    clock: Clock
    version: str
    troubles: Callable[[], list[str]]  # what keeps this process from being ready
    stopping: Callable[[], bool]  # whether it drains
    example: Mapping[str, Any] | None  # of a question


def site_of(request: Request) -> Site:
    """The site that a request came to."""
    return cast(Site, request.app.state.site)
