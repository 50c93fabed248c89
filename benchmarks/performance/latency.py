"""
From an upstream record to its prediction (P3), and how batches follow the load: the payments pipeline live, its three hops beside a raw
echo of three hops (benchmarks/peers/floor_aiokafka.py) on the same broker, in turn at the same rate: A B, B A.

    python -m benchmarks.performance.latency --rates 50,200,1000,5000 --seconds 8

A record counts from when it is handed to the producer until the consumer of the last topic has it; both are this process. The highest
rate is measured first, on a backlog; half of it is the half load. Mean batches are read from the services' `/metrics`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from prometheus_client.parser import text_string_to_metric_families

from driftline.contracts.avro import Codec, frame
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.local.child import Child
from driftline.stream.batch import Varlen
from driftline.stream.kafka import create_topics, ensure_topics

from .bundles import Champion
from .hops import PEERS, PIPELINES, SERVICES, Bench, Differs, benched
from .meter import US, TooSlow, cpu_s
from .payments import CARDS, MODEL_ROWS, RECIPE, payments_of, pipeline

RATES = (50, 200, 1_000, 2_000, 5_000, 10_000)
HALF = 0  # stands for half of the highest rate
SECONDS = 8.0
SLOT_S = 0.001
LOOK_EVERY_S = 0.05
BACKLOG, BACKLOG_S = 200_000, 120.0
GRACE_S = 20.0
ECHO_HOPS = 3
PERCENTILES = (50, 90, 99)
BUCKETS_MS = (0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1_000, 5_000)


@dataclass(frozen=True)
class Chain:
    """Something that answers each record of `source` with one of `target`, in order, and the processes that do it by name."""

    name: str
    source: str
    target: str
    children: Mapping[str, Child]


class Driver:
    """Publishes payments at a rate and takes the time of each answer."""

    def __init__(self, bench: Bench, schema_id: int) -> None:
        self._bench = bench
        self._codec = Codec(dict(pipeline().streams[0].schema))
        self._frame = frame(schema_id)
        self._made = 0

    async def backlog(self, chain: Chain, n: int) -> float:
        """Answers a second while records are published as quickly as this process can, from the first to the last answer."""
        keys, values = self._payments(n, time.time() * 1e3)
        at = TopicPartition(chain.target, 0)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bench.kafka)
        await consumer.start()
        try:
            until, before = time.monotonic() + BACKLOG_S, (await consumer.end_offsets([at]))[at]
            began = time.monotonic()
            publishing = asyncio.create_task(self._publish(chain.source, keys, values))
            while (await consumer.end_offsets([at]))[at] < before + n:
                if time.monotonic() > until:
                    raise TooSlow(f"{chain.name}: {n} records are not answered after {BACKLOG_S:.0f} s")
                await asyncio.sleep(LOOK_EVERY_S)
            await publishing
            return n / (time.monotonic() - began)
        finally:
            await consumer.stop()

    async def drive(self, chain: Chain, rate: float, seconds: float) -> dict[str, Any]:
        """Latencies of all records of `seconds` at `rate`, batches and processor time meanwhile. Raises TooSlow, Differs."""
        n = max(20, int(rate * seconds))
        keys, values = self._payments(n, time.time() * 1e3 + np.arange(n) * 1e3 / rate)
        at = TopicPartition(chain.target, 0)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bench.kafka, auto_offset_reset="none", max_partition_fetch_bytes=4 << 20)
        await consumer.start()
        try:
            consumer.assign([at])
            consumer.seek(at, (await consumer.end_offsets([at]))[at])
            before, batches = self._used(chain), read_batches(self._bench, chain)
            began = time.monotonic()
            taking = asyncio.create_task(_take(consumer, at, n, seconds + GRACE_S))
            sent = await self._pace(chain.source, keys, values, rate)
            arrived = await taking
            took = time.monotonic() - began
        finally:
            await consumer.stop()
        used = {name: round(US * (now - before[name]) / n, 2) for name, now in self._used(chain).items()}
        sizes = {name: round(size, 2) for name, size in mean_batches(batches, read_batches(self._bench, chain)).items()}
        return {
            "chain": chain.name,
            "rate": round(rate),
            "events": n,
            "seconds": round(took, 2),
            **summary(1e3 * (arrived - sent)),
            "cpu_us": used,
            "batch": sizes,
        }

    def _payments(self, n: int, times_ms: Any) -> tuple[list[bytes], list[bytes]]:
        numbers = np.arange(self._made, self._made + n)
        self._made += n
        keys = [b"card-%05d" % card for card in (numbers * 7_919 % CARDS).tolist()]
        ids = Varlen.of([f"l{number:08d}" for number in numbers.tolist()])
        times = np.broadcast_to(np.asarray(times_ms, np.float64), n).astype(np.int64)
        columns = {"payment_id": ids, "card": Varlen.of(keys), "at": times, "amount": np.full(n, 12.25)}
        return keys, list(self._codec.encode(columns, self._frame).tolist())

    async def _publish(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._bench.kafka, max_batch_size=900_000)
        await producer.start()
        for at in range(0, len(keys), 5_000):
            await _send(producer, topic, keys[at : at + 5_000], values[at : at + 5_000])
        await producer.stop()

    async def _pace(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes], rate: float) -> npt.NDArray[np.float64]:
        """Each at its time, those of a millisecond together. When each was handed over, float64 (n,)."""
        producer = AIOKafkaProducer(bootstrap_servers=self._bench.kafka, max_batch_size=900_000)
        await producer.start()
        sent, done, began = np.empty(len(keys)), 0, time.monotonic()
        try:
            while done < len(keys):
                due = min(len(keys), int(rate * (time.monotonic() - began)) + 1)
                if due > done:
                    sent[done:due] = time.monotonic()
                    await _send(producer, topic, keys[done:due], values[done:due])
                    done = due
                await asyncio.sleep(max(SLOT_S, 1 / rate if rate < 1 / SLOT_S else SLOT_S))
        finally:
            await producer.stop()
        return sent

    def _used(self, chain: Chain) -> dict[str, float]:
        return {name: cpu_s(child.pid) for name, child in chain.children.items()} | {
            name: cpu_s(pid) for name, pid in self._bench.servers.items()
        }


async def _send(producer: AIOKafkaProducer, topic: str, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    batch = producer.create_batch()
    for key, value in zip(keys, values, strict=True):
        if batch.append(timestamp=None, key=key, value=value) is None:  # full, as when the sender was kept waiting
            await producer.send_batch(batch, topic, partition=0)
            batch = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value)
    await producer.send_batch(batch, topic, partition=0)


async def _take(consumer: AIOKafkaConsumer, at: TopicPartition, n: int, patience_s: float) -> npt.NDArray[np.float64]:
    """When each of the next `n` records was there, float64 (n,). Raises TooSlow."""
    times, until = np.empty(n), time.monotonic() + patience_s
    taken = 0
    while taken < n:
        records = (await consumer.getmany(at, timeout_ms=1_000)).get(at, [])
        times[taken : taken + len(records)] = time.monotonic()
        taken += len(records)
        if time.monotonic() > until:
            raise TooSlow(f"{taken} of {n} answers on {at.topic}")
    if taken > n:
        raise Differs(f"{taken} answers to {n} records on {at.topic}")
    return times


def summary(latencies_ms: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Percentiles in ms, and how many were at most so many ms: `histogram` beside BUCKETS_MS."""
    counts = np.histogram(latencies_ms, (0.0, *BUCKETS_MS, np.inf))[0].tolist()
    return {**{f"p{p}_ms": round(float(np.percentile(latencies_ms, p)), 2) for p in PERCENTILES}, "histogram": counts}


