"""How a kernel's CPU path is compiled, and how a call chooses between it and the array-module body.

    @compiled(oracle=_relu_arrays)      _relu(x, y) with NumPy arrays: the loop, compiled by numba
    def _relu(x, y): for i in ...       with CuPy arrays: _relu_arrays(x, y), whole-array operations

The array-module body is what a GPU runs and what the tests hold the compiled one against. Both write into the
arrays they are given. Compiled functions take flat or fully shaped C-contiguous arrays: every further layout
would be compiled apart.

numba's cache looks only at the file of the function that is called, not at files that are inlined into it:
after an edit in elementary.py, vectors.py, pool_vectors.py, conv_blocks.py, rows.py, largest.py, direct.py or
optimizer.py, remove kernels/__pycache__.
"""

# numba's caches are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

import numba
import numpy as np
from numba.extending import is_jitted

from .kernel import Array

try:
    from .kept import FromFirstCall
except (ImportError, AttributeError):  # of a numba that has moved what it does not promise to keep
    FromFirstCall = None  # type: ignore[assignment, misc]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

unsigned = np.uint64
"""For computed indices into flat arrays, a[unsigned(base + i)].

A signed index might count from the end, so numba tests it and LLVM does not vectorise; and each view that a
loop makes (a[i, j]) costs an atomic count up and down. im2col of 32 x 28 x 28 took 329 us with signed indices
and views, 225 us with views alone, and takes 38 us with unsigned indices into flat arrays.
"""

# Reassociation lets sums vectorise (4 to 8 times faster), contraction gives fused multiply-adds. Not all of
# "fast": that also promises LLVM there is no NaN, and a run that diverged would no longer show it.
RELAXED = frozenset({"contract", "reassoc", "nsz", "arcp"})
# For code whose order of operations carries its precision (range reduction in elementary.py).
ORDERED = frozenset({"contract"})


@overload
def jit(function: F) -> F: ...
@overload
def jit(*, fastmath: frozenset[str]) -> Callable[[F], F]: ...
def jit(function: F | None = None, *, fastmath: frozenset[str] = RELAXED) -> F | Callable[[F], F]:
    """Compile at the first call of each signature, without the GIL, cached on disk beside the source."""
    decorate = numba.njit(nogil=True, error_model="numpy", fastmath=set(fastmath))

    def decorated(body: F) -> F:
        return kept(cast(F, decorate(body)))

    return decorated if function is None else decorated(function)


def kept(function: F) -> F:
    """`function` as numba.njit made it, with what becomes of it kept on disk.

    Where no folder can be written, every process compiles for itself. NUMBA_DISABLE_JIT leaves plain Python.
    """
    if is_jitted(function):
        dispatcher = cast(Any, function)
        if FromFirstCall is not None:
            dispatcher._cache = FromFirstCall(dispatcher.py_func)
        else:
            with contextlib.suppress(RuntimeError):  # no folder: neither the source's, nor the user's
                dispatcher.enable_caching()
    return function


class FastPath(Generic[P, R]):
    """A function with two bodies of one meaning: `function` for NumPy arrays, `oracle` for any array module.

    The first positional argument decides and must be an array.
    """

    def __init__(self, function: Callable[P, R], oracle: Callable[P, R]) -> None:
        self.function = function
        self.oracle = oracle
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if isinstance(args[0], np.ndarray):
            return self.function(*args, **kwargs)
        return self.oracle(*args, **kwargs)


def fast_path(oracle: Callable[P, R]) -> Callable[[Callable[P, R]], FastPath[P, R]]:
    """Decorator: the function below is plain Python (blocked products, say), beside `oracle`."""
    return lambda function: FastPath(function, oracle)


def compiled(oracle: Callable[P, R]) -> Callable[[Callable[P, R]], FastPath[P, R]]:
    """Decorator: the function below is compiled for NumPy arrays, beside `oracle`."""
    return lambda function: FastPath(jit(function), oracle)


def flat(a: Array) -> Array:
    """`a` as one axis, never a copy: raises ValueError where the memory is not contiguous."""
    if not a.flags.c_contiguous:
        raise ValueError(
            f"a kernel was given an array of shape {a.shape} with strides {a.strides}; make it C-contiguous"
        )
    return a.reshape(-1)
