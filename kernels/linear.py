"""dense: the fully connected layer, y = x Wᵀ + b, as three matrix products.

forward          (M, in) x (out, in)ᵀ  -> (M, out)      M = every leading axis together
input gradient   (M, out) x (out, in)  -> (M, in)
weight gradient  (M, out)ᵀ x (M, in)   -> (out, in)     rows of it are contiguous: a portion for the wire
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from .blas import product
from .compiled import flat
from .device import array_module
from .kernel import (
    Array,
    ArraySpec,
    Buffers,
    ByRows,
    Cost,
    Mode,
    ParameterSpec,
    Region,
    Split,
    need_floats,
    with_last,
)
from .region import keep_whole

# Blocks of so many output neurons cost 13 to 19% more than all at once (512 samples, 1024 inputs), of 256 at
# most 6%: each packs the other matrix anew. OpenBLAS takes 12 at a time on AVX-512 and rounds what is left
# over differently: cut in multiples of 48, blocks of weight gradients above a million products are those of
# the whole to the bit; oneDNN's are with any cut that leaves no neuron alone. Blocks of the output are so
# within rounding only.
ROWS_GRANULE = 48


def _matrix(a: Array) -> Array:
    """A view of `a` with every leading axis folded into one."""
    return flat(a).reshape(-1, a.shape[-1])


@dataclass(frozen=True, slots=True)
class Dense(ByRows):
    """Fully connected layer (…, in) -> (…, features); weight (features, in), bias (features)."""

    name: ClassVar[str] = "dense"
    input_axis: ClassVar[int | None] = -1

    features: int
    bias: bool = True

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"dense: features is {self.features}; give at least 1")

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x, halves=True)
        if len(x.shape) < 2:
            raise ValueError(f"dense: input has shape {x.shape}; it needs a batch axis and a feature axis")
        return ArraySpec((*x.shape[:-1], self.features), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        wide = inputs[0].shape[-1]
        # He et al. 2015 (normal, gain √2): every packaged model follows dense by ReLU or GELU
        weight = ParameterSpec("weight", (self.features, wide), "normal", sqrt(2 / wide))
        bias = ParameterSpec("bias", (self.features,), "zeros", decay=False)
        return (weight, bias) if self.bias else (weight,)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return (Split(len(inputs[0].shape) - 1, self.features, ROWS_GRANULE, weight_axis=0),)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return ((*region[:-1], slice(0, inputs[0].shape[-1])),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, *range(1, b.output.ndim - 1))
        self.forward(b, mode, region[-1])

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        product = 2.0 * x.size * self.features
        adds = float(x.size // x.shape[-1] * self.features) if self.bias else 0.0
        moved = x.nbytes + self.output(x).nbytes + self.features * x.shape[-1] * 4.0
        return Cost(product + adds, product, product + adds, moved)

    def forward(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        # The columns of y are written where they lie: nothing is copied.
        x, y = _matrix(b.inputs[0]), _matrix(b.output)[:, rows]
        product(x, b.parameters[0][rows].T, y, of=x.size * self.features)
        if self.bias:
            array_module(y).add(y, b.parameters[1][rows], out=y)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            product(_matrix(b.output_gradient), b.parameters[0], _matrix(dx), of=dx.size * self.features)

    def weight_gradient(self, b: Buffers, mode: Mode, rows: slice = slice(None)) -> None:
        x, dy = _matrix(b.inputs[0]), _matrix(b.output_gradient)
        product(dy[:, rows].T, x, b.weight_gradients[0][rows], of=x.size * self.features)
        if self.bias and with_last(rows, self.features):
            array_module(dy).sum(dy, axis=0, out=b.weight_gradients[1])
