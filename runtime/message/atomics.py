"""Changes of 64-bit words in shared memory, whole to all who see them: compiled, 0.1 to 0.4 us each.

MPI has the same as Fetch_and_op and Flush. mpi4py lets go of the interpreter's lock in both, so that a
rank's two threads change places: between the kernels of a training step a claim took 17 us. These keep the
lock, and no word may be changed by both.
"""

# numba's and llvmlite's builders are untyped, and so is what the intrinsics below return.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from ...kernels.compiled import kept
from ...kernels.vectors import intrinsic

Words = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])


def short(function: F) -> F:
    """Compile at the first call, cached on disk; runs with the interpreter's lock held."""
    return kept(cast(F, numba.njit(function)))


@short
def add(words: Words, at: int, value: int) -> int:
    """words[at] += value; returns the word before it. Overflow wraps."""
    return fetch_add(words, at, value)


@short
def swap(words: Words, at: int, value: int) -> int:
    """words[at] = value; returns the word before it."""
    return exchange(words, at, value)


@short
def barrier() -> None:
    """This thread's loads and stores before it come before those behind it, for everyone."""
    fence()


class AtomicWord:
    """A signed 64-bit word in shared memory that several threads of several ranks change."""

    __slots__ = ("_view", "_word")

    def __init__(self, word: Words) -> None:
        self._word, self._view = word, word.data

    def peek(self) -> int:
        """The word as this rank sees it now, at the cost of a load: a hint, soon out of date."""
        value: int = self._view[0]
        return value

    def add(self, value: int) -> int:
        """Add `value`; returns the word before it. Overflow wraps."""
        return add(self._word, 0, value)

    def swap(self, value: int) -> int:
        """Put `value` in its place; returns the word before it."""
        return swap(self._word, 0, value)


# For compiled code


@intrinsic
def load(_typing: Any, words: Any, at: Any) -> Any:
    """words[at], and what was written before it by whoever wrote it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.load_atomic(_address(context, builder, signature, arguments), "acquire", 8)

    return types.int64(words, types.int64), generate


@intrinsic
def fetch_add(_typing: Any, words: Any, at: Any, value: Any) -> Any:
    """words[at] += value; returns the word before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        where = _address(context, builder, signature, arguments)
        return builder.atomic_rmw("add", where, arguments[2], "seq_cst")

    return types.int64(words, types.int64, types.int64), generate


@intrinsic
def exchange(_typing: Any, words: Any, at: Any, value: Any) -> Any:
    """words[at] = value; returns the word before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        where = _address(context, builder, signature, arguments)
        return builder.atomic_rmw("xchg", where, arguments[2], "seq_cst")

    return types.int64(words, types.int64, types.int64), generate


@intrinsic
def replace(_typing: Any, words: Any, at: Any, old: Any, new: Any) -> Any:
    """Put `new` where `old` is; whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        where = _address(context, builder, signature, arguments)
        done = builder.cmpxchg(where, arguments[2], arguments[3], "seq_cst", "acquire")
        return builder.extract_value(done, 1)

    return types.boolean(words, types.int64, types.int64, types.int64), generate


@intrinsic
def fence(_typing: Any) -> Any:
    """See `barrier`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _address(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]])
