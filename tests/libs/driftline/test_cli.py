"""The command line: what it imports, what it prints, how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from driftline import cli
from driftline.cli import _letter_words
from driftline.contracts.topics import SERVICES
from driftline.errors import Invalid

ROOT = Path(__file__).parents[3]
COMMANDS_MIN = 12
HEAVY = ("lightgbm", "sklearn", "fastapi", "onnx", "skl2onnx", "typer.rich_utils", "driftline.local")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "DRIFTLINE_PIPELINES": str(ROOT / "pipelines"), **environment}
    return subprocess.run([sys.executable, "-m", "driftline", *arguments], capture_output=True, text=True, env=clean, check=False, cwd="/")


def imported(program: str) -> set[str]:
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'libs')]!r}; {program}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_help_names_every_command_in_words():
    """
    A stranger learns from it what there is; no command is without its line.
    """
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]  # a group has them
    assert len(commands) >= COMMANDS_MIN
    assert [name for name, command in commands.items() if not command.help] == []
    shown = run("--help")
    assert shown.returncode == 0
    assert [name for name in commands if name not in shown.stdout] == []


def test_help_loads_nothing_heavy():
    """
    Neither numbers nor clients: the answer is there at once.
    """
    assert imported("import driftline.cli") & {"numpy", "numba", "aiokafka", "polars", "redis", "structlog", "prometheus_client"} == set()


@pytest.mark.parametrize("service", ["intake", "feature", "labeler", "rollout"])
def test_a_service_loads_neither_the_trainers_libraries_nor_the_local_stack(service: str):
    """
    A process that takes over must be quick, and needs nothing that only others use.
    """
    loaded = imported(f"import services.{service}.app")
    assert [name for name in HEAVY if name in loaded] == []


def test_the_services_of_the_command_line_are_those_of_the_topics():
    """
    The list is written twice, so that help need not read the topics.
    """
    assert cli.SERVICES == SERVICES


def test_check_says_that_the_flights_pipeline_is_sound():
    """
    With what it found, and status 0.
    """
    checked = run("check", "flights")
    assert (checked.returncode, checked.stdout) == (0, "flights: 22 inputs, 4 streams, no problem found\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nobody", "--pipeline", "flights"), "there is no service nobody"),
        (("run", "rollout", "--pipeline", "flights"), "DRIFTLINE_REGISTRY is not set"),
        (("status", "flights", "--ops", "intake:9100"), "intake:9100 is no address of a service"),
        (("status", "flights"), "DRIFTLINE_KAFKA, DRIFTLINE_REDIS, DRIFTLINE_REGISTRY not set"),
        (("audit", "flights"), "DRIFTLINE_KAFKA, DRIFTLINE_REDIS, DRIFTLINE_REGISTRY not set"),
        (("check", "nothing"), "nothing"),
        (("rebuild", "flights", "--service", "intake"), "intake keeps no state"),
    ],
)
def test_a_refusal_is_words_and_status_1(arguments: tuple[str, ...], words: str):
    """
    What driftline raises on purpose comes without a traceback.
    """
    refused = run(*arguments)
    assert refused.returncode == 1
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (None, "list", "")),
        (["flights"], ("flights", "list", "")),
        (["flights", "show"], ("flights", "show", "")),
        (["replay", "flights"], ("flights", "replay", "")),
        (["flights", "payments[3]@8"], ("flights", "show", "payments[3]@8")),
    ],
)
def test_words_after_dead_letters_may_come_in_any_order(words: list[str], expected: tuple[str | None, str, str]):
    """
    A pipeline, what to do, and a place; without anything to do they are listed, and a place is shown.
    """
    assert _letter_words(words) == expected


def test_two_pipelines_are_too_many_for_dead_letters():
    """
    What may be given is told.
    """
    with pytest.raises(Invalid, match="one pipeline"):
        _letter_words(["flights", "fraud"])
