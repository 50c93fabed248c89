"""
The rollout process: the one Faust app. One agent reads `<p>-control`, one changelog-backed table holds the state.

The table says up to which offset it has folded control, so it is the same state machine on every restart: what is at or below
that offset is dropped, what is missing above it is read from control itself. Each record goes in this order: its deployment
acked, then the table, then the table's changelog acked, then the group's offset. A crash in between sends the same deployment
with the same coordinate again, and consumers drop the copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faust
import msgspec
from faust.tables.recovery import Recovery
from faust.types import EventT, StreamT
from msgspec import Struct

from driftline.clock import Clock
from driftline.contracts.chain import START, link
from driftline.contracts.messages import Deployment, Writer, as_messages, facts
from driftline.contracts.messages import Source as Log
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Fatal, Invalid, Recoverable
from driftline.logs import log
from driftline.metrics import metric
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.batch import Batch, Messages, Refused
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import Publisher, Source, letters_lately
from driftline.stream.process import Ops, Process
from driftline.stream.records import Coordinate, Decoder, Lane, Polled, crc, drop_seen

from .core import Decision, decide, unmoved
from .fixes import AckedTable, FolderlessApp, RewoundConsumer, credentials
from .machine import Stage, State

CONTROL_PARTITION = 0
KEY = b"rollout"


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    pipeline: str
    registry: str
    kafka: str = "127.0.0.1:9092"
    dead_letters_max: int = 10_000
    session_timeout_s: float = 6.0  # how long the group waits for a process that was killed
    replication: int = 1  # of the table's changelog
    ops_host: str = "127.0.0.1"
    ops_port: int = 0
    run_dir: str = ""


class Entry(Struct, frozen=True):
    """The table's one value: the state, and what it was folded from."""

    offset: int = -1  # the last control record that is in the state
    crc: int = 0  # of that record, so that another log of the same name is noticed
    seen: dict[Lane, Coordinate] = {}
    state: State = State()
    chain: str = START  # the link of the last answer


ENCODE = msgspec.msgpack.Encoder().encode
DECODE = msgspec.msgpack.Decoder(Entry).decode


def build(settings: Settings, clock: Clock) -> Process:
    """The process, wired; nothing connects before it runs."""
    part = ControlPlane(settings, load_pipeline(settings.pipeline), clock)
    return Process(
        "rollout", [part], Ops("rollout", settings.ops_port, Path(settings.run_dir) if settings.run_dir else None, settings.ops_host)
    )


