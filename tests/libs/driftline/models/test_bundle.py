"""Bundles: what was signed is what is loaded, or nothing is."""

from __future__ import annotations

import hashlib
import json

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from onnx import TensorProto, helper, numpy_helper

from driftline.errors import Invalid
from driftline.models.bundle import MODELS_MAX, BundleStore, Manifest, generate_keys, load_private_key, load_public_key
from driftline.models.reference import make_reference, medians

NAMES = ("delay", "wind")


def graph(external=False, domain=""):
    """The sigmoid of the first feature."""
    first = numpy_helper.from_array(np.array([0], np.int64), "first")
    if external:
        first.ClearField("raw_data")
        first.data_location = TensorProto.EXTERNAL
        first.external_data.add(key="location", value="elsewhere")
    nodes = [helper.make_node("Gather", ["rows", "first"], ["x"], axis=1), helper.make_node("Sigmoid", ["x"], ["y"], domain=domain)]
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    whole = helper.make_graph(nodes, "g", [rows], [out], [first])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()


def manifest(onnx, **changes):
    matrix = np.array([[1, np.nan], [2, np.nan]], np.float32)
    values = {
        "model": "flights-1",
        "layout": "abc",
        "names": NAMES,
        "recipe": {"kind": "lightgbm"},
        "seed": 7,
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "threshold": 0.5,
        "medians": medians(NAMES, matrix),
        "reference": make_reference(NAMES, matrix, np.array([0.5], np.float32)),
        "dispersion": 1.0,
        "base_rate": 0.25,
        "dataset": {"ranges": {"events": {"0": [0, 2]}}, "digest": "d", "rows": 2, "positives": 1},
        "metrics": {"auc": None},
        "trained_at": 1,
        "trigger": "first",
        "versions": {},
    }
    return Manifest(**(values | changes))


@pytest.fixture
def key():
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def store(tmp_path, key):
    return BundleStore(tmp_path / "models", key.public_key())


@pytest.fixture
def digest(store, key):
    return store.put(manifest(graph()), graph(), key)


def test_a_bundle_comes_back_as_it_was_put(store, digest):
    """
    The digest names manifest and graph, and the model scores with the graph.
    """
    bundle = store.get(digest)
    assert (bundle.manifest, bundle.onnx, bundle.digest) == (manifest(graph()), graph(), digest)
    model = store.model(digest)
    assert model.score(np.array([[0, 1]], np.float32)).tolist() == [0.5]
    assert np.array_equal(model.medians, np.array([1, np.nan], np.float32), equal_nan=True)
    assert store.model(digest) is model
    assert store.digests() == [digest]


def test_the_digest_depends_on_what_is_in_the_manifest_and_on_nothing_else():
    """
    The order in which a dict was filled is not part of it; every value is.
    """
    one = manifest(graph(), versions={"a": "1", "b": "2"})
    same = manifest(graph(), versions={"b": "2", "a": "1"})
    assert one.digest() == same.digest()
    assert one.digest() != manifest(graph(), versions={"a": "1", "b": "3"}).digest()
    assert json.loads(one.canonical())["versions"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "signature"])
def test_one_altered_byte_anywhere_is_refused(store, digest, tmp_path, name):
    """
    Whichever file was touched.
    """
    path = tmp_path / "models" / digest / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Invalid):
        store.get(digest)


def test_a_manifest_that_still_reads_well_is_refused_when_it_was_altered(store, digest, tmp_path):
    """
    Another decision threshold fits the graph as well as the one that was signed.
    """
    path = tmp_path / "models" / digest / "manifest.json"
    told = store.get(digest).manifest
    path.write_bytes(msgspec.structs.replace(told, threshold=told.threshold + 0.25).canonical())
    with pytest.raises(Invalid, match="altered"):
        store.get(digest)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "signature"])
def test_a_bundle_that_lacks_a_file_is_refused(store, digest, tmp_path, name):
    """
    An unsigned bundle among them.
    """
    (tmp_path / "models" / digest / name).unlink()
    with pytest.raises(Invalid, match=name):
        store.get(digest)


def test_a_bundle_that_another_key_signed_is_refused(digest, tmp_path):
    """
    A signature must be that of the trusted key.
    """
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(Invalid, match="not signed by the trusted key"):
        BundleStore(tmp_path / "models", stranger.public_key()).get(digest)


def test_a_signature_of_another_bundle_is_refused(store, digest, tmp_path, key):
    """
    Signatures cannot be moved from one bundle to another.
    """
    other = store.put(manifest(graph(), model="flights-2"), graph(), key)
    (tmp_path / "models" / digest / "signature").write_bytes((tmp_path / "models" / other / "signature").read_bytes())
    with pytest.raises(Invalid, match="not signed"):
        store.get(digest)


