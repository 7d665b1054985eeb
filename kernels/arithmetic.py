"""arithmetic, arithmetic_weight and arithmetic_number: +, -, *, /, **, max, min of an element with another.

The second operand is a value, a parameter or a number. Shapes are broadcast sample by sample, from the right;
the batch axis stands apart:

    (N, 4, 1, 5) ∘ (N, 3, 5) -> (N, 4, 3, 5)        parameter (3, 1, 1) ∘ (N, 3, 8, 8) -> (N, 3, 8, 8)

Whole-array operations: memory bounds them, and NumPy's loops are compiled. Gradients make temporaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np

from .device import array_module
from .kernel import (
    Array,
    ArraySpec,
    Buffers,
    Cost,
    Kernel,
    Mode,
    ParameterSpec,
    Region,
    Split,
    need_floats,
)
from .region import broadcast_part, on_views

Operator = Literal["add", "sub", "mul", "div", "pow", "max", "min"]

_FUNCTIONS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "div": "divide",
    "pow": "power",
    "max": "maximum",
    "min": "minimum",
}


def broadcast(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape of two operands without their batch axes; ValueError of kernel `name` without one."""
    try:
        return np.broadcast_shapes(first, second)
    except ValueError:
        raise ValueError(f"{name}: {first} and {second} (a sample) have no common shape") from None


def aligned(a: Array, axes: int) -> Array:
    """A view of `a` (N, …) with `axes` axes behind the batch: ones are put in front of its own."""
    return a.reshape(a.shape[0], *(1,) * (axes + 1 - a.ndim), *a.shape[1:])


def fold(whole: Array, into: Array) -> None:
    """`into` (N, …) becomes the sum of `whole` (N, …) over the axes along which `into` was broadcast."""
    view = aligned(into, whole.ndim - 1)
    axes = tuple(axis for axis in range(whole.ndim) if view.shape[axis] != whole.shape[axis])
    view[...] = whole.sum(axis=axes, keepdims=True) if axes else whole


def _fold_weight(whole: Array, into: Array) -> None:
    """The same for a parameter, which all samples share."""
    fold(whole.sum(axis=0, keepdims=True), into[None])


def _compute(operator: Operator, a: Array, b: Array, y: Array) -> None:
    getattr(array_module(y), _FUNCTIONS[operator])(a, b, out=y)


def _first_gradient(operator: Operator, a: Array, b: Array, dy: Array) -> Array:
    match operator:
        case "add" | "sub":
            return dy
        case "mul":
            return dy * b
        case "div":
            return dy / b
        case "pow":
            xp = array_module(dy)
            return dy * b * a ** xp.where(b == 0, 1, b - 1)  # x ** 0 has no slope, also in 0
        case "max":
            return _taken(a > b, a == b, dy)
        case "min":
            return _taken(a < b, a == b, dy)


def _second_gradient(operator: Operator, a: Array, b: Array, dy: Array) -> Array:
    xp = array_module(dy)
    match operator:
        case "add":
            return dy
        case "sub":
            return -dy
        case "mul":
            return dy * a
        case "div":
            return -dy * a / (b * b)
        case "pow":  # 0 ** b stays 0 for every b above 0; a negative base has no slope
            safe = xp.where(a > 0, a, 1)
            return dy * a**b * xp.log(safe)
        case "max":
            return _taken(b > a, a == b, dy)
        case "min":
            return _taken(b < a, a == b, dy)


def _taken(own: Array, both: Array, dy: Array) -> Array:
    """The gradient of the operand that was taken; where both are the same, each has half of it."""
    xp, number = array_module(dy), dy.dtype.type
    return dy * xp.where(both, number(0.5), xp.where(own, number(1), number(0)))


def _check_operator(name: str, operator: str) -> None:
    if operator not in _FUNCTIONS:
        raise ValueError(f"{name}: operator is {operator!r}; give {', '.join(_FUNCTIONS)}")


@dataclass(frozen=True, slots=True)
class Broadcasting(Kernel):
    """Of inputs that are broadcast, element by element: how it divides follows from the output."""

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        shape = self.output(*inputs).shape
        return tuple(Split(axis, extent) for axis, extent in enumerate(shape) if axis > 0)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return tuple(broadcast_part(region, x.shape[1:]) for x in inputs)


@dataclass(frozen=True, slots=True)
class _Operating(Broadcasting):
    """What the three share."""

    operator: Operator

    def __post_init__(self) -> None:
        _check_operator(self.name, self.operator)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region, lambda weight: weight[broadcast_part(region, weight.shape)])

    def cost(self, *inputs: ArraySpec) -> Cost:
        y = self.output(*inputs)
        each = 20.0 if self.operator == "pow" else 1.0
        weights = sum(parameter.size for parameter in self.parameters(*inputs))
        moved = float(y.nbytes + sum(x.nbytes for x in inputs) + 4 * weights)
        gradient = 2 * each * y.size
        return Cost(each * y.size, gradient, gradient if weights else 0.0, moved)


