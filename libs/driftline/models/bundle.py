"""
Bundles: a model as signed data. A manifest says what the graph is and where it comes from, its digest names the bundle, and
nothing is loaded before signature, digests and graph have been checked, and a process of its own has tried what the graph does.

A bundle is a folder named by its digest: `manifest.json` (canonical, so that its SHA-256 is the digest), `model.onnx` and
`signature` (Ed25519 over the digest). The manifest tells no wall-clock time and no path: the same data gives the same digest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
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
from driftline.logs import log
from driftline.models.onnx import GRAPH_BYTES_MAX, Scores, check_graph, cost, has_trees
from driftline.models.probe import CHUNKS, Probe, Trial, trial_rows
from driftline.models.reference import Reference, refuse_misfit
from driftline.models.runtime import Loaded, invariant

SIGNED_AS = b"driftline bundle 1\n"  # a signature over a bundle is good for nothing else
MANIFEST_BYTES_MAX = 4 << 20
MODELS_MAX = 16  # loaded at once in one process: a champion, a canary, shadows, and what rows of older deployments name
MODEL_NAME_CHARACTERS_MAX = 100
SCORES_APART_MAX = 1e-5  # of a probability on two devices: what the gate allows between a trained model and its graph
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
    """
    A bundle with its graph loaded and warm. Scoring never learns. On another device than the processor only where that says the same,
    whatever the batch: `device` is where it is.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.digest = bundle.digest
        self.manifest = bundle.manifest
        self.threshold = np.float32(bundle.manifest.threshold)
        medians = (bundle.manifest.medians[name] for name in bundle.manifest.names)
        self.medians = np.array([np.nan if value is None else value for value in medians], np.float32)
        self.cost = cost(bundle.onnx)
        self._loaded, self.device = _loaded(bundle, device)
        self.score(np.zeros((2, len(self.manifest.names)), np.float32))

    def score(self, matrix: npt.NDArray[np.float32]) -> Scores:
        """One probability a row of `matrix`, float32 (n, F) in the manifest's order; NaN where the model gave no number."""
        return self._loaded.score(matrix)


class BundleStore:
    """
    A folder of bundles. `trusts` is the key whose signature is believed; without one nothing can be read, only put.

    What is put and what is loaded has been tried by `probe` first; who only reads bundles never starts it.
    """

    def __init__(self, folder: Path, trusts: Ed25519PublicKey | None, probe: Probe | None = None, device: str = "cpu") -> None:
        self._folder = folder
        self._device = device
        self._trusts = trusts
        self._probe = Probe() if probe is None else probe
        self._models: OrderedDict[str, Model] = OrderedDict()

    def put(self, manifest: Manifest, onnx: bytes, private_key: Ed25519PrivateKey) -> str:
        """
        Sign and keep a bundle; readers see all of it or nothing. Returns the digest. Putting the same again signs it anew.

        Raises Invalid for what `get` or `model` would refuse.
        """
        digest = manifest.digest()
        if len(manifest.canonical()) > MANIFEST_BYTES_MAX:
            raise Invalid(f"{manifest.model[:40]}: the manifest has more than {MANIFEST_BYTES_MAX} bytes")
        _decoded(digest, manifest.canonical())
        _check(manifest, onnx)
        self._probe.try_out(_trial(digest, manifest, onnx))
        signature = private_key.sign(SIGNED_AS + digest.encode())
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self._folder))
        try:
            for name, content in (("manifest.json", manifest.canonical()), ("model.onnx", onnx), ("signature", signature)):
                _write(draft / name, content)
            if (self._folder / digest).is_symlink():
                raise Invalid(f"{self._folder / digest} is a link: a bundle lies in the store itself. Remove the link")
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
        place = self._place(digest)
        content = _read(place, "manifest.json", MANIFEST_BYTES_MAX)
        signature = _read(place, "signature", 64)
        try:
            self._trusts.verify(signature, SIGNED_AS + digest.encode())
        except InvalidSignature as error:
            raise Invalid(f"bundle {digest[:12]} is not signed by the trusted key") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise Invalid(f"bundle {digest[:12]}: the manifest was altered")
        manifest = _decoded(digest, content)
        onnx = _read(place, "model.onnx", GRAPH_BYTES_MAX)
        _check(manifest, onnx)
        return Bundle(digest, manifest, onnx)

    def _place(self, digest: str) -> Path:
        """A digest comes from a topic, so it must not be able to name a path."""
        if not DIGEST.fullmatch(digest):
            raise Invalid("a bundle's digest has 64 hexadecimal digits")
        return self._folder / digest

    def model(self, digest: str) -> Model:
        """
        A bundle's model, loaded and warm; kept, so that asking again costs nothing. Raises Invalid as `get` does, and for what
        the probe refuses. May take as long as the probe does, so ask in a thread.
        """
        if digest not in self._models:
            bundle = self.get(digest)
            self._probe.try_out(_trial(digest, bundle.manifest, bundle.onnx))
            self._models[digest] = Model(bundle, self._device)
            if len(self._models) > MODELS_MAX:
                self._models.popitem(last=False)
        self._models.move_to_end(digest)
        return self._models[digest]

    def digests(self) -> list[str]:
        """All that is in the folder, unverified."""
        return sorted(path.name for path in self._folder.glob("*") if DIGEST.fullmatch(path.name))


