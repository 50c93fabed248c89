"""
What the demo does to the loop on purpose: three kill -9 in the middle of the load, and one bad model offered past the gate.

A kill changes nothing on the logs, so its moment need not be exact. The bad model is on the log, so the player holds still while
it is offered: the same seed gives the same rollout.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from driftline.clock import Clock
from driftline.contracts.messages import Deployment, Release, Source, Writer, as_messages, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topic, Topics
from driftline.errors import Fatal
from driftline.local.progress import DAY_MS
from driftline.models.bundle import BundleStore, load_private_key, load_public_key
from driftline.stream.kafka import LogReader, Publisher

KILLED = ("feature", "inference", "valkey")
KILL_AT = (0.35, 0.5, 0.65)  # of the play
BAD_MODEL_AT = 0.7
DAYS_MIN = 30  # a shorter play has no champion for long enough to drill
FETCH_WAIT_MS = 500
LOAD_TIMEOUT_S = 2.0
OUTPUT_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.02
SETTLE_S = 0.05  # what a killed process had sent may still be on its way to the log
BAD_MODEL = "bad"


@dataclass(frozen=True, slots=True)
class Plan:
    """On which day of the play, from 0, who is killed, and before which day the bad model is offered (None: never)."""

    kills: dict[int, str]
    bad_model: int | None


def make_plan(days: int, kills: bool) -> Plan:
    """
    The drills of a play of `days` days: none when it is too short, only the bad model when `kills` is false. The bad model is
    on the log, so that a run with kills and one without can be compared.
    """
    if days < DAYS_MIN:
        return Plan({}, None)
    killed = {int(days * share): name for share, name in zip(KILL_AT, KILLED, strict=True)} if kills else {}
    return Plan(killed, int(days * BAD_MODEL_AT))


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill -9: on which day, whom, and how long until the next new output on `topic` (None: none came in a minute)."""

    day: int
    name: str
    pid: int
    topic: str
    silence_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BadModel:
    """The model that was offered past the gate, and when on the pipeline's clock."""

    model: str
    digest: str
    copied_from: str
    offered_at: int


@dataclass(frozen=True, slots=True)
class Victim:
    """Something that can be killed: its process id, how to kill it with -9, how to start it again. Both block."""

    pid: int
    kill: Callable[[], None]
    restart: Callable[[], object]


class Ends:
    """Where the logs of one topic end, summed over its partitions."""

    def __init__(self, kafka: str, topic: Topic, registry: Registry) -> None:
        self._reader = LogReader(kafka, topic, registry, wait_ms=FETCH_WAIT_MS)

    async def start(self) -> None:
        """Connect."""
        await self._reader.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()

    async def total(self) -> int:
        """The number of records so far, asked now."""
        return sum((await self._reader.end_offsets()).values())


async def kill(day: int, name: str, victim: Victim, *, topic: str, ends: Ends, clock: Clock) -> Kill:
    """
    Wait until `ends` moves, so that the day is being worked on; kill `victim`, start it again at once, and measure the time
    from the kill to the next new record.
    """
    await _moved(ends, await ends.total(), LOAD_TIMEOUT_S, clock)
    killed_s = clock.monotonic_s()
    await asyncio.to_thread(victim.kill)
    restarting = asyncio.create_task(asyncio.to_thread(victim.restart))
    await asyncio.sleep(SETTLE_S)
    came = await _moved(ends, await ends.total(), OUTPUT_TIMEOUT_S, clock)
    silence_s = clock.monotonic_s() - killed_s if came else None
    await restarting
    return Kill(day, name, victim.pid, topic, silence_s)


async def _moved(ends: Ends, beyond: int, timeout_s: float, clock: Clock) -> bool:
    """True as soon as the log is longer than `beyond`; false after `timeout_s`."""
    deadline = clock.monotonic_s() + timeout_s
    while await ends.total() <= beyond:
        if clock.monotonic_s() > deadline:
            return False
        await asyncio.sleep(LOOK_EVERY_S)
    return True


@dataclass(frozen=True, slots=True)
class Forge:
    """Where bundles lie, and the keys of this demo, with which the bad model is signed."""

    store: Path
    private_key: Path
    public_key: Path

    def invert(self, pipeline: str, digest: str) -> tuple[str, str]:
        """
        Put a copy of bundle `digest` into the store whose every score is 1 minus the right one. Returns its name and digest.

        It is signed and its graph is allowed: nothing but what it answers gives it away.
        """
        bundles = BundleStore(self.store, trusts=load_public_key(self.public_key))
        good = bundles.get(digest)
        graph = inverted(good.onnx)
        manifest = msgspec.structs.replace(good.manifest, model=f"{pipeline}-{BAD_MODEL}", onnx_sha256=hashlib.sha256(graph).hexdigest())
        return manifest.model, bundles.put(manifest, graph, load_private_key(self.private_key))


