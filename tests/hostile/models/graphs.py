"""Hostile graphs, each in a bundle that is signed by the trusted key: what they hold can be seen without running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ground import Ground, constant, node
from hostile import Hostile, graph
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

FLOAT = TensorProto.FLOAT
FAR = 10**9
MANY = 300_000
EMPTY_NODES = 4 << 20


def value(name: str, shape: Sequence[int | None] | None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


# ---- reaching outside the file


def external(location: str, *, name: str = "first", declared: bool = True) -> TensorProto:
    """A tensor whose numbers lie at `location`; not `declared`: only the entries say so, not the flag."""
    tensor = constant(name, [0])
    tensor.ClearField("raw_data")
    if declared:
        tensor.data_location = TensorProto.EXTERNAL
    for key, told in {"location": location, "offset": "0", "length": "8"}.items():
        tensor.external_data.add(key=key, value=told)
    return tensor


def with_external(location: str, **changes: Any) -> Callable[[Ground], bytes]:
    """The number of the column that is taken lies elsewhere."""
    nodes = [node("Gather", ["rows", "first"], "x", axis=1), node("Sigmoid", ["x"])]
    return lambda ground: ground.graph(nodes, [external(location, **changes)])


def external_list(ground: Ground) -> bytes:
    """In a list of tensors that no operator here reads."""

    def edit(model: ModelProto) -> None:
        attribute = model.graph.node[1].attribute.add(name="more", type=9)
        attribute.tensors.append(external("weights.bin"))

    return ground.edited(edit)


def branch(tensor: TensorProto | None = None) -> NodeProto:
    """A choice between two graphs, which hold `tensor`."""
    inner = helper.make_graph([node("Identity", ["x"], "z")], "inner", [], [value("z", None)], [tensor] if tensor else [])
    return helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner)


def function(name: str, *nodes: NodeProto, domain: str = "") -> Callable[[ModelProto], None]:
    """Adds a function of the model's own."""

    def edit(model: ModelProto) -> None:
        model.functions.append(helper.make_function(domain, name, ["a"], ["b"], list(nodes), [helper.make_opsetid("", 15)]))

    return edit


def training(model: ModelProto) -> None:
    """A step of training that starts from a file."""
    model.training_info.add().initialization.initializer.append(external("weights.bin"))


def sparse_of(values: TensorProto) -> Any:
    return helper.make_sparse_tensor(values, constant("where", [0]), [5])


def sparse_external(model: ModelProto) -> None:
    values = external("weights.bin")
    values.dims[:] = [1]
    model.graph.sparse_initializer.add().values.CopyFrom(values)


OUTSIDE = "lies in another file"
EXTERNAL = (
    graph("external-relative", "numbers in a file beside the graph", OUTSIDE, with_external("weights.bin")),
    graph("external-dotdot", "numbers in ../../keys/model-private.pem", OUTSIDE, with_external("../../keys/model-private.pem")),
    graph("external-absolute", "numbers in /etc/passwd", OUTSIDE, with_external("/etc/passwd")),
    graph("external-proc", "numbers in /proc/self/environ", OUTSIDE, with_external("/proc/self/environ")),
    graph("external-unc", "numbers on another machine, by a UNC path", OUTSIDE, with_external(r"\\127.0.0.1\share\weights.bin")),
    graph("external-url", "numbers behind a URL", OUTSIDE, with_external("http://127.0.0.1/weights.bin")),
    graph("external-memory", "numbers at an address in memory, by the runtime's own marker", OUTSIDE, with_external("*/_ORT_MEM_ADDR_/*")),
    graph("external-empty", "numbers in a file without a name", OUTSIDE, with_external("")),
    graph("external-undeclared", "a path in a tensor that says it has none", OUTSIDE, with_external("weights.bin", declared=False)),
    graph(
        "external-constant",
        "a Constant whose numbers lie elsewhere",
        OUTSIDE,
        lambda ground: ground.graph([node("Constant", [], "c", value=external("weights.bin")), node("Gather", ["rows", "c"], axis=1)]),
    ),
    graph("external-list", "a list of tensors, one of which lies elsewhere", OUTSIDE, external_list),
    graph(
        "external-branch", "elsewhere, in a branch of an If", "may not use", lambda ground: ground.first(branch(external("weights.bin")))
    ),
    graph(
        "external-function",
        "elsewhere, in a function of the model's own",
        "functions or training steps",
        lambda g: g.edited(function("F", node("Constant", [], "b", value=external("weights.bin")))),
    ),
    graph("external-training", "elsewhere, in a training step", "functions or training steps", lambda ground: ground.edited(training)),
    graph("external-sparse", "elsewhere, in a sparse tensor", "sparse tensors", lambda ground: ground.edited(sparse_external)),
)


