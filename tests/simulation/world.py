"""
One run: a cluster, a store, processes that are started again when they die, and the faults of one seed.

Installed in place of aiokafka's and the store's clients, of the registry, the models and the clock; all else is driftline's own code, from
`services.<name>.app.build` down to the ledger's compare-and-set.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import driftline.stream.dead_letters
import driftline.stream.kafka
import driftline.stream.ledger
import driftline.stream.operators
import driftline.stream.worker
import services.feature.app
import services.feature.core
import services.inference.app
import services.intake.app
import services.labeler.app
import services.labeler.core
import services.labeler.waiting
from driftline.contracts.registry import MemoryRegistry
from driftline.contracts.topics import Topics
from driftline.features.plan import Plan
from driftline.pipeline import Pipeline, load_pipeline
from driftline.stream.ledger import DECODE, Entry, prefix_of

from .cluster import Admin, Cluster, Consumer, Log, Producer, packed
from .faults import PROCESS, Died, Dose, Process, Wire
from .models import Models, NothingToTry
from .store import Client, Store
from .virtual_time import NothingWillHappen, VirtualClock, VirtualLoop

PIPELINES = Path(__file__).parent / "pipelines"
TROUBLE_S = 3.0
PROGRESS_S = 90.0  # virtual time within which everything is right again once the faults have stopped
TRIES_SPARED = 3  # a process is not killed when so few more tries would make a good record pass for poison


@functools.cache
def pipeline(name: str) -> Pipeline:
    """A pipeline of this folder; `live` is `shops` with ticks of a second, for a log that follows the wall clock."""
    if name == "live":
        return replace(pipeline("shops"), name=name, tick_ms=1_000)
    return load_pipeline(name, PIPELINES)


REGISTRY = MemoryRegistry()


class Slot:
    """A place where one process at a time should run: its service, which partitions it owns, and how it is started."""

    def __init__(self, name: str, build: Callable[[], Any], partitions: Sequence[tuple[str, int]], reads: str, stateful: bool) -> None:
        self.name = name
        self.build = build
        self.partitions = partitions  # of the operator: group and number
        self.reads = reads
        self.stateful = stateful
        self.process: Process | None = None
        self.started = 0
        self.refusals: list[str] = []
        self.stopped = False  # nobody starts it again

    @property
    def refused(self) -> list[str]:
        """What its processes said that must not go on; the one that runs may have other partitions to go on with."""
        parts = self.process.parts if self.process is not None and not self.process.dead else ()
        return [*self.refusals, *_refused(parts)]


class World:
    """Everything of one run."""

    current: World

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.loop = VirtualLoop()
        self.clock = VirtualClock(self.loop)
        self.wire = Wire(self.loop, self.random, Dose.drawn(self.random), trace)
        self.wire.may_crash = self._may_crash
        self.wire.take_over = self._take_over
        self.cluster = Cluster(self.wire)
        self.store = Store(self.wire)
        self.slots: list[Slot] = []
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.surprises: list[str] = []
        self.poison: set[tuple[str, str]] = set()  # service and id of a record that kills whoever steps over it
        self.poisoned = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self.over = False
        self.most = Counter[str]()  # the largest that anything with a limit has been
        self.zombies: list[Process] = []

    # ---- processes

    def _may_crash(self, process: Process) -> bool:
        """
        One more kill must not make a good record pass for poison: a record is taken for that when the process has died with it
        alone in hand several times on end, and chance may do that too.
        """
        return all(int(self.store.values.get(key, b"0")) < TRIES_SPARED for key in process.tries_of)

    def add(self, slot: Slot) -> None:
        """A process more, started with the others."""
        self.slots.append(slot)

    async def _keep(self, slot: Slot) -> None:
        """Start the process of a slot whenever there is none."""
        while not self.over and not slot.stopped:
            process = self._start(slot)
            await process.ended.wait()
            if process is slot.process:
                await asyncio.sleep(0.02 + 0.2 * self.random.random())

    def _start(self, slot: Slot) -> Process:
        slot.started += 1
        process = Process(f"{slot.name}#{slot.started}")
        process.tries_of = tuple(prefix_of(group, number) + b"tries" for group, number in slot.partitions) if slot.stateful else ()
        slot.process = process
        self.wire.tell(f"{process.name} starts")
        self.tasks.append(self.loop.create_task(self._live(slot, process)))
        return process

    async def _live(self, slot: Slot, process: Process) -> None:
        PROCESS.set(process)
        try:
            process.parts = list(slot.build()._parts)
            await asyncio.gather(*(part.run() for part in process.parts))
        except Died:
            pass
        except asyncio.CancelledError:
            process.die()
            raise
        except BaseException as error:
            if not process.dead:
                self.surprises.append(f"{process.name} ended by itself: {_innermost(error)!r}")
                self.wire.tell(self.surprises[-1])
        if (refused := _refused(process.parts)) and not process.dead:
            self.wire.tell(f"{process.name} refuses: {'; '.join(refused)}")
            slot.refusals += refused
            slot.stopped = True
        process.die()

    def _take_over(self, old: Process) -> None:
        """A second process starts while the first lives on: it was stopped for a while, or only out of reach."""
        slot = next(slot for slot in self.slots if old.name.startswith(f"{slot.name}#"))
        if old is not slot.process or old.awake is not None or slot.stopped:
            return
        asleep = self.random.random() < 0.6
        self.wire.fault(f"{old.name} is replaced while it {'sleeps' if asleep else 'lives'}")
        self.zombies.append(old)
        if asleep:
            old.awake = asyncio.Event()
        self._start(slot)
        self.tasks.append(self.loop.create_task(self._outlive(old)))

    async def _outlive(self, zombie: Process) -> None:
        """For how long the replaced one sleeps, and then goes on."""
        await asyncio.sleep(1.2 * self.random.random() ** 2)
        if zombie.awake is not None:
            zombie.awake.set()
            zombie.awake = None
        await asyncio.sleep(0.3 + self.random.random())
        zombie.die()

    async def _stop(self, slot: Slot) -> None:
        """As SIGTERM does: what is in hand is finished, then the next one starts."""
        process = slot.process
        if process is None or process.dead or slot.stopped:
            return
        self.wire.fault(f"{process.name} is told to stop")
        for part in process.parts:
            part.stop()

    # ---- servers

    async def _restart_store(self) -> None:
        """Redis comes back with an older prefix of its append-only file."""
        appended = len(self.store.appended)
        kept = max(appended - int(self.random.random() ** 2 * 12), self._first_commits())
        self.wire.fault(f"the store restarts and has lost {appended - kept} of {appended} writes")
        self.store.restart(kept)

    def _first_commits(self) -> int:
        """
        How long a prefix has each partition's first ledger. One that has none any more, though its group has an offset, is refused,
        rightly: `Flushed` has that.
        """
        wanted = {prefix_of(*one) + b"ledger" for slot in self.slots if slot.stateful for one in slot.partitions}
        for at, writes in enumerate(self.store.appended):
            wanted -= writes.keys()
            if not wanted:
                return at + 1
        return len(self.store.appended)

    async def _restart_brokers(self) -> None:
        self.wire.fault("the brokers go down")
        self.cluster.stop()
        await asyncio.sleep(0.1 + 0.8 * self.random.random())
        self.wire.tell("the brokers are up")
        self.cluster.up = True

    async def _trouble(self) -> None:
        """The faults that come by the clock."""
        dose, random = self.wire.dose, self.random
        coming: list[tuple[float, Callable[[], Any]]] = []
        for _ in range(dose.stops):
            coming.append((random.random(), functools.partial(self._stop, random.choice(self.slots))))
        for _ in range(dose.store_restarts):
            coming.append((random.random(), self._restart_store))
        for _ in range(dose.broker_restarts):
            coming.append((random.random(), self._restart_brokers))
        coming.sort(key=lambda one: one[0])
        for share, fault in coming:
            await asyncio.sleep(max(0.0, share * share * TROUBLE_S - self.loop.now_s))
            self.tasks.append(self.loop.create_task(fault()))

    # ---- the run

    def run(self, players: Sequence[Any], done: Callable[[], bool]) -> float | None:
        """Run until the faults have stopped and `done` says so. The virtual time that took since; None when it took too long."""
        World.current = self
        asyncio.set_event_loop(self.loop)
        try:
            return self.loop.run_until_complete(self._main(players, done))
        except NothingWillHappen:
            return None
        finally:
            self._end()

    async def _main(self, players: Sequence[Any], done: Callable[[], bool]) -> float | None:
        self.tasks += [self.loop.create_task(self._keep(slot)) for slot in self.slots]
        playing = [self.loop.create_task(player) for player in players]
        trouble = self.loop.create_task(self._trouble())
        self.tasks += [*playing, trouble]
        await asyncio.gather(trouble, *playing)
        while self.loop.now_s < TROUBLE_S and not (done() and self.loop.now_s > TROUBLE_S / 4):
            await asyncio.sleep(0.2)
        self.wire.tell("the faults stop")
        self.wire.become_calm()
        self.cluster.up = True
        began = self.loop.now_s
        while self.loop.now_s - began < PROGRESS_S:
            if self._settled() and done():
                return self.loop.now_s - began
            await asyncio.sleep(0.2)
        return None

    def _settled(self) -> bool:
        """No zombie is left, and every partition that goes on stands at the end of its log."""
        if not all(process.dead for process in self.zombies):
            return False
        for slot in self.slots:
            if slot.stopped or slot.process is None or slot.refused:
                continue
            if slot.process.dead:
                return False
            if not self.standing_right(slot):
                return False
        return True

    def standing(self, slot: Slot, group: str, number: int) -> int:
        """
        How far a partition has come: by its ledger; without one, by the worker's own position, for an older commit of the offset may
        arrive behind a newer one. What is done again for that is dropped downstream.
        """
        if slot.stateful:
            entry = self.entry(group, number)
            return entry.next if entry else 0
        workers = [worker for part in (slot.process.parts if slot.process else ()) for worker in getattr(part, "_workers", None) or ()]
        return max((worker._position for worker in workers if worker._partition == number), default=0)

    def standing_right(self, slot: Slot) -> bool:
        """Whether each of its partitions has come to the end of its log."""
        return all(self.standing(slot, *one) == self.cluster.logs[slot.reads][one[1]].end for one in slot.partitions)

    def entry(self, group: str, number: int) -> Entry | None:
        """What the ledger of a partition says."""
        value = self.store.values.get(prefix_of(group, number) + b"ledger")
        return None if value is None else DECODE(value)

    def _end(self) -> None:
        """Let go of everything: each task is cancelled, and finds itself dead."""
        self.over = True
        for slot in self.slots:
            slot.refusals = slot.refused
            if slot.process is not None:
                slot.process.die()
        with contextlib.suppress(NothingWillHappen):
            for _ in range(3):
                left = [task for task in self.loop.tasks if not task.done()]
                if not left:
                    break
                for task in left:
                    task.cancel()
                self.loop.run_until_complete(asyncio.wait(left, timeout=1))
        self.loop.close()
        asyncio.set_event_loop(None)

    def log(self, topic: str, partition: int) -> Log:
        """One log."""
        return self.cluster.logs[topic][partition]


def _refused(parts: Sequence[Any]) -> list[str]:
    return [words for part in parts if (words := getattr(part, "refused", ""))]


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# ---- in place of what is outside


class _Series:
    """Counts into the run that is on."""

    def __init__(self, key: tuple[str, ...]) -> None:
        self._key = key

    def inc(self, amount: float = 1) -> None:
        World.current.counts[self._key] += int(amount)

    def set(self, value: float) -> None:
        pass

    observe = set


class _Instrument:
    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[tuple[str, ...], _Series] = {}

    def labels(self, **labels: str) -> _Series:
        key = tuple(labels.values())
        if key not in self._known:
            self._known[key] = _Series((self._name, *(labels[name] for name in sorted(labels))))
        return self._known[key]

    def clear(self) -> None:
        pass


metric = functools.cache(_Instrument)


class _Log:
    """driftline's log lines, for the trace."""

    def warning(self, event: str, **about: Any) -> None:
        World.current.wire.tell(f"  {event}: {about.get('service', '')}[{about.get('partition', '')}] {about.get('because', '')}")

    error = warning

    def info(self, event: str, **about: Any) -> None:
        pass

    debug = info


