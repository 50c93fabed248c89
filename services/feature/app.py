"""
The feature process: the pipeline's log in, rows and outcomes out, the windows of every entity in Redis.
"""

from __future__ import annotations

from driftline.clock import Clock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.features import tiles
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.operators import Operators, Wiring, WorkerSettings, ops
from driftline.stream.process import Process

from .core import ENTITIES_MAX, Feature


class Settings(WorkerSettings, frozen=True, kw_only=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    entities_max: int = ENTITIES_MAX  # in memory, of one partition

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entities_max < 1:
            raise ValueError(f"DRIFTLINE_ENTITIES_MAX is {self.entities_max}; it must be 1 at least")


def wirings(settings: Settings, pipeline: Pipeline) -> list[Wiring]:
    """The operators of this service."""
    topics = Topics.of(pipeline)
    feature = Wiring(
        service="feature",
        reads=topics.events,
        writes=[topics.features, topics.journal],
        writer=Writer.FEATURE,
        source=Source.EVENTS,
        core=lambda partition, _: Feature(pipeline, partition, settings.entities_max),
        row_format=tiles.ROW_FORMAT,
        reach_ms=_reach_ms(pipeline),
    )
    return [feature]


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline, registry = load_pipeline(settings.pipeline), Registry(settings.registry)
    parts = [Operators(wiring, settings, pipeline, registry, clock) for wiring in wirings(settings, pipeline)]
    return Process("feature", parts, ops(settings, "feature"))


def _reach_ms(pipeline: Pipeline) -> int:
    """How far back a row looks: the longest window with its offset, or the memory of ids, and what may come late."""
    aggregates = [one for view in pipeline.views for feature in view.features for _, one in feature.terms]
    windows = [one.window_ms + one.ending_ms for one in aggregates]
    late = max(stream.lateness_ms for stream in pipeline.streams)
    return max([*windows, *(stream.duplicates_ms for stream in pipeline.streams)]) + late