# ---- code, other graphs, other people's operators


def looped(operator: str, **attributes: Any) -> Callable[[Ground], bytes]:
    """A loop that goes on while a constant is true."""
    inner = helper.make_graph(
        [node("Identity", ["go"], "on"), node("Identity", ["v"], "w")],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", None)],
        [value("on", [], TensorProto.BOOL), value("w", None)],
    )
    return lambda ground: ground.first(
        helper.make_node(operator, ["", "true", "x"], ["y"], name="loop", body=inner, **attributes),
        constants=[constant("true", True, np.bool_)],
    )


def hidden_body(ground: Ground) -> bytes:
    """An attribute that the operator does not have holds a graph."""
    inner: GraphProto = helper.make_graph([node("Identity", ["x"], "z")], "inner", [], [])
    return ground.first(node("Sigmoid", ["x"], body=inner))


def opsets(**versions: int) -> Callable[[Ground], bytes]:
    """Imports of operators; `_` stands for a dot, `onnx` for the domain without a name."""
    told = {"" if name == "onnx" else name.replace("_", "."): version for name, version in versions.items()}
    return lambda ground: ground.graph(opsets=told)


def of_domain(operator: str, domain: str) -> Callable[[Ground], bytes]:
    return lambda ground: ground.first(helper.make_node(operator, ["x"], ["y"], name="own", domain=domain))


FOREIGN = "foreign domain"
FUNCTIONS = "functions or training steps"
CODE = (
    graph("domain-custom", "an operator from a library of one's own", FOREIGN, of_domain("Evil", "com.example")),
    graph("domain-microsoft", "an operator that only the runtime knows", FOREIGN, of_domain("FusedMatMul", "com.microsoft")),
    graph("domain-python", "an operator that calls Python", FOREIGN, of_domain("PyOp", "ai.onnx.contrib")),
    graph("domain-training", "an operator for training", FOREIGN, of_domain("Gradient", "ai.onnx.preview.training")),
    graph("domain-control-characters", "a domain that rewrites the terminal", FOREIGN, of_domain("Sigmoid", "\x1b[2J")),
    graph("domain-imported", "imports foreign operators and uses none", FOREIGN, opsets(onnx=15, com_microsoft=1)),
    graph("domain-mixed-up", "a Sigmoid of the domain of trees", "no operator of the domain", of_domain("Sigmoid", "ai.onnx.ml")),
    graph("operator-unknown", "an operator that there is not", "may not use", of_domain("Evil", "")),
    graph("operator-string", "an operator on strings", "may not use", of_domain("StringNormalizer", "")),
    graph(
        "operator-linear",
        "an operator that trusts the lengths of its lists",
        "no operator|may not use",
        of_domain("LinearClassifier", "ai.onnx.ml"),
    ),
    graph("function", "a function of the model's own", FUNCTIONS, lambda g: g.edited(function("F", node("Identity", ["a"], "b")))),
    graph("function-recursive", "a function that calls itself", FUNCTIONS, lambda g: g.edited(function("F", node("F", ["a"], "b")))),
    graph(
        "function-overrides", "a Sigmoid of the model's own", FUNCTIONS, lambda g: g.edited(function("Sigmoid", node("Exp", ["a"], "b")))
    ),
    graph("loop-endless", "a Loop without an end", "may not use", looped("Loop")),
    graph("scan-endless", "a Scan over nothing", "may not use", looped("Scan", num_scan_inputs=0)),
    graph("branch", "an If with graphs of its own", "may not use", lambda ground: ground.first(branch())),
    graph("body-hidden", "a graph in an attribute that nothing reads", "graph of its own", hidden_body),
    graph(
        "sparse",
        "a sparse tensor",
        "sparse tensors",
        lambda g: g.edited(lambda m: m.graph.sparse_initializer.append(sparse_of(constant("s", [1.5])))),
    ),
    graph(
        "sparse-constant",
        "a sparse Constant",
        "sparse tensor",
        lambda g: g.graph([node("Constant", [], "y", sparse_value=sparse_of(constant("s", [1.5])))]),
    ),
    graph(
        "integer-division",
        "divides the smallest integer by -1, which ends the process",
        "divides integers",
        lambda g: g.first(*division(), constants=SMALLEST),
    ),
    graph(
        "integer-division-by-row",
        "divides by what is in a row",
        "divides integers",
        lambda g: g.first(
            node("Cast", ["x"], "i", to=7), node("Div", ["smallest", "i"], "q"), node("Cast", ["q"], to=1), constants=SMALLEST
        ),
    ),
)
SMALLEST = (constant("smallest", [-(2**63)]), constant("minus", [-1]))


