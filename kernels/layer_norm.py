"""layer_norm: every place's features less their mean, over their deviation; then a learned weight and bias.

    x̂ = (x - mean) · r,   r = 1 / √(variance + ε)       y = x̂ · weight + bias         (…, C): one mean a row
    dx = r · (h - mean h - x̂ · mean(h x̂))               h = dy · weight

Mean and r are kept, not x̂: it is two operations away, and as large as x.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from .compiled import compiled, flat
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, ParameterSpec, Region, Split, need_floats
from .region import keep_whole, on_copies


def _rows(a: Array) -> Array:
    """(N, …, C) as (N · …, C): a view."""
    return flat(a).reshape(-1, a.shape[-1])


def _forward_arrays(
    x: Array, weight: Array, bias: Array, y: Array, mean: Array, r: Array, epsilon: float
) -> None:
    mean[...] = x.mean(axis=1)
    r[...] = (x.var(axis=1) + epsilon) ** -0.5
    y[...] = (x - mean[:, None]) * r[:, None] * weight + bias


@compiled(oracle=_forward_arrays)
def _forward(x: Array, weight: Array, bias: Array, y: Array, mean: Array, r: Array, epsilon: float) -> None:
    number = x.dtype.type
    width = number(x.shape[1])
    for row in range(x.shape[0]):
        total = number(0)
        for c in range(x.shape[1]):
            total += x[row, c]
        middle = total / width
        total = number(0)
        for c in range(x.shape[1]):
            total += (x[row, c] - middle) * (x[row, c] - middle)
        factor = number(1) / np.sqrt(total / width + number(epsilon))
        for c in range(x.shape[1]):
            y[row, c] = (x[row, c] - middle) * factor * weight[c] + bias[c]
        mean[row] = middle
        r[row] = factor


def _input_gradient_arrays(x: Array, weight: Array, mean: Array, r: Array, dy: Array, dx: Array) -> None:
    h = dy * weight
    normal = (x - mean[:, None]) * r[:, None]
    along = (h * normal).mean(axis=1, keepdims=True)
    dx[...] = (h - h.mean(axis=1, keepdims=True) - normal * along) * r[:, None]


@compiled(oracle=_input_gradient_arrays)
def _input_gradient(x: Array, weight: Array, mean: Array, r: Array, dy: Array, dx: Array) -> None:
    number = x.dtype.type
    width = number(x.shape[1])
    for row in range(x.shape[0]):
        middle, factor = mean[row], r[row]
        level, along = number(0), number(0)
        for c in range(x.shape[1]):
            h = dy[row, c] * weight[c]
            level += h
            along += h * (x[row, c] - middle)
        level /= width
        along *= factor * factor / width
        for c in range(x.shape[1]):
            dx[row, c] = (dy[row, c] * weight[c] - level - (x[row, c] - middle) * along) * factor


def _weight_gradient_arrays(x: Array, mean: Array, r: Array, dy: Array, dweight: Array, dbias: Array) -> None:
    dweight[...] = (dy * (x - mean[:, None]) * r[:, None]).sum(axis=0)
    dbias[...] = dy.sum(axis=0)


@compiled(oracle=_weight_gradient_arrays)
def _weight_gradient(x: Array, mean: Array, r: Array, dy: Array, dweight: Array, dbias: Array) -> None:
    dweight[:] = 0
    dbias[:] = 0
    for row in range(x.shape[0]):
        middle, factor = mean[row], r[row]
        for c in range(x.shape[1]):
            dweight[c] += dy[row, c] * (x[row, c] - middle) * factor
            dbias[c] += dy[row, c]


@dataclass(frozen=True, slots=True)
class LayerNorm(Kernel):
    """Normalises the last axis of (N, …, C). Ba, Kiros and Hinton, arXiv 1607.06450."""

    name: ClassVar[str] = "layer_norm"

    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if not self.epsilon > 0.0:
            raise ValueError(f"layer_norm: epsilon is {self.epsilon}; it is above 0")

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x)
        if len(x.shape) < 2:
            raise ValueError(f"layer_norm: input has shape {x.shape}; it needs batch and feature axes")
        return x

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        features = inputs[0].shape[-1:]
        return (
            ParameterSpec("weight", features, "ones", decay=False),
            ParameterSpec("bias", features, "zeros", decay=False),
        )

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        (x,) = inputs
        return (ArraySpec((prod(x.shape[:-1]),), x.dtype),) * 2

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return tuple(Split(axis, extent) for axis, extent in enumerate(inputs[0].shape[:-1]) if axis > 0)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return ((*region[:-1], slice(0, inputs[0].shape[-1])),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, b.output.ndim - 1)
        on_copies(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(8.0 * x.size, 9.0 * x.size, 5.0 * x.size, 2.0 * x.nbytes)

    def forward(self, b: Buffers, mode: Mode) -> None:
        (weight, bias), (mean, r) = b.parameters, b.saved
        _forward(_rows(b.inputs[0]), weight, bias, _rows(b.output), mean, r, self.epsilon)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            x, dy, (mean, r) = _rows(b.inputs[0]), _rows(b.output_gradient), b.saved
            _input_gradient(x, b.parameters[0], mean, r, dy, _rows(dx))

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        (mean, r), (dweight, dbias) = b.saved, b.weight_gradients
        _weight_gradient(_rows(b.inputs[0]), mean, r, _rows(b.output_gradient), dweight, dbias)
