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
def borrowed(tmp_path: Path) -> Stack:
    """One that uses servers of the user alone, so that nothing has to start."""
    return Stack(tmp_path / "stack", environment=THEIRS)


def test_servers_that_the_user_has_are_used_instead_of_own_ones(borrowed: Stack) -> None:
    """
    With all three named in the environment nothing starts, and the processes find the named ones.
    """
    with borrowed:
        assert borrowed.environment() == {**THEIRS, "DRIFTLINE_RUN_DIR": str(borrowed.run_dir)}
        assert (borrowed.kafka, borrowed.valkey, borrowed.registry) == (None, None, None)
        written = json.loads((borrowed.folder / "stack.json").read_text())
        assert written == {"kafka": "kafka.example:9092", "redis": "redis://redis.example/0", "registry": "http://schemas.example"}
    assert not (borrowed.folder / "stack.json").exists()


def test_own_servers_are_named_in_the_environment(kafka: str, redis_url: str, registry_url: str) -> None:
    """
    The stack of this session gives addresses in the form that clients take.
    """
    assert (kafka.count(":"), redis_url[:8], registry_url[:7]) == (1, "redis://", "http://")


def test_a_folder_has_one_stack_at_a_time(borrowed: Stack) -> None:
    """
    A second stack would clear the data of the first: it is refused, until the first has stopped.
    """
    second = Stack(borrowed.folder, environment=THEIRS)
    with borrowed, pytest.raises(Rejected, match="another stack runs"):
        second.start()
    with Stack(borrowed.folder, environment=THEIRS):
        pass


def test_stopping_ends_every_process_and_may_be_repeated(borrowed: Stack) -> None:
    """
    After `stop` none is alive, what they used is still known, and nothing more starts.
    """
    borrowed.start()
    children = [borrowed.spawn(name, SLEEP) for name in ("one", "two")]
    borrowed.stop()
    borrowed.stop()
    assert [child.alive for child in children] == [False, False]
    assert set(borrowed.usage()) == {"one", "two"}
    with pytest.raises(Rejected, match="was stopped"):
        borrowed.spawn("three", SLEEP)


def test_a_restarted_process_is_another_one_with_the_same_command(borrowed: Stack) -> None:
    """
    `restart` ends what still runs and starts it as it was; its log goes on, its usage adds up.
    """
    with borrowed:
        first = borrowed.spawn("service", SLEEP, {"EXTRA": "1"})
        first.kill()
        before = borrowed.usage()["service"].cpu_s
        borrowed.restart("service")
        second = borrowed.children["service"]
        assert (second.pid != first.pid, second.alive, second.argv) == (True, True, first.argv)
        assert borrowed.usage()["service"].cpu_s >= before
        with pytest.raises(Rejected, match="runs already"):
            borrowed.spawn("service", SLEEP)


def test_a_name_that_was_never_started_cannot_be_restarted(borrowed: Stack) -> None:
    """
    A misspelt name is refused instead of ignored.
    """
    with borrowed, pytest.raises(Rejected, match="servise"):
        borrowed.restart("servise")
