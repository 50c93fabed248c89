"""
Whether the attributes of a tree ensemble are trees: the runtime follows their numbers as pointers, deep chains by recursion, so
what is no tree can end the process that loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from driftline.errors import Invalid

Ints = npt.NDArray[np.int64]

DEPTH_MAX = 500  # LightGBM with L leaves makes at most L - 1; a chain of 200,000 overflows the runtime's stack
ID_MAX = (1 << 31) - 1
MODES = frozenset({"BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "LEAF"})
COLUMNS = ("featureids", "truenodeids", "falsenodeids", "values", "modes")  # of the nodes, beside treeids and nodeids
OPTIONAL_COLUMNS = ("missing_value_tracks_true", "hitrates")
OTHERS = {"classlabels_int64s", "post_transform", "base_values", "n_targets", "aggregate_function"}


def check(attributes: Mapping[str, Any], features: int) -> None:
    """Raises Invalid unless `attributes`, as lists by name, are whole trees that look at the first `features` columns alone."""
    kind = "class" if "class_ids" in attributes else "target"
    weights = ("treeids", "nodeids", "ids", "weights")
    known = {f"nodes_{name}" for name in ("treeids", "nodeids", *COLUMNS, *OPTIONAL_COLUMNS)} | {f"{kind}_{name}" for name in weights}
    if unknown := attributes.keys() - known - OTHERS:
        raise Invalid(f"the trees have the attribute {min(unknown)!r}, which a model here may not use")
    nodes = _columns(attributes, "nodes", ("treeids", "nodeids", *COLUMNS), OPTIONAL_COLUMNS)
    leaves = _columns(attributes, kind, weights, ())
    keys = _keys(nodes, "a node")
    if len(np.unique(keys)) < len(keys):
        raise Invalid("the trees have two nodes of one number")
    is_leaf = np.array([mode == b"LEAF" for mode in nodes["modes"]], np.bool_)
    if not {mode.decode(errors="replace") for mode in nodes["modes"]} <= MODES:
        raise Invalid("the trees have a node of a kind that there is not")
    looked_at = _integers(nodes["featureids"], "feature")[~is_leaf]
    if looked_at.size and not 0 <= looked_at.min() <= looked_at.max() < features:
        raise Invalid(f"the trees look at a feature that is not among the {features}")
    _check_shape(nodes, keys, is_leaf)
    _check_leaves(leaves, keys[is_leaf], _outputs(attributes, kind))


def _columns(attributes: Mapping[str, Any], prefix: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, list[Any]]:
    """Lists of one length. An empty optional one is left out."""
    found = {name: attributes.get(f"{prefix}_{name}") for name in (*needed, *optional)}
    columns = {name: value for name, value in found.items() if value or name in needed}
    lengths = {len(value) if isinstance(value, list) else 0 for value in columns.values()}
    if len(lengths) > 1 or not max(lengths):
        raise Invalid(f"the lists {prefix}_* of the trees are not of one length")
    return {name: value for name, value in columns.items() if isinstance(value, list)}


def _integers(values: list[Any], what: str) -> Ints:
    if not all(type(value) is int for value in values):
        raise Invalid(f"the trees number {what} by something that is no integer")
    return np.array(values, np.int64)


def _keys(columns: Mapping[str, list[Any]], what: str, nodes: str = "nodeids") -> Ints:
    """One number for each pair of tree and node."""
    tree, node = _integers(columns["treeids"], what), _integers(columns[nodes], what)
    if min(tree.min(), node.min()) < 0 or max(tree.max(), node.max()) > ID_MAX:
        raise Invalid("the trees have numbers below 0 or too large")
    keys: Ints = tree * (ID_MAX + 1) + node
    return keys


def _check_shape(nodes: Mapping[str, list[Any]], keys: Ints, is_leaf: npt.NDArray[np.bool_]) -> None:
    """Every branch has two children in its tree, every node but the first of each tree has one parent, and no chain is endless."""
    branches = np.flatnonzero(~is_leaf)
    order = np.argsort(keys)
    children = []
    for side in ("truenodeids", "falsenodeids"):
        named = _keys(nodes, "a child", side)[branches]
        place = np.minimum(np.searchsorted(keys[order], named), len(keys) - 1)
        if not np.array_equal(keys[order][place], named):
            raise Invalid("the trees name a child that is not there")
        children.append(order[place])
    parents = np.bincount(np.concatenate(children), minlength=len(keys))
    trees = np.array(nodes["treeids"], np.int64)
    first = np.sort(np.unique(trees, return_index=True)[1])
    if parents.max() > 1 or not np.array_equal(np.flatnonzero(parents == 0), first):
        raise Invalid("the trees are no trees: a node has two parents, or a tree has no root, or not in the first place")
    of = np.full((len(keys), 2), -1, np.int64)
    of[branches] = np.stack(children, axis=1)
    level, reached = first, 0
    for _ in range(DEPTH_MAX):
        reached += len(level)
        below = of[level].reshape(-1)
        level = below[below >= 0]
        if not level.size:
            break
    if level.size:
        raise Invalid(f"the trees are more than {DEPTH_MAX} deep")
    if reached != len(keys):
        raise Invalid("the trees have nodes that run in circles")


def _outputs(attributes: Mapping[str, Any], kind: str) -> int:
    """How many numbers a row gets. A model here says one thing: two classes, or one target."""
    if kind == "class":
        labels = attributes.get("classlabels_int64s")
        if not isinstance(labels, list) or len(labels) != 2:
            raise Invalid("the trees must have two classes, numbered by classlabels_int64s")
    elif attributes.get("n_targets") != 1 or "classlabels_int64s" in attributes:
        raise Invalid("the trees must have one target")
    outputs = 2 if kind == "class" else 1
    base = attributes.get("base_values", [])
    if not isinstance(base, list) or len(base) not in (0, 1, outputs):
        raise Invalid("the trees have more base values than outputs")
    return outputs


def _check_leaves(leaves: Mapping[str, list[Any]], keys: Ints, outputs: int) -> None:
    """Every weight belongs to a leaf and to an output, and is a number."""
    if not np.isin(_keys(leaves, "a leaf"), keys).all():
        raise Invalid("the trees give a weight to what is no leaf")
    ids = _integers(leaves["ids"], "an output")
    if not 0 <= ids.min() <= ids.max() < outputs:
        raise Invalid(f"the trees give a weight to an output that is not among the {outputs}")
    if not all(type(weight) is float for weight in leaves["weights"]) or not np.isfinite(leaves["weights"]).all():
        raise Invalid("the trees have a weight that is no number")
