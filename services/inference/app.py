"""
The inference process: rows in, predictions and answers out. It follows the deployments, and has each model tried by the probe
and warm before a row that names it is scored.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from driftline.clock import Clock
from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import Deployment, Source, Writer, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Invalid, Recoverable
from driftline.logs import log
from driftline.metrics import distribution, metric
from driftline.models.bundle import BundleStore, Model, load_public_key
from driftline.models.probe import Probe
from driftline.models.runtime import refuse_missing
from driftline.pipeline import load_pipeline
from driftline.stream.batch import Batch, Effects, Ints
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import Publisher
from driftline.stream.letterbox import Letterbox
from driftline.stream.operators import Follower, Operators, Wiring, WorkerSettings, ops
from driftline.stream.process import Part, Process

from .core import Inference

DEPLOYMENT_TIMEOUT_S = 60.0


class Settings(WorkerSettings, frozen=True, kw_only=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    model_public_key: str
    model_store: str = "/var/lib/driftline/models"
    device: str = "cpu"  # or "cuda", where onnxruntime-gpu and a device are there

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_missing(self.device)


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline = load_pipeline(settings.pipeline)
    topics = Topics.of(pipeline)
    registry = Registry(settings.registry)
    probe = Probe()
    bundles = BundleStore(
        Path(settings.model_store), trusts=load_public_key(Path(settings.model_public_key)), probe=probe, device=settings.device
    )
    inference = Inference(pipeline)
    deployed = Deployed(pipeline.name, inference, bundles)
    letters = DeadLetters(pipeline.name, "inference", Source.DEPLOYMENTS, settings.dead_letters_max)
    publisher = Publisher(settings.kafka, topics, registry, Writer.INFERENCE, clock, client=f"{pipeline.name}-inference-letters")
    letterbox = Letterbox(letters, publisher, topics.deployments, settings.kafka, topics, clock)
    deployments = Follower(settings.kafka, topics.deployments, registry, deployed.take, letterbox.put)

    async def known(batch: Batch) -> None:
        if missing := inference.missing(batch):
            await deployments.wait(lambda: deployed.heard_of(missing), DEPLOYMENT_TIMEOUT_S, f"deployment {sorted(missing)}")
            await asyncio.to_thread(deployed.serve, missing)

    wiring = Wiring(
        service="inference",
        reads=topics.features,
        writes=[topics.predictions, topics.journal],
        writer=Writer.INFERENCE,
        source=Source.FEATURES,
        core=lambda _partition, _count: inference,
        before=known,
        observe=lambda _partition, _core, effects: count(pipeline.name, effects),
    )
    parts: list[Part] = [TrialsAhead(probe), deployments, Operators(wiring, settings, pipeline, registry, clock)]
    return Process("inference", parts, ops(settings, "inference"))


class TrialsAhead:
    """The probe's process, started beside all the rest: a restart does not wait for it."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    @property
    def ready(self) -> bool:
        """Always: what is not started ahead is started when it is needed."""
        return True

    async def run(self) -> None:
        """Start it. It leaves by itself when there is nothing to try."""
        await asyncio.to_thread(self._probe.start)

    def stop(self) -> None:
        """Whoever waits for a verdict waits no longer, and gets none."""
        self._probe.close()


class Deployed:
    """
    Deployments as they come, and their models, each tried by the probe and warm before a row is scored with it. Of those that
    were there at the start only the newest is made ready, and an older one when a row names it: a long history costs nothing.
    """

    def __init__(self, pipeline: str, inference: Inference, bundles: BundleStore) -> None:
        self._pipeline = pipeline
        self._inference = inference
        self._bundles = bundles
        self._lock = threading.Lock()  # the follower's thread and those that wait for an older deployment
        self._waiting: dict[int, Deployment] = {}
        self._served: set[int] = set()

    def take(self, batch: Batch) -> None:
        """Hear of more deployments, in order of their topic."""
        heard: list[Deployment] = facts(batch.tables["deployment"])
        for deployment in heard:
            if deployment.version not in self._served:
                self._waiting.setdefault(deployment.version, deployment)
        try:
            self.serve({heard[-1].version})
        except Recoverable as fault:  # whoever has a row that names it tries again
            log.warning("deployment not ready yet", version=heard[-1].version, because=str(fault))
        self._tell(heard[-1])

    def heard_of(self, versions: Set[int]) -> bool:
        """Whether all of them can be served."""
        return all(version in self._waiting or version in self._served for version in versions)

    def serve(self, versions: Set[int]) -> None:
        """
        Make rows answerable that name these versions, as far as they were heard of. Takes as long as their models do, so call it in a
        thread. Raises Recoverable when the probe came to no verdict: then nothing is answered yet, for an answer must not depend on that.
        """
        with self._lock:
            for version in sorted(versions & self._waiting.keys()):
                deployment = self._waiting[version]
                self._inference.add(deployment, self._warmed(deployment))
                self._served.add(version)
                del self._waiting[version]

    def _warmed(self, deployment: Deployment) -> dict[str, Model]:
        """Each model of `deployment` that may be loaded; rows for one that may not get the fallback score, flagged."""
        models = {}
        for digest in deployment.digests:
            try:
                model = self._bundles.model(digest)
                self._inference.refuse_unfit(model, f"model {digest[:12]} of deployment {deployment.version}")
                models[digest] = model
            except Invalid as error:
                log.error("model refused", digest=digest, because=str(error))
        return models

    def _tell(self, deployment: Deployment) -> None:
        metric("driftline_deployment_version").labels(pipeline=self._pipeline, service="inference").set(deployment.version)
        metric("driftline_model_info").clear()
        for arm in (*deployment.arms, *deployment.shadows):
            labels = {"pipeline": self._pipeline, "arm": arm.role, "model": arm.model, "version": str(deployment.version)}
            metric("driftline_model_info").labels(**labels).set(1)


def count(pipeline: str, effects: Effects) -> None:
    """Tell the metrics how many predictions each arm gave, and how many had something to say about themselves."""
    for messages in effects.messages:
        if messages.message == "prediction":
            arms, flags = messages.columns["arm"], messages.columns["flags"]
            _, first, told = np.unique(_pairs(arms, flags), return_index=True, return_counts=True)
            for at, n in zip(first.tolist(), told.tolist(), strict=True):
                for flag in unpack_strings(flags[at]) or ("none",):
                    metric("driftline_predictions_total").labels(pipeline=pipeline, arm=arms[at].decode(), flag=flag).inc(n)
            _tell_scores(pipeline, arms, messages.columns["score"])


def _tell_scores(pipeline: str, arms: Any, scores: Any) -> None:
    starts, first = np.unique(arms.starts, return_index=True)
    for start, at in zip(starts.tolist(), first.tolist(), strict=True):
        mine = scores if len(starts) == 1 else scores[arms.starts == start]
        distribution("driftline_prediction_score").labels(pipeline=pipeline, arm=arms[at].decode()).observe(mine)


def _pairs(one: Any, other: Any) -> Ints:
    """A number for each pair of values, the same for the same places in the two buffers: words that many share lie there once."""
    pairs: Ints = one.starts * (len(other.data) + 1) + other.starts
    return pairs
