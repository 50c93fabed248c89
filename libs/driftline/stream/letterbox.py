"""
Where readers that are no workers put what they could not take, and how many letters a pipeline has had lately.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition

from driftline.clock import Clock
from driftline.contracts.topics import Topic, Topics
from driftline.stream.batch import Refused
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import Publisher, answering
from driftline.stream.records import Polled

DAY_MS = 86_400_000


async def letters_lately(kafka: str, topics: Topics, clock: Clock) -> int:
    """
    How many letters all services together have put on the pipeline's dead-letter topic within a day, copies included. Offsets tell,
    so nothing is read. Raises Recoverable.
    """
    at = TopicPartition(topics.dead_letters.name, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False)
    try:
        async with answering(f"{at.topic}: cannot count the letters"):
            await consumer.start()
            first = (await consumer.offsets_for_times({at: clock.now_ms() - DAY_MS}))[at]
            end: int = (await consumer.end_offsets([at]))[at]
    finally:
        await consumer.stop()
    return 0 if first is None else end - int(first.offset)


class Letterbox:
    """Dead letters of one topic, sent by a producer of their own as soon as they are made."""

    def __init__(self, letters: DeadLetters, publisher: Publisher, topic: Topic, kafka: str, topics: Topics, clock: Clock) -> None:
        self._letters = letters
        self._publisher = publisher
        self._topic = topic
        self._kafka = kafka
        self._topics = topics
        self._clock = clock
        self._begun = False

    async def put(self, partition: int, polled: Polled, refused: Sequence[Refused]) -> None:
        """Return when they are acked. Raises Recoverable, and Fatal past the limit."""
        if not self._begun:
            self._letters.begin(await letters_lately(self._kafka, self._topics, self._clock))
            self._begun = True
        await self._publisher.send(*self._letters.of(self._topic.name, partition, polled, refused))
        await self._publisher.stop()  # there is seldom one, and no connection is kept for it
        self._letters.sent(self._topic.name, refused)
