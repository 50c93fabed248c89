"""One hostile model: what it is called, how it is hostile, who has to refuse it, and what has to be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ground import Ground


@dataclass(frozen=True)
class Hostile:
    """`make` lays it into a store and returns the digest to ask for; `message` is a part of the refusal."""

    name: str
    how: str
    refused_by: str
    message: str
    make: Callable[[Ground], str]


def graph(name: str, how: str, message: str, make: Callable[[Ground], bytes], *, refused_by: str = "graph") -> Hostile:
    """A signed bundle with an honest manifest and a hostile graph."""
    return Hostile(name, how, refused_by, message, lambda ground: ground.bundle(make(ground)))
