"""
State made anew from the log, with the service stopped: fold each partition up to where the service stood, prove that what the fold makes
is what is on the topics, and only then put rows and ledger into the store.

Where the service stood is what the ledger says, and without one what the group has committed: an offset is committed after the ledger,
and the ledger is written after the acks, so everything below it was sent. What the service made beyond it, before it died, it makes
again by itself; readers drop the copies.

Nothing is written while anything differs (`force` writes all the same), and never half a state: see `rows`. `forget` is the other way:
delete everything, and let the service begin at the log's start.
"""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import queue
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.protocol.admin import DeleteGroupsRequest

from driftline.access import kafka_client
from driftline.contracts.registry import Registry
from driftline.errors import DriftlineError, Fatal, Invalid, Rejected
from driftline.local.progress import ops_told
from driftline.logs import log
from driftline.operate.addresses import Addresses, environment_of
from driftline.operate.dead_letters import Wanted, read_letters
from driftline.operate.fold import Folded, Subject, fold
from driftline.operate.rows import Rows
from driftline.pipeline import Pipeline, load_pipeline
from driftline.settings import read
from driftline.stream.connect import connect
from driftline.stream.kafka import Cluster, Source
from driftline.stream.ledger import Entry, decoded, refuse_unsafe_store
from driftline.stream.operators import Wiring, describe_pipeline, group_of
from driftline.stream.store import Store

STATEFUL = ("feature", "labeler", "drift")
GROUP_ID_NOT_FOUND = 69
COORDINATOR_TRIES = 20
POLL_S = 1.0
LISTEN_S = 0.1
ANSWER_S = 2.0
ANCHOR_MS = 10_000


@dataclass(frozen=True, slots=True)
class Orders:
    """What to do with what was folded."""

    dry_run: bool = False  # prove, write nothing
    force: bool = False  # write though messages differ


@dataclass(frozen=True)
class Rebuilt:
    """What became of one operator's partition."""

    group: str
    partition: int
    position: int
    rows: int
    records: int = 0
    equal: Mapping[str, int] = field(default_factory=dict)  # messages proved, by topic
    unproved: int = 0
    differing: int = 0
    told: tuple[str, ...] = ()
    stored: int | None = None  # rows in the store that differ from the fold's; None: there were none to compare with
    redefined: bool = False  # made by another definition before, so messages differ rightly
    written: bool = False
    note: str = ""

    @property
    def proved(self) -> bool:
        """Whether everything that can be compared is the same on the topics."""
        return self.redefined or not self.differing

    def stands(self, orders: Orders) -> bool:
        """Whether nothing is left to do: proved, or written all the same; a dry run only looks, so the store must be right already."""
        if orders.dry_run:
            return self.proved and not self.stored
        return self.proved or orders.force

    def __str__(self) -> str:
        messages = ", ".join(f"{n:,} on {kind}" for kind, n in sorted(self.equal.items())) or "no messages"
        parts = [f"{self.rows:,} rows at {self.position:,}", f"{messages} are the same"]
        if self.unproved:
            parts.append(f"{self.unproved:,} cannot be proved, because the log no longer goes back far enough")
        if self.differing:
            parts.append(f"{self.differing:,} differ" + (" (another definition made them)" if self.redefined else ""))
        if self.stored is not None:
            parts.append(f"{self.stored:,} rows of the store differ" if self.stored else "the store has the same rows")
        parts.append("written" if self.written else self.note or "nothing written")
        return f"{self.group}[{self.partition}]: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Job:
    """One partition of one operator of a service, for a process that makes the wiring itself."""

    service: str
    operator: str
    partition: int
    given_up: frozenset[int]


def wirings_of(service: str, pipeline: Pipeline, addresses: Addresses) -> list[Wiring]:
    """The operators of a service, wired as the service does it; found by name, as `driftline run` finds it."""
    module = importlib.import_module(f"services.{service}.app")
    wirings: list[Wiring] = module.wirings(read(module.Settings, environment_of(addresses, pipeline.name)), pipeline)
    return wirings


def refuse_running(addresses: Addresses, services: Sequence[str]) -> None:
    """Raises Rejected while a process of one of `services` answers at the address that it left in the run dir."""
    running = [service for service in services if _answers(addresses, service)]
    if running:
        raise Rejected(f"{', '.join(running)} is running: stop it, rebuild, start it again")


def _answers(addresses: Addresses, service: str) -> bool:
    ops = ops_told(addresses.run_dir, service)
    try:
        with urllib.request.urlopen(f"{ops}/healthz", timeout=ANSWER_S):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):  # it told no address
        return False


# ---- one partition --------------------------------------------------------------------------------------------------------