def _consumer(**options: Any) -> Consumer:
    return Consumer(World.current.cluster, options.get("group_id"), options.get("auto_offset_reset", "latest"))


def _producer(**options: Any) -> Producer:
    return Producer(World.current.cluster, options.get("enable_idempotence", False), options.get("acks", 1))


def _killed_by(service: str, step: Any) -> Any:
    """A core's step, in which a poisoned record kills the process."""

    def stepping(core: Any, batch: Any) -> Any:
        world = World.current
        if world.poison:
            for table in batch.tables.values():
                if "id" in table.columns and any((service, one.decode()) in world.poison for one in table["id"].tolist()):
                    process = PROCESS.get()
                    world.poisoned += 1
                    world.wire.fault(f"{process.name} dies of a record")
                    process.die()
                    raise Died
        return step(core, batch)

    return stepping


def _cached_by_topics(made: Any) -> Any:
    """Encoders and decoders keep nothing of a run: one for each set of topics serves all runs."""
    known: dict[Any, Any] = {}

    def make(topics: Any, registry: Any, *rest: Any) -> Any:
        names = tuple(topic.name for topic in topics.values()) if isinstance(topics, dict) else topics.name
        key = (names, rest)
        if key not in known:
            known[key] = made(topics, registry, *rest)
        return known[key]

    return make