def division() -> list[NodeProto]:
    return [node("Div", ["smallest", "minus"], "q"), node("Cast", ["q"], "f", to=1), node("Mul", ["x", "f"])]


# ---- sizes


def makes(operator: str, takes: Sequence[str], **attributes: Any) -> Callable[[Ground], bytes]:
    """One node whose output is as large as a value says."""
    sizes = [constant("far", [FAR, FAR]), constant("one", 1), constant("end", FAR)]
    return lambda ground: ground.first(node(operator, takes, **attributes), constants=sizes)


def tensor(**fields: Any) -> Callable[[Ground], bytes]:
    """The constant `w`, with these fields, which need not fit one another."""

    def edit(model: ModelProto) -> None:
        told = {"name": "w", "data_type": FLOAT, "dims": [1]} | fields
        model.graph.initializer.add(**told)

    return lambda ground: ground.edited(edit)


def bytes_around(content: bytes) -> bytes:
    """A model with `content` for its graph."""
    return b"\x08\x08\x3a" + varint(len(content)) + content


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def nested(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    content = b"\x12\x01g"
    for tag in (b"\x32", b"\x2a", b"\x0a") * depth:
        content = tag + varint(len(content)) + content
    return bytes_around(content)


def many_strings(ground: Ground) -> bytes:
    return ground.edited(lambda model: model.graph.node[1].attribute.add(name="more", type=8, strings=[b""] * MANY))


NOT_JUST = "does not hold just those"
PARTS = "more than 200000 parts"
SIZES = (
    graph("expand", "10^18 copies", "may not use", makes("Expand", ["x", "far"])),
    graph("tile", "10^18 copies", "may not use", makes("Tile", ["x", "far"])),
    graph("constant-of-shape", "10^18 zeros", "may not use", makes("ConstantOfShape", ["far"])),
    graph("range", "a thousand million numbers", "may not use", makes("Range", ["one", "end", "one"])),
    graph("random-normal", "10^18 random numbers", "may not use", makes("RandomNormal", [], shape=[FAR, FAR])),
    graph("random-like", "random numbers, so that no score repeats", "may not use", makes("RandomUniformLike", ["x"])),
    graph("pad", "10^18 zeros around a row", "may not use", makes("Pad", ["x", "far"])),
    graph("resize", "a row, enlarged", "may not use", makes("Resize", ["x", "", "far"])),
    graph("eye-like", "the square of what it reads", "may not use", makes("EyeLike", ["x"])),
    graph("one-hot", "as many columns as a value says", "may not use", makes("OneHot", ["first", "end", "x"])),
    graph("dims-overflow", "dimensions whose product is 0 in 64 bits", NOT_JUST, tensor(dims=[1 << 32, 1 << 32])),
    graph("dims-wrap", "dimensions whose product is 1 in 64 bits", NOT_JUST, tensor(dims=[274177, 67280421310721], raw_data=bytes(4))),
    graph("dims-negative", "a negative dimension", "none below 0", tensor(dims=[-1], raw_data=bytes(4))),
    graph("dims-smallest", "the smallest integer for a dimension", "none below 0", tensor(dims=[-(2**63)])),
    graph("dims-many", "a thousand dimensions", "at most 8 dimensions", tensor(dims=[1] * 1000, raw_data=bytes(4))),
    graph("dims-more-than-data", "says a million numbers, holds one", NOT_JUST, tensor(dims=[1_000_000], raw_data=bytes(4))),
    graph("dims-less-than-data", "says one number, holds a thousand", NOT_JUST, tensor(raw_data=bytes(4000))),
    graph("data-twice", "numbers in two places, of which a reader takes one", NOT_JUST, tensor(raw_data=bytes(4), float_data=[1.0])),
    graph("data-of-another-kind", "floats in the place for integers", NOT_JUST, tensor(int64_data=[1])),
    graph("data-cut", "half a number", NOT_JUST, tensor(raw_data=bytes(2))),
    graph("data-strings", "a tensor of strings", "something other than float", tensor(data_type=8, string_data=[b"x"])),
    graph("data-unknown", "a tensor of a kind that there is not", "something other than float", tensor(data_type=999)),
    graph("nested-1000", "messages 3,000 deep", "nests messages", lambda _: nested(1000)),
    graph("nested-30", "graphs within graphs, as deep as protobuf allows", "nests messages", lambda _: nested(30)),
    graph("nodes-empty", "four million empty nodes in 8 MB", PARTS, lambda _: bytes_around(b"\x0a\x00" * EMPTY_NODES)),
    graph("tensors-empty", f"{MANY:,} empty constants", PARTS, lambda _: bytes_around(b"\x2a\x00" * MANY)),
    graph("strings-empty", f"{MANY:,} empty strings in an attribute", PARTS, many_strings),
    graph(
        "nodes-10001", "10,001 nodes", "10000 is the limit", lambda g: g.graph([node("Abs", ["rows"], f"n{at}") for at in range(10_001)])
    ),
    graph("inputs-many", "a node with 1,001 inputs", "more than 1000 inputs", lambda g: g.first(node("Concat", ["x"] * 1001, axis=1))),
)


# ---- what other parsers might read otherwise


def appended(content: bytes) -> Callable[[Ground], bytes]:
    return lambda ground: ground.graph() + content


NOT_AS_WRITTEN = "not as ONNX itself writes it"
FORMS = (
    graph("unknown-field", "a field that no ONNX has", NOT_AS_WRITTEN, appended(b"\xf8\xff\x07\x01")),
    graph("unknown-message", "a message that no ONNX has", NOT_AS_WRITTEN, appended(b"\xfa\xff\x07\x04evil")),
    graph("two-graphs", "a second graph, which parsers merge into the first", NOT_AS_WRITTEN, lambda ground: ground.graph() * 2),
    graph("field-twice", "two IR versions, of which the last one counts", NOT_AS_WRITTEN, appended(b"\x08\x08")),
    graph("varint-long", "a number in more bytes than it needs", NOT_AS_WRITTEN, lambda g: b"\x08\x88\x00" + g.graph()[2:]),
    graph("varint-endless", "a number without an end", "not an ONNX graph", appended(b"\x08" + b"\xff" * 20)),
    graph("group", "a form of protobuf that ONNX does not use", "not an ONNX graph", appended(b"\x0b\x0c")),
    graph("cut-off", "its last field is longer than the file", "cut off", lambda ground: ground.graph()[:-3]),
    graph("length-beyond", "a graph that says it has 2^62 bytes", "cut off", lambda _: b"\x08\x08\x3a" + varint(1 << 62)),
)

# ---- trees that are none


def deep_chain(depth: int) -> dict[str, Any]:
    """Each branch has a leaf and the next branch."""
    n = 2 * depth + 1
    branches = [at % 2 == 0 and at < n - 1 for at in range(n)]
    return {
        "nodes_treeids": [0] * n,
        "nodes_nodeids": list(range(n)),
        "nodes_featureids": [0] * n,
        "nodes_modes": ["BRANCH_LEQ" if one else "LEAF" for one in branches],
        "nodes_values": [0.5] * n,
        "nodes_truenodeids": [at + 1 if one else 0 for at, one in enumerate(branches)],
        "nodes_falsenodeids": [at + 2 if one else 0 for at, one in enumerate(branches)],
        "nodes_missing_value_tracks_true": None,
        "class_ids": [0],
        "class_treeids": [0],
        "class_nodeids": [n - 1],
        "class_weights": [1.0],
    }


def trees(name: str, how: str, message: str, **changes: Any) -> Hostile:
    return graph(f"trees-{name}", how, message, lambda ground: ground.with_trees(**changes))


BRANCHES = ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"]
NO_TREES = "the trees are no trees"
TREES = (
    trees(
        "cycle",
        "a node whose child is its parent",
        NO_TREES,
        nodes_modes=BRANCHES,
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 2, 0],
    ),
    trees("own-child", "a node that is its own child", NO_TREES, nodes_truenodeids=[0, 0, 0]),
    trees("two-parents", "a leaf with two parents", NO_TREES, nodes_truenodeids=[2, 0, 0]),
    trees(
        "circle-apart",
        "a circle that no root leads to",
        "two parents|circles",
        **{
            "nodes_treeids": [0] * 5,
            "nodes_nodeids": [0, 1, 2, 3, 4],
            "nodes_featureids": [0] * 5,
            "nodes_values": [0.5] * 5,
            "nodes_modes": ["LEAF", "BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF"],
            "nodes_truenodeids": [0, 2, 1, 0, 0],
            "nodes_falsenodeids": [0, 3, 4, 0, 0],
            "nodes_missing_value_tracks_true": None,
            "class_nodeids": [3, 4],
        },
    ),
    trees("child-missing", "a child that is not there", "child that is not there", nodes_truenodeids=[77, 0, 0]),
    trees("child-negative", "a child numbered -1", "below 0 or too large", nodes_truenodeids=[-1, 0, 0]),
    trees("child-of-another", "a child in another tree", "child that is not there", nodes_treeids=[0, 1, 0]),
    trees("node-twice", "two nodes of one number", "two nodes of one number", nodes_nodeids=[0, 1, 1]),
    trees("number-huge", "a node numbered 2^62", "below 0 or too large", nodes_nodeids=[0, 1, 1 << 62]),
    trees("feature-out-of-range", "looks a gigabyte behind the row", "not among the", nodes_featureids=[FAR, 0, 0]),
    trees("feature-negative", "looks before the row", "not among the", nodes_featureids=[-FAR, 0, 0]),
    trees("lengths", "fewer thresholds than nodes", "not of one length", nodes_values=[0.5]),
    trees("lengths-of-leaves", "more weights than leaves", "not of one length", class_weights=[1.0] * 1000),
    trees("empty", "no node at all", "not of one length", **{f"nodes_{name}": None for name in ("treeids", "nodeids", "modes", "values")}),
    trees("weight-of-branch", "a weight of what is no leaf", "no leaf", class_nodeids=[0, 2]),
    trees("weight-nowhere", "a weight of a leaf that is not there", "no leaf", class_nodeids=[1, FAR]),
    trees("weight-nan", "a weight that is no number", "weight that is no number", class_weights=[float("nan"), 1.0]),
    trees("class-out-of-range", "writes a gigabyte behind the scores", "not among the 2", class_ids=[0, FAR]),
    trees("classes-million", "a million classes", "two classes", classlabels_int64s=list(range(1_000_000))),
    trees("class-names", "classes called by strings", "may not use", classlabels_int64s=None, classlabels_strings=["a", "b"]),
    trees("base-values", "more base values than classes", "more base values", base_values=[0.5] * 1000),
    trees("mode-unknown", "a comparison that there is not", "kind that there is not", nodes_modes=["BRANCH_EVIL", "LEAF", "LEAF"]),
    trees("float-numbers", "nodes numbered by floats", "no integer|not of one length", nodes_nodeids=[0.0, 1.5, 2.0]),
    trees("deep", "100,000 deep, which overflows the runtime's stack", "parts|deep", **deep_chain(90_000)),
    trees("deep-501", "deeper than any training makes them", "500 deep", **deep_chain(501)),
    trees("huge", f"{MANY:,} nodes", PARTS, nodes_modes=["LEAF"] * MANY),
    graph(
        "trees-of-other-rows",
        "trees that read something else than the rows",
        "must read 'rows'",
        lambda g: g.graph([node("Abs", ["rows"], "a"), *reading(g.trees(), "a")], [constant("positive", [1])]),
    ),
    graph("trees-targets", "a regression with 10^9 targets", "one target", lambda g: g.graph([targets(FAR)])),
)


