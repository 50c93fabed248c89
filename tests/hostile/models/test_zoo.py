"""Every hostile model is refused, by whom and in the words that the zoo says; most of them before the runtime sees a byte."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ground import KEY, Ground
from hostile import Hostile
from zoo import PAGE, ZOO, offered, refuser

from driftline.models.bundle import BundleStore
from driftline.models.probe import Probe

SEEN = [one for one in ZOO if one.refused_by != "probe"]
PROBED = [one for one in ZOO if one.refused_by == "probe"]


class Untouchable:
    """In place of the runtime's session, where nothing may reach it."""

    def __init__(self, *_: object, **__: object) -> None:
        raise AssertionError("the runtime saw the bytes of a hostile model")


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    """One for all tests, as one process of inference has."""
    probe = Probe()
    yield probe
    probe.close()


@pytest.mark.parametrize("one", SEEN, ids=lambda one: one.name)
def test_what_can_be_seen_is_refused_before_anything_runs(one: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Neither this process makes a session of it, nor is the probe's process even started.
    """
    monkeypatch.setattr(onnxruntime, "InferenceSession", Untouchable)
    probe = Probe()
    error = offered(one, tmp_path, BundleStore(tmp_path / "models", KEY.public_key(), probe))
    assert error is not None
    assert (refuser(error), bool(re.search(one.message, str(error))), probe.children) == (one.refused_by, True, 0), str(error)


@pytest.mark.parametrize("one", PROBED, ids=lambda one: one.name)
def test_what_only_running_shows_is_refused_by_the_probe(
    one: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Probe
) -> None:
    """
    In its own process; in this one no session is made.
    """
    monkeypatch.setattr(onnxruntime, "InferenceSession", Untouchable)
    error = offered(one, tmp_path, BundleStore(tmp_path / "models", KEY.public_key(), probe))
    assert error is not None
    assert (refuser(error), bool(re.search(one.message, str(error)))) == ("probe", True), str(error)


def test_an_honest_bundle_passes_everything(tmp_path: Path) -> None:
    """
    The bundle that all the others are made from is served, so what is refused in them is what was changed.
    """
    ground = Ground(tmp_path)
    model = ground.opened().model(ground.honest())
    scores = model.score(np.array([[0.0, 9.0], [1.0, 9.0]], np.float32))
    assert scores.tolist() == pytest.approx([0.268941, 0.731059], abs=1e-6)


def test_the_zoo_is_as_large_as_it_says() -> None:
    """
    Sixty at least, each under a name of its own, and some for every refuser.
    """
    count = Counter(one.refused_by for one in ZOO)
    assert len(ZOO) >= 60
    assert len({one.name for one in ZOO}) == len(ZOO)
    assert set(count) == {"store", "signature", "manifest", "graph", "probe"}


def test_the_page_tells_of_every_model() -> None:
    """
    docs/hostile-models.md is made by `make hostile-models`; it is made anew when the zoo changes.
    """
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (\w+) \| ", PAGE.read_text(), re.MULTILINE)
    assert rows == [(one.name, one.how, one.refused_by) for one in ZOO]