def _decoded(digest: str, content: bytes) -> Manifest:
    """The manifest, which has to be as we write it: one key once, in order, nothing between."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"bundle {digest[:12]}: the manifest is not of this version of driftline: {str(error)[:200]}") from error
    if manifest.canonical() != content:
        raise Invalid(f"bundle {digest[:12]}: the manifest is not as driftline writes it: keys twice, out of order, or numbers as text")
    return manifest


def _check(manifest: Manifest, onnx: bytes) -> None:
    """What must hold in a manifest, and between it and its graph."""
    name = manifest.model
    if not name.isprintable() or len(name) > MODEL_NAME_CHARACTERS_MAX:
        raise Invalid(f"the model's name {name[:40]!r} cannot be printed, or has more than {MODEL_NAME_CHARACTERS_MAX} characters")
    if hashlib.sha256(onnx).hexdigest() != manifest.onnx_sha256:
        raise Invalid(f"{name}: the graph was altered")
    features = check_graph(onnx)
    if not features == len(manifest.names) == len(set(manifest.names)) or set(manifest.medians) != set(manifest.names):
        raise Invalid(f"{name}: the graph takes {features} features, the manifest names {len(manifest.names)}, or names one twice")
    with np.errstate(over="ignore"):
        numbers = [manifest.threshold, *(value for value in manifest.medians.values() if value is not None)]
        if not np.isfinite(np.array(numbers, np.float32)).all() or float(np.float32(manifest.threshold)) != manifest.threshold:
            raise Invalid(f"{name}: the decision threshold, or a median, is not a number that a float32 holds")
    if not 0 <= manifest.base_rate <= 1 or manifest.dispersion < 0:
        raise Invalid(f"{name}: the base rate {manifest.base_rate} or the dispersion {manifest.dispersion} is impossible")
    refuse_misfit(manifest.reference, manifest.names)


def _loaded(bundle: Bundle, device: str) -> tuple[Loaded, str]:
    """
    The graph on `device`, or on the processor: trees, and where the device's scores change with the batch or are not those of the
    processor, on which the gate judged it.
    """
    features = len(bundle.manifest.names)
    here = Loaded(bundle.onnx, features)
    if device == "cpu" or has_trees(bundle.onnx):
        return here, "cpu"
    trial = _trial(bundle.digest, bundle.manifest, bundle.onnx)
    there = Loaded(bundle.onnx, features, device)
    same = np.isclose(there.score(trial.rows), here.score(trial.rows), rtol=0, atol=SCORES_APART_MAX, equal_nan=True)
    if same.all() and invariant(there, trial.rows, CHUNKS):
        return there, device
    log.warning("scored on the processor: the device does not say the same", model=bundle.manifest.model, device=device)
    return here, "cpu"


def _trial(digest: str, manifest: Manifest, onnx: bytes) -> Trial:
    rows, ordinary = trial_rows(manifest.names, manifest.medians, manifest.reference)
    return Trial(digest, onnx, rows, ordinary)


def _read(folder: Path, name: str, bytes_max: int) -> bytes:
    """
    A plain file in a plain folder, no larger than that: no link out of the store, nothing that answers for ever. What is looked
    at is what was opened, so that nobody can put another thing in its place in between.
    """
    what = f"bundle {folder.name[:12]}"
    try:
        with contextlib.ExitStack() as opened:
            inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened.callback(os.close, inside)
            # Without O_NONBLOCK, to open a pipe that nobody writes to would wait for ever.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
            opened.callback(os.close, file)
            told = os.fstat(file)
            if not stat.S_ISREG(told.st_mode) or told.st_nlink > 1:
                raise Invalid(f"{what}: {name} is no plain file of its own, but a folder, a device, a pipe or a hard link")
            if told.st_size > bytes_max:
                raise Invalid(f"{what}: {name} is larger than {bytes_max} bytes")
            with os.fdopen(os.dup(file), "rb") as reader:
                content = reader.read(bytes_max + 1)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):
            raise Invalid(f"{what}: its folder, or {name} in it, is a link, or no folder at all") from error
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise Invalid(f"{what}: {name} is no plain file of its own, but a socket or a device") from error
        raise Invalid(f"{what} is not in the store, or has no {name}") from error
    if len(content) > bytes_max:
        raise Invalid(f"{what}: {name} grew beyond {bytes_max} bytes while it was read")
    return content


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
