"""Questions over HTTP: one or several, answered with what the loop says of them."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import FastAPI, Path, Query, Request
from starlette.responses import Response

from driftline.contracts import traceparent
from driftline.operate.predictions import Prediction as Told
from driftline.stream.batch import Refused

from . import answers
from .problems import KINDS, Problem, Responses, documented, of_status
from .scoring import Awaited, Outcome
from .site import Site, site_of

TAG = "Scoring"
STATUS_OF = {"undecodable": 400, "too_large": 413}  # of reasons; of all others 422
TIMEOUT_MAX_S = 60.0

PipelineName = Annotated[str, Path(description="The name of the pipeline.", examples=["flights"])]
Timeout = Annotated[
    float | None, Query(ge=0, le=TIMEOUT_MAX_S, description="How long to wait for the answer, in seconds; the gateway's own limit holds.")
]
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODE = msgspec.json.Encoder().encode


def add_routes(app: FastAPI, event: str) -> None:
    """All routes of this module; `event` names the component that is the schema of a question."""
    one = {"$ref": f"#/components/schemas/{event}"}
    location = {"Location": {"description": "Where its prediction will be.", "schema": {"type": "string"}}}
    score: Responses = {
        200: {"description": "The prediction", "model": answers.Prediction},
        202: {"description": "Published, and not answered in time", "model": answers.Awaited, "headers": location},
        **documented(400, 404, 413, 422, 503),
    }
    app.post(
        "/v1/{pipeline}/score",
        operation_id="score",
        tags=[TAG],
        summary="Score one event",
        responses=score,
        openapi_extra=_body(one),
    )(score_one)
    app.post(
        "/v1/{pipeline}/score/batch",
        operation_id="score_batch",
        tags=[TAG],
        summary="Score a list of events",
        responses={200: {"description": "One result each", "model": answers.ScoredBatch}, **documented(400, 404, 413, 422, 503)},
        openapi_extra=_body({"type": "array", "minItems": 1, "items": one}),
    )(score_batch)
    app.get(
        "/v1/{pipeline}/predictions/{id:path}",
        operation_id="get_prediction",
        tags=[TAG],
        summary="A prediction by the id of its event",
        responses={
            200: {"description": "The prediction", "model": answers.Prediction},
            202: {"description": "Published, and not answered yet", "model": answers.Awaited, "headers": location},
            **documented(404),
        },
    )(get_prediction)


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def score_one(request: Request, pipeline: PipelineName, timeout_s: Timeout = None) -> Response:
    """
    Publish an event to the topic of its stream, and answer with its prediction from the topic of predictions: what every other event gets,
    by the same way. An id that was answered before gets the same prediction, and is not published again. A `traceparent` header (W3C Trace
    Context) goes on to the record.
    """
    site = site_of(request)
    body = await request.body()
    if not body.lstrip().startswith(b"{"):
        raise of_status(400, "the body is not a JSON object")
    (outcome,) = await site.scorer.score([body], _wait_s(site, timeout_s), _trace(request))
    if isinstance(outcome, Told):
        return _json(_ENCODE(outcome))
    if isinstance(outcome, Refused):
        raise problem_of(outcome)
    return awaited(site, outcome.id)


async def score_batch(request: Request, pipeline: PipelineName, timeout_s: Timeout = None) -> Response:
    """As for one event; each has a result of its own, so one that is refused does not stop the others."""
    site = site_of(request)
    try:
        events = [bytes(raw) for raw in _LIST.decode(await request.body())]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise of_status(400, "the body is not a JSON list") from error
    if not 1 <= len(events) <= site.bounds.batch_max:
        raise of_status(422, f"a batch has 1 to {site.bounds.batch_max} events")
    site.access.charge(request.state.holder, len(events) - 1)
    outcomes = await site.scorer.score(events, _wait_s(site, timeout_s), _trace(request))
    return _json(_ENCODE({"results": [_result(site, one) for one in outcomes]}))


async def get_prediction(
    request: Request, pipeline: PipelineName, id: Annotated[str, Path(description="The event's id.", max_length=1_024)]
) -> Response:
    """From memory: the newest predictions, whoever asked. Older ones are on the log: see the trace of the event."""
    site = site_of(request)
    if (found := site.state.prediction(id)) is not None:
        return _json(_ENCODE(found))
    if site.state.is_waiting(id):
        return awaited(site, id)
    raise of_status(404, "it is not among the newest predictions; the log remembers more: GET /v1/{pipeline}/events/{id}")


def _trace(request: Request) -> bytes | None:
    """The trace context of the request, which goes on the record that is published."""
    return traceparent.one_of([value.encode() for value in request.headers.getlist(traceparent.NAME)])


def _wait_s(site: Site, timeout_s: float | None) -> float:
    return min(site.bounds.wait_max_s, site.bounds.wait_s if timeout_s is None else timeout_s)


def _location(site: Site, id: str) -> str:
    return f"/v1/{site.pipeline.name}/predictions/{quote(id, safe='')}"


def awaited(site: Site, id: str) -> Response:
    """202: it is on the log, and where its answer will be."""
    location = _location(site, id)
    return _json(_ENCODE({"id": id, "location": location}), 202, {"Location": location})


def problem_of(refused: Refused) -> Problem:
    """Why an event is refused: as intake would, in the same words."""
    status = STATUS_OF.get(refused.reason, 422)
    return Problem(status, KINDS[status][0], refused.detail, reason=refused.reason)


def _result(site: Site, outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Told):
        return {"status": 200, "prediction": outcome}
    if isinstance(outcome, Awaited):
        return {"status": 202, "awaited": {"id": outcome.id, "location": _location(site, outcome.id)}}
    problem = problem_of(outcome)
    return {"status": problem.status, "problem": problem.body()}


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")
