"""How far a long command is: a bar a job where somebody looks, nothing where the output goes to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from driftline.operate.rebuild import Job


@contextlib.contextmanager
def following(jobs: Sequence[Job], console: Console) -> Iterator[Callable[[Job, int, int], None]]:
    """While the body runs, what is given is told how far each job is, and of how much."""
    with _progress(console) as progress:
        bars = {job: progress.add_task(f"{job.operator}[{job.partition}]", total=None, start=False) for job in jobs}

        def told(job: Job, at: int, of: int) -> None:
            progress.start_task(bars[job])
            progress.update(bars[job], completed=at, total=of)

        yield told


@contextlib.contextmanager
def followed(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """The same for one thing."""
    with _progress(console) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda at, of: progress.update(bar, completed=at, total=of)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
