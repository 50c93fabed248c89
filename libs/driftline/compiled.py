"""
numba, for every module with compiled loops, imported in half the time.

While it is imported numba looks for scipy (its BLAS) and cffi. No loop of ours multiplies matrices or calls C, and finding them costs
more than numba itself: 0.9 of the 2.8 s that the feature service imports for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

from driftline.imports import hidden

with hidden("scipy", "cffi"):
    for _where_it_looks in ("numba", "numba.core.typing.cffi_utils", "numba.np.arraymath"):
        importlib.import_module(_where_it_looks)

import numba  # only now is it cheap
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["READ_BYTES", "READ_INTS", "njit", "numba", "prefetch", "types", "uncounted"]

Loop = TypeVar("Loop", bound=Callable[..., Any])

# Columns that a loop reads and never writes; those of a `Varlen` often lie in memory that nobody may write.
READ_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
READ_INTS = types.Array(types.int64, 1, "C", readonly=True)
PREFETCH = "llvm.prefetch.p0"


def uncounted(*signature: Any, cache: bool = False) -> Callable[[Loop], Loop]:
    """
    `njit` for what is called from within a loop with arrays. By itself numba counts a reference to each array in each call, atomically,
    which was a third of the features' kernel and two thirds of Avro's decoding. What is not counted can make no array.
    """
    options: dict[str, Any] = {"nogil": True, "cache": cache, "_nrt": False}
    return cast("Callable[[Loop], Loop]", njit(*signature, **options))


def _prefetch(_: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(signature.args[0])(context, builder, arguments[0])
        octets, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [octets, number, number, number])
        function = builder.module.globals.get(PREFETCH) or ir.Function(builder.module, function_type, PREFETCH)
        to_write, keep_near, data = (ir.Constant(number, value) for value in (1, 3, 1))
        builder.call(function, [builder.bitcast(builder.gep(whole.data, [arguments[1]]), octets), to_write, keep_near, data])
        return context.get_dummy_value()

    return types.void(array, index), generate


# `prefetch(array, index)` in a loop: ask for the memory of an element that is read or written a few turns later.
prefetch = cast("Callable[[Any, int], None]", intrinsic(_prefetch))