def inverted(graph: bytes) -> bytes:
    """The ONNX graph that gives 1 minus the probability that `graph` gives."""
    model = onnx.load_from_string(graph)
    (output,) = model.graph.output
    right, one = "right_score", "one"
    for node in model.graph.node:
        node.output[:] = [right if name == output.name else name for name in node.output]
        node.input[:] = [right if name == output.name else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1.0], np.float32), one))
    model.graph.node.append(helper.make_node("Sub", [one, right], [output.name], name="invert"))
    if output.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise Fatal("the model's output is no float, so it cannot be inverted")
    inverted_graph: bytes = model.SerializeToString()
    return inverted_graph


async def offer_bad_model(kafka: str, topics: Topics, registry: Registry, *, pipeline: str, forge: Forge, clock: Clock) -> BadModel | None:
    """
    Publish a release, accepted by the operator, of an inverted copy of the champion. None when there is no champion yet.

    Call it while the player holds still: who is champion, and what time it is, are read from the log.
    """
    standing = await _last_deployment(kafka, topics, registry)
    champion = next((arm for arm in standing.arms if arm.role == "champion"), None)
    if champion is None:
        return None
    model, digest = await asyncio.to_thread(forge.invert, pipeline, champion.digest)
    release = Release(
        model=model,
        digest=digest,
        verdict="accepted",
        reason="offered past the gate on purpose: every score is inverted",
        first=False,
        time=standing.time,
        trigger="operator",
        command="",
        who="operator",
        evidence={"copied_from": champion.digest},
    )
    publisher = Publisher(kafka, topics, registry, Writer.OPERATOR, clock, client=f"{pipeline}-demo")
    await publisher.start()
    try:
        place = [clock.now_ms() * 1_000_000]
        await publisher.send(
            as_messages("control", Release.message, [release], source=Source.OPERATORS, offsets=place, indexes=[0], partition=0, to=0)
        )
    finally:
        await publisher.stop()
    return BadModel(model, digest, champion.digest, standing.time)


async def _last_deployment(kafka: str, topics: Topics, registry: Registry) -> Deployment:
    reader = LogReader(kafka, topics.deployments, registry)
    await reader.start()
    try:
        tables = [table for batch in (await reader.read_to()).values() if (table := batch[Deployment.message]) is not None]
        answers: list[Deployment] = [fact for table in tables for fact in facts(table)]
        return answers[-1] if answers else Deployment.none()
    finally:
        await reader.stop()


def bad_model_fate(bad: BadModel, deployments: list[dict[str, Any]]) -> dict[str, Any]:
    """
    What became of the bad model, from `deployments` in order (move, state, reason, time, arms, shadows): at which stage it was
    caught, how long after it began to score and after it was offered, and by which guardrail.
    """
    began = stage = None
    served = crowned = False
    for one in deployments:
        roles = {arm["role"] for arm in (*one["arms"], *one["shadows"]) if arm["digest"] == bad.digest}
        if roles:
            began = one["time"] if began is None else began
            stage = next((role for role in ("champion", "canary") if role in roles), stage or "shadow")
            served = served or bool(roles & {"canary", "champion"})
            crowned = crowned or "champion" in roles
        elif began is not None:
            return _fate(bad, stage, began, one, served=served, crowned=crowned)
    return _fate(bad, stage, began, None, served=served, crowned=crowned)


def _fate(
    bad: BadModel, stage: str | None, began: int | None, end: dict[str, Any] | None, *, served: bool, crowned: bool
) -> dict[str, Any]:
    ended = None if end is None else end["time"]
    return {
        "model": bad.model,
        "digest": bad.digest,
        "copied_from": bad.copied_from,
        "offered_at": bad.offered_at,
        "caught": end is not None,
        "stage": stage,
        "move": None if end is None else end["move"],
        "guardrail": None if end is None else end["reason"],
        "days_scored": None if ended is None or began is None else (ended - began) / DAY_MS,
        "days_since_offered": None if ended is None else (ended - bad.offered_at) / DAY_MS,
        "served": served,
        "champion": crowned,
    }
