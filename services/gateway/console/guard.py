"""
The guard of pages: the same table of roles as everywhere, asked for the session of the browser; what goes wrong is a page in words,
and nobody's script but ours runs in any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from driftline.errors import Fatal, Invalid, Recoverable, Rejected
from driftline.operate.tokens import Role

from ..access import Access, Guarded, refuse_stranger
from ..problems import KINDS, Problem, of_status
from .sessions import Session, Sessions

LOG_IN = "/console/log-in"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without one, browsers do not say where a form comes from
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Page(Guarded):
    """A route of the console. A visitor without a session is sent to the log-in, and back."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler, behind the guard, its problems as pages."""
        handler = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                response: Response = await handler(request)
            except Problem as problem:
                response = _refused(request, problem)
            except Invalid as error:
                response = _refused(request, of_status(422, str(error)))
            except Rejected as error:
                response = _refused(request, of_status(429, str(error)))
            except (Recoverable, Fatal):
                response = _refused(request, of_status(503, "a server that this page needs does not answer now; try again"))
            response.headers.setdefault("Cache-Control", "no-store")
            response.headers.update(HEADERS)
            return response

        return shown

    def admit(self, request: Request) -> None:
        """Whose session it is goes into the request's state. Raises Problem."""
        access: Access = request.app.state.access
        sessions: Sessions = request.app.state.console.sessions
        if sessions.open:
            refuse_stranger(request)
        session = sessions.find(request.cookies.get(cookie_of(request)))
        request.state.session = session
        if session is None and self.needed is not Role.ANYONE:
            raise Problem(401, "unauthorized", "log in with a token")
        if session is not None:
            access.permit(session.holder, self.needed)
            request.state.holder = session.holder


def _refused(request: Request, problem: Problem) -> Response:
    """A page, or the way to the log-in. A fragment cannot be a log-in page, so the browser is told to go there."""
    if problem.status != 401:
        response: Response = request.app.state.console.page(request, "problem.html", problem.status, problem=problem, kinds=KINDS)
        response.headers.update(problem.headers)
        return response
    if request.headers.get("HX-Request"):
        return Response(status_code=401, headers={"HX-Redirect": LOG_IN})
    wanted = f"?next={quote(request.url.path)}" if request.method == "GET" else ""
    return RedirectResponse(LOG_IN + wanted, 303)


def cookie_of(request: Request) -> str:
    """
    The name of this gateway's cookie. A browser sends a host's cookies to each of its ports: were the name the same, to log in at one
    gateway would end the session at the one beside it.
    """
    access: Access = request.app.state.access
    _, port = request.scope["server"]
    return f"driftline_{access.pipeline}_{port}"


def session_of(request: Request) -> Session:
    """The session that a request behind the guard has."""
    session: Session = request.state.session
    return session
