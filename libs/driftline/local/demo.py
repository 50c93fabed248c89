"""
`driftline demo`: a stack of its own, every service, the upstream applications, the drills, the live view and the final report.

Whatever happens, a signal included, everything that was started is stopped before this returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TextIO

import polars as pl

from driftline.clock import Clock, SystemClock
from driftline.contracts.registry import Registry
from driftline.contracts.topics import LOOP, Topics
from driftline.errors import DriftlineError, Fatal
from driftline.local.child import Usage
from driftline.local.door import HTTP_PORT, open_door, read_http
from driftline.local.drills import BadModel, Ends, Forge, Kill, Plan, Victim, kill, make_plan, offer_bad_model
from driftline.local.evidence import read_logs
from driftline.local.live import Scene, View, make_view
from driftline.local.player import REPORT_FILE, Play, load_applications
from driftline.local.progress import DAY_MS, Meters, Progress, Watch, read_metrics
from driftline.local.report import Run, as_text, findings
from driftline.local.stack import Stack
from driftline.models.bundle import generate_keys
from driftline.pipeline import Pipeline, load_pipeline, pipelines_folder
from driftline.stream.kafka import describe, ensure_topics

PIPELINE = "flights"
DAYS, DAYS_FAST, DAYS_YEAR = 212, 70, 365
INTERRUPTED = 130
LOOK_EVERY_S = 0.1
METERS_EVERY_S = 2.0
LOCK, STACK_LOCK, JSON_FILE, ENVIRONMENT_FILE = "demo.lock", "lock", "demo.json", "environment.sh"
KEYS, MODELS = "keys", "models"
LEFT_BEHIND = (JSON_FILE, ENVIRONMENT_FILE, KEYS, MODELS, "kafka", "valkey", "registry", "run", "logs", "stack.json")
LOG_LINES = 25
GATEWAY = "gateway"
GATEWAY_WAIT_S = 60.0
KEEP_TO_LOOK = f"\nto look at all of it in a browser: make demo ARGS=--keep, which leaves the console at http://127.0.0.1:{HTTP_PORT}/\n"
OUTPUT_OF = {"feature": "features", "inference": "predictions", "valkey": "features"}  # where a killed one's work is seen


@dataclass(frozen=True, slots=True)
class Options:
    """What to play, and where the run keeps its files."""

    days: int
    partitions: int
    kills: bool
    keep: bool
    seed: int
    folder: Path


def run_demo(
    *,
    fast: bool = False,
    year: bool = False,
    keep: bool = False,
    days: int | None = None,
    partitions: int = 2,
    kills: bool = True,
    seed: int = 7,
    folder: Path = Path(".driftline"),
) -> int:
    """
    Play flights through the whole loop and report. Returns the exit status: 0 only if every promise held, 1 when one was
    broken or something failed, 130 after Ctrl-C or SIGTERM.
    """
    length = days or (DAYS_FAST if fast else DAYS_YEAR if year else DAYS)
    try:
        with own_folder(folder) as place:
            return asyncio.run(_until_told(Options(length, partitions, kills, keep, seed, place)))
    except DriftlineError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """
    The run dir, without what an earlier run left, for this run alone. Raises Fatal when another demo or stack runs there, or
    when it holds files and was never a run dir.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in (LOCK, STACK_LOCK)):
        raise Fatal(f"{folder} is not empty and no run dir: choose another with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        _claim(lock, folder)
        with (folder / STACK_LOCK).open("a") as other:
            _claim(other, folder)  # a stack takes it for itself when it starts; let go of until then
        for name in LEFT_BEHIND:
            place = folder / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        yield folder


def _claim(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Fatal(f"another demo or stack runs in {folder}: stop it, or choose another folder with --folder") from error


async def _until_told(options: Options) -> int:
    """Run the demo as a task that the first signal cancels; a second one changes nothing, for stopping takes a moment."""
    demo = Demo(options, SystemClock(), sys.stdout)
    playing = asyncio.create_task(demo.run())
    told: list[int] = []

    def stop(number: int) -> None:
        if not told:
            told.append(number)
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await asyncio.wait([playing])
    if playing.cancelled():
        return INTERRUPTED
    return playing.result()


class Demo:
    """One run, from the first server to the last line of the report."""

    def __init__(self, options: Options, clock: Clock, out: TextIO) -> None:
        self._options = options
        self._clock = clock
        self._out = out
        self._begun_s = clock.monotonic_s()
        self._play = Play(options.days, options.seed, options.partitions)
        self._start_ms = int(datetime.combine(self._play.start, datetime.min.time(), UTC).timestamp()) * 1000
        self._plan: Plan = make_plan(options.days, options.kills)
        self._pipeline: Pipeline = load_pipeline(PIPELINE)
        self._topics = Topics.of(self._pipeline)
        self._progress = Progress()
        self._meters = Meters()
        self._stack = Stack(options.folder)
        self._kafka = ""
        self._drilled: set[str] = set()
        self._kills: list[Kill] = []
        self._bad_model: BadModel | None = None

    async def run(self) -> int:
        """The exit status. Whatever happens, nothing that was started is left."""
        try:
            with make_view(self._clock, self._out) as view:
                environment = await self._set_up(view)
                await self._played(view, environment)
                url = await self._opened(environment) if self._options.keep else ""
                view.say("everything played; reading the topics back")
                found = await self._report()
            self._out.write(as_text(found) + "\n")
            self._out.flush()
            if self._options.keep:
                await self._kept(environment, url)
            else:
                self._out.write(KEEP_TO_LOOK)
            return 0 if found["held"] else 1
        finally:
            await asyncio.to_thread(self._stack.stop)

    # Set-up

    async def _set_up(self, view: View) -> dict[str, str]:
        """Servers, keys and topics. Returns the environment of the services."""
        await asyncio.to_thread(self._stack.start, lambda name, address, up_s: view.say(f"{name:<9} {address:<22} up in {up_s:.1f} s"))
        self._kafka = self._stack.environment()["DRIFTLINE_KAFKA"]
        await self._refuse_old_topics()
        await ensure_topics(self._kafka, self._topics, self._options.partitions)
        return self._environment()

    async def _refuse_old_topics(self) -> None:
        """Raise Fatal when the Kafka that the user named holds what an earlier run left: it would be counted in."""
        names = [topic.name for topic in self._topics.by_kind().values()] + [stream.topic for stream in self._pipeline.streams]
        there = sorted(name for name, partitions in (await describe(self._kafka, names)).partitions.items() if partitions)
        if there:
            raise Fatal(f"the topics {', '.join(there)} exist already on {self._kafka}: delete them, or name another Kafka")

    def _environment(self) -> dict[str, str]:
        folder = self._stack.folder
        private, public = generate_keys(folder / KEYS)
        return {
            **self._stack.environment(),
            "DRIFTLINE_PIPELINES": str(pipelines_folder().resolve()),
            "DRIFTLINE_MODEL_STORE": str(folder / MODELS),
            "DRIFTLINE_MODEL_PUBLIC_KEY": str(public),
            "DRIFTLINE_MODEL_PRIVATE_KEY": str(private),
            "DRIFTLINE_PII_KEY": demo_key(self._options.seed),
            "DRIFTLINE_REPLAY": "true",
            "DRIFTLINE_OPS_PORT": "0",
        }

    def _start_processes(self, environment: Mapping[str, str]) -> None:
        """All at once: starting is bound by the processor, and each waits for what it needs."""
        for service in LOOP:
            self._spawn(service, ["-m", "driftline", "run", service, "--pipeline", PIPELINE], environment_of(service, environment))
        self._spawn("player", ["-m", "driftline.local.player", *self._play_arguments()], environment_of("player", environment))

    def _play_arguments(self) -> list[str]:
        play, held = self._play, self._plan.bad_model
        arguments = ["--pipeline", PIPELINE, "--days", str(play.days), "--start-seed", str(play.seed), "--partitions", str(play.partitions)]
        return arguments + ([] if held is None else ["--hold", str(held)])

    def _spawn(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._stack.spawn(name, [sys.executable, *arguments], environment)

    # The play

    async def _played(self, view: View, environment: Mapping[str, str]) -> None:
        """Until the player has ended. Raises Fatal, with the end of its log, when any process ended that should not have."""
        self._start_processes(environment)
        async with _background(self._watch(), self._measure(), self._show(view), self._drill(environment)) as tasks:
            while self._player_plays():
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(LOOK_EVERY_S)

    def _player_plays(self) -> bool:
        for name, child in self._stack.children.items():
            if not child.alive and name not in self._drilled:
                if name == "player" and child.exit_code == 0:
                    return False
                raise Fatal(f"{name} ended unexpectedly (status {child.exit_code}); the end of {child.log}:\n{child.log_tail(LOG_LINES)}")
        return True

    async def _watch(self) -> None:
        await Watch(self._kafka, self._topics, self._registry(), self._progress.take).run()

    def _registry(self) -> Registry:
        return Registry(self._stack.environment()["DRIFTLINE_REGISTRY"])

    async def _measure(self) -> None:
        while True:
            for service in LOOP:
                self._meters.take(service, await asyncio.to_thread(read_metrics, self._stack.run_dir, service))
            await asyncio.sleep(METERS_EVERY_S)

    async def _show(self, view: View) -> None:
        while True:
            view.show(Scene(PIPELINE, self._start_ms, self._options.days, self._elapsed_s()), self._progress, self._meters)
            await asyncio.sleep(LOOK_EVERY_S)

    def _elapsed_s(self) -> float:
        return self._clock.monotonic_s() - self._begun_s

    # The drills

    async def _drill(self, environment: Mapping[str, str]) -> None:
        """Wait for the days of the plan and do what it says; a drill that takes its time only delays the next."""
        left = {day: name for day, name in self._plan.kills.items() if name != "valkey" or self._stack.valkey is not None}
        offering = self._plan.bad_model
        async with contextlib.AsyncExitStack() as stack:
            ends = {kind: await self._ends(stack, kind) for kind in sorted({OUTPUT_OF[name] for name in left.values()})}
            while left or offering is not None:
                if offering is not None and (place := self._stack.run_dir / f"hold-{offering}").exists():
                    await self._offer(environment)
                    place.unlink()
                    offering = None
                due = [day for day in sorted(left) if self._progress.time > self._start_ms + day * DAY_MS]
                if due:
                    await self._kill(due[0], left.pop(due[0]), ends)
                await asyncio.sleep(LOOK_EVERY_S / 2)

    async def _ends(self, stack: contextlib.AsyncExitStack, kind: str) -> Ends:
        ends = Ends(self._kafka, self._topics[kind], self._registry())
        stack.push_async_callback(ends.stop)
        await ends.start()
        return ends

    async def _kill(self, day: int, name: str, ends: Mapping[str, Ends]) -> None:
        kind = OUTPUT_OF[name]
        self._drilled.add(name)
        killed = await kill(day, name, self._victim(name), topic=self._topics[kind].name, ends=ends[kind], clock=self._clock)
        self._drilled.discard(name)
        self._kills.append(killed)
        after = "no new output in a minute" if killed.silence_s is None else f"next output after {killed.silence_s:.1f} s"
        self._progress.tell(self._progress.time, "drill", f"kill -9 {name} (pid {killed.pid}): {after}")

    def _victim(self, name: str) -> Victim:
        stack = self._stack
        victim = stack.valkey if name == "valkey" and stack.valkey is not None else stack.children[name]
        return Victim(victim.pid, victim.kill, lambda: stack.restart(name))

    async def _offer(self, environment: Mapping[str, str]) -> None:
        forge = Forge(*(Path(environment[f"DRIFTLINE_MODEL_{name}"]) for name in ("STORE", "PRIVATE_KEY", "PUBLIC_KEY")))
        self._bad_model = await offer_bad_model(
            self._kafka, self._topics, self._registry(), pipeline=PIPELINE, forge=forge, clock=self._clock
        )

    async def _opened(self, environment: dict[str, str]) -> str:
        """The gateway, for whoever looks at what was played. Where it listens, once it is ready."""
        environment |= open_door(os.environ)
        self._spawn(GATEWAY, ["-m", "driftline", "run", GATEWAY, "--pipeline", PIPELINE], environment_of(GATEWAY, environment))
        gateway, deadline_s = self._stack.children[GATEWAY], self._clock.monotonic_s() + GATEWAY_WAIT_S
        while not (url := read_http(self._stack.run_dir)):
            if not gateway.alive or self._clock.monotonic_s() > deadline_s:
                raise Fatal(f"the gateway did not start; the end of {gateway.log}:\n{gateway.log_tail(LOG_LINES)}")
            await asyncio.sleep(LOOK_EVERY_S)
        return url

    # The report

    async def _report(self) -> dict[str, object]:
        options, pipeline = self._options, self._pipeline
        metrics = {service: await asyncio.to_thread(read_metrics, self._stack.run_dir, service) for service in LOOP}
        applications = await asyncio.to_thread(load_applications, pipeline.folder, options.days, self._play.start)
        logs = await read_logs(self._kafka, self._registry(), pipeline)
        truth: pl.DataFrame = applications.truth  # type: ignore[attr-defined]  # what is played for a demo comes with its truth
        run = Run(
            pipeline=PIPELINE,
            label_topic=pipeline.label.of.topic if pipeline.label else "",
            question_topic=pipeline.question.topic,
            started_ms=self._start_ms,
            wall_s=self._elapsed_s(),
            partitions=options.partitions,
            seed=options.seed,
            played=json.loads((self._stack.run_dir / REPORT_FILE).read_text()),
            truth=truth.rename({pipeline.question.id: "id"}).select("id", "label", "arrived"),
            kills=self._kills,
            bad_model=self._bad_model,
            metrics=metrics,
            usage=self._usage(),
        )
        found = findings(run, logs)
        (options.folder / JSON_FILE).write_text(json.dumps(found, indent=1) + "\n")
        return found

    def _usage(self) -> dict[str, Usage]:
        mine = resource.getrusage(resource.RUSAGE_SELF)
        unit = 1 if sys.platform == "darwin" else 1024
        return {**self._stack.usage(), "demo": Usage(mine.ru_utime + mine.ru_stime, mine.ru_maxrss * unit)}

    async def _kept(self, environment: Mapping[str, str], url: str) -> None:
        """Everything stays up until a signal."""
        place = self._options.folder / ENVIRONMENT_FILE
        write_environment(place, environment)
        self._out.write(f"\neverything stays up until Ctrl-C. In another shell: . {shlex.quote(str(place))}; driftline status {PIPELINE}\n")
        self._out.write(f"console: {url}/\nover HTTP: curl {url}/v1/{PIPELINE}/models; all that there is: {url}/openapi.json\n")
        self._out.flush()
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told.set)
        await told.wait()


def demo_key(seed: int) -> str:
    """The key that personal fields are tokenised with: a demo's own, the same for the same seed, so that a run repeats."""
    return hashlib.sha256(f"driftline demo {seed}".encode()).hexdigest()


def environment_of(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What one process is told: the private key is the trainer's alone; one thread each, for two cores are shared by all."""
    told = {name: value for name, value in environment.items() if service == "trainer" or name != "DRIFTLINE_MODEL_PRIVATE_KEY"}
    return {**told, **({} if service == "trainer" else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"})}


def write_environment(place: Path, environment: Mapping[str, str]) -> None:
    """As a shell reads it; for the owner's eyes, because a key is in it."""
    place.touch(mode=0o600)
    place.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items())))


@contextlib.asynccontextmanager
async def _background(*running: Coroutine[object, object, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that run beside the body, and are gone after it."""
    tasks: list[asyncio.Task[None]] = [asyncio.create_task(one) for one in running]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
