"""Other devices than the processor: asked for by name, refused where they are not, used only where they say what the processor says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driftline.declaration import LightGBM, Logistic
from driftline.errors import Invalid
from driftline.models import bundle as bundles
from driftline.models import runtime
from driftline.models.bundle import BundleStore, Manifest, Model, generate_keys, load_private_key, load_public_key
from driftline.models.recipes import describe, fit
from driftline.models.reference import make_reference, medians
from driftline.models.runtime import PROVIDERS, Loaded, refuse_missing

NAMES = ("a", "b", "c")
TREES = LightGBM(trees=10, leaves=7, leaf_rows_min=5, learning_rate=0.1, row_sample=1.0, column_sample=1.0, l2=1.0, seed=7)
ROWS = np.random.default_rng(7).normal(0, 1, (600, 3)).astype(np.float32)


def why_not_cuda() -> str:
    try:
        refuse_missing("cuda")
    except Invalid as reason:
        return str(reason)
    return ""


NO_CUDA = why_not_cuda()
needs_cuda = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)  # a GPU is no package; all but its own arithmetic is tested without one


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path, str]:
    """A store with one model, the key that it trusts, and the model's digest."""
    return store(tmp_path, Logistic())


def store(tmp_path: Path, recipe: Any) -> tuple[Path, Path, str]:
    graph = fit(recipe, ROWS, (ROWS[:, 0] > 0).astype(np.int64), seed=7).onnx()
    private, public = generate_keys(tmp_path / "keys")
    manifest = Manifest(
        model="m-1",
        layout="l",
        names=NAMES,
        recipe=describe(recipe),
        seed=7,
        onnx_sha256=hashlib.sha256(graph).hexdigest(),
        threshold=0.5,
        medians=medians(NAMES, ROWS),
        reference=make_reference(NAMES, ROWS, np.linspace(0, 1, len(ROWS), dtype=np.float32)),
        dispersion=1.0,
        base_rate=0.5,
        dataset={},
        metrics={},
        trained_at=1,
        trigger="first",
        versions={},
    )
    store = BundleStore(tmp_path / "models", trusts=load_public_key(public))
    return tmp_path / "models", public, store.put(manifest, graph, load_private_key(private))


def loaded(stored: tuple[Path, Path, str], device: str) -> Model:
    folder, public, digest = stored
    return BundleStore(folder, trusts=load_public_key(public), device=device).model(digest)


def test_a_device_that_is_not_there_is_refused_by_the_name_of_the_setting(monkeypatch: pytest.MonkeyPatch):
    """
    Before anything connects, and with what to install.
    """
    monkeypatch.setattr(runtime.onnxruntime, "get_available_providers", lambda: [PROVIDERS["cpu"]])
    refuse_missing("cpu")
    with pytest.raises(Invalid, match=r"DRIFTLINE_DEVICE is cuda.*onnxruntime-gpu"):
        refuse_missing("cuda")
    with pytest.raises(Invalid, match=r"DRIFTLINE_DEVICE is tpu.*cpu, cuda"):
        refuse_missing("tpu")


@pytest.mark.parametrize("fault", ["other", "unsteady", "silent"])
def test_a_device_that_says_otherwise_does_not_score(fault: str, stored: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch):
    """
    Its scores are others, change with the batch, or are none: the processor scores then, and says the same bytes as ever.
    """

    class Device(Loaded):
        def __init__(self, graph: bytes, features: int, device: str = "cpu") -> None:
            super().__init__(graph, features)
            self.faulty = device != "cpu"

        def score(self, matrix):
            scores = super().score(matrix)
            if not self.faulty:
                return scores
            if fault == "other":
                return scores + np.float32(1e-4)
            return scores + np.float32(1e-7 * len(matrix)) if fault == "unsteady" else np.full_like(scores, np.nan)

    expected = loaded(stored, "cpu").score(ROWS)
    monkeypatch.setattr(bundles, "Loaded", Device)
    model = loaded(stored, "cuda")
    assert model.device == "cpu"
    assert model.score(ROWS).tobytes() == expected.tobytes()


def test_a_device_that_says_the_same_scores(stored: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch):
    """
    Or the test above would pass if none ever did.
    """
    monkeypatch.setattr(bundles, "Loaded", lambda graph, features, device="cpu": Loaded(graph, features))
    assert loaded(stored, "cuda").device == "cuda"


def test_a_device_that_the_runtime_goes_on_without_is_refused(monkeypatch: pytest.MonkeyPatch):
    """
    It is built for it, and there is none: the runtime computes on the processor then, and says so to nobody.
    """
    monkeypatch.setattr(runtime, "_providers", lambda device: [PROVIDERS["cpu"]])
    monkeypatch.setattr(runtime.onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    refuse_missing("cpu")
    with pytest.raises(Invalid, match=r"DRIFTLINE_DEVICE is cuda, and the runtime does not reach it.*nvidia-smi"):
        refuse_missing("cuda")


@pytest.mark.parametrize("n", [1, 511, 512, 513, 1_500])
def test_a_device_is_always_given_as_many_rows(n: int, monkeypatch: pytest.MonkeyPatch):
    """
    Or its kernels, and with them the last bits of a score, would change with the batch; whoever asks sees nothing of it.
    """
    monkeypatch.setitem(PROVIDERS, "cuda", PROVIDERS["cpu"])  # the processor in the place of a device
    monkeypatch.setattr(runtime, "_providers", lambda device: [PROVIDERS["cpu"]])
    rows = np.random.default_rng(7).normal(0, 1, (n, 3)).astype(np.float32)
    graph = fit(Logistic(), ROWS, (ROWS[:, 0] > 0).astype(np.int64), seed=7).onnx()
    there, given = Loaded(graph, 3, "cuda"), []
    run = there._session.run
    monkeypatch.setattr(there._session, "run", lambda names, rows: given.append(len(rows["rows"])) or run(names, rows))
    assert there.score(rows).tobytes() == Loaded(graph, 3).score(rows).tobytes()
    assert given == [runtime.DEVICE_ROWS] * -(-n // runtime.DEVICE_ROWS)


def test_trees_stay_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    No device has kernels for them, and one that is always given as many rows would score most of them for nothing.
    """
    monkeypatch.setattr(bundles, "Loaded", lambda graph, features, device="cpu": Loaded(graph, features))
    assert loaded(store(tmp_path, TREES), "cuda").device == "cpu"


@needs_cuda
def test_on_cuda_a_row_scores_the_same_in_any_batch(stored: tuple[Path, Path, str]):
    """
    And as on the processor, to what the gate allows.
    """
    refuse_missing("cuda")
    here, there = loaded(stored, "cpu"), loaded(stored, "cuda")
    assert there.device == "cuda"
    whole = there.score(ROWS)
    parts = [there.score(ROWS[at : at + 7]) for at in range(0, len(ROWS), 7)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert np.abs(whole - here.score(ROWS)).max() <= bundles.SCORES_APART_MAX
