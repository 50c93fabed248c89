"""
Where hostile models are made: a store with an honest bundle in it, the keys of both sides, and the parts that files are made of.
Everything follows from constants, so that a model is the same in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from driftline.models.bundle import BundleStore, Manifest
from driftline.models.reference import make_reference, medians

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SIGNED_AS = b"driftline bundle 1\n"
MANIFEST, GRAPH, SIGNATURE = "manifest.json", "model.onnx", "signature"
SEED = 7


@dataclass(frozen=True)
class Ground:
    """A store in `folder`, for models of these features, and a place outside it that nothing may reach."""

    folder: Path
    names: tuple[str, ...] = ("delay", "wind")
    layout: str = "abc"
    model_name: str = "flights-1"

    @property
    def store(self) -> Path:
        return self.folder / "models"

    @property
    def outside(self) -> Path:
        place = self.folder / "outside"
        place.mkdir(exist_ok=True)
        return place

    def opened(self) -> BundleStore:
        """The store as inference opens it."""
        return BundleStore(self.store, trusts=KEY.public_key())

    def manifest(self, onnx: bytes, **changes: Any) -> Manifest:
        """An honest manifest of `onnx`, but for `changes`."""
        matrix = np.random.default_rng(SEED).normal(size=(200, len(self.names))).astype(np.float32)
        values: dict[str, Any] = {
            "model": self.model_name,
            "layout": self.layout,
            "names": self.names,
            "recipe": {"kind": "lightgbm"},
            "seed": SEED,
            "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
            "threshold": 0.5,
            "medians": dict(medians(self.names, matrix)),
            "reference": make_reference(self.names, matrix, np.array([0.25, 0.75], np.float32)),
            "dispersion": 1.0,
            "base_rate": 0.25,
            "dataset": {"rows": 200},
            "metrics": {"auc": 0.75},
            "trained_at": 1,
            "trigger": "first",
            "versions": {},
        }
        return Manifest(**(values | changes))

    def lay(self, manifest: bytes, onnx: bytes, *, key: Ed25519PrivateKey = KEY, signature: bytes | None = None) -> str:
        """Write a bundle past every check of `put`, signed by `key` unless a signature is given. Returns its digest."""
        digest = hashlib.sha256(manifest).hexdigest()
        place = self.store / digest
        place.mkdir(parents=True)
        signed = key.sign(SIGNED_AS + digest.encode()) if signature is None else signature
        for name, content in ((MANIFEST, manifest), (GRAPH, onnx), (SIGNATURE, signed)):
            (place / name).write_bytes(content)
        return digest

    def bundle(self, onnx: bytes, **changes: Any) -> str:
        """Signed by our own key, whatever `onnx` is."""
        return self.lay(self.manifest(onnx, **changes).canonical(), onnx)

    def honest(self) -> str:
        """A bundle that must pass everything."""
        return self.bundle(self.graph())

    def altered_json(self, **changes: Any) -> bytes:
        """An honest manifest of the honest graph with other values, which need not be of the manifest's types."""
        return msgspec.json.encode(msgspec.to_builtins(self.manifest(self.graph())) | changes, order="sorted")

    # ---- graphs

    def graph(self, nodes: Sequence[NodeProto] = (), constants: Sequence[TensorProto] = (), **changes: Any) -> bytes:
        """The bytes of `model`."""
        return bytes(self.model(nodes, constants, **changes).SerializeToString(deterministic=True))

    def model(self, nodes: Sequence[NodeProto] = (), constants: Sequence[TensorProto] = (), **changes: Any) -> ModelProto:
        """From rows to one column `y`: of `nodes` and `constants`, or of one honest tree."""
        if not nodes:
            nodes, constants = self.trees(), [constant("positive", [1])]
        inputs = changes.pop("inputs", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, len(self.names)])])
        outputs = changes.pop("outputs", [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])])
        opsets = changes.pop("opsets", {"": 15, "ai.onnx.ml": 3})
        ir_version = changes.pop("ir_version", 8)
        graph: GraphProto = helper.make_graph(list(nodes), "g", inputs, outputs, list(constants))
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **changes)

    def trees(self, **changes: Any) -> list[NodeProto]:
        """One tree of one split of the first feature, and the probability of its positive class; a change of None leaves out."""
        attributes: dict[str, Any] = {
            "nodes_treeids": [0, 0, 0],
            "nodes_nodeids": [0, 1, 2],
            "nodes_featureids": [0, 0, 0],
            "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
            "nodes_values": [0.5, 0.0, 0.0],
            "nodes_truenodeids": [1, 0, 0],
            "nodes_falsenodeids": [2, 0, 0],
            "nodes_missing_value_tracks_true": [1, 0, 0],
            "classlabels_int64s": [0, 1],
            "class_ids": [0, 0],
            "class_treeids": [0, 0],
            "class_nodeids": [1, 2],
            "class_weights": [-1.0, 1.0],
            "post_transform": "LOGISTIC",
        }
        told = {name: value for name, value in (attributes | changes).items() if value is not None}
        ensemble = helper.make_node("TreeEnsembleClassifier", ["rows"], ["label", "both"], name="trees", domain="ai.onnx.ml", **told)
        return [ensemble, helper.make_node("Gather", ["both", "positive"], ["y"], name="keep", axis=1)]

    def with_trees(self, **changes: Any) -> bytes:
        """A graph of such trees."""
        return self.graph(self.trees(**changes), [constant("positive", [1])])

    def edited(self, edit: Callable[[ModelProto], object], nodes: Sequence[NodeProto] = (), constants: Sequence[TensorProto] = ()) -> bytes:
        """A graph after `edit`, which may add what the helpers of onnx would not."""
        model = self.model(nodes, constants)
        edit(model)
        return bytes(model.SerializeToString(deterministic=True))

    def first(self, *nodes: NodeProto, constants: Sequence[TensorProto] = ()) -> bytes:
        """A graph whose nodes work on `x`, the first feature as a column."""
        take = helper.make_node("Gather", ["rows", "first"], ["x"], name="take", axis=1)
        return self.graph([take, *nodes], [constant("first", [0]), *constants])


def constant(name: str, values: Any, kind: Any = None) -> TensorProto:
    """A tensor; integers are int64 and others float32 unless `kind` says otherwise."""
    array = np.asarray(values)
    kind = kind or (np.int64 if array.dtype.kind == "i" else np.float32)
    return numpy_helper.from_array(array.astype(kind), name)


def node(operator: str, takes: Sequence[str], gives: str = "y", **attributes: Any) -> NodeProto:
    """A node that is called by what it does and makes."""
    return helper.make_node(operator, list(takes), [gives], name=f"{operator.lower()} {gives}", **attributes)
