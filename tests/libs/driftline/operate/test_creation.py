"""`driftline topics`, on a real broker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from uuid import uuid4

import pytest

from driftline.contracts.topics import Topics
from driftline.errors import Recoverable
from driftline.operate.creation import make_topics
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.kafka import describe


def pipeline_of_its_own() -> Pipeline:
    """The flights, under names that nobody else of the session uses."""
    name, flights = f"t{uuid4().hex[:8]}", load_pipeline("flights")
    return replace(flights, name=name, streams=tuple(replace(stream, topic=f"{name}-{stream.topic}") for stream in flights.streams))


async def there(kafka: str, own: Iterable[str], upstream: Iterable[str], at_least: int) -> Mapping[str, int]:
    """Partitions by topic, once so many of them are known: a broker tells of what was made a moment later."""
    found: Mapping[str, int] = {}
    while sum(map(bool, found.values())) < at_least:
        found = (await describe(kafka, [*own, *upstream])).partitions
    return found


async def test_topics_are_made_once_and_stay_as_they_are(kafka: str) -> None:
    """
    Again, with another count, changes nothing; the applications' topics only where that is asked for.
    """
    pipeline = pipeline_of_its_own()
    upstream = [stream.topic for stream in pipeline.streams]
    own = {topic.name: 3 if topic.partitioned else 1 for topic in Topics.of(pipeline).by_kind().values()}
    await make_topics(kafka, pipeline, 3, upstream=False)
    assert await there(kafka, own, upstream, at_least=len(own)) == own | dict.fromkeys(upstream, 0)
    await make_topics(kafka, pipeline, 5, upstream=True)
    assert await there(kafka, own, upstream, at_least=len(own) + len(upstream)) == own | dict.fromkeys(upstream, 5)


async def test_a_kafka_that_does_not_answer_is_named() -> None:
    """
    Whoever set the variable is told what it was.
    """
    with pytest.raises(Recoverable, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        await make_topics("127.0.0.1:1", pipeline_of_its_own(), 1, upstream=False)
