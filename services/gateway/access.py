"""
Who may do what: every route has exactly one needed role, here and nowhere else, and a route without one keeps the app from starting.

A request brings `Authorization: Bearer TOKEN`. Without a tokens file there are no tokens to bring: the gateway then starts only where
it is told to be open, on loopback alone, and everybody there may do everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from driftline.clock import Clock
from driftline.errors import Fatal
from driftline.operate.tokens import Holder, Role, Tokens

from .problems import Problem

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        # scoring
        "score": Role.SCORER,
        "score_batch": Role.SCORER,
        "get_prediction": Role.VIEWER,
        # what is known
        "list_pipelines": Role.VIEWER,
        "get_status": Role.VIEWER,
        "get_features": Role.VIEWER,
        "get_event": Role.VIEWER,
        "list_dead_letters": Role.VIEWER,
        "list_models": Role.VIEWER,
        "get_model": Role.VIEWER,
        "list_deployments": Role.VIEWER,
        "list_reports": Role.VIEWER,
        "list_retrains": Role.VIEWER,
        "follow": Role.VIEWER,
        # commands: what puts a model before people needs an approver, what takes one back or stands still an operator
        "approve_model": Role.APPROVER,
        "promote_model": Role.APPROVER,
        "pause_rollout": Role.OPERATOR,
        "resume_rollout": Role.OPERATOR,
        "roll_back_model": Role.OPERATOR,
        "retrain": Role.OPERATOR,
        # the Open Inference Protocol
        "oip_server_live": Role.ANYONE,
        "oip_server_ready": Role.ANYONE,
        "oip_server": Role.ANYONE,
        "oip_model": Role.VIEWER,
        "oip_model_version": Role.VIEWER,
        "oip_model_ready": Role.VIEWER,
        "oip_model_version_ready": Role.VIEWER,
        "oip_infer": Role.SCORER,
        "oip_infer_version": Role.SCORER,
        # the document
        "openapi": Role.ANYONE,
        # the console: its pages, and the commands of its forms, which need what they need elsewhere
        "page_loop": Role.VIEWER,
        "page_model": Role.VIEWER,
        "page_quality": Role.VIEWER,
        "page_events": Role.VIEWER,
        "page_event": Role.VIEWER,
        "page_dead_letters": Role.VIEWER,
        "page_features": Role.VIEWER,
        "page_approve_model": Role.APPROVER,
        "page_promote_model": Role.APPROVER,
        "page_pause_rollout": Role.OPERATOR,
        "page_resume_rollout": Role.OPERATOR,
        "page_roll_back_model": Role.OPERATOR,
        "page_log_in": Role.ANYONE,
        "log_in": Role.ANYONE,
        "log_out": Role.ANYONE,
        "console_file": Role.ANYONE,
    }
)

EVERYBODY = Holder("anyone", frozenset(Role) - {Role.ANYONE})
BUCKETS_MAX = 10_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float


class Rates:
    """A token bucket for each holder: so many questions a second, and twice as many at once."""

    def __init__(self, rate_per_s: float, clock: Clock) -> None:
        self._rate = rate_per_s
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str, cost: int = 1) -> float:
        """Take `cost` from the holder's bucket. Returns 0, or, with nothing taken, after how many seconds there will be enough."""
        now_s = self._clock.monotonic_s()
        bucket = self._buckets.setdefault(name, _Bucket(2 * self._rate, now_s))
        self._buckets.move_to_end(name)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        bucket.left = min(2 * self._rate, bucket.left + self._rate * (now_s - bucket.at_s))
        bucket.at_s = now_s
        if (missing := min(cost, 2 * self._rate) - bucket.left) > 0:
            return missing / self._rate
        bucket.left -= cost
        return 0.0


@dataclass(frozen=True, slots=True)
class Access:
    """The pipeline, the tokens, None where the gateway is open, and how fast each may go."""

    pipeline: str
    tokens: Tokens | None
    rates: Rates

    def admit(self, request: Request, needed: Role) -> Holder:
        """Who asks. Raises Problem: 401 without a good token, 403 with one that may not, 429 where it asks too often."""
        holder = self._holder(request, needed)
        self.permit(holder, needed)
        return holder

    def permit(self, holder: Holder, needed: Role) -> None:
        """Let a holder who is known do one thing. Raises Problem: 403 or 429."""
        if not holder.may(needed):
            raise Problem(403, "forbidden", f"this needs the role {needed}; the token of {holder.name} does not have it")
        self.charge(holder)

    def charge(self, holder: Holder, cost: int = 1) -> None:
        """Take so many questions from the holder's rate. Raises Problem."""
        if wait_s := self.rates.take(holder.name, cost):
            raise Problem(429, "too-many-requests", f"{holder.name} asks too often", headers=retry_after(wait_s))

    def _holder(self, request: Request, needed: Role) -> Holder:
        if self.tokens is None:
            refuse_stranger(request)
            return EVERYBODY
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        holder = self.tokens.holder(token.strip()) if scheme.lower() == "bearer" and token else None
        if holder is None and needed is Role.ANYONE:
            return Holder("anyone", frozenset())
        if holder is None:
            raise Problem(401, "unauthorized", "bring a token: Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})
        return holder


def refuse_stranger(request: Request) -> None:
    """
    Where there are no tokens, whoever is on this machine is let in. A page of somebody else's that is open in a browser here is on this
    machine too: it says so, by its origin, or by the name that it calls us. Raises Problem.
    """
    own = request.url.hostname in LOOPBACK and request.headers.get("Origin") in (None, f"http://{request.headers.get('Host', '')}")
    if not own:
        raise Problem(403, "forbidden", "without tokens this gateway answers programs of this machine alone, not pages of other sites")


def retry_after(wait_s: float) -> dict[str, str]:
    """The header that says when to come again: whole seconds, one at least."""
    return {"Retry-After": str(int(wait_s) + 1)}


class Guarded(APIRoute):
    """A route that nobody passes without its role. Raises Fatal where it is declared, when it has none."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **given: Any) -> None:
        name = str(given.get("operation_id"))
        if name not in ROLES:
            raise Fatal(f"the route {path} ({name}) has no role: give it one in services/gateway/access.py")
        self.needed = ROLES[name]
        super().__init__(path, endpoint, **given)

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler, behind the guard."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            access: Access = request.app.state.access
            self.admit(request)
            if request.path_params.get("pipeline", access.pipeline) != access.pipeline:
                raise Problem(404, "not-found", f"this gateway has the pipeline {access.pipeline}")
            response: Response = await handler(request)
            return response

        return guarded

    def admit(self, request: Request) -> None:
        """Who asks goes into the request's state. Raises Problem when they may not."""
        access: Access = request.app.state.access
        request.state.holder = access.admit(request, self.needed)


def refuse_unguarded(app: FastAPI) -> None:
    """Raises Fatal when the app has a route that is not guarded, or a role for one that it does not have."""
    if open_ := [getattr(route, "path", str(route)) for route in app.routes if not isinstance(route, Guarded)]:
        raise Fatal(f"the routes {', '.join(open_)} are not guarded")
    if idle := set(ROLES) - {route.operation_id for route in app.routes if isinstance(route, Guarded)}:
        raise Fatal(f"there are roles for routes that are not there: {', '.join(sorted(idle))}")
