"""The demo's own parts: its folder, its keys, what each process is told. The whole of it is what `make demo` runs."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from driftline.errors import Fatal
from driftline.local.demo import demo_key, environment_of, own_folder, run_demo, write_environment


def test_the_run_dir_of_an_earlier_run_is_emptied(tmp_path: Path):
    """
    What a run left goes; what no run makes stays.
    """
    with own_folder(tmp_path / "run") as folder:
        (folder / "kafka").mkdir()
        (folder / "kafka" / "data").write_text("old")
        (folder / "demo.json").write_text("{}")
        (folder / "notes.txt").write_text("mine")
    with own_folder(tmp_path / "run") as folder:
        assert sorted(place.name for place in folder.iterdir()) == ["demo.lock", "lock", "notes.txt"]


def test_a_folder_that_was_never_a_run_dir_is_refused_and_left_alone(tmp_path: Path):
    """
    Nobody's files are deleted because of a mistyped option.
    """
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "precious").write_text("mine")
    with pytest.raises(Fatal, match="not empty and no run dir"), own_folder(tmp_path):
        pass
    assert (tmp_path / "models" / "precious").read_text() == "mine"


@pytest.mark.parametrize("lock", ["demo.lock", "lock"])
def test_a_folder_in_which_a_demo_or_a_stack_runs_is_refused_and_left_alone(tmp_path: Path, lock: str):
    """
    Its data must not be pulled away under it.
    """
    (tmp_path / "kafka").mkdir()
    with (tmp_path / lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Fatal, match="another demo or stack runs"), own_folder(tmp_path):
            pass
    assert (tmp_path / "kafka").exists()


def test_a_link_in_the_run_dir_is_removed_without_what_it_points_to(tmp_path: Path):
    """
    Deleting follows no links.
    """
    target = tmp_path / "elsewhere"
    target.mkdir()
    with own_folder(tmp_path / "run") as folder:
        (folder / "models").symlink_to(target)
    with own_folder(tmp_path / "run") as folder:
        assert not (folder / "models").exists()
    assert target.exists()


def test_only_the_trainer_is_told_where_the_private_key_is():
    """
    Whoever only verifies has no use for it.
    """
    environment = {"DRIFTLINE_MODEL_PRIVATE_KEY": "private.pem", "DRIFTLINE_MODEL_PUBLIC_KEY": "public.pem"}
    told = {service: environment_of(service, environment) for service in ("trainer", "inference", "player")}
    assert [service for service, one in told.items() if "DRIFTLINE_MODEL_PRIVATE_KEY" in one] == ["trainer"]
    assert all(one["DRIFTLINE_MODEL_PUBLIC_KEY"] == "public.pem" for one in told.values())


def test_the_same_seed_gives_the_same_key_for_personal_fields():
    """
    A run repeats from its seed, tokens included; the key is 32 bytes in hex.
    """
    assert demo_key(7) == demo_key(7) != demo_key(8)
    assert len(bytes.fromhex(demo_key(7))) == 32


def test_the_environment_of_a_kept_stack_can_be_read_by_a_shell_and_by_nobody_else(tmp_path: Path):
    """
    Values are quoted, and the file is the owner's alone.
    """
    place = tmp_path / "environment.sh"
    write_environment(place, {"DRIFTLINE_KAFKA": "here:9092", "DRIFTLINE_RUN_DIR": "/a folder/it's"})
    read = subprocess.run(["sh", "-c", f". '{place}'; printf %s \"$DRIFTLINE_RUN_DIR\""], capture_output=True, text=True, check=True)
    assert read.stdout == "/a folder/it's"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_a_refused_folder_is_told_in_words_with_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    No traceback.
    """
    (tmp_path / "something").touch()
    assert run_demo(folder=tmp_path) == 1
    assert "not empty and no run dir" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_leaves_no_process(tmp_path: Path, number: signal.Signals):
    """
    While servers and services start, the time with the most that could be left behind: exit status 130, nothing remains.
    """
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "driftline", "demo", "--days", "2", "--no-kills", "--folder", str(folder)]
    with (tmp_path / "out.txt").open("wb") as out:
        demo = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until(lambda: (folder / "logs" / "player.log").exists() or demo.poll() is not None, 150)
        started = psutil.Process(demo.pid).children(recursive=True)
        os.kill(demo.pid, number)
        assert demo.wait(60) == 130, (tmp_path / "out.txt").read_text()
    finally:
        demo.kill()
    assert len(started) >= 8
    wait_until(lambda: not [one for one in started if is_alive(one)], 10)
    assert [one for one in started if is_alive(one)] == []


def wait_until(done, timeout_s: float) -> None:  # type: ignore[no-untyped-def]  # any condition
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
