"""add, concat, reshape and flatten: kernels that move or relabel, with next to no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from .device import array_module
from .kernel import ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split
from .region import on_views, reshaped


@dataclass(frozen=True, slots=True)
class Add(Kernel):
    """The sum of its inputs, all of one shape; every input's gradient is the output's."""

    name: ClassVar[str] = "add"
    arity: ClassVar[int | None] = None
    passes_gradient: ClassVar[bool] = True

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        if any(each != inputs[0] for each in inputs):
            raise ValueError(f"add: inputs have shapes {_shapes(inputs)}; they must all be equal")
        return inputs[0]

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return tuple(Split(axis, extent) for axis, extent in enumerate(inputs[0].shape) if axis > 0)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (region,) * len(inputs)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        (x, *others) = inputs
        return Cost(float(x.size * len(others)), 0.0, 0.0, float(x.nbytes * (len(inputs) + 1)))

    def forward(self, b: Buffers, mode: Mode) -> None:
        xp = array_module(b.output)
        if len(b.inputs) == 1:
            b.output[...] = b.inputs[0]
            return
        xp.add(b.inputs[0], b.inputs[1], out=b.output)
        for other in b.inputs[2:]:
            xp.add(b.output, other, out=b.output)


@dataclass(frozen=True, slots=True)
class Concat(Kernel):
    """Its inputs one after the other along `axis` (not the batch axis); the other axes are equal."""

    name: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    axis: int = 1

    def _axis(self, inputs: tuple[ArraySpec, ...]) -> int:
        rank = len(inputs[0].shape)
        axis = self.axis + rank if self.axis < 0 else self.axis
        if not 0 < axis < rank:
            raise ValueError(
                f"concat: axis {self.axis} of inputs {_shapes(inputs)}; give one from 1 to {rank - 1}"
            )
        return axis

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        first, axis = inputs[0], self._axis(inputs)

        def others(spec: ArraySpec) -> tuple[object, ...]:
            return (*spec.shape[:axis], *spec.shape[axis + 1 :], len(spec.shape), spec.dtype)

        if any(others(each) != others(first) for each in inputs):
            raise ValueError(f"concat: inputs {_shapes(inputs)} differ in more than axis {axis}")
        extent = sum(each.shape[axis] for each in inputs)
        return ArraySpec((*first.shape[:axis], extent, *first.shape[axis + 1 :]), first.dtype)

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return tuple(
            Split(axis, extent) for axis, extent in enumerate(self.output(*inputs).shape) if axis > 0
        )

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        place = self._axis(inputs) - 1
        along, before, found = region[place], 0, []
        for each in inputs:
            extent = each.shape[place + 1]
            own = slice(*(min(max(edge - before, 0), extent) for edge in (along.start, along.stop)))
            found.append((*region[:place], own, *region[place + 1 :]))
            before += extent
        return tuple(found)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        return Cost(0.0, 0.0, 0.0, 2.0 * sum(each.nbytes for each in inputs))

    def forward(self, b: Buffers, mode: Mode) -> None:
        axis = self.axis % b.output.ndim
        array_module(b.output).concatenate(b.inputs, axis=axis, out=b.output)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        axis = self.axis % b.output_gradient.ndim
        start = 0
        for x, dx in zip(b.inputs, b.input_gradients, strict=True):
            stop = start + x.shape[axis]
            if dx is not None:
                dx[...] = b.output_gradient[(slice(None),) * axis + (slice(start, stop),)]
            start = stop


@dataclass(frozen=True, slots=True)
class Reshape(Kernel):
    """The same elements under another shape; `shape` is without the batch axis and may hold one -1."""

    name: ClassVar[str] = "reshape"
    view: ClassVar[bool] = True

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # job files give lists
        if any(extent < 1 and extent != -1 for extent in self.shape) or self.shape.count(-1) > 1:
            raise ValueError(f"reshape: shape is {self.shape}; give positive extents and at most one -1")

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        size, known = prod(x.shape[1:]), prod(extent for extent in self.shape if extent != -1)
        if size % known or (-1 not in self.shape and size != known):
            raise ValueError(
                f"reshape: {size} elements a sample (input {x.shape}) do not fit into {self.shape}"
            )
        shape = tuple(size // known if extent == -1 else extent for extent in self.shape)
        return ArraySpec((x.shape[0], *shape), x.dtype)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (reshaped(region, self.output(*inputs).shape[1:], inputs[0].shape[1:]),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        pass

    def cost(self, *inputs: ArraySpec) -> Cost:
        return Cost(0.0, 0.0, 0.0, 0.0)

    def forward(self, b: Buffers, mode: Mode) -> None:
        pass  # a view: the output is the input's memory


@dataclass(frozen=True, slots=True)
class Flatten(Kernel):
    """Every axis but the batch folded into one."""

    name: ClassVar[str] = "flatten"
    view: ClassVar[bool] = True

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        return ArraySpec((x.shape[0], prod(x.shape[1:])), x.dtype)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (reshaped(region, self.output(*inputs).shape[1:], inputs[0].shape[1:]),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        pass

    def cost(self, *inputs: ArraySpec) -> Cost:
        return Cost(0.0, 0.0, 0.0, 0.0)

    def forward(self, b: Buffers, mode: Mode) -> None:
        pass  # a view: the output is the input's memory


def _shapes(inputs: tuple[ArraySpec, ...]) -> str:
    return ", ".join(f"{each.shape} {each.dtype}" for each in inputs)
