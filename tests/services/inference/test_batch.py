"""Files scored by the command: the rows of the fold, the scores of the model, without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from benchmarks.performance.bundles import Champion
from driftline.cli import app
from driftline.errors import DriftlineError
from driftline.models.bundle import BundleStore, load_public_key
from driftline.pipeline import load_pipeline

ROOT = Path(__file__).parents[3]
START_MS = 1_700_006_400_000
N = 3_000


@pytest.fixture
def champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of a signed model of payments, in a store that the environment names; nothing else is named there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_PIPELINES", str(ROOT / "benchmarks" / "pipelines"))
    made = Champion(load_pipeline("payments"), tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made.put_any()


@pytest.fixture
def payments(tmp_path: Path) -> Path:
    """More than one block's worth of nothing special."""
    chance = np.random.default_rng(3)
    at = pl.Series(START_MS + np.arange(N) * 1_000).cast(pl.Datetime("ms", "UTC"))
    cards = [f"card-{card}" for card in chance.integers(0, 40, N).tolist()]
    frame = pl.DataFrame({"payment_id": [f"p{i}" for i in range(N)], "card": cards, "at": at, "amount": chance.normal(0, 40, N)})
    frame.write_parquet(tmp_path / "payments.parquet")
    frame.write_csv(tmp_path / "payments.csv", datetime_format="%+")
    return tmp_path / "payments.parquet"


def score(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["score", "payments", *map(str, arguments)])


def test_scores_are_the_models_of_the_rows(champion: str, payments: Path, tmp_path: Path):
    """
    To the last bit, with what the pipeline decides on; a CSV file gives the same as a Parquet file.
    """
    for name in ("payments.parquet", "payments.csv"):
        done = score("--file", tmp_path / name, "--model", champion, "--out", tmp_path / f"of-{name}", "--wide")
        assert done.exit_code == 0, done.output
    scores, of_csv = pl.read_parquet(tmp_path / "of-payments.parquet"), pl.read_parquet(tmp_path / "of-payments.csv")
    assert scores.equals(of_csv)
    model = BundleStore(tmp_path / "models", trusts=load_public_key(tmp_path / "keys" / "model-public.pem")).model(champion)
    matrix = scores.select(model.manifest.names).to_numpy().astype(np.float32)
    assert scores["score"].to_numpy().tobytes() == model.score(matrix).tobytes()
    assert scores["score"].n_unique() > 10
    assert ((scores["score"] >= float(model.threshold)) == (scores["decision"] == "alert")).all()
    assert scores.select("model", "digest").unique().rows() == [("payments-1", champion)]


def refused(payments: Path, out: Path, *options: str) -> str:
    """The words of the error; nothing was written."""
    found = score("--file", payments, "--out", out, *options).exception
    assert isinstance(found, DriftlineError)
    assert not out.exists()
    return str(found)


def test_a_model_that_is_not_there_or_reads_other_features_is_refused(
    champion: str, payments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    Before anything is written.
    """
    assert "is not in the store" in refused(payments, tmp_path / "scores", "--model", "f" * 64)
    other = Champion(load_pipeline("flights", ROOT / "pipelines"), tmp_path / "other")
    for name, value in other.environment.items():
        monkeypatch.setenv(name, value)
    assert "reads other features than" in refused(payments, tmp_path / "scores", "--model", other.put_any())


def test_without_a_server_only_a_whole_digest_names_a_model(champion: str, payments: Path, tmp_path: Path):
    """
    What else is meant, releases and deployments tell.
    """
    for options in ([], ["--model", champion[:12]]):
        assert "DRIFTLINE_KAFKA" in refused(payments, tmp_path / "scores", *options)
