"""
Errors as problem details (RFC 9457). They say what is wrong and what to do, never what was sent: a body may hold what is personal,
a header a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from driftline.errors import Fatal, Invalid, Recoverable, Rejected
from driftline.logs import log

MEDIA_TYPE = "application/problem+json"
KINDS: Mapping[int, tuple[str, str]] = {
    400: ("malformed", "The request cannot be read"),
    401: ("unauthorized", "A token is needed"),
    403: ("forbidden", "The token may not do this"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "The path knows no such method"),
    413: ("too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is of a type that is not read here"),
    422: ("refused", "The request says something that is not accepted"),
    429: ("too-many-requests", "Too much at once"),
    500: ("fault", "A fault of ours"),
    503: ("unavailable", "What is needed for this does not answer now"),
}


Responses = dict[int | str, dict[str, Any]]  # of a route, for the OpenAPI document


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    at: Annotated[str, Field(description="Where: a field of the body, or a parameter.", examples=["body.reason"])]
    detail: Annotated[str, Field(description="What is wrong with it, without its value.", examples=["is missing"])]


class ProblemDetails(BaseModel):
    """What went wrong, as RFC 9457 says it."""

    type: Annotated[str, Field(description="The kind of problem, stable.", examples=["urn:driftline:problem:refused"])]
    title: Annotated[str, Field(description="The kind in words.", examples=["The request says something that is not accepted"])]
    status: Annotated[int, Field(description="The HTTP status.", examples=[422])]
    detail: Annotated[str, Field(description="What happened here, and what to do.", examples=['"origin" is missing; Flight asks for it'])]
    reason: Annotated[
        str | None, Field(description="For a refused event: why, as on the dead letters.", examples=["contract", "missing_id"])
    ] = None
    errors: Annotated[list[Fault] | None, Field(description="Everything that is wrong, where there may be several things.")] = None


class Problem(Exception):
    """Raised by a route; answered as problem details."""

    def __init__(self, status: int, kind: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more

    def body(self) -> dict[str, Any]:
        """The problem's members."""
        title = KINDS.get(self.status, ("", "An error"))[1]
        return {"type": f"urn:driftline:problem:{self.kind}", "title": title, "status": self.status, "detail": self.detail, **self.more}


def of_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    """A problem of the kind that the status has."""
    return Problem(status, KINDS.get(status, ("error", ""))[0], detail, headers=headers)


def documented(*statuses: int) -> Responses:
    """The problem responses of a route, for the OpenAPI document; what every guarded route may answer is among them."""
    return {
        status: {"description": KINDS[status][1], "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}}
        for status in sorted({401, 403, 429, *statuses})
    }


def install(app: FastAPI) -> None:
    """Answer everything that goes wrong as a problem."""
    app.exception_handler(Problem)(_on_problem)
    app.exception_handler(HTTPException)(_on_http)
    app.exception_handler(RequestValidationError)(_on_validation)
    app.exception_handler(Invalid)(_on_invalid)
    app.exception_handler(Rejected)(_on_rejected)
    for away in (Recoverable, Fatal):
        app.exception_handler(away)(_on_recoverable)
    app.exception_handler(Exception)(_on_fault)


def _told(request: Request, problem: Problem) -> Response:
    """The answer. The Open Inference Protocol has errors under a name of its own, which its clients look for."""
    body = problem.body()
    if request.url.path.startswith("/v2"):
        body["error"] = problem.detail
    return JSONResponse(body, problem.status, problem.headers, media_type=MEDIA_TYPE)


async def _on_problem(request: Request, problem: Problem) -> Response:
    return _told(request, problem)


async def _on_http(request: Request, error: HTTPException) -> Response:
    detail = {404: "there is no such path", 405: "the path knows no such method"}.get(error.status_code, error.detail)
    return _told(request, of_status(error.status_code, detail, error.headers))


async def _on_validation(request: Request, error: RequestValidationError) -> Response:
    """The places and the words, without the values that pydantic adds."""
    faults = [{"at": ".".join(map(str, one["loc"])), "detail": _worded(one)} for one in error.errors()]
    if any(one["type"] == "json_invalid" for one in error.errors()):
        return _told(request, of_status(400, "the body is not valid JSON"))
    return _told(request, Problem(422, "refused", "; ".join(f"{one['at']} {one['detail']}" for one in faults), errors=faults))


def _worded(error: Mapping[str, Any]) -> str:
    """pydantic's words, where they cannot repeat what was sent."""
    known = {
        "missing": "is missing",
        "extra_forbidden": "is not known",
        "string_too_short": "is too short",
        "string_too_long": "is too long",
    }
    if error["type"] in known:
        return known[error["type"]]
    bounds = {name: error.get("ctx", {}).get(name) for name in ("ge", "gt", "le", "lt")}
    told = ", ".join(f"{name} {bound}" for name, bound in bounds.items() if isinstance(bound, int | float))
    return f"must be {told}" if told else f"is wrong ({error['type']})"


async def _on_invalid(request: Request, error: Invalid) -> Response:
    return _told(request, of_status(422, str(error)))


async def _on_rejected(request: Request, error: Rejected) -> Response:
    return _told(request, of_status(429, str(error), {"Retry-After": "1"}))


async def _on_recoverable(request: Request, error: Recoverable | Fatal) -> Response:
    log.warning("not answered", because=str(error))
    return _told(request, of_status(503, "a server that this needs does not answer now; try again", {"Retry-After": "1"}))


async def _on_fault(request: Request, error: Exception) -> Response:
    """A defect: told in the log by its type and place, in the answer not at all."""
    log.error("fault", operation=getattr(request.scope.get("route"), "operation_id", "none"), error=type(error).__name__)
    return _told(request, of_status(500, "this is a fault of ours; the log of the gateway tells more"))
