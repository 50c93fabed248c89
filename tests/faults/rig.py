"""
What the battery acts on: servers, services and the feeder as processes of this machine, with a hand on each of them.

A `Rig` starts and stops things and knows where the logs end. It never judges: that is the checkers' work, when the play is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from proxy import Proxy

from driftline.contracts.topics import LOOP, Topics
from driftline.local.broker import Broker
from driftline.local.child import Child
from driftline.local.demo import demo_key, environment_of
from driftline.local.stack import Stack
from driftline.local.valkey import Valkey
from driftline.models.bundle import generate_keys
from driftline.pipeline import load_pipeline, pipelines_folder
from driftline.stream.kafka import ensure_topics

PIPELINE = "flights"
HERE = Path(__file__).parent
OUTPUT_OF = {  # where the work of each shows
    "intake": "events",
    "feature": "features",
    "inference": "predictions",
    "labeler": "examples",
    "drift": "summaries",
    "trainer": "summaries",
    "rollout": "deployments",
}
FETCH_WAIT_MS = 500
ASK_EVERY_S = 0.01
LOOK_EVERY_S = 0.02
READY_S = 120.0
OUTPUT_S = 120.0  # how long a killed one may take to its next output before the battery gives up on the play
LOG_LINES = 30
REFUSED = "Rebuild it from the log"  # what a worker says of a partition that it must not go on with


class Lost(Exception):
    """The play cannot go on: something did not come back."""


@dataclass(frozen=True)
class Settled:
    """After a kill: when it was (monotonic), and how long each topic was when what had been sent had arrived."""

    killed_s: float
    output: int


class Ends:
    """Where logs end, asked with one consumer that stays connected."""

    def __init__(self, kafka: str, topics: Topics, partitions: int) -> None:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, fetch_max_wait_ms=FETCH_WAIT_MS)
        self._places = {
            kind: [TopicPartition(topic.name, number) for number in range(partitions if topic.partitioned else 1)]
            for kind, topic in topics.by_kind().items()
        }

    async def start(self) -> None:
        """Connect."""
        await self._consumer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def total(self, kind: str) -> int:
        """The number of records of a topic, over its partitions, now; waits while the broker is away."""
        deadline = time.monotonic() + OUTPUT_S
        while True:
            try:
                return sum((await self._consumer.end_offsets(self._places[kind])).values())
            except (KafkaError, OSError) as error:
                if time.monotonic() > deadline:
                    raise Lost(f"the broker does not say where {kind} ends: {error!r}") from error
                await asyncio.sleep(LOOK_EVERY_S)

    async def beyond(self, kind: str, total: int, timeout_s: float) -> bool:
        """True as soon as the topic is longer than `total`; false after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while await self.total(kind) <= total:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(ASK_EVERY_S)
        return True


