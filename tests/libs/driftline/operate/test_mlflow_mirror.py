"""Releases in MLflow, in a store of files."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import mlflow
import pytest

from benchmarks.performance.bundles import Champion
from driftline.contracts.messages import Arm, Deployment, Release
from driftline.errors import Invalid
from driftline.operate.mlflow_mirror import bundles_of, mirror
from driftline.operate.models import History
from driftline.pipeline import Pipeline, load_pipeline

ROOT = Path(__file__).parents[4]
DAY_MS = 86_400_000


def release(model: str, digest: str, verdict: str, day: int) -> Release:
    evidence = {"auc": 0.75, "checks": [{"name": "brier", "upper": 0.1, "passed": True}], "reason": "better"}
    return Release(model, digest, verdict, "because", day == 1, day * DAY_MS, "drift", f"c-{day}", "trainer", evidence)


def deployed(*arms: tuple[str, str, str]) -> Deployment:
    champion, *shadows = (Arm(role, model, digest, float(role == "champion")) for role, model, digest in arms)
    return Deployment(2, "shadow", "shadow", "", 0, (champion,), tuple(shadows), "s", 0.2)


@pytest.fixture
def payments() -> Pipeline:
    return load_pipeline("payments", ROOT / "benchmarks" / "pipelines")


def test_it_is_said_what_is_missing(payments: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """
    No image has MLflow; whoever wants it, asks for the extra.
    """

    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(Invalid, match="pip install mlflow-skinny"):
        mirror(payments, History(), lambda _: None, "file:nowhere")


def test_releases_are_runs_versions_and_aliases_once(payments: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A second time nothing is new; aliases follow the deployment; what the signed bundle says becomes parameters.
    """
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    uri = f"file:{tmp_path / 'mlruns'}"
    champion = Champion(payments, tmp_path)
    digest = champion.put_any()
    history = History([release("payments-1", digest, "accepted", 1), release("payments-2", "b" * 64, "refused", 2)])
    history.now = deployed(("champion", "payments-1", digest))
    first = mirror(payments, history, bundles_of(champion.environment), uri)
    assert (first.runs, first.versions, first.aliases) == (2, 1, {"champion": "payments-1"})
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true", "or it tells its makers"
    history.releases.append(release("payments-3", "c" * 64, "accepted", 3))
    history.now = deployed(("champion", "payments-1", digest), ("candidate", "payments-3", "c" * 64))
    again = mirror(payments, history, bundles_of({}), uri)
    assert (again.runs, again.versions, again.aliases) == (1, 1, {"champion": "payments-1", "challenger": "payments-3"})

    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("payments").experiment_id])}
    assert runs["payments-1"].data.params["kind"] == "lightgbm"
    assert runs["payments-1"].data.metrics == {"auc": 0.75, "checks.0.upper": 0.1}
    assert (runs["payments-1"].info.status, runs["payments-2"].info.status) == ("FINISHED", "FAILED")
    assert runs["payments-2"].data.tags["driftline.reason"] == "because"
    history.now = deployed(("champion", "payments-3", "c" * 64))
    assert mirror(payments, history, bundles_of({}), uri).aliases == {"champion": "payments-3"}
    assert client.get_registered_model("payments").aliases == {"champion": "2"}
