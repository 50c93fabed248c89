"""
Bundles: a model as signed data. A manifest says what the graph is and where it comes from, its digest names the bundle, and
nothing is loaded before signature, digests and graph have been checked.

A bundle is a folder named by its digest: `manifest.json` (canonical, so that its SHA-256 is the digest), `model.onnx` and
`signature` (Ed25519 over the digest). The manifest tells no wall-clock time and no path: the same data gives the same digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from driftline.errors import Invalid
from driftline.models.onnx import GRAPH_BYTES_MAX, Scores, Session, check_graph, cost
from driftline.models.reference import Reference

SIGNED_AS = b"driftline bundle 1\n"  # a signature over a bundle is good for nothing else
MANIFEST_BYTES_MAX = 4 << 20
MODELS_MAX = 16  # loaded at once in one process: a champion, a canary, shadows, and what rows of older deployments name
DIGEST = re.compile(r"[0-9a-f]{64}")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of a trained model, all of it reproducible from the log."""

    model: str
    """Name, as flights-4."""
    layout: str
    """Version of the feature set."""
    names: tuple[str, ...]
    """The features, in order of the graph's columns."""
    recipe: dict[str, Any]
    """Kind and hyperparameters."""
    seed: int
    onnx_sha256: str
    threshold: float
    """A score at or above it is an alert; exactly a float32."""
    medians: dict[str, float | None]
    """Per feature, of the training rows; None for one that was always missing."""
    reference: Reference
    dispersion: float
    """How much more the positives of a day vary than independent rows would."""
    base_rate: float
    """Share of positives among the training rows."""
    dataset: dict[str, Any]
    """`ranges` of event offsets, digest, rows, positives, and how they were split."""
    metrics: dict[str, Any]
    """Out of time, as the gate saw them."""
    trained_at: int
    """Milliseconds on the pipeline's clock."""
    trigger: str
    versions: dict[str, str]
    """Of the libraries that made the graph."""

    def canonical(self) -> bytes:
        """The one encoding that the digest is taken of."""
        return msgspec.json.encode(self, order="sorted")

    def digest(self) -> str:
        """SHA-256 of the canonical encoding, in hex."""
        return hashlib.sha256(self.canonical()).hexdigest()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that has passed every check."""

    digest: str
    manifest: Manifest
    onnx: bytes


class Model:
    """A bundle with its graph loaded and warm. Scoring never learns."""

    def __init__(self, bundle: Bundle) -> None:
        self.digest = bundle.digest
        self.manifest = bundle.manifest
        self.threshold = np.float32(bundle.manifest.threshold)
        medians = (bundle.manifest.medians[name] for name in bundle.manifest.names)
        self.medians = np.array([np.nan if value is None else value for value in medians], np.float32)
        self.cost = cost(bundle.onnx)
        self._session = Session(bundle.onnx)
        self.score(np.zeros((2, len(self.manifest.names)), np.float32))

    def score(self, matrix: npt.NDArray[np.float32]) -> Scores:
        """One probability a row of `matrix`, float32 (n, F) in the manifest's order; NaN where the model gave no number."""
        return self._session.score(matrix)


