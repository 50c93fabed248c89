"""
The real loop over one partition without a broker: a `Stage` runs a `Worker` whose source is fed batch by batch, whose sink encodes
what it is given and keeps it, and whose ledger is in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from driftline.clock import SystemClock
from driftline.contracts.messages import Writer
from driftline.contracts.topics import Topic, Topics
from driftline.pipeline import Pipeline
from driftline.stream.batch import Messages
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import MESSAGE_BYTES_MAX, Cluster
from driftline.stream.ledger import MemoryLedger, MemoryStore
from driftline.stream.records import Decoder, Encoder, Polled, SchemaRegistry
from driftline.stream.worker import Operator, Worker

Sent = tuple[str, bytes | None, bytes]  # kind of the topic, key, value


class Feed:
    """A `Source` that gives what it was fed, and says when all of it was taken."""

    def __init__(self) -> None:
        self.held = Polled.of([], [], [], [])
        self.taken = asyncio.Event()
        self.news = asyncio.Event()
        self.starts = 0
        self.closed = False
        self._at = 0

    def put(self, polled: Polled) -> None:
        """Go on with these records; the last of those before stays, for whoever looks at what it applied last."""
        held = self.held
        if len(held):  # a copy, for a part of it would keep the bytes of all that ever came before
            before = Polled.of([held.last], [held.keys.get(-1)], [held.values.get(-1)], [int(held.timestamps[-1])])
            polled = Polled.concat([before, polled])
        self.held = polled
        self.taken.clear()
        self.news.set()

    async def start(self) -> None:
        self.starts += 1

    async def bounds(self) -> tuple[int, int]:
        return 0, self._end()

    async def end_now(self) -> int:
        return self._end()

    def _end(self) -> int:
        return self.held.last + 1 if len(self.held) else 0

    def end(self) -> int:
        return self._end()

    async def committed(self) -> None:
        return None

    async def note(self) -> str:
        return ""

    def seek(self, offset: int) -> None:
        self._at = offset

    async def poll(self, records_max: int, timeout_ms: int) -> Polled | None:
        first = self.held.below(self._at)
        polled = self.held.part(first, first + records_max)
        if len(polled):
            self._at = polled.last + 1
            return polled
        self.taken.set()
        if self.closed:
            return None
        self.news.clear()
        await self.news.wait()  # longer than the loop would: a stage may wait for the others for as long as they take
        return await self.poll(records_max, timeout_ms)

    async def mark(self, offset: int, metadata: str = "") -> None:
        return None

    async def stop(self) -> None:
        return None


class Kept:
    """A `Sink` that encodes and keeps. Letters are kept as (offset, reason)."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.sent: list[Sent] = []
        self.letters: dict[int, str] = {}

    async def start(self) -> None:
        return None

    async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
        found: list[tuple[str, int, int, Sent]] = []
        for one in messages:
            values = self._encoder.values(one, partition)
            keys = [None] * len(one) if one.keys is None else one.keys.tolist()
            largest = max((len(value) + len(key or b"") for key, value in zip(keys, values, strict=True)), default=0)
            assert largest <= MESSAGE_BYTES_MAX, f"a message of {largest} bytes for {one.topic} would stop the service"
            if one.topic == "dead-letters":
                reasons = one.columns["reason"].texts()  # type: ignore[union-attr]
                self.letters |= dict(zip(np.asarray(one.columns["offset"]).tolist(), reasons, strict=True))
                continue
            rows = zip(one.order.tolist(), keys, values, strict=True)
            found += [(one.topic, order, len(found), (one.topic, key, value)) for order, key, value in rows]
        self.sent += [sent for *_, sent in sorted(found, key=lambda row: row[:3])]
        return len(messages)

    async def stop(self) -> None:
        return None


@dataclass
class Subject:
    """One operator, as its app wires it."""

    service: str
    pipeline: Pipeline
    registry: SchemaRegistry
    reads: Topic
    writes: Sequence[Topic]
    writer: Writer
    source: int
    core: Callable[[], Any]
    stateful: bool = True

    @cached_property
    def encoder(self) -> Encoder:
        """Of what it writes."""
        letters = Topics.of(self.pipeline).dead_letters
        return Encoder({topic.kind: topic for topic in (*self.writes, letters)}, self.registry, self.writer)

    @cached_property
    def decoder(self) -> Decoder:
        """Of what it reads."""
        return Decoder(self.reads, self.registry, self.pipeline)


@dataclass
class Stage:
    """A worker of `subject` over partition 0, going on from `values` as they are in the store."""

    subject: Subject
    values: dict[bytes, bytes] = field(default_factory=dict)
    last: Polled | None = None  # what the ledger's anchor looks at

    def __post_init__(self) -> None:
        subject = self.subject
        self.store = MemoryStore()
        self.store.values = dict(self.values)
        self._feed = Feed()
        if self.last is not None:
            self._feed.held = self.last
        self._sink = Kept(subject.encoder)
        group = f"{subject.pipeline.name}-{subject.service}"
        operator = Operator(
            service=subject.service,
            pipeline=subject.pipeline.name,
            topic=subject.reads.name,
            group=group,
            digest="d",
            row_format=1,
            cluster=Cluster("memory", {}),
            core=lambda _: subject.core(),
            source=lambda _: self._feed,  # type: ignore[arg-type, return-value]
            sink=lambda _: self._sink,  # type: ignore[arg-type, return-value]
            ledger=(lambda _: MemoryLedger(self.store, group, 0)) if subject.stateful else None,
            decoder=subject.decoder,
            dead_letters=DeadLetters(subject.pipeline.name, subject.service, subject.source, 10**9),
        )
        self._worker = Worker(operator, 0, SystemClock())
        self._task: asyncio.Task[None] | None = None

    async def feed(self, polled: Polled) -> tuple[list[Sent], dict[int, str]]:
        """What was sent because of `polled`, and the letters by offset. Raises what the worker raises."""
        self._sink.sent, self._sink.letters = [], {}
        self._feed.put(polled)
        if self._task is None:
            self._task = asyncio.create_task(self._worker.run())
        taken = asyncio.create_task(self._feed.taken.wait())
        await asyncio.wait({taken, self._task}, return_when=asyncio.FIRST_COMPLETED)
        taken.cancel()
        if self._task.done():
            self._task.result()
        assert not self._worker.refused, self._worker.refused
        assert self._feed.starts == 1, "the worker had to acquire its partition again"
        return self._sink.sent, self._sink.letters

    async def stop(self) -> None:
        self._worker.stop()
        self._feed.closed = True
        self._feed.news.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def state(self) -> dict[bytes, bytes]:
        """The rows and the ledger."""
        return self.store.values
