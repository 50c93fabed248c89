"""
A model in force, without a trainer: signed, put into the store, and named by the first deployment.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from driftline.contracts.messages import Arm, Deployment, Writer, as_messages
from driftline.contracts.messages import Source as Log
from driftline.contracts.registry import Registry
from driftline.contracts.topics import Topics
from driftline.declaration import LightGBM
from driftline.models.bundle import BundleStore, Manifest, generate_keys, load_private_key, load_public_key
from driftline.models.recipes import describe, fit
from driftline.models.reference import make_reference, medians
from driftline.pipeline import Pipeline
from driftline.stream.kafka import Publisher

from .payments import digest

RECIPE = LightGBM(trees=100, leaves=15, leaf_rows_min=20, learning_rate=0.1, row_sample=1.0, column_sample=1.0, l2=1.0, seed=7)


class Champion:
    """One graph as the champion of a pipeline, in a store of its own."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._pipeline = pipeline
        self._private, self.public = generate_keys(folder / "keys")
        self.models = folder / "models"

    @property
    def environment(self) -> dict[str, str]:
        """What inference and drift must be told."""
        return {"DRIFTLINE_MODEL_STORE": str(self.models), "DRIFTLINE_MODEL_PUBLIC_KEY": str(self.public)}

    def put(self, graph: bytes, recipe: LightGBM, learned: npt.NDArray[np.float32], time_ms: int) -> str:
        """Sign and keep it; `learned` are the rows that it was trained on, float32 (n, F). Returns the digest."""
        names = self._pipeline.layout.names
        manifest = Manifest(
            model=f"{self._pipeline.name}-1",
            layout=self._pipeline.layout.version,
            names=names,
            recipe=describe(recipe),
            seed=recipe.seed,
            onnx_sha256=digest(graph),
            threshold=1.0,  # nothing is an alert: reasons would be work that no peer does
            medians=dict(medians(names, learned)),
            reference=make_reference(names, learned, np.linspace(0, 1, len(learned), dtype=np.float32)),
            dispersion=1.0,
            base_rate=0.5,
            dataset={"ranges": [], "rows": len(learned)},
            metrics={},
            trained_at=time_ms,
            trigger="first",
            versions={},
        )
        store = BundleStore(self.models, trusts=load_public_key(self.public))
        return store.put(manifest, graph, load_private_key(self._private))

    def put_any(self) -> str:
        """A model of a hundred trees that learned nothing of use, for whoever measures what one costs. Returns the digest."""
        chance = np.random.default_rng(RECIPE.seed)
        learned = chance.normal(0, 30, (20_000, len(self._pipeline.layout.names))).astype(np.float32)
        labels = (learned[:, 0] + chance.normal(0, 30, len(learned)) > 0).astype(np.int64)
        return self.put(fit(RECIPE, learned, labels, seed=RECIPE.seed).onnx(), RECIPE, learned, 0)

    async def deploy(self, bundle: str, kafka: str, registry: Registry) -> None:
        """Publish the deployment, version 1."""
        champion = Arm("champion", f"{self._pipeline.name}-1", bundle, 1.0)
        deployment = Deployment(1, "first", "steady", "benchmark", 0, (champion,), (), "", 0.5)
        publisher = Publisher(kafka, Topics.of(self._pipeline), registry, Writer.ROLLOUT)
        await publisher.send(as_messages("deployments", "deployment", [deployment], source=Log.CONTROL, offsets=[0], indexes=[0]))
        await publisher.stop()