def _cached_parsers(made: Any) -> Any:
    """The same for what parses upstream topics."""
    known: dict[Any, Any] = {}

    def make(stream: Any, registry: Any, pii_key: bytes, names: Any) -> Any:
        if stream not in known:
            known[stream] = made(stream, registry, pii_key, names)
        return known[stream]

    return make


def replacements() -> list[tuple[Any, str, Any]]:
    """Object, attribute and what takes its place: what is outside, what is slow to make and always the same, and waits made shorter."""
    kafka, ledger, operators, worker = (
        driftline.stream.kafka,
        driftline.stream.ledger,
        driftline.stream.operators,
        driftline.stream.worker,
    )
    apps = (services.feature.app, services.inference.app, services.intake.app, services.labeler.app)
    outside: list[tuple[Any, str, Any]] = [
        (kafka, "AIOKafkaConsumer", _consumer),
        (kafka, "AIOKafkaProducer", _producer),
        (kafka, "packed", lambda *columns: packed(World.current.cluster, *columns)),
        (kafka, "AIOKafkaAdminClient", lambda **_: Admin(World.current.cluster)),
        (operators, "Store", lambda url: Client(World.current.store)),
        (ledger, "Store", lambda url: Client(World.current.store)),
        (services.inference.app, "BundleStore", lambda *_, **__: Models()),
        (services.inference.app, "load_public_key", lambda path: None),
        (services.inference.app, "Probe", NothingToTry),
        (services.feature.core.Feature, "step", _killed_by("feature", services.feature.core.Feature.step)),
        (services.labeler.core.Labeler, "step", _killed_by("labeler", services.labeler.core.Labeler.step)),
    ]
    outside += [(module, "metric", metric) for module in (worker, driftline.stream.dead_letters, *apps) if hasattr(module, "metric")]
    outside += [(module, "log", _Log()) for module in (worker, operators, driftline.stream.dead_letters, *apps) if hasattr(module, "log")]
    outside += [(module, "load_pipeline", pipeline) for module in apps]
    outside += [(module, "Registry", lambda url: REGISTRY) for module in apps]
    topics_of = functools.cache(Topics.of)
    same: list[tuple[Any, str, Any]] = [
        (Topics, "of", staticmethod(topics_of)),
        (Plan, "of", staticmethod(functools.cache(Plan.of))),
        (operators, "Encoder", _cached_by_topics(operators.Encoder)),
        (operators, "Decoder", _cached_by_topics(operators.Decoder)),
        (kafka, "Decoder", _cached_by_topics(kafka.Decoder)),
        (services.feature.core, "Decoder", functools.cache(services.feature.core.Decoder)),
        (services.intake.app, "Parser", _cached_parsers(services.intake.app.Parser)),
        (services.intake.app, "Encoder", _cached_by_topics(services.intake.app.Encoder)),
    ]
    shorter = [
        (kafka, "ACKS_S", 3.0),
        (kafka, "SILENCE_S", 3.0),
        (kafka.answering.__wrapped__, "__defaults__", (3.0,)),
        (worker, "SILENCE_S", 3.0),
        (services.intake.app, "SILENCE_S", 3.0),
        (services.intake.app, "EMIT_MAX", 4),
        (services.intake.app, "POLL_MAX", 4),
        (services.intake.app, "WAITING_MAX", 8),
        (worker, "ROWS_MAX", 12),
        (services.labeler.core, "SEGMENT", 3),
        (services.labeler.waiting, "SEGMENT", 3),
    ]
    return [*outside, *same, *shorter]


@contextlib.contextmanager
def installed(more: Sequence[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """The simulation in place of the world outside; `more` on top of it, which is how a mutant breaks something."""
    undo = []
    try:
        for target, name, value in [*replacements(), *more]:
            undo.append((target, name, vars(target)[name] if name in vars(target) else getattr(target, name)))
            setattr(target, name, value)
        yield
    finally:
        for target, name, value in reversed(undo):
            setattr(target, name, value)


def settings(**more: Any) -> SimpleNamespace:
    """What a process is told; `services.*.app.build` reads no more of it."""
    return SimpleNamespace(
        registry="",
        kafka="simulated",
        redis="simulated",
        membership="ordinal",
        replica=0,
        replicas=1,
        dead_letters_max=1_000,
        entities_max=500_000,
        ops_port=0,
        ops_host="127.0.0.1",
        run_dir="",
        model_public_key="",
        device="cpu",
        model_store="",
        **more,
    )