def reading(nodes: list[NodeProto], name: str) -> list[NodeProto]:
    nodes[0].input[0] = name
    return nodes


def targets(number: int) -> NodeProto:
    told = {"nodes_treeids": [0], "nodes_nodeids": [0], "nodes_featureids": [0], "nodes_modes": ["LEAF"], "nodes_values": [0.0]}
    told |= {"nodes_truenodeids": [0], "nodes_falsenodeids": [0], "target_treeids": [0], "target_nodeids": [0], "target_ids": [0]}
    return helper.make_node(
        "TreeEnsembleRegressor", ["rows"], ["y"], name="t", domain="ai.onnx.ml", n_targets=number, target_weights=[0.5], **told
    )


# ---- ends, versions, names


def inputs(*told: Any) -> Callable[[Ground], bytes]:
    return lambda ground: ground.graph(inputs=list(told))


def outputs(*told: Any) -> Callable[[Ground], bytes]:
    return lambda ground: ground.graph(outputs=list(told))


def output_of(name: str) -> Callable[[Ground], bytes]:
    return lambda ground: ground.edited(lambda model: setattr(model.graph.output[0], "name", name))


COLUMNS = "fixed number of columns"
COLUMN = "one probability a row"
ENDS = (
    graph("input-name", "an input of another name", "one input called", inputs(value("features", [None, 2]))),
    graph("input-none", "no input", "one input called", inputs()),
    graph("input-two", "a second input", "one input called", inputs(value("rows", [None, 2]), value("more", [None, 2]))),
    graph("input-integers", "an input of integers", "not a float tensor", inputs(value("rows", [None, 2], TensorProto.INT64))),
    graph("input-strings", "an input of strings", "not a float tensor", inputs(value("rows", [None, 2], TensorProto.STRING))),
    graph("input-open", "an input of any width", COLUMNS, inputs(value("rows", [None, None]))),
    graph("input-negative", "an input of -2 columns", COLUMNS, inputs(value("rows", [None, -2]))),
    graph("input-wide", "an input of 10^12 columns", COLUMNS, inputs(value("rows", [None, 10**12]))),
    graph("input-cube", "an input of three dimensions", COLUMNS, inputs(value("rows", [None, 2, 2]))),
    graph(
        "input-fixed-rows",
        "takes 64 rows and no other number",
        "number of rows open",
        lambda g: inputs(value("rows", [64, len(g.names)]))(g),
    ),
    graph(
        "input-other-width",
        "another width than the manifest's",
        "the manifest names",
        inputs(value("rows", [None, 99])),
        refused_by="manifest",
    ),
    graph("output-none", "no output", "must have one output", outputs()),
    graph("output-two", "a second output", "must have one output", outputs(value("y", [None, 1]), value("label", [None]))),
    graph("output-classes", "a column for each of three classes", COLUMN, outputs(value("y", [None, 3]))),
    graph("output-scalar", "one number for all rows", COLUMN, outputs(value("y", []))),
    graph("output-fixed-rows", "gives 64 numbers, always", "number of rows open", outputs(value("y", [64, 1]))),
    graph("output-integers", "labels in place of probabilities", "not a float tensor", outputs(value("y", [None, 1], TensorProto.INT64))),
    graph("output-missing", "an output that nothing makes", "made by no node", output_of("nowhere")),
    graph("output-constant", "an output that is a constant", "made by no node", output_of("positive")),
    graph("output-input", "an output that is the input", "made by no node", output_of("rows")),
    graph(
        "value-negative",
        "a value of a negative shape",
        "shape that nothing has",
        lambda g: g.edited(lambda m: m.graph.value_info.append(value("both", [-5]))),
    ),
)


