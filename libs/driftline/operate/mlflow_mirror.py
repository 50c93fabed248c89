"""
Releases as MLflow shows them: a run for each training that ended in a verdict, a version of the registered model for each that was
accepted, and aliases for what the rollout does with them now. What is there already stays as it is; driftline reads nothing back.

Needs mlflow or mlflow-skinny: the extra mlflow has it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftline.contracts.messages import Release
from driftline.errors import Invalid, Recoverable
from driftline.models.bundle import Bundle, BundleStore, load_public_key
from driftline.operate.models import History
from driftline.pipeline import Pipeline

TAG = "driftline.release"  # of a run: the digest, or of what was refused before it was signed the command, with the verdict
ROLES = {"champion": "champion", "canary": "canary", "candidate": "challenger", "previous": "previous"}  # of an arm, and its alias
PARAM_CHARACTERS_MAX = 500


@dataclass
class Mirrored:
    """What was new."""

    runs: int = 0
    versions: int = 0
    aliases: dict[str, str] = field(default_factory=dict)

    def line(self, name: str, uri: str) -> str:
        """For whoever gave the command."""
        aliases = ", ".join(f"{alias} is {model}" for alias, model in self.aliases.items()) or "nothing is deployed"
        return f"{name} at {uri}: {self.runs} runs and {self.versions} versions are new; {aliases}"


def bundles_of(environment: Mapping[str, str]) -> Callable[[str], Bundle | None]:
    """Bundles by digest, from the store that the environment names; None for one that cannot be had or trusted."""
    place, key = environment.get("DRIFTLINE_MODEL_STORE"), environment.get("DRIFTLINE_MODEL_PUBLIC_KEY")
    if not place or not key:
        return lambda _: None
    store = BundleStore(Path(place), trusts=load_public_key(Path(key)))

    def bundle_of(digest: str) -> Bundle | None:
        try:
            return store.get(digest)
        except Invalid:
            return None

    return bundle_of


def mirror(pipeline: Pipeline, history: History, bundle_of: Callable[[str], Bundle | None], uri: str) -> Mirrored:
    """
    Bring MLflow at `uri` up to date with what the logs say. `bundle_of` gives the bundle of a digest where it can be had.

    Raises Invalid when MLflow is not installed, Recoverable with its words when it refuses.
    """
    client = _client(uri)
    with _worded(uri):
        return _Mirror(client, pipeline, bundle_of).take(history)


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or it tells its makers what it is used for
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError as error:
        raise Invalid("MLflow is not installed: pip install mlflow-skinny (driftline's extra mlflow has it)") from error
    with _worded(uri):
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def _worded(uri: str) -> Iterator[None]:
    exceptions: Any = importlib.import_module("mlflow.exceptions")
    try:
        yield
    except exceptions.MlflowException as error:
        raise Recoverable(f"MLflow at {uri}: {str(error).splitlines()[0]}") from error


class _Mirror:
    def __init__(self, client: Any, pipeline: Pipeline, bundle_of: Callable[[str], Bundle | None]) -> None:
        self._client = client
        self._pipeline = pipeline
        self._bundle_of = bundle_of
        self._found = Mirrored()

    def take(self, history: History) -> Mirrored:
        """All of it."""
        name = self._pipeline.name
        experiment = self._client.get_experiment_by_name(name)
        place = (
            experiment.experiment_id if experiment else self._client.create_experiment(name, tags={"driftline.owner": self._pipeline.owner})
        )
        if not any(one.name == name for one in self._client.search_registered_models(f"name = '{name}'")):
            self._client.create_registered_model(name, description=f"The models of driftline's pipeline {name}.")
        versions = {one.tags.get(TAG): one.version for one in self._client.search_model_versions(f"name = '{name}'")}
        for release in history.releases:
            run = self._run(place, release)
            if release.verdict == "accepted" and release.digest not in versions:
                made = self._client.create_model_version(name, run.info.artifact_uri, run.info.run_id, tags={TAG: release.digest})
                versions[release.digest] = made.version
                self._found.versions += 1
        self._alias(history, versions)
        return self._found

    def _run(self, experiment: str, release: Release) -> Any:
        """The run of a release, made where it is not there."""
        named = f"{release.digest or release.command} {release.verdict}"
        runs = self._client.search_runs([experiment], f"tags.`{TAG}` = '{named}'", max_results=1)
        if runs:
            return runs[0]
        told = ("model", "verdict", "reason", "trigger", "who", "command", "digest")
        tags = {f"driftline.{name}": str(getattr(release, name)) for name in told}
        run = self._client.create_run(experiment, start_time=release.time, run_name=release.model or named, tags=tags)
        bundle = self._bundle_of(release.digest)
        for name, value in (_params(bundle) if bundle else {}).items():
            self._client.log_param(run.info.run_id, name, str(value)[:PARAM_CHARACTERS_MAX])
        for name, value in _numbers("", release.evidence):
            self._client.log_metric(run.info.run_id, name, value, timestamp=release.time)
        self._client.log_text(run.info.run_id, json.dumps(release.evidence, indent=1, sort_keys=True), "evidence.json")
        if bundle:
            self._client.log_text(run.info.run_id, bundle.manifest.canonical().decode(), "manifest.json")
        self._client.set_tag(run.info.run_id, TAG, named)  # last: a run without it is made again
        self._client.set_terminated(run.info.run_id, "FINISHED" if release.verdict == "accepted" else "FAILED", end_time=release.time)
        self._found.runs += 1
        return run

    def _alias(self, history: History, versions: Mapping[str | None, str]) -> None:
        name = self._pipeline.name
        arms = [arm for arm in (*history.now.arms, *history.now.shadows) if arm.role in ROLES and arm.digest in versions]
        for arm in arms:
            self._client.set_registered_model_alias(name, ROLES[arm.role], versions[arm.digest])
            self._found.aliases[ROLES[arm.role]] = arm.model
        for alias in set(self._client.get_registered_model(name).aliases) & set(ROLES.values()) - set(self._found.aliases):
            self._client.delete_registered_model_alias(name, alias)


def _params(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    more = {"seed": manifest.seed, "layout": manifest.layout, "threshold": manifest.threshold, "features": len(manifest.names)}
    return {**manifest.recipe, **more, **{f"version.{name}": number for name, number in manifest.versions.items()}}


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number of the evidence, by its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for at, inner in enumerate(value):
            yield from _numbers(f"{name}.{at}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name.replace(" ", "_"), float(value)
