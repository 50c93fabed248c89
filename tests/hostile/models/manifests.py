"""Hostile manifests, all of them signed: bombs for the parser, numbers that are none, and what does not fit the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from ground import Ground
from hostile import Hostile

from driftline.models.reference import Reference

THRESHOLD = b'"threshold":0.5'


def text(change: Callable[[bytes], bytes]) -> Callable[[Ground], str]:
    """An honest manifest whose text was changed before it was signed."""
    return lambda ground: ground.lay(change(ground.manifest(ground.graph()).canonical()), ground.graph())


def threshold(literal: bytes) -> Callable[[Ground], str]:
    """With this for a threshold."""
    return text(lambda content: content.replace(THRESHOLD, b'"threshold":' + literal))


def recipe(literal: bytes) -> Callable[[Ground], str]:
    """With this for a recipe, where any value may stand."""
    return text(lambda content: content.replace(b'{"kind":"lightgbm"}', b'{"kind":' + literal + b"}"))


def field(**changes: Any) -> Callable[[Ground], str]:
    """With these fields, which need not be of the manifest's types."""
    return lambda ground: ground.lay(ground.altered_json(**changes), ground.graph())


def about(change: Callable[[Ground], dict[str, Any]]) -> Callable[[Ground], str]:
    """With what follows from the features."""
    return lambda ground: ground.lay(ground.altered_json(**change(ground)), ground.graph())


def reference(**changes: Any) -> Callable[[Ground], str]:
    """With another reference."""

    def changed(ground: Ground) -> dict[str, Any]:
        told: Reference = ground.manifest(ground.graph()).reference
        return {"reference": {**told, **changes}}

    return about(changed)


def no_reference_of(table: str) -> Callable[[Ground], str]:
    """A reference that has one table for no feature."""
    return reference(**{table: {}})


def manifest(name: str, how: str, message: str, make: Callable[[Ground], str]) -> Hostile:
    return Hostile(name, how, "manifest", message, make)


OTHER_VERSION = "not of this version"
NOT_OURS = "not as driftline writes it"
NO_NUMBER = "not a number that a float32 holds"
TWICE = msgspec.json.encode({"threshold": 0.9})[1:-1] + b","
DEEP = b"[" * 50_000 + b"]" * 50_000

PARSERS = (
    manifest("json-nested", "100,000 brackets in one another", OTHER_VERSION, recipe(DEEP)),
    manifest("json-number-overflow", "a threshold of 1e999", OTHER_VERSION, threshold(b"1e999")),
    manifest("json-number-5000-digits", "an integer of 5,000 digits", OTHER_VERSION, recipe(b"9" * 5000)),
    manifest("json-keys-twice", "two thresholds, one of which a reader takes", NOT_OURS, text(lambda content: b"{" + TWICE + content[1:])),
    manifest("json-spaces", "3 MB of spaces", NOT_OURS, text(lambda content: content + b" " * (3 << 20))),
    manifest(
        "json-escaped-keys", "a key in escapes, which text searches miss", NOT_OURS, text(lambda c: c.replace(b'"seed"', b'"\\u0073eed"'))
    ),
    manifest(
        "json-no-utf8", "bytes that are no UTF-8", OTHER_VERSION, text(lambda content: content.replace(b"flights-1", b"flights-\xff"))
    ),
    manifest("json-half-surrogate", "half a character", OTHER_VERSION, text(lambda content: content.replace(b"flights-1", b"\\ud800"))),
    manifest("json-nan", "a threshold of NaN", OTHER_VERSION, threshold(b"NaN")),
    manifest("json-array", "an array in place of an object", OTHER_VERSION, text(lambda content: b"[" + content + b"]")),
    manifest("json-two-documents", "a second manifest behind the first", OTHER_VERSION, text(lambda content: content + content)),
    manifest("json-python", "a Python expression", OTHER_VERSION, text(lambda _: b"__import__('os').system('true')")),
    manifest("json-later-field", "a field that this version does not know", OTHER_VERSION, field(load_hook="os.system")),
    manifest("json-wrong-types", "names that are numbers", OTHER_VERSION, field(names=[1, 2])),
)
NUMBERS = (
    manifest("threshold-null", "no threshold", OTHER_VERSION, field(threshold=None)),
    manifest("threshold-beyond-float32", "a threshold that is infinite as a float32", NO_NUMBER, field(threshold=1e39)),
    manifest("threshold-between-floats", "a threshold that no score can equal", NO_NUMBER, field(threshold=0.1)),
    manifest("median-beyond-float32", "a median that is infinite", NO_NUMBER, about(lambda g: {"medians": dict.fromkeys(g.names, 1e39)})),
    manifest("base-rate-7", "a base rate of 7", "impossible", field(base_rate=7.0)),
    manifest("dispersion-negative", "a negative variance", "impossible", field(dispersion=-1.0)),
)
MISFITS = (
    manifest("model-name-escape-codes", "a name that rewrites the terminal", "cannot be printed", field(model="\x1b[2Jflights-1")),
    manifest("model-name-endless", "a name of 1 MB", "more than", field(model="n" * (1 << 20))),
    manifest("names-too-many", "more names than the graph has columns", "takes", about(lambda g: {"names": [*g.names, "one more"]})),
    manifest("names-twice", "one name for two columns", "names one twice", about(lambda g: {"names": [g.names[0]] * len(g.names)})),
    manifest("medians-of-others", "medians of other features", "takes", field(medians={"other": 0.5})),
    manifest("reference-of-others", "a reference of other features", "other features", no_reference_of("edges")),
    manifest("reference-without-bounds", "a reference without lowest values", "other features", no_reference_of("lowest")),
    manifest(
        "reference-disordered", "edges of bins out of order", "out of order", reference(score_edges=[0.5, 0.25], score_counts=[1] * 4)
    ),
    manifest("reference-miscounted", "more edges than counts", "do not fit", reference(score_counts=[1])),
    manifest("reference-negative", "negative counts", "do not fit", reference(score_edges=[0.5], score_counts=[1, -5, 0])),
)

MANIFESTS = (*PARSERS, *NUMBERS, *MISFITS)