async def rebuild_partition(
    addresses: Addresses, wiring: Wiring, pipeline: Pipeline, job: Job, orders: Orders, told: Callable[[int, int], None]
) -> Rebuilt:
    """
    Fold, prove, write. `told` hears how far it is, and of how much. Raises Rejected when there is nothing to go by, and DriftlineError
    of every other kind as its parts do; nothing is in force then, or all of it.
    """
    group = group_of(wiring, pipeline)
    cluster = await describe_pipeline(addresses.kafka, pipeline)
    source = Source(addresses.kafka, wiring.reads.name, job.partition, group=group)
    store = Store(addresses.redis)
    await source.start()
    try:
        rows = Rows(store, group, job.partition)
        known = await rows.ledger()
        stood = await _stood(source, known, cluster, f"{wiring.reads.name}[{job.partition}]")
        if stood is None:
            return Rebuilt(group, job.partition, 0, 0, note="nothing was folded yet, the service begins at the log's start")
        subject = Subject(wiring, pipeline, job.partition, cluster, stood.position, job.given_up)
        await _refuse_unreachable(source, wiring, orders)
        folded = await fold(addresses.kafka, Registry(addresses.registry), subject, lambda at: told(at, stood.position))
        before = await rows.read()
        found = _compared(group, job.partition, folded, stood, before)
        if orders.dry_run or not (found.proved or orders.force):
            return found
        if before == folded.rows and stood.entry == folded.entry:
            return replace(found, note="nothing to write")
        if stood.committed is None:  # or else a service that finds no ledger would take the partition for a new one
            await source.mark(stood.position)
        await rows.replace(known, folded.entry, folded.rows)
        return replace(found, written=True)
    finally:
        await source.stop()
        await store.close()


@dataclass(frozen=True, slots=True)
class _Stood:
    """Where the service stood: the ledger, if it can be believed, and what the group has committed."""

    position: int
    entry: Entry | None
    committed: int | None


async def _stood(source: Source, known: bytes | None, cluster: Cluster, where: str) -> _Stood | None:
    """None where nothing was folded yet. Raises Rejected when neither ledger nor offset is about this log."""
    start, end = await source.bounds()
    committed = await source.committed()
    entry = _readable(known, where)
    if entry is not None and entry.cluster == cluster.id and start <= entry.next <= end and await _is_anchored(source, entry, start):
        return _Stood(entry.next, entry, committed)
    if committed is None and known is None:
        return None
    if committed is None or not start <= committed <= end:
        stood = "no offset is committed" if committed is None else f"the offset {committed} is committed"
        raise Rejected(
            f"{where} holds {start} to {end}, {stood}, and the ledger is of another log or gone: nothing says up to where to fold. "
            "driftline rebuild --forget deletes the state, and the service begins at the log's start"
        )
    return _Stood(committed, None, committed)


def _readable(known: bytes | None, where: str) -> Entry | None:
    try:
        return None if known is None else decoded(known)
    except Invalid as error:
        log.warning("the ledger tells nothing", where=where, because=str(error))
        return None


async def _is_anchored(source: Source, entry: Entry, start: int) -> bool:
    """Whether the log still has the record that was applied last, or has let go of it."""
    if entry.anchor is None or entry.anchor[0] < start:
        return True
    source.seek(entry.anchor[0])
    polled = await source.poll(1, ANCHOR_MS)
    return polled is not None and polled.anchor(polled.first + 1) == entry.anchor


async def _refuse_unreachable(source: Source, wiring: Wiring, orders: Orders) -> None:
    start, _ = await source.bounds()
    if start > 0 and wiring.reach_ms is None and not orders.force:
        raise Rejected(
            f"{wiring.reads.name} begins at {start}: what {wiring.service} remembers goes back to the first record, which is gone. "
            "--force makes what can be made of the rest"
        )


def _compared(group: str, partition: int, folded: Folded, stood: _Stood, before: Mapping[bytes, bytes]) -> Rebuilt:
    entry, findings = stood.entry, folded.findings
    stored = None
    if before or entry is not None:
        stored = sum(before.get(key) != folded.rows.get(key) for key in before.keys() | folded.rows.keys())
    redefined = entry is not None and (entry.digest, entry.row_format) != (folded.entry.digest, folded.entry.row_format)
    return Rebuilt(
        group,
        partition,
        stood.position,
        len(folded.rows),
        folded.records,
        dict(findings.equal),
        findings.unproved,
        findings.differing,
        tuple(findings.told),
        stored,
        redefined,
    )


def summary(rebuilt: Sequence[Rebuilt], orders: Orders) -> str:
    """The last line: what it comes to."""
    records, messages = sum(one.records for one in rebuilt), sum(sum(one.equal.values()) for one in rebuilt)
    differing = sum(one.differing for one in rebuilt if not one.redefined)
    words = f"{records:,} records folded, {messages:,} messages are the same on the topics, {differing:,} differ"
    refused = sum(not one.stands(orders) for one in rebuilt)
    if not refused:
        return words
    return f"{words}. {refused} of {len(rebuilt)} partitions do not stand" + ("" if orders.dry_run else ", and nothing of them was written")


