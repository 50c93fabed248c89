"""
State made anew from the log: forget what an operator keeps of a partition, so that it starts from the log's start; then compare.

The group's offset goes first and the rows after it, because a ledger that is missing beside a committed offset means that state
was lost, and is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.protocol.admin import DeleteGroupsRequest
from redis.asyncio import Redis

from driftline.clock import Clock
from driftline.errors import Fatal, Rejected
from driftline.operate.addresses import Addresses
from driftline.operate.status import read_readiness
from driftline.pipeline import Pipeline
from driftline.stream.ledger import Entry, connect, prefix_of

STATEFUL = {"feature": ("feature",), "labeler": ("labeler",), "drift": ("drift-journal", "drift-examples", "drift")}
KEPT = b"before:"  # in front of the old rows while they wait to be compared
GROUP_ID_NOT_FOUND = 69
COORDINATOR_TRIES = 20
ROWS_AT_ONCE = 1_000
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one operator's partition."""

    group: str
    partition: int
    rows: int
    differ: int | None = None  # None: not compared
    moved_on: bool = False  # the log has gone on meanwhile, so rows may differ rightly

    def __str__(self) -> str:
        compared = "" if self.differ is None else f", {self.differ:,} differ" + (" (the log has gone on since)" if self.moved_on else "")
        return f"{self.group}[{self.partition}]: {self.rows:,} rows{compared or ' forgotten'}"


async def forget(addresses: Addresses, pipeline: Pipeline, services: Sequence[str], partition: int | None, keep: bool) -> list[Rebuilt]:
    """
    Delete ledger and rows of `services` (or keep them aside), and their groups' offsets. Raises Rejected while one of them runs.
    """
    running = [service for service in services if await asyncio.to_thread(read_readiness, addresses, service) == "ready"]
    if running:
        raise Rejected(f"{', '.join(running)} is running: stop it, rebuild, start it again")
    groups = [f"{pipeline.name}-{operator}" for service in services for operator in STATEFUL[service]]
    await _delete_offsets(addresses.kafka, groups)
    client = connect(addresses.redis)
    try:
        found = [(group, number) for group in groups for number in await _partitions(client, group) if partition in (None, number)]
        return [Rebuilt(group, number, await _set_aside(client, group, number, keep)) for group, number in found]
    finally:
        await client.aclose()


async def _delete_offsets(kafka: str, groups: Sequence[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        for group in groups:
            answer = await admin._send_request(DeleteGroupsRequest([group]), await _coordinator(admin, group))
            for name, error in answer.results:
                if error not in (0, GROUP_ID_NOT_FOUND):
                    raise Fatal(f"the offsets of the group {name} could not be deleted: Kafka's error {error}")
    finally:
        await admin.close()


async def _coordinator(admin: AIOKafkaAdminClient, group: str) -> int:
    """The broker that keeps the group's offsets; a cluster in which nobody has committed yet takes a moment to choose one."""
    for _ in range(COORDINATOR_TRIES):
        try:
            broker: int = await admin.find_coordinator(group)
        except GroupCoordinatorNotAvailableError:
            await asyncio.sleep(POLL_S)
        else:
            return broker
    raise Fatal(f"Kafka names no coordinator for the group {group}")


async def _partitions(client: Redis, group: str) -> list[int]:
    """The partitions of which a ledger or rows are there."""
    found = set()
    async for key in client.scan_iter(match=f"{{{group}:*}}:*", count=ROWS_AT_ONCE):
        found.add(int(key.split(b"}", 1)[0].rpartition(b":")[2]))
    return sorted(found)


async def _keys(client: Redis, prefix: bytes) -> list[bytes]:
    return sorted({key async for key in client.scan_iter(match=prefix + b"*", count=ROWS_AT_ONCE)})


async def _set_aside(client: Redis, group: str, partition: int, keep: bool) -> int:
    """Delete or rename everything of the partition; returns how many rows there were, the ledger's own keys not counted."""
    prefix = prefix_of(group, partition)
    keys = await _keys(client, prefix)
    for at in range(0, len(keys), ROWS_AT_ONCE):
        async with client.pipeline(transaction=False) as pipe:
            for key in keys[at : at + ROWS_AT_ONCE]:
                if keep:
                    pipe.rename(key, KEPT + key)
                else:
                    pipe.delete(key)
            await pipe.execute()
    return sum(key.removeprefix(prefix) not in (b"ledger", b"tries") for key in keys)


async def compare(addresses: Addresses, forgotten: Sequence[Rebuilt], clock: Clock, wait_s: float) -> list[Rebuilt]:
    """
    Wait until each partition stands where it stood, compare its rows with those kept aside, and delete these.

    Raises Rejected when one is not there after `wait_s`; what was kept aside stays.
    """
    client = connect(addresses.redis)
    deadline = clock.monotonic_s() + wait_s
    try:
        return [await _compared(client, one, clock, deadline) for one in forgotten]
    finally:
        await client.aclose()


async def _compared(client: Redis, one: Rebuilt, clock: Clock, deadline: float) -> Rebuilt:
    prefix = prefix_of(one.group, one.partition)
    goal = await _next(client, KEPT + prefix + b"ledger")
    while (position := await _next(client, prefix + b"ledger")) < goal:
        if clock.monotonic_s() > deadline:
            raise Rejected(f"{one.group}[{one.partition}] stands at {position} of {goal}: is the service running? The old rows are kept")
        await asyncio.sleep(POLL_S)
    before, after = await _rows(client, KEPT + prefix), await _rows(client, prefix)
    differ = sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())
    await _drop(client, KEPT + prefix)
    return Rebuilt(one.group, one.partition, len(after), differ, moved_on=position > goal)


async def _next(client: Redis, key: bytes) -> int:
    value = cast(bytes | None, await client.get(key))
    return -1 if value is None else msgspec.msgpack.decode(value, type=Entry).next


async def _rows(client: Redis, prefix: bytes) -> dict[bytes, bytes | None]:
    keys = [key for key in await _keys(client, prefix) if key.removeprefix(prefix) not in (b"ledger", b"tries")]
    rows: dict[bytes, bytes | None] = {}
    for at in range(0, len(keys), ROWS_AT_ONCE):
        some = keys[at : at + ROWS_AT_ONCE]
        found = cast(list[bytes | None], await client.mget(some))
        rows.update(zip((key.removeprefix(prefix) for key in some), found, strict=True))
    return rows


async def _drop(client: Redis, prefix: bytes) -> None:
    keys = await _keys(client, prefix)
    for at in range(0, len(keys), ROWS_AT_ONCE):
        await client.delete(*keys[at : at + ROWS_AT_ONCE])
