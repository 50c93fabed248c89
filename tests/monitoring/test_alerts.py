"""The alerts: promtool finds them sound, each fires when it should, and each has a page with commands that there are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from driftline.cli import SERVICES, app
from driftline.metrics import CATALOGUE

from .expressions import faults

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PROMETHEUS = ROOT / "monitoring" / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(place for place in RUNBOOKS.glob("*.md") if place.name != "README.md")
SECTIONS = ("What it means.", "How bad it is.", "What to look at", "What to do", "Whom to wake.")
COMMANDS_MIN = 15

# promtool comes with Prometheus, of no package registry that `make test` uses. Where it is missing, the tests below still read every rule,
# its page and its own test.
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not installed")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120, check=False)


@needs_promtool
@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "config", "compose.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_promtool_is_content(words: tuple[str, ...]):
    """
    The configuration is sound, the rules too, and each fires and is silent as its own test says.
    """
    found = promtool(*words)
    assert (found.returncode, found.stderr) == (0, ""), found.stdout


@needs_promtool
def test_a_rule_that_never_fires_fails_the_tests_of_the_rules(tmp_path: Path):
    """
    Or else they would prove nothing.
    """
    for name in ("alerts.yml", "alerts_test.yml"):
        text = (PROMETHEUS / name).read_text()
        (tmp_path / name).write_text(text.replace("driftline_quality_alarm[2d])) == 1", "driftline_quality_alarm[2d])) == 2"))
    found = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode != 0
    assert "DriftlineQualityAlarm" in found.stdout + found.stderr


def test_each_alert_is_tested_firing_and_silent():
    """
    Silent before, after, or beside it.
    """
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules()}


def test_each_expression_asks_for_metrics_and_labels_of_the_catalogue():
    """
    And so does what an alert says.
    """
    told = {rule["alert"]: re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]) for rule in rules()}
    assert {rule["alert"]: found for rule in rules() if (found := faults(rule["expr"], *told[rule["alert"]]))} == {}


def test_each_alert_says_how_urgent_it_is_and_names_its_page():
    """
    The page is named after the alert.
    """
    assert {rule["labels"]["severity"] for rule in rules()} == {"critical", "warning"}
    named = {rule["alert"]: rule["annotations"]["runbook"] for rule in rules()}
    assert named == {alert: f"docs/runbooks/{page_of(alert)}.md" for alert in named}


def page_of(alert: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", alert.removeprefix("Driftline")).lower()


def test_each_alert_has_its_page_and_each_page_its_alert():
    """
    With the five things that somebody wants to know, in order.
    """
    assert [place.stem for place in PAGES] == sorted(page_of(rule["alert"]) for rule in rules())
    for place in PAGES:
        text = place.read_text()
        assert f"Alert `Driftline{place.stem.replace('-', ' ').title().replace(' ', '')}`." in text
        assert re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE) == list(SECTIONS), place.name


def commands(text: str) -> list[str]:
    """Every `driftline ...` of a page, in the text and in blocks."""
    return [
        found.strip() for pair in re.findall(r"`(driftline [^`]+)`|^    (driftline .+)$", text, re.MULTILINE) for found in pair if found
    ]


def wrong(command: str) -> str:
    """What of a command the command line does not know; nothing when it knows all of it."""
    _, *words = shlex.split(command)
    at: Any = typer.main.get_command(app)
    while hasattr(at, "commands"):
        if not words or words[0] not in at.commands:
            return f"{command}: no such command"
        at = at.commands[words.pop(0)]
    if at.name == "run" and words[0] not in {*SERVICES, "SERVICE"}:
        return f"{command}: no such service"
    options = {option for parameter in at.params for option in parameter.opts}
    strange = [word for word in words if word.startswith("-") and word not in options]
    return f"{command}: no option {strange[0]}" if strange else ""


def test_every_command_of_a_page_is_one_that_there_is():
    """
    Down to its options.
    """
    found = [command for place in PAGES for command in commands(place.read_text())]
    assert len(found) >= COMMANDS_MIN
    assert [why for command in found if (why := wrong(command))] == []


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("driftline repair NAME", "no such command"),
        ("driftline models demote", "no such command"),
        ("driftline rebuild NAME --quick", "no option --quick"),
        ("driftline run loop --pipeline NAME", "no such service"),
    ],
)
def test_a_command_that_there_is_not_is_found(command: str, why: str):
    """
    A page with it would fail its reader at the worst moment.
    """
    assert wrong(command) == f"{command}: {why}"


def test_pages_name_reasons_and_settings_that_there_are():
    """
    A setting is in the page on operations, a reason in the catalogue.
    """
    text = "".join(place.read_text() for place in PAGES)
    known = (ROOT / "docs" / "operations.md").read_text()
    assert {name for name in re.findall(r"DRIFTLINE_[A-Z_]+", text) if name not in known} == set()
    reasons = set(re.findall(r"--reason (\w+)", text))
    assert reasons
    assert {reason for reason in reasons if reason not in CATALOGUE["driftline_dead_letters_total"].meaning} == set()