class BundleStore:
    """
    A folder of bundles. `trusts` is the key whose signature is believed; without one nothing can be read, only put.
    """

    def __init__(self, folder: Path, trusts: Ed25519PublicKey | None) -> None:
        self._folder = folder
        self._trusts = trusts
        self._models: OrderedDict[str, Model] = OrderedDict()

    def put(self, manifest: Manifest, onnx: bytes, private_key: Ed25519PrivateKey) -> str:
        """
        Sign and keep a bundle; readers see all of it or nothing. Returns the digest. Putting the same again signs it anew.

        Raises Invalid for what `get` would refuse.
        """
        digest = manifest.digest()
        _check(manifest, onnx)
        signature = private_key.sign(SIGNED_AS + digest.encode())
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self._folder))
        try:
            for name, content in (("manifest.json", manifest.canonical()), ("model.onnx", onnx), ("signature", signature)):
                _write(draft / name, content)
            if (self._folder / digest).exists():
                os.replace(draft / "signature", self._folder / digest / "signature")
            else:
                draft.chmod(0o755)
                draft.rename(self._folder / digest)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return digest

    def get(self, digest: str) -> Bundle:
        """
        Read a bundle. Raises Invalid when there is none, when it is not signed by the trusted key, when anything in it was
        altered, or when its graph is not allowed.
        """
        if self._trusts is None:
            raise Invalid("no public key is set, so no model can be trusted: set DRIFTLINE_MODEL_PUBLIC_KEY")
        if not DIGEST.fullmatch(digest):
            raise Invalid("a bundle's digest has 64 hexadecimal digits")
        content = _read(self._folder / digest, "manifest.json", MANIFEST_BYTES_MAX)
        signature = _read(self._folder / digest, "signature", 64)
        try:
            self._trusts.verify(signature, SIGNED_AS + digest.encode())
        except InvalidSignature as error:
            raise Invalid(f"bundle {digest[:12]} is not signed by the trusted key") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise Invalid(f"bundle {digest[:12]}: the manifest was altered")
        try:
            manifest = msgspec.json.decode(content, type=Manifest)
        except msgspec.DecodeError as error:
            raise Invalid(f"bundle {digest[:12]}: the manifest is not of this version of driftline: {error}") from error
        onnx = _read(self._folder / digest, "model.onnx", GRAPH_BYTES_MAX)
        _check(manifest, onnx)
        return Bundle(digest, manifest, onnx)

    def model(self, digest: str) -> Model:
        """A bundle's model, loaded and warm; kept, so that asking again costs nothing. Raises Invalid as `get` does."""
        if digest not in self._models:
            self._models[digest] = Model(self.get(digest))
            if len(self._models) > MODELS_MAX:
                self._models.popitem(last=False)
        self._models.move_to_end(digest)
        return self._models[digest]

    def digests(self) -> list[str]:
        """All that is in the folder, unverified."""
        return sorted(path.name for path in self._folder.glob("*") if DIGEST.fullmatch(path.name))


def _check(manifest: Manifest, onnx: bytes) -> None:
    """What must hold between a manifest and its graph."""
    name = manifest.model
    if hashlib.sha256(onnx).hexdigest() != manifest.onnx_sha256:
        raise Invalid(f"{name}: the graph was altered")
    features = check_graph(onnx)
    if features != len(manifest.names) or set(manifest.medians) != set(manifest.names):
        raise Invalid(f"{name}: the graph takes {features} features, the manifest names {len(manifest.names)}")
    if not np.isfinite(manifest.threshold):
        raise Invalid(f"{name}: the decision threshold is not a number")


def _read(folder: Path, name: str, bytes_max: int) -> bytes:
    path = folder / name
    try:
        if path.is_symlink() or path.stat().st_size > bytes_max:
            raise Invalid(f"bundle {folder.name[:12]}: {name} is a link, or larger than {bytes_max} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Invalid(f"bundle {folder.name[:12]} is not in the store, or has no {name}") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def generate_keys(folder: Path) -> tuple[Path, Path]:
    """Make an Ed25519 pair. Returns the paths of the private key (readable by its owner alone) and of the public key."""
    private = Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True)
    secret, public = folder / "model-private.pem", folder / "model-public.pem"
    secret.touch(mode=0o600)
    secret.chmod(0o600)  # it may have been there, readable by others
    secret.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return secret, public


def load_private_key(path: Path | str) -> Ed25519PrivateKey:
    """Raises Invalid when the file is missing or holds no Ed25519 private key in PEM."""
    key = _load(path, lambda content: serialization.load_pem_private_key(content, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid(f"{path} holds no Ed25519 private key")
    return key


def load_public_key(path: Path | str) -> Ed25519PublicKey:
    """Raises Invalid when the file is missing or holds no Ed25519 public key in PEM."""
    key = _load(path, serialization.load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise Invalid(f"{path} holds no Ed25519 public key")
    return key


def _load(path: Path | str, parse: Any) -> object:
    try:
        parsed: object = parse(Path(path).read_bytes())
    except OSError as error:
        raise Invalid(f"the key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise Invalid(f"{path} holds no key in PEM") from error
    return parsed
