"""matmul: the product of two values, sample by sample; dense is the product with a weight.

y = a b        da = dy bᵀ        db = aᵀ dy            (N, …, M, K) (N, …, K, P) -> (N, …, M, P)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .arithmetic import aligned, broadcast, fold
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split
from .region import broadcast_part, on_views


@dataclass(frozen=True, slots=True)
class MatMul(Kernel):
    """Matrices in the last two axes; the axes between the batch and them are broadcast from the right."""

    name: ClassVar[str] = "matmul"
    arity: ClassVar[int | None] = 2

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        a, b = inputs
        if min(len(a.shape), len(b.shape)) < 3 or a.shape[0] != b.shape[0] or a.dtype != b.dtype:
            raise ValueError(
                f"matmul: inputs are {a.shape} {a.dtype} and {b.shape} {b.dtype}; each needs a batch axis "
                "and matrices"
            )
        if a.shape[-1] != b.shape[-2]:
            raise ValueError(
                f"matmul: {a.shape} has {a.shape[-1]} columns, {b.shape} has {b.shape[-2]} rows: unequal"
            )
        between = broadcast(self.name, a.shape[1:-2], b.shape[1:-2])
        return ArraySpec((a.shape[0], *between, a.shape[-2], b.shape[-1]), a.dtype)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        shape = self.output(*inputs).shape
        return tuple(Split(axis, extent) for axis, extent in enumerate(shape) if axis > 0)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        a, b = inputs
        *between, rows, columns = region
        deep = slice(0, a.shape[-1])
        return (
            (*broadcast_part(tuple(between), a.shape[1:-2]), rows, deep),
            (*broadcast_part(tuple(between), b.shape[1:-2]), deep, columns),
        )

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        a, b = inputs
        y = self.output(a, b)
        product = 2.0 * y.size * a.shape[-1]
        return Cost(product, 2 * product, 0.0, float(a.nbytes + b.nbytes + y.nbytes))

    def forward(self, b: Buffers, mode: Mode) -> None:
        first, second = (aligned(x, b.output.ndim - 1) for x in b.inputs)
        array_module(b.output).matmul(first, second, out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dy = b.output_gradient
        first, second = (aligned(x, dy.ndim - 1) for x in b.inputs)
        da, db = b.input_gradients
        if da is not None:
            _product(dy, second.swapaxes(-1, -2), da)
        if db is not None:
            _product(first.swapaxes(-1, -2), dy, db)


def _product(a: Array, b: Array, into: Array) -> None:
    """a b, summed over the axes along which `into` was broadcast."""
    xp = array_module(into)
    view = aligned(into, a.ndim - 1)
    if view.shape[:-2] == a.shape[:-2] == b.shape[:-2]:
        xp.matmul(a, b, out=view)
    else:
        fold(xp.matmul(a, b), into)
