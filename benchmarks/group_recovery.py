"""
How long one partition stands still when its consumer is killed with -9 and started again: as a member of a group, against
assigned by ordinal. Prints one line of JSON for each. Figures are in docs/decisions/0001.

    python benchmarks/group_recovery.py --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic

from driftline.local.broker import Broker
from driftline.stream.kafka import create_topics

WAYS = {"group, session 10 s (the default)": 10_000, "group, session 6 s": 6_000, "group, session 1 s": 1_000, "assigned": 0}


async def consume(kafka: str, topic: str, session_ms: int) -> None:
    """Print the time of arrival of every record, for ever."""
    if session_ms:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=kafka, group_id=f"g{topic}", session_timeout_ms=session_ms, heartbeat_interval_ms=session_ms // 3
        )
    else:
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    await consumer.start()
    if not session_ms:
        consumer.assign([TopicPartition(topic, 0)])
    async for _ in consumer:
        print(time.time(), flush=True)


async def feed(kafka: str, topic: str, stop: asyncio.Event) -> None:
    """A record every 20 ms, until told to stop."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    while not stop.is_set():
        await producer.send_and_wait(topic, b"x")
        await asyncio.sleep(0.02)
    await producer.stop()


def start(kafka: str, topic: str, session_ms: int) -> subprocess.Popen[str]:
    """One consumer process."""
    command = [sys.executable, __file__, "--consume", kafka, topic, str(session_ms)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_arrival(process: subprocess.Popen[str]) -> float:
    """When the process got its first record."""
    if process.stdout is None:
        raise RuntimeError("the consumer was started without a pipe")
    return float(process.stdout.readline())


async def measure(kafka: str, number: int, session_ms: int, rounds: int) -> list[float]:
    """Seconds from the kill to the first record of the successor, which is started at once."""
    topic = f"recovery{number}"
    await create_topics(kafka, [NewTopic(topic, 1, 1)])
    stop = asyncio.Event()
    feeding = asyncio.create_task(feed(kafka, topic, stop))
    process = start(kafka, topic, session_ms)
    await asyncio.to_thread(first_arrival, process)
    silences = []
    for _ in range(rounds):
        await asyncio.sleep(0.5)
        killed_at = time.time()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process = start(kafka, topic, session_ms)
        silences.append(await asyncio.to_thread(first_arrival, process) - killed_at)
    process.kill()
    process.wait()
    stop.set()
    await feeding
    return silences


def main() -> None:
    """Measure every way on a broker of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--consume", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consume:
        kafka, topic, session_ms = arguments.consume
        asyncio.run(consume(kafka, topic, int(session_ms)))
        return
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        for number, (way, session_ms) in enumerate(WAYS.items()):
            silences = asyncio.run(measure(broker.address, number, session_ms, arguments.rounds))
            figures = {"median_s": round(statistics.median(silences), 2), "max_s": round(max(silences), 2), "rounds": len(silences)}
            print(json.dumps({"way": way, **figures}))


if __name__ == "__main__":
    main()
