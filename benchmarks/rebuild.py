"""
How long `driftline rebuild` takes after the store lost everything: the year's flights are played through the real services, which makes a
million events and all topics behind them; then the services are stopped, the store is emptied, and the command runs. What it restores is
compared, byte for byte, with what the services had left. Prints one line of JSON.

    python benchmarks/rebuild.py                 # the whole year: 1.03 million events
    python benchmarks/rebuild.py --days 70       # a smaller one
    python benchmarks/rebuild.py --kept FOLDER   # with the servers of a `driftline demo --keep --folder FOLDER` whose services were stopped

On two cores, broker and store on the same machine, filling takes about ten minutes and is not part of the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from redis import Redis

from driftline.contracts.topics import LOOP, Topics
from driftline.local.demo import KEYS, MODELS, demo_key, environment_of
from driftline.local.stack import Stack
from driftline.models.bundle import generate_keys
from driftline.pipeline import load_pipeline
from driftline.stream.kafka import Source, describe, ensure_topics
from driftline.stream.ledger import decoded

PIPELINE, PARTITIONS, SEED = "flights", 2, 7
GRACE_S = 30.0


def fill(stack: Stack, days: int) -> dict[str, str]:
    """Play so many days through every service, and stop the services. Returns what processes are told."""
    environment = stack.environment()
    private, public = generate_keys(stack.folder / KEYS)
    environment |= {
        "DRIFTLINE_PIPELINES": str(Path("pipelines").resolve()),
        "DRIFTLINE_MODEL_STORE": str(stack.folder / MODELS),
        "DRIFTLINE_MODEL_PUBLIC_KEY": str(public),
        "DRIFTLINE_MODEL_PRIVATE_KEY": str(private),
        "DRIFTLINE_PII_KEY": demo_key(SEED),
        "DRIFTLINE_REPLAY": "true",
        "DRIFTLINE_OPS_PORT": "0",
    }
    asyncio.run(ensure_topics(environment["DRIFTLINE_KAFKA"], Topics.of(load_pipeline(PIPELINE)), PARTITIONS))
    for service in LOOP:
        command = [sys.executable, "-m", "driftline", "run", service, "--pipeline", PIPELINE]
        stack.spawn(service, command, environment_of(service, environment))
    play = ["--pipeline", PIPELINE, "--days", str(days), "--start-seed", str(SEED), "--partitions", str(PARTITIONS)]
    player = stack.spawn("player", [sys.executable, "-m", "driftline.local.player", *play], environment_of("player", environment))
    while player.alive:
        time.sleep(0.5)
        if ended := [name for name in LOOP if not stack.children[name].alive]:
            raise RuntimeError(f"{ended} ended: {stack.children[ended[0]].log_tail(20)}")
    if player.exit_code:
        raise RuntimeError(f"the player ended with {player.exit_code}: {player.log_tail(20)}")
    for service in LOOP:
        stack.children[service].terminate()
    for service in LOOP:
        stack.children[service].wait(GRACE_S)
    return environment


def kept(folder: Path) -> dict[str, str]:
    """What the environment.sh of a kept demo tells."""
    lines = (folder / "environment.sh").read_text().splitlines()
    return dict(shlex.split(line)[1].split("=", 1) for line in lines)


def stored(client: Redis) -> dict[bytes, object]:
    """All rows as bytes, ledgers decoded: the order of what they have seen means nothing."""
    keys = [key for key in client.scan_iter(match=f"{{{PIPELINE}-*", count=1_000) if not key.endswith((b":tries", b":rebuild"))]
    rows = {key: client.get(key) for key in keys}
    return {key: decoded(row) if key.endswith(b":ledger") else row for key, row in rows.items()}


async def on_the_logs(environment: Mapping[str, str]) -> dict[str, int]:
    """How many messages each topic holds, the upstream ones among them."""
    pipeline = load_pipeline(PIPELINE)
    names = [*(stream.topic for stream in pipeline.streams), *(topic.name for topic in Topics.of(pipeline).by_kind().values())]
    cluster = await describe(environment["DRIFTLINE_KAFKA"], names)
    counts = {}
    for name, partitions in cluster.partitions.items():
        counts[name] = 0
        for partition in range(partitions):
            source = Source(environment["DRIFTLINE_KAFKA"], name, partition)
            await source.start()
            start, end = await source.bounds()
            counts[name] += end - start
            await source.stop()
    return counts


def cpu_s() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(environment: Mapping[str, str]) -> dict[str, object]:
    """Empty the store, run the command, compare."""
    counts = asyncio.run(on_the_logs(environment))
    client = Redis.from_url(environment["DRIFTLINE_REDIS"])
    before = stored(client)
    client.flushall()
    began, cpu_before_s = time.monotonic(), cpu_s()
    command = [sys.executable, "-m", "driftline", "rebuild", PIPELINE]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    took_s = time.monotonic() - began
    print(done.stdout, done.stderr, sep="", file=sys.stderr)
    after = stored(client)
    differ = sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())
    events = sum(counts[stream.topic] for stream in load_pipeline(PIPELINE).streams)
    return {
        "events": events,
        "log_records": counts[f"{PIPELINE}-events"],
        "topics": counts,
        "rows": len(before),
        "rows_that_differ": differ,
        "exit_status": done.returncode,
        "seconds": round(took_s, 1),
        "cpu_seconds": round(cpu_s() - cpu_before_s, 1),  # of the command: on a machine that others use, what the seconds would come to
        "events_per_s": round(events / took_s),
        "load_average": [round(one, 1) for one in os.getloadavg()],
        "processors": os.cpu_count(),
    }


def main() -> int:
    """1 when something was not restored."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--days", type=int, default=365)
    options.add_argument("--kept", type=Path)
    told = options.parse_args()
    if told.kept:
        found = measure(kept(told.kept))
    else:
        with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
            found = measure(fill(stack, told.days))
    print(json.dumps(found))
    return 0 if found["exit_status"] == 0 and found["rows_that_differ"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
