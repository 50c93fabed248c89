"""A pipeline of its own on the shared servers, for tests of commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from driftline.clock import SystemClock
from driftline.contracts.messages import Writer
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.operate.addresses import Addresses
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Messages
from driftline.stream.kafka import Publisher

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class Place:
    """The pipeline, and where its servers are."""

    addresses: Addresses
    pipeline: Pipeline
    topics: Topics

    async def put(self, writer: Writer, *messages: Messages) -> None:
        """Publish as one of the pipeline's writers would."""
        publisher = Publisher(self.addresses.kafka, self.topics, Registry(self.addresses.registry), writer, SystemClock())
        await publisher.start()
        await publisher.send(*messages)
        await publisher.stop()


@pytest.fixture
async def place(kafka: str, redis_url: str, registry_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    """The flights pipeline under a name of its own, its topics made, two partitions for data."""
    pipeline = replace(load_pipeline("flights", ROOT / "pipelines"), name=f"o{uuid4().hex[:8]}", predictions="avro")
    topics = Topics.of(pipeline)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic.name, 2 if topic.partitioned else 1, 1) for topic in topics.by_kind().values()])
    await admin.close()
    yield Place(Addresses(kafka, redis_url, registry_url, tmp_path), pipeline, topics)
