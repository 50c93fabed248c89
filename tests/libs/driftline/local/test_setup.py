"""Set-up's errors, as a stranger meets them: which Python, which part of it, which network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
SCRIPT = Path("libs/driftline/local/setup.sh")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What set-up reads, and nothing that it made."""
    for name in ("requirements.txt", "pyproject.toml", str(SCRIPT), "libs/driftline/local/kafka.jars"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def python_that(folder: Path, version: str, rest: str) -> Path:
    """A stand-in for an interpreter: it says `version`, and does `rest` (shell) for everything else."""
    path = folder / "python-stand-in"
    path.write_text(f'#!/bin/sh\ncase "$*" in *version_info*) echo {version} ;; *) {rest} ;; esac\n')
    path.chmod(0o755)
    return path


def set_up(clone: Path, python: Path) -> subprocess.CompletedProcess[str]:
    without_uv = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    return subprocess.run(["sh", str(SCRIPT)], cwd=clone, env=without_uv, capture_output=True, text=True, check=False)


def test_a_python_out_of_range_is_named_with_what_helps(clone: Path) -> None:
    """
    The version that is there, the versions that would do, and the command that chooses one.
    """
    done = set_up(clone, python_that(clone, "3.9.6", "exit 0"))
    assert done.returncode == 1
    assert "driftline needs Python 3.11, 3.12 or 3.13;" in done.stderr
    assert "here is 3.9.6." in done.stderr
    assert "make demo PYTHON=" in done.stderr


def test_a_python_without_venv_is_named_with_the_package_to_install(clone: Path) -> None:
    """
    Debian ships venv apart from Python, and only this message says so.
    """
    done = set_up(clone, python_that(clone, "3.12.4", "exit 1"))
    assert done.returncode == 1
    assert "has no venv module" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_packages_that_cannot_be_fetched_leave_no_stamp(clone: Path) -> None:
    """
    Without a network set-up says what it needed and where the log is; the next try begins again.
    """
    makes_venv = 'mkdir -p .venv/bin; printf "#!/bin/sh\\necho no route to host; exit 1\\n" > .venv/bin/python; chmod +x .venv/bin/python'
    done = set_up(clone, python_that(clone, "3.12.4", makes_venv))
    assert done.returncode == 1
    assert "The packages could not be fetched." in done.stderr
    assert "no route to host" in done.stderr
    assert "HTTPS_PROXY" in done.stderr
    assert not list((clone / ".venv").glob(".ready-*"))
