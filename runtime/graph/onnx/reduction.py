"""Operators that leave one number of some axes: means, sums, the largest, norms.

Where the file has moved the batch, (places, N, features), these axes go from where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from ....kernels.arithmetic import Arithmetic
from ....kernels.function import Exp, Log
from ....kernels.kernel import Kernel
from ....kernels.piecewise import Clip
from ....kernels.reduce import Reduce, ReduceMax, ReduceMean, ReduceSum
from ....kernels.shape import Add
from .node import At, Dynamic, Operand

Reading = Callable[[At], Operand]

LARGEST = float(np.finfo(np.float32).max)


def reduce(kind: type[Reduce]) -> Reading:
    """ReduceMean, ReduceSum, ReduceMax, ReduceL2; over all axes where none is given."""
    return lambda at: _reduce(at, kind)


def _reduce(at: At, kind: type[Reduce]) -> Operand:
    x, axes = _operands(at)
    if not axes:
        if kind not in (ReduceMean, ReduceSum, ReduceMax):
            _refuse_none(at)
        return x
    return _over(at, kind, x, axes)


def reduce_of(kind: type[Reduce], before: Kernel, after: Kernel | None = None) -> Reading:
    """ReduceMin, ReduceL1, ReduceSumSquare: one of these, of another function of each element."""
    return lambda at: _reduce_of(at, kind, before, after)


def _reduce_of(at: At, kind: type[Reduce], before: Kernel, after: Kernel | None) -> Operand:
    x, axes = _operands(at)
    if not axes:
        _refuse_none(at)
    each = at.along(x, at.add(before, x, part="each"))
    y = _over(at, kind, each, axes, part="" if after is None else "reduced")
    return y if after is None else at.along(y, at.add(after, y))


def reduce_log_sum_exp(at: At) -> Operand:
    """ReduceLogSumExp: of what is left without the largest, which is added again and cannot overflow."""
    x, axes = _operands(at)
    if not axes:
        _refuse_none(at)
    own = _own(at, x, axes)
    largest = at.add(at.kernel(ReduceMax, own), x, part="any")
    largest = at.add(Clip(-LARGEST, LARGEST), largest, part="largest")  # an infinity less itself is no number
    powers = at.add(Exp(), at.add(Arithmetic("sub"), x, largest, part="less"), part="powers")
    below = at.add(Log(), at.add(at.kernel(ReduceSum, own), powers, part="sum"), part="log")
    return _without(at, x, axes, at.add(Add(), below, largest, part="" if _keeps(at) else "kept"))


def _operands(at: At) -> tuple[Dynamic, list[int]]:
    """The value and its axes that go, as the file counts them; none where nothing is to be done."""
    x = at.along_axis(0)
    if x.spec.dtype != "float32":
        at.refuse(f"{x.name!r} is {x.spec.dtype}; Weft computes in float32")
    rank = len(x.shape)
    axes = at.integers(1, "axes")
    if not axes:
        axes = [] if at.attributes.get("noop_with_empty_axes", 0) else list(range(rank))
    return x, at.counted(axes, rank)


def _refuse_none(at: At) -> NoReturn:
    at.refuse("it has no axes and noop_with_empty_axes, which Weft reads of means, sums and maxima")


def _own(at: At, x: Dynamic, axes: list[int]) -> tuple[int, ...]:
    """The axes as Weft counts them."""
    return tuple(sorted(at.place(x, axis) for axis in axes))


def _keeps(at: At) -> bool:
    return bool(at.attributes.get("keepdims", 1))


def _over(at: At, kind: type[Reduce], x: Dynamic, axes: list[int], part: str = "") -> Dynamic:
    """The value without these axes, or with them as 1."""
    own = _own(at, x, axes)
    if not x.layout:
        return at.add(at.kernel(kind, own, _keeps(at)), x, part=part)
    return _without(at, x, axes, at.add(at.kernel(kind, own), x, part=part))


def _without(at: At, x: Dynamic, axes: list[int], reduced: Dynamic) -> Dynamic:
    """`reduced`, in which these axes of x are 1, as the file has it."""
    for axis in axes:
        x = reduced = at.at_place(x, reduced, axis)
    rest = [extent for axis, extent in enumerate(x.shape) if axis not in axes]
    return reduced if _keeps(at) else at.reshape(reduced, rest, part="")
