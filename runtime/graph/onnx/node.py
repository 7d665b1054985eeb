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
from math import gcd, prod
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ....kernels.arithmetic import Constant
from ....kernels.kernel import ArraySpec, Kernel
from ....kernels.rearrange import Transpose
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

    Or it moves it, as PyTorch's attention does: (T, N, C), (3, N, heads, T, C), (T, N · heads, C). Weft's
    batch stays in front. `layout` then names for each axis of the file those of the spec that it is made of,
    0 for the batch: ((2,), (0, 1), (3,)).
    """

    name: str
    spec: ArraySpec
    shape: tuple[int, ...]
    batched: bool = True
    layout: tuple[tuple[int, ...], ...] = ()

    @property
    def folded(self) -> bool:
        """Whether the file folds the batch into other axes or moves it; one of 1, too, though none moves."""
        return bool(self.layout) or self.shape != (self.spec.shape if self.batched else self.spec.shape[1:])


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
    settled: dict[tuple[Dynamic, str], Dynamic] = field(default_factory=dict)  # moved values, as read

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
    outputs: tuple[bool, ...]  # of each whether anybody reads it
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
        found = self.settled(found)
        return self.plain(found) if found.layout and 0 in found.layout[-1] else found

    def value(self, index: int) -> Dynamic:
        """A value of float32."""
        return self.plain(self.loose(index))

    def moved(self, index: int) -> Dynamic:
        """A value of any type, for operators that only move or convert it."""
        found = self.operand(index)
        return self.plain(found) if isinstance(found, Dynamic) else self.loose(index)

    def along_axis(self, index: int) -> Dynamic:
        """A value of any type that is moved along one axis, wherever its batch is."""
        found = self.operand(index)
        found = self.settled(found, "kept") if isinstance(found, Dynamic) else self.loose(index)
        return found if found.layout else self.plain(found)

    def anyhow(self, index: int) -> Dynamic:
        """A value of any type, wherever its batch is."""
        found = self.operand(index)
        return found if isinstance(found, Dynamic) else self.loose(index)

    def plain(self, value: Dynamic) -> Dynamic:
        """The value, unless the file folds its batch into other axes; a batch of 1 that it moves comes to the
        front, so that whoever goes on needs what this returns."""
        value = self.settled(value, "front")
        return self.refuse_folded(value) if value.folded else value

    def refuse_folded(self, value: Dynamic) -> NoReturn:
        """Raise what cannot be read because of where the value's batch is."""
        where = "folded into its first" if not value.layout else "in another"
        also = ", and what cuts, joins or sums up an axis" if value.layout else ""
        self.refuse(
            f"{value.name!r} has shape {show(value.shape)} with the batch {where} axis, where Weft computes "
            f"products, recurrent layers, what works element by element or along the last axis{also}; have "
            "the model bring the batch to the front, by itself, before this node"
        )

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
        array, dtype = self.per_sample(static, rank), str(static.array.dtype.name)
        # Parameters are float32, which holds truths and whole numbers up to 2 ** 24 as they are.
        if array.dtype.kind not in "biuf":
            self.refuse(f"a constant operand is {array.dtype}; Weft computes in float32")
        with np.errstate(over="ignore", invalid="ignore"):  # of the largest int64, which is told of below
            kept = array.astype(np.float32).astype(array.dtype)
        lost = (kept != array) & (array == array)
        if lost.any():
            self.refuse(f"Weft keeps a constant operand as float32, which has no {array[lost][0]} ({dtype})")
        name, spec = next(iter(self.writing.inputs.items()))
        trained = static.trained and dtype == "float32"
        kernel = self.kernel(Constant, array.shape, trained, dtype)
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
        if value.layout:
            shape = value.shape
            if result.spec.shape != value.spec.shape:
                if result.spec.shape[:-1] != value.spec.shape[:-1] or 0 in value.layout[-1]:
                    self.refuse_folded(value)
                shape = (*value.shape[:-1], result.spec.shape[-1])
            return Dynamic(result.name, result.spec, shape, layout=value.layout)
        shape = (value.shape[0], *result.spec.shape[len(result.spec.shape) - len(value.shape) + 1 :])
        return Dynamic(result.name, result.spec, shape)

    def reshape(self, value: Dynamic, shape: Sequence[int], part: str = "reshape") -> Dynamic:
        """The value under another shape of the file; nothing where it has it already."""
        wanted = tuple(shape)
        lead = 1 if self.writing.batched else 0
        if value.layout:
            return self._regrouped(value, wanted)
        if value.spec.shape[1 - lead :] == wanted:
            return self.writing.value(value.name, value.spec)
        if self.writing.batched and (not wanted or wanted[0] != self.writing.batch):
            if self._folds(value, wanted):
                return Dynamic(value.name, value.spec, wanted)
            return self._regrouped(value, wanted)
        if value.folded and prod(wanted) == prod(value.shape) and 0 not in wanted:
            return self.plain(self._regrouped(value, wanted))
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

    def transposed(self, value: Dynamic, order: Sequence[int]) -> Dynamic:
        """The value with the file's axes in another order, which moves nothing yet."""
        groups = self._groups(value)
        shape = tuple(value.shape[axis] for axis in order)
        return Dynamic(value.name, value.spec, shape, layout=tuple(groups[axis] for axis in order))

    def _groups(self, value: Dynamic) -> tuple[tuple[int, ...], ...]:
        """Of which axes of its spec each axis of the file is made."""
        if value.layout:
            return value.layout
        ahead = len(value.spec.shape) - len(value.shape) + 1
        return (tuple(range(ahead)), *((axis,) for axis in range(ahead, len(value.spec.shape))))

    def _regrouped(self, value: Dynamic, wanted: tuple[int, ...]) -> Dynamic:
        """The value under another shape of the file: its spec's axes are cut, the file's made anew."""
        own = (self.writing.batch, *value.spec.shape[1:])
        left = [(axis, own[axis]) for group in self._groups(value) for axis in group]
        cut: list[list[int]] = [[] for _ in own]  # the parts of each axis of the spec
        groups: list[list[tuple[int, int]]] = []
        fits = prod(wanted) == prod(value.shape) and 0 not in wanted
        for extent in wanted if fits else ():
            group: list[tuple[int, int]] = []
            groups.append(group)
            have = 1
            while left and (have < extent or (extent == 1 and not group and left[0][1] == 1)):
                axis, size = left.pop(0)
                part = gcd(size, extent // have) if axis else size
                if extent % (have * part) or (part == 1 and size > 1):
                    break
                have *= part
                group.append((axis, len(cut[axis])))
                cut[axis].append(part)
                if part < size:
                    left.insert(0, (axis, size // part))
                    break
            fits = fits and have == extent
        if not fits or any(size > 1 for _, size in left):
            self.refuse(
                f"{show(value.shape)} becomes {show(wanted)}, which mixes the batch with other axes; a model "
                "without a batch axis is read with batched=False"
            )
        for axis, size in left:  # of extent 1, wherever they are
            groups[-1].append((axis, len(cut[axis])))
            cut[axis].append(size)
        parts = [(axis, count) for axis, sizes in enumerate(cut) for count in range(len(sizes))]
        spec = tuple(cut[axis][count] for axis, count in parts[1:])
        if spec != value.spec.shape[1:]:
            value = self.add(self.kernel(Reshape, spec), self._as_it_is(value), part="apart")
        layout = tuple(tuple(parts.index(each) for each in group) for group in groups)
        found = Dynamic(value.name, value.spec, wanted, layout=layout)
        order = [axis for group in layout for axis in group if axis]
        return self.settled(found) if order == sorted(order) else found

    def _as_it_is(self, value: Dynamic) -> Dynamic:
        """Weft's own value, whatever the file makes of it."""
        return self.writing.value(value.name, value.spec)

    def settled(self, value: Dynamic, one: str = "") -> Dynamic:
        """The value with its axes in the file's order, the batch in front.

        Each axis of the file is one of its spec, but for the one with the batch and what is folded with it.
        A batch of 1 may be anywhere: `one` wants it in "front", or "kept" where it is, for an axis is cut.
        """
        if not value.layout:
            return value
        found = self.writing.settled
        if (value, one) not in found:  # queries, keys and values are gathered from one
            found[value, one] = self._settled(value, one)
        return found[value, one]

    def _settled(self, value: Dynamic, one: str) -> Dynamic:
        groups = list(value.layout)
        if self.writing.batch == 1:  # which is where one likes: an axis by itself, if there is one of 1
            (held,) = (axis for axis, group in enumerate(groups) if 0 in group)
            alone = value.shape[held] == 1 and not (one == "front" and value.shape[0] == 1)
            if not alone and not (one == "kept" and 1 not in value.shape):
                held = value.shape.index(1) if 1 in value.shape else 0
            groups = [tuple(axis for axis in group if axis) for group in groups]
            groups[held] = (0, *groups[held])
        order = [axis for group in groups for axis in group if axis]
        own = value.spec.shape
        shape: list[int] = []
        layout: list[tuple[int, ...]] = []
        for extent, group in zip(value.shape, groups, strict=True):
            made: list[int] = []
            sides = [group]
            if 0 in group:
                place = group.index(0)
                sides = [group[:place], group[place + 1 :]]
            for number, side in enumerate(sides):
                if number:
                    made.append(0)
                size = prod(own[axis] for axis in side)
                if size > 1 or len(sides) == 1:
                    shape.append(size if len(sides) > 1 else extent)
                    made.append(len(shape))
            layout.append(tuple(made))
        result = self._as_it_is(value)
        if order != sorted(order):
            result = self.add(self.kernel(Transpose, tuple(order)), result, part="order")
        if tuple(shape) != result.spec.shape[1:]:
            result = self.add(self.kernel(Reshape, tuple(shape)), result, part="axes")
        if layout[0][:1] == (0,):
            return Dynamic(result.name, result.spec, value.shape)
        return Dynamic(result.name, result.spec, value.shape, layout=tuple(layout))

    def place(self, value: Dynamic, axis: int) -> int:
        """Weft's number of an axis of a value that is settled."""
        if not value.layout:
            return self.axis(axis, len(value.shape))
        (counted,) = self.counted([axis], len(value.shape))
        if 0 in value.layout[counted]:
            self.refuse(f"it works along axis {counted}, the batch, and would mix samples")
        return value.layout[counted][0]

    def at_place(self, value: Dynamic, result: Dynamic, axis: int) -> Dynamic:
        """`result`, which has another extent than `value` along one axis of the file."""
        if not value.layout:
            return result
        extent = result.spec.shape[value.layout[axis][0]]
        shape = (*value.shape[:axis], extent, *value.shape[axis + 1 :])
        return Dynamic(result.name, result.spec, shape, layout=value.layout)

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
