"""The part of set-up that needs driftline itself: fetch the broker's jars, compile what would else be compiled at first use.

`python -m driftline.local.prepare`; after it, neither the demo nor the tests touch the network.
"""

from __future__ import annotations

import importlib
import os
import sys
import time

from driftline.errors import DriftlineError
from driftline.local.broker import KAFKA_VERSION, fetch_jars, jar_folder, pinned_jars

# Modules with numba loops: their `warm()` compiles them into the cache beside their source.
COMPILED = ("driftline.contracts.avro", "driftline.features.tiles")
# Imported once, so that eight processes that start at the same time find their dependencies' bytecode written.
IMPORTED = tuple(f"services.{name}.app" for name in ("intake", "feature", "inference", "labeler", "drift", "trainer", "rollout", "gateway"))


def main() -> int:
    """Prints one line a step. 1, with the error in words, when the jars cannot be fetched."""
    try:
        if not os.environ.get("DRIFTLINE_KAFKA"):
            _fetch()
        _compile()
    except DriftlineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _fetch() -> None:
    begun = time.monotonic()
    fetched = fetch_jars()
    jars = pinned_jars()
    size_mb = sum((jar_folder() / jar.file).stat().st_size for jar in jars) / 1e6
    how = f"{size_mb:.0f} MB, {time.monotonic() - begun:.0f} s" if fetched else f"{size_mb:.0f} MB, from the cache"
    print(f"kafka {KAFKA_VERSION} jars: {len(jars)} of {len(jars)}, digests match ({how})", flush=True)


def _compile() -> None:
    begun = time.monotonic()
    for name in COMPILED:
        warm = getattr(importlib.import_module(name), "warm", None)
        if warm is not None:
            warm()
    for name in IMPORTED:
        importlib.import_module(name)
    print(f"compiled what runs often ({time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
