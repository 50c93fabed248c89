"""
From a pipeline file to a `Pipeline`, or to the list of everything that is wrong with it.
"""

from __future__ import annotations

import ast
import os
import traceback
from pathlib import Path
from types import CodeType
from typing import Any

from driftline import declaration
from driftline.check import Checker, Problem, foreign_imports
from driftline.declaration import Budget, Gate, LightGBM, Logistic, Recipe, Retrain, Rollout
from driftline.definition import Aggregate, Condition, Direct, Feature, Label, Pipeline, Reading, Stream, View
from driftline.errors import Invalid

__all__ = [
    "Aggregate",
    "Budget",
    "Condition",
    "Direct",
    "Feature",
    "Gate",
    "Label",
    "LightGBM",
    "Logistic",
    "Pipeline",
    "Problem",
    "Reading",
    "Recipe",
    "Retrain",
    "Rollout",
    "Stream",
    "View",
    "check",
    "load_pipeline",
    "pipelines_folder",
]

FILE = "pipeline.py"


def pipelines_folder() -> Path:
    """Where pipelines are: DRIFTLINE_PIPELINES, or the folder `pipelines` here."""
    return Path(os.environ.get("DRIFTLINE_PIPELINES") or "pipelines")


def load_pipeline(name: str, root: Path | None = None) -> Pipeline:
    """The pipeline in the folder `name` of `root`. Raises Invalid with every problem that `check` finds."""
    pipeline, problems = _read(name, root)
    if pipeline is None:
        raise Invalid("\n\n".join(map(str, problems)))
    return pipeline


def check(name: str, root: Path | None = None) -> list[Problem]:
    """Everything that is wrong with a pipeline, in the order of the file. Raises Invalid when there is no such pipeline."""
    return _read(name, root)[1]


def _read(name: str, root: Path | None) -> tuple[Pipeline | None, list[Problem]]:
    folder = _folder(name, pipelines_folder() if root is None else root)
    file = folder / FILE
    shown = _shown(file)
    source = file.read_text()
    try:
        tree = ast.parse(source, shown)
    except SyntaxError as error:
        return None, [Problem(shown, error.lineno or 0, (error.text or "").strip(), f"this is no Python: {error.msg}.")]
    if problems := foreign_imports(tree, shown):
        return None, problems
    names, problem = _execute(compile(tree, str(file), "exec"), str(file), shown)
    if problem is not None:
        return None, [problem]
    checker = Checker(folder, shown, names)
    pipeline = checker.resolve()
    problems = sorted(checker.problems, key=lambda one: one.line)
    return (None if problems else pipeline), problems


def _folder(name: str, root: Path) -> Path:
    known = sorted(path.parent.name for path in root.glob(f"*/{FILE}"))
    if name not in known:
        raise Invalid(f"there is no pipeline {name!r} in {root}; there {'are ' + ', '.join(known) if known else 'is none'}")
    return root / name


def _shown(file: Path) -> str:
    """The path as a person here would write it."""
    absolute = file.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(file)


def _execute(code: CodeType, file: str, shown: str) -> tuple[dict[str, Any], Problem | None]:
    """Run the file, which only makes values, and say what stopped it."""
    names: dict[str, Any] = {"__name__": "pipeline", "__file__": file}
    try:
        exec(code, names)
    except Exception as error:  # whatever a person may have written there is theirs to mend, and is told as such
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        at = lines[-1] if lines else None
        words = str(error) if isinstance(error, Invalid) else f"{type(error).__name__}: {error}"
        return {}, Problem(shown, (at.lineno if at else None) or 0, (at.line if at else None) or "", words)
    return {
        key: value for key, value in names.items() if isinstance(value, declaration.Stream | declaration.View | declaration.Pipeline)
    }, None
