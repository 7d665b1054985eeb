"""Gemm and MatMul: a dense layer where a matrix is stored, else products sample by sample."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.arithmetic import ArithmeticNumber
from ....kernels.linear import Dense
from ....kernels.matmul import MatMul
from ....kernels.rearrange import Transpose
from .algebra import both
from .node import At, Dynamic, Operand, Static, show


def gemm(at: At) -> Operand:
    """Gemm: a dense layer where the second matrix is stored, else a product of values."""
    alpha, beta = float(at.attributes.get("alpha", 1.0)), float(at.attributes.get("beta", 1.0))
    a = at.loose(0)
    if at.attributes.get("transA", 0):
        a = transposed(at, a, "columns")
    if isinstance(at.operand(1), Dynamic):
        b = at.value(1)
        if at.attributes.get("transB", 0):
            b = transposed(at, b, "rows")
        y = at.add(MatMul(), a, b, part="product")
        if alpha != 1:
            y = at.add(ArithmeticNumber("mul", alpha), y, part="alpha")
        return _plus(at, y, beta)
    weight = at.weight(1, "matrix")
    if alpha != 1:  # a copy of VGG's 411 MB takes a while
        weight = weight * np.float32(alpha)
    features = weight if at.attributes.get("transB", 0) else weight.T
    if not at.given(2):
        return dense(at, a, features, None)
    c = at.operand(2)
    if isinstance(c, Static) and c.array.ndim < 3 and prod(c.array.shape[:-1]) == 1:
        return dense(at, a, features, at.weight(2, "bias") * np.float32(beta))
    return _plus(at, dense(at, a, features, None, part="product"), beta)


def _plus(at: At, y: Dynamic, beta: float) -> Dynamic:
    """y + beta · (the third input of a Gemm)."""
    if not at.given(2):
        return y
    c = at.operand(2)
    if isinstance(c, Static):
        at.check_fixed(c)
        return both(at, "add", y, Static(c.array * np.float32(beta), c.trained))
    return both(at, "add", y, c if beta == 1 else at.add(ArithmeticNumber("mul", beta), c, part="beta"))


def dense(at: At, x: Dynamic, weight: NDArray[Any], bias: NDArray[Any] | None, part: str = "") -> Dynamic:
    """A dense layer along the last axis: `weight` (features, inputs), `bias` (features,) or one for all."""
    weights = [weight] if bias is None else [weight, np.broadcast_to(bias.reshape(-1), weight.shape[:1])]
    if x.spec.shape[-1] != weight.shape[1]:
        at.refuse(f"{show(x.shape)} has {x.spec.shape[-1]} columns, the stored matrix {weight.shape[1]} rows")
    kernel = Dense(weight.shape[0], bias=bias is not None)
    return at.along(x, at.add(kernel, x, weights=weights, part=part))


def transposed(at: At, x: Dynamic, part: str) -> Dynamic:
    """The value with its last two axes swapped."""
    x = at.plain(x)
    rank = len(x.spec.shape)
    at.axis(-2, len(x.shape))
    return at.add(Transpose((*range(1, rank - 2), rank - 1, rank - 2)), x, part=part)


def matmul(at: At) -> Operand:
    """MatMul: with a stored matrix a dense layer, else a product sample by sample."""
    first, second = at.operand(0), at.operand(1)
    if isinstance(first, Dynamic) and isinstance(second, Static) and second.array.ndim <= 2:
        weight = at.weight(1, "matrix")
        x = at.loose(0)
        if weight.ndim == 2:
            return dense(at, x, weight.T, None)
        y = at.plain(dense(at, x, weight[None], None, part="product"))
        return at.reshape(y, y.shape[:-1])
    if isinstance(first, Dynamic) and isinstance(second, Dynamic) and (first.folded or second.folded):
        first, second = at.settled(first), at.settled(second)
        if first.folded and second.folded and _folded_alike(first, second):
            y = at.add(MatMul(), first, second)
            return Dynamic(y.name, y.spec, (*first.shape[:-1], second.shape[-1]))
    ranks = [len(each.array.shape if isinstance(each, Static) else each.shape) for each in (first, second)]
    a, b = (_factor(at, each, max(ranks)) for each in (first, second))
    if at.writing.batched and (len(a.shape) != len(b.shape) or len(a.shape) < 3):
        at.refuse(
            f"{show(a.shape)} times {show(b.shape)} is no product sample by sample; a model without a batch "
            "axis is read with batched=False"
        )
    if ranks[0] == 1:
        a = at.reshape(a, (1, *a.shape), part="row")
    if ranks[1] == 1:
        b = at.reshape(b, (*b.shape, 1), part="column")
    if 1 not in ranks:
        return at.add(MatMul(), a, b)
    y = at.add(MatMul(), a, b, part="product")
    shape = list(y.shape)
    if ranks[1] == 1:
        shape.pop(-1)
    if ranks[0] == 1:
        shape.pop(-1 if ranks[1] == 1 else -2)
    return at.reshape(y, shape)


def _folded_alike(a: Dynamic, b: Dynamic) -> bool:
    """Whether both are matrices whose batch is folded with the heads of attention, in both alike."""
    ahead = [(x.shape[:-2], x.spec.shape[:-2], x.layout[:-2]) for x in (a, b)]
    return len(a.shape) >= 3 and not a.layout and ahead[0] == ahead[1]


def _factor(at: At, operand: Operand, rank: int) -> Dynamic:
    value = at.constant(operand, rank) if isinstance(operand, Static) else at.plain(operand)
    if value.spec.dtype != "float32":
        at.refuse(f"{value.name!r} is {value.spec.dtype}; Weft computes in float32")
    return value
