"""Functions of one element that are no activations, as exports spell them out: √ to erf, rounding, cast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from . import elementary
from .activation import Elementwise
from .compiled import compiled, flat
from .device import array_module, erf
from .kernel import Array, ArraySpec, Buffers, Cost, Mode, Region
from .region import on_views

Number = Literal[
    "float32", "float64", "float16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
]  # fmt: skip

Neighbour = Literal["below", "above", "nearest"]
FUNCTIONS: dict[str, str] = {"below": "floor", "above": "ceil", "nearest": "rint"}
"""NumPy's and CuPy's function for each."""


@dataclass(frozen=True, slots=True)
class _OfNumPy(Elementwise):
    """What NumPy and CuPy compute under the kernel's own name."""

    def forward(self, b: Buffers, mode: Mode) -> None:
        getattr(array_module(b.output), self.name)(b.inputs[0], out=b.output)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)


@dataclass(frozen=True, slots=True)
class Sqrt(_OfNumPy):
    """√x, NaN below 0; its gradient at 0 is infinite."""

    name: ClassVar[str] = "sqrt"
    flops: ClassVar[tuple[float, float]] = (4.0, 4.0)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            xp = array_module(dx)
            xp.divide(b.output_gradient, b.output, out=dx)
            xp.multiply(dx, 0.5, out=dx)


@dataclass(frozen=True, slots=True)
class Exp(_OfNumPy):
    """e to the power of x."""

    name: ClassVar[str] = "exp"
    flops: ClassVar[tuple[float, float]] = (16.0, 1.0)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            array_module(dx).multiply(b.output_gradient, b.output, out=dx)


@dataclass(frozen=True, slots=True)
class Log(_OfNumPy):
    """The natural logarithm: -inf of 0, and NaN below."""

    name: ClassVar[str] = "log"
    flops: ClassVar[tuple[float, float]] = (20.0, 4.0)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            array_module(dx).divide(b.output_gradient, b.inputs[0], out=dx)


@dataclass(frozen=True, slots=True)
class Sin(_OfNumPy):
    """The sine of x."""

    name: ClassVar[str] = "sin"
    flops: ClassVar[tuple[float, float]] = (20.0, 21.0)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            xp = array_module(dx)
            xp.multiply(b.output_gradient, xp.cos(b.inputs[0]), out=dx)


@dataclass(frozen=True, slots=True)
class Cos(_OfNumPy):
    """The cosine of x."""

    name: ClassVar[str] = "cos"
    flops: ClassVar[tuple[float, float]] = (20.0, 22.0)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            xp = array_module(dx)
            xp.multiply(b.output_gradient, -xp.sin(b.inputs[0]), out=dx)


@dataclass(frozen=True, slots=True)
class ArcTan(_OfNumPy):
    """The angle between -π/2 and π/2 whose tangent is x."""

    name: ClassVar[str] = "arctan"
    flops: ClassVar[tuple[float, float]] = (20.0, 6.0)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            x = b.inputs[0]
            array_module(dx).divide(b.output_gradient, 1 + x * x, out=dx)


@dataclass(frozen=True, slots=True)
class Rounded(Elementwise):
    """A whole number beside x: the one below, the one above, or the nearer, of two the even one.

    Halves go to the even number as in NumPy, PyTorch and ONNX: 0.5 to 0, 1.5 and 2.5 to 2. A step has no
    gradient that would train anything.
    """

    name: ClassVar[str] = "rounded"
    flops: ClassVar[tuple[float, float]] = (1.0, 0.0)
    differentiable: ClassVar[tuple[int, ...] | None] = ()

    to: Neighbour = "nearest"

    def __post_init__(self) -> None:
        if self.to not in FUNCTIONS:
            raise ValueError(f"rounded: to is {self.to!r}; give one of {', '.join(FUNCTIONS)}")

    def forward(self, b: Buffers, mode: Mode) -> None:
        getattr(array_module(b.output), FUNCTIONS[self.to])(b.inputs[0], out=b.output)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)


def _erf_arrays(x: Array, y: Array) -> None:
    y[...] = erf(x)


@compiled(oracle=_erf_arrays)
def _erf(x: Array, y: Array) -> None:
    for i in range(x.size):
        y[i] = elementary.erf(x[i])


_ERF_SLOPE = 2 / math.sqrt(math.pi)  # at 0


def _erf_gradient_arrays(x: Array, dy: Array, dx: Array) -> None:
    dx[...] = dy * (_ERF_SLOPE * array_module(x).exp(-x * x))


@compiled(oracle=_erf_gradient_arrays)
def _erf_gradient(x: Array, dy: Array, dx: Array) -> None:
    slope = x.dtype.type(_ERF_SLOPE)
    for i in range(x.size):
        dx[i] = dy[i] * (slope * elementary.exp(-x[i] * x[i]))


@dataclass(frozen=True, slots=True)
class Erf(Elementwise):
    """The error function."""

    name: ClassVar[str] = "erf"
    flops: ClassVar[tuple[float, float]] = (24.0, 22.0)

    def forward(self, b: Buffers, mode: Mode) -> None:
        _erf(flat(b.inputs[0]), flat(b.output))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        if b.input_gradients[0] is not None:
            _erf_gradient(flat(b.inputs[0]), flat(b.output_gradient), flat(b.input_gradients[0]))


@dataclass(frozen=True, slots=True)
class Cast(Elementwise):
    """The same numbers in another type, fractions cut off on the way to integers, which have no gradient."""

    name: ClassVar[str] = "cast"
    flops: ClassVar[tuple[float, float]] = (1.0, 1.0)

    dtype: Number

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        return ArraySpec(inputs[0].shape, self.dtype)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x,) = inputs
        return Cost(float(x.size), float(x.size), 0.0, float(x.nbytes + self.output(x).nbytes))

    def forward(self, b: Buffers, mode: Mode) -> None:
        b.output[...] = b.inputs[0]

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            dx[...] = b.output_gradient if self.dtype.startswith("float") else 0
