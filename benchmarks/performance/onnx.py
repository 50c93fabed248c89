"""
ONNX Runtime's settings, one by one: what a row costs in batches of several sizes, and whether its score has the same bytes in all of them.
The table of docs/decisions/0016.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime

from .meter import US
from .payments import MODEL_ROWS, model, payments_of

SIZES = (1, 2, 7, 64, 512, 4_000)
TOLD = (1, 64, 4_000)
TIMES = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "one thread (ours)": {},
    "two threads": {"intra_op_num_threads": 2},
    "two threads, not spinning": {"intra_op_num_threads": 2, "spin": "0"},
    "no arena": {"enable_cpu_mem_arena": False},
    "no memory pattern": {"enable_mem_pattern": False},
    "no graph optimisation": {"graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL},
}


def session(changes: dict[str, Any]) -> onnxruntime.InferenceSession:
    """The benchmark's model, with one setting changed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for name, value in changes.items():
        if name == "spin":
            options.add_session_config_entry("session.intra_op.allow_spinning", value)
        else:
            setattr(options, name, value)
    return onnxruntime.InferenceSession(model(), options, providers=["CPUExecutionProvider"])


def scores(runtime: onnxruntime.InferenceSession, rows: np.ndarray, size: int) -> np.ndarray:
    """All scores, asked for `size` at a time."""
    name = runtime.get_outputs()[0].name
    return np.concatenate([runtime.run([name], {"rows": rows[at : at + size]})[0] for at in range(0, len(rows), size)])


def measured() -> Iterator[tuple[str, list[float], bool]]:
    """Each setting: microseconds of processor time a row at the sizes TOLD, and whether all sizes gave the same bytes."""
    rows = payments_of(MODEL_ROWS, 11).rows[:8_000]
    for name, changes in SETTINGS.items():
        runtime = session(changes)
        whole = scores(runtime, rows, len(rows))
        same = all(scores(runtime, rows, size).tobytes() == whole.tobytes() for size in SIZES)
        costs = []
        for size in TOLD:
            some = rows[: 1_000 * size]
            took = []
            for _ in range(TIMES):
                began = time.process_time()
                scores(runtime, some, size)
                took.append(time.process_time() - began)
            costs.append(US * min(took) / len(some))
        yield name, costs, same


if __name__ == "__main__":
    print(f"| setting | {' | '.join(f'{size:,} at once' for size in TOLD)} | same bytes in batches of {', '.join(map(str, SIZES))} |")
    print("|---" * (len(TOLD) + 2) + "|")
    for setting, us, invariant in measured():
        print(f"| {setting} | {' | '.join(f'{cost:.2f}' for cost in us)} | {'yes' if invariant else 'no'} |")
