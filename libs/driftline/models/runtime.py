"""
ONNX Runtime as driftline uses it: one thread, and single rows padded to two, because other settings change bytes with the size
of the batch. Another device is always given as many rows.

Nothing is checked here: `models.onnx.Session` does that first, and in the probe's process somebody did it before.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from driftline.errors import Invalid

Scores = npt.NDArray[np.float32]

INPUT = "rows"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # by device
ROWS_MIN = 2
ROWS_MAX = 4096  # scored at once: what a graph needs for so many is what the probe saw it need
DEVICE_ROWS = 512  # at once, always: a device chooses its kernels, and with them the last bits, by the size of a matrix (decision 0022)


def refuse_missing(device: str) -> None:
    """Raises Invalid, naming the setting, when nothing can be computed on `device`: here, or by this installation of the runtime."""
    if device not in PROVIDERS:
        raise Invalid(f"DRIFTLINE_DEVICE is {device}; it must be one of {', '.join(PROVIDERS)}")
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise Invalid(
            f"DRIFTLINE_DEVICE is {device}, but the installed onnxruntime does not have it: install onnxruntime-gpu in its place (make "
            "gpu, or the extra gpu), or leave the setting out"
        )
    if device != "cpu":
        Loaded(_smallest(), 2, device).score(np.zeros((2, 2), np.float32))


class Loaded:
    """
    A graph that somebody has checked, loaded. Raises Invalid when the runtime refuses it. What the device has no kernel for (trees are
    among that) runs on the processor beside it.
    """

    def __init__(self, graph: bytes, features: int, device: str = "cpu") -> None:
        self.features = features
        self._rows_min, self._rows_max = (ROWS_MIN, ROWS_MAX) if device == "cpu" else (DEVICE_ROWS, DEVICE_ROWS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # what is wrong is raised; nothing is printed beside it
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=_providers(device))
        except Exception as error:  # the runtime raises a dozen types that share no base but this
            raise Invalid(f"the runtime refuses the graph: {type(error).__name__}") from error
        if PROVIDERS[device] not in self._session.get_providers():  # it goes on without, and says so to nobody
            raise Invalid(
                f"DRIFTLINE_DEVICE is {device}, and the runtime does not reach it: nvidia-smi shows whether there are a device and its "
                "driver, docs/how-to/use-a-gpu.md what else it needs; or leave the setting out"
            )
        self._output = self._session.get_outputs()[0].name

    def score(self, matrix: npt.NDArray[np.float32]) -> Scores:
        """
        One probability a row of `matrix`, float32 (n, F); NaN where the graph gave NaN or infinity. A row's score does not
        depend on the rows beside it. Raises Invalid when the width is not the graph's, or when the graph fails to run.
        """
        if matrix.ndim != 2 or matrix.shape[1] != self.features:  # a matrix
            raise Invalid(f"the model takes {self.features} features, the matrix has the shape {matrix.shape}")
        parts = [self._scored(matrix[at : at + self._rows_max]) for at in range(0, len(matrix), self._rows_max)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _scored(self, matrix: npt.NDArray[np.float32]) -> Scores:
        n = len(matrix)
        padded = matrix if n >= self._rows_min else np.concatenate([matrix, np.repeat(matrix[-1:], self._rows_min - n, axis=0)])
        try:
            out = self._session.run([self._output], {INPUT: np.ascontiguousarray(padded, np.float32)})[0]
        except Exception as error:  # as above
            raise Invalid(f"the graph failed to run: {type(error).__name__}") from error
        if out.size != len(padded):
            raise Invalid(f"the graph gave {out.size} numbers for {len(padded)} rows")
        scores = np.asarray(out, np.float32).reshape(-1)[:n]
        return np.where(np.isfinite(scores), scores, np.float32(np.nan))


def _providers(device: str) -> list[Any]:
    """A device in the runtime's words, without what would trade the last bits of a number for speed, and the processor behind it."""
    if device == "cpu":
        return [PROVIDERS["cpu"]]
    _find_libraries()
    return [(PROVIDERS[device], {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}), PROVIDERS["cpu"]]


@functools.cache
def _find_libraries() -> None:
    """NVIDIA's libraries are packages beside the runtime, where the system's loader does not look."""
    onnxruntime.preload_dlls()


def _smallest() -> bytes:
    """A graph of two features that is a product of matrices, so that whoever loads it needs what any model does."""
    from onnx import TensorProto, helper

    rows, scores = (
        helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, 2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1]),
    )
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 1], [0.5, 0.5])
    graph = helper.make_graph([helper.make_node("MatMul", [INPUT, "w"], ["y"])], "smallest", [rows], [scores], [weights])
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()
    return made


def invariant(loaded: Loaded, matrix: npt.NDArray[np.float32], chunks: tuple[int, ...]) -> bool:
    """Whether each row's score has the same bytes in one batch and in batches of each of these sizes."""
    whole = loaded.score(matrix)
    for rows in chunks:
        parts = [loaded.score(matrix[at : at + rows]) for at in range(0, len(matrix), rows)]
        if np.concatenate([whole[:0], *parts]).tobytes() != whole.tobytes():
            return False
    return True