# ---- all partitions, in two processes -------------------------------------------------------------------------------------


async def jobs_of(addresses: Addresses, pipeline: Pipeline, services: Sequence[str], partition: int | None) -> list[Job]:
    """Every partition of every operator of `services`, those with most to do first. Raises Rejected while one of them runs, Fatal."""
    await asyncio.to_thread(refuse_running, addresses, services)
    await refuse_unsafe_store(addresses.redis)
    cluster = await describe_pipeline(addresses.kafka, pipeline)
    left_out = await given_up(addresses, pipeline)
    jobs = [
        Job(service, wiring.service, number, frozenset(left_out[wiring.service, number]))
        for service in services
        for wiring in wirings_of(service, pipeline, addresses)
        for number in range(cluster.partitions[wiring.reads.name])
        if partition in (None, number)
    ]
    if not jobs:
        raise Invalid(f"there is no partition {partition}; {pipeline.name} has {cluster.partitions[f'{pipeline.name}-events']}")
    return jobs


async def given_up(addresses: Addresses, pipeline: Pipeline) -> Mapping[tuple[str, int], set[int]]:
    """Records that had stopped a process, by operator and partition: they were not folded then."""
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    for letter in await read_letters(addresses, pipeline, Wanted("poison")):
        found[letter.service, letter.partition].add(letter.at)
    return found


def rebuild(
    addresses: Addresses, pipeline: str, jobs: Sequence[Job], orders: Orders, told: Callable[[Job, int, int], None]
) -> list[Rebuilt]:
    """
    All jobs, on as many processes as there are processors and jobs. `told` hears how far each is.

    Raises what went wrong with the first that failed, after the others have ended.
    """
    context = multiprocessing.get_context("spawn")
    waiting, news = context.Queue(), context.Queue()
    workers = [
        context.Process(target=_work, args=(addresses, pipeline, orders, waiting, news), daemon=True)
        for _ in range(min(len(jobs), os.cpu_count() or 1))
    ]
    for number in [*range(len(jobs)), *(None for _ in workers)]:
        waiting.put(None if number is None else (number, jobs[number]))
    for worker in workers:
        worker.start()
    done: dict[int, Rebuilt | DriftlineError] = {}
    while len(done) < len(jobs):
        try:
            number, what = news.get(timeout=LISTEN_S)
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                raise Fatal("a process of the rebuild died; nothing of its partition is in force: run it again") from None
            continue
        if isinstance(what, tuple):
            told(jobs[number], *what)
        else:
            done[number] = what
    for worker in workers:
        worker.join()
    failed = [what for what in done.values() if isinstance(what, DriftlineError)]
    if failed:
        raise failed[0]
    return [what for _, what in sorted(done.items()) if isinstance(what, Rebuilt)]


def _work(addresses: Addresses, name: str, orders: Orders, waiting: Any, news: Any) -> None:
    """A process: jobs one after the other, until there are none."""
    pipeline = load_pipeline(name)
    while (taken := waiting.get()) is not None:
        number, job = taken
        try:
            wiring = next(one for one in wirings_of(job.service, pipeline, addresses) if one.service == job.operator)

            def tell(at: int, of: int, number: int = number) -> None:
                news.put((number, (at, of)))

            news.put((number, asyncio.run(rebuild_partition(addresses, wiring, pipeline, job, orders, tell))))
        except DriftlineError as error:
            news.put((number, type(error)(f"{pipeline.name}-{job.operator}[{job.partition}]: {error}")))


# ---- the other way --------------------------------------------------------------------------------------------------------


async def forget(addresses: Addresses, pipeline: Pipeline, services: Sequence[str], partition: int | None) -> list[Rebuilt]:
    """
    Delete ledger and rows of `services`, then their groups' offsets, so that they begin at the log's start. Raises Rejected while one runs.

    The offset goes last: a ledger that is missing beside it is refused, so a service never begins on rows that are half deleted.
    """
    await asyncio.to_thread(refuse_running, addresses, services)
    cluster = await describe_pipeline(addresses.kafka, pipeline)
    wirings = [wiring for service in services for wiring in wirings_of(service, pipeline, addresses)]
    forgotten = []
    store = Store(addresses.redis)
    try:
        for wiring in wirings:
            group = group_of(wiring, pipeline)
            for number in range(cluster.partitions[wiring.reads.name]):
                if partition in (None, number):
                    rows = await Rows(store, group, number).forget()
                    forgotten.append(Rebuilt(group, number, 0, rows, note="forgotten"))
    finally:
        await store.close()
    await _delete_offsets(addresses.kafka, [group_of(wiring, pipeline) for wiring in wirings])
    return forgotten


async def _delete_offsets(kafka: str, groups: Sequence[str]) -> None:
    admin = AIOKafkaAdminClient(**kafka_client(kafka))
    await connect(admin, kafka)
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
