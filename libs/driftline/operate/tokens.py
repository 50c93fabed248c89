"""
Bearer tokens: who may ask for what over HTTP. The file holds digests alone, so whoever reads it can ask for nothing.

One line a token: its name, its roles, and the SHA-256 of the token. A token is 32 random bytes, so a digest without salt and
without stretching cannot be searched for.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from hmac import compare_digest
from pathlib import Path

from driftline.errors import Fatal, Invalid
from driftline.settings import read_secret

VARIABLE = "DRIFTLINE_TOKENS_FILE"
TOKEN_BYTES = 32
TOKENS_MAX = 10_000
PREFIX = "dl_"  # so that a scanner of repositories can tell a token that slipped in
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Role(StrEnum):
    """What a token may do. Every role but `anyone` includes viewer."""

    ANYONE = "anyone"  # no token needed
    VIEWER = "viewer"
    SCORER = "scorer"
    OPERATOR = "operator"
    APPROVER = "approver"


GIVEN = tuple(role for role in Role if role is not Role.ANYONE)  # what a token can be given


@dataclass(frozen=True, slots=True)
class Holder:
    """Whoever holds a token: the name that goes on the log with a command, and the roles."""

    name: str
    roles: frozenset[Role]

    def may(self, needed: Role) -> bool:
        """Whether one of the roles is the needed one, or includes it."""
        return needed in self.roles or needed is Role.ANYONE or (needed is Role.VIEWER and bool(self.roles))


class Tokens:
    """The holders by the digests of their tokens."""

    def __init__(self, holders: Iterable[tuple[str, Holder]]) -> None:
        self._holders = [(digest.encode(), holder) for digest, holder in holders]

    def __len__(self) -> int:
        return len(self._holders)

    def holder(self, token: str) -> Holder | None:
        """Whose token it is. Every line is compared, each in a time that tells nothing, so that none tells how near a guess was."""
        digest = digest_of(token).encode()
        found = None
        for known, holder in self._holders:
            if compare_digest(known, digest):
                found = holder
        return found


def digest_of(token: str) -> str:
    """What the file holds in the place of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def load_tokens(place: Path) -> Tokens:
    """The tokens file. Raises Fatal when everybody can read it, when it holds no token, or naming the line that is wrong."""
    lines = read_secret(place, VARIABLE).splitlines()
    wanted = [(number, line.split("#")[0].split()) for number, line in enumerate(lines, 1)]
    holders = [_holder(place, number, words) for number, words in wanted if words]
    names = [holder.name for _, holder in holders]
    if not 0 < len(holders) <= TOKENS_MAX:
        raise Fatal(f"{VARIABLE}: {place} holds {len(holders)} tokens; make one: driftline tokens new NAME --role viewer")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Fatal(f"{VARIABLE}: {place} names {', '.join(twice)} twice")
    return Tokens(holders)


def _holder(place: Path, number: int, words: list[str]) -> tuple[str, Holder]:
    """One line. What is wrong with it is said without repeating it: somebody may have put the token itself there."""
    if len(words) != 3 or not NAME.fullmatch(words[0]) or not DIGEST.fullmatch(words[2]):
        raise Fatal(f"{VARIABLE}: line {number} of {place} is not: NAME ROLE[,ROLE] SHA256-OF-THE-TOKEN")
    roles = words[1].split(",")
    if unknown := set(roles) - set(GIVEN):
        raise Fatal(f"{VARIABLE}: line {number} of {place} has {len(unknown)} unknown roles; there are {', '.join(GIVEN)}")
    return words[2], Holder(words[0], frozenset(map(Role, roles)))


def new_token(name: str, roles: Collection[str]) -> tuple[str, str]:
    """A fresh token, and the line for the tokens file. Raises Invalid for a name or a role that cannot be."""
    if not NAME.fullmatch(name):
        raise Invalid("a token's name has 1 to 64 letters, digits and . _ @ + -, beginning with a letter or a digit")
    if not roles or set(roles) - set(GIVEN):
        raise Invalid(f"give one role at least, of {', '.join(GIVEN)}: driftline tokens new {name} --role viewer")
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return token, f"{name} {','.join(role for role in GIVEN if role in roles)} {digest_of(token)}"
