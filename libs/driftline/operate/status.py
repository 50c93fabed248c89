"""
Is a pipeline healthy? Its processes, how far each is behind on the log, which model serves, which alarms are open.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table as Grid

from driftline.access import kafka_client
from driftline.contracts.messages import Deployment, Report
from driftline.contracts.topics import Topics
from driftline.errors import Fatal, Recoverable
from driftline.operate.addresses import Addresses
from driftline.operate.commands import everything, facts_in
from driftline.operate.models import day
from driftline.operate.processes import read_services
from driftline.pipeline import Pipeline
from driftline.stream.connect import connect


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind on one topic, over all partitions."""

    group: str
    topic: str
    position: int
    messages: int


@dataclass
class Status:
    """What was found. `troubles` is empty when all is well."""

    services: dict[str, str] = field(default_factory=dict)  # by name: ready, or what is wrong
    lags: list[Lag] = field(default_factory=list)
    deployment: Deployment = field(default_factory=Deployment.none)
    report: Report | None = None

    @property
    def troubles(self) -> list[str]:
        """What keeps the pipeline from being healthy, in words."""
        return [f"{name}: {state}" for name, state in self.services.items() if state != "ready"]


async def read_status(addresses: Addresses, pipeline: Pipeline) -> Status:
    """Ask the processes and the logs. Raises Fatal when Kafka does not answer or the topics are not there."""
    topics = Topics.of(pipeline)
    status = Status(services=await asyncio.to_thread(read_services, addresses), lags=await read_lags(addresses.kafka, pipeline.name))
    for batch in await everything(addresses, topics.deployments):
        status.deployment = facts_in(batch, "deployment")[-1]
    for batch in await everything(addresses, topics.control):
        status.report = next(iter(reversed(facts_in(batch, "report"))), None)
    return status


async def read_lags(kafka: str, pipeline: str) -> list[Lag]:
    """Committed offsets of the pipeline's groups against the ends of what they read. Raises Fatal when Kafka does not answer."""
    try:
        return await _lags(kafka, pipeline)
    except (KafkaError, Recoverable) as error:
        raise Fatal(f"Kafka at {kafka} does not answer: {error!r}") from error


async def _lags(kafka: str, pipeline: str) -> list[Lag]:
    admin = AIOKafkaAdminClient(**kafka_client(kafka))
    consumer = AIOKafkaConsumer(**kafka_client(kafka))
    await asyncio.gather(connect(admin, kafka), connect(consumer, kafka))
    try:
        groups = sorted(group for group, *_ in await admin.list_consumer_groups() if group.startswith(f"{pipeline}-"))
        return [lag for group in groups for lag in await _lags_of(admin, consumer, group)]
    finally:
        await asyncio.gather(admin.close(), consumer.stop())


async def _lags_of(admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, group: str) -> list[Lag]:
    committed = {at: one.offset for at, one in (await admin.list_consumer_group_offsets(group)).items() if one.offset >= 0}
    ends: dict[TopicPartition, int] = await consumer.end_offsets(list(committed)) if committed else {}
    topics = sorted({at.topic for at in committed})
    return [
        Lag(
            group,
            topic,
            sum(offset for at, offset in committed.items() if at.topic == topic),
            sum(ends[at] - offset for at, offset in committed.items() if at.topic == topic),
        )
        for topic in topics
        if "__assignor" not in topic
    ]


def print_status(status: Status, console: Console) -> None:
    """Tables: processes, lags; then the model and the alarms."""
    grid = Grid("process", "state", box=None, pad_edge=False)
    for name, state in status.services.items():
        grid.add_row(name, state)
    console.print(grid)
    grid = Grid("group", "topic", "position", "behind", box=None, pad_edge=False)
    for lag in status.lags:
        grid.add_row(lag.group, lag.topic, f"{lag.position:,}", f"{lag.messages:,}")
    console.print(grid)
    deployment = status.deployment
    arms = ", ".join(f"{arm.model} ({arm.role} {arm.share:.0%})" for arm in deployment.arms) or "none"
    console.print(f"model: {arms}; deployment {deployment.version}, {deployment.state}: {deployment.reason}", highlight=False)
    console.print(f"last report: {day(status.report.end) if status.report else 'none'}; {_alarms(status.report)}", highlight=False)


def _alarms(report: Report | None) -> str:
    alarms: list[Any] = report.body.get("alarms", []) if report else []
    if not alarms:
        return "no alarm open"
    quality = [alarm for alarm in alarms if alarm.get("subject") == "quality"]
    drifted = [str(alarm.get("subject", "")).removeprefix("input:") for alarm in alarms if alarm not in quality]
    told = ["quality: the control chart is beyond its limit"] if quality else []
    return "; ".join([*told, *([f"beyond the limit of PSI: {', '.join(drifted)}"] if drifted else [])])
