"""
The labeler process: the journal in, examples out; what waits for its outcome is kept in Redis.
"""

from __future__ import annotations

from driftline.contracts.registry import Registry
from driftline.pipeline import load_pipeline

from driftline.clock import Clock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.topics import Topics
from driftline.stream.operators import Operators, Wiring, WorkerSettings, ops
from driftline.stream.process import Process

from .core import ROW_FORMAT, Labeler

Settings = WorkerSettings


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline = load_pipeline(settings.pipeline)
    topics = Topics.of(pipeline)
    wiring = Wiring(
        service="labeler",
        reads=topics.journal,
        writes=[topics.examples],
        writer=Writer.LABELER,
        source=Source.JOURNAL,
        core=lambda partition, _: Labeler(pipeline, partition),
        row_format=ROW_FORMAT,
    )
    return Process("labeler", [Operators(wiring, settings, pipeline, Registry(settings.registry), clock)], ops(settings, "labeler"))
