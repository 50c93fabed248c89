"""Hostile files: names that are paths, links, pipes, sizes, signatures, and things that are no ONNX."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ground import GRAPH, KEY, MANIFEST, SEED, SIGNATURE, SIGNED_AS, STRANGER, Ground
from hostile import Hostile, graph

# What would run `true` when somebody unpickles it.
PICKLE = b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R."
JOBLIB = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05joblib\x94cposix\nsystem\n\x8c\x04true\x85R."


def in_place_of(name: str, put: Callable[[Ground, Path], object]) -> Callable[[Ground], str]:
    """An honest bundle, of which one file is something else."""

    def make(ground: Ground) -> str:
        digest = ground.honest()
        path = ground.store / digest / name
        path.unlink()
        put(ground, path)
        return digest

    return make


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Ground], str]:
    """An honest bundle, of which one file was changed after it was signed."""

    def make(ground: Ground) -> str:
        path = ground.store / ground.honest() / name
        path.write_bytes(change(path.read_bytes()))
        return path.parent.name

    return make


def flipped(content: bytes) -> bytes:
    """One bit in the middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def link_outside(ground: Ground, path: Path) -> None:
    """To a file that is as it should be, but lies elsewhere."""
    other = ground.outside / path.name
    other.write_bytes(ground.graph() if path.name == GRAPH else b"{}")
    path.symlink_to(other)


def hard_link(ground: Ground, path: Path) -> None:
    """The file is the same, and somebody else can write to it under its other name."""
    other = ground.outside / path.name
    other.write_bytes(ground.graph())
    os.link(other, path)


