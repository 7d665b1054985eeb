"""softmax and log_softmax: exponentials along one axis over their sum, and the logarithm of that.

    y = exp(x - m) / Σ exp(x - m)          dx = y · (dy - Σ y dy)
    y = x - m - log Σ exp(x - m)           dx = dy - exp(y) · Σ dy

A logarithm taken of softmax's output would be -inf where that rounds to 0. The loss has one of its own.

Loops see (outer, extent, inner). Along the last axis (inner = 1), where models have it, rows are contiguous
and vectorise; elsewhere each sum steps over memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from . import elementary
from .compiled import compiled, flat
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split, need_floats, sample_axis
from .largest import largest
from .region import keep_whole, on_copies


def _rows_arrays(x: Array, y: Array) -> None:
    powers = array_module(x).exp(x - x.max(axis=1, keepdims=True))
    y[...] = powers / powers.sum(axis=1, keepdims=True)


@compiled(oracle=_rows_arrays)
def _rows(x: Array, y: Array) -> None:
    for row in range(x.shape[0]):
        top = largest(x, row, x.shape[1])
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            each = elementary.exp(x[row, c] - top)
            y[row, c] = each
            total += each
        inverse = x.dtype.type(1) / total
        for c in range(x.shape[1]):
            y[row, c] *= inverse


@compiled(oracle=_rows_arrays)
def _columns(x: Array, y: Array) -> None:
    outer, extent, inner = x.shape
    for o in range(outer):
        for i in range(inner):
            top = x[o, 0, i]
            for c in range(1, extent):
                top = x[o, c, i] if x[o, c, i] > top or x[o, c, i] != x[o, c, i] else top
            total = x.dtype.type(0)
            for c in range(extent):
                y[o, c, i] = elementary.exp(x[o, c, i] - top)
                total += y[o, c, i]
            inverse = x.dtype.type(1) / total
            for c in range(extent):
                y[o, c, i] *= inverse


def _gradient_arrays(y: Array, dy: Array, dx: Array) -> None:
    dx[...] = y * (dy - (y * dy).sum(axis=1, keepdims=True))


@compiled(oracle=_gradient_arrays)
def _gradient(y: Array, dy: Array, dx: Array) -> None:
    outer, extent, inner = y.shape
    for o in range(outer):
        for i in range(inner):
            mean = y.dtype.type(0)
            for c in range(extent):
                mean += y[o, c, i] * dy[o, c, i]
            for c in range(extent):
                dx[o, c, i] = y[o, c, i] * (dy[o, c, i] - mean)


@dataclass(frozen=True, slots=True)
class Softmax(Kernel):
    """Probabilities along `axis`, not the batch axis."""

    name: ClassVar[str] = "softmax"

    axis: int = -1

    def _axis(self, rank: int) -> int:
        return sample_axis(self.name, self.axis, rank)

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        need_floats(self.name, *inputs)
        self._axis(len(inputs[0].shape))
        return inputs[0]

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        shape = inputs[0].shape
        own = self._axis(len(shape))
        return tuple(Split(axis, extent) for axis, extent in enumerate(shape) if axis not in (0, own))

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        own = self._axis(len(inputs[0].shape))
        return ((*region[: own - 1], slice(0, inputs[0].shape[own]), *region[own:]),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        keep_whole(self, region, b.output, self._axis(b.output.ndim))
        on_copies(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(22.0 * x.size, 4.0 * x.size, 0.0, 2.0 * x.nbytes)

    def _view(self, a: Array) -> Array:
        axis = self._axis(a.ndim)
        return flat(a).reshape(prod(a.shape[:axis]), a.shape[axis], prod(a.shape[axis + 1 :]))

    def forward(self, b: Buffers, mode: Mode) -> None:
        x, y = self._view(b.inputs[0]), self._view(b.output)
        if x.shape[2] == 1:
            _rows(x.reshape(x.shape[:2]), y.reshape(y.shape[:2]))
        else:
            _columns(x, y)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _gradient(*map(self._view, (b.output, b.output_gradient, b.input_gradients[0])))


def _log_arrays(x: Array, y: Array) -> None:
    xp = array_module(x)
    below = x - x.max(axis=1, keepdims=True)
    y[...] = below - xp.log(xp.exp(below).sum(axis=1, keepdims=True))


@compiled(oracle=_log_arrays)
def _log(x: Array, y: Array) -> None:
    outer, extent, inner = x.shape
    for o in range(outer):
        for i in range(inner):
            top = x[o, 0, i]
            for c in range(1, extent):
                top = x[o, c, i] if x[o, c, i] > top or x[o, c, i] != x[o, c, i] else top
            total = x.dtype.type(0)
            for c in range(extent):
                total += elementary.exp(x[o, c, i] - top)
            less = math.log(total)
            for c in range(extent):
                y[o, c, i] = (x[o, c, i] - top) - less


def _log_gradient_arrays(y: Array, dy: Array, dx: Array) -> None:
    dx[...] = dy - array_module(y).exp(y) * dy.sum(axis=1, keepdims=True)


@compiled(oracle=_log_gradient_arrays)
def _log_gradient(y: Array, dy: Array, dx: Array) -> None:
    outer, extent, inner = y.shape
    for o in range(outer):
        for i in range(inner):
            total = y.dtype.type(0)
            for c in range(extent):
                total += dy[o, c, i]
            for c in range(extent):
                dx[o, c, i] = dy[o, c, i] - elementary.exp(y[o, c, i]) * total


@dataclass(frozen=True, slots=True)
class LogSoftmax(Softmax):
    """Logarithms of probabilities along `axis`, not the batch axis."""

    name: ClassVar[str] = "log_softmax"

    def forward(self, b: Buffers, mode: Mode) -> None:
        _log(self._view(b.inputs[0]), self._view(b.output))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _log_gradient(*map(self._view, (b.output, b.output_gradient, b.input_gradients[0])))
