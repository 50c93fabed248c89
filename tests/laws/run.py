"""
Break each law on purpose. Every patch beside this file is applied to a copy of the tree, alone, and the test that it names has to
fail there, having passed before: a law that nothing notices the breach of holds by luck.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = Path(__file__).parent
COPIED = ("libs", "services", "pipelines", "schemas", "tests", "docs", "benchmarks")
FILES = ("pyproject.toml", ".importlinter", "README.md", "Makefile")
PASSED = 0  # pytest's exit code
PATIENCE_S = 900
AT_ONCE = 2  # each is a process of its own, with a broker where its test needs one
WHERE = "import driftline, services.intake.core as core; print(driftline.__file__); print(core.__file__)"


@dataclass(frozen=True)
class Mutant:
    """One patch: the law that it breaks, how, the test that notices, and by file the old texts with the new ones."""

    name: str
    law: str
    words: str
    test: str
    changes: dict[str, list[tuple[str, str]]]

    @classmethod
    def read(cls, path: Path) -> Mutant:
        """Raises ValueError when the head or the patch is not as it should be."""
        text = path.read_text(encoding="utf-8")
        head = dict(re.findall(r"^(Law|Break|Test): (.+)$", text.split("\n--- ", 1)[0], re.M))
        changes: dict[str, list[tuple[str, str]]] = {}
        for file in re.split(r"^--- a/", text, flags=re.M)[1:]:
            name, *hunks = re.split(r"^@@ .*@@.*\n", file, flags=re.M)
            changes[name.split("\n", 1)[0].strip()] = [sides(hunk) for hunk in hunks]
        if set(head) != {"Law", "Break", "Test"} or not all(changes.values()) or not changes:
            raise ValueError(f"{path.name}: it needs the lines Law, Break and Test, and a unified diff")
        return cls(path.stem, head["Law"], head["Break"], head["Test"], changes)

    def apply(self, folder: Path) -> None:
        """Change the files in `folder`. Raises ValueError unless each old text is there, once."""
        for name, hunks in self.changes.items():
            text = (folder / name).read_text(encoding="utf-8")
            for old, new in hunks:
                if text.count(old) != 1:
                    raise ValueError(f"{self.name}: what it changes is {text.count(old)} times in {name}, not once; make the patch anew")
                text = text.replace(old, new)
            (folder / name).write_text(text, encoding="utf-8")


def sides(hunk: str) -> tuple[str, str]:
    """The old and the new text of one hunk of a unified diff."""
    lines = hunk.splitlines(keepends=True)
    return "".join(line[1:] for line in lines if line[0] in " -"), "".join(line[1:] for line in lines if line[0] in " +")


def mutants() -> list[Mutant]:
    """All of them, by name."""
    return [Mutant.read(path) for path in sorted(PATCHES.glob("*.patch"))]


def copy(folder: Path) -> Path:
    """The tree as it is now; times of files are kept, so that what numba compiled need not be compiled again."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the copy at `folder`, importing from there and from nowhere else."""
    path = os.pathsep.join([str(folder), str(folder / "libs")])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "240"}  # a narrow summary leaves words out
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def pytest(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """The named tests in the copy at `folder`."""
    found = run(folder, "-c", WHERE).stdout.split()
    if len(found) != 2 or not all(Path(place).is_relative_to(folder) for place in found):
        raise RuntimeError(f"the copy's code is not what is imported, but {found}")
    options = ("-c", "pyproject.toml", "--rootdir", ".", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0")
    return run(folder, "-m", "pytest", *options, *tests)


def attempt(mutant: Mutant) -> tuple[bool, str]:
    """Whether its test failed, a failure of a fixture not counted; and with which words, or what happened instead."""
    with tempfile.TemporaryDirectory() as folder:
        place = copy(Path(folder).resolve())
        try:
            mutant.apply(place)
        except ValueError as error:
            return False, str(error)
        done = pytest(place, mutant.test)
    if done.returncode == PASSED:
        return False, f"{mutant.test} passes although the law is broken"
    failed = re.search(rf"^FAILED {re.escape(mutant.test)}(?:\[.*?\])?(?: - (.*))?$", done.stdout, re.M)
    if failed is None:
        return False, f"{mutant.test} did not run:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}"
    return True, failed[1] or "it failed"


def main(wanted: list[str]) -> int:
    """Try the mutants whose names contain one of `wanted`, all by default. Returns how many survived."""
    chosen = [mutant for mutant in mutants() if not wanted or any(part in mutant.name for part in wanted)]
    if not chosen:
        print(f"no patch in {PATCHES} has a name like that")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        before = pytest(copy(Path(folder).resolve()), *sorted({mutant.test for mutant in chosen}))
    if before.returncode != PASSED:
        print(f"the tests do not pass before anything is broken:\n{before.stdout[-4_000:]}{before.stderr[-2_000:]}")
        return 1
    survivors = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutant, (noticed, words) in zip(chosen, pool.map(attempt, chosen), strict=True):
            survivors += not noticed
            print(f"{'noticed ' if noticed else 'SURVIVED'}  {mutant.name}: {words}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} breaches were noticed")
    return survivors


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