def repeated(**versions: int) -> Callable[[ModelProto], object]:
    return lambda model: model.opset_import.extend([helper.make_opsetid(name.replace("_", "."), told) for name, told in versions.items()])


VERSIONS = (
    graph("opset-old", "operators of 2017", "export it for", opsets(onnx=1, ai_onnx_ml=1)),
    graph("opset-later", "operators of a later time", "export it for", opsets(onnx=999, ai_onnx_ml=3)),
    graph("opset-negative", "operators of version -1", "export it for", opsets(onnx=-1, ai_onnx_ml=3)),
    graph("opset-twice", "one domain under two names", "one domain of operators twice", lambda g: g.edited(repeated(ai_onnx=14))),
    graph("ir-absurd", "an IR version of 10^9", "of IR version", lambda ground: ground.graph(ir_version=10**9)),
    graph("ir-zero", "an IR version of 0", "of IR version", lambda ground: ground.graph(ir_version=0)),
    graph("ir-negative", "a negative IR version", "of IR version", lambda ground: ground.graph(ir_version=-1)),
)


def first_node(**fields: Any) -> Callable[[Ground], bytes]:
    """An honest graph whose last node has these fields."""

    def edit(model: ModelProto) -> None:
        for name, told in fields.items():
            setattr(model.graph.node[1], name, told)

    return lambda ground: ground.edited(edit)


