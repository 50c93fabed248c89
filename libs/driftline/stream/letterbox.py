"""
Where readers that are no workers put what they could not take.
"""

from __future__ import annotations

from collections.abc import Sequence

from driftline.clock import Clock
from driftline.contracts.topics import Topic, Topics
from driftline.stream.batch import Refused
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import Publisher, letters_lately
from driftline.stream.records import Polled


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
        self._letters.sent(self._topic.name, partition, refused)
