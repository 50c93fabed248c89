"""
What a feature takes in the store, and what it costs to read the features of 1, 10 and 100 entities: beside MGET of the same rows, by our
own client of the store and by redis-py, in turn in one run.

    python -m benchmarks.performance.reads                                   # 100,000 cards, a million payments
    python -m benchmarks.performance.reads --cards 5000 --payments 50000     # a quick one
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from redis.asyncio import Redis

from driftline.errors import DriftlineError
from driftline.local.valkey import Valkey
from driftline.stream.online import OnlineReader
from driftline.stream.store import Store

from .cards import GROUP, Cards, Kept, batch_of, pipeline, row_name
from .meter import US

SIZES = (1, 10, 100)
READS, ROUNDS, SETS = 1_000, 5, 100
CHECKED = 2_000

Read = Callable[[int], Awaitable[Any]]


class Differs(DriftlineError):
    """What was read is not what the fold says."""


async def fill(url: str, cards: Cards) -> Kept:
    """All payments through the core into the store."""
    kept = Kept(pipeline(), url)
    await kept.open()
    for batch in cards.batches():
        await kept.take(batch)
    return kept


async def memory(store: Store) -> int:
    """Bytes that the server says it uses."""
    (told,) = await store.ask(("INFO", "memory"))
    return int(next(line.split(b":")[1] for line in told.splitlines() if line.startswith(b"used_memory:")))


async def sizes(store: Store) -> dict[str, dict[str, float]]:
    """Of the rows of entities and of the memories of ids: how many, and mean bytes of key and value."""
    found: dict[str, list[tuple[int, int]]] = {"card": [], "ids": []}
    cursor = b"0"
    while True:
        ((cursor, keys),) = await store.ask(("SCAN", cursor, "COUNT", 2_000))
        named = [key for key in keys if key.split(b":")[2] in (b"card", b"ids")]
        if named:
            (values,) = await store.ask(("MGET", *named))
            for key, value in zip(named, values, strict=True):
                found[key.split(b":")[2].decode()].append((len(key), len(value)))
        if cursor == b"0":
            break
    return {
        kind: {"rows": len(some), "key": statistics.fmean(key for key, _ in some), "value": statistics.fmean(value for _, value in some)}
        for kind, some in found.items()
    }


async def check(reader: OnlineReader, kept: Kept, cards: Cards) -> int:
    """Read some cards, then ask the fold itself, by one more payment with each, all of one time. Raises Differs."""
    keys = [cards.key(number) for number in np.random.default_rng(3).permutation(cards.cards)[:CHECKED].tolist()]
    asked = np.full(len(keys), int(cards.times[-1]) + 1)
    answers = await reader.read({"card": keys}, int(asked[0]))
    rows = await kept.take(batch_of(cards.n, keys, asked, np.ones(len(keys))))
    layout = kept.pipeline.layout
    if answers.features.tobytes() != layout.matrix(rows).tobytes() or answers.ages.tobytes() != layout.ages(rows).tobytes():
        raise Differs(f"of {len(keys)} entities, some were read otherwise than the fold answers")
    return len(keys)


async def timed(read: Read, n: int) -> tuple[list[float], float]:
    """Seconds of each of `n` reads, and processor seconds of all of them."""
    took, began_cpu = [], time.process_time()
    for number in range(n):
        began = time.perf_counter()
        await read(number)
        took.append(time.perf_counter() - began)
    return took, time.process_time() - began_cpu


async def compared(url: str, cards: Cards, reads: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each number of entities, each way to read: median, p99 and processor time, microseconds a read, median of the rounds."""
    store, raw, redis = Store(url), Store(url), Redis.from_url(url)
    reader, asked_ms = OnlineReader(store, pipeline(), GROUP), int(cards.times[-1]) + 1
    found: dict[str, dict[str, dict[str, float]]] = {}
    for size in SIZES:
        chance = np.random.default_rng(size)
        keys = [[cards.key(number) for number in chance.integers(0, cards.cards, size).tolist()] for _ in range(SETS)]
        names = [[row_name(key) for key in some] for some in keys]
        ways: dict[str, Read] = {
            "features": lambda number, keys=keys: reader.read({"card": keys[number % SETS]}, asked_ms),  # type: ignore[misc]
            "MGET": lambda number, names=names: raw.ask(("MGET", *names[number % SETS])),  # type: ignore[misc]
            "MGET by redis-py": lambda number, names=names: redis.mget(names[number % SETS]),  # type: ignore[misc]
        }
        seen: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
        for turn in range(ROUNDS):
            for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                took, cpu = await timed(ways[way], reads)
                seen[way].append((statistics.median(took), float(np.quantile(took, 0.99)), cpu / reads))
        middle = {way: [US * statistics.median(column) for column in zip(*some, strict=True)] for way, some in seen.items()}
        found[str(size)] = {way: dict(zip(("p50", "p99", "cpu"), (round(one, 1) for one in us), strict=True)) for way, us in middle.items()}
    await asyncio.gather(store.close(), raw.close(), redis.aclose())
    return found


async def measure(cards: int = 100_000, payments: int = 1_000_000, reads: int = READS) -> dict[str, Any]:
    """Bytes a feature, and each way to read, on a store of its own."""
    drawn, features = Cards(cards, payments), len(pipeline().layout.names)
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        await asyncio.to_thread(server.start)
        try:
            store = Store(server.url)
            before = await memory(store)
            kept = await fill(server.url, drawn)
            used = await memory(store) - before
            kinds = await sizes(store)
            told = await compared(server.url, drawn, reads)
            checked = await check(OnlineReader(store, pipeline(), GROUP), kept, drawn)
            await asyncio.gather(store.close(), kept.close())
        finally:
            await asyncio.to_thread(server.stop)
    row = kinds["card"]
    return {
        "cards": cards,
        "payments": payments,
        "features": features,
        "rows": kinds,
        "bytes_a_feature": round((row["key"] + row["value"]) / features, 2),
        "used_memory": used,
        "used_memory_a_card": round(used / cards),
        "checked": checked,
        "reads_us": told,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, default=100_000)
    parser.add_argument("--payments", type=int, default=1_000_000)
    parser.add_argument("--reads", type=int, default=READS)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(measure(asked.cards, asked.payments, asked.reads)), indent=1))


if __name__ == "__main__":
    main()
