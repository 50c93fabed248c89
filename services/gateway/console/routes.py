"""
The routes of the console: each reads state, makes values of it, and renders them. A part of a page asks for itself every few seconds,
and is sent again only when something in it has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from fastapi import FastAPI, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from driftline.errors import Invalid
from driftline.judge.drift import PSI_LIMIT
from driftline.operate.tokens import Holder

from .. import answers
from ..command_routes import COMMANDS, give
from ..problems import of_status
from ..site import Site, site_of
from . import event, features, loop, model, quality, refused, words
from .guard import LOG_IN, Page, cookie_of, session_of
from .sessions import LIFE_S, Session, Sessions

HERE = Path(__file__).parent
FORM_BYTES_MAX = 16_384
STRANGER = Holder("whoever logs in", frozenset())  # all of them together have the rate of one token
EVERY_S = 3
RELIABLE_DAYS = 28
WINDOWS_NOW = 7  # as drift compares them with training
NEWEST_SHOWN = 25
UNCHANGED = 204
KEPT = ("command", "slice")  # what an address says besides its path, when a part asks for itself
FILES: Mapping[str, str] = {  # all that is served as it is
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "uplot.min.js": "text/javascript; charset=utf-8",
    "uplot.min.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
Handler = Callable[..., Any]
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tab:
    """One page of the console."""

    operation: str
    title: str
    path: str  # after the pipeline's name; the loop is at the root


TABS = (
    Tab("page_loop", "Loop", ""),
    Tab("page_model", "Model", "model"),
    Tab("page_quality", "Quality", "quality"),
    Tab("page_events", "Event", "events"),
    Tab("page_dead_letters", "Refused", "dead-letters"),
    Tab("page_features", "Features", "features"),
)


class Console:
    """What all pages share: sessions, templates, and the files."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.sessions = Sessions(site.access.tokens, site.clock)
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters |= words.FILTERS

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files, read once."""
        return {name: (HERE / "static" / name).read_bytes() for name in FILES}

    @cached_property
    def stamp(self) -> str:
        """Changes with the files, so that a browser may keep each for ever under its address."""
        return hashlib.sha256(b"".join(self.files.values())).hexdigest()[:12]

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """
        A page; or, where the request names one, a part of it alone, and nothing when that is as the browser has it already.
        """
        asked, seen = request.query_params.get("part"), request.query_params.get("seen", "")
        given = self._given(request) | values

        def part(name: str) -> Markup:
            inside = self._templates.get_template(f"{template.removesuffix('.html')}_{name}.html").render(given)
            digest = hashlib.sha256(inside.encode()).hexdigest()[:16]
            if asked == name and seen == digest:
                raise _Unchanged
            asks = given["kept"] | {"part": name, "seen": digest}
            whole = self._templates.get_template("part.html").render(given | {"name": name, "inside": Markup(inside), "asks": asks})
            return Markup(whole)

        try:
            if asked in values.get("parts", ()):
                return HTMLResponse(str(part(str(asked))))
            return HTMLResponse(self._templates.get_template(template).render(given | {"part": part}), status)
        except _Unchanged:
            return Response(status_code=UNCHANGED)

    def _given(self, request: Request) -> dict[str, Any]:
        """What every page is given."""
        session: Session | None = getattr(request.state, "session", None)
        name = self._site.pipeline.name
        tabs = [(tab, f"/{quote(name)}/{tab.path}" if tab.path else "/") for tab in TABS]
        return {
            "pipeline": self._site.pipeline,
            "tabs": tabs,
            "operation": getattr(request.scope.get("route"), "operation_id", ""),
            "address": request.url.path,
            "session": session,
            "open": self.sessions.open,
            "stamp": self.stamp,
            "every_s": EVERY_S,
            "kept": {name: request.query_params.get(name, "") for name in KEPT},
        }


class _Unchanged(Exception):
    """The browser has this part already."""


def add_routes(app: FastAPI) -> None:
    """All routes of this module."""
    app.state.console = Console(app.state.site)

    def add(method: str, path: str, operation: str, handler: Handler) -> None:
        app.router.add_api_route(
            path, handler, methods=[method], operation_id=operation, include_in_schema=False, response_model=None, route_class_override=Page
        )

    add("GET", "/console/files/{stamp}/{name}", "console_file", file)
    add("GET", LOG_IN, "page_log_in", log_in_page)
    add("POST", LOG_IN, "log_in", log_in)
    add("POST", "/console/log-out", "log_out", log_out)
    add("GET", "/", "page_loop", loop_page)
    add("GET", "/{pipeline}/model", "page_model", model_page)
    add("GET", "/{pipeline}/quality", "page_quality", quality_page)
    add("GET", "/{pipeline}/events", "page_events", events_page)
    add("GET", "/{pipeline}/events/{id:path}", "page_event", event_page)
    add("GET", "/{pipeline}/dead-letters", "page_dead_letters", dead_letters_page)
    add("GET", "/{pipeline}/features", "page_features", features_page)
    for operation, action, path, _, _ in COMMANDS:
        add("POST", f"/{{pipeline}}/model/{path}", f"page_{operation}", _command(action))


def console_of(request: Request) -> Console:
    """The console that a request came to."""
    console: Console = request.app.state.console
    return console


# Files, logging in and out


async def file(request: Request, stamp: str, name: str) -> Response:
    """One of the files that there are."""
    console = console_of(request)
    if name not in console.files:
        raise of_status(404, "there is no such file")
    kept = "public, max-age=31536000, immutable" if stamp == console.stamp else "no-store"
    return Response(console.files[name], media_type=FILES[name], headers={"Cache-Control": kept})


async def log_in_page(request: Request) -> Response:
    """A form for the token."""
    return console_of(request).page(request, "log_in.html", wanted=_inside(request.query_params.get("next", "")), wrong=False)


async def log_in(request: Request) -> Response:
    """A session for whoever holds the token."""
    console = console_of(request)
    _refuse_foreign(request)
    site_of(request).access.charge(STRANGER)
    form = await _form(request)
    id = console.sessions.begin(form.get("token", "").strip())
    wanted = _inside(form.get("next", ""))
    if id is None:
        return console.page(request, "log_in.html", 401, wanted=wanted, wrong=True)
    response = RedirectResponse(wanted, 303)
    secure = request.headers.get("Origin", "").startswith("https://")  # TLS ends before the gateway, and only the browser knows of it
    response.set_cookie(cookie_of(request), id, max_age=int(LIFE_S), path="/", httponly=True, samesite="strict", secure=secure)
    return response


async def log_out(request: Request) -> Response:
    """The session ends, here and in the browser."""
    _refuse_foreign(request)
    console_of(request).sessions.end(request.cookies.get(cookie_of(request)))
    response = RedirectResponse(LOG_IN, 303)
    response.delete_cookie(cookie_of(request), path="/", httponly=True, samesite="strict")
    return response


def _inside(path: str) -> str:
    """A path of ours to go on to, or the first page: never another site's."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\", LOG_IN)) else "/"


