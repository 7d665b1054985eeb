"""clip, leaky_relu and elu: functions with corners, one compiled pass over memory each.

NaN stays NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from . import elementary
from .activation import Elementwise
from .compiled import compiled, flat
from .device import array_module
from .kernel import Array, Buffers, Mode


def _clip_arrays(x: Array, y: Array, least: float, most: float) -> None:
    array_module(x).clip(x, least, most, out=y)


@compiled(oracle=_clip_arrays)
def _clip(x: Array, y: Array, least: float, most: float) -> None:
    for i in range(x.size):
        y[i] = least if x[i] < least else most if x[i] > most else x[i]


def _clip_gradient_arrays(y: Array, dy: Array, dx: Array, least: float, most: float) -> None:
    array_module(y).multiply(dy, (y > least) & (y < most), out=dx)


@compiled(oracle=_clip_gradient_arrays)
def _clip_gradient(y: Array, dy: Array, dx: Array, least: float, most: float) -> None:
    zero = y.dtype.type(0)
    for i in range(y.size):
        dx[i] = dy[i] if least < y[i] < most else zero


@dataclass(frozen=True, slots=True)
class Clip(Elementwise):
    """min(max(x, minimum), maximum), with 0 and 6 known as ReLU6; at the corners its gradient is 0."""

    name: ClassVar[str] = "clip"
    flops: ClassVar[tuple[float, float]] = (2.0, 2.0)

    minimum: float = -math.inf
    maximum: float = math.inf

    def __post_init__(self) -> None:
        if not self.minimum <= self.maximum:
            raise ValueError(f"clip: {self.minimum} to {self.maximum}: minimum must not be above maximum")

    def _bounds(self, x: Array) -> tuple[float, float]:
        return x.dtype.type(self.minimum), x.dtype.type(self.maximum)

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = flat(b.inputs[0])
        _clip(x, flat(b.output), *self._bounds(x))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            y = flat(b.output)
            _clip_gradient(y, flat(b.output_gradient), flat(b.input_gradients[0]), *self._bounds(y))


def _leaky_arrays(x: Array, y: Array, slope: float) -> None:
    y[...] = array_module(x).where(x < 0, x * slope, x)


@compiled(oracle=_leaky_arrays)
def _leaky(x: Array, y: Array, slope: float) -> None:
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = x[i] * slope if x[i] < zero else x[i]


def _leaky_gradient_arrays(x: Array, dy: Array, dx: Array, slope: float) -> None:
    dx[...] = array_module(x).where(x > 0, dy, dy * slope)


@compiled(oracle=_leaky_gradient_arrays)
def _leaky_gradient(x: Array, dy: Array, dx: Array, slope: float) -> None:
    zero = x.dtype.type(0)
    for i in range(x.size):
        dx[i] = dy[i] if x[i] > zero else dy[i] * slope


@dataclass(frozen=True, slots=True)
class LeakyReLU(Elementwise):
    """x where that is positive, else slope · x (Maas, Hannun and Ng 2013); its gradient at 0 is the slope."""

    name: ClassVar[str] = "leaky_relu"
    flops: ClassVar[tuple[float, float]] = (2.0, 2.0)

    slope: float = 0.01

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = flat(b.inputs[0])
        _leaky(x, flat(b.output), x.dtype.type(self.slope))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            x = flat(b.inputs[0])
            dx = flat(b.input_gradients[0])
            _leaky_gradient(x, flat(b.output_gradient), dx, x.dtype.type(self.slope))


def _elu_arrays(x: Array, y: Array, alpha: float) -> None:
    xp = array_module(x)
    y[...] = xp.where(x < 0, xp.expm1(xp.minimum(x, 0)) * alpha, x)


@compiled(oracle=_elu_arrays)
def _elu(x: Array, y: Array, alpha: float) -> None:
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        y[i] = alpha * (elementary.exp(x[i]) - one) if x[i] < zero else x[i]


def _elu_gradient_arrays(x: Array, y: Array, dy: Array, dx: Array, alpha: float) -> None:
    dx[...] = dy * array_module(x).where(x > 0, x.dtype.type(1), y + alpha)


@compiled(oracle=_elu_gradient_arrays)
def _elu_gradient(x: Array, y: Array, dy: Array, dx: Array, alpha: float) -> None:
    zero = x.dtype.type(0)
    for i in range(x.size):
        dx[i] = dy[i] if x[i] > zero else dy[i] * (y[i] + alpha)


@dataclass(frozen=True, slots=True)
class ELU(Elementwise):
    """x where that is positive, else alpha · (exp(x) - 1). Clevert and others, arXiv 1511.07289."""

    name: ClassVar[str] = "elu"
    flops: ClassVar[tuple[float, float]] = (18.0, 2.0)

    alpha: float = 1.0

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = flat(b.inputs[0])
        _elu(x, flat(b.output), x.dtype.type(self.alpha))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            x, y, dx = flat(b.inputs[0]), flat(b.output), flat(b.input_gradients[0])
            _elu_gradient(x, y, flat(b.output_gradient), dx, x.dtype.type(self.alpha))
