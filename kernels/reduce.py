"""reduce_mean: the mean over some axes of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, need_floats


@dataclass(frozen=True, slots=True)
class ReduceMean(Kernel):
    """The mean over `axes`, not the batch axis; `keepdims` leaves them as axes of extent 1."""

    name: ClassVar[str] = "reduce_mean"

    axes: tuple[int, ...]
    keepdims: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))  # job files give lists

    def _axes(self, rank: int) -> tuple[int, ...]:
        axes = tuple(axis + rank if axis < 0 else axis for axis in self.axes)
        if not axes or len(set(axes)) < len(axes) or not all(0 < axis < rank for axis in axes):
            raise ValueError(
                f"reduce_mean: axes are {self.axes}; give different ones of 1 to {rank - 1} for an input of "
                f"{rank} axes"
            )
        return axes

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x, halves=True)
        axes = self._axes(len(x.shape))
        kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(x.shape))
        left = tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes)
        return ArraySpec(kept if self.keepdims else left, x.dtype)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(float(x.size), float(x.size), 0.0, float(x.nbytes + self.output(x).nbytes))

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = b.inputs[0]
        array_module(x).mean(x, axis=self._axes(x.ndim), keepdims=self.keepdims, out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            axes = self._axes(dx.ndim)
            kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(dx.shape))
            count = prod(dx.shape[axis] for axis in axes)
            array_module(dx).divide(_broadcast(b.output_gradient.reshape(kept), dx), count, out=dx)


def _broadcast(a: Array, like: Array) -> Array:
    return array_module(like).broadcast_to(a, like.shape)