def test_a_graph_of_another_bundle_is_refused(store, digest, tmp_path, key):
    """
    The manifest is genuine and so is the graph, but they do not belong together.
    """
    graph_of_other = graph(domain="ai.onnx")
    other = store.put(manifest(graph_of_other), graph_of_other, key)
    (tmp_path / "models" / digest / "model.onnx").write_bytes((tmp_path / "models" / other / "model.onnx").read_bytes())
    with pytest.raises(Invalid, match="graph was altered"):
        store.get(digest)


@pytest.mark.parametrize("onnx", [graph(external=True), graph(domain="com.example")], ids=["external data", "foreign domain"])
def test_a_signed_bundle_with_an_unsafe_graph_is_refused(store, tmp_path, key, onnx):
    """
    Not even our own key makes a graph safe: it can neither be put nor read.
    """
    unsafe = manifest(onnx)
    with pytest.raises(Invalid):
        store.put(unsafe, onnx, key)
    folder = tmp_path / "models" / unsafe.digest()
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(unsafe.canonical())
    (folder / "model.onnx").write_bytes(onnx)
    (folder / "signature").write_bytes(key.sign(b"driftline bundle 1\n" + unsafe.digest().encode()))
    with pytest.raises(Invalid):
        store.get(unsafe.digest())


@pytest.mark.parametrize("wrong", ["", "../models", "0" * 63, "g" * 64, "/etc/passwd"])
def test_what_is_no_digest_names_no_bundle(store, wrong):
    """
    A digest comes from a topic, so it must not be able to name a path.
    """
    with pytest.raises(Invalid, match="64 hexadecimal digits"):
        store.get(wrong)


def test_without_a_trusted_key_nothing_is_read(tmp_path, digest):
    """
    Forgetting the key must not mean trusting everybody.
    """
    with pytest.raises(Invalid, match="DRIFTLINE_MODEL_PUBLIC_KEY"):
        BundleStore(tmp_path / "models", None).get(digest)


@pytest.mark.parametrize("changes", [{"names": ("a",), "medians": {"a": 0.0}}, {"medians": {}}, {"threshold": float("inf")}])
def test_a_manifest_that_does_not_fit_its_graph_cannot_be_put(store, key, changes):
    """
    Names, medians and threshold are checked against the graph before anything is written.
    """
    with pytest.raises(Invalid):
        store.put(manifest(graph(), **changes), graph(), key)
    assert store.digests() == []


def test_putting_twice_keeps_one_bundle_and_no_draft(store, digest, tmp_path, key):
    """
    A trainer that was killed after writing writes the same again.
    """
    assert store.put(manifest(graph()), graph(), key) == digest
    assert [path.name for path in (tmp_path / "models").iterdir()] == [digest]
    assert store.get(digest).digest == digest


def test_the_store_keeps_a_bounded_number_of_models_loaded(store, key):
    """
    The least recently used one goes.
    """
    digests = [store.put(manifest(graph(), model=f"flights-{number}"), graph(), key) for number in range(MODELS_MAX + 1)]
    first = store.model(digests[0])
    for digest in digests[1:]:
        store.model(digest)
    assert store.model(digests[-1]) is store.model(digests[-1])
    assert store.model(digests[0]) is not first


def test_a_pair_of_keys_is_written_and_read_again(tmp_path):
    """
    The private one readable by its owner alone.
    """
    secret, public = generate_keys(tmp_path / "keys")
    assert secret.stat().st_mode & 0o077 == 0
    load_public_key(public).verify(load_private_key(secret).sign(b"x"), b"x")


def test_keys_of_another_kind_or_of_none_are_refused_by_path(tmp_path):
    """
    The message names the file, never its content.
    """
    other = tmp_path / "ec.pem"
    other.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for wrong in (other, tmp_path / "none.pem"):
        with pytest.raises(Invalid, match=wrong.name):
            load_private_key(wrong)
    with pytest.raises(Invalid, match="no key in PEM"):
        load_public_key(other)


def test_a_manifest_with_an_unknown_field_is_of_another_version(store, tmp_path, key):
    """
    What this version does not understand it does not serve.
    """
    content = msgspec.json.encode({**msgspec.to_builtins(manifest(graph())), "later": 1}, order="sorted")
    digest = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "models" / digest
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(content)
    (folder / "model.onnx").write_bytes(graph())
    (folder / "signature").write_bytes(key.sign(b"driftline bundle 1\n" + digest.encode()))
    with pytest.raises(Invalid, match="not of this version"):
        store.get(digest)


def test_a_bundle_is_a_value():
    """
    Nothing can be changed after the checks.
    """
    with pytest.raises(AttributeError):
        manifest(graph()).model = "other"  # type: ignore[misc]
