"""What a service imports: enough to work, and not what costs the second in which it should be back."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from driftline.imports import hidden

HEAVY = {"scipy", "cffi", "rich", "polars", "lightgbm", "sklearn", "faust", "torch", "pandas", "pyarrow"}
NEEDS = {"trainer": {"lightgbm", "pandas", "polars", "rich", "sklearn", "scipy"}, "rollout": {"faust", "cffi"}, "gateway": {"rich"}}
LISTED = "import importlib, json, sys; importlib.import_module('services.{}.app'); print(json.dumps(sorted(sys.modules)))"


@pytest.mark.parametrize("service", ["intake", "feature", "inference", "labeler", "drift", "trainer", "rollout", "gateway"])
def test_a_service_imports_nothing_heavy_that_it_does_not_use(service: str) -> None:
    """
    In a process of its own, as it starts.
    """
    done = subprocess.run([sys.executable, "-c", LISTED.format(service)], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert imported & HEAVY - NEEDS.get(service, set()) == set()


def test_a_hidden_package_cannot_be_imported_until_it_is_shown_again() -> None:
    """
    And one that was imported before stays what it was.
    """
    sys.modules.pop("wave", None)
    with hidden("wave", "json"):
        with pytest.raises(ImportError):
            importlib.import_module("wave")
        assert importlib.import_module("json") is json
    assert importlib.import_module("wave").__name__ == "wave"


def test_a_package_is_shown_again_after_an_error() -> None:
    """
    Whatever went wrong meanwhile.
    """
    sys.modules.pop("wave", None)
    with pytest.raises(ZeroDivisionError), hidden("wave"):
        raise ZeroDivisionError
    assert importlib.import_module("wave").__name__ == "wave"