def _refuse_foreign(request: Request) -> None:
    """Raises Problem when a browser says that the form is of another site."""
    origin = request.headers.get("Origin")
    if origin is not None and origin.split("://", 1)[-1] != request.headers.get("Host", ""):
        raise of_status(403, "this form is of another site")


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form, as browsers send it. Raises Problem."""
    if request.headers.get("Content-Type", "").split(";")[0].strip() != "application/x-www-form-urlencoded":
        raise of_status(415, "a form is sent as application/x-www-form-urlencoded")
    body = await request.body()
    if len(body) > FORM_BYTES_MAX:
        raise of_status(413, f"a form has at most {FORM_BYTES_MAX} bytes")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise of_status(400, "the form cannot be read") from error
    return {name: found[0] for name, found in fields.items()}


# Pages


async def loop_page(request: Request) -> Response:
    """The picture, and the promises."""
    site = site_of(request)
    status = await site.state.status()
    seen = loop.Seen(status, await site.state.hops(), site.state.refusals(), site.state.retrains())
    arrows = loop.traffic(site.pipeline, seen)
    return console_of(request).page(
        request,
        "loop.html",
        parts=("state",),
        drawings=loop.drawings(arrows, status),
        promises=loop.promises(arrows, seen),
        arrows=arrows,
        deployment=status.deployment,
        report=status.report,
    )


async def model_page(request: Request, pipeline: str) -> Response:
    """Champion and challenger, the gate, the rollout, and what may be done."""
    site = site_of(request)
    history, reports = site.state.history(), site.state.reports()
    champion, challenger = model.sides(history)
    command = request.query_params.get("command", "")
    return console_of(request).page(
        request,
        "model.html",
        parts=("now", "actions", "past"),
        champion=champion,
        challenger=challenger,
        measures=model.measures(reports, champion, challenger),
        steps=model.steps(site.pipeline, history.now),
        deployment=history.now,
        actions=model.actions(history, session_of(request).holder),
        judged=model.judged(history),
        moves=model.moves(history),
        commanded=model.commanded(site.state.retrains()),
        answer=model.answer(site.state.answer_to(command), command),
    )


async def quality_page(request: Request, pipeline: str) -> Response:
    """Charts, reliability, drift, slices, labels, alarms."""
    site = site_of(request)
    reports, slice = site.state.reports(), request.query_params.get("slice", "")
    return console_of(request).page(
        request,
        "quality.html",
        parts=("state",),
        headline=list(quality.headline(reports)),
        alarms=quality.alarms(reports),
        sums=quality.chart_of_sums(reports),
        days=quality.chart_of_days(reports),
        auc=quality.chart_of(reports, "auc", "AUC"),
        log_loss=quality.chart_of(reports, "log_loss", "nats"),
        coverage=quality.chart_of_coverage(reports),
        points=quality.reliability(site.state.reliability("champion", _champion(site), RELIABLE_DAYS)),
        drifted=quality.drifted(reports),
        slices=quality.slices(reports),
        slice_days=quality.SLICE_DAYS,
        slice=slice,
        of_slice=quality.chart_of_slice(reports, slice) if slice else None,
        psi_limit=PSI_LIMIT,
    )


def _champion(site: Site) -> str:
    """The champion's digest; empty while there is none."""
    return next((arm.digest for arm in site.state.deployment().arms if arm.role == "champion"), "")


