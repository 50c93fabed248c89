"""How partitions are shared out, how a process follows what it is told, and members of a group on a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from driftline.clock import ManualClock, SystemClock
from driftline.errors import Fatal, Recoverable
from driftline.stream import membership
from driftline.stream.kafka import create_topics
from driftline.stream.membership import Member, Shares, shared_out

PATIENCE_S = 30.0


def test_who_joins_is_given_what_is_above_the_others_shares():
    """
    And all else stays where it is.
    """
    assert shared_out(4, {"a": [0, 2], "b": [1, 3], "c": []}) == {"a": [0, 2], "b": [1], "c": [3]}


def test_what_a_dead_member_had_goes_to_those_that_are_left():
    """
    They keep what they hold.
    """
    assert shared_out(4, {"b": [1], "c": [3]}) == {"b": [1, 0], "c": [3, 2]}


def test_where_there_are_more_members_than_partitions_some_have_none():
    """
    Who holds one keeps it.
    """
    assert shared_out(1, {"a": [], "b": [0]}) == {"b": [0], "a": []}


@given(st.integers(0, 40), st.dictionaries(st.text("abc", min_size=1), st.sets(st.integers(0, 50)), min_size=1))
def test_each_partition_has_one_owner_and_shares_differ_by_one_at_most(partitions: int, held: dict[str, set[int]]) -> None:
    """
    Whatever members say that they hold: too much, the same as others, or what there is not.
    """
    shares = shared_out(partitions, held)
    assert shares.keys() == held.keys()
    assert sorted(partition for share in shares.values() for partition in share) == list(range(partitions))
    sizes = [len(share) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 40), st.integers(1, 6), st.randoms(use_true_random=False))
def test_no_more_partitions_move_than_must(partitions: int, members: int, chance: Any) -> None:
    """
    Of members that hold different ones, each keeps what it has up to its share.
    """
    owners = [chance.choice("abcdef"[:members]) for _ in range(partitions)]
    held = {name: [at for at, owner in enumerate(owners) if owner == name] for name in "abcdef"[:members]}
    shares = shared_out(partitions, held)
    for name, share in shares.items():
        assert len(set(share) & set(held[name])) == min(len(share), len(held[name]))


def test_while_it_is_not_known_how_many_partitions_there_are_nobody_is_told_that_there_are_none() -> None:
    """
    As while brokers restart: an answer of none would take every partition from everybody.
    """
    keeps = membership._KeepsWhatItHolds(lambda: [1])
    members = {"a": keeps.metadata(["topic"])}
    for known in (None, set()):
        cluster = SimpleNamespace(partitions_for_topic=lambda topic, known=known: known)
        with pytest.raises(KafkaError, match="topic: how many partitions it has is not known"):
            keeps.assign(cluster, members)
    shares = keeps.assign(SimpleNamespace(partitions_for_topic=lambda topic: {0, 1}), members)
    assert shares["a"].assignment == [("topic", [1, 0])]


class Work:
    """Stands for the worker of a partition: it goes on until it is stopped, and has then something in hand until `done`."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.stopped = asyncio.Event()
        self.done = asyncio.Event()
        self.fault: Exception | None = None

    async def run(self) -> None:
        await self.stopped.wait()
        if self.fault is not None:
            raise self.fault
        await self.done.wait()

    def stop(self) -> None:
        self.stopped.set()


class Hands:
    """Shares over stand-ins, with every worker that was ever begun."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.begun: list[Work] = []
        self.ended: list[int] = []
        self.shares = Shares(tasks, self._begin, self.ended.append)

    def _begin(self, partition: int) -> Any:
        self.begun.append(Work(partition))
        return self.begun[-1]

    def of(self, partition: int) -> Work:
        return next(one for one in reversed(self.begun) if one.partition == partition)

    def let_go(self) -> None:
        for one in self.begun:
            one.done.set()


async def test_what_stays_goes_on_and_what_goes_finishes_what_it_has_in_hand() -> None:
    """
    Only then does the call return, and only then is the partition forgotten; what came has been begun meanwhile.
    """
    async with asyncio.TaskGroup() as tasks:
        hands = Hands(tasks)
        assert hands.shares.workers is None
        await hands.shares.hold({0, 1})
        moving = asyncio.create_task(hands.shares.hold({1, 2}))
        await hands.of(0).stopped.wait()
        assert sorted(hands.shares.held()) == [1, 2]
        assert (hands.ended, moving.done()) == ([], False)
        hands.of(0).done.set()
        await moving
        assert hands.ended == [0]
        assert [one.partition for one in hands.begun] == [0, 1, 2]
        assert not hands.of(1).stopped.is_set()
        hands.let_go()
        await hands.shares.hold(set())
        assert sorted(hands.ended) == [0, 1, 2]


async def test_what_comes_back_is_begun_anew() -> None:
    """
    A worker that was stopped does not go on.
    """
    async with asyncio.TaskGroup() as tasks:
        hands = Hands(tasks)
        await hands.shares.hold({0})
        hands.let_go()
        await hands.shares.hold(set())
        await hands.shares.hold({0})
        assert [one.stopped.is_set() for one in hands.begun] == [True, False]
        hands.let_go()
        await hands.shares.hold(set())


async def test_what_does_not_finish_in_time_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A partition that hangs must not keep the process from what else it is told.
    """
    monkeypatch.setattr(membership, "DRAIN_S", 0.05)
    async with asyncio.TaskGroup() as tasks:
        hands = Hands(tasks)
        await hands.shares.hold({0})
        await hands.shares.hold({1})
        assert (hands.ended, sorted(hands.shares.held())) == ([0], [1])
        hands.let_go()
        await hands.shares.hold(set())


