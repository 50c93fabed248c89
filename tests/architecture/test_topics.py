"""The files of schemas/topics: who writes and who reads, as the design allows it."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from driftline.contracts.topics import load_kinds
from driftline.errors import Invalid

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
TOPICS = ROOT / "schemas" / "topics"
LOOPS_WITH_STATE = ("feature", "labeler", "drift")
WITH_STATE = (*LOOPS_WITH_STATE, "rollout")
MERGE_LOGS = {"journal", "summaries", "control", "dead-letters"}  # several writers, all of them named


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOPICS, tmp_path / "topics"))


def test_every_topic_has_one_writer_or_one_reader() -> None:
    """
    A fact topic has one writer, a command topic one reader; what several write is a merge log.
    """
    kinds = load_kinds(TOPICS)
    assert len(kinds) == 11
    shared = {kind.kind for kind in kinds.values() if len(kind.writers) > 1 and len(kind.readers) > 1}
    assert shared <= MERGE_LOGS


def test_only_predictions_are_for_applications() -> None:
    """
    What features and journal hold may change with any version; applications read predictions alone.
    """
    assert [kind.kind for kind in load_kinds(TOPICS).values() if "applications" in kind.readers] == ["predictions"]


def test_a_core_with_state_reads_one_log() -> None:
    """
    Its topics are one for each of its cores, and nothing beside the loop reads another: what must meet is merged onto a log first.
    """
    read = {service: {kind.kind for kind in load_kinds(TOPICS).values() if service in kind.readers} for service in WITH_STATE}
    assert read == {
        "feature": {"events"},
        "labeler": {"journal"},
        "drift": {"journal", "examples", "summaries"},  # three cores
        "rollout": {"control"},
    }
    for service in LOOPS_WITH_STATE:
        assert reads_beside_the_loop((ROOT / "services" / service / "app.py").read_text(encoding="utf-8")) == set(), service


def reads_beside_the_loop(source: str) -> set[str]:
    """Whatever a module names that reads topics without a ledger."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)} & {"Follower", "LogReader"}


def test_a_reader_beside_the_loop_is_found() -> None:
    """
    As intake and inference have one, which keep no state.
    """
    assert reads_beside_the_loop("deployments = Follower(kafka, topic, registry, add)") == {"Follower"}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("retention: forever", "retension: forever", "retension"),
        ("retention: forever", "retention: a while", "retention"),
        ("partitions: data", "partitions: 0", "partitions"),
        ("readers: [labeler, drift, trainer]", "readers: [labeller]", "readers"),
        ("messages: [answer, outcome, tick]", "messages: [anser]", "messages"),
        ("dead_letters: true", 'dead_letters: "yes"', "dead_letters"),
    ],
)
def test_a_wrong_line_in_a_topic_file_is_refused(copied: Path, old: str, new: str, named: str) -> None:
    """
    A misspelt key or a wrong value is refused with the file's name and the key, instead of being read laxly.
    """
    file = copied / "journal.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(Invalid, match=named) as refusal:
        load_kinds(copied)
    assert "journal" in str(refusal.value)
