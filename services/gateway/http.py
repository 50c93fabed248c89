"""The app, of its routes; and the server that it runs in, as a part of the process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from driftline.clock import Clock
from driftline.errors import Fatal
from driftline.logs import log
from driftline.metrics import metric
from driftline.stream.process import Part

from . import command_routes, inference_protocol, live, problems, read_routes, score_routes
from .access import Guarded, refuse_unguarded
from .console import routes as console
from .document import document, event_name
from .site import Site

GRACE_S = 10  # that requests in hand have when the process is told to stop
BACKLOG = 2_048


def make_app(site: Site) -> FastAPI:
    """All routes, guarded. Raises Fatal when one is not."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, max_body_size=site.bounds.body_bytes_max)
    app.router.route_class = Guarded
    app.state.site = site
    app.state.access = site.access
    problems.install(app)
    score_routes.add_routes(app, event_name(site.pipeline.question))
    read_routes.add_routes(app)
    live.add_routes(app)
    command_routes.add_routes(app)
    inference_protocol.add_routes(app)
    console.add_routes(app)
    app.get("/openapi.json", operation_id="openapi", include_in_schema=False)(_openapi)
    refuse_unguarded(app)
    app.state.document = document(app, site.pipeline, site.version, site.example)
    app.add_middleware(Measured, pipeline=site.pipeline.name, clock=site.clock)
    return app


async def _openapi(request: Request) -> Response:
    return JSONResponse(request.app.state.document)


class Measured:
    """Counts requests and their time, by operation."""

    def __init__(self, app: ASGIApp, pipeline: str, clock: Clock) -> None:
        self._app = app
        self._pipeline = pipeline
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = self._clock.monotonic_s(), "none"

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            operation = _operation(scope)
            metric("driftline_http_requests_total").labels(pipeline=self._pipeline, operation=operation, status=status).inc()
            took_s = self._clock.monotonic_s() - began_s
            metric("driftline_http_request_duration_seconds").labels(pipeline=self._pipeline, operation=operation).observe(took_s)


def _operation(scope: MutableMapping[str, Any]) -> str:
    return getattr(scope.get("route"), "operation_id", None) or "none"


class _Uvicorn(uvicorn.Server):
    """Signals are the process's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def _listening(host: str, port: int) -> socket.socket:
    """
    A socket that says that it is TCP, as `socket.create_server`'s does not: only of such a one does asyncio take Nagle's algorithm away,
    and with it an answer's body, which is written after its head, waits 40 ms for the client's delayed acknowledgement.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Fatal(f"cannot listen at {host}:{port} ({error.strerror}): set DRIFTLINE_HTTP_HOST and DRIFTLINE_HTTP_PORT") from error
    return listening


class HttpServer:
    """Listens; ends when the requests in hand are answered."""

    def __init__(self, app: FastAPI, host: str, port: int, connections_max: int, tell: Callable[[str], None]) -> None:
        self._place = host, port
        self._tell = tell
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=connections_max,
                timeout_graceful_shutdown=GRACE_S,
                ws="none",
            )
        )

    @property
    def ready(self) -> bool:
        """Whether it listens."""
        return self._server.started and not self._server.should_exit

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self._server.should_exit

    async def run(self) -> None:
        """Until told to end. Raises Fatal when the port cannot be had."""
        host, port = self._place
        listening = _listening(host, port)
        bound = listening.getsockname()[1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        self._tell(url)
        log.info("listening", http=url)
        with listening:
            await self._server.serve(sockets=[listening])

    def stop(self) -> None:
        """Take no more requests; answer those in hand."""
        self._server.should_exit = True


class Gateway:
    """The server in front and what it leans on: at the end the server goes first, so that whoever is being answered gets the answer."""

    def __init__(
        self, server: HttpServer, behind: Sequence[Part], hurry: Callable[[], None], at_last: Callable[[], Awaitable[None]]
    ) -> None:
        self._server = server
        self._behind = behind
        self._hurry = hurry
        self._at_last = at_last

    @property
    def ready(self) -> bool:
        """Whether everything is."""
        return self._server.ready and all(part.ready for part in self._behind)

    async def run(self) -> None:
        """Until stopped, or until one of them fails; raises what that one raised."""
        try:
            async with asyncio.TaskGroup() as group:
                for part in self._behind:
                    group.create_task(part.run())
                await self._server.run()
                for part in self._behind:
                    part.stop()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        finally:
            await self._at_last()

    def stop(self) -> None:
        """Drain. Whoever waits for a prediction still has half of the time."""
        self._server.stop()
        asyncio.get_running_loop().call_later(GRACE_S / 4, self._hurry)
