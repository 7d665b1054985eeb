"""What an operator's reader works with: the operands of one node of the file, and the graph being written.

An operand is *static* (known when the file is read: weights, shapes, what follows from them) or *dynamic* (a
value of Weft's graph). Two layouts, by how the file is read:

    batched       axis 0 of the file's values is the batch, and of Weft's
    not batched   the file has no batch: Weft puts its own in front, the file's axis 0 is Weft's axis 1

All shapes are worked out for one nominal batch: the file's, or where that is open UNKNOWN_BATCH.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ....kernels.arithmetic import Constant
from ....kernels.kernel import ArraySpec, Kernel
from ....kernels.shape import Reshape
from ...errors import GraphError
from ..graph import Node

UNKNOWN_BATCH = 8191
"""Stands for an open batch in shapes. A prime that no model has as an extent, so what is a multiple of it
depends on the batch: (8191, 12, 64), or (98292, 64) with the batch folded into another axis."""

OTHER_BATCH = 1
"""Another one, which files ask for: what is computed from shapes is so for both, and must not differ."""


@dataclass(frozen=True, slots=True)
class Static:
    """A known array; `trained` where it is one of the file's weights or follows from one.

    `other` is what it is for another batch, where that is open and makes a difference.
    """

    array: NDArray[Any]
    trained: bool = False
    other: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A value of the graph: its name and spec there, and its shape in the file.

    The file may fold the batch into its next axes, (N, T, C) as (N · T, C), as exporters do around a Gemm.
    Weft never does: the value keeps its spec, and operators that look at last axes alone do not mind.
    """

    name: str
    spec: ArraySpec
    shape: tuple[int, ...]
    batched: bool = True

    @property
    def folded(self) -> bool:
        """Whether the file's shape folds the batch into other axes; one of 1, too, though nothing moves."""
        return self.shape != (self.spec.shape if self.batched else self.spec.shape[1:])


Operand = Static | Dynamic


@dataclass(slots=True)
class Writing:
    """The graph so far."""

    batched: bool
    batch: int
    inputs: dict[str, ArraySpec] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    views: dict[str, Dynamic] = field(default_factory=dict)  # by what a reshape is called: of what it is one

    def name(self, wanted: str) -> str:
        """A name for a value like the file's, new, of letters, digits, "_" and "-"."""
        own = plain(wanted)
        number, name = 1, own
        while name in self.names:
            number += 1
            name = f"{own}_{number}"
        self.names.add(name)
        return name

    def value(self, name: str, spec: ArraySpec) -> Dynamic:
        """A value as it stands."""
        return Dynamic(name, spec, spec.shape if self.batched else spec.shape[1:], self.batched)


