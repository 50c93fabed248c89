"""
The loop on a real broker, with a toy operator that counts events by key: what comes out is checked against a plain program.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from prometheus_client import REGISTRY

from driftline.clock import SystemClock
from driftline.contracts.messages import Source as From
from driftline.contracts.messages import Writer
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.errors import Invalid, Recoverable
from driftline.stream import worker as worker_module
from driftline.stream.batch import Batch, Effects, Messages, Varlen
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import LogReader, Publisher, Sink, Source, describe, ensure_topics
from driftline.stream.ledger import DECODE, ENCODE, Declined, Entry, Fenced, MemoryLedger, MemoryStore
from driftline.stream.records import Decoder, Encoder
from driftline.stream.worker import Operator, Worker

NAMES = ["ewr", "jfk", "lga"]


class Counting:
    """Counts the events of each key, and tells the new count as the origin of an outcome."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}

    def needs(self, batch: Batch) -> Sequence[bytes]:
        keys = dict.fromkeys(batch.tables["event"]["key"].tolist())
        return [key for key in keys if key not in self._counts]

    def load(self, rows: Mapping[bytes, bytes | None]) -> None:
        try:
            self._counts.update({key: int(row or b"0") for key, row in rows.items()})
        except ValueError as error:
            raise Invalid(f"a count is no number: {error}") from error

    def touches(self, batch: Batch) -> int:
        return len(batch)

    def step(self, batch: Batch) -> Effects:
        events = batch.tables["event"]
        counts = []
        for key in events["key"].tolist():
            self._counts[key] += 1
            counts.append(self._counts[key])
        n = len(events)
        columns = {
            "source": np.full(n, From.EVENTS, np.int64),
            "offset": events.offsets,
            "index": np.zeros(n, np.int64),
            "event_offset": events.offsets,
            "id": events["id"],
            "key": events["key"],
            "time": events["time"],
            "visible": events["visible"],
            "label": np.zeros(n, np.int64),
            "origin": Varlen.of(map(str, counts)),
        }
        state = {key: str(self._counts[key]).encode() for key in dict.fromkeys(events["key"].tolist())}
        return Effects(state, [Messages("journal", "outcome", events["key"], columns, events.offsets)], (), {"applied": n})


@dataclass
class Bench:
    """A pipeline of its own on the shared broker, and what is needed to run the toy on it."""

    kafka: str
    name: str = field(default_factory=lambda: f"w{uuid.uuid4().hex[:8]}")
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    store: MemoryStore = field(default_factory=MemoryStore)
    ledger_kind: type[MemoryLedger] = MemoryLedger
    sink_kind: type[Sink] = Sink
    letters_max: int = 100
    digest: str = "v1"
    row_format: int = 1
    records_max: int = 50

    @property
    def topics(self) -> Topics:
        return Topics.of(SimpleNamespace(name=self.name, retention_ms=86_400_000))

    async def publish(self, n: int, first: int = 0, partition: int = 0) -> None:
        """Append `n` events, numbered from `first`, as intake would."""
        publisher = Publisher(self.kafka, self.topics, self.registry, Writer.INTAKE, SystemClock())
        await publisher.start()
        numbers = np.arange(first, first + n, dtype=np.int64)
        keys = Varlen.of(NAMES[number % 3] for number in numbers)
        columns = {
            "source": np.full(n, 16, np.int64),
            "offset": numbers,
            "index": np.zeros(n, np.int64),
            "event_offset": np.full(n, -1, np.int64),
            "id": Varlen.of(str(number) for number in numbers),
            "key": keys,
            "time": numbers,
            "visible": numbers,
            "home": np.ones(n, np.bool_),
            "body": Varlen.repeat(b"", n),
        }
        await publisher.send(Messages("events", "event", keys, columns, numbers), partition=partition)
        await publisher.stop()

    async def worker(self, partition: int = 0) -> Worker:
        topics = self.topics
        written = {"journal": topics.journal, "dead-letters": topics.dead_letters}
        encoder = Encoder(written, self.registry, Writer.FEATURE)
        group = f"{self.name}-toy"
        operator = Operator(
            service="toy",
            pipeline=self.name,
            topic=topics.events.name,
            group=group,
            digest=self.digest,
            row_format=self.row_format,
            cluster=await describe(self.kafka, [topics.events.name, topics.journal.name]),
            core=lambda _: Counting(),
            source=lambda partition: Source(self.kafka, topics.events.name, partition, group=group),
            sink=lambda partition: self.sink_kind(self.kafka, written, encoder, group),
            ledger=lambda partition: self.ledger_kind(self.store, group, partition),
            decoder=Decoder(topics.events, self.registry),
            dead_letters=DeadLetters(self.name, "toy", From.EVENTS, self.letters_max),
            records_max=self.records_max,
        )
        return Worker(operator, partition, SystemClock())

    async def outcomes(self) -> tuple[list[tuple[str, int]], int]:
        """(id, count) of every first copy on the journal, in order; and how many copies there were besides."""
        reader = LogReader(self.kafka, self.topics.journal, self.registry)
        await reader.start()
        batches = await reader.read_to()
        await reader.stop()
        found = [(record["id"], int(record["origin"])) for batch in batches.values() for record in batch.tables["outcome"].records()]
        return found, reader.copies

    async def run_until(self, count: int, worker: Worker | None = None, timeout_s: float = 30) -> Worker:
        """Run a worker until `count` events are applied, then let it drain."""
        worker = worker or await self.worker()
        task = asyncio.create_task(worker.run())
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.standing() < count and not task.done() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        worker.stop()
        await task
        return worker

    def standing(self) -> int:
        """The offset that the ledger says is next."""
        return self.nexts()[0] if self.nexts() else 0

    def nexts(self) -> list[int]:
        """The same of all partitions that have a ledger."""
        return [entry(value).next for key, value in self.store.values.items() if key.endswith(b":ledger")]


