"""
An operator's commands: put on the log like everything else that moves the loop, and answered there.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from driftline.clock import Clock
from driftline.contracts.messages import Deployment, Operator, Report, Retrain, Source, Trained, Writer, as_messages, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Rejected
from driftline.operate.addresses import Addresses
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Messages
from driftline.stream.kafka import LogReader, Publisher

Answer = TypeVar("Answer")
WAIT_S = 0.2


def who() -> str:
    """Whoever is logged in: published with the command."""
    return getpass.getuser()


@asynccontextmanager
async def reading(addresses: Addresses, topic: Topic) -> AsyncIterator[LogReader]:
    """A started reader of a small topic, from its start."""
    reader = LogReader(addresses.kafka, topic, Registry(addresses.registry))
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


async def everything(addresses: Addresses, topic: Topic) -> list[Batch]:
    """All that a small topic holds now."""
    async with reading(addresses, topic) as reader:
        return list((await reader.read_to()).values())


def operator_command(clock: Clock, action: str, model: str, reason: str, by: str = "") -> Operator:
    """A command to the rollout, in the name of `by` or of whoever is logged in; an empty `model` means the one at hand."""
    return Operator(id=f"{action}-{clock.now_ms()}", action=action, model=model, who=by or who(), reason=reason)


def retrain_command(pipeline: Pipeline, clock: Clock, trigger: str, reason: str, by: str = "") -> Retrain:
    """A command to the trainer, in the name of `by` or of whoever is logged in; its time is filled in when it is sent."""
    return Retrain(id=f"{pipeline.name}-{trigger}-{clock.now_ms()}", trigger=trigger, time=0, who=by or who(), evidence={"because": reason})


async def send_to_rollout(addresses: Addresses, pipeline: Pipeline, clock: Clock, command: Operator, wait_s: float) -> Deployment:
    """
    Publish an operator's command on control and return the rollout's answer to it.

    Raises Rejected when the rollout does not answer within `wait_s`; the command stays on the log and will be answered.
    """
    topics = Topics.of(pipeline)
    async with reading(addresses, topics.deployments) as deployments, reading(addresses, topics.control) as control:
        await deployments.read_to()
        await control.read_to()
        await _publish(addresses, pipeline, clock, command)
        offset = await _first(control, wait_s, lambda batch: _offset_of(batch, command.id))
        answer = None if offset is None else await _first(deployments, wait_s, lambda batch: _answer_to(batch, offset))
    if answer is None:
        raise Rejected(f"no answer within {wait_s:g} s: is rollout running? The command is on {topics.control.name} and will be answered")
    return answer


async def send_to_trainer(addresses: Addresses, pipeline: Pipeline, clock: Clock, command: Retrain, wait_s: float) -> Trained:
    """
    Publish a retrain command, as of the last report, and return how it ended.

    Raises Rejected when there is no outcome within `wait_s`; the command stays on the log and will be answered.
    """
    topics = Topics.of(pipeline)
    async with reading(addresses, topics.summaries) as summaries:
        await summaries.read_to()
        await _publish(addresses, pipeline, clock, replace(command, time=await _time(addresses, topics)))
        outcome = await _first(summaries, wait_s, lambda batch: _outcome_of(batch, command.id))
    if outcome is None:
        raise Rejected(
            f"no outcome within {wait_s:g} s: is the trainer running? The command is on {topics.retrain.name} and will be answered"
        )
    return outcome


async def _publish(addresses: Addresses, pipeline: Pipeline, clock: Clock, command: Operator | Retrain) -> None:
    publisher = Publisher(
        addresses.kafka, Topics.of(pipeline), Registry(addresses.registry), Writer.OPERATOR, clock, client="driftline-cli"
    )
    await publisher.start()
    try:
        await publisher.send(command_messages(command, clock.now_ms() * 1_000_000))
    finally:
        await publisher.stop()


def command_messages(command: Operator | Retrain, at_ns: int) -> Messages:
    """A command for its topic. `at_ns`, above that of every command before it, is its coordinate: readers drop what is not above."""
    topic = "control" if isinstance(command, Operator) else "retrain"
    return as_messages(topic, command.message, [command], source=Source.OPERATORS, offsets=[at_ns], indexes=[0], partition=0, to=0)


async def _time(addresses: Addresses, topics: Topics) -> int:
    """The pipeline's clock, as the last report tells it; 0 before the first."""
    reports: list[Report] = [report for batch in await everything(addresses, topics.control) for report in facts_in(batch, "report")]
    return reports[-1].end if reports else 0


def facts_in(batch: Batch, message: str) -> list[Any]:
    """The facts of one kind in a batch; none when there are none."""
    table = batch[message]
    return [] if table is None else facts(table)


async def _first(reader: LogReader, wait_s: float, find: Callable[[Batch], Answer | None]) -> Answer | None:
    """The first thing that `find` finds in what arrives, or None after `wait_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while loop.time() < deadline:
        for batch in await reader.next(WAIT_S):
            found = find(batch)
            if found is not None:
                return found
    return None


def _offset_of(batch: Batch, command: str) -> int | None:
    table = batch["operator"]
    found = [] if table is None else [offset for offset, one in zip(table.offsets.tolist(), facts(table), strict=True) if one.id == command]
    return found[0] if found else None


def _answer_to(batch: Batch, offset: int) -> Deployment | None:
    table = batch["deployment"]
    found = [] if table is None else [one for cause, one in zip(table["offset"].tolist(), facts(table), strict=True) if cause == offset]
    return found[0] if found else None


def _outcome_of(batch: Batch, command: str) -> Trained | None:
    return next((one for one in facts_in(batch, "trained") if one.id == command), None)
