"""
What a model's graph may contain, and a session that scores a matrix with it.

A graph is data from outside until it has been walked: it may only compute, from one float matrix to one probability a row,
with operators of a closed list. Nothing in it may name a file, hold another graph or ask for memory that its size does not
show. One thread, and single rows padded to two, because other settings change bytes with the size of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it comes with onnx, without types

from driftline.errors import Invalid

Scores = npt.NDArray[np.float32]

INPUT = "rows"
GRAPH_BYTES_MAX = 64 << 20
NODES_MAX = 10_000
FEATURES_MAX = 10_000
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
ROWS_MIN = 2

# Elementwise, linear, tree and shape operators whose output is no larger than their inputs say. No control flow, no random
# numbers, no strings, nothing that makes a tensor of a size named by a value (Expand, Tile, ConstantOfShape, Range).
OPERATORS = frozenset(
    name
    for group in (
        "TreeEnsembleClassifier TreeEnsembleRegressor LinearClassifier LinearRegressor Normalizer Scaler Imputer",
        "Abs Add Div Exp Erf Log Mul Neg Pow Sqrt Sub Sum Clip Max Min MatMul Gemm Constant Cast Identity",
        "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Where",
        "Elu LeakyRelu Relu Selu Sigmoid Softmax LogSoftmax Softplus Tanh LayerNormalization",
        "Concat Flatten Gather Reshape Slice Squeeze Transpose Unsqueeze ReduceMax ReduceMean ReduceMin ReduceSum",
    )
    for name in group.split()
)


def check_graph(data: bytes) -> int:
    """
    Walk the protobuf of a graph without loading it. Returns how many features it takes.

    Raises Invalid, saying what was found, when it is too large, is no ONNX, holds external data, sparse tensors, functions,
    subgraphs or operators off the list, or when it is not one float matrix in and one float column out.
    """
    if len(data) > GRAPH_BYTES_MAX:
        raise Invalid(f"the graph has {len(data)} bytes, {GRAPH_BYTES_MAX} is the limit")
    model = _parse(data)
    if model.functions or model.training_info:
        raise Invalid("the graph defines functions or training steps of its own")
    foreign = sorted({entry.domain for entry in model.opset_import} - DOMAINS)
    if foreign:
        raise Invalid(f"the graph imports operators of foreign domains: {', '.join(foreign)}")
    graph = model.graph
    if len(graph.node) > NODES_MAX:
        raise Invalid(f"the graph has {len(graph.node)} nodes, {NODES_MAX} is the limit")
    if graph.sparse_initializer:
        raise Invalid("the graph holds sparse tensors")
    for node in graph.node:
        _check_node(node)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    return _check_ends(graph)


def cost(data: bytes) -> int:
    """How many numbers a graph holds: a measure of what scoring costs that needs no clock."""
    graph = _parse(data).graph
    held = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    return held + sum(len(attribute.floats) for node in graph.node for attribute in node.attribute)


def _parse(data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise Invalid("the file is not an ONNX graph") from error
    if not model.graph.node:
        raise Invalid("the file is not an ONNX graph, or an empty one")
    return model


def _check_node(node: onnx.NodeProto) -> None:
    if node.domain not in DOMAINS:
        raise Invalid(f"the node {node.name!r} is of the foreign domain {node.domain!r}")
    if node.op_type not in OPERATORS:
        raise Invalid(f"the node {node.name!r} is a {node.op_type}, which a model here may not use")
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise Invalid(f"the node {node.name!r} holds a graph of its own")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise Invalid(f"the node {node.name!r} holds a sparse tensor")
        for tensor in _tensors(attribute):
            _check_tensor(tensor)


def _tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise Invalid(f"the tensor {tensor.name!r} lies in another file")


def _check_ends(graph: onnx.GraphProto) -> int:
    """One float input of shape (n, F) that no initializer overrides, one float output of shape (n,) or (n, 1)."""
    if [value.name for value in graph.input] != [INPUT]:
        raise Invalid(f"the graph must have one input called {INPUT!r}, it has {[value.name for value in graph.input]}")
    width = _dimensions(graph.input[0])
    if len(width) != 2 or not 0 < width[1] <= FEATURES_MAX:  # a matrix
        raise Invalid(f"the graph's input must be a matrix with a fixed number of columns, its shape is {width}")
    if len(graph.output) != 1:
        raise Invalid(f"the graph must have one output, it has {len(graph.output)}")
    out = _dimensions(graph.output[0])
    if len(out) not in (1, 2) or (len(out) == 2 and out[1] != 1):  # a column
        raise Invalid(f"the graph must give one probability a row, the shape of its output is {out}")
    return width[1]


def _dimensions(value: onnx.ValueInfoProto) -> list[int]:
    """The shape of a float tensor, 0 where it is open."""
    if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise Invalid(f"{value.name!r} is not a float tensor")
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


class Session:
    """
    A checked graph, loaded. Raises Invalid when made from a graph that `check_graph` or the runtime refuses.
    """

    def __init__(self, data: bytes) -> None:
        self.features = check_graph(data)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # what is wrong is raised; nothing is printed beside it
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises a dozen types that share no base but this
            raise Invalid(f"the runtime refuses the graph: {type(error).__name__}") from error
        self._output = self._session.get_outputs()[0].name

    def score(self, matrix: npt.NDArray[np.float32]) -> Scores:
        """
        One probability a row of `matrix`, float32 (n, F); NaN where the graph gave NaN or infinity. A row's score does not
        depend on the rows beside it. Raises Invalid when the width is not the graph's, or when the graph fails to run.
        """
        n = len(matrix)
        if matrix.ndim != 2 or matrix.shape[1] != self.features:  # a matrix
            raise Invalid(f"the model takes {self.features} features, the matrix has the shape {matrix.shape}")
        if n == 0:
            return np.empty(0, np.float32)
        padded = matrix if n >= ROWS_MIN else np.repeat(matrix, ROWS_MIN, axis=0)
        try:
            out = self._session.run([self._output], {INPUT: np.ascontiguousarray(padded, np.float32)})[0]
        except Exception as error:  # as above
            raise Invalid(f"the graph failed to run: {type(error).__name__}") from error
        if out.size != len(padded):
            raise Invalid(f"the graph gave {out.size} numbers for {len(padded)} rows")
        scores = np.asarray(out, np.float32).reshape(-1)[:n]
        return np.where(np.isfinite(scores), scores, np.float32(np.nan))
