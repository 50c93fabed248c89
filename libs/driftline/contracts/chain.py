"""
The audit chain: a digest over every record of control, in the log's order, with the answer that it got, each over the one before.

Rollout alone computes it, because it alone reads control one record after the other and answers each exactly once: however many write
commands at once, their order is that of the log. So a lost race between writers leaves no trace here, and a record that was
altered, removed or put in breaks the link of its place. Commands to the trainer are on another log; each release, which is on control,
seals all that there were up to its own. See docs/decisions/0019.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from driftline.contracts.messages import Deployment, canonical_json

START = ""  # what comes before the first link
# What of an answer a link is over: the fields of the version that the chain began with, so that links stay when there are more.
ANSWERED = ("version", "move", "state", "reason", "time", "arms", "shadows", "salt", "fallback_score")


def link(before: str, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None, answer: Deployment) -> str:
    """
    The link after `before`: SHA-256 of it, of the record of control as it is on the log, and of the answer to it, in hexadecimal.

    Lengths go before what has one (-1 where there is none), so that no two records read the same.
    """
    told = answer.to_record()
    answered = canonical_json({name: told[name] for name in ANSWERED}).encode()
    return _digest((before.encode(), struct.pack(">qq", offset, timestamp_ms), key, value, answered))


def seal(records: Iterable[tuple[int, int, bytes | None, bytes | None]]) -> str:
    """SHA-256 of records of a log, in its order, each its offset, timestamp in ms, key and value, as they are on it."""
    return _digest(part for offset, timestamp_ms, key, value in records for part in (struct.pack(">qq", offset, timestamp_ms), key, value))


def _digest(parts: Iterable[bytes | None]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(struct.pack(">q", -1 if part is None else len(part)) + (part or b""))
    return digest.hexdigest()
