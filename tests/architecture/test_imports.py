"""Who may import whom: the contracts of .importlinter hold, and notice when they do not."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the checkout in `folder`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "libs"), str(folder)])}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the contracts are about."""
    for name in ("libs", "services"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_the_contracts_hold(checkout: Path) -> None:
    """
    Layers, services that do not know one another, cores without I/O: as `make check` sees them.
    """
    done = lint(checkout)
    assert done.returncode == 0, done.stdout
    assert "8 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("services/drift/core.py", "import services.intake.core", "services do not know one another"),
        ("services/labeler/core.py", "import time", "a core does no I/O and knows no clock"),
        ("services/feature/core.py", "import driftline.stream.ledger", "a core does no I/O and knows no clock"),
        ("libs/driftline/judge/gate.py", "import driftline.stream.worker", "driftline is built in layers"),
        ("libs/driftline/orphan.py", "", "driftline is built in layers"),
        ("libs/driftline/stream/worker.py", "import services.feature.core", "libs know no service"),
        ("services/inference/app.py", "import driftline.models.recipes", "only the trainer loads what trains"),
        ("services/drift/app.py", "import faust", "Faust is rollout's alone"),
        ("libs/driftline/stream/process.py", "import fastapi", "only the gateway serves HTTP"),
        ("libs/driftline/stream/batch.py", "import driftline.contracts.topics", "the two values know nothing of those who pass them"),
    ],
)
def test_each_contract_notices_a_foreign_import(checkout: Path, file: str, line: str, contract: str) -> None:
    """
    One import that is not allowed breaks the contract that forbids it.
    """
    with (checkout / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    done = lint(checkout)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())


def foreign_imports(source: str) -> list[str]:
    """What a pipeline's declaration imports besides `driftline` itself (and `from __future__`)."""
    imported: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append("." * node.level + (node.module or ""))
    return [name for name in imported if name not in ("driftline", "__future__")]


def test_pipelines_import_driftline_alone() -> None:
    """
    Every process loads a pipeline's file, so it may need nothing that only one of them has.
    """
    declarations = sorted((ROOT / "pipelines").glob("*/pipeline.py"))
    assert [path.parent.name for path in declarations] == ["flights"]
    assert {path.parent.name: foreign_imports(path.read_text(encoding="utf-8")) for path in declarations} == {"flights": []}


def test_a_foreign_import_in_a_pipeline_is_found() -> None:
    """
    The checker sees plain, dotted and relative imports.
    """
    source = "import lightgbm\nfrom driftline.stream import worker\nfrom . import upstream\nfrom driftline import Stream\n"
    assert foreign_imports(source) == ["lightgbm", "driftline.stream", "."]


# What a process of the data plane may load besides the standard library. Each package is a part of the time that its start takes.
BASE = {
    *("aiokafka", "async_timeout", "cramjam", "packaging", "typing_extensions"),  # Kafka's client
    *("numpy", "numba", "llvmlite", "cython_runtime", "fastavro", "msgspec", "yaml"),  # columns, compiled loops, schemas
    *("prometheus_client", "structlog"),
    "cryptography",  # sealed dead letters, signatures
}
STATE = {"hiredis"}
MODELS = {"google", "ml_dtypes", "onnx", "onnxruntime"}
MAY_LOAD = {
    "intake": BASE,
    "feature": BASE | STATE,
    "inference": BASE | STATE | MODELS,
    "labeler": BASE | STATE,
    "drift": BASE | STATE | MODELS,
}


def loaded_by(module: str) -> set[str]:
    """The packages that an import of `module` loads, without our own, what comes with Python, and what this Python loads by itself."""
    loaded = "{name.split('.')[0] for name in sys.modules}"
    command = f"import sys; before = {loaded}; import {module}; print(*{loaded} - before - set(sys.stdlib_module_names))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "libs"), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split() if not name.startswith("_")} - {"driftline", "services"}


@pytest.mark.parametrize("service", sorted(MAY_LOAD))
def test_the_data_plane_loads_what_it_needs_and_nothing_else(service: str) -> None:
    """
    A package more is a later first answer after a crash: whoever adds one adds it to the list, with its price.
    """
    loaded = loaded_by(f"services.{service}.app")
    assert loaded - MAY_LOAD[service] == set()
    assert {"aiokafka", "numba", "msgspec"} <= loaded


def test_a_package_that_is_not_needed_is_found() -> None:
    """
    The trainer loads more than a process of the data plane may.
    """
    assert {"onnx"} <= loaded_by("services.trainer.app") - MAY_LOAD["feature"]
