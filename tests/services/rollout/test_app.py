"""The rollout process against a real broker: started as a supervisor starts it, killed, and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from faust.transport.drivers.aiokafka import Consumer

from driftline.clock import SystemClock
from driftline.contracts.messages import Deployment, Fact, Release, Report, Source, Writer, as_messages, facts
from driftline.contracts.registry import MemoryRegistry, Registry
from driftline.contracts.topics import Topics
from driftline.operate.addresses import Addresses
from driftline.operate.commands import operator_command, send_to_rollout
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import LogReader, Publisher
from driftline.stream.records import Decoder, Encoder, Polled
from services.rollout.app import ControlPlane, Entry, Folding, Settings

DAY = 86_400_000
WAIT_S = 60.0
SCHEMA = {
    "type": "record",
    "name": "Asked",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "key", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "amount", "type": "int"},
    ],
}
DECLARATION = """
\"\"\"The smallest pipeline that can be rolled out.\"\"\"

from driftline import Budget, Label, Logistic, Pipeline, Rollout, Stream, View, f

asked = Stream("asked.v1.avsc", topic="{name}-asked", id="id", key="key", time="at")
told = Stream("asked.v1.avsc", topic="{name}-told", id="id", key="key", time="at")
recent = View(of=asked, by="key", asked_1h=f.count(asked, "1h"))

