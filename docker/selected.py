"""
The part of requirements.txt that one image needs: what an extra of pyproject.toml names, and all that those need in turn, told by what is
installed where this runs. Versions and digests have one home, and an image holds nothing that it does not use.

`python docker/selected.py EXTRA` prints the lines, beside requirements.txt and pyproject.toml.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURSELVES = "driftline"


def extras_of(project: Path) -> dict[str, list[str]]:
    """The optional dependencies that a pyproject.toml declares."""
    declared: dict[str, list[str]] = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    return declared


def closure(extra: str, declared: dict[str, list[str]]) -> set[str]:
    """Canonical names of every package under an extra. Raises PackageNotFoundError for one that is not installed here."""
    needed: set[str] = set()
    waiting = [(OURSELVES, extra)]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        for line in declared[wanted] if name == OURSELVES else metadata.requires(name) or []:
            requirement = Requirement(line)
            if name != OURSELVES and requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted}):
                continue
            found = canonicalize_name(requirement.name)
            more = {(found, each) for each in requirement.extras or {""}} | ({(found, "")} if found != OURSELVES else set())
            waiting += more - seen
            seen |= more
            needed |= {found} - {OURSELVES}
    return needed


def blocks(requirements: str) -> dict[str, str]:
    """Each pinned package of a requirements.txt with its digests, by canonical name."""
    lines = [line for line in requirements.splitlines() if line and not line.startswith("#")]
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line.startswith(" "):
            name = canonicalize_name(line.partition("==")[0].partition("[")[0].strip())
        found[name] = found.get(name, "") + line + "\n"
    return found


def selected(extra: str, folder: Path) -> str:
    """The lines of requirements.txt for one extra. Raises KeyError naming a package that is needed and not pinned."""
    pinned = blocks((folder / "requirements.txt").read_text())
    return "".join(pinned[name] for name in sorted(closure(extra, extras_of(folder / "pyproject.toml"))))


if __name__ == "__main__":
    sys.stdout.write(selected(sys.argv[1], Path.cwd()))
