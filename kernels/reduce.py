"""reduce_mean, reduce_sum, reduce_max and reduce_l2: over some axes of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, need_floats


@dataclass(frozen=True, slots=True)
class Reduce(Kernel):
    """What they share: `axes`, not the batch axis; `keepdims` leaves them as axes of extent 1."""

    axes: tuple[int, ...]
    keepdims: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))  # job files give lists

    def _axes(self, rank: int) -> tuple[int, ...]:
        axes = tuple(axis + rank if axis < 0 else axis for axis in self.axes)
        if not axes or len(set(axes)) < len(axes) or not all(0 < axis < rank for axis in axes):
            raise ValueError(
                f"{self.name}: axes are {self.axes}; give different ones of 1 to {rank - 1} for an input of "
                f"{rank} axes"
            )
        return axes

    def _kept(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The output's shape with the axes that are gone as 1."""
        axes = self._axes(len(shape))
        return tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x, halves=True)
        axes, kept = self._axes(len(x.shape)), self._kept(x.shape)
        left = tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes)
        return ArraySpec(kept if self.keepdims else left, x.dtype)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(float(x.size), float(x.size), 0.0, float(x.nbytes + self.output(x).nbytes))

    def _across(self, a: Array, like: Array) -> Array:
        """An array of the output's shape broadcast to the input's."""
        return array_module(like).broadcast_to(a.reshape(self._kept(like.shape)), like.shape)


@dataclass(frozen=True, slots=True)
class ReduceMean(Reduce):
    """The mean over `axes`."""

    name: ClassVar[str] = "reduce_mean"

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = b.inputs[0]
        array_module(x).mean(x, axis=self._axes(x.ndim), keepdims=self.keepdims, out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            count = prod(dx.shape[axis] for axis in self._axes(dx.ndim))
            array_module(dx).divide(self._across(b.output_gradient, dx), count, out=dx)


@dataclass(frozen=True, slots=True)
class ReduceSum(Reduce):
    """The sum over `axes`."""

    name: ClassVar[str] = "reduce_sum"

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = b.inputs[0]
        array_module(x).sum(x, axis=self._axes(x.ndim), keepdims=self.keepdims, out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            b.input_gradients[0][...] = self._across(b.output_gradient, b.input_gradients[0])


@dataclass(frozen=True, slots=True)
class ReduceMax(Reduce):
    """The largest over `axes`; where several are, they share the gradient evenly."""

    name: ClassVar[str] = "reduce_max"

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = b.inputs[0]
        array_module(x).max(x, axis=self._axes(x.ndim), keepdims=self.keepdims, out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            largest = b.inputs[0] == self._across(b.output, dx)
            count = largest.sum(axis=self._axes(dx.ndim), keepdims=True)  # 0 where the largest is no number
            share = b.output_gradient.reshape(count.shape) / count.clip(1).astype(dx.dtype)
            array_module(dx).multiply(share, largest, out=dx)


@dataclass(frozen=True, slots=True)
class ReduceL2(Reduce):
    """The root of the sum of squares over `axes`; where that is 0, so is the gradient."""

    name: ClassVar[str] = "reduce_l2"

    def forward(self, b: Buffers, mode: Mode) -> None:
        x, xp = b.inputs[0], array_module(b.inputs[0])
        xp.sum(x * x, axis=self._axes(x.ndim), keepdims=self.keepdims, out=b.output)
        xp.sqrt(b.output, out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            xp = array_module(dx)
            length = xp.where(b.output == 0, 1, b.output)  # x is 0 there
            xp.multiply(b.inputs[0], self._across(b.output_gradient / length, dx), out=dx)
