"""The stack: servers that the user has, one folder for one stack, processes that are ended with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from driftline.errors import Rejected
from driftline.local.stack import Stack

SLEEP = [sys.executable, "-c", "import os, time; print(os.environ['DRIFTLINE_REDIS'], flush=True); time.sleep(600)"]
THEIRS = {
    "DRIFTLINE_KAFKA": "kafka.example:9092",
    "DRIFTLINE_REDIS": "redis://redis.example/0",
    "DRIFTLINE_REGISTRY": "http://schemas.example",
}


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """One that uses servers of the user alone, so that nothing has to start."""
    return Stack(tmp_path / "stack", environment=THEIRS)


def test_servers_that_the_user_has_are_used_instead_of_own_ones(stack: Stack) -> None:
    """
    With all three named in the environment nothing starts, and the processes find the named ones.
    """
    with stack:
        assert stack.environment() == {**THEIRS, "DRIFTLINE_RUN_DIR": str(stack.run_dir)}
        assert (stack.kafka, stack.valkey, stack.registry) == (None, None, None)
        written = json.loads((stack.folder / "stack.json").read_text())
        assert written == {"kafka": "kafka.example:9092", "redis": "redis://redis.example/0", "registry": "http://schemas.example"}
    assert not (stack.folder / "stack.json").exists()


def test_own_servers_are_named_in_the_environment(kafka: str, redis_url: str, registry_url: str) -> None:
    """
    The stack of this session gives addresses in the form that clients take.
    """
    assert (kafka.count(":"), redis_url[:8], registry_url[:7]) == (1, "redis://", "http://")


def test_a_folder_has_one_stack_at_a_time(stack: Stack) -> None:
    """
    A second stack would clear the data of the first: it is refused, until the first has stopped.
    """
    second = Stack(stack.folder, environment=THEIRS)
    with stack, pytest.raises(Rejected, match="another stack runs"):
        second.start()
    with Stack(stack.folder, environment=THEIRS):
        pass


def test_stopping_ends_every_process_and_may_be_repeated(stack: Stack) -> None:
    """
    After `stop` none is alive, what they used is still known, and nothing more starts.
    """
    stack.start()
    children = [stack.spawn(name, SLEEP) for name in ("one", "two")]
    stack.stop()
    stack.stop()
    assert [child.alive for child in children] == [False, False]
    assert set(stack.usage()) == {"one", "two"}
    with pytest.raises(Rejected, match="was stopped"):
        stack.spawn("three", SLEEP)


def test_a_restarted_process_is_another_one_with_the_same_command(stack: Stack) -> None:
    """
    `restart` ends what still runs and starts it as it was; its log goes on, its usage adds up.
    """
    with stack:
        first = stack.spawn("service", SLEEP, {"EXTRA": "1"})
        first.kill()
        before = stack.usage()["service"].cpu_s
        stack.restart("service")
        second = stack.children["service"]
        assert (second.pid != first.pid, second.alive, second.argv) == (True, True, first.argv)
        assert stack.usage()["service"].cpu_s >= before
        with pytest.raises(Rejected, match="runs already"):
            stack.spawn("service", SLEEP)


def test_a_name_that_was_never_started_cannot_be_restarted(stack: Stack) -> None:
    """
    A misspelt name is refused instead of ignored.
    """
    with stack, pytest.raises(Rejected, match="servise"):
        stack.restart("servise")