class Folding:
    """One control record after another into decisions. Knows no broker: it is given records and gives entries."""

    def __init__(self, pipeline: Pipeline, decoder: Decoder, dead_letters: DeadLetters) -> None:
        self._pipeline = pipeline
        self._decoder = decoder
        self._dead_letters = dead_letters
        self._topic = Topics.of(pipeline).control.name

    def step(self, entry: Entry, polled: Polled) -> tuple[Entry, Decision, list[Messages]]:
        """Apply the one record of `polled`: the entry after it, the decision, and the dead letter when it could not be read."""
        plan = self._pipeline.rollout
        batch, refused = self._decoder.decode(CONTROL_PARTITION, polled)
        fresh, seen = drop_seen(batch, entry.seen)
        decision = None if refused or not len(fresh) else self._decided(entry.state, fresh)
        if len(fresh) and decision is None:
            refused = [Refused(polled.first, "contract", "what it says cannot be applied: its body is of another shape")]
        if refused:
            seen = entry.seen  # what was refused has not taken its coordinate
            decision = unmoved(plan, entry.state, f"the record could not be read: {refused[0].reason}")
        elif decision is None:
            decision = unmoved(plan, entry.state, "a copy of a record that was answered before")
        self._count("dead_lettered" if refused else "applied" if len(fresh) else "duplicate")
        letters = self._dead_letters.of(self._topic, CONTROL_PARTITION, polled, refused)
        self._dead_letters.sent(self._topic, CONTROL_PARTITION, refused)
        decision = self._linked(entry.chain, polled, decision)
        return Entry(polled.first, crc(polled.values[0]), seen, decision.state, decision.deployment.chain), decision, letters

    def _linked(self, before: str, polled: Polled, decision: Decision) -> Decision:
        """With the link of the audit chain that this record makes."""
        found = link(before, polled.first, int(polled.timestamps[0]), polled.keys.get(0), polled.values.get(0), decision.deployment)
        return replace(decision, deployment=replace(decision.deployment, chain=found))

    def _decided(self, state: State, fresh: Batch) -> Decision | None:
        """What follows from the record; None when its body, which is free JSON, is not what a report or a release says."""
        (table,) = fresh.tables.values()
        try:
            return decide(self._pipeline.rollout, state, facts(table)[0])
        except (Invalid, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return None  # nothing is lost: the state is a value, and the record goes to the dead letters

    def _count(self, outcome: str) -> None:
        labels = {"pipeline": self._pipeline.name, "service": "rollout", "topic": self._topic}
        metric("driftline_messages_read_total").labels(**labels).inc()
        metric("driftline_messages_total").labels(**labels, outcome=outcome).inc()


class ControlPlane:
    """The Faust app as a part of our process."""

    refused = ""

    def __init__(self, settings: Settings, pipeline: Pipeline, clock: Clock) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._topics = Topics.of(pipeline)
        self._registry = Registry(settings.registry)
        self._clock = clock
        self._dead_letters = DeadLetters(pipeline.name, "rollout", Log.CONTROL, settings.dead_letters_max)
        self._folding = Folding(pipeline, Decoder(self._topics.control, self._registry, pipeline), self._dead_letters)
        self._publisher: Publisher | None = None
        self._app: faust.App | None = None
        self._table: Any = None
        self._checked = False
        self._ended: asyncio.Future[None] | None = None

    @property
    def ready(self) -> bool:
        """True when the table is what its changelog says, and control is being read."""
        app = self._app
        if app is None or not app.started or app.rebalancing:
            return False
        recovery: Recovery = app.tables.recovery  # type: ignore[attr-defined]  # Faust's protocol of its tables leaves it out
        return recovery.completed.is_set()

    def stop(self) -> None:
        """Finish the record in hand, then leave."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def run(self) -> None:
        """Until `stop`. Raises Recoverable or Fatal: then the process is to be started again, or looked at."""
        self._ended = asyncio.get_running_loop().create_future()
        self._publisher = Publisher(self._settings.kafka, self._topics, self._registry, Writer.ROLLOUT, self._clock, client="rollout")
        self._app = self._make()
        try:
            await self._publisher.start()
            self._dead_letters.begin(await letters_lately(self._settings.kafka, self._topics, self._clock))
            await self._app.start()
            await _until_ended(self._app, self._ended)
        finally:
            await self._app.stop()
            await self._publisher.stop()

    def _make(self) -> faust.App:
        """The app: its topic, its table, its agent and its chore. Timeouts are such that a killed process is replaced in seconds."""
        session_s = self._settings.session_timeout_s
        app = FolderlessApp(
            f"{self._pipeline.name}-rollout",
            broker=f"kafka://{self._settings.kafka}",
            broker_credentials=credentials(),
            store="memory://",
            Table=AckedTable,
            topic_partitions=1,
            topic_replication_factor=self._settings.replication,
            stream_recovery_delay=0.0,
            broker_session_timeout=session_s,
            broker_rebalance_timeout=session_s,
            broker_heartbeat_interval=session_s / 4,
            broker_request_timeout=max(20.0, 2 * session_s),
            broker_commit_interval=0.5,
            producer_linger=0.0,
            web_enabled=False,
            loghandlers=[],
            logging_config={"version": 1, "disable_existing_loggers": False},
        )
        app.transport.Consumer = RewoundConsumer  # type: ignore[misc]  # of this app alone, not of its class
        control = app.topic(self._topics.control.name, key_serializer="raw", value_serializer="raw", value_type=bytes, key_type=bytes)
        self._table = app.Table("state", partitions=1, key_type=bytes, value_type=bytes)
        app.agent(control, name="rollout")(self._agent)
        app.crontab("0 * * * *", on_leader=True)(self._tell_hourly)
        return app

    async def _agent(self, stream: StreamT[bytes]) -> None:
        """
        Take control's records one by one. An error ends the process with the record not acked, for Faust would ack it and go on.
        """
        async for event in stream.events():
            try:
                await self._take(event)
            except Exception as error:
                if self._ended is not None and not self._ended.done():
                    self._ended.set_exception(error)
                await asyncio.get_running_loop().create_future()

    async def _take(self, event: EventT[bytes]) -> None:
        message = event.message
        if not self._checked or message.offset > self._entry().offset + 1:
            await self._catch_up(message.offset)
            self._checked = True
        polled = Polled.of([message.offset], [message.key], [message.value], [round(message.timestamp * 1000)])
        if message.offset > self._entry().offset:
            await self._apply(polled)

    def _entry(self) -> Entry:
        value = self._table.get(KEY)
        return Entry() if value is None else DECODE(value)

    async def _catch_up(self, offset: int) -> None:
        """
        Once after a start: see that control is the log that the table was folded from, and read what lies between the two.

        There is something in between when the changelog lost what the group's offset has passed.
        """
        entry = self._entry()
        source = Source(self._settings.kafka, self._topics.control.name, CONTROL_PARTITION)
        await source.start()
        try:
            start, end = await source.bounds()
            at = max(start, entry.offset + 1)
            if entry.offset >= start:
                await self._verify(source, entry, end)
            source.seek(at)
            while at < offset:
                for polled in await _next(source, offset - at):
                    await self._apply(polled)
                    at = polled.first + 1
        finally:
            await source.stop()

    async def _verify(self, source: Source, entry: Entry, end: int) -> None:
        """Raises Fatal when control does not hold the record that the table took last."""
        last: Sequence[Polled] = ()
        if entry.offset < end:
            source.seek(entry.offset)
            last = await _next(source, 1)
        if not last or (last[0].offsets[0], crc(last[0].values[0])) != (entry.offset, entry.crc):
            raise Fatal(
                f"{self._topics.control.name}@{entry.offset} is not the record that the rollout took last: this is another log. "
                f"Delete the topic {self._table.changelog_topic_name} to fold it from its start"
            )

    async def _apply(self, polled: Polled) -> None:
        entry, decision, letters = self._folding.step(self._entry(), polled)
        offset = polled.first
        answer = as_messages(
            "deployments",
            "deployment",
            [decision.deployment],
            source=Log.CONTROL,
            offsets=[offset],
            indexes=[0],
            partition=CONTROL_PARTITION,
            to=0,
        )
        await self._published(answer, *letters)
        self._table[KEY] = ENCODE(entry)
        await self._table.written
        self._tell(decision.deployment, offset)

    async def _published(self, *messages: Messages) -> None:
        if self._publisher is None:
            raise Fatal("the rollout was not started")
        await self._publisher.send(*messages)

    def _tell(self, deployment: Deployment, offset: int) -> None:
        name = self._pipeline.name
        metric("driftline_rollout_moves_total").labels(pipeline=name, move=deployment.move).inc()
        metric("driftline_deployment_version").labels(pipeline=name, service="rollout").set(deployment.version)
        stage = deployment.state.partition(",")[0]
        for known in Stage:
            metric("driftline_rollout_state").labels(pipeline=name, state=known.value).set(known.value == stage)
        if deployment.move != "nothing":
            log.info(
                "moved", offset=offset, version=deployment.version, move=deployment.move, state=deployment.state, reason=deployment.reason
            )

    async def _tell_hourly(self) -> None:
        """A chore of the wall clock, done by one process of the group: say in the log where the rollout stands."""
        state = self._entry().state
        log.info("stands", version=state.version, state=state.stage.value, paused=state.paused, queued=len(state.queue))


async def _until_ended(app: faust.App, ended: asyncio.Future[None]) -> None:
    """Until told to stop. Raises what the agent raised, and Recoverable when Faust itself gave up."""
    await app.wait_first(ended)
    if not ended.done():
        raise Recoverable(f"Faust stopped: {app.crash_reason!r}")
    ended.result()


async def _next(source: Source, records_max: int) -> list[Polled]:
    """The next records, one by one. Raises Recoverable when there are none although there should be."""
    polled = await source.poll(min(records_max, 500), 10_000)
    if polled is None:
        raise Recoverable("control could not be read")
    return [polled.part(at, at + 1) for at in range(len(polled))]
