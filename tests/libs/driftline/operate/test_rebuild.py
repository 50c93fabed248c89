"""State made anew from the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from driftline.clock import SystemClock
from driftline.errors import Rejected
from driftline.operate.rebuild import STATEFUL, compare, forget
from driftline.stream.kafka import Source
from driftline.stream.ledger import Entry, RedisLedger, connect

ROOT = Path(__file__).parents[4]


def entry(position: int) -> Entry:
    return Entry(position, {}, None, "cluster", {}, "digest", 1)


async def write(url: str, group: str, partition: int, position: int, rows: dict[bytes, bytes | None]) -> None:
    ledger = RedisLedger(connect(url), group, partition)
    await ledger.open()
    await ledger.commit(entry(position), rows)
    await ledger.close()


async def keys(url: str, pipeline: str) -> set[bytes]:
    client: Redis = connect(url)
    try:
        return {key async for key in client.scan_iter(match=f"*{pipeline}*")}
    finally:
        await client.aclose()


async def committed(place: Any, group: str) -> int | None:
    source = Source(place.addresses.kafka, place.topics.events.name, 0, group=group)
    await source.start()
    try:
        return await source.committed()
    finally:
        await source.stop()


async def commit(place: Any, group: str, offset: int) -> None:
    source = Source(place.addresses.kafka, place.topics.events.name, 0, group=group)
    await source.start()
    await source.mark(offset)
    await source.stop()


async def test_forgotten_state_is_gone_with_its_committed_offset(place: Any):
    """
    Ledger, rows and the group's offset of the service that was named; nobody else's.
    """
    name, redis = place.pipeline.name, place.addresses.redis
    for group, partition in ((f"{name}-feature", 0), (f"{name}-feature", 1), (f"{name}-labeler", 0)):
        await write(redis, group, partition, 5, {b"a": b"1", b"b": b"2"})
        await commit(place, group, 5)
    forgotten = await forget(place.addresses, place.pipeline, ["feature"], None, keep=False)
    assert [(one.group, one.partition, one.rows) for one in forgotten] == [(f"{name}-feature", 0, 2), (f"{name}-feature", 1, 2)]
    assert {key.split(b":")[0] for key in await keys(redis, name)} == {b"{" + f"{name}-labeler".encode()}
    assert await committed(place, f"{name}-feature") is None
    assert await committed(place, f"{name}-labeler") == 5


async def test_one_partition_can_be_rebuilt_alone(place: Any):
    """
    The others keep what they have.
    """
    name, redis = place.pipeline.name, place.addresses.redis
    for partition in (0, 1):
        await write(redis, f"{name}-feature", partition, 5, {b"a": b"1"})
    await forget(place.addresses, place.pipeline, ["feature"], 1, keep=False)
    assert {key.split(b"}")[0] for key in await keys(redis, name)} == {b"{" + f"{name}-feature:0".encode()}


@pytest.mark.parametrize(("row", "position", "differ", "moved_on"), [(b"1", 5, 0, False), (b"other", 5, 1, False), (b"other", 6, 1, True)])
async def test_new_rows_are_compared_with_those_that_were_kept(place: Any, row: bytes, position: int, differ: int, moved_on: bool):
    """
    Once the partition stands where it stood; the old rows are deleted then.
    """
    name, redis = place.pipeline.name, place.addresses.redis
    await write(redis, f"{name}-feature", 0, 5, {b"a": b"1", b"b": b"2"})
    forgotten = await forget(place.addresses, place.pipeline, ["feature"], None, keep=True)
    await write(redis, f"{name}-feature", 0, position, {b"a": row, b"b": b"2"})
    (compared,) = await compare(place.addresses, forgotten, SystemClock(), 5.0)
    assert (compared.rows, compared.differ, compared.moved_on) == (2, differ, moved_on)
    assert [key for key in await keys(redis, name) if key.startswith(b"before:")] == []


async def test_a_comparison_that_never_comes_keeps_the_old_rows(place: Any):
    """
    The service was not started: the command says so, and what was kept is still there.
    """
    name, redis = place.pipeline.name, place.addresses.redis
    await write(redis, f"{name}-feature", 0, 5, {b"a": b"1"})
    forgotten = await forget(place.addresses, place.pipeline, ["feature"], None, keep=True)
    with pytest.raises(Rejected, match="is the service running"):
        await compare(place.addresses, forgotten, SystemClock(), 0.0)
    assert any(key.startswith(b"before:") for key in await keys(redis, name))


def test_every_operator_that_keeps_state_can_be_rebuilt():
    """
    The list of operators is that of the wirings that have a row format.
    """
    wired = set()
    for service in STATEFUL:
        text = (ROOT / "services" / service / "app.py").read_text()
        wired |= {part.split('"')[0] for part in text.split('service="')[1:]}
    assert wired == {operator for operators in STATEFUL.values() for operator in operators}