class Rig:
    """
    One play's processes, all files in `folder`. `through` puts a proxy before Kafka and Valkey for the services, not for the feeder.
    """

    def __init__(self, folder: Path, *, seed: int, partitions: int = 2, through: bool = False) -> None:
        self.folder = folder.resolve()
        self.seed = seed
        self.partitions = partitions
        self.pipeline = load_pipeline(PIPELINE)
        self.topics = Topics.of(self.pipeline)
        self.kafka_proxy = Proxy() if through else None
        self.redis_proxy = Proxy() if through else None
        self.exits: list[str] = []  # services that ended by themselves and were started again, in words
        self.memory_peaks: dict[str, int] = {}
        self._meant: Counter[str] = Counter()  # whose end is our doing

    # Set-up

    async def start(self) -> None:
        """Servers, topics, services; returns when all are ready. The feeder comes extra."""
        for proxy in (self.kafka_proxy, self.redis_proxy):
            if proxy is not None:
                await proxy.start()
        self.broker = Broker(self.folder / "kafka", detour=self.kafka_proxy.port if self.kafka_proxy else None)
        self.valkey = Valkey(self.folder / "valkey")
        for server in (self.broker, self.valkey):
            server.clear()
        await asyncio.gather(asyncio.to_thread(self.broker.start), asyncio.to_thread(self.valkey.start))
        servers = {"DRIFTLINE_KAFKA": self.broker.address, "DRIFTLINE_REDIS": self.valkey.url}
        self.stack = Stack(self.folder, environment=servers)
        await asyncio.to_thread(self.stack.start)
        await ensure_topics(self.broker.address, self.topics, self.partitions)
        self.ends = Ends(self.broker.address, self.topics, self.partitions)
        await self.ends.start()
        self._environment = self._services_environment()
        for service in LOOP:
            self.spawn(service)

    def _services_environment(self) -> dict[str, str]:
        private, public = generate_keys(self.folder / "keys")
        environment = {
            **self.stack.environment(),
            "DRIFTLINE_PIPELINES": str(pipelines_folder().resolve()),
            "DRIFTLINE_MODEL_STORE": str(self.folder / "models"),
            "DRIFTLINE_MODEL_PUBLIC_KEY": str(public),
            "DRIFTLINE_MODEL_PRIVATE_KEY": str(private),
            "DRIFTLINE_PII_KEY": demo_key(self.seed),
            "DRIFTLINE_REPLAY": "true",
            "DRIFTLINE_OPS_PORT": "0",
        }
        if self.kafka_proxy is not None and self.redis_proxy is not None:
            self.kafka_proxy.target, self.redis_proxy.target = self.broker.detour_port, self.valkey.port
            environment["DRIFTLINE_KAFKA"] = f"127.0.0.1:{self.kafka_proxy.port}"
            environment["DRIFTLINE_REDIS"] = f"redis://127.0.0.1:{self.redis_proxy.port}/0"
        return environment

    def told(self, service: str) -> dict[str, str]:
        """What a process of `service` is told by its environment."""
        return environment_of(service, self._environment)

    def spawn(self, service: str, name: str = "", **settings: str) -> Child:
        """Start a service; under another `name`, with a run dir of its own, it is one beside the first."""
        environment = self.told(service) | {f"DRIFTLINE_{key.upper()}": value for key, value in settings.items()}
        name = name or service
        if name != service:
            run_dir = self.folder / "beside" / name
            run_dir.mkdir(parents=True, exist_ok=True)
            environment["DRIFTLINE_RUN_DIR"] = str(run_dir)
        command = [sys.executable, str(HERE / "doomed.py"), "run", service, "--pipeline", PIPELINE]
        return self.stack.spawn(name, command, environment)

    def feed(self, days: int, mix: dict[str, float], pace: float) -> None:
        """Start the feeder."""
        self.feed_folder.mkdir(exist_ok=True)
        self.pace(pace)
        arguments = ["--days", str(days), "--seed", str(self.seed), "--partitions", str(self.partitions), "--mix", json.dumps(mix)]
        self.stack.spawn("feeder", [sys.executable, str(HERE / "feeder.py"), *arguments], {"POLARS_MAX_THREADS": "1"})

    @property
    def feed_folder(self) -> Path:
        """Where the feeder is steered."""
        return self.stack.run_dir / "feed"

    def pace(self, messages_s: float) -> None:
        """From the next slice on, so many messages a second; 0 holds."""
        part = self.feed_folder / ".pace"
        part.write_text(str(messages_s))
        part.replace(self.feed_folder / "pace")

    def fed(self) -> dict[str, int]:
        """How far the feeder is: day, until, messages."""
        try:
            told: dict[str, int] = json.loads((self.feed_folder / "fed.json").read_text())
        except FileNotFoundError:
            return {"day": -1, "until": 0, "messages": 0}
        return told

    async def stop(self) -> None:
        """Leave nothing behind, however far the start came."""
        with contextlib.suppress(Exception):  # it is only a consumer
            await self.ends.stop()
        for name in ("stack", "broker", "valkey"):
            if (started := getattr(self, name, None)) is not None:
                await asyncio.to_thread(started.stop)
        for proxy in (self.kafka_proxy, self.redis_proxy):
            if proxy is not None:
                await proxy.stop()

    # What is going on

    def worker_pid(self, name: str) -> int | None:
        """The process that does the work of a service: itself, or the child of its keeper. None while there is none."""
        folder = self.stack.run_dir if name in LOOP else self.folder / "beside" / name
        child = self.stack.children[name]
        for place in folder.glob("*.json"):
            if place.stem == name.partition("-")[0]:
                pid = int(json.loads(place.read_text())["pid"])
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(pid) == child.pid and child.alive and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                        return pid
        return None

    async def until(self, what: Callable[[], bool], timeout_s: float, words: str) -> None:
        """Wait until `what` is true. Raises Lost after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not what():
            if time.monotonic() > deadline:
                raise Lost(f"{words} after {timeout_s:.0f} s")
            await asyncio.sleep(LOOK_EVERY_S)

    def ready(self, name: str) -> str:
        """`ready`, or what a service says is wrong."""
        folder = self.stack.run_dir if name in LOOP else self.folder / "beside" / name
        try:
            url = json.loads((folder / f"{name.partition('-')[0]}.json").read_text())["ops"]
            with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
                return "ready" if answer.status == 200 else ""
        except urllib.error.HTTPError as error:
            return "; ".join(json.loads(error.read())["troubles"])
        except OSError as error:
            return f"does not answer: {error}"

    async def all_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until every service says that it is ready. Raises Lost, with what they say."""
        deadline = time.monotonic() + timeout_s
        while troubles := {name: told for name in LOOP if (told := await asyncio.to_thread(self.ready, name)) != "ready"}:
            if time.monotonic() > deadline:
                raise Lost(f"not ready after {timeout_s:.0f} s: {troubles}")
            await asyncio.sleep(0.1)

    async def supervise(self) -> None:
        """
        Start again, as a supervisor does, a service that ended by itself, and remember that it did; sample memory. Raises Lost when a
        service refuses a partition, or when the feeder fails.
        """
        for turn in itertools.count():
            await self._refuse_refusals(LOOP[turn % len(LOOP)])
            for name, child in list(self.stack.children.items()):
                if name in LOOP and not self._meant[name] and not child.alive:
                    self.exits.append(f"{name} ended by itself (status {child.exit_code}): {child.log_tail(3)[-600:]}")
                    await asyncio.to_thread(self.stack.restart, name)
                if name == "feeder" and not child.alive and child.exit_code != 0:
                    raise Lost(f"the feeder failed:\n{child.log_tail(LOG_LINES)}")
            for name in LOOP:
                self.sample(name)
            await asyncio.sleep(0.2)

    async def _refuse_refusals(self, name: str) -> None:
        told = await asyncio.to_thread(self.ready, name)
        if REFUSED in told and not self._meant[name]:
            raise Lost(f"{name} refuses: {told}")

    def sample(self, name: str) -> int:
        """The memory of a service's worker now, in bytes; remembers the peak."""
        pid = self.worker_pid(name)
        try:
            held = 0 if pid is None else psutil.Process(pid).memory_info().rss
        except psutil.Error:
            return 0
        self.memory_peaks[name] = max(self.memory_peaks.get(name, 0), held)
        return held

    # Kills

    @contextlib.contextmanager
    def meaning(self, *names: str) -> Iterator[None]:
        """Within this, the end of these services is our doing."""
        self._meant.update(names)
        try:
            yield
        finally:
            self._meant.subtract(names)

    async def kill(self, service: str, *, whole: bool) -> float:
        """
        kill -9 of the worker alone, or of everything of the service; started again by whoever must. Returns when it was.

        The worker's keeper forks another; where there is no keeper the supervisor, which is us, starts the service.
        """
        with self.meaning(service):
            child = self.stack.children[service]
            if whole:
                killed_s = time.monotonic()
                await asyncio.to_thread(child.kill)
                await asyncio.to_thread(self.stack.restart, service)
            else:
                await self.until(lambda: self.worker_pid(service) is not None, READY_S, f"{service} has no worker")
                pid = self.worker_pid(service)
                assert pid is not None
                killed_s = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                await self._keep(service, pid)
        return killed_s

    async def _keep(self, service: str, pid: int) -> None:
        """When its worker, process `pid`, has been killed: start the service, unless that was but the child of its keeper."""
        child = self.stack.children[service]
        if child.pid == pid:
            await self.until(lambda: not child.alive, READY_S, f"{service} was killed and lives")
            await asyncio.to_thread(self.stack.restart, service)

    async def doom(self, service: str, step: str, timeout_s: float, *, whole: bool) -> float | None:
        """Let a service kill its worker, or all of itself, at a named step. Returns when; None when the step was not reached in time."""
        order, told = (self.stack.run_dir / f"{what}-{service}" for what in ("die", "died"))
        told.unlink(missing_ok=True)
        part = order.with_suffix(".part")
        part.write_text(f"{step} whole" if whole else step)
        with self.meaning(service):
            part.replace(order)
            deadline = time.monotonic() + timeout_s
            while not told.exists():
                if time.monotonic() > deadline:
                    order.unlink(missing_ok=True)
                    await asyncio.sleep(0.05)
                    if not told.exists():
                        return None
                await asyncio.sleep(0.005)
            killed_s, pid = told.read_text().split()
            await self._keep(service, self.stack.children[service].pid if whole else int(pid))
        return float(killed_s)

    def signal_all(self, name: str, number: signal.Signals) -> None:
        """Send a signal to everything of a service."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.stack.children[name].pid, number)

    async def end(self, name: str, *, hard: bool) -> None:
        """Let a process leave: asked, or killed."""
        with self.meaning(name):
            child = self.stack.children[name]
            await asyncio.to_thread(child.kill if hard else child.end)

    def leftover(self) -> Sequence[str]:
        """The names of the processes that run."""
        return [name for name, child in self.stack.children.items() if child.alive]
