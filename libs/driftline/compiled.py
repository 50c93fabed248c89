"""
numba, for every module with compiled loops, imported in half the time.

While it is imported numba looks for scipy (its BLAS) and cffi. No loop of ours multiplies matrices or calls C, and finding them costs
more than numba itself: 0.9 of the 2.8 s that the feature service imports for.
"""

from __future__ import annotations

import importlib

from driftline.imports import hidden

with hidden("scipy", "cffi"):
    for _where_it_looks in ("numba", "numba.core.typing.cffi_utils", "numba.np.arraymath"):
        importlib.import_module(_where_it_looks)

import numba  # only now is it cheap
from numba import njit, types

__all__ = ["READ_BYTES", "READ_INTS", "njit", "numba", "types"]

# Columns that a loop reads and never writes; those of a `Varlen` often lie in memory that nobody may write.
READ_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
READ_INTS = types.Array(types.int64, 1, "C", readonly=True)
