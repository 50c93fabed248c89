"""
`driftline check`: every problem of a declaration, worded, with its file and line.
"""

from __future__ import annotations

import sys

from driftline.errors import Invalid
from driftline.operate.addresses import pipeline_names
from driftline.pipeline import check, load_pipeline, pipelines_folder


def print_checks(name: str | None) -> int:
    """Check one pipeline, or all. Problems go to standard error; returns the exit status."""
    names = [name] if name else pipeline_names()
    if not names:
        raise Invalid(f"{pipelines_folder()} holds no pipeline: a folder with a pipeline.py")
    return max(_check_one(one) for one in names)


def _check_one(name: str) -> int:
    problems = check(name)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    pipeline = load_pipeline(name)
    print(f"{name}: {len(pipeline.layout.names)} inputs, {len(pipeline.streams)} streams, no problem found")
    return 0