def read_batches(bench: Bench, chain: Chain) -> dict[str, tuple[float, float]]:
    """Of each service: batches and their records so far; nothing of a chain without metrics."""
    found = {}
    for service in chain.children:
        place = bench.stack.run_dir / f"{service}.json"
        if place.exists():
            with urllib.request.urlopen(json.loads(place.read_text())["ops"] + "/metrics", timeout=5) as answer:
                families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
            sums = {sample.name: sample.value for sample in getattr(families.get("driftline_batch_messages"), "samples", [])}
            found[service] = (sums.get("driftline_batch_messages_count", 0.0), sums.get("driftline_batch_messages_sum", 0.0))
    return found


def mean_batches(before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Records a batch, of each service that had one meanwhile."""
    grown = {name: (after[name][0] - count, after[name][1] - total) for name, (count, total) in before.items()}
    return {name: total / count for name, (count, total) in grown.items() if count}


async def start_pipeline(bench: Bench) -> tuple[Chain, int]:
    """Topics, a model in force and the three services, live; they answer when this returns. Also the schema's id upstream."""
    declared, stream = pipeline(), pipeline().streams[0]
    registry = Registry(bench.stack.environment()["DRIFTLINE_REGISTRY"])
    await ensure_topics(bench.kafka, Topics.of(declared), 1)
    await create_topics(bench.kafka, [NewTopic(stream.topic, 1, 1)])
    schema_id = await asyncio.to_thread(registry.register, f"{stream.topic}-value", dict(stream.schema))
    champion = Champion(declared, bench.stack.folder)
    await champion.deploy(champion.put(bench.graph, RECIPE, payments_of(MODEL_ROWS, 11).rows, 0), bench.kafka, registry)
    environment = {"DRIFTLINE_PIPELINES": str(PIPELINES), **champion.environment}
    children = {}
    for service in SERVICES:
        command = [sys.executable, "-m", "driftline", "run", service, "--pipeline", "payments", "--log-level", "warning"]
        children[service] = bench.stack.spawn(service, command, environment)
    return Chain("driftline", stream.topic, SERVICES["inference"], children), schema_id


async def start_echo(bench: Bench) -> Chain:
    """As many processes as driftline has hops, each aiokafka alone."""
    topics = [f"echo-{number}" for number in range(ECHO_HOPS + 1)]
    await create_topics(bench.kafka, [NewTopic(topic, 1, 1) for topic in topics])
    children = {}
    for number in range(ECHO_HOPS):
        command = [sys.executable, str(PEERS / "floor_aiokafka.py"), "--hop", "echo", "--kafka", bench.kafka]
        command += ["--source", topics[number], "--target", topics[number + 1]]
        children[f"echo {number}"] = bench.stack.spawn(f"echo-{number}", command)
    return Chain("echo", topics[0], topics[-1], children)


async def measure(rates: Sequence[int] = (HALF, *RATES), seconds: float = SECONDS, backlog: int = BACKLOG) -> dict[str, Any]:
    """Raw figures: `highest` rates of both chains, and `runs`, four a rate: driftline, echo, echo, driftline. Rate 0 is half load."""
    async with benched(MODEL_ROWS, sys.executable) as bench:
        ours, schema_id = await start_pipeline(bench)
        echo = await start_echo(bench)
        driver = Driver(bench, schema_id)
        for chain in (ours, echo):
            await driver.drive(chain, 1_000, 3)  # models, caches, compiled code
        highest = {chain.name: round(await driver.backlog(chain, backlog)) for chain in (ours, echo)}
        runs = []
        for rate in rates:
            for chain in (ours, echo, echo, ours):
                runs.append(await driver.drive(chain, rate or highest["driftline"] / 2, seconds) | {"half_load": rate == HALF})
    return {"highest": highest, "seconds": seconds, "buckets_ms": BUCKETS_MS, "runs": runs}


def lines(found: Mapping[str, Any]) -> list[str]:
    """One line a run, for whoever looks on."""
    out = [f"highest rates: {found['highest']}"]
    for run in found["runs"]:
        batches = " ".join(f"{name} {size:.1f}" for name, size in run["batch"].items())
        cpu = sum(run["cpu_us"][name] for name in run["cpu_us"] if name not in ("broker", "store"))
        times = f"p50 {run['p50_ms']:7.2f} ms  p99 {run['p99_ms']:7.2f} ms"
        out.append(f"{run['rate']:>7}/s {run['chain']:<10} {times}  {cpu:7.1f} us an event  {batches}")
    return out


def main() -> None:
    """Measure and print: a line for each run, then everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default=",".join(map(str, (HALF, *RATES))), help="a second; 0 is half of the highest")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--backlog", type=int, default=BACKLOG)
    asked = parser.parse_args()
    found = asyncio.run(measure([int(rate) for rate in asked.rates.split(",")], asked.seconds, asked.backlog))
    print("\n".join(lines(found)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