def properties(where: Callable[[ModelProto], Any]) -> Callable[[Ground], bytes]:
    """What a runtime may take for its settings."""
    told = {"key": "ort_config", "value": '{"session_options": {"enable_profiling": true}}'}
    return lambda ground: ground.edited(lambda model: where(model).metadata_props.add(**told))


def attribute(**fields: Any) -> Callable[[Ground], bytes]:
    return lambda ground: ground.edited(lambda model: model.graph.node[1].attribute.add(**fields))


UNPRINTABLE = "cannot be printed"
FIELD = "has the field"
NAMES = (
    graph(
        "cycle",
        "two nodes that read one another",
        "nothing before it makes",
        lambda g: g.first(node("Add", ["x", "b"], "a"), node("Abs", ["a"], "b"), node("Abs", ["b"])),
    ),
    graph("self-loop", "a node that reads itself", "nothing before it makes", lambda g: g.first(node("Add", ["x", "y"]))),
    graph("name-nowhere", "reads what nothing makes", "nothing before it makes", lambda g: g.first(node("Sigmoid", ["z"]))),
    graph("name-twice", "two nodes that make one name", "made twice", lambda g: g.first(node("Abs", ["x"]), node("Exp", ["x"]))),
    graph(
        "name-of-input",
        "a constant in place of the rows",
        "made twice",
        lambda g: g.first(node("Sigmoid", ["x"]), constants=[constant("rows", [[1.0]])]),
    ),
    graph(
        "name-of-constant",
        "two constants of one name",
        "made twice",
        lambda g: g.first(node("Sigmoid", ["x"]), constants=[constant("first", [1])]),
    ),
    graph(
        "name-empty", "a constant without a name", "has no name", lambda g: g.first(node("Sigmoid", ["x"]), constants=[constant("", [1])])
    ),
    graph("name-escape-codes", "a name that rewrites the terminal", UNPRINTABLE, first_node(name="\x1b[2J\x1b[H")),
    graph("name-lines", "a name that forges lines of a log", UNPRINTABLE, first_node(name="keep\n{level: error}")),
    graph("name-endless", "a name of 10 MB", UNPRINTABLE, first_node(name="n" * (10 << 20))),
    graph("name-backwards", "a name that is shown backwards", UNPRINTABLE, first_node(name="\u202exnno")),
    graph(
        "producer-escape-codes", "a producer that rewrites the terminal", UNPRINTABLE, lambda g: g.graph(producer_name="\x1b]0;owned\x07")
    ),
    graph("properties", "settings for the runtime, in the model", FIELD, properties(lambda model: model)),
    graph("properties-of-graph", "settings for the runtime, in the graph", FIELD, properties(lambda model: model.graph)),
    graph("properties-of-node", "settings for the runtime, in a node", FIELD, properties(lambda model: model.graph.node[0])),
    graph("overload", "an operator under a second name", FIELD, first_node(overload="evil")),
    graph("doc-string", "10 MB of words", FIELD, first_node(doc_string="w" * (10 << 20))),
    graph(
        "quantization",
        "tensors that are named a second time",
        FIELD,
        lambda g: g.edited(lambda m: m.graph.quantization_annotation.add(tensor_name="x")),
    ),
    graph("configuration", "a layout over many devices", FIELD, lambda g: g.edited(lambda m: m.configuration.add(name="c", num_devices=9))),
    graph("attribute-reference", "an attribute of a function that there is not", FIELD, attribute(name="r", ref_attr_name="evil", type=1)),
    graph("attribute-twice", "one attribute with two values", "one attribute twice", attribute(name="axis", i=0, type=2)),
    graph(
        "cast-to-string",
        "numbers into strings",
        "no number of a usual size",
        lambda g: g.first(node("Cast", ["x"], "s", to=8), node("Cast", ["s"], to=1)),
    ),
    graph(
        "index-from-row",
        "a row says which column is taken",
        "not constant",
        lambda g: g.first(node("Cast", ["x"], "i", to=7), node("Gather", ["rows", "i"], axis=1)),
    ),
    graph(
        "shape-from-row",
        "a row says which shape is made",
        "not constant",
        lambda g: g.first(node("Cast", ["x"], "i", to=7), node("Reshape", ["rows", "i"])),
    ),
)

GRAPHS = (*EXTERNAL, *CODE, *SIZES, *FORMS, *TREES, *ENDS, *VERSIONS, *NAMES)