@dataclass(frozen=True, slots=True)
class Arithmetic(_Operating):
    """a ∘ b of two values, broadcast sample by sample."""

    name: ClassVar[str] = "arithmetic"
    arity: ClassVar[int | None] = 2

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        a, b = inputs
        if a.dtype != b.dtype or a.shape[0] != b.shape[0]:
            raise ValueError(f"{self.name}: inputs are {a.shape} {a.dtype} and {b.shape} {b.dtype}")
        if self.operator == "div":
            need_floats(self.name, a, halves=True)
        return ArraySpec((a.shape[0], *broadcast(self.name, a.shape[1:], b.shape[1:])), a.dtype)

    def forward(self, b: Buffers, mode: Mode) -> None:
        first, second = (aligned(x, b.output.ndim - 1) for x in b.inputs)
        _compute(self.operator, first, second, b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        first, second = (aligned(x, b.output_gradient.ndim - 1) for x in b.inputs)
        for dx, gradient in zip(b.input_gradients, (_first_gradient, _second_gradient), strict=True):
            if dx is not None:
                fold(gradient(self.operator, first, second, b.output_gradient), dx)


@dataclass(frozen=True, slots=True)
class ArithmeticWeight(_Operating):
    """x ∘ weight, or with `reverse` weight ∘ x; weight of `shape`, the same for every sample.

    One that is not `trained` keeps its first value: it is a statistic that never moves.
    """

    name: ClassVar[str] = "arithmetic_weight"

    shape: tuple[int, ...]
    reverse: bool = False
    trained: bool = True

    def __post_init__(self) -> None:
        _check_operator(self.name, self.operator)
        object.__setattr__(self, "shape", _extents(self.name, self.shape))

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        need_floats(self.name, x, halves=True)
        return ArraySpec((x.shape[0], *broadcast(self.name, x.shape[1:], self.shape)), x.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        neutral: Literal["zeros", "ones"] = "zeros" if self.operator in ("add", "sub") else "ones"
        return (shared_parameter(self.shape, neutral, self.trained),)

    def _operands(self, b: Buffers, axes: int) -> tuple[Array, Array]:
        x, weight = aligned(b.inputs[0], axes), aligned(b.parameters[0][None], axes)
        return (weight, x) if self.reverse else (x, weight)

    def forward(self, b: Buffers, mode: Mode) -> None:
        _compute(self.operator, *self._operands(b, b.output.ndim - 1), b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        gradient = _second_gradient if self.reverse else _first_gradient
        dx, dy = b.input_gradients[0], b.output_gradient
        if dx is not None:
            fold(gradient(self.operator, *self._operands(b, dy.ndim - 1), dy), dx)

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        if not self.trained:
            b.weight_gradients[0].fill(0)
            return
        gradient = _first_gradient if self.reverse else _second_gradient
        dy = b.output_gradient
        _fold_weight(gradient(self.operator, *self._operands(b, dy.ndim - 1), dy), b.weight_gradients[0])


@dataclass(frozen=True, slots=True)
class ArithmeticNumber(_Operating):
    """x ∘ value, or with `reverse` value ∘ x."""

    name: ClassVar[str] = "arithmetic_number"

    value: float
    reverse: bool = False

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        if self.operator == "div" or not float(self.value).is_integer():  # tokens plus 1 are tokens
            need_floats(self.name, *inputs, halves=True)
        return inputs[0]

    def _operands(self, b: Buffers) -> tuple[Array, Array]:
        x, value = b.inputs[0], b.inputs[0].dtype.type(self.value)
        return (value, x) if self.reverse else (x, value)

    def forward(self, b: Buffers, mode: Mode) -> None:
        x = b.inputs[0]
        if self.operator == "pow" and self.value == 2 and not self.reverse:
            array_module(x).multiply(x, x, out=b.output)
        else:
            _compute(self.operator, *self._operands(b), b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        gradient = _second_gradient if self.reverse else _first_gradient
        if b.input_gradients[0] is not None:
            b.input_gradients[0][...] = gradient(self.operator, *self._operands(b), b.output_gradient)


@dataclass(frozen=True, slots=True)
class Constant(Kernel):
    """A parameter of `shape` as a value: the input only tells for how many samples, (N, …) -> (N, *shape).

    `dtype` is the parameter's, since the input may be tokens.
    """

    name: ClassVar[str] = "constant"
    differentiable: ClassVar[tuple[int, ...] | None] = ()

    shape: tuple[int, ...]
    trained: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _extents(self.name, self.shape))

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        return ArraySpec((inputs[0].shape[0], *self.shape), self.dtype)

    def parameters(self, *inputs: ArraySpec) -> tuple[ParameterSpec, ...]:
        return (shared_parameter(self.shape, "zeros", self.trained),)

    def cost(self, *inputs: ArraySpec) -> Cost:
        y = self.output(*inputs)
        return Cost(0.0, 0.0, float(y.size) if self.trained else 0.0, float(y.nbytes + 4 * prod(self.shape)))

    def forward(self, b: Buffers, mode: Mode) -> None:
        b.output[...] = b.parameters[0]

    def weight_gradient(self, b: Buffers, mode: Mode) -> None:
        if self.trained:
            _fold_weight(b.output_gradient, b.weight_gradients[0])
        else:
            b.weight_gradients[0].fill(0)


def shared_parameter(
    shape: tuple[int, ...], initial: Literal["zeros", "ones"], trained: bool
) -> ParameterSpec:
    """A weight, or where it is not trained a statistic that no batch moves."""
    if trained:
        return ParameterSpec("weight", shape, initial, decay=False)
    return ParameterSpec("weight", shape, initial, role="statistic", decay=False, momentum=0.0)


def _extents(name: str, shape: object) -> tuple[int, ...]:
    extents = tuple(shape) if isinstance(shape, list | tuple) else (shape,)
    if not all(isinstance(extent, int) and extent > 0 for extent in extents):
        raise ValueError(f"{name}: shape is {shape}; give positive extents, those of the parameter")
    return extents
