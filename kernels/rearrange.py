"""transpose, slice, take and pad: kernels that copy elements to other places, without arithmetic.

No axis that they touch is the batch: a graph is cut into micro-batches along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Cost, Kernel, Mode, Region, Split, need_floats
from .region import empty, on_views, part


@dataclass(frozen=True, slots=True)
class _Copy(Kernel):
    """What they share: no operations, every output element read once and written once."""

    def split(self, *inputs: ArraySpec) -> tuple[Split, ...]:
        return tuple(
            Split(axis, extent) for axis, extent in enumerate(self.output(*inputs).shape) if axis > 0
        )

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        on_views(self, b, mode, region)

    def cost(self, *inputs: ArraySpec) -> Cost:
        return Cost(0.0, 0.0, 0.0, 2.0 * self.output(*inputs).nbytes)


@dataclass(frozen=True, slots=True)
class Transpose(_Copy):
    """Axis i + 1 of the output is axis `axes[i]` of the input: (2, 1) swaps the two behind the batch."""

    name: ClassVar[str] = "transpose"

    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))  # job files give lists
        if sorted(self.axes) != list(range(1, len(self.axes) + 1)):
            raise ValueError(
                f"transpose: axes are {self.axes}; give each of 1 to {len(self.axes)} once: 0 is the batch"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        if len(x.shape) != len(self.axes) + 1:
            raise ValueError(f"transpose: axes {self.axes} do not fit an input of shape {x.shape}")
        return ArraySpec((x.shape[0], *(x.shape[axis] for axis in self.axes)), x.dtype)

    def forward(self, b: Buffers, mode: Mode) -> None:
        b.output[...] = b.inputs[0].transpose(0, *self.axes)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (tuple(region[self.axes.index(axis)] for axis in range(1, len(self.axes) + 1)),)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            dx.transpose(0, *self.axes)[...] = b.output_gradient


@dataclass(frozen=True, slots=True)
class Slice(_Copy):
    """Elements `start`, start + step, … below `stop` of one axis; 0 <= start < stop <= extent."""

    name: ClassVar[str] = "slice"

    axis: int
    start: int
    stop: int
    step: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.start < self.stop and self.step > 0):
            raise ValueError(
                f"slice: {self.start} to {self.stop} by {self.step} holds nothing; give a start below the "
                "stop and a positive step"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        axis = _axis(self.name, self.axis, x.shape)
        if self.stop > x.shape[axis]:
            raise ValueError(f"slice: stop is {self.stop}; axis {axis} of {x.shape} ends at {x.shape[axis]}")
        extent = -((self.start - self.stop) // self.step)
        return ArraySpec((*x.shape[:axis], extent, *x.shape[axis + 1 :]), x.dtype)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        place = _axis(self.name, self.axis, inputs[0].shape) - 1
        own = region[place]
        seen = slice(self.start + own.start * self.step, self.start + (own.stop - 1) * self.step + 1)
        return ((*region[:place], seen, *region[place + 1 :]),)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        part(b.output, region)[...] = part(self._part(b.inputs[0]), region)

    def _part(self, a: Array) -> Array:
        axis = self.axis % a.ndim
        return a[(slice(None),) * axis + (slice(self.start, self.stop, self.step),)]

    def forward(self, b: Buffers, mode: Mode) -> None:
        b.output[...] = self._part(b.inputs[0])

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            dx.fill(0)
            self._part(dx)[...] = b.output_gradient


@dataclass(frozen=True, slots=True)
class Take(_Copy):
    """The elements of one axis that `indices` name, in their order; one may come several times."""

    name: ClassVar[str] = "take"

    axis: int
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", tuple(self.indices))  # job files give lists
        if not self.indices or min(self.indices) < 0:
            raise ValueError(f"take: indices are {self.indices}; give at least one, counted from 0")

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        axis = _axis(self.name, self.axis, x.shape)
        if max(self.indices) >= x.shape[axis]:
            raise ValueError(
                f"take: index {max(self.indices)} of axis {axis}, which ends at {x.shape[axis] - 1}"
            )
        return ArraySpec((*x.shape[:axis], len(self.indices), *x.shape[axis + 1 :]), x.dtype)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        place = _axis(self.name, self.axis, inputs[0].shape) - 1
        taken = self.indices[region[place]]
        return ((*region[:place], slice(min(taken), max(taken) + 1), *region[place + 1 :]),)

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        axis = self.axis % b.output.ndim
        x = part(b.inputs[0], (*region[: axis - 1], slice(None), *region[axis:]))
        taken = list(self.indices[region[axis - 1]])
        part(b.output, region)[...] = array_module(x).take(x, taken, axis=axis)

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            before = (slice(None),) * (axis := self.axis % dx.ndim)
            dx.fill(0)
            for own, come in _steps(self.indices):
                given = b.output_gradient[(*before, come)]
                dx[(*before, own)] += given if isinstance(own, slice) else given.sum(axis=axis)


@lru_cache(maxsize=1024)
def _steps(indices: tuple[int, ...]) -> tuple[tuple[slice | int, slice], ...]:
    """In few steps, for which elements what comes of them is added up: several, one each, or one, of several.

    One step for each index took 104 ms for 8 x 32 images of 128 x 64 whose columns all came twice, these 19.
    """
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    most = max(map(len, places.values()))
    found: list[tuple[slice | int, slice]] = []
    if most > len(places):
        for index, come in places.items():
            found += [(index, run) for _, run in _even(come, come)]
        return tuple(found)
    for turn in range(most):
        own = sorted(index for index, come in places.items() if turn < len(come))
        found += _even(own, [places[index][turn] for index in own])
    return tuple(found)


def _even(first: Sequence[int], second: Sequence[int]) -> list[tuple[slice, slice]]:
    """Both lists cut into slices: each goes on as long as neither changes its step."""
    found = []
    start = 0
    while start < len(first):
        stop = start + 1
        steps = (1, 1)
        while stop < len(first):
            own = first[stop] - first[stop - 1], second[stop] - second[stop - 1]
            if stop > start + 1 and own != steps:
                break
            steps, stop = own, stop + 1
        count = stop - start
        found.append((_slice(first[start], steps[0], count), _slice(second[start], steps[1], count)))
        start = stop
    return found


def _slice(start: int, step: int, count: int) -> slice:
    stop = start + step * count
    return slice(start, stop if stop >= 0 else None, step)


@dataclass(frozen=True, slots=True)
class Pad(_Copy):
    """`value` around every sample: `before` and `after` name elements for each axis behind the batch."""

    name: ClassVar[str] = "pad"

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # job files give lists
        sides = *self.before, *self.after
        whole = all(isinstance(each, int) and each >= 0 for each in sides)
        if len(self.before) != len(self.after) or not whole:
            raise ValueError(
                f"pad: before is {self.before} and after is {self.after}; give a number of elements, "
                "0 or more, for each axis behind the batch"
            )

    def output(self, *inputs: ArraySpec) -> ArraySpec:
        (x,) = inputs
        if not float(self.value).is_integer():
            need_floats(self.name, x, halves=True)
        elif np.dtype(x.dtype).kind in "iu":  # NumPy says it of the first batch alone, and names no node
            holds = np.iinfo(x.dtype)
            if not holds.min <= self.value <= holds.max:
                raise ValueError(
                    f"pad: value is {self.value}, and the input {x.dtype}; give one from {holds.min} to "
                    f"{holds.max}, or put a cast before it"
                )
        if len(x.shape) != len(self.before) + 1:
            raise ValueError(
                f"pad: before is {self.before}, for {len(self.before)} axes behind the batch; the input has "
                f"shape {x.shape}"
            )
        own = zip(self.before, x.shape[1:], self.after, strict=True)
        return ArraySpec((x.shape[0], *map(sum, own)), x.dtype)

    def needs(self, region: Region, *inputs: ArraySpec) -> tuple[Region, ...]:
        return (
            tuple(
                slice(*(min(max(edge - before, 0), extent) for edge in (own.start, own.stop)))
                for own, before, extent in zip(region, self.before, inputs[0].shape[1:], strict=True)
            ),
        )

    def forward(self, b: Buffers, mode: Mode) -> None:
        self.forward_region(b, mode, ArraySpec(b.output.shape).region)

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        (seen,) = self.needs(region, ArraySpec(b.inputs[0].shape))
        part(b.output, region)[...] = self.value
        if not empty(seen):
            self._inside(b.output, seen)[...] = part(b.inputs[0], seen)

    def _inside(self, a: Array, region: Region) -> Array:
        """Where `region` of the input lies in an array of the output's shape."""
        places = zip(region, self.before, strict=True)
        return part(a, tuple(slice(own.start + before, own.stop + before) for own, before in places))

    def input_gradient(self, b: Buffers, mode: Mode) -> None:
        dx = b.input_gradients[0]
        if dx is not None:
            dx[...] = self._inside(b.output_gradient, ArraySpec(dx.shape).region)


def _axis(name: str, axis: int, shape: tuple[int, ...]) -> int:
    rank = len(shape)
    counted = axis + rank if axis < 0 else axis
    if not 0 < counted < rank:
        raise ValueError(f"{name}: axis {axis} of an input {shape}; give one from 1 to {rank - 1}")
    return counted
