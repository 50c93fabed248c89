"""
What an event costs with more and more entities, and with a second worker.

Entities: the feature core in a process of its own, rows loaded from and kept in a real store; every payment is with a card drawn evenly
from all, which is the worst there is for a memory that cannot hold them. Each card is in the state that forty payments left, one every
five and a half hours, however many cards there are. Workers: the feature service over two partitions, in one process and in two.

    python -m benchmarks.performance.growth                                       # 10^4 to 10^7 cards, and workers
    python -m benchmarks.performance.growth --cards 10000,100000 --payments 40000  # a quick one
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from driftline.contracts.avro import Codec
from driftline.contracts.messages import Source
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.local.valkey import Valkey
from driftline.stream.batch import Batch, Table, Varlen
from driftline.stream.kafka import LogReader, ensure_topics
from driftline.stream.ledger import prefix_of
from driftline.stream.store import Store
from services.feature.core import ENTITIES_MAX, Feature

from .cards import Kept
from .hops import PATIENCE_S, SERVICES, Bench, Differs, Driftline, benched, end
from .meter import US, Cost, Meter, cpu_s
from .payments import FIRST_MS, pipeline

ENTITIES = (10_000, 100_000, 1_000_000, 10_000_000)
PAYMENTS, WORKER_PAYMENTS = 200_000, 400_000
BATCH = 4_000
APART_MS = 20_000_000  # of two payments with one card
MODELS, PAYMENTS_EACH = 4_000, 40  # cards that are folded one payment after the other; all others are in the state of one of these
ROOMY = 1_000_000
PARTITIONS = 2


def batch(first: int, cards: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> Batch:
    """Payments with these cards, from offset `first` on."""
    n = len(cards)
    keys, ids = Varlen.of([key(card) for card in cards.tolist()]), Varlen.of([b"p%09d" % number for number in range(first, first + n)])
    amounts = np.round(np.random.default_rng([7, first]).gamma(2.0, 30.0, n) * 4) / 4
    body = Codec(dict(pipeline().streams[0].schema)).encode({"payment_id": ids, "card": keys, "at": times, "amount": amounts})
    columns = {"id": ids, "key": keys, "visible": times, "time": times, "body": body}
    columns |= {"source": np.full(n, Source.UPSTREAM, np.int64), "home": np.ones(n, np.bool_)}
    return Batch(0, first, first + n, {"event": Table("event", np.arange(first, first + n), columns)})


def key(card: int) -> bytes:
    """A card as text."""
    return b"card-%08d" % card


def batches(first: int, cards: npt.NDArray[np.int64], began_ms: int, apart_ms: float) -> Iterator[Batch]:
    """Payments one after the other."""
    times = began_ms + (np.arange(len(cards)) * apart_ms).astype(np.int64)
    for at in range(0, len(cards), BATCH):
        yield batch(first + at, cards[at : at + BATCH], times[at : at + BATCH])


def models() -> tuple[list[tuple[bytes, bytes]], int]:
    """The rows of some cards, of entity and memory of ids, and the time of the last payment."""
    core, n = Feature(pipeline(), 0), MODELS * PAYMENTS_EACH
    rows: dict[bytes, bytes | None] = {}
    apart_ms = APART_MS / MODELS
    for one in batches(0, np.random.default_rng(1).permutation(np.repeat(np.arange(MODELS), PAYMENTS_EACH)), FIRST_MS, apart_ms):
        core.unfit(one)
        while wanted := core.needs(one):
            core.load(dict.fromkeys(wanted))
        rows |= core.step(one).state
    view, stream = pipeline().views[0].name.encode(), pipeline().streams[0].name.encode()
    found = [(rows[b"%b:%b" % (view, key(card))], rows[b"ids:%b:%b" % (stream, key(card))]) for card in range(MODELS)]
    return [(entity or b"", ids or b"") for entity, ids in found], FIRST_MS + int(n * apart_ms)


async def fill(url: str, cards: int) -> int:
    """The state of so many cards into the store. Returns the time of the last payment."""
    rows, last_ms = await asyncio.to_thread(models)
    store, prefix = Store(url), prefix_of(f"{pipeline().name}-feature", 0)
    view, stream = pipeline().views[0].name.encode(), pipeline().streams[0].name.encode()
    await store.ask(("CONFIG", "SET", "appendonly", "no"))  # ten million rows would be written twice, and rewritten
    for first in range(0, cards, BATCH):
        words: list[bytes] = [b"MSET"]
        for card in range(first, min(first + BATCH, cards)):
            entity, ids = rows[card % MODELS]
            words += [b"%b%b:%b" % (prefix, view, key(card)), entity, b"%bids:%b:%b" % (prefix, stream, key(card)), ids]
        await store.ask(words)
    await store.close()
    return last_ms


async def fold(cards: int, payments: int, entities_max: int) -> dict[str, Any]:
    """In this process: processor time of a payment, its loads, and memory."""
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        await asyncio.to_thread(server.start)
        try:
            last_ms = await fill(server.url, cards)
            kept, chance = Kept(pipeline(), server.url, entities_max), np.random.default_rng(5)
            await kept.open()
            all_of_them = chance.permutation(cards) if 2 * cards <= entities_max else chance.integers(0, cards, entities_max)
            apart_ms = APART_MS / cards
            for one in batches(0, all_of_them, last_ms, apart_ms):  # until the memory has what it can hold
                await kept.take(one)
            began_ms, loaded = last_ms + int(len(all_of_them) * apart_ms), kept.loaded
            measured = list(batches(len(all_of_them), chance.integers(0, cards, payments), began_ms, apart_ms))
            ours, theirs = time.process_time(), cpu_s(server.pid)
            for one in measured:
                await kept.take(one)
            ours, theirs = time.process_time() - ours, cpu_s(server.pid) - theirs
            store = Store(server.url)
            (told,) = await store.ask(("INFO", "memory"))
            await asyncio.gather(store.close(), kept.close())
        finally:
            await asyncio.to_thread(server.stop)
    used = int(next(line.split(b":")[1] for line in told.splitlines() if line.startswith(b"used_memory:")))
    return {
        "cards": cards,
        "payments": payments,
        "entities_max": entities_max,
        "us": round(US * ours / payments, 3),
        "store_us": round(US * theirs / payments, 3),
        "loads": round((kept.loaded - loaded) / payments, 3),
        "entities": kept.core.entities,
        "memory_mib": psutil.Process().memory_info().rss >> 20,
        "store_mib": used >> 20,
    }


def folds(entities: Sequence[int], payments: int) -> list[dict[str, Any]]:
    """Each number of cards in a process of its own, so that each has a memory of its own; a million also with room for all of them."""
    limits = [(cards, ENTITIES_MAX) for cards in entities] + [(cards, 3 * cards) for cards in entities if cards == ROOMY]
    command = [sys.executable, "-m", "benchmarks.performance.growth", "--payments", str(payments)]
    runs = [[*command, "--one", str(cards), "--entities-max", str(most)] for cards, most in sorted(limits)]
    return [json.loads(subprocess.run(one, check=True, capture_output=True).stdout) for one in runs]


async def hop(processes: int, payments: int) -> dict[str, Any]:
    """The feature service over two partitions, in so many processes. Raises Differs when a row is not what it should be."""
    async with benched(payments, sys.executable) as bench:
        ours = Driftline(bench)
        await ensure_topics(bench.kafka, Topics.of(ours.pipeline), PARTITIONS)
        await ours.prepare()
        await run(bench, ours, "intake", 1, payments)
        cost = await run(bench, ours, "feature", processes, payments)
        await check(bench, ours)
        us = {party: cost.us[party] for party in ("broker", "store")}
        us["client"] = sum(one for party, one in cost.us.items() if party.startswith("client"))
        return {"processes": processes, "rate": round(cost.rate), "us": {party: round(one, 3) for party, one in us.items()}}


async def run(bench: Bench, ours: Driftline, service: str, processes: int, outputs: int) -> Cost:
    """All of them from their start to the last output."""
    children = []
    for number in range(processes):
        environment = {**ours.environment, "DRIFTLINE_REPLICA": str(number), "DRIFTLINE_REPLICAS": str(processes)}
        command = [sys.executable, "-m", "driftline", "run", service, "--pipeline", ours.pipeline.name, "--log-level", "warning"]
        own = environment if service == "feature" else ours.environment
        children.append(bench.stack.spawn(f"{service}-{number}", command, own))
    try:
        parties = {f"client {number}": child.pid for number, child in enumerate(children)}
        return await Meter(bench.kafka, SERVICES[service], PARTITIONS, {**parties, **bench.servers}).until(outputs, PATIENCE_S)
    finally:
        for child in children:
            await asyncio.to_thread(end, child)


async def check(bench: Bench, ours: Driftline) -> None:
    """Every payment's row, whichever partition it is in."""
    reader = LogReader(bench.kafka, Topics.of(ours.pipeline).features, Registry(bench.stack.environment()["DRIFTLINE_REGISTRY"]))
    await reader.start()
    try:
        tables = [one.tables["row"] for one in (await reader.read_to()).values()]
    finally:
        await reader.stop()
    ids = [name for table in tables for name in table["id"].texts()]
    rows = np.concatenate([ours.pipeline.layout.matrix(table["row"]) for table in tables])
    order = np.argsort(np.array(ids))
    if len(ids) != bench.payments.n or not np.array_equal(rows[order], bench.payments.rows):
        raise Differs(f"{len(ids)} rows of {bench.payments.n}, or not what they should be")


def measure(entities: Sequence[int] = ENTITIES, payments: int = PAYMENTS, worker_payments: int = WORKER_PAYMENTS) -> dict[str, Any]:
    """Both."""
    return {
        "entities": folds(entities, payments),
        "workers": [asyncio.run(hop(processes, worker_payments)) for processes in (1, 2)] if worker_payments else [],
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", default=",".join(map(str, ENTITIES)))
    parser.add_argument("--payments", type=int, default=PAYMENTS)
    parser.add_argument("--worker-payments", type=int, default=WORKER_PAYMENTS, help="0: without workers")
    parser.add_argument("--one", type=int, help="so many cards alone, in this process")
    parser.add_argument("--entities-max", type=int, default=ENTITIES_MAX)
    asked = parser.parse_args()
    if asked.one:
        found: Any = asyncio.run(fold(asked.one, asked.payments, asked.entities_max))
    else:
        found = measure([int(cards) for cards in asked.cards.split(",")], asked.payments, asked.worker_payments)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
