"""
Imports kept cheap: what a library looks for and we do not use of it is hidden from it, and from nobody else.

A service has to be back within two seconds when it was killed together with its keeper, so every tenth counts.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Meanwhile an import of one of the packages `names` fails as if it were not installed, unless it was imported before."""
    absent = [name for name in names if name not in sys.modules]
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None is how Python says "not to be had"
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del modules[name]
