"""
The page of refused records: why, how many, one sample of each without what it held, and how to send them again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from driftline.operate.board import Refusals
from driftline.operate.dead_letters import Letter
from driftline.pipeline import Pipeline

MEANS: Mapping[str, tuple[str, str]] = {  # by reason: what it means, what to do
    "undecodable": ("The bytes are neither the JSON nor the Avro that the stream has.", "Look at what the sender writes."),
    "contract": (
        "A field is missing, or of a type that the schema does not say.",
        "Mend the sender, or publish a new version of the schema.",
    ),
    "missing_id": ("There is no id, or an empty one: a record without one cannot be counted once.", "Mend the sender."),
    "bad_time": ("A time is none, or lies more than ten years back.", "Look at the sender's clock and units: milliseconds are wanted."),
    "future": ("It is visible more than five minutes ahead of the pipeline's clock.", "Look at the sender's clock."),
    "too_large": (
        "It is larger than a record may be, and may be kept in part.",
        "The sender has to send less; it cannot be replayed.",
    ),
    "schema": ("It names a schema that the registry does not know.", "Register the schema, then replay."),
    "poison": ("A process died with this record alone in hand, three times.", "This is a fault of ours: keep the record, and report it."),
    "late": ("Its window was reported already.", "Look why it came late; the report stays as it is."),
}


@dataclass(frozen=True, slots=True)
class Refused:
    """Records of one topic, refused by one service for one reason."""

    topic: str
    service: str
    reason: str
    count: int
    means: str
    advice: str
    sample: Letter | None
    show: str
    replay: str


def groups(pipeline: Pipeline, refusals: Sequence[Refusals]) -> tuple[Refused, ...]:
    """Those with the most records first."""
    return tuple(sorted((_refused(pipeline, one) for one in refusals), key=lambda one: (-one.count, one.topic, one.reason)))


def _refused(pipeline: Pipeline, one: Refusals) -> Refused:
    means, advice = MEANS.get(one.reason, ("", ""))
    sample = one.newest[-1] if one.newest else None
    command = f"driftline dead-letters {shlex.quote(pipeline.name)}"
    upstream = one.topic in {stream.topic for stream in pipeline.streams} and one.reason != "too_large"
    choice = f"--topic {shlex.quote(one.topic)} --reason {one.reason}"
    show = f"{command} show {shlex.quote(sample.place)}" if sample else f"{command} show {choice}"
    return Refused(
        one.topic, one.service, one.reason, one.count, means, advice, sample, show, f"{command} replay {choice}" if upstream else ""
    )