pipeline = Pipeline(
    "{name}",
    owner="somebody@example.org",
    question=asked,
    inputs=[recent],
    label=Label("large", of=told, when=told.amount >= 10, horizon="1d", if_silent="negative"),
    decide=Budget(alert_rate=0.1),
    model=Logistic(),
    rollout=Rollout(shadow="3d", shares=[0.25, 1.0], hold="1d"),
)
"""


class Site:
    """One pipeline of its own on the shared broker, with the process under test."""

    def __init__(self, kafka: str, registry_url: str, folder: Path) -> None:
        self.kafka = kafka
        self.folder = folder
        self.registry = Registry(registry_url)
        self.pipeline = _declared(folder, f"r{uuid4().hex[:8]}")
        self.topics = Topics.of(self.pipeline)
        self.addresses = Addresses(kafka, "", registry_url, folder)

    @contextmanager
    def process(self, at: Path | None = None, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """`driftline run rollout`, in the folder `at`, killed at the end if it is still there."""
        environment = {
            **os.environ,
            **variables,
            "DRIFTLINE_KAFKA": self.kafka,
            "DRIFTLINE_REGISTRY": self.addresses.registry,
            "DRIFTLINE_PIPELINES": str(self.folder),
            "DRIFTLINE_RUN_DIR": str(self.folder),
            "DRIFTLINE_SESSION_TIMEOUT_S": "2",
        }
        command = [sys.executable, "-m", "driftline", "run", "rollout", "--pipeline", self.pipeline.name]
        with (self.folder / "rollout.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stderr=log, cwd=at)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    async def is_ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            ops = json.loads((self.folder / "rollout.json").read_text())["ops"]
            await asyncio.to_thread(urllib.request.urlopen, f"{ops}/readyz", timeout=2)
        except (OSError, urllib.error.URLError):
            return False
        return True

    @asynccontextmanager
    async def publisher(self, writer: Writer = Writer.DRIFT) -> AsyncIterator[Publisher]:
        publisher = Publisher(self.kafka, self.topics, self.registry, writer, SystemClock())
        await publisher.start()
        try:
            yield publisher
        finally:
            await publisher.stop()

    async def answers(self, until: int) -> tuple[list[tuple[int, Deployment]], int]:
        """First copies of all deployments, by control offset, once that of offset `until` is there; and how many copies came."""
        reader = LogReader(self.kafka, self.topics.deployments, self.registry)
        await reader.start()
        found: list[tuple[int, Deployment]] = []
        try:
            async with asyncio.timeout(WAIT_S):
                while not found or found[-1][0] < until:
                    for batch in await reader.next(0.2):
                        if (table := batch["deployment"]) is not None:
                            found += zip(table["offset"].tolist(), facts(table), strict=True)
                return found, reader.copies
        finally:
            await reader.stop()


def _declared(folder: Path, name: str) -> Pipeline:
    (folder / name).mkdir()
    (folder / name / "pipeline.py").write_text(DECLARATION.format(name=name).lstrip())
    (folder / name / "asked.v1.avsc").write_text(json.dumps(SCHEMA))
    return load_pipeline(name, folder)


@pytest.fixture
async def site(kafka: str, registry_url: str, tmp_path: Path) -> Site:
    site = Site(kafka, registry_url, tmp_path)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic.name, 1, 1) for topic in site.topics.by_kind().values()])
    await admin.close()
    return site


async def put(publisher: Publisher, fact: Fact, number: int) -> None:
    source = Source.RETRAIN if isinstance(fact, Release) else Source.SUMMARIES
    await publisher.send(as_messages("control", fact.message, [fact], source=source, offsets=[number], indexes=[0], partition=0, to=0))


def report(day: int) -> Report:
    return Report(start=(day - 1) * DAY, end=day * DAY, retrains=(), body={})


def first_release(day: int) -> Release:
    return Release("m-1", "d" * 64, "accepted", "good", True, day * DAY, "first", "c", "trainer", {"base_rate": 0.2})


async def test_every_control_record_is_answered_once_through_kills(site: Site):
    """
    Killed with -9 twice while reports stream in: one first copy of an answer each, in order, the state carried through.
    """
    records = 40
    async with site.publisher(Writer.TRAINER) as trainer:
        await put(trainer, first_release(1), 1)

    async def stream_reports() -> None:
        async with site.publisher() as drift:
            for day in range(1, records):
                await put(drift, report(day), day)
                await asyncio.sleep(0.2)

    streaming = asyncio.create_task(stream_reports())
    answered = -1
    for _ in range(2):
        with site.process() as process:
            found, _ = await site.answers(answered + 3)
            answered = found[-1][0]
            process.send_signal(signal.SIGKILL)
    with site.process() as process:
        await streaming
        found, _ = await site.answers(records - 1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    assert [offset for offset, _ in found] == list(range(records))
    assert [one.move for _, one in found] == ["champion"] + ["nothing"] * (records - 1)
    assert {one.version for _, one in found} == {1}
    assert found[-1][1].time == (records - 1) * DAY


async def test_nothing_is_lost_between_a_recovered_table_and_the_first_commit(site: Site, monkeypatch: pytest.MonkeyPatch):
    """
    Killed before the group committed: records flow while Faust still seeks, and those that wait for the agent are thrown away
    by it. Here both take their time.
    """
    async with site.publisher(Writer.TRAINER) as trainer:
        await put(trainer, first_release(1), 1)
    with site.process():
        await site.answers(0)
    assert await committed(site) is None, "killed too late: nothing is shown"
    async with site.publisher() as drift:
        for day in range(2, 12):
            await put(drift, report(day), day)
    monkeypatch.setattr(Consumer, "seek_to_committed", later(1.0, Consumer.seek_to_committed))
    monkeypatch.setattr(ControlPlane, "_catch_up", later(2.0, ControlPlane._catch_up))
    settings = Settings(site.pipeline.name, site.addresses.registry, site.kafka, session_timeout_s=2.0)
    part = ControlPlane(settings, site.pipeline, SystemClock())
    running = asyncio.create_task(part.run())
    found, _ = await site.answers(10)
    part.stop()
    await running
    assert [offset for offset, _ in found] == list(range(11))


def later(seconds: float, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def late(*args: Any) -> Any:
        await asyncio.sleep(seconds)
        return await method(*args)

    return late


async def committed(site: Site) -> int | None:
    """The group's offset."""
    admin = AIOKafkaAdminClient(bootstrap_servers=site.kafka)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(f"{site.pipeline.name}-rollout")
    finally:
        await admin.close()
    return next((one.offset for tp, one in offsets.items() if tp.topic == site.topics.control.name), None)


