"""The audit chain on a real broker: made by the rollout through kills and writers at once, proved by the command, broken on purpose."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from running import Site, until

from driftline.clock import SystemClock
from driftline.contracts.chain import seal
from driftline.contracts.messages import Release, Source, Writer, as_messages
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic
from driftline.operate.audit import Record as Logged
from driftline.operate.audit import _records
from driftline.operate.commands import command_messages, operator_command, retrain_command
from driftline.stream.batch import Messages
from driftline.stream.kafka import Publisher
from driftline.stream.whole import as_written


async def put(site: Site, writer: Writer, *messages: Messages) -> None:
    publisher = Publisher(site.kafka, site.topics, Registry(site.environment["DRIFTLINE_REGISTRY"]), writer, SystemClock())
    await publisher.start()
    await publisher.send(*messages)
    await publisher.stop()


async def rewrite(kafka: str, topic: Topic, records: list[Logged]) -> None:
    """As somebody who may: delete it, make it again and write what he likes, stamped as it was."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_topics([topic.name])
    await until(lambda: is_gone(admin, topic.name))
    await admin.create_topics([NewTopic(topic.name, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all")
    await producer.start()
    for one in records:
        await producer.send_and_wait(topic.name, one.value, one.key, partition=0, timestamp_ms=one.timestamp)
    await producer.stop()


async def is_gone(admin: AIOKafkaAdminClient, topic: str) -> bool:
    return topic not in await admin.list_topics()


@pytest.fixture
async def site(kafka: str, redis_url: str, registry_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """
    Five records of control, all answered: a release, four commands of three people at once; the rollout was killed in between. Of two
    commands to the trainer the release has sealed bob's.
    """
    site = Site({"DRIFTLINE_KAFKA": kafka, "DRIFTLINE_REDIS": redis_url, "DRIFTLINE_REGISTRY": registry_url}, tmp_path)
    await site.create()
    clock = SystemClock()
    await to_trainer(site, "to see", "bob")
    told = {"base_rate": 0.2, "commands": {"from": 0, "sha256": seal(as_sealed(await commanded(site)))}}
    release = Release("m-1", "d" * 64, "accepted", "good", True, 86_400_000, "first", "c", "trainer", told)
    at = {"source": Source.RETRAIN, "offsets": [0], "indexes": [0], "partition": 0, "to": 0}
    await put(site, Writer.TRAINER, as_messages("control", "release", [release], **at))
    with site.process("rollout") as rollout:
        await until(lambda: site.is_ready("rollout"))
        ann = command_messages(operator_command(clock, "pause", "", "a holiday", "ann"), clock.now_ms() * 1_000_000)
        eve = command_messages(operator_command(clock, "resume", "", "it is over", "eve"), clock.now_ms() * 1_000_000 + 500)
        pause = ("models", "pause", "-p", site.name, "--because", "by hand", "--wait-s", "0.1")
        sending = asyncio.gather(
            put(site, Writer.OPERATOR, ann), put(site, Writer.OPERATOR, eve), site.command(*pause), site.command(*pause)
        )
        rollout.send_signal(signal.SIGKILL)
        await sending
    await to_trainer(site, "once more", "zoe")
    with site.process("rollout"):
        await until(lambda: all_answered(site))
    yield site


async def to_trainer(site: Site, why: str, who: str) -> None:
    clock = SystemClock()
    asked = retrain_command(site.pipeline, clock, "operator", why, who)
    await put(site, Writer.OPERATOR, command_messages(asked, clock.now_ms() * 1_000_000))


async def commanded(site: Site) -> list[Logged]:
    """The commands to the trainer, as they are on the log."""
    return list(_records((await as_written(site.kafka, site.topics.retrain.name))[1]))


def as_sealed(records: list[Logged]) -> list[tuple[int, int, bytes | None, bytes | None]]:
    return [(one.offset, one.timestamp, one.key, one.value) for one in records]


async def all_answered(site: Site) -> bool:
    return len(await site.records(site.topics.deployments)) == 5


async def test_the_chain_is_whole_and_names_who_did_what(site: Site):
    """
    Killed with -9 while three people write at once: whole all the same. The command says who, what, when, why, and what came of it.
    """
    audit = await site.command("audit", site.name, "--chain")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    lines = audit.stdout.splitlines()
    assert lines[-1] == "the chain is whole"
    by_ann = next(line for line in lines if " ann " in line)
    assert "pause" in by_ann and "a holiday" in by_ann and f"{site.topics.control.name}@" in by_ann
    assert any(" eve " in line and "it is over" in line for line in lines)
    assert any(" bob " in line and "to see" in line and "not answered yet" in line for line in lines)
    assert sum("by hand" in line for line in lines) == 2
    assert f"{site.topics.retrain.name}: 2 commands, 1 sealed by a release, 1 not sealed" in lines
    head = next(line.split()[-1] for line in lines if line.startswith("  head: @4 "))
    assert (await site.command("audit", site.name, "--chain", "--expect", head)).returncode == 0
    assert (await site.command("audit", site.name, "--chain", "--expect", "f" * 64)).returncode == 1


def by_name(records: list[Logged], name: bytes, another: bytes) -> list[Logged]:
    """What somebody did was another's doing."""
    return [Logged(one.offset, one.timestamp, one.key, (one.value or b"").replace(name, another)) for one in records]


CHANGES: list[tuple[Callable[[list[Logged]], list[Logged]], str]] = [
    (lambda records: by_name(records, b"ann", b"eve"), "or its answer was altered"),
    (lambda records: records[:2] + records[3:], "@2 was removed"),
    (lambda records: [*records[:2], records[4], *records[2:]], "@2 was put in"),
]


async def test_a_log_that_was_written_anew_is_found(site: Site):
    """
    A record altered, removed, put in: the command names its place, and its exit status is 1.
    """
    original = list(_records((await as_written(site.kafka, site.topics.control.name))[1]))
    for change, words in CHANGES:
        await rewrite(site.kafka, site.topics.control, change(original))
        audit = await site.command("audit", site.name, "--chain")
        assert audit.returncode == 1
        assert [line for line in audit.stdout.splitlines() if "BROKEN" in line and words in line], audit.stdout + audit.stderr
        assert audit.stdout.splitlines()[-1] == "the chain is broken"
    await rewrite(site.kafka, site.topics.control, original)
    assert (await site.command("audit", site.name, "--chain")).returncode == 0


async def test_a_command_to_the_trainer_that_was_changed_is_found(site: Site):
    """
    It is on another log: the release that came of it, or after it, seals it, and is in the chain. What no release came after is not.
    """
    original = await commanded(site)
    for changed in (by_name(original, b"bob", b"eve"), original[1:]):
        await rewrite(site.kafka, site.topics.retrain, changed)
        audit = await site.command("audit", site.name, "--chain")
        assert audit.returncode == 1
        assert f"BROKEN: {site.topics.retrain.name}@0 to @0: a command was altered, removed or put in" in audit.stdout, audit.stdout
    await rewrite(site.kafka, site.topics.retrain, by_name(original, b"zoe", b"eve"))
    assert (await site.command("audit", site.name, "--chain")).returncode == 0
