"""
Rows of files scored by the core that serves: what `driftline score` asks for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from msgspec import Struct

from driftline.contracts.avro import unpack_strings
from driftline.contracts.messages import Arm, Deployment
from driftline.models.bundle import BundleStore, Manifest, Model, load_public_key
from driftline.operate.backfill import Columns, Rows
from driftline.operate.parquet import varlen
from driftline.pipeline import Pipeline
from driftline.stream.batch import Column, Table, Varlen

from .core import DECISIONS, FLAGS, Inference

VERSION = 1  # of the one deployment that there is here


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Read once from DRIFTLINE_<NAME>; a field without a default must be set."""

    model_public_key: str
    model_store: str = "/var/lib/driftline/models"


def load(settings: Settings, digest: str) -> Model:
    """A signed model. Raises Invalid as `BundleStore` does."""
    return BundleStore(Path(settings.model_store), trusts=load_public_key(Path(settings.model_public_key))).model(digest)


def scorer(pipeline: Pipeline, model: Model) -> Columns:
    """
    What `model` as everybody's champion says of rows: `score` (float32), `decision`, `reasons`, `flags`, and its name and digest.

    Raises Invalid when it reads other features than the pipeline makes.
    """
    inference = Inference(pipeline)
    inference.add(_champion(model.manifest, model.digest), {model.digest: model})

    def columns(rows: Rows) -> list[pl.Series]:
        served = inference.say(_table(pipeline, rows))
        return [
            pl.Series("score", served.scores, pl.Float32),
            _texts("decision", DECISIONS.take(served.alerts.astype(np.int64))),
            _lists("reasons", inference.reasons(served)),
            _lists("flags", FLAGS.take(served.flags)),
            pl.repeat(model.manifest.model, len(served.scores), dtype=pl.String, eager=True).alias("model"),
            pl.repeat(model.digest, len(served.scores), dtype=pl.String, eager=True).alias("digest"),
        ]

    return columns


def _champion(manifest: Manifest, digest: str) -> Deployment:
    """As the rollout deploys a first model."""
    return Deployment(VERSION, "champion", "idle", "", 0, (Arm("champion", manifest.model, digest, 1.0),), (), "", manifest.base_rate)


def _table(pipeline: Pipeline, rows: Rows) -> Table:
    n = len(rows.offsets)
    columns: dict[str, Column] = {
        "deployment": np.full(n, VERSION, np.int64),
        "key": varlen(rows.keys),
        "layout": Varlen.repeat(pipeline.layout.version, n),
        "row": pipeline.layout.pack_whole(rows.numbers),
    }
    return Table("row", rows.offsets, columns)


def _texts(name: str, column: Varlen) -> pl.Series:
    return pl.Series(name, column.texts(), pl.String)


def _lists(name: str, column: Varlen) -> pl.Series:
    return pl.Series(name, [list(unpack_strings(value)) for value in column.tolist()], pl.List(pl.String))