@pytest.mark.parametrize(("ended", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
async def test_no_folder_is_left_by_a_process_however_it_ends(site: Site, tmp_path: Path, ended: signal.Signals, status: int):
    """
    Its table is in memory, so it has nothing to keep on disk, neither where it was started nor with the system's temporary files.
    """
    empty = tmp_path / "empty"
    empty.mkdir()
    async with site.publisher(Writer.TRAINER) as trainer:
        await put(trainer, first_release(1), 1)
    with site.process(empty, TMPDIR=str(empty)) as process:
        await site.answers(0)
        process.send_signal(ended)
        assert await asyncio.to_thread(process.wait, 20) == status
    assert list(empty.iterdir()) == []


async def test_a_table_that_was_lost_is_folded_from_control_again(site: Site):
    """
    The group's offset is past the records, the changelog is empty: what is missing is read from the log itself.
    """
    async with site.publisher(Writer.TRAINER) as trainer:
        await put(trainer, first_release(1), 1)
    with site.process() as process:
        await site.answers(0)
        await asyncio.sleep(1.0)  # the offset is committed every half a second
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    admin = AIOKafkaAdminClient(bootstrap_servers=site.kafka)
    await admin.start()
    await admin.delete_topics([f"{site.pipeline.name}-rollout-state-changelog"])
    await admin.close()
    async with site.publisher() as drift:
        await put(drift, report(2), 1)
    with site.process():
        found, copies = await site.answers(1)
    assert [(offset, one.version, one.move) for offset, one in found] == [(0, 1, "champion"), (1, 1, "nothing")]
    assert copies == 1


async def test_copies_and_unreadable_records_are_answered_and_change_nothing(site: Site):
    """
    A writer that repeats itself after a crash, and bytes that are no message: each gets its answer, the latter a dead letter.
    """
    async with site.publisher(Writer.TRAINER) as trainer:
        await put(trainer, first_release(1), 1)
        await put(trainer, first_release(1), 1)
    producer = AIOKafkaProducer(bootstrap_servers=site.kafka)
    await producer.start()
    await producer.send_and_wait(site.topics.control.name, b"no message", partition=0)
    await producer.stop()
    with site.process():
        found, _ = await site.answers(2)
        assert await site.is_ready()
    assert [one.move for _, one in found] == ["champion", "nothing", "nothing"]
    assert "copy" in found[1][1].reason
    assert "could not be read" in found[2][1].reason
    reader = LogReader(site.kafka, site.topics.dead_letters, site.registry)
    await reader.start()
    letters = (await reader.read_to())[0].tables["dead_letter"].records()
    await reader.stop()
    assert [(letter["topic"], letter["offset"], letter["reason"]) for letter in letters] == [(site.topics.control.name, 2, "undecodable")]


async def test_an_operators_command_gets_its_answer(site: Site):
    """
    The command line puts it on control and waits for what the rollout says to it.
    """
    clock = SystemClock()
    async with site.publisher(Writer.TRAINER) as trainer:
        await put(trainer, first_release(1), 1)
    with site.process():
        await site.answers(0)
        paused = await send_to_rollout(site.addresses, site.pipeline, clock, operator_command(clock, "pause", "", "holidays"), WAIT_S)
        again = await send_to_rollout(site.addresses, site.pipeline, clock, operator_command(clock, "pause", "", ""), WAIT_S)
    assert (paused.move, paused.state) == ("paused", "idle, paused")
    assert "holidays" in paused.reason
    assert (again.move, again.version) == ("nothing", paused.version)


async def test_a_report_of_another_shape_is_set_aside_and_the_next_is_answered(site: Site):
    """
    Its body is free JSON, and a candidate is on trial whose rows it is asked for: the answer is nothing, the record a dead letter.
    """
    registry = MemoryRegistry()
    letters = DeadLetters(site.pipeline.name, "rollout", Source.CONTROL, 10)
    folding = Folding(site.pipeline, Decoder(site.topics.control, registry, site.pipeline), letters)
    second = replace(first_release(2), model="m-2", digest="e" * 64, first=False)
    odd = replace(report(3), body={"models": {"e" * 64: {"n": "many"}}})
    entry, moves, reasons = Entry(), [], []
    for offset, (fact, writer) in enumerate(
        [(first_release(1), Writer.TRAINER), (second, Writer.TRAINER), (odd, Writer.DRIFT), (report(4), Writer.DRIFT)]
    ):
        source = Source.RETRAIN if isinstance(fact, Release) else Source.SUMMARIES
        made = as_messages("control", fact.message, [fact], source=source, offsets=[offset], indexes=[0], partition=0)
        (value,) = Encoder({"control": site.topics.control}, registry, writer).values(made, 0)
        entry, decision, found = folding.step(entry, Polled.of([offset], [None], [value], [30 * DAY]))
        moves.append(decision.deployment.move)
        reasons += [one.columns["reason"].texts() for one in found]
    assert moves == ["champion", "shadow", "nothing", "nothing"]
    assert reasons == [["contract"]]
    assert entry.state.time == 4 * DAY
