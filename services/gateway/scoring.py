"""
Questions in, predictions out, by the same way that everybody's go: published to the topic of the question's stream, answered from the
topic of predictions.

What comes in within one turn of the event loop is checked and published together; while so many sends are under way, what comes in
meanwhile is the next. Whoever waits, waits on a future by the question's id.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from driftline.clock import Clock
from driftline.contracts import traceparent
from driftline.contracts.avro import frame
from driftline.contracts.registry import Registry
from driftline.errors import Recoverable, Rejected
from driftline.features.murmur2 import partitions_of
from driftline.features.upstream import names_of
from driftline.logs import log
from driftline.metrics import metric
from driftline.operate.predictions import Prediction
from driftline.pipeline import Pipeline
from driftline.stream.batch import Refused, Varlen, distinct
from driftline.stream.kafka import ACKS_S, Outlet, answering
from driftline.stream.parse import Arrived, Parser
from driftline.stream.records import Polled

from .core import Book, Standing

BATCH_MAX = 2_000
SENDS_MAX = 4  # under way at once
AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Awaited:
    """The question is published, and was not answered in time."""

    id: str


Outcome = Prediction | Awaited | Refused


@dataclass(frozen=True, slots=True)
class _Asked:
    value: bytes
    trace: bytes | None
    standing: asyncio.Future[str | Refused]  # the id, once it is published or known


class Scorer:
    """A part of the process: it owns the producer for the question's topic."""

    def __init__(self, kafka: str, pipeline: Pipeline, registry: Registry, clock: Clock, book: Book[Prediction], form: str) -> None:
        self._stream = pipeline.question
        self._pipeline = pipeline.name
        self._registry = registry
        self._clock = clock
        self._book = book
        self._avro = form == "avro"
        self._prefix = b""
        clear = replace(self._stream, pii=())  # intake hides what is personal, as ever
        self._parser = Parser(clear, registry, b"", names_of(pipeline))
        self._kafka = kafka
        self._outlet: Outlet | None = None
        self._partitions = 0
        self._queue: deque[_Asked] = deque()
        self._scheduled = False
        self._sends: set[asyncio.Task[None]] = set()
        self._waiting: defaultdict[str, set[asyncio.Future[Prediction]]] = defaultdict(set)
        self._stopping = asyncio.Event()
        self._broken = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether questions can be published."""
        return self._partitions > 0

    def stop(self) -> None:
        """Whoever waits is answered as far as there are answers; then leave."""
        self._stopping.set()

    def release(self) -> None:
        """Whoever waits for an answer now, waits no longer."""
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()

    async def run(self) -> None:
        """Be connected until stopped: after any error of a producer by another one."""
        while not self._stopping.is_set():
            try:
                await self._session()
            except Recoverable as fault:
                log.warning("connecting again", topic=self._stream.topic, because=str(fault))
                await asyncio.sleep(AGAIN_S)

    async def _session(self) -> None:
        if self._avro and not self._prefix:
            subject, schema = f"{self._stream.topic}-value", dict(self._stream.schema)
            self._prefix = frame(await asyncio.to_thread(self._registry.register, subject, schema))
        outlet = Outlet(self._kafka, f"{self._pipeline}-gateway")
        try:
            await outlet.start()
            self._broken.clear()
            self._outlet, self._partitions = outlet, await outlet.partitions(self._stream.topic)
            ends = [asyncio.create_task(one.wait()) for one in (self._stopping, self._broken)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            await asyncio.gather(*self._sends, return_exceptions=True)
        finally:
            self._outlet, self._partitions = None, 0
            await outlet.stop()

    def take(self, predictions: Sequence[Prediction]) -> None:
        """Predictions as they appear on their topic."""
        self._book.take(predictions)
        if self._waiting:
            for prediction in predictions:
                for future in self._waiting.pop(prediction.id, ()):
                    if not future.done():
                        future.set_result(prediction)
        metric("driftline_gateway_predictions_kept").labels(pipeline=self._pipeline).set(self._book.kept)

    async def score(self, values: Sequence[bytes], timeout_s: float, trace: bytes | None = None) -> list[Outcome]:
        """
        Publish questions, JSON as they came in, and wait for up to `timeout_s` for their predictions; one outcome each, in order. `trace`
        is the trace context of whoever asks.

        Raises Rejected when too many wait already, and Recoverable when they could not be published: then the same may be sent again.
        """
        if len(self._queue) + len(values) > BATCH_MAX * SENDS_MAX:
            raise Rejected("too many questions wait to be published")
        loop = asyncio.get_running_loop()
        asked = [_Asked(value, trace, loop.create_future()) for value in values]
        self._queue.extend(asked)
        self._schedule()
        await asyncio.wait([one.standing for one in asked])
        standings = [one.standing.result() for one in asked]
        found = [one if isinstance(one, Refused) else self._book.answer(one) or Awaited(one) for one in standings]
        late = {at: self._future(one.id) for at, one in enumerate(found) if isinstance(one, Awaited)}
        if late:
            await asyncio.wait(late.values(), timeout=timeout_s)
            for at, future in late.items():
                found[at] = self._settled(found[at], future)
        return found

    def _future(self, id: str) -> asyncio.Future[Prediction]:
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._waiting[id].add(future)
        return future

    def _settled(self, awaited: Outcome, future: asyncio.Future[Prediction]) -> Outcome:
        if future.done() and not future.cancelled():
            return future.result()
        if isinstance(awaited, Awaited) and (futures := self._waiting.get(awaited.id)) is not None:
            futures.discard(future)
            if not futures:
                del self._waiting[awaited.id]
        return awaited

    # Publishing

    def _schedule(self) -> None:
        if not self._scheduled and self._queue and len(self._sends) < SENDS_MAX:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Everything that came in until now is one send."""
        self._scheduled = False
        asked = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
        sending = asyncio.create_task(self._published(asked))
        self._sends.add(sending)
        sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        self._sends.discard(sending)
        self._schedule()

    async def _published(self, asked: Sequence[_Asked]) -> None:
        """Whatever happens, everybody who asked is told."""
        try:
            told = await self._publish([one.value for one in asked], [one.trace for one in asked])
        except BaseException as error:
            for one in asked:
                if not one.standing.done():
                    one.standing.set_exception(error)
            if not isinstance(error, Recoverable):
                raise
            return
        for one, standing in zip(asked, told, strict=True):
            if one.standing.done():  # whoever asked is gone
                continue
            if isinstance(standing, Rejected):
                one.standing.set_exception(standing)
            else:
                one.standing.set_result(standing)

    async def _publish(self, values: Sequence[bytes], traces: Sequence[bytes | None]) -> list[str | Refused | Rejected]:
        """The id of each question that is on its topic now, or was before; why the others are refused, or cannot be taken now."""
        if self._outlet is None or not self._partitions:
            raise Recoverable(f"{self._stream.topic} cannot be written to now")
        n = len(values)
        polled = Polled.of(range(n), [None] * n, values, [0] * n)
        arrived, refused = self._parser.parse(polled, self._clock.now_ms())
        told: dict[int, str | Refused | Rejected] = {one.offset: one for one in refused}
        fresh, now_s = [], self._clock.monotonic_s()
        for at, (offset, id) in enumerate(zip(arrived.offsets.tolist(), arrived.ids.texts(), strict=True)):
            told[offset] = id
            try:
                if self._book.ask(id, now_s) is Standing.NEW:
                    fresh.append(at)
            except Rejected as busy:
                told[offset] = busy
        if fresh:
            questions = arrived.take(np.array(fresh, np.int64))
            told_of = traceparent.headers(Varlen.optional([traces[at] for at in questions.offsets.tolist()]))
            await self._send(questions, polled.values.take(questions.offsets), told_of)
        return [told[at] for at in range(n)]

    async def _send(self, fresh: Arrived, values: Varlen, headers: Varlen) -> None:
        outlet, now_ms = self._outlet, self._clock.now_ms()
        if outlet is None:
            raise Recoverable(f"{self._stream.topic} cannot be written to now")
        values = Varlen.of(self._prefix + body for body in fresh.bodies) if self._avro else values
        homes, topic = partitions_of(fresh.keys, self._partitions), self._stream.topic
        parts: Mapping[int, np.ndarray] = {to: np.flatnonzero(homes == to) for to in distinct(homes)}
        try:
            async with answering("not published", ACKS_S):
                puts = (
                    outlet.put(topic, to, fresh.keys.take(mine), values.take(mine), np.arange(len(mine)), now_ms, headers.take(mine))
                    for to, mine in parts.items()
                )
                for failure in await asyncio.gather(*puts, return_exceptions=True):
                    if failure is not None:
                        raise failure
        except BaseException:
            self._book.forget(fresh.ids.texts())
            self._broken.set()
            raise
        finally:
            metric("driftline_gateway_waiting").labels(pipeline=self._pipeline).set(self._book.waiting)