def bind(_: Ground, path: Path) -> None:
    """A socket, by a short name for its folder: a socket's path has at most 107 characters."""
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def sparse(size: int) -> Callable[[Ground, Path], None]:
    """Large to read, and nothing on disk."""

    def put(_: Ground, path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return put


def bundle_elsewhere(ground: Ground) -> str:
    """The whole folder is a link."""
    digest = ground.honest()
    (ground.store / digest).rename(ground.outside / digest)
    (ground.store / digest).symlink_to(ground.outside / digest)
    return digest


def file_for_folder(ground: Ground) -> str:
    ground.store.mkdir()
    (ground.store / ("a" * 64)).write_bytes(b"a bundle")
    return "a" * 64


def of_another(name: str) -> Callable[[Ground], str]:
    """A genuine file of a genuine bundle, moved into another."""

    def make(ground: Ground) -> str:
        digest = ground.honest()
        other = ground.lay(ground.manifest(ground.with_trees(class_weights=[1.0, -1.0]), model="flights-2").canonical(), b"")
        (ground.store / other / GRAPH).write_bytes(ground.with_trees(class_weights=[1.0, -1.0]))
        (ground.store / digest / name).write_bytes((ground.store / other / name).read_bytes())
        return digest

    return make


def signed_as(sign: Callable[[bytes], bytes]) -> Callable[[Ground], str]:
    """A bundle whose signature is made by `sign` from its digest."""

    def make(ground: Ground) -> str:
        manifest = ground.manifest(ground.graph()).canonical()
        return ground.lay(manifest, ground.graph(), signature=sign(hashlib.sha256(manifest).hexdigest().encode()))

    return make


def zipped(name: str, content: bytes) -> bytes:
    """A zip archive with one member."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def garbage(_: Ground) -> bytes:
    return np.random.default_rng(SEED).bytes(4096)


def file(name: str, how: str, message: str, make: Callable[[Ground], str], *, refused_by: str = "store") -> Hostile:
    return Hostile(name, how, refused_by, message, make)


NO_FILE = "no plain file of its own"
LINK = "is a link, or no folder"
NOT_SIGNED = "not signed by the trusted key"
ALTERED = "graph was altered"
NO_GRAPH = "not an ONNX graph"

NAMES = (
    file("digest-dotdot", "a deployment names `../models` for a digest", "64 hexadecimal digits", lambda ground: "../models"),
    file("digest-absolute", "a deployment names `/etc/passwd` for a digest", "64 hexadecimal digits", lambda ground: "/etc/passwd"),
    file("digest-url", "a deployment names a URL for a digest", "64 hexadecimal digits", lambda ground: "http://127.0.0.1/model"),
    file("digest-empty", "a deployment names the store itself", "64 hexadecimal digits", lambda ground: ""),
    file(
        "digest-newline", "a digest, and a line more for the log", "64 hexadecimal digits", lambda ground: ground.honest() + "\nforged=line"
    ),
    file("digest-of-nothing", "a bundle that is not there", "not in the store", lambda ground: "a" * 64),
)
KINDS = (
    file("folder-is-link", "the bundle's folder is a link out of the store", LINK, bundle_elsewhere),
    file("folder-is-file", "a file lies where the bundle's folder should", LINK, file_for_folder),
    file("manifest-link", "the manifest is a link out of the store", LINK, in_place_of(MANIFEST, link_outside)),
    file("graph-link", "the graph is a link out of the store", LINK, in_place_of(GRAPH, link_outside)),
    file("signature-link", "the signature is a link out of the store", LINK, in_place_of(SIGNATURE, link_outside)),
    file(
        "graph-link-to-device", "the graph is a link to /dev/zero", LINK, in_place_of(GRAPH, lambda _, path: path.symlink_to("/dev/zero"))
    ),
    file("graph-hard-link", "the graph has a second name outside the store", NO_FILE, in_place_of(GRAPH, hard_link)),
    file("manifest-pipe", "the manifest is a pipe that nobody writes to", NO_FILE, in_place_of(MANIFEST, lambda _, path: os.mkfifo(path))),
    file("graph-pipe", "the graph is a pipe that nobody writes to", NO_FILE, in_place_of(GRAPH, lambda _, path: os.mkfifo(path))),
    file("signature-pipe", "the signature is a pipe", NO_FILE, in_place_of(SIGNATURE, lambda _, path: os.mkfifo(path))),
    file("graph-folder", "the graph is a folder", NO_FILE, in_place_of(GRAPH, lambda _, path: path.mkdir())),
    file("graph-socket", "the graph is a socket", NO_FILE, in_place_of(GRAPH, bind)),
)
SIZES = (
    file("manifest-100-mb", "the manifest has 100 MB", "larger than", in_place_of(MANIFEST, sparse(100 << 20))),
    file("graph-8-gb", "the graph has 8 GB, all holes", "larger than", in_place_of(GRAPH, sparse(8 << 30))),
    file("signature-8-gb", "the signature has 8 GB, all holes", "larger than", in_place_of(SIGNATURE, sparse(8 << 30))),
    file("manifest-missing", "there is no manifest", "has no manifest", in_place_of(MANIFEST, lambda _, path: None)),
    file("graph-missing", "there is no graph", "has no model.onnx", in_place_of(GRAPH, lambda _, path: None)),
)
SIGNATURES = (
    file("unsigned", "nobody signed it", "has no signature", in_place_of(SIGNATURE, lambda _, path: None)),
    file("signature-empty", "the signature is empty", NOT_SIGNED, signed_as(lambda _: b""), refused_by="signature"),
    file("signature-zeros", "the signature is 64 zeros", NOT_SIGNED, signed_as(lambda _: bytes(64)), refused_by="signature"),
    file("signature-altered", "one bit of the signature is another", NOT_SIGNED, rewritten(SIGNATURE, flipped), refused_by="signature"),
    file(
        "other-key",
        "signed by a key that is not trusted",
        NOT_SIGNED,
        signed_as(lambda digest: STRANGER.sign(SIGNED_AS + digest)),
        refused_by="signature",
    ),
    file("signature-for-other-use", "signed for something else than a bundle", NOT_SIGNED, signed_as(KEY.sign), refused_by="signature"),
    file("signature-of-another", "the signature of another bundle", NOT_SIGNED, of_another(SIGNATURE), refused_by="signature"),
    file(
        "manifest-altered",
        "one bit of the manifest is another",
        "manifest was altered",
        rewritten(MANIFEST, flipped),
        refused_by="signature",
    ),
    file(
        "manifest-truncated",
        "half of the manifest",
        "manifest was altered",
        rewritten(MANIFEST, lambda content: content[: len(content) // 2]),
        refused_by="signature",
    ),
    file("manifest-empty", "the manifest is empty", "manifest was altered", rewritten(MANIFEST, lambda _: b""), refused_by="signature"),
    file("manifest-of-another", "the manifest of another bundle", "manifest was altered", of_another(MANIFEST), refused_by="signature"),
    file("graph-altered", "one bit of the graph is another", ALTERED, rewritten(GRAPH, flipped), refused_by="manifest"),
    file(
        "graph-truncated",
        "half of the graph",
        ALTERED,
        rewritten(GRAPH, lambda content: content[: len(content) // 2]),
        refused_by="manifest",
    ),
    file("graph-longer", "bytes behind the graph", ALTERED, rewritten(GRAPH, lambda content: content + b"\0"), refused_by="manifest"),
    file("graph-empty", "the graph is empty", ALTERED, rewritten(GRAPH, lambda _: b""), refused_by="manifest"),
    file("graph-of-another", "the graph of another signed bundle", ALTERED, of_another(GRAPH), refused_by="manifest"),
)
NO_ONNX = (
    graph("pickle", "a pickle that runs a command", NO_GRAPH, lambda _: PICKLE),
    graph("joblib", "a joblib dump that runs a command", NO_GRAPH, lambda _: JOBLIB),
    graph("torch-zip", "an archive as torch.save writes it", NO_GRAPH, lambda _: zipped("archive/data.pkl", PICKLE)),
    graph("zip-bomb", "50 MB of zeros, zipped", NO_GRAPH, lambda _: zipped("model.onnx", bytes(50 << 20))),
    graph("zip-traversal", "an archive whose member is called ../../model.onnx", NO_GRAPH, lambda _: zipped("../../model.onnx", PICKLE)),
    graph("gzip", "an honest graph, gzipped", NO_GRAPH, lambda ground: gzip.compress(ground.graph(), mtime=0)),
    graph("gzip-bomb", "50 MB of zeros, gzipped", NO_GRAPH, lambda _: gzip.compress(bytes(50 << 20), mtime=0)),
    graph("shared-object", "a library of machine code", NO_GRAPH, lambda _: b"\x7fELF\x02\x01\x01" + bytes(57)),
    graph("ort-format", "ONNX Runtime's own format, which it loads without being asked", NO_GRAPH, lambda _: b"\x18\0\0\0ORTM" + bytes(64)),
    graph("script", "a script", NO_GRAPH, lambda _: b"#!/bin/sh\ntrue\n"),
    graph("garbage", "4 KB of chance", NO_GRAPH, garbage),
    graph("zeros", "4 KB of zeros", NO_GRAPH, lambda _: bytes(4096)),
    graph("nothing", "no byte at all, signed", NO_GRAPH, lambda _: b""),
)

FILES = (*NAMES, *KINDS, *SIZES, *SIGNATURES, *NO_ONNX)
