"""arg_max, top_k, top_k_indices and cumulative_sum: along one axis of every sample, by the order in it.

Of equal elements the first comes first, as ONNX has it. What is no number counts as the largest in an order;
arg_max finds it also where the smallest is asked for, as NumPy, CuPy and PyTorch do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, sample_axis


@dataclass(frozen=True, slots=True)
class _AlongAxis(Kernel):
    """What they share: `axis`, not the batch axis."""

    axis: int = -1

    def _axis(self, rank: int) -> int:
        return sample_axis(self.name, self.axis, rank)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        steps = float(x.size * (x.shape[self._axis(len(x.shape))]).bit_length())
        return Cost(steps, float(x.size), 0.0, float(x.nbytes + self.output(x).nbytes))


@dataclass(frozen=True, slots=True)
class ArgMax(_AlongAxis):
    """The place (int64) of the largest, or of the `smallest`; of equal ones the first, or the `last`."""

    name: ClassVar[str] = "arg_max"
    differentiable: ClassVar[tuple[int, ...] | None] = ()

    keepdims: bool = True
    smallest: bool = False
    last: bool = False

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        shape, axis = inputs[0].shape, self._axis(len(inputs[0].shape))
        return ArraySpec((*shape[:axis], *(1,) * self.keepdims, *shape[axis + 1 :]), "int64")

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = b.inputs[0]
        xp, axis = array_module(x), self._axis(x.ndim)
        find = xp.argmin if self.smallest else xp.argmax
        found = find(xp.flip(x, axis) if self.last else x, axis=axis)
        b.output[...] = (x.shape[axis] - 1 - found if self.last else found).reshape(b.output.shape)


@dataclass(frozen=True, slots=True)
class _Ranked(_AlongAxis):
    """The first `k` along an axis, the largest first, or with `smallest` the smallest."""

    k: int = 1
    smallest: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"{self.name}: k is {self.k}; give at least 1")

    def _ranked(self, x: ArraySpec, dtype: str) -> ArraySpec:
        axis = self._axis(len(x.shape))
        if self.k > x.shape[axis]:
            raise ValueError(f"{self.name}: k is {self.k}; axis {axis} of {x.shape} has {x.shape[axis]}")
        return ArraySpec((*x.shape[:axis], self.k, *x.shape[axis + 1 :]), dtype)

    def _places(self, x: Array) -> Array:
        """Of the first `k`."""
        xp, axis = array_module(x), self._axis(x.ndim)
        first = (slice(None),) * axis + (slice(self.k),)
        if self.smallest:
            return xp.argsort(x, axis=axis, kind="stable")[first]
        # Twice the other way round: the order from the end leaves equal elements with the last in front.
        order = xp.flip(xp.argsort(xp.flip(x, axis), axis=axis, kind="stable"), axis)
        return x.shape[axis] - 1 - order[first]


@dataclass(frozen=True, slots=True)
class TopK(_Ranked):
    """The `k` largest elements, or with `smallest` the smallest, in order; each has its gradient."""

    name: ClassVar[str] = "top_k"

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        return self._ranked(inputs[0], inputs[0].dtype)

    def saved(self, *inputs: ArraySpec) -> tuple[ArraySpec, ...]:
        return (self._ranked(inputs[0], "int64"),)

    def forward(self, b: Buffers, mode: Mode) -> None:
        x, (places,) = b.inputs[0], b.saved
        places[...] = self._places(x)
        b.output[...] = array_module(x).take_along_axis(x, places, axis=self._axis(x.ndim))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx, (places,) = b.input_gradients[0], b.saved
        if dx is not None:
            at = list(array_module(dx).ogrid[tuple(slice(extent) for extent in places.shape)])
            at[self._axis(dx.ndim)] = places
            dx.fill(0)
            dx[tuple(at)] = b.output_gradient


@dataclass(frozen=True, slots=True)
class TopKIndices(_Ranked):
    """The places (int64) of the elements of `top_k`."""

    name: ClassVar[str] = "top_k_indices"
    differentiable: ClassVar[tuple[int, ...] | None] = ()

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        return self._ranked(inputs[0], "int64")

    def forward(self, b: Buffers, mode: Mode) -> None:
        b.output[...] = self._places(b.inputs[0])


@dataclass(frozen=True, slots=True)
class CumulativeSum(_AlongAxis):
    """Each element with all before it, or with `reverse` behind it; with `exclusive` these alone."""

    name: ClassVar[str] = "cumulative_sum"

    exclusive: bool = False
    reverse: bool = False

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        self._axis(len(inputs[0].shape))
        if inputs[0].dtype == "bool":
            raise ValueError(f"{self.name}: an input is {inputs[0].shape} bool; put a cast before it")
        return inputs[0]

    def forward(self, b: Buffers, mode: Mode) -> None:
        self._add_up(b.inputs[0], b.output, self.reverse)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            self._add_up(b.output_gradient, b.input_gradients[0], not self.reverse)

    def _add_up(self, x: Array, y: Array, reverse: bool) -> None:
        xp, axis = array_module(x), self._axis(x.ndim)
        if reverse:
            x, y = xp.flip(x, axis), xp.flip(y, axis)
        if self.exclusive:
            ahead = (slice(None),) * axis
            y[(*ahead, slice(1))] = 0
            x, y = x[(*ahead, slice(-1))], y[(*ahead, slice(1, None))]
        y[...] = xp.cumsum(x, axis=axis, dtype=x.dtype)
