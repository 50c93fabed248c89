"""Processes as they come up: settings, servers that are not there yet, and more processes than partitions."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from driftline.clock import SystemClock
from driftline.contracts.messages import Source, Writer
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.errors import Fatal
from driftline.settings import read
from driftline.stream.kafka import ensure_topics
from driftline.stream.membership import Member
from driftline.stream.operators import Follower, Operators, Wiring, WorkerSettings

NOWHERE = "127.0.0.1:1"


def operators(kafka: str, topics: Topics, name: str, **changed: Any) -> Operators:
    def core(_partition: int, _count: int) -> Any:
        raise Fatal("nothing is to be run")

    wiring = Wiring(service="toy", reads=topics.summaries, writes=[], writer=Writer.DRIFT, source=Source.SUMMARIES, core=core, row_format=1)
    pipeline: Any = SimpleNamespace(name=name, retention_ms=86_400_000, predictions="avro", digest="v1", tick_ms=5_000, streams=())
    settings = WorkerSettings(pipeline=name, registry="", kafka=kafka, **changed)
    return Operators(wiring, settings, pipeline, MemoryRegistry(), SystemClock())  # type: ignore[arg-type]  # in memory


async def test_a_process_that_owns_no_partition_is_ready_and_stays(kafka: str, redis_url: str) -> None:
    """
    A topic of one partition has work for one process; the other is no failure, and waits to be stopped.
    """
    name = f"o{uuid4().hex[:8]}"
    topics = Topics.of(SimpleNamespace(name=name, retention_ms=86_400_000))
    await ensure_topics(kafka, topics, 2)
    part = operators(kafka, topics, name, redis=redis_url, replica=1, replicas=2)
    task = asyncio.create_task(part.run())
    async with asyncio.timeout(30):
        while not part.ready:
            assert not task.done()
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    assert not task.done()
    part.stop()
    await asyncio.wait_for(task, 5)


async def test_a_member_that_the_group_gives_no_partition_is_ready_and_stays(kafka: str, redis_url: str) -> None:
    """
    The group has one partition, and it is another's.
    """
    name = f"o{uuid4().hex[:8]}"
    topics = Topics.of(SimpleNamespace(name=name, retention_ms=86_400_000))
    await ensure_topics(kafka, topics, 2)
    held: set[int] = set()

    async def hold(partitions: Any) -> None:
        held.clear()
        held.update(partitions)

    first = Member(kafka, topics.summaries.name, f"{name}-toy-members", lambda: held, SystemClock())
    holding = asyncio.create_task(first.run(hold))
    async with asyncio.timeout(30):
        while held != {0}:
            assert not holding.done()
            await asyncio.sleep(0.05)
    part = operators(kafka, topics, name, redis=redis_url, membership="group")
    task = asyncio.create_task(part.run())
    async with asyncio.timeout(30):
        while not part.ready:
            assert not task.done()
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    assert not task.done()
    part.stop()
    await asyncio.wait_for(task, 20)
    first.stop()
    await asyncio.wait_for(holding, 20)


class Refusing:
    """Stands for a worker whose partition must not go on."""

    ready = False

    def __init__(self, _operator: Any, partition: int, _clock: Any) -> None:
        self.partition = partition
        self.refused = ""

    async def run(self) -> None:
        self.refused = f"log[{self.partition}]: another log"

    def stop(self) -> None:
        """It has ended."""


@pytest.mark.parametrize("membership", ["ordinal", "group"])
async def test_a_process_whose_partitions_were_all_refused_ends_and_says_why(
    membership: str, kafka: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    """
    Whoever says which are its own; whoever runs it reads the reasons when it has ended.
    """
    monkeypatch.setattr("driftline.stream.operators.Worker", Refusing)
    name = f"o{uuid4().hex[:8]}"
    topics = Topics.of(SimpleNamespace(name=name, retention_ms=86_400_000))
    await ensure_topics(kafka, topics, 2)
    part = operators(kafka, topics, name, redis=redis_url, membership=membership)
    await asyncio.wait_for(part.run(), 30)
    assert part.refused == "log[0]: another log"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"DRIFTLINE_MEMBERSHIP": "groups"}, "DRIFTLINE_MEMBERSHIP is wrong"),
        ({"DRIFTLINE_MEMBERSHIP": "group", "DRIFTLINE_REPLICAS": "3"}, "DRIFTLINE_MEMBERSHIP is group.*DRIFTLINE_REPLICAS is set"),
        (
            {"DRIFTLINE_MEMBERSHIP": "group", "DRIFTLINE_REPLICA": "1", "DRIFTLINE_REPLICAS": "3"},
            "DRIFTLINE_MEMBERSHIP is group.*DRIFTLINE_REPLICA or",
        ),
        ({"DRIFTLINE_REPLICA": "1"}, "DRIFTLINE_REPLICA is 1; it must be from 0 to DRIFTLINE_REPLICAS - 1"),
    ],
)
def test_settings_that_do_not_say_whose_the_partitions_are_are_refused(changed: dict[str, str], words: str) -> None:
    """
    A process that shares them out in two ways would leave some to nobody.
    """
    with pytest.raises(Fatal, match=words):
        read(WorkerSettings, {"DRIFTLINE_PIPELINE": "toy", "DRIFTLINE_REGISTRY": "http://127.0.0.1:1", **changed})


async def test_servers_that_are_not_there_yet_are_waited_for() -> None:
    """
    Neither store nor broker answers: the process is not ready, goes on asking, and stops when told.
    """
    topics = Topics.of(SimpleNamespace(name="toy", retention_ms=86_400_000))
    parts: list[Any] = [
        operators(NOWHERE, topics, "toy", redis=f"redis://{NOWHERE}/0"),
        Follower(NOWHERE, topics.deployments, MemoryRegistry(), lambda _: None),  # type: ignore[arg-type]  # in memory
    ]
    tasks = [asyncio.create_task(part.run()) for part in parts]
    await asyncio.sleep(1.0)
    assert not any(task.done() for task in tasks) and not any(part.ready for part in parts)
    for part in parts:
        part.stop()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)


async def test_what_is_not_on_a_topic_is_not_waited_for(kafka: str) -> None:
    """
    All was taken that was there when the wait began, and it is not among it: a row may name what nobody ever published.
    """
    topics = Topics.of(SimpleNamespace(name=f"o{uuid4().hex[:8]}", retention_ms=86_400_000))
    await ensure_topics(kafka, topics, 1)
    follower = Follower(kafka, topics.deployments, MemoryRegistry(), lambda _: None)  # type: ignore[arg-type]  # in memory
    task = asyncio.create_task(follower.run())
    await follower.wait(lambda: False, 120, "deployment 7")
    assert follower.ready
    follower.stop()
    await asyncio.wait_for(task, 20)
