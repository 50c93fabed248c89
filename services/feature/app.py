"""
The feature process: the pipeline's log in, rows and outcomes out, the windows of every entity in Redis.
"""

from __future__ import annotations

from driftline.clock import Clock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.features import tiles
from driftline.pipeline import load_pipeline
from driftline.stream.operators import Operators, Wiring, WorkerSettings, ops
from driftline.stream.process import Process

from .core import Feature

Settings = WorkerSettings


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline = load_pipeline(settings.pipeline)
    topics = Topics.of(pipeline)
    wiring = Wiring(
        service="feature",
        reads=topics.events,
        writes=[topics.features, topics.journal],
        writer=Writer.FEATURE,
        source=Source.EVENTS,
        core=lambda partition, _: Feature(pipeline, partition),
        row_format=tiles.ROW_FORMAT,
    )
    return Process("feature", [Operators(wiring, settings, pipeline, Registry(settings.registry), clock)], ops(settings, "feature"))
