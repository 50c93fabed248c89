"""What happens to a pipeline as it happens: server-sent events, for live pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request
from starlette.responses import Response, StreamingResponse

from driftline.errors import DriftlineError, Rejected

from . import answers
from .problems import Responses, documented
from .score_routes import PipelineName
from .site import Site, site_of

TAG = "Reading"
LOOK_S = 2.0
FOR_MAX_S = 3_600.0  # then the stream ends, and a browser opens another
MEDIA_TYPE = "text/event-stream"


def add_routes(app: FastAPI) -> None:
    """The one route of this module."""
    streams = Streams()
    told: Responses = {
        200: {"description": "Events `status`, `deployment` and `report`", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}
    }
    app.get(
        "/v1/{pipeline}/live",
        operation_id="follow",
        tags=[TAG],
        summary="Follow what happens",
        response_class=StreamingResponse,
        responses={**told, **documented(404, 422)},
    )(streams.follow)


class Streams:
    """The streams that are open, with a limit."""

    def __init__(self) -> None:
        self._open = 0

    async def follow(
        self,
        request: Request,
        pipeline: PipelineName,
        for_s: Annotated[float, Query(ge=0, le=FOR_MAX_S, description="After so many seconds the stream ends.")] = FOR_MAX_S,
    ) -> Response:
        """
        The status at once and when it changes, each move of the rollout and each report when they come. `data` is as the other routes
        answer.
        """
        site = site_of(request)
        if self._open >= site.bounds.live_max:
            raise Rejected(f"{site.bounds.live_max} streams are open already")
        return StreamingResponse(self._counted(site, for_s), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})

    async def _counted(self, site: Site, for_s: float) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            async for event in _events(site, for_s):
                yield event
        finally:
            self._open -= 1


async def _events(site: Site, for_s: float) -> AsyncIterator[bytes]:
    until_s = site.clock.monotonic_s() + for_s
    version, reported, shown = _version(site), _reported(site), b""
    while True:
        status = await _status(site)
        if status != shown:
            shown = status
            yield _event("status", status)
        else:
            yield b": still here\n\n"
        left = until_s - site.clock.monotonic_s()
        if left <= 0 or site.stopping():
            return
        await site.state.changed(min(left, LOOK_S))
        if _version(site) != version:
            version = _version(site)
            yield _event("deployment", _encoded(answers.Deployment.of(site.state.deployment())))
        for report in (one for one in site.state.reports() if one.end > reported):
            reported = report.end
            yield _event("report", _encoded(answers.Report.of(report)))


def _version(site: Site) -> tuple[int, str]:
    now = site.state.deployment()
    return now.version, now.state


def _reported(site: Site) -> int:
    return max((one.end for one in site.state.reports()), default=-1)


async def _status(site: Site) -> bytes:
    try:
        return _encoded(answers.Status.of(await site.state.status()))
    except DriftlineError:  # Kafka is away for a moment; the stream is there to tell
        return msgspec.json.encode({"well": False, "troubles": ["Kafka does not answer"]})


def _encoded(answer: Any) -> bytes:
    return bytes(answer.model_dump_json().encode())


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
