"""compare, compare_number and where: what is true of each element, and the choice of one of two by it.

Truths are bool, have no gradient, and are broadcast as operands of arithmetic are: sample by sample, from the
right. Their and is arithmetic's product, their or its sum, their not a comparison with 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .arithmetic import Broadcasting, aligned, broadcast, fold
from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Mode, Region
from .region import on_views

Comparison = Literal["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]

MIRRORED: dict[str, Comparison] = {
    "equal": "equal",
    "not_equal": "not_equal",
    "less": "greater",
    "less_equal": "greater_equal",
    "greater": "less",
    "greater_equal": "less_equal",
}
"""The comparison that the second operand has with the first."""


@dataclass(frozen=True, slots=True)
class _Choosing(Broadcasting):
    """What the three share."""

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        y = self.output(*inputs)
        slopes = 2.0 * y.size if self.differentiable else 0.0
        return Cost(float(y.size), slopes, 0.0, float(y.nbytes + sum(x.nbytes for x in inputs)))


@dataclass(frozen=True, slots=True)
class _Comparing(_Choosing):
    """A comparison by its name."""

    operator: Comparison

    def __post_init__(self) -> None:
        if self.operator not in MIRRORED:
            raise ValueError(f"{self.name}: operator is {self.operator!r}; give {', '.join(MIRRORED)}")

    def _compare(self, a: Array, b: Array | float, y: Array) -> None:
        getattr(array_module(y), self.operator)(a, b, out=y)


@dataclass(frozen=True, slots=True)
class Compare(_Comparing):
    """Whether a is equal to, less than, … b, of two values."""

    name: ClassVar[str] = "compare"
    arity: ClassVar[int | None] = 2
    differentiable: ClassVar[tuple[int, ...] | None] = ()

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        a, b = inputs
        if a.dtype != b.dtype or a.shape[0] != b.shape[0]:
            raise ValueError(f"{self.name}: inputs are {a.shape} {a.dtype} and {b.shape} {b.dtype}")
        return ArraySpec((a.shape[0], *broadcast(self.name, a.shape[1:], b.shape[1:])), "bool")

    def forward(self, b: Buffers, mode: Mode) -> None:
        first, second = (aligned(x, b.output.ndim - 1) for x in b.inputs)
        self._compare(first, second, b.output)


@dataclass(frozen=True, slots=True)
class CompareNumber(_Comparing):
    """Whether x is equal to, less than, … value."""

    name: ClassVar[str] = "compare_number"
    differentiable: ClassVar[tuple[int, ...] | None] = ()

    value: float

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        return ArraySpec(inputs[0].shape, "bool")

    def forward(self, b: Buffers, mode: Mode) -> None:
        # Tokens beyond 2 ** 53 equal a float that is none of them.
        whole = b.inputs[0].dtype.kind in "iub" and float(self.value).is_integer()
        self._compare(b.inputs[0], int(self.value) if whole else self.value, b.output)


@dataclass(frozen=True, slots=True)
class Where(_Choosing):
    """a where the condition holds, else b, of three values; the side that is not taken has gradient 0."""

    name: ClassVar[str] = "where"
    arity: ClassVar[int | None] = 3
    differentiable: ClassVar[tuple[int, ...] | None] = (1, 2)

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        condition, a, b = inputs
        if condition.dtype != "bool":
            raise ValueError(
                f"where: its condition is {condition.shape} {condition.dtype}; give bool, as compare makes it"
            )
        if a.dtype != b.dtype or len({each.shape[0] for each in inputs}) > 1:
            shown = " and ".join(f"{each.shape} {each.dtype}" for each in (a, b))
            raise ValueError(f"where: inputs are {shown}, and the condition {condition.shape}")
        shape = broadcast(self.name, a.shape[1:], b.shape[1:])
        return ArraySpec((a.shape[0], *broadcast(self.name, shape, condition.shape[1:])), a.dtype)

    def forward(self, b: Buffers, mode: Mode) -> None:
        condition, first, second = (aligned(x, b.output.ndim - 1) for x in b.inputs)
        b.output[...] = second  # into place, so in three fifths of the time of `where` and a copy
        array_module(b.output).copyto(b.output, first, where=condition)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dy = b.output_gradient
        xp, zero = array_module(dy), dy.dtype.type(0)
        condition = aligned(b.inputs[0], dy.ndim - 1)
        _, first, second = b.input_gradients
        if first is not None:
            fold(xp.where(condition, dy, zero), first)
        if second is not None:
            fold(xp.where(condition, zero, dy), second)
