"""Where commands find the servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driftline.errors import Fatal, Invalid
from driftline.operate.addresses import environment_of, find_addresses, kafka_of, one_pipeline, pipeline_names

STACK = {"kafka": "k:1", "redis": "redis://r", "registry": "http://s"}


def test_a_running_stack_is_found_by_its_file(tmp_path: Path):
    """
    So that commands beside a demo need no variable.
    """
    (tmp_path / "stack.json").write_text(json.dumps(STACK))
    found = find_addresses({}, tmp_path)
    assert (found.kafka, found.redis, found.registry, found.run_dir) == ("k:1", "redis://r", "http://s", tmp_path / "run")


def test_variables_go_before_the_running_stack(tmp_path: Path):
    """
    Whoever names a server means it.
    """
    (tmp_path / "stack.json").write_text(json.dumps(STACK))
    found = find_addresses({"DRIFTLINE_KAFKA": "mine:2", "DRIFTLINE_RUN_DIR": "/run"}, tmp_path)
    assert (found.kafka, found.redis, found.run_dir) == ("mine:2", "redis://r", Path("/run"))


@pytest.mark.parametrize("content", [None, "no json"])
def test_missing_variables_are_named(tmp_path: Path, content: str | None):
    """
    Each of them, and what would help.
    """
    if content is not None:
        (tmp_path / "stack.json").write_text(content)
    with pytest.raises(Fatal, match="DRIFTLINE_REDIS, DRIFTLINE_REGISTRY not set"):
        find_addresses({"DRIFTLINE_KAFKA": "mine:2"}, tmp_path)


def test_a_service_in_a_command_finds_the_stacks_keys(tmp_path: Path):
    """
    Those that are there, unless a variable names others.
    """
    (tmp_path / "stack.json").write_text(json.dumps(STACK))
    (tmp_path / "models").mkdir()
    found = environment_of(find_addresses({}, tmp_path), "flights", {"DRIFTLINE_REGISTRY": "http://mine"}, tmp_path)
    assert found == {
        "DRIFTLINE_KAFKA": "k:1",
        "DRIFTLINE_REDIS": "redis://r",
        "DRIFTLINE_REGISTRY": "http://mine",
        "DRIFTLINE_PIPELINE": "flights",
        "DRIFTLINE_MODEL_STORE": str(tmp_path / "models"),
    }


def test_the_only_pipeline_need_not_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    With several, or none, the command asks which.
    """
    monkeypatch.setenv("DRIFTLINE_PIPELINES", str(tmp_path))
    with pytest.raises(Invalid, match="holds none"):
        one_pipeline(None)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pipeline.py").touch()
        assert one_pipeline(None if name == "b" else "a") == name
    assert pipeline_names() == ["a", "b"]
    with pytest.raises(Invalid, match="holds a, b"):
        one_pipeline(None)


def test_who_needs_kafka_alone_is_asked_for_nothing_else(tmp_path: Path):
    """
    The variable, or the stack; neither is an error that names it.
    """
    assert kafka_of({"DRIFTLINE_KAFKA": "mine:2"}, tmp_path) == "mine:2"
    with pytest.raises(Fatal, match="DRIFTLINE_KAFKA is not set"):
        kafka_of({}, tmp_path)
    (tmp_path / "stack.json").write_text(json.dumps(STACK))
    assert kafka_of({}, tmp_path) == "k:1"
