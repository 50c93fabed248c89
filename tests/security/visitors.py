"""Who looks at the gateway: programs, and browsers; with the token of a role, or as strangers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote, urlencode

from services.gateway.console.routes import TABS

LOG_IN = "/console/log-in"
PATIENCE_S = 60


@dataclass(frozen=True)
class Told:
    """An answer: what was asked for, its status, its head and its body."""

    path: str
    status: int
    head: bytes
    body: bytes

    @property
    def fact(self) -> Any:
        """What it says in JSON."""
        return json.loads(self.body)


class Visitor:
    """A program with a token, or without; it keeps what it was told."""

    kind = "application/json"

    def __init__(self, door: str, token: str | None = None) -> None:
        self.token = token
        self.told: list[Told] = []
        self._door = door

    def ask(self, path: str, body: bytes | None = None) -> Told:
        """One question; an error is an answer too."""
        request = urllib.request.Request(self._door + path, body, self._headers())
        try:
            with self._opened(request) as answer:
                told = Told(path, answer.status, str(answer.headers).encode(), bytes(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                told = Told(path, error.code, str(error.headers).encode(), error.read())
        self.told.append(told)
        return told

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": self.kind} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def _opened(self, request: urllib.request.Request) -> HTTPResponse:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=PATIENCE_S)
        return answer


class Browser(Visitor):
    """It logs in with the token, and has a cookie from then on."""

    kind = "application/x-www-form-urlencoded"

    def __init__(self, door: str, token: str | None = None) -> None:
        super().__init__(door, token)
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        self.ask(LOG_IN)
        if token is not None:
            self.ask(LOG_IN, urlencode({"token": token}).encode())

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": self.kind}

    def _opened(self, request: urllib.request.Request) -> HTTPResponse:
        answer: HTTPResponse = self._opener.open(request, timeout=PATIENCE_S)
        return answer


def looked_at(visitors: Sequence[Visitor], pipeline: str, named: Mapping[str, Sequence[str]]) -> None:
    """
    Everything that can be read, asked for by each: of programs every GET of the gateway's own document, with each of the values that
    `named` has for what its path names; of browsers every page of the console, and the page of every id.
    """
    values = {"pipeline": [pipeline], **named}
    paths = [path for path, methods in visitors[0].ask("/openapi.json").fact["paths"].items() if "get" in methods]
    read = [one + ("?for_s=0" if one == f"/v1/{pipeline}/live" else "") for path in paths for one in _filled(path, values)]
    tabs = [f"/{pipeline}/{tab.path}" if tab.path else "/" for tab in TABS]
    pages = [*tabs, *(f"/{pipeline}/events/{quote(id)}" for id in named["id"])]
    for visitor in visitors:
        for path in pages if isinstance(visitor, Browser) else read:
            visitor.ask(path)


def _filled(path: str, values: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The path with each of the values of the first thing that it names, and so on. Raises KeyError for one that has none."""
    before, brace, after = path.partition("{")
    if not brace:
        yield path
        return
    name, _, rest = after.partition("}")
    for value in values[name.partition(":")[0]]:
        yield from _filled(before + quote(value, safe="") + rest, values)
