"""
The inference process: rows in, predictions and answers out. It follows the deployments, and has each model warm before a row
that names it is scored.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from driftline.clock import Clock
from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import Deployment, Source, Writer, facts
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.errors import Invalid
from driftline.logs import log
from driftline.metrics import metric
from driftline.models.bundle import BundleStore, Model, load_public_key
from driftline.pipeline import load_pipeline
from driftline.stream.batch import Batch, Effects
from driftline.stream.dead_letters import DeadLetters
from driftline.stream.kafka import Publisher
from driftline.stream.letterbox import Letterbox
from driftline.stream.operators import Follower, Operators, Wiring, WorkerSettings, ops
from driftline.stream.process import Process

from .core import Inference

DEPLOYMENT_TIMEOUT_S = 60.0


class Settings(WorkerSettings, frozen=True, kw_only=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    model_public_key: str
    model_store: str = "/var/lib/driftline/models"


def build(settings: Settings, clock: Clock) -> Process:
    """Everything that the process touches. Nothing connects before it runs."""
    pipeline = load_pipeline(settings.pipeline)
    topics = Topics.of(pipeline)
    registry = Registry(settings.registry)
    bundles = BundleStore(Path(settings.model_store), trusts=load_public_key(Path(settings.model_public_key)))
    inference = Inference(pipeline)

    def add(batch: Batch) -> None:
        for deployment in facts(batch.tables["deployment"]):
            inference.add(deployment, warmed(deployment))
            tell(deployment)

    def tell(deployment: Deployment) -> None:
        metric("driftline_deployment_version").labels(pipeline=pipeline.name, service="inference").set(deployment.version)
        metric("driftline_model_info").clear()
        for arm in (*deployment.arms, *deployment.shadows):
            labels = {"pipeline": pipeline.name, "arm": arm.role, "model": arm.model, "version": str(deployment.version)}
            metric("driftline_model_info").labels(**labels).set(1)

    def warmed(deployment: Deployment) -> dict[str, Model]:
        """Each model of `deployment` that may be loaded; rows for one that may not get the fallback score, flagged."""
        models = {}
        for digest in deployment.digests:
            try:
                model = bundles.model(digest)
                if tuple(model.manifest.names) != tuple(pipeline.layout.names):
                    raise Invalid(f"it reads other features than {pipeline.layout.version}")
                models[digest] = model
            except Invalid as error:
                log.error("model refused", digest=digest, because=str(error))
        return models

    letters = DeadLetters(pipeline.name, "inference", Source.DEPLOYMENTS, settings.dead_letters_max)
    publisher = Publisher(settings.kafka, topics, registry, Writer.INFERENCE, clock, client=f"{pipeline.name}-inference-letters")
    letterbox = Letterbox(letters, publisher, topics.deployments, settings.kafka, topics, clock)
    deployments = Follower(settings.kafka, topics.deployments, registry, add, letterbox.put)

    async def known(batch: Batch) -> None:
        missing = inference.missing(batch)
        if missing:
            await deployments.wait(lambda: not inference.missing(batch), DEPLOYMENT_TIMEOUT_S, f"deployment {sorted(missing)}")

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
    return Process("inference", [deployments, Operators(wiring, settings, pipeline, registry, clock)], ops(settings, "inference"))


def count(pipeline: str, effects: Effects) -> None:
    """Tell the metrics how many predictions each arm gave, and how many had something to say about themselves."""
    for messages in effects.messages:
        if messages.message == "prediction":
            told = Counter(zip(messages.columns["arm"], messages.columns["flags"], strict=True))
            for (arm, packed), n in told.items():
                for flag in unpack_strings(packed) or ("none",):
                    metric("driftline_predictions_total").labels(pipeline=pipeline, arm=arm.decode(), flag=flag).inc(n)
