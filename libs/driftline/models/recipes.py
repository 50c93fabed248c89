"""
From rows and labels to a graph: one function for each kind of recipe. Imported by the trainer alone, because LightGBM and
scikit-learn take a second to load.

A graph must say what the trained model says, on any float32 row, whatever the batch: `parity` and `invariant` prove it for
the rows at hand. The graphs are written node by node: a converter would have to be trusted with missing values (LightGBM
reads a missing value as 0 where training saw none missing) and with thresholds, which are doubles there and floats here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Protocol

import lightgbm
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from driftline.declaration import LightGBM, Logistic, Recipe
from driftline.errors import Invalid
from driftline.models import runtime
from driftline.models.onnx import INPUT, Session
from driftline.models.reference import medians

Matrix = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]

OUTPUT = "probability"
OPSET, ML_OPSET = 15, 3
IR_VERSION = 8
THREADS = 1  # the trees are the same with any number; more of them wait for one another on a machine that is busy, and lose
PROOF_CHUNKS = (1, 2, 3, 7, 64, 257)


class Fitted(Protocol):
    """A trained model, before and after export."""

    def onnx(self) -> bytes:
        """The graph: float rows in, one float probability a row out. The same model gives the same bytes."""

    def predict(self, matrix: Matrix) -> Probabilities:
        """What the library that trained it says of each row: the yardstick of parity."""


def fit(recipe: Recipe, matrix: Matrix, labels: npt.NDArray[Any], seed: int) -> Fitted:
    """
    Train `recipe` on rows (n, F), NaN where a feature is missing, with labels 0 and 1. The same input gives the same model.

    Raises Invalid when only one of the two labels occurs, or when the library refuses the data.
    """
    positives = int(np.count_nonzero(labels))
    if positives in (0, len(labels)):
        raise Invalid(f"{positives} of {len(labels)} rows are positive: nothing can be learned from one class")
    if isinstance(recipe, LightGBM):
        return FittedTrees(recipe, matrix, labels, seed)
    return FittedLogistic(recipe, matrix, labels)


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a manifest keeps it."""
    return {"kind": recipe.kind, **dataclasses.asdict(recipe)}


def recipe_of(description: Mapping[str, Any]) -> Recipe:
    """The recipe that a manifest describes. Raises Invalid for a kind that this version does not know."""
    kinds: dict[str, type[LightGBM] | type[Logistic]] = {LightGBM.kind: LightGBM, Logistic.kind: Logistic}
    known = kinds.get(str(description.get("kind")))
    if known is None:
        raise Invalid(f"no recipe is called {description.get('kind')!r}; there are {', '.join(sorted(kinds))}")
    return known(**{name: value for name, value in description.items() if name != "kind"})


def versions() -> dict[str, str]:
    """The libraries that decide the bytes of a graph. The others differ between Python versions and decide nothing."""
    return {name: version(name) for name in ("lightgbm", "onnx")}


def parity(fitted: Fitted, session: Session, matrix: Matrix) -> float:
    """The largest difference between trained and exported model on any row; infinite when the graph gave no number."""
    difference = np.abs(session.score(matrix).astype(np.float64) - fitted.predict(matrix))
    return float(np.max(difference, initial=0.0)) if np.isfinite(difference).all() else float("inf")


def invariant(session: Session, matrix: Matrix) -> bool:
    """Whether each row's score has the same bytes in one batch, alone, and in batches of several sizes."""
    return runtime.invariant(session, matrix, PROOF_CHUNKS)


class FittedTrees:
    """LightGBM, binary, thresholds rounded down to float32, which no float32 row can tell from the original."""

    def __init__(self, recipe: LightGBM, matrix: Matrix, labels: npt.NDArray[Any], seed: int) -> None:
        parameters = {
            "objective": "binary",
            "num_leaves": recipe.leaves,
            "learning_rate": recipe.learning_rate,
            "min_data_in_leaf": recipe.leaf_rows_min,
            "bagging_fraction": recipe.row_sample,
            "bagging_freq": 1,
            "feature_fraction": recipe.column_sample,
            "lambda_l2": recipe.l2,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": THREADS,
            "bin_construct_sample_cnt": max(len(matrix), 200_000),  # or a rare missing value would not be noticed
            "verbosity": -1,
        }
        self._features = matrix.shape[1]
        try:
            self._booster = lightgbm.train(parameters, lightgbm.Dataset(matrix, labels), recipe.trees)
        except lightgbm.basic.LightGBMError as error:
            raise Invalid(f"LightGBM refuses the data: {error}") from error

    def predict(self, matrix: Matrix) -> Probabilities:
        """Probability of each row, by LightGBM."""
        return np.asarray(self._booster.predict(matrix, num_threads=THREADS), np.float64)

    def onnx(self) -> bytes:
        """One TreeEnsembleClassifier, and a Gather that keeps the probability of the positive class."""
        trees = [info["tree_structure"] for info in self._booster.dump_model()["tree_info"]]
        nodes = [row for number, tree in enumerate(trees) for row in _tree_rows(number, tree)]
        leaves = [node for node in nodes if node["modes"] == "LEAF"]
        columns: dict[str, Any] = {f"nodes_{name}": [node[name] for node in nodes] for name in NODE_FIELDS}
        ensemble = helper.make_node(
            "TreeEnsembleClassifier",
            [INPUT],
            ["label", "probabilities"],
            name="trees",
            domain="ai.onnx.ml",
            classlabels_int64s=[0, 1],
            post_transform="LOGISTIC",
            class_ids=[0] * len(leaves),
            class_treeids=[leaf["treeids"] for leaf in leaves],
            class_nodeids=[leaf["nodeids"] for leaf in leaves],
            class_weights=[leaf["weight"] for leaf in leaves],
            **columns,
        )
        keep = helper.make_node("Gather", ["probabilities", "positive"], [OUTPUT], name="keep", axis=1)
        return _graph([ensemble, keep], {"positive": np.array([1], np.int64)}, self._features)