def entry(value: bytes) -> Entry:
    return DECODE(value)


def expected(n: int) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    found = []
    for number in range(n):
        counts[NAMES[number % 3]] += 1
        found.append((str(number), counts[NAMES[number % 3]]))
    return found


@pytest.fixture
async def bench(kafka: str) -> Bench:
    made = Bench(kafka)
    await ensure_topics(kafka, made.topics, 1)
    return made


async def test_every_event_changes_the_state_once_and_in_order(bench: Bench):
    """
    Two runs, one after the other, go on where the first stopped.
    """
    await bench.publish(120)
    await bench.run_until(120)
    await bench.publish(30, first=120)
    await bench.run_until(150)
    assert (expected(150), 0) == await bench.outcomes()


async def test_a_copy_on_the_log_has_no_effect(bench: Bench):
    """
    Whoever writes twice with one coordinate is heard once.
    """
    await bench.publish(30)
    await bench.publish(40)
    await bench.run_until(70)
    assert (expected(40), 0) == await bench.outcomes()


class FailsOnce(MemoryLedger):
    """Its first commit ends with `fault`."""

    fault: Recoverable = Fenced("another process moved the ledger during the commit")
    failed: ClassVar[set[str]] = set()

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        if self._prefix.decode() not in self.failed:
            self.failed.add(self._prefix.decode())
            raise self.fault
        await super().commit(entry, rows)


class DeclinedOnce(FailsOnce):
    """The store is short of memory at its first commit."""

    fault = Declined("the store answered: OOM command not allowed when used memory > 'maxmemory'.")
    failed: ClassVar[set[str]] = set()


class DiesBeforeCommit(MemoryLedger):
    """Every third commit fails after the messages were acked, before anything is written."""

    attempts = 0

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        DiesBeforeCommit.attempts += 1
        if DiesBeforeCommit.attempts % 3 == 2:
            raise Recoverable("killed between ack and commit")
        await super().commit(entry, rows)


async def test_a_failure_between_ack_and_commit_repeats_messages_that_consumers_drop(bench: Bench):
    """
    The copies have the coordinates of the first ones, so that first copies are complete and in order.
    """
    bench.ledger_kind = DiesBeforeCommit
    await bench.publish(200)
    await bench.run_until(200)
    found, copies = await bench.outcomes()
    assert expected(200) == found
    assert copies > 0


class CommitsThenSaysNothing(MemoryLedger):
    """Every third commit is written, and its answer lost."""

    attempts = 0

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        await super().commit(entry, rows)
        CommitsThenSaysNothing.attempts += 1
        if CommitsThenSaysNothing.attempts % 3 == 1:
            raise Recoverable("the reply was lost")


