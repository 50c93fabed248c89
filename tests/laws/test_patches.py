"""The patches of `make mutants` fit the tree as it is, and docs/laws.md says what they are. Whether they are noticed, `run.py` says."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LAWS = ["the promise", *map(str, range(1, 12))]


@pytest.fixture(scope="module")
def laws() -> ModuleType:
    """`run.py`, which is a script."""
    spec = importlib.util.spec_from_file_location("laws_run", HERE / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_every_law_has_a_breach(laws: ModuleType) -> None:
    """
    The promise and eleven laws, and the name of a patch begins with the number of its law.
    """
    mutants = laws.mutants()
    assert {mutant.law for mutant in mutants} == set(LAWS)
    assert [mutant.name for mutant in mutants if int(mutant.name[:2]) != LAWS.index(mutant.law)] == []


def test_every_patch_fits_the_tree(laws: ModuleType, tmp_path: Path) -> None:
    """
    What it changes is there, once; a patch that no longer fits is made anew with the change that moved it.
    """
    for mutant in laws.mutants():
        for name in mutant.changes:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        mutant.apply(tmp_path)
        assert all((tmp_path / name).read_bytes() != (ROOT / name).read_bytes() for name in mutant.changes), mutant.name


def test_a_patch_that_does_not_fit_is_refused(laws: ModuleType, tmp_path: Path) -> None:
    """
    Nothing is changed, and the patch is named.
    """
    mutant = laws.mutants()[0]
    for name in mutant.changes:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("something else\n")
    with pytest.raises(ValueError, match=mutant.name):
        mutant.apply(tmp_path)


def test_every_test_that_a_patch_names_is_there(laws: ModuleType) -> None:
    """
    By file and name.
    """
    for mutant in laws.mutants():
        path, name = mutant.test.split("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}, mutant.name


def test_the_page_of_the_laws_has_every_breach(laws: ModuleType) -> None:
    """
    Its name, its words, and its test.
    """
    page = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    for mutant in laws.mutants():
        assert all(part in page for part in (f"`{mutant.name}`", mutant.words, f"`{mutant.test}`")), mutant.name