@dataclass(frozen=True, slots=True)
class At:
    """One node of the file, with its operands; a missing optional one is None."""

    op: str
    name: str
    inputs: tuple[Operand | None, ...]
    attributes: Mapping[str, Any]
    version: int  # of the operator set
    outputs: int  # how many are read
    tags: Mapping[str, Any]
    writing: Writing

    def refuse(self, why: str) -> NoReturn:
        """Raise what cannot be read, with the operator and the node."""
        raise GraphError(f"node {self.name!r} ({self.op}): {why}")

    def given(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def operand(self, index: int) -> Operand:
        """An input, static or dynamic."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            self.refuse(f"input {index} is missing")
        return found

    def static(self, index: int, what: str) -> NDArray[Any]:
        """An input that must be known."""
        found = self.operand(index)
        if isinstance(found, Dynamic):
            self.refuse(f"its {what} {found.name!r} is computed; Weft needs it stored in the file")
        self.check_fixed(found)
        return found.array

    def weight(self, index: int, what: str) -> NDArray[np.float32]:
        """A stored weight."""
        return np.ascontiguousarray(self.static(index, what), np.float32)

    def integers(self, index: int, attribute: str, *, of_batch: bool = False) -> list[int] | None:
        """Whole numbers: an input in newer operator sets, an attribute in older; None if neither.

        They may follow from an open batch only with `of_batch`.
        """
        if self.given(index):
            found = self.operand(index)
            if isinstance(found, Dynamic):
                self.refuse(f"its {attribute} are computed ({found.name!r}); Weft needs them fixed")
            if not of_batch:
                self.check_fixed(found)
            return [int(each) for each in found.array.reshape(-1)]
        value = self.attributes.get(attribute)
        return None if value is None else [int(each) for each in value]

    def loose(self, index: int) -> Dynamic:
        """A value whose last axes alone matter."""
        found = self.operand(index)
        if isinstance(found, Static):
            found = self.constant(found, found.array.ndim + (1 if self.writing.batched else 0))
        if found.spec.dtype != "float32":
            self.refuse(f"{found.name!r} is {found.spec.dtype}; Weft computes in float32")
        return found

    def value(self, index: int) -> Dynamic:
        """A value of float32."""
        return self.plain(self.loose(index))

    def moved(self, index: int) -> Dynamic:
        """A value of any type, for operators that only move or convert it."""
        found = self.operand(index)
        return self.plain(found) if isinstance(found, Dynamic) else self.loose(index)

    def plain(self, value: Dynamic) -> Dynamic:
        """The value, unless the file folds its batch into other axes."""
        if value.folded:
            self.refuse(
                f"{value.name!r} has shape {show(value.shape)} with the batch folded into its first axis; "
                "Weft reads that only around Gemm, MatMul and element by element"
            )
        return value

    def check_fixed(self, static: Static) -> None:
        """Refuse numbers that were computed from an open batch size."""
        if static.other is not None:
            self.refuse("it computes with the batch size, which is open: a micro-batch has another")

    def per_sample(self, static: Static, rank: int) -> NDArray[Any]:
        """A static operand as it meets one sample of a value that has `rank` axes in the file."""
        array = self._of_one(static.array, rank)
        if static.other is not None and not np.array_equal(array, self._of_one(static.other, rank)):
            self.check_fixed(static)
        return array

    def _of_one(self, array: NDArray[Any], rank: int) -> NDArray[Any]:
        """Of an array that meets a batch what meets one sample."""
        if not self.writing.batched or array.ndim < rank:
            return array
        if array.ndim > rank:
            self.refuse(f"an operand of shape {show(array.shape)} gives the result axes before the batch")
        if self.writing.batch != UNKNOWN_BATCH and len(array) not in (1, self.writing.batch):
            self.refuse(f"an operand of shape {show(array.shape)} gives the result another batch")
        first: NDArray[Any] = array[0]
        if not np.array_equal(array, np.broadcast_to(first, array.shape), equal_nan=array.dtype.kind == "f"):
            self.refuse(f"an operand of shape {show(array.shape)} differs from sample to sample")
        return first

    def constant(self, static: Static, rank: int) -> Dynamic:
        """A static operand as a value of its own, for operators that have no better way."""
        array = self.per_sample(static, rank)
        if array.dtype != np.float32:
            self.refuse(f"a constant operand is {array.dtype}; Weft computes in float32")
        name, spec = next(iter(self.writing.inputs.items()))
        kernel = self.kernel(Constant, array.shape, static.trained)
        return self.add(kernel, Dynamic(name, spec, ()), part="constant", weights=(array,))

    def counted(self, axes: Sequence[int], rank: int) -> list[int]:
        """Axes of a value that has `rank` of them in the file, counted from the first, each named once."""
        if wrong := [axis for axis in axes if not -rank <= axis < rank]:
            self.refuse(f"axis {wrong[0]} of a value with {rank} axes")
        found = [axis % rank for axis in axes]
        if len(set(found)) < len(found):
            self.refuse(f"its axes {list(axes)} name one twice, of a value with {rank} axes")
        return found

    def axis(self, axis: int, rank: int) -> int:
        """Weft's number of an axis of a value that has `rank` axes in the file."""
        (counted,) = self.counted([axis], rank)
        if not self.writing.batched:
            return counted + 1
        if counted == 0:
            self.refuse(
                "it works along axis 0, the batch, and would mix samples; a model without a batch axis is "
                "read with batched=False"
            )
        return counted

    def add(
        self,
        kernel: Kernel,
        *values: Dynamic,
        part: str = "",
        weights: Sequence[NDArray[Any]] = (),
    ) -> Dynamic:
        """Append a node; without `part` it has the name of the file's node."""
        writing = self.writing
        name = writing.name(f"{self.name}_{part}" if part else self.name)
        specs = [value.spec for value in values]
        try:
            spec = kernel.output(*specs)
        except ValueError as error:
            self.refuse(str(error))
        for parameter, array in zip(kernel.parameters(*specs), weights, strict=True):
            if parameter.shape != array.shape:
                self.refuse(f"its {parameter.name} has shape {array.shape}; it takes {parameter.shape} here")
            writing.weights[f"{name}.{parameter.name}"] = np.ascontiguousarray(array, np.float32)
        writing.nodes.append(Node(name, kernel, tuple(value.name for value in values), self.tags))
        return writing.value(name, spec)

    def kernel(self, kind: Any, *arguments: Any, **attributes: Any) -> Kernel:
        """A kernel, its own complaint about attributes with the node's name."""
        try:
            made: Kernel = kind(*arguments, **attributes)
        except ValueError as error:
            self.refuse(str(error))
        return made

    def along(self, value: Dynamic, result: Dynamic) -> Dynamic:
        """`result`, computed along the last axes of `value`, folded as that is."""
        if not value.folded:
            return result
        shape = (value.shape[0], *result.spec.shape[len(result.spec.shape) - len(value.shape) + 1 :])
        return Dynamic(result.name, result.spec, shape)

    def reshape(self, value: Dynamic, shape: Sequence[int], part: str = "reshape") -> Dynamic:
        """The value under another shape of the file; nothing where it has it already."""
        wanted = tuple(shape)
        lead = 1 if self.writing.batched else 0
        if value.spec.shape[1 - lead :] == wanted:
            return self.writing.value(value.name, value.spec)
        if self.writing.batched and (not wanted or wanted[0] != self.writing.batch):
            if self._folds(value, wanted):
                return Dynamic(value.name, value.spec, wanted)
            self.refuse(
                f"{show(value.shape)} becomes {show(wanted)}, which mixes the batch with other axes; a model "
                "without a batch axis is read with batched=False"
            )
        if prod(wanted) != prod(value.shape) or 0 in wanted:
            self.refuse(f"{show(value.shape)} does not fit into {show(wanted)}")
        viewed = self.add(self.kernel(Reshape, wanted[lead:]), value, part=part)
        self.writing.views[viewed.name] = value
        return viewed

    def as_image(self, value: Dynamic) -> Dynamic:
        """A line (N, channels, width) as an image of height 1; where that is what it was made of, that."""
        beneath = self.image_beneath(value)
        samples, channels, width = value.shape
        return beneath or self.reshape(value, (samples, channels, 1, width), part="image")

    def image_beneath(self, value: Dynamic) -> Dynamic | None:
        """The image of height 1 that a line is a view of, if it is one."""
        image = self.writing.views.get(value.name)
        if image is None or len(value.shape) != 3:
            return None
        return image if image.shape == (*value.shape[:2], 1, value.shape[2]) else None

    def as_line(self, image: Dynamic) -> Dynamic:
        """An image of height 1 as (N, channels, width)."""
        return self.reshape(image, (*image.shape[:2], image.shape[3]), part="line")

    def _folds(self, value: Dynamic, wanted: tuple[int, ...]) -> bool:
        """Whether `wanted` is the value's spec with the batch folded into the axes after it."""
        spec = value.spec.shape
        kept = len(wanted) - 1
        return 0 < kept < len(spec) - 1 and wanted[1:] == spec[-kept:] and prod(wanted) == prod(spec)


def plain(name: str) -> str:
    """A name of the file in letters, digits, "_" and "-"."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "value"


def show(shape: Sequence[int]) -> str:
    """A shape for people: N for an open batch."""
    parts = []
    for extent in shape:
        times, rest = divmod(extent, UNKNOWN_BATCH)
        if rest or not times:
            parts.append(str(extent))
        else:
            parts.append("N" if times == 1 else f"{times} N")
    return f"({', '.join(parts)})"