async def test_a_commit_whose_answer_was_lost_is_not_applied_again(bench: Bench):
    """
    The worker asks the ledger where it stands instead of trusting its memory.
    """
    bench.ledger_kind = CommitsThenSaysNothing
    await bench.publish(200)
    await bench.run_until(200)
    assert (expected(200), 0) == await bench.outcomes()


class LosesAcks(Sink):
    """Every third send reports an error although the messages were written."""

    attempts = 0

    async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
        sent = await super().send(messages, partition, now_ms)
        LosesAcks.attempts += 1
        if LosesAcks.attempts % 3 == 0:
            raise Recoverable("the ack was lost")
        return sent


async def test_a_lost_ack_throws_the_producer_away_and_loses_nothing(bench: Bench):
    """
    After any send error the partition is acquired again.
    """
    bench.sink_kind = LosesAcks
    await bench.publish(200)
    await bench.run_until(200)
    assert expected(200) == (await bench.outcomes())[0]


class FailsBeforeSending(Sink):
    """Every third send reports an error, and nothing was written."""

    attempts = 0

    async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
        FailsBeforeSending.attempts += 1
        if FailsBeforeSending.attempts % 3 == 0:
            raise Recoverable("the broker was away")
        return await super().send(messages, partition, now_ms)


async def test_messages_that_were_not_sent_are_made_again(bench: Bench):
    """
    The ledger moves behind the acks, never before them: what nobody acked is still ahead of it.
    """
    bench.sink_kind = FailsBeforeSending
    await bench.publish(200)
    await bench.run_until(200)
    assert (expected(200), 0) == await bench.outcomes()


class Passing(Counting):
    """Keeps nothing from one batch to the next."""

    def needs(self, batch: Batch) -> Sequence[bytes]:
        self._counts = Counter()
        return []

    def step(self, batch: Batch) -> Effects:
        return replace(super().step(batch), state={})


async def test_an_operator_without_a_ledger_goes_on_behind_the_acks(bench: Bench):
    """
    Its committed offset is all that it has, so it moves when everything before it was sent.
    """
    bench.sink_kind = FailsBeforeSending
    await bench.publish(200)
    worker = await bench.worker()
    object.__setattr__(worker._operator, "ledger", None)
    object.__setattr__(worker._operator, "core", lambda _: Passing())
    task = asyncio.create_task(worker.run())
    while worker._position < 200 and not task.done():
        await asyncio.sleep(0.02)
    worker.stop()
    await task
    found, _ = await bench.outcomes()
    assert [str(n) for n in range(200)] == [name for name, _ in found]


async def test_what_a_partition_causes_stays_in_its_partition(kafka: str):
    """
    Messages go to the partition of the same number, in the order of their causes.
    """
    bench = Bench(kafka)
    await ensure_topics(kafka, bench.topics, 2)
    await bench.publish(30, partition=1)
    await bench.run_until(30, await bench.worker(1))
    reader = LogReader(kafka, bench.topics.journal, bench.registry)
    await reader.start()
    batches = await reader.read_to()
    await reader.stop()
    assert {1: [str(n) for n in range(30)]} == {number: batch.tables["outcome"]["id"].texts() for number, batch in batches.items()}


class CountsRows(MemoryLedger):
    """Remembers how many rows each commit carried."""

    rows_written: ClassVar[list[int]] = []

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        CountsRows.rows_written.append(len(rows))
        await super().commit(entry, rows)