async def test_an_error_that_nobody_foresaw_ends_all() -> None:
    """
    As it does by ordinal: the process ends, and whoever supervises it starts it again.
    """
    hands: list[Hands] = []

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            hands.append(Hands(tasks))
            await hands[0].shares.hold({0, 1})
            hands[0].of(0).fault = ValueError("nobody foresaw it")
            hands[0].shares.stop()

    with pytest.raises(ExceptionGroup) as ended:
        await work()
    assert [str(fault) for fault in ended.value.exceptions] == ["nobody foresaw it"]


class Place:
    """A member of a group with what it was told."""

    def __init__(self, kafka: str, topic: str) -> None:
        self.told: list[set[int]] = []
        self.member = Member(kafka, topic, f"{topic}-members", lambda: self.told[-1] if self.told else (), SystemClock())
        self.task = asyncio.create_task(self.member.run(self.hold))

    async def hold(self, partitions: Any) -> None:
        self.told.append(set(partitions))

    @property
    def now(self) -> set[int]:
        return self.told[-1] if self.told else set()

    async def leave(self) -> None:
        self.member.stop()
        await asyncio.wait_for(self.task, PATIENCE_S)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.02)


async def topic_of(kafka: str, partitions: int) -> str:
    name = f"m{uuid4().hex[:8]}"
    await create_topics(kafka, [NewTopic(name, partitions, 1)])
    return name


async def test_members_share_out_and_take_over_from_one_that_leaves(kafka: str) -> None:
    """
    Who was there keeps what it had, as far as shares are even.
    """
    topic = await topic_of(kafka, 4)
    first = Place(kafka, topic)
    await until(lambda: first.now == {0, 1, 2, 3})
    second = Place(kafka, topic)
    await until(lambda: len(first.now) == len(second.now) == 2 and not first.now & second.now)
    third, had = Place(kafka, topic), (first.now, second.now)
    await until(lambda: len(third.now) == 1 and len(first.now) + len(second.now) == 3)
    assert first.now <= had[0]
    assert second.now <= had[1]
    await first.leave()
    assert first.now == set()
    await until(lambda: len(second.now) == len(third.now) == 2 and not second.now & third.now)
    await second.leave()
    await third.leave()


async def test_a_member_that_was_paused_for_longer_than_its_session_takes_its_place_again(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The group has given its partitions away meanwhile, or would have; it is told anew what it has.
    """
    monkeypatch.setattr(membership, "SESSION_MS", 1_000)
    monkeypatch.setattr(membership, "HEARTBEAT_MS", 100)
    topic = await topic_of(kafka, 2)
    place = Place(kafka, topic)
    await until(lambda: place.now == {0, 1})
    before = len(place.told)
    time.sleep(3.0)  # as a process that was stopped: nothing in it runs
    await until(lambda: len(place.told) > before)
    assert place.now == {0, 1}
    await place.leave()


async def test_a_member_without_a_broker_waits_and_stops_when_told() -> None:
    """
    It is told nothing, so it is not ready; once stopped it holds nothing.
    """
    place = Place("127.0.0.1:1", "nowhere")
    await asyncio.sleep(1.0)
    assert (place.told, place.task.done()) == ([], False)
    await place.leave()
    assert place.told == [set()]


@pytest.mark.parametrize("holds", [{0}, set()])
async def test_a_broker_that_turns_a_member_away_takes_nothing_that_is_held(holds: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    As after a password was changed: the connections of who works stand. Who holds nothing has to tell somebody.
    """
    turned_away = []

    async def refuse(client: Any, kafka: str) -> None:
        turned_away.append(kafka)
        raise Fatal("it refuses the user")

    monkeypatch.setattr(membership, "connect", refuse)
    monkeypatch.setattr(membership, "AGAIN_AFTER_S", 0.0)
    told: list[Any] = []

    async def hold(partitions: Any) -> None:
        told.append(partitions)

    member = Member("127.0.0.1:1", "topic", "group", lambda: holds, SystemClock())
    task = asyncio.create_task(member.run(hold))
    if holds:
        await until(lambda: len(turned_away) > 2)
        assert (told, task.done()) == ([], False)
        member.stop()
        await asyncio.wait_for(task, PATIENCE_S)
    else:
        with pytest.raises(Fatal, match="it refuses the user"):
            await asyncio.wait_for(task, PATIENCE_S)


async def test_a_member_leaves_when_nothing_can_be_done_with_what_it_holds(kafka: str) -> None:
    """
    Its process ends then, as it does by ordinal.
    """
    topic, told = await topic_of(kafka, 1), list[set[int]]()

    async def hold(partitions: Any) -> None:
        told.append(set(partitions))

    member = Member(kafka, topic, f"{topic}-members", lambda: told[-1] if told else (), SystemClock(), lambda: told == [{0}])
    await asyncio.wait_for(member.run(hold), PATIENCE_S)
    assert (told[0], told[-1]) == ({0}, set())


async def test_a_member_that_is_told_nothing_for_too_long_joins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A client may be alive and not join again. While it has an answer it may wait for as long as it likes.
    """
    monkeypatch.setattr(membership, "LOOK_EVERY_S", 0.0)
    clock = ManualClock()
    member = Member("", "topic", "group", tuple, clock)
    member.on_partitions_revoked(())
    clock.advance(29_000)
    assert await member._told() is None
    clock.advance(2_000)
    with pytest.raises(Recoverable, match="group: joined, and was told nothing"):
        await member._told()
    member.on_partitions_assigned([SimpleNamespace(topic="topic", partition=0)])
    clock.advance(3_600_000)
    assert await member._told() == {0}
