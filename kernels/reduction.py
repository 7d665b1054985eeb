"""Sums over the ranks of a node, and the optimizer's step on a sum before that has left the cache.

    gradients of rank 0   ├──────┼──▓▓──┼──────┤  ─┐
    gradients of rank 1   ├──────┼──▓▓──┼──────┤  ─┼─> sum of a block ─> parameters, states    ▓▓ after ▓▓
    gradients of rank 2   ├──────┼──▓▓──┼──────┤  ─┘

All arrays are flat, of one size and dtype. A sum is taken in the order of the ranks, so every division of the
work among ranks gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .compiled import ORDERED, FastPath, fast_path, jit, unsigned
from .kernel import Array
from .optimizer import Optimizer, adam_step, momentum_step, sgd_step

_TOGETHER = 8
"""Parts that are read side by side: so they arrive at 33 GB/s, one after the other at 18 (one Zen 5 core).

LLVM vectorises a dozen side by side, but not 16, which are then ten times slower.
"""

_NEAR = 2048  # elements that wait in the first-level cache for the last of their parts
_BLOCK = 16384  # that wait in the second level for the optimizer; smaller ones tear the streams from memory


def add_up(into: Array, parts: Sequence[Array]) -> None:
    """into = parts[0] + parts[1] + …, added in this order; `into` may be one of the parts.

    Raises ValueError where there is no part, or one of another shape or dtype.
    """
    _check("add_up", into, parts)
    _add_up(into, tuple(parts))


def reduce_and_update(
    optimizer: Optimizer,
    parameters: Array,
    gradients: Sequence[Array],
    states: tuple[Array, ...],
    *,
    rate: float,
    step: int,
    scale: float = 1.0,
    decay: bool = True,
) -> None:
    """`add_up` the ranks' gradients and `optimizer.update` with the sum: the same bits, one visit of memory.

    The sum is not kept, and the gradients are left alone. One of 4 ranks, with a quarter of 64 MB of float32
    to sum and update, takes 2.1 ms with SGD where the two calls take 2.5, with Adam 3.4 instead of 3.7.
    """
    _check("reduce_and_update", parameters, gradients)
    optimizer.check(parameters, gradients[0], states)
    rule, numbers = optimizer.rule(rate, step, scale, optimizer.weight_decay if decay else 0.0)
    _BY_SUM[rule](parameters, tuple(gradients), *states, *numbers)


def _check(name: str, like: Array, parts: Sequence[Array]) -> None:
    if not parts or any(a.shape != like.shape or a.dtype != like.dtype for a in parts):
        raise ValueError(
            f"{name}: {[f'{a.shape} {a.dtype}' for a in parts]} are to be added up for {like.shape} "
            f"{like.dtype}; give at least one array, all of that shape and dtype"
        )


def _sum_arrays(parts: tuple[Array, ...]) -> Array:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def _add_up_arrays(into: Array, parts: tuple[Array, ...]) -> None:
    into[...] = _sum_arrays(parts)


@jit(fastmath=ORDERED)
def _sum(total: Array, parts: tuple[Array, ...], start: int) -> None:
    """total = the sum of the parts from `start` on."""
    for i in range(total.size):
        value = parts[0][unsigned(start + i)]
        for k in range(1, min(_TOGETHER, len(parts))):
            value += parts[k][unsigned(start + i)]
        total[i] = value
    for k in range(_TOGETHER, len(parts)):
        part = parts[k]
        for i in range(total.size):
            total[i] += part[unsigned(start + i)]


@fast_path(oracle=_add_up_arrays)
@jit(fastmath=ORDERED)
def _add_up(into: Array, parts: tuple[Array, ...]) -> None:
    # Not straight into `into`: where that is one of the parts, LLVM's vectors give way to single elements,
    # three times slower.
    total = np.empty(min(_NEAR, into.size), into.dtype)
    for start in range(0, into.size, _NEAR):
        count = min(_NEAR, into.size - start)
        _sum(total[:count], parts, start)
        for i in range(count):
            into[unsigned(start + i)] = total[i]


# One driver for each number of state arrays: numba slices no tuple of arrays.

_sgd, _momentum, _adam = sgd_step.function, momentum_step.function, adam_step.function


@jit(fastmath=ORDERED)
def _sgd_by_sum(p: Array, parts: tuple[Array, ...], *rest: float) -> None:
    total = np.empty(min(_BLOCK, p.size), p.dtype)
    for start in range(0, p.size, _BLOCK):
        stop = min(start + _BLOCK, p.size)
        g = total[: stop - start]
        _sum(g, parts, start)
        _sgd(p[start:stop], g, *rest)


@jit(fastmath=ORDERED)
def _momentum_by_sum(p: Array, parts: tuple[Array, ...], m: Array, *rest: Any) -> None:
    total = np.empty(min(_BLOCK, p.size), p.dtype)
    for start in range(0, p.size, _BLOCK):
        stop = min(start + _BLOCK, p.size)
        g = total[: stop - start]
        _sum(g, parts, start)
        _momentum(p[start:stop], g, m[start:stop], *rest)


@jit(fastmath=ORDERED)
def _adam_by_sum(p: Array, parts: tuple[Array, ...], m: Array, v: Array, *rest: float) -> None:
    total = np.empty(min(_BLOCK, p.size), p.dtype)
    for start in range(0, p.size, _BLOCK):
        stop = min(start + _BLOCK, p.size)
        g = total[: stop - start]
        _sum(g, parts, start)
        _adam(p[start:stop], g, m[start:stop], v[start:stop], *rest)


def _oracle(rule: FastPath[..., None]) -> Callable[..., None]:
    def update_by_sum(p: Array, parts: tuple[Array, ...], *rest: Array | float) -> None:
        rule.oracle(p, _sum_arrays(parts), *rest)

    return update_by_sum


_BY_SUM = {
    rule: FastPath(function, _oracle(rule))
    for rule, function in (
        (sgd_step, _sgd_by_sum),
        (momentum_step, _momentum_by_sum),
        (adam_step, _adam_by_sum),
    )
}
