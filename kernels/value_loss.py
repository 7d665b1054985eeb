"""mean_squared_error, absolute_error and huber: losses of values, by the difference d to each target.

    mean_squared_error    d²                                             2 d
    absolute_error        |d|                                            sign d, at 0 it is 0
    huber                 d²/2 up to delta, then delta (|d| - delta/2)   d, cut to ± delta

Huber, "Robust estimation of a location parameter" (1964).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .compiled import compiled
from .device import array_module
from .kernel import Array
from .loss import ElementLoss, Predicts


def _squared_error_arrays(x: Array, targets: Array, losses: Array) -> None:
    losses[...] = ((x - targets) ** 2).mean(axis=1)


@compiled(oracle=_squared_error_arrays)
def _squared_error(x: Array, targets: Array, losses: Array) -> None:
    number = x.dtype.type
    for n in range(x.shape[0]):
        total = number(0)
        for i in range(x.shape[1]):
            difference = x[n, i] - number(targets[n, i])
            total += difference * difference
        losses[n] = total / number(x.shape[1])


def _squared_error_gradient_arrays(x: Array, targets: Array, weights: Array, dx: Array) -> None:
    dx[...] = (x - targets) * (weights * (2 / x.shape[1]))[:, None]


@compiled(oracle=_squared_error_gradient_arrays)
def _squared_error_gradient(x: Array, targets: Array, weights: Array, dx: Array) -> None:
    number = x.dtype.type
    for n in range(x.shape[0]):
        factor = number(2) * weights[n] / number(x.shape[1])
        for i in range(x.shape[1]):
            dx[n, i] = (x[n, i] - number(targets[n, i])) * factor


@dataclass(frozen=True, slots=True)
class MeanSquaredError(ElementLoss):
    """The mean of a sample's squared differences."""

    name: ClassVar[str] = "mean_squared_error"
    predicts: ClassVar[Predicts] = "values"
    flops: ClassVar[tuple[float, float]] = (3.0, 2.0)

    def _losses(self, x: Array, targets: Array, losses: Array) -> None:
        _squared_error(x, targets, losses)

    def _gradient(self, x: Array, targets: Array, weights: Array, dx: Array) -> None:
        _squared_error_gradient(x, targets, weights, dx)


def _absolute_error_arrays(x: Array, targets: Array, losses: Array) -> None:
    losses[...] = abs(x - targets).mean(axis=1)


@compiled(oracle=_absolute_error_arrays)
def _absolute_error(x: Array, targets: Array, losses: Array) -> None:
    number = x.dtype.type
    for n in range(x.shape[0]):
        total = number(0)
        for i in range(x.shape[1]):
            total += abs(x[n, i] - number(targets[n, i]))
        losses[n] = total / number(x.shape[1])


def _absolute_error_gradient_arrays(x: Array, targets: Array, weights: Array, dx: Array) -> None:
    dx[...] = array_module(x).sign(x - targets) * (weights / x.shape[1])[:, None]


@compiled(oracle=_absolute_error_gradient_arrays)
def _absolute_error_gradient(x: Array, targets: Array, weights: Array, dx: Array) -> None:
    number = x.dtype.type
    for n in range(x.shape[0]):
        weight = weights[n] / number(x.shape[1])
        for i in range(x.shape[1]):
            dx[n, i] = np.sign(x[n, i] - number(targets[n, i])) * weight


@dataclass(frozen=True, slots=True)
class AbsoluteError(ElementLoss):
    """The mean of a sample's absolute differences (L1)."""

    name: ClassVar[str] = "absolute_error"
    predicts: ClassVar[Predicts] = "values"
    flops: ClassVar[tuple[float, float]] = (3.0, 3.0)

    def _losses(self, x: Array, targets: Array, losses: Array) -> None:
        _absolute_error(x, targets, losses)

    def _gradient(self, x: Array, targets: Array, weights: Array, dx: Array) -> None:
        _absolute_error_gradient(x, targets, weights, dx)


def _huber_arrays(x: Array, targets: Array, losses: Array, delta: float) -> None:
    size = abs(x - targets)
    near = array_module(x).minimum(size, x.dtype.type(delta))
    losses[...] = (near * (size - near / 2)).mean(axis=1)


@compiled(oracle=_huber_arrays)
def _huber(x: Array, targets: Array, losses: Array, delta: float) -> None:
    number = x.dtype.type
    limit, half = number(delta), number(0.5)
    for n in range(x.shape[0]):
        total = number(0)
        for i in range(x.shape[1]):
            size = abs(x[n, i] - number(targets[n, i]))
            near = min(size, limit)
            total += near * (size - half * near)  # both sides of delta, without a square that may overflow
        losses[n] = total / number(x.shape[1])


def _huber_gradient_arrays(x: Array, targets: Array, weights: Array, dx: Array, delta: float) -> None:
    dx[...] = array_module(x).clip(x - targets, -delta, delta) * (weights / x.shape[1])[:, None]


@compiled(oracle=_huber_gradient_arrays)
def _huber_gradient(x: Array, targets: Array, weights: Array, dx: Array, delta: float) -> None:
    number = x.dtype.type
    limit = number(delta)
    for n in range(x.shape[0]):
        weight = weights[n] / number(x.shape[1])
        for i in range(x.shape[1]):
            dx[n, i] = min(max(x[n, i] - number(targets[n, i]), -limit), limit) * weight


@dataclass(frozen=True, slots=True)
class Huber(ElementLoss):
    """Squares near the target and absolute differences from `delta` on: outliers pull no harder than that."""

    name: ClassVar[str] = "huber"
    predicts: ClassVar[Predicts] = "values"
    flops: ClassVar[tuple[float, float]] = (6.0, 4.0)

    delta: float = 1.0  # in units of the targets

    def __post_init__(self) -> None:
        if not 0 < self.delta < math.inf:
            raise ValueError(f"huber: delta is {self.delta}; give a number above 0")

    def _losses(self, x: Array, targets: Array, losses: Array) -> None:
        _huber(x, targets, losses, float(self.delta))

    def _gradient(self, x: Array, targets: Array, weights: Array, dx: Array) -> None:
        _huber_gradient(x, targets, weights, dx, float(self.delta))