NODE_FIELDS = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")


def _tree_rows(number: int, tree: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of one tree, numbered from its root on, as TreeEnsembleClassifier lists them."""
    waiting: list[Mapping[str, Any]] = [tree]
    for at, node in enumerate(waiting):  # the list grows while it is walked, so that a node's place in it is its number
        row = {"treeids": number, "nodeids": at, "featureids": 0, "modes": "LEAF", "values": 0.0}
        row |= {"truenodeids": 0, "falsenodeids": 0, "missing_value_tracks_true": 0, "weight": 0.0}
        if "split_feature" in node:
            _refuse_unknown(node)
            row |= {"featureids": node["split_feature"], "modes": "BRANCH_LEQ", "values": float(round_down(node["threshold"]))}
            row |= {"truenodeids": len(waiting), "falsenodeids": len(waiting) + 1}
            row |= {"missing_value_tracks_true": int(_missing_goes_left(node))}
            waiting += [node["left_child"], node["right_child"]]
        else:
            row["weight"] = float(node["leaf_value"])
        yield row


def round_down(threshold: float) -> np.float32:
    """The largest float32 that is not above `threshold`: every float32 falls on the same side of both."""
    with np.errstate(over="ignore"):  # above all float32, infinity is rounded down to the largest
        rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))


def _refuse_unknown(node: Mapping[str, Any]) -> None:
    if node["decision_type"] != "<=" or node["missing_type"] not in ("NaN", "None"):
        raise Invalid(f"a split of the kind {node['decision_type']} with missing type {node['missing_type']} has no place in a graph")


def _missing_goes_left(node: Mapping[str, Any]) -> bool:
    """Where training saw none missing, LightGBM reads a missing value as 0."""
    return bool(node["default_left"]) if node["missing_type"] == "NaN" else float(node["threshold"]) >= 0.0


class FittedLogistic:
    """Logistic regression on standardised features, the missing ones at their median."""

    def __init__(self, recipe: Logistic, matrix: Matrix, labels: npt.NDArray[Any]) -> None:
        names = [str(at) for at in range(matrix.shape[1])]
        middle = medians(names, matrix)
        self._median = np.array([middle[name] or 0.0 for name in names], np.float32)
        present = self._imputed(matrix)
        self._mean = present.mean(axis=0)
        spread = present.std(axis=0)
        self._spread = np.where(spread > 0, spread, 1.0)
        model = LogisticRegression(C=recipe.c, max_iter=recipe.iterations_max)
        model.fit((present - self._mean) / self._spread, labels)
        self._weights = model.coef_[0] / self._spread
        self._bias = float(model.intercept_[0])

    def _imputed(self, matrix: Matrix) -> Probabilities:
        return np.where(np.isnan(matrix), self._median, matrix).astype(np.float64)

    def predict(self, matrix: Matrix) -> Probabilities:
        """Probability of each row, in double precision."""
        return np.asarray(expit((self._imputed(matrix) - self._mean) @ self._weights + self._bias), np.float64)

    def onnx(self) -> bytes:
        """
        Where, Sub, MatMul, Add, Sigmoid. MatMul with a column keeps a row's order of additions whatever the batch, ReduceSum does
        not (measured). Values are centred first, or float32 would lose what large means leave.
        """
        constants = {
            "median": self._median,
            "mean": self._mean.astype(np.float32),
            "weights": self._weights.astype(np.float32)[:, None],
            "bias": np.array([self._bias], np.float32),
        }
        steps = [
            ("IsNaN", [INPUT], "missing"),
            ("Where", ["missing", "median", INPUT], "present"),
            ("Sub", ["present", "mean"], "centred"),
            ("MatMul", ["centred", "weights"], "product"),
            ("Add", ["product", "bias"], "logit"),
            ("Sigmoid", ["logit"], OUTPUT),
        ]
        nodes = [helper.make_node(kind, takes, [gives], name=gives) for kind, takes, gives in steps]
        return _graph(nodes, constants, len(self._median))


def _graph(nodes: list[NodeProto], constants: Mapping[str, npt.NDArray[Any]], features: int) -> bytes:
    rows = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [None, features])
    out = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None, 1])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "driftline", [rows], [out], tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, producer_name="driftline", ir_version=IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))
