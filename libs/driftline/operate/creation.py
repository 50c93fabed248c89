"""`driftline topics`: the topics that a pipeline needs, made once, on whichever Kafka there is."""

from __future__ import annotations

from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError

from driftline.contracts.topics import Topics
from driftline.errors import Fatal
from driftline.pipeline import Pipeline
from driftline.stream.kafka import create_topics, ensure_topics


async def make_topics(kafka: str, pipeline: Pipeline, partitions: int, *, upstream: bool) -> None:
    """
    The pipeline's topics, and with `upstream` those of the applications, for a broker that has nobody else. What exists stays as it is.

    Raises Recoverable when Kafka does not answer, Fatal when it refuses.
    """
    try:
        await ensure_topics(kafka, Topics.of(pipeline), partitions)
        if upstream:
            await create_topics(kafka, [NewTopic(stream.topic, partitions, 1) for stream in pipeline.streams])
    except KafkaError as error:
        raise Fatal(f"the topics could not be made: Kafka at {kafka} says {error!r}") from error