async def events_page(request: Request, pipeline: str) -> Response:
    """The search, and what was answered last; or on to the event that is searched for."""
    site, wanted = site_of(request), request.query_params.get("id", "").strip()
    if wanted:
        return RedirectResponse(f"/{quote(pipeline)}/events/{quote(wanted, safe='')}", 303)
    return _events(request, site, wanted="", missing=False)


def _events(request: Request, site: Site, *, wanted: str, missing: bool) -> Response:
    newest = site.state.newest_predictions(NEWEST_SHOWN)
    return console_of(request).page(request, "events.html", 404 if missing else 200, newest=newest, wanted=wanted, missing=missing)


async def event_page(request: Request, pipeline: str, id: str) -> Response:
    """One event through the loop."""
    site = site_of(request)
    try:
        trace = await site.state.trace(id)
    except Invalid:
        return _events(request, site, wanted=id, missing=True)
    model = await site.served.known(event.digest_of(trace))
    happened = event.timeline(trace, site.pipeline, await site.state.times(trace))
    row = event.row_of(trace, site.pipeline)
    return console_of(request).page(
        request,
        "event.html",
        id=id,
        trace_id=trace.trace_id,
        answer=event.answer(trace, model),
        outcome=event.outcome(trace, site.pipeline),
        along=event.along(trace),
        known=() if row is None else event.known(site.pipeline, row, model),
        explained=model is not None,
        happened=happened,
        timings=event.timings(happened),
    )


async def dead_letters_page(request: Request, pipeline: str) -> Response:
    """Refused records by reason."""
    site = site_of(request)
    groups = refused.groups(site.pipeline, site.state.refusals())
    return console_of(request).page(request, "dead_letters.html", parts=("state",), groups=groups, total=sum(one.count for one in groups))


async def features_page(request: Request, pipeline: str) -> Response:
    """What the model is given."""
    site = site_of(request)
    digest = _champion(site)
    model, now = await site.served.known(digest), site.state.inputs(digest, WINDOWS_NOW)
    report = quality.newest_with_inputs(site.state.reports())
    manifest = None if model is None else model.manifest
    told = features.described(site.pipeline, manifest, now, {} if report is None else report.body["inputs"])
    return console_of(request).page(
        request,
        "features.html",
        parts=("state",),
        features=told,
        model="" if manifest is None else manifest.model,
        rows=now.rows,
        psi_limit=PSI_LIMIT,
    )


def _command(action: str) -> Handler:
    async def command(request: Request, pipeline: str) -> Response:
        site, session = site_of(request), session_of(request)
        form = await _form(request)
        if not session.is_from_our_form(form.get("word", "")):
            raise of_status(403, "this form is not of your session: load the page again")
        try:
            body = answers.Command(reason=form.get("reason", "").strip(), model=form.get("model", ""))
        except ValidationError as error:
            raise of_status(422, "give a reason of 3 to 500 characters: it is published with the command and with your name") from error
        told, _ = await give(site, action, body, session.holder.name, site.bounds.command_wait_s)
        return RedirectResponse(f"/{quote(pipeline)}/model?command={quote(told.id)}", 303)

    return command
