"""
The models that can be asked directly: the champion by the pipeline's name, any released model by its own. Loaded as inference loads
them: signed by the trusted key, tried by the probe, warm.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from driftline.errors import Invalid
from driftline.models.bundle import BundleStore, Model
from driftline.operate.board import Board
from driftline.operate.models import DIGEST_SHOWN
from driftline.pipeline import Pipeline

from .problems import of_status


@dataclass(frozen=True, slots=True)
class Named:
    """A model under the name that it was asked for by, and the version that this name has."""

    name: str
    version: str
    digest: str


class Served:
    """Names to models. Raises Problem: 404 for a name that there is not, 503 where inference would not load the model either."""

    def __init__(self, pipeline: Pipeline, board: Board, bundles: BundleStore) -> None:
        self._pipeline = pipeline
        self._board = board
        self._bundles = bundles
        self._one_by_one = asyncio.Lock()

    def find(self, name: str, version: str = "") -> Named:
        """
        By the pipeline's name the champion, or the released model that `version` names; by a model's name that model, of which
        `version`, if given, is the beginning of the digest.
        """
        history = self._board.history()
        if name == self._pipeline.name:
            champions = [arm for arm in history.now.arms if arm.role == "champion"]
            found = {(one.model, one.digest) for one in history.releases if one.model == version} if version else set()
            found |= {(arm.model, arm.digest) for arm in champions if version in ("", arm.model)}
            named = [Named(name, model, digest) for model, digest in sorted(found)]
        else:
            digests = {one.digest for one in history.releases if one.model == name and one.digest.startswith(version)}
            named = [Named(name, digest[:DIGEST_SHOWN], digest) for digest in sorted(digests)]
        if len(named) != 1:
            raise of_status(
                404, f"there is no such model; the champion's name here is {self._pipeline.name}, others: /v1/{self._pipeline.name}/models"
            )
        return named[0]

    async def known(self, digest: str) -> Model | None:
        """The model of this digest, or None where the store does not have it, or inference would not load it."""
        async with self._one_by_one:
            try:
                return await asyncio.to_thread(self._bundles.model, digest) if digest else None
            except Invalid:
                return None

    async def load(self, named: Named) -> Model:
        """The model, warm. The first time it takes as long as the probe does."""
        async with self._one_by_one:
            try:
                model = await asyncio.to_thread(self._bundles.model, named.digest)
            except Invalid as error:
                raise of_status(503, f"{named.name} {named.version} cannot be loaded: {error}") from error
        if tuple(model.manifest.names) != tuple(self._pipeline.layout.names):
            raise of_status(503, f"{named.name} {named.version} reads other features than the pipeline makes now")
        return model
