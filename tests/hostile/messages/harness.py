"""
Feeds mutants of every consumed topic to whoever consumes it, among good records, and counts what became of them.

Run as a program it does so with a million and writes docs/hostile-input.md; `make hostile-messages` does that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import platform
import queue
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import psutil
import structlog
from mutations import Mutations, Record
from page import written
from paths import Path, paths
from prometheus_client import REGISTRY
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from world import WRITTEN_MS, World

from driftline.stream.records import Polled

MUTANTS, GOOD = 400, 100  # in one poll; fewer good ones where a topic has few
ONE_BY_ONE = 60  # mutants in a poll of control, which the rollout takes one by one
SLOW_S = 0.5  # a poll that took longer (of the processor: others may use it as well) is tried again, record by record
SAMPLED, SINGLY = 100, 20  # and of one poll in so many, so many records

logging.disable(logging.WARNING)


@dataclass
class Found:
    """What a run found."""

    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # path, kind of mutation, reason
    valid: Counter[tuple[str, str]] = field(default_factory=Counter)  # path, kind
    good: Counter[str] = field(default_factory=Counter)
    worst_poll_s: dict[str, float] = field(default_factory=dict)
    worst_record_s: dict[str, float] = field(default_factory=dict)
    timed: int = 0
    first_half_bytes: int = 0  # of memory, the most that was seen
    second_half_bytes: int = 0
    end_bytes: int = 0
    read: float = 0
    accounted: float = 0

    @property
    def mutants(self) -> int:
        """How many were tried."""
        return self.refused.total() + self.valid.total()

    def plus(self, other: Found) -> Found:
        """Both together; of memory and time whichever is worse."""
        grown = max(self, other, key=lambda one: one.grown_bytes)
        worst = [
            {name: max(one.get(name, 0.0), two.get(name, 0.0)) for name in {**one, **two}}
            for one, two in ((self.worst_poll_s, other.worst_poll_s), (self.worst_record_s, other.worst_record_s))
        ]
        return Found(
            self.refused + other.refused,
            self.valid + other.valid,
            self.good + other.good,
            *worst,
            self.timed + other.timed,
            grown.first_half_bytes,
            grown.second_half_bytes,
            grown.end_bytes,
            self.read + other.read,
            self.accounted + other.accounted,
        )

    @property
    def grown_bytes(self) -> int:
        """How much more memory the process held in the second half of its run than in the first: what leaks goes on doing so."""
        return self.second_half_bytes - self.first_half_bytes


class Trying:
    """One path, its good log read round and round."""

    def __init__(self, path: Path, world: World, chance: random.Random, found: Found) -> None:
        self.path = path
        self._log = world.logs[path.topic]
        self._mutations = Mutations(chance, world.messages if path.ours else {})
        self._chance = chance
        self._found = found
        self._good = min(GOOD, max(1, len(self._log) // 12))
        self._at = self._offset = self._polls = 0

    async def poll(self, mutants: int) -> None:
        """One poll with so many mutants."""
        if self._at == 0:
            await self.path.begin()
            self._offset = 0
        good = self._log[self._at : self._at + self._good]
        self._at = 0 if self._at + self._good >= len(self._log) else self._at + self._good
        polled, kinds = self._mixed(good, mutants)
        began = time.process_time()
        refused = await self.path.trial(polled, frozenset(kinds))
        spent = time.process_time() - began
        self._count(kinds, refused)
        self._found.good[self.path.name] += len(good)
        self._found.worst_poll_s[self.path.name] = max(spent, self._found.worst_poll_s.get(self.path.name, 0.0))
        self._polls += 1
        if spent > SLOW_S or self._polls % SAMPLED == 1:
            await self._time_each(polled, len(polled) if spent > SLOW_S else SINGLY)

    def _mixed(self, good: Sequence[Record], mutants: int) -> tuple[Polled, dict[int, str]]:
        """Good ones in their order, mutants of any of them anywhere between; the last is good, so that all runs end at one offset."""
        places = sorted([(at + 1.0, "", record) for at, record in enumerate(good)], key=lambda place: place[0])
        for _ in range(mutants):
            kind, record = self._mutations.of(self._chance.choice(good))
            places.append((self._chance.random() * len(good), kind, record))
        places.sort(key=lambda place: place[0])
        offsets = [*range(self._offset, self._offset + len(places))]
        self._offset += len(places)
        records = [record for *_, record in places]
        polled = Polled.of(offsets, [one.key for one in records], [one.value for one in records], [WRITTEN_MS] * len(records))
        return polled, {offset: kind for offset, (_, kind, _) in zip(offsets, places, strict=True) if kind}

    def _count(self, kinds: dict[int, str], refused: dict[int, str]) -> None:
        for offset, kind in kinds.items():
            if offset in refused:
                self._found.refused[self.path.name, kind, refused[offset]] += 1
            else:
                self._found.valid[self.path.name, kind] += 1

    async def _time_each(self, polled: Polled, most: int) -> None:
        for at in range(min(most, len(polled))):
            began = time.process_time()
            await self.path.alone(polled.part(at, at + 1))
            spent = time.process_time() - began
            self._found.timed += 1
            self._found.worst_record_s[self.path.name] = max(spent, self._found.worst_record_s.get(self.path.name, 0.0))


async def tried(count: int, seed: int, days: int, moved: Callable[[int], object] = lambda _: None) -> Found:
    """`count` mutants, the same number for each path."""
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of numbers without sense; what becomes of them is what is looked at
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    world, chance, found = World(days), random.Random(seed), Found()
    await world.play()
    everywhere = [Trying(path, world, chance, found) for path in paths(world)]
    process = psutil.Process()
    before = accounted()
    while found.mutants < count:
        for one in everywhere:
            if found.mutants < count:
                most = ONE_BY_ONE if one.path.topic == "control" else MUTANTS
                await one.poll(min(most, count - found.mutants))
        rss = process.memory_info().rss
        if found.mutants < count / 2:
            found.first_half_bytes = max(found.first_half_bytes, rss)
        else:
            found.second_half_bytes = max(found.second_half_bytes, rss)
        moved(found.mutants)
    for one in everywhere:
        await one.path.begin()
    gc.collect()
    found.end_bytes = process.memory_info().rss
    found.read, found.accounted = (now - then for now, then in zip(accounted(), before, strict=True))
    return found


def accounted() -> tuple[float, float]:
    """How many messages the loop and the rollout have read, and what became of them, as their metrics say."""
    totals = [0.0, 0.0]
    for family in REGISTRY.collect():
        if family.name in ("driftline_messages_read", "driftline_messages"):
            totals[family.name == "driftline_messages"] += sum(one.value for one in family.samples if one.name.endswith("_total"))
    return totals[0], totals[1]


def worked(number: int, count: int, seed: int, days: int, told: Any) -> Found:
    """The share of one process, its seed following from its number; `told` hears how far it is."""
    return asyncio.run(tried(count, seed * 1_000 + number, days, lambda n: told.put((number, n))))


def shared_out(chosen: argparse.Namespace) -> Found:
    """The whole count over some processes, with a bar, or with lines where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    share, done, lines = -(-chosen.count // chosen.workers), dict[int, int](), 0
    spawning = multiprocessing.get_context("spawn")
    with (
        spawning.Manager() as manager,
        ProcessPoolExecutor(chosen.workers, spawning) as pool,
        Progress(*columns, disable=not sys.stderr.isatty()) as progress,
    ):
        told, bar = manager.Queue(), progress.add_task("mutated messages", total=chosen.count)
        parts = [pool.submit(worked, n, share, chosen.seed, chosen.days, told) for n in range(chosen.workers)]
        while not all(part.done() for part in parts):
            with contextlib.suppress(queue.Empty):
                done.update([told.get(timeout=1)])
            progress.update(bar, completed=sum(done.values()))
            if not sys.stderr.isatty() and sum(done.values()) * 20 // chosen.count > lines:
                lines = sum(done.values()) * 20 // chosen.count
                print(f"{sum(done.values()):,} of {chosen.count:,}", file=sys.stderr, flush=True)
        return functools.reduce(Found.plus, (part.result() for part in parts))


def main() -> int:
    """Try, tell, write the page. The exit status is 1 when a promise was broken."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--count", type=int, default=1_000_000)
    asked.add_argument("--seed", type=int, default=7)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--days", type=int, default=8)
    asked.add_argument("--page", type=File)
    chosen = asked.parse_args()
    began = time.perf_counter()
    found = shared_out(chosen)
    command = f"make hostile-messages COUNT={chosen.count} SEED={chosen.seed} WORKERS={chosen.workers}"
    page = written(found, command, chosen.workers, time.perf_counter() - began, platform.python_version())
    print(page)
    if chosen.page:
        chosen.page.write_text(page)
    return 0 if found.grown_bytes < 50 << 20 and max(found.worst_record_s.values()) < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
