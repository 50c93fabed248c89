"""What a graph may contain, and what a session promises."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from driftline.errors import Invalid
from driftline.models.onnx import GRAPH_BYTES_MAX, Session, check_graph, cost
from driftline.models.runtime import ROWS_MAX


def graph(nodes=None, constants=(), inputs=None, outputs=None, domains=("", "ai.onnx.ml")):
    """A small allowed graph: the sigmoid of the first of two features, unless told otherwise."""
    nodes = nodes or [helper.make_node("Gather", ["rows", "first"], ["x"], axis=1), helper.make_node("Sigmoid", ["x"], ["y"])]
    constants = constants or [numpy_helper.from_array(np.array([0], np.int64), "first")]
    inputs = inputs or [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 2])]
    outputs = outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])]
    opsets = [helper.make_opsetid(domain, 15 if not domain else 3) for domain in domains]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=opsets, ir_version=8)


def encoded(model):
    return model.SerializeToString()


def branch():
    inner = helper.make_graph([helper.make_node("Identity", ["rows"], ["z"])], "inner", [], [helper.make_tensor_value_info("z", 1, None)])
    return helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)


def hidden_branch():
    inner = helper.make_graph([helper.make_node("Identity", ["rows"], ["z"])], "inner", [], [])
    node = helper.make_node("Sigmoid", ["rows"], ["y"])
    node.attribute.append(helper.make_attribute("body", inner))
    return node


def external(name="first"):
    tensor = numpy_helper.from_array(np.array([0], np.int64), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def external_attribute():
    return helper.make_node("Constant", [], ["y"], value=external())


def sparse():
    values = numpy_helper.from_array(np.array([1.0], np.float32), "first")
    where = numpy_helper.from_array(np.array([0], np.int64), "where")
    return helper.make_sparse_tensor(values, where, [5])


def with_sparse():
    model = graph()
    model.graph.sparse_initializer.append(sparse())
    return model


def with_function():
    model = graph()
    model.functions.append(helper.make_function("", "F", ["a"], ["b"], [], [helper.make_opsetid("", 15)]))
    return model


REFUSED = {
    "foreign domain": lambda: graph([helper.make_node("Evil", ["rows"], ["y"], domain="com.example")]),
    "foreign domains": lambda: graph(domains=("", "com.microsoft")),
    "If, which": lambda: graph([branch()]),
    "graph of its own": lambda: graph([hidden_branch()]),
    "Expand, which": lambda: graph([helper.make_node("Expand", ["rows", "first"], ["y"])]),
    "in another file": lambda: graph(constants=[external()]),
    "lies in another": lambda: graph([external_attribute()]),
    "holds sparse tensors": with_sparse,
    "a sparse tensor": lambda: graph([helper.make_node("Constant", [], ["y"], sparse_value=sparse())]),
    "functions or training": with_function,
    "one input called": lambda: graph(inputs=[helper.make_tensor_value_info("other", TensorProto.FLOAT, [None, 2])]),
    "fixed number of columns": lambda: graph(inputs=[helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, None])]),
    "not a float tensor": lambda: graph(inputs=[helper.make_tensor_value_info("rows", TensorProto.STRING, [None, 2])]),
    "must have one output": lambda: graph(outputs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in "xy"]),
    "one probability a row": lambda: graph(outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])]),
}


def test_a_plain_graph_is_accepted_and_tells_its_width():
    """
    What a recipe writes passes.
    """
    assert check_graph(encoded(graph())) == 2


@pytest.mark.parametrize("words", REFUSED)
def test_a_graph_is_refused_with_the_reason(words):
    """
    Each thing that reaches outside the file, hides another graph or is no column of probabilities is named.
    """
    with pytest.raises(Invalid, match=words):
        check_graph(encoded(REFUSED[words]()))


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x00" * 64, onnx.ModelProto().SerializeToString()])
def test_what_is_no_graph_is_refused(data):
    """
    Garbage does not get as far as the runtime.
    """
    with pytest.raises(Invalid):
        check_graph(data)


def test_a_graph_over_the_limit_is_refused_before_it_is_parsed():
    """
    Size is looked at first.
    """
    with pytest.raises(Invalid, match="limit"):
        check_graph(bytes(GRAPH_BYTES_MAX + 1))


def test_a_row_scores_the_same_bytes_in_any_batch():
    """
    Alone, padded to two, or among a thousand.
    """
    session = Session(encoded(graph()))
    matrix = np.random.default_rng(3).normal(size=(1000, 2)).astype(np.float32)
    whole = session.score(matrix)
    assert b"".join(session.score(matrix[at : at + 1]).tobytes() for at in range(1000)) == whole.tobytes()
    assert np.concatenate([session.score(matrix[:17]), session.score(matrix[17:])]).tobytes() == whole.tobytes()


def test_what_is_no_number_is_nan():
    """
    Infinity is as little of a score as NaN.
    """
    nodes = [helper.make_node("Gather", ["rows", "first"], ["x"], axis=1), helper.make_node("Log", ["x"], ["y"])]
    scores = Session(encoded(graph(nodes))).score(np.array([[1, 0], [0, 0], [-1, 0]], np.float32))
    assert scores[0] == 0.0
    assert np.isnan(scores[1:]).all()


def test_no_more_rows_are_scored_at_once_than_the_probe_tried(monkeypatch):
    """
    What a graph takes for a row was seen for so many rows, so more come in parts, with the same scores.
    """
    sizes = []
    scored = Session._scored
    monkeypatch.setattr(Session, "_scored", lambda self, matrix: sizes.append(len(matrix)) or scored(self, matrix))
    session = Session(encoded(graph()))
    matrix = np.linspace(-3, 3, 2 * 10_000, dtype=np.float32).reshape(-1, 2)
    assert len(session.score(matrix)) == 10_000
    assert sizes == [ROWS_MAX, ROWS_MAX, 10_000 - 2 * ROWS_MAX]


def test_no_rows_have_no_scores():
    """
    An empty part of a batch does not reach the runtime.
    """
    assert len(Session(encoded(graph())).score(np.empty((0, 2), np.float32))) == 0


def test_a_matrix_of_another_width_is_refused():
    """
    A row of another layout cannot be scored by accident.
    """
    with pytest.raises(Invalid, match="takes 2 features"):
        Session(encoded(graph())).score(np.zeros((3, 4), np.float32))


def test_a_graph_that_the_runtime_cannot_load_is_invalid():
    """
    An allowed operator with the wrong inputs is the graph's fault, not ours.
    """
    with pytest.raises(Invalid, match="runtime refuses"):
        Session(encoded(graph([helper.make_node("Sigmoid", ["rows", "first"], ["y"])])))


def test_the_cost_of_a_graph_is_how_many_numbers_it_holds():
    """
    A measure that is the same on any machine.
    """
    assert cost(encoded(graph())) == 1
