"""
Who is logged in at a browser. A session is a random number in a cookie and what it stands for in memory: the token itself is in no page,
no address, no log, and is not kept.

The cookie is for pages alone: what is under /v1 and /v2 never reads it, so that no other site's page can use a browser's log-in there.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from hmac import compare_digest

from driftline.clock import Clock
from driftline.operate.tokens import Holder, Tokens

from ..access import EVERYBODY

LIFE_S = 8 * 3_600.0
SESSIONS_MAX = 1_000
OF_ONE_MAX = 20  # whoever logs in more often ends sessions of their own, and nobody else's
ID_BYTES = 32


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody at a browser: who, the word that each of their forms has to bring, and until when."""

    holder: Holder
    form_word: str
    ends_s: float

    def is_from_our_form(self, word: str) -> bool:
        """Whether a form that brings `word` was made for this session."""
        return compare_digest(self.form_word.encode(), word.encode())


class Sessions:
    """
    All that are open, kept by the digests of their ids; past the limit the oldest ends. Without tokens everybody shares one, which no
    cookie names.
    """

    def __init__(self, tokens: Tokens | None, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._everybody = Session(EVERYBODY, secrets.token_urlsafe(ID_BYTES), float("inf"))

    @property
    def open(self) -> bool:
        """Whether nobody has to log in."""
        return self._tokens is None

    def begin(self, token: str) -> str | None:
        """Log in whoever holds this token. Returns the id for the cookie, or None when it is nobody's."""
        holder = None if self._tokens is None else self._tokens.holder(token)
        if holder is None:
            return None
        mine = [name for name, session in self._sessions.items() if session.holder == holder]
        for name in mine[: max(0, len(mine) + 1 - OF_ONE_MAX)]:
            del self._sessions[name]
        id = secrets.token_urlsafe(ID_BYTES)
        self._sessions[_digest(id)] = Session(holder, secrets.token_urlsafe(ID_BYTES), self._clock.monotonic_s() + LIFE_S)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return id

    def find(self, id: str | None) -> Session | None:
        """The session that a cookie names, while it lasts."""
        if self.open:
            return self._everybody
        found = self._sessions.get(_digest(id)) if id else None
        if found is not None and found.ends_s <= self._clock.monotonic_s():
            self.end(id)
            return None
        return found

    def end(self, id: str | None) -> None:
        """Log out."""
        if id:
            self._sessions.pop(_digest(id), None)


def _digest(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()
