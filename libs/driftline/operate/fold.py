"""
One partition of one operator folded again from its log, as the service did, but for the sending: what it makes is proved instead.

State is a function of (log, offset), so the same decoder, the same dropping of copies and the same core give the same rows, whatever the
batches were. Records that had stopped the process, and were given up for that, are left out as they were then: the dead letters name
them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from driftline.contracts.topics import Topics
from driftline.errors import Fatal, Recoverable
from driftline.operate.proof import SILENCE_MS, Findings, Proof, Scope
from driftline.pipeline import Pipeline
from driftline.stream.batch import Batch, Effects, Messages, sifted
from driftline.stream.kafka import Cluster, Source
from driftline.stream.ledger import Entry
from driftline.stream.operators import Wiring
from driftline.stream.records import Coordinate, Decoder, Encoder, Lane, Polled, SchemaRegistry, drop_seen

RECORDS_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Subject:
    """What is folded: one partition of one operator, up to `goal`, without the records that were `given_up`."""

    wiring: Wiring
    pipeline: Pipeline
    partition: int
    cluster: Cluster
    goal: int
    given_up: Set[int] = frozenset()

    def entry(self, seen: Mapping[Lane, Coordinate], anchor: tuple[int, int, int] | None) -> Entry:
        """The ledger of the goal, as the service writes it."""
        cluster = self.cluster
        row_format = self.wiring.row_format or 0
        return Entry(self.goal, dict(seen), anchor, cluster.id, dict(cluster.partitions), self.pipeline.digest, row_format)


@dataclass(slots=True)
class Folded:
    """What came of it."""

    entry: Entry
    rows: dict[bytes, bytes]
    findings: Findings
    records: int = 0


@dataclass
class Fold:
    """The state in memory; `take` moves it on."""

    subject: Subject
    registry: SchemaRegistry
    rows: dict[bytes, bytes] = field(default_factory=dict)
    seen: Mapping[Lane, Coordinate] = field(default_factory=dict)
    anchor: tuple[int, int, int] | None = None
    counts: Counter[str] = field(default_factory=Counter)  # of records, by what became of them

    def __post_init__(self) -> None:
        subject = self.subject
        topics = Topics.of(subject.pipeline)
        self._decoder = Decoder(subject.wiring.reads, self.registry, subject.pipeline)
        self._core = subject.wiring.core(subject.partition, subject.cluster.partitions[topics.events.name])
        self._first_tick_ms: int | None = None
        self.reached = False  # the log holds, before what comes next, all that it may look back to

    def take(self, polled: Polled) -> Sequence[Messages]:
        """Fold some more of the log. Returns what the service would have sent."""
        self.anchor = polled.anchor(polled.last + 1)
        polled = self._without_given_up(polled)
        if not len(polled):
            return ()
        batch, refused = sifted(self._core, *self._decoder.decode(self.subject.partition, polled))
        fresh, seen = drop_seen(batch, self.seen)
        effects = self._step(fresh) if len(fresh) else Effects()
        if effects.refused:  # what was refused has not taken its coordinate
            _, seen = drop_seen(batch.without(effects.refused), self.seen)
        self.seen = seen
        self.counts.update({**effects.counts, "refused": len(refused) + len(effects.refused)})
        for key, row in effects.state.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self._look_back(fresh)
        return effects.messages

    def _step(self, batch: Batch) -> Effects:
        while keys := self._core.needs(batch):
            self._core.load({key: self.rows.get(key) for key in keys})
        return self._core.step(batch)

    def _without_given_up(self, polled: Polled) -> Polled:
        given_up = np.isin(polled.offsets, list(self.subject.given_up))
        return polled.take(~given_up) if given_up.any() else polled

    def _look_back(self, batch: Batch) -> None:
        reach_ms = self.subject.wiring.reach_ms
        ticks = batch["tick"]
        if ticks is None or reach_ms is None:
            return
        times = np.asarray(ticks["time"], np.int64)
        if self._first_tick_ms is None:
            self._first_tick_ms = int(times[0])
        self.reached = bool(times[-1] >= self._first_tick_ms + reach_ms)


async def fold(kafka: str, registry: SchemaRegistry, subject: Subject, told: Callable[[int], None]) -> Folded:
    """
    Fold the log from its start up to the goal, and compare all that is made with the topics. `told` hears of each offset that is reached.

    Raises Recoverable when the servers do not answer, Fatal when the log does not hold what is to be folded.
    """
    wiring, partition = subject.wiring, subject.partition
    source = Source(kafka, wiring.reads.name, partition)
    work, proofs = Fold(subject, registry), dict[str, Proof]()
    await source.start()
    try:
        start, end = await source.bounds()
        if not start <= subject.goal <= end:
            raise Fatal(f"{wiring.reads.name}[{partition}] holds {start} to {end}, and the state stood at {subject.goal}")
        scope = Scope(wiring.writer, wiring.source, partition, start, subject.goal)
        encoder = Encoder({topic.kind: topic for topic in wiring.writes}, registry, wiring.writer)
        for topic in wiring.writes:
            proofs[topic.kind] = Proof(kafka, topic, partition if topic.partitioned else 0, registry, encoder, scope)
            await proofs[topic.kind].start()
        if start > 0:
            for proof in proofs.values():
                proof.proves_from = subject.goal
        source.seek(start)
        records = await _walk(source, work, proofs, told, start)
        findings = Findings()
        for proof in proofs.values():
            findings.add(await proof.finish())
        return Folded(subject.entry(work.seen, work.anchor), work.rows, findings, records)
    finally:
        await source.stop()
        for proof in proofs.values():
            await proof.stop()


async def _walk(source: Source, work: Fold, proofs: Mapping[str, Proof], told: Callable[[int], None], start: int) -> int:
    position, records, goal = start, 0, work.subject.goal
    while position < goal:
        polled = await source.poll(RECORDS_MAX, SILENCE_MS)
        if polled is None:
            raise Recoverable(f"{work.subject.wiring.reads.name}[{work.subject.partition}]: nothing arrives from {position} on")
        position = polled.last + 1
        if position > goal:
            polled = polled.part(0, polled.below(goal))
        if not len(polled):
            break
        reached = work.reached
        messages = work.take(polled)
        made: dict[str, list[Messages]] = defaultdict(list)
        for one in messages:
            made[one.topic].append(one)
        for kind, proof in proofs.items():
            if start > 0 and reached:
                proof.proves_from = min(proof.proves_from, polled.first)
            await proof.take(made[kind])
        records += len(polled)
        told(min(position, goal))
    return records
