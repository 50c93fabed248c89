"""
What a row costs on each device that ONNX Runtime has here, in batches of several sizes, as inference scores them; whether its score has
the same bytes in all of them, and how far it is from the processor's. The table of docs/decisions/0022.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from driftline.declaration import LightGBM, Logistic
from driftline.models.recipes import fit
from driftline.models.runtime import PROVIDERS, Loaded, invariant

FEATURES = 24
CHUNKS = (1, 2, 7, 64, 512, 4_000)
TOLD = (1, 64, 4_000)
TIMES = 5
WIDTH, DEPTH = 1_024, 4
RECIPES = {
    "100 trees of 31 leaves": LightGBM(
        trees=100, leaves=31, leaf_rows_min=20, learning_rate=0.1, row_sample=1.0, column_sample=1.0, l2=1.0, seed=7
    ),
    "logistic": Logistic(),
}


def dense(seed: int) -> bytes:
    """A network of DEPTH layers of WIDTH units, as a framework would export it: no recipe of ours, but what a device is for."""
    chance = np.random.default_rng(seed)
    sizes = [FEATURES, *[WIDTH] * DEPTH, 1]
    nodes, constants, last = [], [], "rows"
    for at, (wide, next_wide) in enumerate(itertools.pairwise(sizes)):
        weights = chance.normal(0, wide**-0.5, (wide, next_wide)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{at}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{at}"], [f"p{at}"]))
        nodes.append(helper.make_node("Relu" if at < DEPTH else "Sigmoid", [f"p{at}"], [f"h{at}"]))
        last = f"h{at}"
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, FEATURES])
    out = helper.make_tensor_value_info(last, TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(nodes, "dense", [rows], [out], constants)
    made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()
    return made


def cost_us(loaded: Loaded, rows: np.ndarray, size: int) -> float:
    """Microseconds a row, the best of TIMES, the way to the device and back included."""
    some = rows[: min(len(rows), 200 * size)]
    took = []
    for _ in range(TIMES):
        began = time.perf_counter()
        for at in range(0, len(some), size):
            loaded.score(some[at : at + size])
        took.append(time.perf_counter() - began)
    return 1e6 * min(took) / len(some)


def main() -> None:
    """Print the table."""
    chance = np.random.default_rng(7)
    rows = chance.normal(0, 1, (8_000, FEATURES)).astype(np.float32)
    labels = (rows[:, 0] + rows[:, 1] * rows[:, 2] > 0).astype(np.int64)
    graphs = {name: fit(recipe, rows, labels, seed=7).onnx() for name, recipe in RECIPES.items()}
    graphs[f"{DEPTH} dense layers of {WIDTH:,}"] = dense(7)
    devices = [device for device, provider in PROVIDERS.items() if provider in onnxruntime.get_available_providers()]
    print(f"onnxruntime {onnxruntime.__version__}; microseconds a row\n")
    told = " | ".join(f"{size:,} at once" for size in TOLD)
    print(f"| model | device | {told} | same bytes in batches of {', '.join(map(str, CHUNKS))} | from the processor's scores, at most |")
    print("|---" * (len(TOLD) + 4) + "|")
    for name, graph in graphs.items():
        here = Loaded(graph, FEATURES).score(rows)
        for device in devices:
            loaded = Loaded(graph, FEATURES, device)
            apart = float(np.abs(loaded.score(rows) - here).max())
            costs = " | ".join(f"{cost_us(loaded, rows, size):.2f}" for size in TOLD)
            print(f"| {name} | {device} | {costs} | {'yes' if invariant(loaded, rows, CHUNKS) else 'no'} | {apart:.1e} |")


if __name__ == "__main__":
    main()