async def test_a_commit_carries_no_more_rows_than_one_may(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """
    A batch that touches more is cut, and its parts are applied one after the other.
    """
    monkeypatch.setattr(worker_module, "ROWS_MAX", 2)
    bench.ledger_kind = CountsRows
    await bench.publish(40)
    await bench.run_until(40)
    assert (expected(40), 0) == await bench.outcomes()
    assert max(CountsRows.rows_written) == 2


async def test_every_record_that_was_read_is_accounted_for(bench: Bench):
    """
    Read equals applied, duplicate and dead-lettered together, through a batch that is repeated as well.
    """
    bench.ledger_kind = DiesBeforeCommit
    await bench.publish(30)
    await raw(bench, b"not framed at all")
    await bench.publish(40)
    await bench.run_until(71)
    labels = {"pipeline": bench.name, "service": "toy", "topic": bench.topics.events.name}
    became = {outcome: told("driftline_messages_total", outcome=outcome, **labels) for outcome in ("applied", "duplicate", "dead_lettered")}
    assert became == {"applied": 40, "duplicate": 30, "dead_lettered": 1}
    assert told("driftline_messages_read_total", **labels) == 71
    assert told("driftline_hop_duration_seconds_count", **labels) == 71
    commits = {name: value for name, value in labels.items() if name != "topic"}
    assert told("driftline_ledger_commits_total", result="fenced", **commits) == 0
    assert told("driftline_ledger_commits_total", result="unknown", **commits) == 1


async def test_a_commit_that_is_fenced_is_counted(bench: Bench):
    """
    So that somebody sees that two processes own one partition.
    """
    bench.ledger_kind = FailsOnce
    await bench.publish(30)
    await bench.run_until(30)
    labels = {"pipeline": bench.name, "service": "toy"}
    assert told("driftline_ledger_commits_total", result="fenced", **labels) == 1
    assert told("driftline_ledger_commits_total", result="unknown", **labels) == 0


async def test_a_commit_that_the_store_refuses_is_counted_as_such(bench: Bench):
    """
    Nobody has to ask whether it was written: it was not.
    """
    bench.ledger_kind = DeclinedOnce
    await bench.publish(30)
    await bench.run_until(30)
    labels = {"pipeline": bench.name, "service": "toy"}
    counted = {result: told("driftline_ledger_commits_total", result=result, **labels) for result in ("refused", "fenced", "unknown")}
    assert counted == {"refused": 1, "fenced": 0, "unknown": 0}


def told(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def test_a_store_that_comes_back_with_older_state_is_folded_up_to_date_again(bench: Bench):
    """
    State is a function of the log and an offset: going on from an older one ends at the same place.
    """
    await bench.publish(60)
    await bench.run_until(60)
    older = dict(bench.store.values)
    await bench.publish(60, first=60)
    await bench.run_until(120)
    newer = dict(bench.store.values)
    bench.store.values.clear()
    bench.store.values.update(older)
    await bench.run_until(120)
    assert newer == bench.store.values
    found, copies = await bench.outcomes()
    assert (expected(120), 60) == (found, copies)


async def test_two_workers_on_one_partition_make_one_result(bench: Bench):
    """
    A partition that is run twice at once, as after a pause that was taken for a death, is fenced by the ledger.
    """
    await bench.publish(400)
    first, second = await bench.worker(), await bench.worker()
    tasks = [asyncio.create_task(first.run()), asyncio.create_task(second.run())]
    while bench.standing() < 400:
        await asyncio.sleep(0.02)
    first.stop()
    second.stop()
    await asyncio.gather(*tasks)
    assert expected(400) == (await bench.outcomes())[0]


async def test_a_worker_is_not_refused_because_another_moves_on_while_it_acquires(bench: Bench):
    """
    Of two on one partition one reads the ledger when the other has just applied what was published a moment ago: that log is no other log.
    """
    await bench.publish(30)
    await bench.run_until(30)
    moved: list[int] = []

    class MovedMeanwhile(MemoryLedger):
        async def open(self) -> Entry | None:
            if not moved:
                await bench.publish(10, 30)
                await bench.run_until(40)
                moved.append(bench.standing())
            return await super().open()

    worker = await replace(bench, ledger_kind=MovedMeanwhile).run_until(40)
    assert moved == [40]
    assert worker.refused == ""
    assert (await bench.outcomes())[0] == expected(40)


async def test_an_undecodable_record_goes_to_the_dead_letters_and_its_neighbours_go_on(bench: Bench):
    """
    Raw, with the reason, and the coordinate that it had.
    """
    await bench.publish(10)
    await raw(bench, b"not framed at all")
    await bench.publish(10, first=10)
    await bench.run_until(21)
    assert [(str(n), count) for n, (_, count) in enumerate(expected(20))] == (await bench.outcomes())[0]
    letters = await dead_letters(bench)
    assert [(bench.topics.events.name, 10, "undecodable", b"not framed at all")] == letters


async def test_too_many_dead_letters_stop_the_partition_and_say_why(bench: Bench):
    """
    Past the limit the fault is taken for ours.
    """
    bench.letters_max = 2
    for _ in range(3):
        await raw(bench, b"rubbish")
    worker = await bench.run_until(3, timeout_s=10)
    assert "DRIFTLINE_DEAD_LETTERS_MAX" in worker.refused


async def test_it_is_told_whether_a_partition_is_worked_on(bench: Bench):
    """
    1 while it is, and not when it was left or refused: what waits there nobody can know then.
    """
    where = {"pipeline": bench.name, "service": "toy", "topic": bench.topics.events.name, "partition": "0"}
    worker = await bench.worker()
    task = asyncio.create_task(worker.run())
    while not worker.ready:
        await asyncio.sleep(0.01)
    assert told("driftline_partition_ready", **where) == 1
    worker.stop()
    await task
    assert told("driftline_partition_ready", **where) == 0
    await bench.publish(1)
    await bench.run_until(1)
    bench.digest = "v2"
    assert (await bench.run_until(2, timeout_s=10)).refused
    assert told("driftline_partition_ready", **where) == 0


async def test_another_definition_is_refused_and_names_the_command(bench: Bench):
    """
    State that was folded by other rules is never gone on from.
    """
    await bench.publish(10)
    await bench.run_until(10)
    bench.digest = "v2"
    worker = await bench.run_until(11, timeout_s=10)
    assert "driftline rebuild" in worker.refused and "definition" in worker.refused


async def test_rows_of_an_older_format_are_refused_and_the_command_is_named(bench: Bench):
    """
    Whoever brings the service up to date is told what to run.
    """
    await bench.publish(10)
    await bench.run_until(10)
    bench.row_format = 2
    worker = await bench.run_until(11, timeout_s=10)
    assert "the row format is 2, but the state was made with 1" in worker.refused
    assert f"driftline rebuild {bench.name} --partition 0" in worker.refused


async def test_a_lost_store_is_refused_and_not_begun_anew(bench: Bench):
    """
    Without a ledger but with a committed offset somebody's state is gone.
    """
    await bench.publish(10)
    await bench.run_until(10)
    bench.store.values.clear()
    worker = await bench.run_until(11, timeout_s=10)
    assert "driftline rebuild" in worker.refused


@pytest.mark.parametrize(("key", "words"), [(b":ledger", "the ledger in the store cannot be"), (b":ewr", "a row of the store cannot be")])
async def test_bytes_that_cannot_be_read_refuse_their_partition_alone(bench: Bench, key: bytes, words: str):
    """
    The process goes on with its other partitions, and the words name the command that helps.
    """
    await bench.publish(10)
    await bench.run_until(10)
    bench.store.values[next(one for one in bench.store.values if one.endswith(key))] = b"\xff rubbish"
    await bench.publish(10, first=10)
    worker = await bench.worker()
    await asyncio.wait_for(worker.run(), 20)
    assert words in worker.refused and "driftline rebuild" in worker.refused


async def test_a_log_that_was_made_anew_is_refused(bench: Bench):
    """
    The anchor, the last applied record, is looked for before anything is applied.
    """
    await bench.publish(10)
    await bench.run_until(10)
    key = next(key for key in bench.store.values if key.endswith(b":ledger"))
    told = entry(bench.store.values[key])
    altered = Entry(told.next, told.seen, (told.anchor[0], told.anchor[1], 7), told.cluster, told.partitions, told.digest, told.row_format)
    bench.store.values[key] = ENCODE(altered)
    worker = await bench.run_until(11, timeout_s=10)
    assert "another log" in worker.refused


class StopsAtNumber(Counting):
    """Fails, as a bug would, whenever it meets one event."""

    def step(self, batch: Batch) -> Effects:
        if b"7" in batch.tables["event"]["id"].tolist():
            raise ZeroDivisionError
        return super().step(batch)


async def test_a_record_that_stops_the_process_time_and_again_is_set_aside(bench: Bench):
    """
    Batches are halved until it is alone, then it goes raw to the dead letters; all others are applied.
    """
    bench.records_max = 8
    await bench.publish(20)
    crashes = 0
    while bench.standing() < 20 and crashes < 40:
        worker = await bench.worker()
        object.__setattr__(worker._operator, "core", lambda _: StopsAtNumber())
        try:
            await bench.run_until(20, worker)
        except ZeroDivisionError:
            crashes += 1
    found, _ = await bench.outcomes()
    assert [str(n) for n in range(20) if n != 7] == [name for name, _ in found]
    assert [reason for _, _, reason, _ in await dead_letters(bench)] == ["poison"]


class PassesButSeven(Passing):
    """The same without state."""

    def step(self, batch: Batch) -> Effects:
        if b"7" in batch.tables["event"]["id"].tolist():
            raise ZeroDivisionError
        return super().step(batch)


async def test_without_a_ledger_such_a_record_is_set_aside_too(bench: Bench):
    """
    Its tries are noted beside the committed offset, which is all that such an operator has.
    """
    bench.records_max = 8
    await bench.publish(20)
    for _ in range(40):
        worker = await bench.worker()
        object.__setattr__(worker._operator, "ledger", None)
        object.__setattr__(worker._operator, "core", lambda _: PassesButSeven())
        task = asyncio.create_task(worker.run())
        while worker._position < 20 and not task.done():
            await asyncio.sleep(0.02)
        worker.stop()
        if (await asyncio.gather(task, return_exceptions=True))[0] is None:
            break
    found, _ = await bench.outcomes()
    assert [str(n) for n in range(20) if n != 7] == [name for name, _ in found]
    assert [reason for _, _, reason, _ in await dead_letters(bench)] == ["poison"]


class InOtherHands(MemoryLedger):
    """Other processes have the first record alone in hand, and one of them commits it a moment later."""

    async def count_try(self) -> int:
        return 20

    async def count_alone(self) -> int:
        asyncio.get_running_loop().call_later(0.1, self._moved)
        return 20

    def _moved(self) -> None:
        for key, value in self._values.items():
            if key.endswith(b":ledger"):
                self._values[key] = ENCODE(moved(entry(value)))


def moved(told: Entry) -> Entry:
    """As another process has left it: the bytes differ each time."""
    seen = {**told.seen, 99: (told.seen.get(99, (0, 0))[0] + 1, 0)}
    return Entry(told.next, seen, told.anchor, told.cluster, told.partitions, told.digest, told.row_format)


async def test_a_record_that_another_process_has_in_hand_is_not_set_aside(bench: Bench):
    """
    Before a record is given up the ledger is looked at once more: whoever counted may be alive, and done with it.
    """
    bench.records_max = 1
    await bench.publish(3)
    await bench.run_until(1)
    bench.ledger_kind = InOtherHands
    worker = await bench.worker()
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(3)
    worker.stop()
    await task
    assert await dead_letters(bench) == []


class DiesWithItsProcess(MemoryLedger):
    """A process that was killed forgives nobody and counts nothing any more, though here its neighbour's task lives a moment longer."""

    dead: ClassVar[bool] = False

    async def clear_tries(self) -> None:
        self._end_if_dead()
        await super().clear_tries()

    async def count_alone(self) -> int:
        self._end_if_dead()
        return await super().count_alone()

    def _end_if_dead(self) -> None:
        if DiesWithItsProcess.dead:
            raise Recoverable("the process is gone")


class Kills(StopsAtNumber):
    """Takes the whole process with it, at once, as a crash in native code would."""

    def step(self, batch: Batch) -> Effects:
        try:
            return super().step(batch)
        except ZeroDivisionError:
            DiesWithItsProcess.dead = True
            raise


class Slow(Sink):
    """Has not sent before its neighbour's record has killed the process."""

    async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
        await asyncio.sleep(0.3 if partition else 0)
        return await super().send(messages, partition, now_ms)


async def test_a_record_is_not_blamed_for_what_the_neighbouring_partition_did(kafka: str):
    """
    Partitions of one process die together; only the record that was alone in hand each time goes to the dead letters.
    """
    bench = Bench(kafka, records_max=4, ledger_kind=DiesWithItsProcess, sink_kind=Slow)
    await ensure_topics(kafka, bench.topics, 2)
    await bench.publish(10)
    await bench.publish(6, first=100, partition=1)
    crashes = 0
    while len(bench.nexts()) < 2 or sum(bench.nexts()) < 16:
        assert crashes < 40
        DiesWithItsProcess.dead = False
        first = await bench.worker(0)
        object.__setattr__(first._operator, "core", lambda _: Kills())
        workers = [first, Worker(first._operator, 1, SystemClock())]
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        while sum(bench.nexts()) < 16 and not any(task.done() for task in tasks):
            await asyncio.sleep(0.01)
        crashes += DiesWithItsProcess.dead
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [(offset, reason) for _, offset, reason, _ in await dead_letters(bench)] == [(7, "poison")]


async def test_a_partition_on_which_nothing_waits_may_be_started_again_and_again(bench: Bench):
    """
    Only what waits can have stopped the process: the first record that comes is no poison, and what is new is not taken for lost.
    """
    bench.records_max = 1
    for _ in range(6):
        worker = await bench.worker()
        task = asyncio.create_task(worker.run())
        while not worker.ready:
            assert not task.done(), worker.refused
            await asyncio.sleep(0.01)
        worker.stop()
        await task
    await bench.publish(3)
    await bench.run_until(3)
    assert (expected(3), 0) == await bench.outcomes()


class IsOvertaken(MemoryLedger):
    """Before it is read for the first time, something happens."""

    before: ClassVar[list[Callable[[], Awaitable[object]]]] = []

    async def open(self) -> Entry | None:
        while IsOvertaken.before:
            await IsOvertaken.before.pop()()
        return await super().open()


async def test_a_partition_that_moves_on_while_it_is_acquired_is_not_taken_for_another_log(bench: Bench):
    """
    A process that starts while the one before it is still at work finds the ledger further on than the log's end was a moment ago.
    """
    await bench.publish(20)
    await bench.run_until(20)

    async def overtake() -> None:
        bench.ledger_kind = MemoryLedger
        await bench.publish(20, first=20)
        await bench.run_until(40)

    IsOvertaken.before = [overtake]
    bench.ledger_kind = IsOvertaken
    worker = await bench.worker()
    task = asyncio.create_task(worker.run())
    while not worker.ready and not task.done():
        await asyncio.sleep(0.01)
    worker.stop()
    await task
    assert worker.refused == ""
    assert (expected(40), 0) == await bench.outcomes()


class Hangs(Sink):
    """Never comes back from a send."""

    async def send(self, messages: Sequence[Messages], partition: int, now_ms: int) -> int:
        return await asyncio.get_running_loop().create_future()


async def test_a_partition_that_is_cancelled_because_another_failed_is_not_held_to_blame(bench: Bench):
    """
    Its first record was in hand each time, and did nothing.
    """
    bench.records_max = 1
    await bench.publish(3)
    bench.sink_kind = Hangs
    for _ in range(6):
        worker = await bench.worker()
        task = asyncio.create_task(worker.run())
        while not worker.ready:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    bench.sink_kind = Sink
    await bench.run_until(3)
    assert (expected(3), 0) == await bench.outcomes()


async def test_after_caution_batches_grow_again(bench: Bench):
    """
    A crash of long ago does not make a partition slow until the next restart.
    """
    sizes: list[int] = []

    class Measures(Counting):
        def step(self, batch: Batch) -> Effects:
            sizes.append(len(batch))
            return super().step(batch)

    await bench.publish(200)
    bench.store.values[f"{{{bench.name}-toy:0}}:tries".encode()] = b"5"
    worker = await bench.worker()
    object.__setattr__(worker._operator, "core", lambda _: Measures())
    await bench.run_until(200, worker)
    assert sizes[0] < 10 and max(sizes) == 50


async def test_a_partition_that_stands_still_with_a_batch_in_hand_says_so(bench: Bench):
    """
    Alive, ready and not moving: the log's end is compared with the position while a send hangs, too.
    """
    await bench.publish(5)
    worker = await bench.worker()
    task = asyncio.create_task(worker.run())
    while bench.standing() < 5:
        await asyncio.sleep(0.02)
    object.__setattr__(worker._session._sink, "send", Hangs.send.__get__(worker._session._sink))
    await bench.publish(5, first=5)
    await asyncio.sleep(1.0)
    assert worker.ready and worker.behind and worker.stalled_s() > 0.2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Deaf(Source):
    """Gets nothing after its first records, as a consumer may whose connection died unnoticed. The next one hears."""

    made = 0

    async def start(self) -> None:
        Deaf.made += 1
        self._polls = 0
        await super().start()

    async def poll(self, records_max: int, timeout_ms: int):
        self._polls += 1
        if Deaf.made == 1 and self._polls > 1:
            await asyncio.sleep(timeout_ms / 1000)
            return None
        return await super().poll(records_max, timeout_ms)


async def test_a_consumer_that_hears_nothing_although_the_log_goes_on_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """
    The position is compared with the end that the broker names, not with what the consumer last heard.
    """
    monkeypatch.setattr(worker_module, "SILENCE_S", 0.5)
    await bench.publish(5)
    worker = await bench.worker()
    group = worker._operator.group
    object.__setattr__(worker._operator, "source", lambda partition: Deaf(bench.kafka, bench.topics.events.name, partition, group=group))
    task = asyncio.create_task(bench.run_until(10, worker))
    while bench.standing() < 5:
        await asyncio.sleep(0.02)
    await bench.publish(5, first=5)
    await task
    assert (expected(10), 0) == await bench.outcomes()
    assert Deaf.made == 2


class FailsAtFirst(MemoryLedger):
    """The first four commits fail."""

    attempts = 0

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        FailsAtFirst.attempts += 1
        if FailsAtFirst.attempts < 5:
            raise Recoverable("the store was away")
        await super().commit(entry, rows)


async def test_a_dead_letter_that_is_made_again_counts_once(bench: Bench):
    """
    While the store is away one bad record does not use up the limit.
    """
    bench.ledger_kind = FailsAtFirst
    bench.letters_max = 2
    await raw(bench, b"rubbish")
    worker = await bench.run_until(1)
    assert worker.refused == ""
    assert told("driftline_dead_letters_total", pipeline=bench.name, topic=bench.topics.events.name, reason="undecodable") == 1


class KeepsSizes(MemoryLedger):
    """Remembers how large each commit's rows were."""

    sizes: ClassVar[list[int]] = []

    async def commit(self, entry: Entry, rows: Mapping[bytes, bytes | None]) -> None:
        KeepsSizes.sizes.append(sum(map(len, filter(None, rows.values()))))
        await super().commit(entry, rows)


async def test_a_commit_of_large_rows_is_cut_by_their_size(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """
    After the first one tells how large rows are.
    """

    class Large(Counting):
        def step(self, batch: Batch) -> Effects:
            effects = super().step(batch)
            return replace(effects, state={key: (row or b"").rjust(1_000) for key, row in effects.state.items()})

    monkeypatch.setattr(worker_module, "BYTES_MAX", 2_000)
    bench.ledger_kind = KeepsSizes
    await bench.publish(120)
    worker = await bench.worker()
    object.__setattr__(worker._operator, "core", lambda _: Large())
    await bench.run_until(120, worker)
    assert (expected(120), 0) == await bench.outcomes()
    assert max(KeepsSizes.sizes[1:]) <= 2_000


async def test_an_operator_without_state_is_not_told_to_rebuild_what_it_has_not(bench: Bench):
    """
    When the log was cut off behind its offset, it names the offset.
    """

    async def stateless() -> Worker:
        worker = await bench.worker()
        object.__setattr__(worker._operator, "ledger", None)
        object.__setattr__(worker._operator, "core", lambda _: Passing())
        return worker

    await bench.publish(5)
    worker = await stateless()
    task = asyncio.create_task(worker.run())
    while worker._position < 5:
        await asyncio.sleep(0.02)
    worker.stop()
    await task
    await bench.publish(5, first=5)
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(bench.topics.events.name, 0): RecordsToDelete(before_offset=8)})
    await admin.close()
    worker = await stateless()
    await asyncio.wait_for(worker.run(), 20)
    assert "reset the offset of the group" in worker.refused and "rebuild" not in worker.refused


async def raw(bench: Bench, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bench.kafka)
    await producer.start()
    await producer.send_and_wait(bench.topics.events.name, value, partition=0)
    await producer.stop()


async def dead_letters(bench: Bench) -> list[tuple[str, int, str, bytes]]:
    reader = LogReader(bench.kafka, bench.topics.dead_letters, bench.registry)
    await reader.start()
    batches = await reader.read_to()
    await reader.stop()
    tables = [batch.tables["dead_letter"] for batch in batches.values()]
    return [
        (topic, int(offset), reason, value)
        for table in tables
        for topic, offset, reason, value in zip(
            table["topic"].texts(), table["offset"], table["reason"].texts(), table["value"].tolist(), strict=True
        )
    ]
