"""
What a model's graph may contain, and a session that scores a matrix with it.

A graph is data from outside until it has been walked: it may only compute, from one float matrix to one probability a row,
with operators of a closed list. Nothing in it may name a file or hold another graph. The walk trusts nothing that it has not
counted: first the bytes, then how many parts they would become, and only then are they parsed. What may be set at all is a
closed list too, so that what a later version of ONNX invents is refused until somebody has thought about it.

What a graph does with memory and time only running shows: that is the probe's part (`models/probe.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import Descriptor  # type: ignore[import-untyped]  # it comes with onnx, without types
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]  # as above

from driftline.errors import Invalid
from driftline.models import trees
from driftline.models.runtime import INPUT, Loaded, Scores

__all__ = ["GRAPH_BYTES_MAX", "INPUT", "Scores", "Session", "check_graph", "cost"]

GRAPH_BYTES_MAX = 64 << 20
PARTS_MAX = 200_000  # messages and strings; four million empty nodes are 8 MB of file, 600 MB of memory and 20 s of parsing
DEPTH_MAX = 12  # of messages in one another: model, graph, node, attribute, tensor, and some to spare
NODES_MAX = 10_000
ENDS_MAX = 1_000  # inputs or outputs of one node
FEATURES_MAX = 10_000
RANK_MAX = 8
NAME_CHARACTERS_MAX = 200
IR_VERSIONS = range(3, 12)
OPSETS = {"": range(7, 24), "ai.onnx.ml": range(1, 4)}
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})

# Elementwise, linear, tree and shape operators. No control flow, no random numbers, no strings, nothing that makes a tensor of a
# size named by a value (Expand, Tile, ConstantOfShape, Range). Of ai.onnx.ml trees alone, whose attributes `models/trees.py` walks.
OPERATORS = frozenset(
    name
    for group in (
        "TreeEnsembleClassifier TreeEnsembleRegressor",
        "Abs Add Div Exp Erf Log Mul Neg Pow Sqrt Sub Sum Clip Max Min MatMul Gemm Constant Cast Identity",
        "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Where",
        "Elu LeakyRelu Relu Selu Sigmoid Softmax LogSoftmax Softplus Tanh LayerNormalization",
        "Concat Flatten Gather Reshape Slice Squeeze Transpose Unsqueeze ReduceMax ReduceMean ReduceMin ReduceSum",
    )
    for name in group.split()
)
TREES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
TRUTHS = frozenset(["And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or"])
# Their inputs from the second on say where or in which shape, so they are constants: a row's values decide no shape.
SHAPED = frozenset(["Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"])

# What a tensor may hold: bytes a number, and the field that holds the numbers when `raw_data` does not.
NUMBERS: dict[int, tuple[int, str]] = {
    onnx.TensorProto.FLOAT: (4, "float_data"),
    onnx.TensorProto.DOUBLE: (8, "double_data"),
    onnx.TensorProto.INT32: (4, "int32_data"),
    onnx.TensorProto.INT64: (8, "int64_data"),
    onnx.TensorProto.BOOL: (1, "int32_data"),
}

# A run of numbers in the wire format, each behind a tag of one byte; possessive, so that a run of millions costs no memory.
NUMBERS_RUN = re.compile(
    rb"(?s:(?>[%s][\x80-\xff]{0,9}[\x00-\x7f]|[%s].{4})++)"
    % tuple(b"".join(b"\\x%02x" % (number << 3 | wire) for number in range(1, 16)) for wire in (0, 5))
)

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)

FIELDS = {
    kind: frozenset(fields.split())
    for kind, fields in {
        "ModelProto": "ir_version opset_import producer_name producer_version domain model_version graph",
        "OperatorSetIdProto": "domain version",
        "GraphProto": "node name initializer input output value_info",
        "NodeProto": "input output name op_type domain attribute",
        "AttributeProto": "name type f i s t floats ints strings",
        "TensorProto": "dims data_type name raw_data float_data double_data int32_data int64_data",
        "ValueInfoProto": "name type",
        "TypeProto": "tensor_type",
        "Tensor": "elem_type shape",
        "TensorShapeProto": "dim",
        "Dimension": "dim_value dim_param",
    }.items()
}


def check_graph(data: bytes) -> int:
    """
    Walk the protobuf of a graph without loading it. Returns how many features it takes.

    Raises Invalid, saying what was found, when it is too large, is no ONNX, holds external data, sparse tensors, functions,
    subgraphs or operators off the list, is not what it says (lengths, names, trees), or when it is not one float matrix in and
    one float column out.
    """
    model = _parse(data)
    if model.functions or model.training_info:
        raise Invalid("the graph defines functions or training steps of its own")
    _check_versions(model)
    graph = model.graph
    if len(graph.node) > NODES_MAX:
        raise Invalid(f"the graph has {len(graph.node)} nodes, {NODES_MAX} is the limit")
    if graph.sparse_initializer:
        raise Invalid("the graph holds sparse tensors")
    for node in graph.node:
        _check_node(node)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    _check_fields(model)
    features = _check_ends(graph)
    _check_flow(graph)
    for node in graph.node:
        if node.op_type in TREES:
            _check_trees(node, features)
    return features


def cost(data: bytes) -> int:
    """How many numbers a graph holds: a measure of what scoring costs that needs no clock."""
    graph = _parse(data).graph
    held: int = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    return held + sum(len(attribute.floats) for node in graph.node for attribute in node.attribute)


def has_trees(data: bytes) -> bool:
    """Whether a graph has trees, for which only the processor has kernels."""
    return any(node.op_type in TREES for node in _parse(data).graph.node)


# ---- bytes ----------------------------------------------------------------------------------------------------------------


def _parse(data: bytes) -> onnx.ModelProto:
    """The model, from bytes that are bounded, that hold nothing that ONNX does not know, and that every parser reads alike."""
    if len(data) > GRAPH_BYTES_MAX:
        raise Invalid(f"the graph has {len(data)} bytes, {GRAPH_BYTES_MAX} is the limit")
    _Parts(data).count(0, len(data), onnx.ModelProto.DESCRIPTOR, 0)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise Invalid("the file is not an ONNX graph") from error
    if not model.graph.node:
        raise Invalid("the file is not an ONNX graph, or an empty one")
    model.DiscardUnknownFields()
    if model.SerializeToString(deterministic=True) != data:
        raise Invalid("the graph is not as ONNX itself writes it: it has unknown fields, or says one thing twice; write it with onnx.save")
    return model


class _Parts:
    """Counts what a protobuf would become, without making any of it, and stops at a limit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = PARTS_MAX

    def count(self, at: int, end: int, kind: Descriptor | None, depth: int) -> None:
        """Walk the message of this kind from `at` to `end`. Raises Invalid for what is no protobuf, too deep or too much."""
        if depth > DEPTH_MAX:
            raise Invalid(f"the graph nests messages more than {DEPTH_MAX} deep")
        fields = {} if kind is None else kind.fields_by_number
        while at < end:
            if run := NUMBERS_RUN.match(self._data, at, end):
                at = run.end()
                continue
            tag, at = self._varint(at, end)
            length = 0
            if tag & 7 == 0:
                _, at = self._varint(at, end)
            elif tag & 7 == 2:
                length, at = self._varint(at, end)
                self._take_one()
                if at + length <= end and (field := fields.get(tag >> 3)) is not None and field.message_type is not None:
                    self.count(at, at + length, field.message_type, depth + 1)
            elif tag & 7 in (1, 5):
                length = 8 if tag & 7 == 1 else 4
            else:  # groups, which ONNX has not
                raise Invalid("the file is not an ONNX graph")
            at += length
        if at != end:
            raise Invalid("the file is not an ONNX graph: it is cut off")

    def _take_one(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Invalid(f"the graph has more than {PARTS_MAX} parts, nodes, attributes, names and strings together")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 64:
            byte = self._data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise Invalid("the file is not an ONNX graph")


# ---- what may be there ----------------------------------------------------------------------------------------------------


def _check_versions(model: onnx.ModelProto) -> None:
    if model.ir_version not in IR_VERSIONS:
        raise Invalid(f"the graph is of IR version {model.ir_version}, this driftline reads {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
    foreign = sorted({entry.domain for entry in model.opset_import} - DOMAINS)
    if foreign:
        raise Invalid(f"the graph imports operators of foreign domains: {', '.join(map(_shown, foreign))}")
    domains = [_domain(entry.domain) for entry in model.opset_import]
    if len(set(domains)) < len(domains):
        raise Invalid("the graph imports one domain of operators twice")
    for entry in model.opset_import:
        known = OPSETS[_domain(entry.domain)]
        if entry.version not in known:
            raise Invalid(f"the graph is of opset {entry.version} of {entry.domain or 'ai.onnx'}, export it for {known[0]} to {known[-1]}")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_node(node: onnx.NodeProto) -> None:
    where = f"the node {_shown(node.name)}"
    if node.domain not in DOMAINS:
        raise Invalid(f"{where} is of the foreign domain {_shown(node.domain)}")
    if node.op_type not in OPERATORS:
        raise Invalid(f"{where} is a {_shown(node.op_type)[1:-1]}, which a model here may not use")
    if (node.domain == "ai.onnx.ml") != (node.op_type in TREES):
        raise Invalid(f"{where}: {node.op_type} is no operator of the domain {node.domain or 'ai.onnx'}")
    if max(len(node.input), len(node.output)) > ENDS_MAX:
        raise Invalid(f"{where} has more than {ENDS_MAX} inputs or outputs")
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise Invalid(f"{where} holds a graph of its own")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise Invalid(f"{where} holds a sparse tensor")
        for tensor in _tensors(attribute):
            _check_tensor(tensor)
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        raise Invalid(f"{where} has one attribute twice")
    if node.op_type == "Cast" and any(attribute.i not in NUMBERS for attribute in node.attribute if attribute.name == "to"):
        raise Invalid(f"{where} casts to something that is no number of a usual size")


def _tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto) -> None:
    """The numbers lie in the file, and are as many as its dimensions say."""
    where = f"the tensor {_shown(tensor.name)}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise Invalid(f"{where} lies in another file")
    if tensor.data_type not in NUMBERS:
        raise Invalid(f"{where} holds something other than float, double, int32, int64 and bool")
    if len(tensor.dims) > RANK_MAX or any(size < 0 for size in tensor.dims):
        raise Invalid(f"{where} has the shape {list(tensor.dims[:RANK_MAX])}: at most {RANK_MAX} dimensions, none below 0")
    each, field = NUMBERS[tensor.data_type]
    told = math.prod(tensor.dims)  # of Python's integers, which do not overflow
    raw = tensor.HasField("raw_data")
    held = len(tensor.raw_data) / each if raw else len(getattr(tensor, field))
    kinds = {name for _, name in NUMBERS.values() if getattr(tensor, name)}
    if held != told or kinds - (set() if raw else {field}):
        raise Invalid(f"{where} says that it has {told} numbers, and does not hold just those")


def _check_fields(message: Message) -> None:
    """Every field that is set is on the list, and every name can be printed."""
    kind = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        if field.name not in FIELDS.get(kind, ()):
            raise Invalid(f"a {kind} of the graph has the field {field.name}, which a model here may not use")
        values: Iterable[Any] = value if field.is_repeated else (value,)
        if field.message_type is not None:
            for inner in values:
                _check_fields(inner)
        elif field.type == field.TYPE_STRING and not all(text.isprintable() and len(text) <= NAME_CHARACTERS_MAX for text in values):
            raise Invalid(f"a {kind} of the graph has a {field.name} that cannot be printed, or is longer than {NAME_CHARACTERS_MAX}")


def _shown(text: str) -> str:
    """Safe for a log: quoted, control characters escaped, not endless."""
    return repr(text[:60])


# ---- what flows -----------------------------------------------------------------------------------------------------------


def _check_ends(graph: onnx.GraphProto) -> int:
    """One float input of shape (n, F) that no initializer overrides, one float output of shape (n,) or (n, 1)."""
    if [value.name for value in graph.input] != [INPUT]:
        raise Invalid(f"the graph must have one input called {INPUT!r}, it has {[value.name[:60] for value in graph.input[:4]]}")
    width = _dimensions(graph.input[0])
    if len(width) != 2 or not 0 < width[1] <= FEATURES_MAX:  # a matrix
        raise Invalid(f"the graph's input must be a matrix with a fixed number of columns, its shape is {width[:RANK_MAX]}")
    if len(graph.output) != 1:
        raise Invalid(f"the graph must have one output, it has {len(graph.output)}")
    out = _dimensions(graph.output[0])
    if len(out) not in (1, 2) or (len(out) == 2 and out[1] != 1):  # a column
        raise Invalid(f"the graph must give one probability a row, the shape of its output is {out[:RANK_MAX]}")
    if width[0] or out[0]:
        raise Invalid("the graph must leave the number of rows open, in its input and in its output")
    for value in graph.value_info:
        if any(not 0 <= dimension.dim_value < 1 << 31 for dimension in value.type.tensor_type.shape.dim):
            raise Invalid(f"the value {_shown(value.name)} has a shape that nothing has")
    return width[1]


def _dimensions(value: onnx.ValueInfoProto) -> list[int]:
    """The shape of a float tensor, 0 where it is open."""
    if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise Invalid(f"{_shown(value.name)} is not a float tensor")
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def _check_flow(graph: onnx.GraphProto) -> None:
    """
    Each name is made once, before it is used, so that nothing runs in circles or hides behind another. No shape depends on what
    is in a row, and integers are not divided: the smallest by -1 ends the process, and a row could be what divides.
    """
    kinds = {INPUT: int(onnx.TensorProto.FLOAT)}  # of what each name stands for
    for tensor in graph.initializer:
        _make(kinds, tensor.name, tensor.data_type)
    constant = kinds.keys() - {INPUT}
    for node in graph.node:
        where = f"the node {_shown(node.name)}"
        for name in node.input:
            if name and name not in kinds:
                raise Invalid(f"{where} reads {_shown(name)}, which nothing before it makes")
        if node.op_type in SHAPED and any(name and name not in constant for name in node.input[1:]):
            raise Invalid(f"{where}, a {node.op_type}, takes a place or a shape from what is not constant")
        if node.op_type == "Div" and any(kinds.get(name) not in FLOATS for name in node.input):
            raise Invalid(f"{where} divides integers, which can end the process; cast them to float first")
        for at, name in enumerate(node.output):
            if name:
                _make(kinds, name, _kind(node, at, kinds))
                constant |= {name} if node.op_type == "Constant" else set()
    if graph.output[0].name not in {name for node in graph.node for name in node.output}:
        raise Invalid(f"the graph's output {_shown(graph.output[0].name)} is made by no node")


def _make(kinds: dict[str, int], name: str, kind: int) -> None:
    if not name or name in kinds:
        raise Invalid(f"the name {_shown(name)} is made twice" if name else "a tensor has no name")
    kinds[name] = kind


def _kind(node: onnx.NodeProto, at: int, kinds: dict[str, int]) -> int:
    """What output number `at` of a node holds."""
    told = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Cast" and "to" in told:
        return int(told["to"].i)
    if node.op_type == "Constant" and "value" in told:
        return int(told["value"].t.data_type)
    if node.op_type == "Constant":
        return int(onnx.TensorProto.FLOAT if told.keys() <= {"value_float", "value_floats"} else onnx.TensorProto.INT64)
    if node.op_type in TRUTHS:
        return int(onnx.TensorProto.BOOL)
    if node.op_type in TREES:
        return int(onnx.TensorProto.INT64 if at == 0 and len(node.output) > 1 else onnx.TensorProto.FLOAT)
    read = node.input[1:2] if node.op_type == "Where" else node.input[:1]
    return kinds.get(read[0], 0) if read else 0


def _check_trees(node: onnx.NodeProto, features: int) -> None:
    if list(node.input) != [INPUT]:
        raise Invalid(f"the trees of {_shown(node.name)} must read {INPUT!r} and nothing else, so that what they look at can be checked")
    trees.check({attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}, features)


class Session(Loaded):
    """
    A checked graph, loaded. Raises Invalid when made from a graph that `check_graph` or the runtime refuses.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data, check_graph(data))
