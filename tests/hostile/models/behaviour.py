"""Graphs that pass every check and show what they are when they run."""

from __future__ import annotations

import numpy as np
from ground import Ground, constant, node
from hostile import Hostile, graph
from onnx import helper

WIDTH = 512
CHAIN = 4_000
OUTER = 60_000  # floats a row: 4,096 rows ask for a gigabyte
FOLDED = 40_000  # squared, six gigabytes when the runtime folds the constants
DOUBLINGS = 24  # of two features, 128 MB a row


def slow(_: Ground) -> list[object]:
    """Matrices that are kept once and multiplied by thousands of times."""
    steps: list[object] = [helper.make_node("MatMul", ["x", "widen"], ["m0"], name="widen")]
    steps += [helper.make_node("MatMul", [f"m{at}", "square"], [f"m{at + 1}"], name=f"m{at}") for at in range(CHAIN)]
    return [*steps, helper.make_node("MatMul", [f"m{CHAIN}", "narrow"], ["z"], name="narrow"), node("Sigmoid", ["z"])]


def slow_graph(ground: Ground) -> bytes:
    square = np.eye(WIDTH, dtype=np.float32)
    shapes = [constant("widen", np.ones((1, WIDTH), np.float32)), constant("square", square)]
    return ground.first(*slow(ground), constants=[*shapes, constant("narrow", np.ones((WIDTH, 1), np.float32))])


def doubling(ground: Ground) -> bytes:
    """Each node makes its input twice as wide."""
    steps = [helper.make_node("Concat", [f"w{at}"] * 2, [f"w{at + 1}"], name=f"w{at}", axis=1) for at in range(DOUBLINGS)]
    start, end = node("Identity", ["rows"], "w0"), node("ReduceMax", [f"w{DOUBLINGS}"], "z", axes=[1], keepdims=1)
    return ground.graph([start, *steps, end, node("Sigmoid", ["z"])])


def outer(ground: Ground) -> bytes:
    """A column times a row."""
    product, back = node("MatMul", ["x", "wide"], "m"), node("ReduceMax", ["m"], "z", axes=[1], keepdims=1)
    return ground.first(product, back, node("Sigmoid", ["z"]), constants=[constant("wide", np.ones((1, OUTER), np.float32))])


def folded(ground: Ground) -> bytes:
    """Two constants, whose sum the runtime works out before anybody asks."""
    column, row = (constant(name, np.zeros(shape, np.float32)) for name, shape in (("column", (FOLDED, 1)), ("row", (1, FOLDED))))
    total = node("ReduceMax", ["sum"], "top", axes=[0, 1], keepdims=1)
    steps = [node("Add", ["column", "row"], "sum"), total, node("Mul", ["x", "top"], "z"), node("Sigmoid", ["z"])]
    return ground.first(*steps, constants=[column, row])


def first_row(ground: Ground) -> bytes:
    """Takes row 0 and adds nothing of the others."""
    steps = [
        node("Gather", ["x", "first"], "f", axis=0),
        node("IsNaN", ["x"], "n"),
        node("Where", ["n", "f", "f"], "s"),
        node("Sigmoid", ["s"]),
    ]
    return ground.first(*steps)


def behaves(name: str, how: str, message: str, make: object) -> Hostile:
    assert callable(make)
    return graph(name, how, message, make, refused_by="probe")


NO_PROBABILITY = "no probabilities"
CHANGES = "changes with the rows"
MEAN = {"axes": [0], "keepdims": 1}

SCORES = (
    behaves("score-nan", "NaN for every row", "gives no number", lambda g: g.first(node("Sub", ["x", "x"], "o"), node("Div", ["o", "o"]))),
    behaves(
        "score-infinite",
        "infinity for every row",
        "gives no number",
        lambda g: g.first(
            node("Exp", ["x"], "e"), node("Mul", ["e", "huge"], "h"), node("Mul", ["h", "h"]), constants=[constant("huge", [3e38])]
        ),
    ),
    behaves(
        "score-2",
        "the number 2 for every row",
        NO_PROBABILITY,
        lambda g: g.first(node("Sigmoid", ["x"], "s"), node("Add", ["s", "two"]), constants=[constant("two", [2.0])]),
    ),
    behaves(
        "score-negative",
        "a logit in place of a probability",
        NO_PROBABILITY,
        lambda g: g.first(node("Mul", ["x", "x"], "s"), node("Neg", ["s"])),
    ),
    behaves(
        "score-extreme",
        "a probability, but for absurd rows",
        NO_PROBABILITY,
        lambda g: g.first(
            node("Abs", ["x"], "a"),
            node("Mul", ["a", "tiny"], "m"),
            node("Min", ["m", "two"]),
            constants=[constant("tiny", [1e-6]), constant("two", [2.0])],
        ),
    ),
)
BATCHES = (
    behaves(
        "batch-mean",
        "scores by how a row differs from the rows beside it",
        CHANGES,
        lambda g: g.first(node("ReduceMean", ["x"], "m", **MEAN), node("Sub", ["x", "m"], "d"), node("Sigmoid", ["d"])),
    ),
    behaves(
        "batch-softmax", "shares one probability out among the rows", "no number|changes", lambda g: g.first(node("Softmax", ["x"], axis=0))
    ),
    behaves(
        "batch-first-row",
        "gives every row the score of the first",
        CHANGES,
        first_row,
    ),
    behaves(
        "rows-one", "one number for any number of rows", "gave 1 numbers for 32 rows", lambda g: g.first(node("ReduceMax", ["x"], **MEAN))
    ),
    behaves(
        "rows-double", "two numbers for each row", "gave 64 numbers for 32 rows", lambda g: g.first(node("Concat", ["x", "x"], axis=0))
    ),
    behaves(
        "rows-64",
        "works for the first 64 rows alone",
        "gave 64 numbers for 4096 rows",
        lambda g: g.first(node("Sigmoid", ["x"], "s"), node("Slice", ["s", "a", "b"]), constants=[constant("a", [0]), constant("b", [64])]),
    ),
)
COSTS = (
    behaves("slow", f"{CHAIN:,} products with one matrix of {WIDTH} by {WIDTH}", "processor time", slow_graph),
    behaves("memory-outer-product", f"{OUTER:,} numbers for each row", "failed to run", outer),
    behaves("memory-folded", "constants whose sum has 6 GB, worked out when it is loaded", "refuses the graph|failed to run|ended", folded),
    behaves("memory-doubling", f"a row, doubled {DOUBLINGS} times", "failed to run", doubling),
)
RUNTIME = (
    behaves(
        "reshape-impossible",
        "shapes that do not multiply",
        "refuses the graph|failed to run",
        lambda g: g.first(node("Reshape", ["x", "shape"], "r"), node("Sigmoid", ["r"]), constants=[constant("shape", [3, 5])]),
    ),
    behaves("operator-inputs", "an operator with one input too many", "refuses the graph", lambda g: g.first(node("Sigmoid", ["x", "x"]))),
    behaves("operator-types", "a sum of floats and integers", "refuses the graph", lambda g: g.first(node("Add", ["x", "first"]))),
    behaves(
        "operator-attribute",
        "an attribute that the operator has not",
        "refuses the graph",
        lambda g: g.first(node("Sigmoid", ["x"], path="/etc")),
    ),
    behaves(
        "index-out-of-range",
        "a column that is not there",
        "refuses the graph|failed to run",
        lambda g: g.graph([node("Gather", ["rows", "far"], "x", axis=1), node("Sigmoid", ["x"])], [constant("far", [10**9])]),
    ),
)


BEHAVIOUR = (*SCORES, *BATCHES, *COSTS, *RUNTIME)
