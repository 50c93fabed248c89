"""The probe: a process of its own in which a graph is tried, and which may die without anybody else noticing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from driftline.errors import Invalid, Recoverable
from driftline.models import probe as module
from driftline.models.onnx import check_graph
from driftline.models.probe import EXTREMES, ROWS, Probe, Trial, trial_rows
from driftline.models.reference import make_reference, medians

MATRIX = np.stack([np.linspace(-1, 3, 9), np.full(9, np.nan)], axis=1).astype(np.float32)
NAMES = ("delay", "wind")
ROWS_OF_TRIAL, ORDINARY = trial_rows(NAMES, medians(NAMES, MATRIX), make_reference(NAMES, MATRIX, np.array([0.5], np.float32)))


def graph(*nodes: NodeProto, **constants: object) -> bytes:
    """Nodes that work on `x`, the first feature; the sigmoid of it when there are none."""
    take = helper.make_node("Gather", ["rows", "first"], ["x"], axis=1)
    made = list(nodes) or [helper.make_node("Sigmoid", ["x"], ["y"])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in {"first": np.array([0]), **constants}.items()]
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    whole = helper.make_graph([take, *made], "g", [rows], [out], tensors)
    return bytes(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString())


def divided() -> bytes:
    """The smallest integer by -1: no exception, but the processor's trap. `check_graph` does not let it come so far."""
    steps = [helper.make_node("Div", ["smallest", "minus"], ["q"]), helper.make_node("Cast", ["q"], ["f"], to=1)]
    return graph(*steps, helper.make_node("Mul", ["x", "f"], ["y"]), smallest=np.array([-(2**63)]), minus=np.array([-1]))


def trial(data: bytes, digest: str = "a" * 64) -> Trial:
    return Trial(digest, data, ROWS_OF_TRIAL, ORDINARY)


@pytest.fixture
def probe() -> Iterator[Probe]:
    probe = Probe()
    yield probe
    probe.close()


def pid_of(probe: Probe) -> int:
    child = probe._child
    assert child is not None
    return child._process.pid


def test_an_honest_graph_passes_and_others_after_it_in_the_same_process(probe: Probe) -> None:
    """
    One process for all models of a deployment.
    """
    check_graph(graph())
    for digest in "abc":
        probe.try_out(trial(graph(), digest * 64))
    assert probe.children == 1


def test_a_verdict_is_remembered(probe: Probe) -> None:
    """
    A deployment that names a refused model comes with every report; it is tried once.
    """
    for _ in range(3):
        with pytest.raises(Invalid, match="refuses aaaaaaaaaaaa: it ended the process that loaded it by SIGFPE"):
            probe.try_out(trial(divided()))
    assert probe.children == 1


def test_the_death_of_the_process_is_a_verdict_and_does_not_fall_on_others(probe: Probe) -> None:
    """
    What was tried before does not matter: a graph that is refused behind another is tried again by itself.
    """
    probe.try_out(trial(graph(), "a" * 64))
    with pytest.raises(Invalid, match="SIGFPE"):
        probe.try_out(trial(divided(), "b" * 64))
    probe.try_out(trial(graph(), "c" * 64))
    assert probe.children == 3  # the first, one for the hostile graph alone, one for the honest graph after it


def test_a_process_that_somebody_killed_is_replaced(probe: Probe) -> None:
    """
    Between two trials as well as before the first.
    """
    probe.start()
    os.kill(pid_of(probe), signal.SIGKILL)
    probe.try_out(trial(graph(), "a" * 64))
    os.kill(pid_of(probe), signal.SIGKILL)
    probe.try_out(trial(graph(), "b" * 64))
    probe.close()
    probe.try_out(trial(graph(), "c" * 64))


def test_a_trial_without_an_end_is_no_verdict_until_the_third(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It may be the machine's fault, and an answer must not depend on that; but nobody waits for ever.
    """
    monkeypatch.setattr(module._Child, "ask", lambda self, trial: None)
    for time in (1, 2):
        with pytest.raises(Recoverable, match=f"time {time} of 3"):
            probe.try_out(trial(graph()))
    with pytest.raises(Invalid, match="3 trials of it came to no end"):
        probe.try_out(trial(graph()))


def test_a_child_that_stands_still_is_ended_by_the_clock(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Processor time is what is judged, but a process that is stopped uses none.
    """
    probe.start()
    monkeypatch.setattr(module, "TRIAL_WALL_S", 0.1)
    os.kill(pid_of(probe), signal.SIGSTOP)
    child = probe._child
    assert child is not None and child.ask(trial(graph())) is None
    assert not child.alive


def test_the_child_has_limits_and_knows_no_secret(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It opens no file, writes none, starts nothing, dumps nothing, has no endless memory, and an environment of five names.
    """
    monkeypatch.setenv("DRIFTLINE_MODEL_PRIVATE_KEY", "secret")
    probe.try_out(trial(graph()))
    process = Path(f"/proc/{pid_of(probe)}")
    limits = {line[:25].strip(): line[25:].split()[1] for line in (process / "limits").read_text().splitlines()[1:]}
    assert {name: limits[name] for name in NONE} == dict.fromkeys(NONE, "0")
    assert module.MEMORY_BYTES_MAX < int(limits["Max address space"]) < 2 * module.MEMORY_BYTES_MAX
    names = {entry.partition("=")[0] for entry in (process / "environ").read_text().split("\0") if entry}
    assert names <= {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OPENBLAS_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"}
    assert (process / "cwd").readlink() == Path("/")


NONE = ("Max open files", "Max file size", "Max processes", "Max core file size")


def test_the_child_ends_with_its_parent(probe: Probe) -> None:
    """
    A parent that is killed closes the child's standard input.
    """
    probe.try_out(trial(graph()))
    child = probe._child
    assert child is not None and child._process.stdin is not None
    child._process.stdin.close()
    assert child._process.wait(60) == 0


def test_a_graph_that_takes_too_long_for_a_full_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whatever the limit is: here one that nothing keeps.
    """
    monkeypatch.setattr(module, "FULL_BATCH_CPU_S", -1.0)
    assert "processor time for 4096 rows" in module._refusal(graph(), ROWS_OF_TRIAL, ORDINARY)


def test_rows_are_those_of_training_and_then_absurd_ones() -> None:
    """
    The ordinary ones lie between lowest and highest, missing where training saw nothing; the same in every process.
    """
    ordinary, extreme = ROWS_OF_TRIAL[:ORDINARY], ROWS_OF_TRIAL[ORDINARY:]
    assert ROWS_OF_TRIAL.shape == (ROWS, 2)
    assert ordinary[:3, 0].tolist() == [1.0, -1.0, 3.0]
    assert ((ordinary[:, 0] >= -1) & (ordinary[:, 0] <= 3)).all() and np.isnan(ordinary[:, 1]).all()
    assert {str(value) for value in extreme[:, 0].tolist()} == {str(float(np.float32(value))) for value in EXTREMES}
    again, _ = trial_rows(NAMES, medians(NAMES, MATRIX), make_reference(NAMES, MATRIX, np.array([0.5], np.float32)))
    assert again.tobytes() == ROWS_OF_TRIAL.tobytes()
