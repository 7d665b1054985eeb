"""Regions: which part of an input a part of the output follows from, and kernels that are alike on parts.

    the same elements     add, relu, …      region -> region, but for extents of 1 that are broadcast
    under another shape   reshape           axes that correspond one to one keep their slices

A kernel that does to a part of its arrays what it does to the whole is run on views of them, or where its
loops are compiled for contiguous arrays on copies, which stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from .device import array_module
from .kernel import Array, ArraySpec, Buffers, Kernel, Mode, Region


def part(a: Array, region: Region) -> Array:
    """The region of an array (N, …): a view."""
    return a[(slice(None), *region)]


def keep_whole(kernel: Kernel, region: Region, y: Array, *axes: int) -> None:
    """ValueError where `region` of the output y is a part along one of `axes`."""
    for axis in axes:
        if region[axis - 1] != slice(0, y.shape[axis]):
            raise ValueError(
                f"{kernel.name}: {region} of an output {y.shape} (with its batch); axis {axis} cannot be cut"
            )


def images_part(kernel: Kernel, region: Region, y: Array) -> tuple[slice, slice]:
    """Channels and rows of a region of images; ValueError where it cuts the columns."""
    keep_whole(kernel, region, y, 3)
    return region[0], region[1]


def empty(region: Region) -> bool:
    """Whether it holds no element."""
    return any(each.stop <= each.start for each in region)


def broadcast_part(region: Region, shape: tuple[int, ...]) -> Region:
    """What `region` takes of an operand with `shape` behind the batch, broadcast from the right."""
    aligned = region[len(region) - len(shape) :]
    return tuple(slice(0, 1) if extent == 1 else own for extent, own in zip(shape, aligned, strict=True))


def reshaped(region: Region, shape: tuple[int, ...], into: tuple[int, ...]) -> Region:
    """The least region of an array of shape `into` that holds `region` of the same elements as `shape`.

    Both without the batch. The shapes are cut into groups of axes of equal sizes, as many as possible: in
    (256, 14, 14) -> (4, 64, 14, 14) images stay whole rows, only the channels are counted through.
    """
    found: list[slice] = []
    i = j = 0
    while i < len(shape) or j < len(into):
        i_stop, j_stop = i + 1, j + 1
        while (one := prod(shape[i:i_stop])) != (other := prod(into[j:j_stop])):
            if one < other:
                i_stop += 1
            else:
                j_stop += 1
        found += _counted(region[i:i_stop], shape[i:i_stop], into[j:j_stop])
        i, j = min(i_stop, len(shape)), min(j_stop, len(into))
    return tuple(found)


def _counted(region: Region, shape: tuple[int, ...], into: tuple[int, ...]) -> list[slice]:
    """The same within a group: from the place of the region's first element to that of its last."""
    if empty(region):
        return [slice(0, 0) for _ in into]
    first = last = 0
    for own, extent in zip(region, shape, strict=True):
        first, last = first * extent + own.start, last * extent + own.stop - 1
    found = []
    size = prod(into)
    for place, extent in enumerate(into):
        size //= extent
        found.append(slice(first // size, last // size + 1))
        if first // size != last // size:
            return [*found, *(slice(0, each) for each in into[place + 1 :])]
        first, last = first % size, last % size
    return found


def on_views(
    kernel: Kernel,
    b: Buffers,
    mode: Mode,
    region: Region,
    parameters: Callable[[Array], Array] | None = None,
) -> None:
    """`region` of the output by a kernel alike on parts, whose forward takes views.

    `parameters` cuts each parameter; without it they are cut along the weight axes of the kernel's split.
    """
    specs = [ArraySpec(x.shape, str(x.dtype)) for x in b.inputs]
    needs = kernel.needs(region, *specs)
    own = tuple(map(parameters, b.parameters)) if parameters else _parameters(kernel, b, region, specs)
    inputs = tuple(part(x, need) for x, need in zip(b.inputs, needs, strict=True))
    kernel.forward(replace(b, inputs=inputs, output=part(b.output, region), parameters=own), mode)


def on_copies(kernel: Kernel, b: Buffers, mode: Mode, region: Region) -> None:
    """`region` of the output by a kernel alike on parts, whose forward takes contiguous arrays."""
    xp = array_module(b.output)
    whole = [ArraySpec(x.shape, str(x.dtype)) for x in b.inputs]
    needs = kernel.needs(region, *whole)
    inputs = tuple(xp.ascontiguousarray(part(x, need)) for x, need in zip(b.inputs, needs, strict=True))
    specs = [ArraySpec(x.shape, str(x.dtype)) for x in inputs]
    into = part(b.output, region)
    output = into if into.flags.c_contiguous else xp.empty(into.shape, into.dtype)
    kernel.forward(
        replace(
            b,
            inputs=inputs,
            output=output,
            parameters=_parameters(kernel, b, region, whole),
            saved=tuple(xp.empty(each.shape, each.dtype) for each in kernel.saved(*specs)),
            scratch=tuple(xp.empty(each.shape, each.dtype) for each in kernel.scratch(*specs)),
        ),
        mode,
    )
    if output is not into:
        into[...] = output


def _parameters(kernel: Kernel, b: Buffers, region: Region, inputs: list[ArraySpec]) -> tuple[Array, ...]:
    found = b.parameters
    for split in kernel.split(*inputs) if found else ():
        if split.weight_axis is not None:
            before = (slice(None),) * split.weight_axis
            found = tuple(parameter[(*before, region[split.axis - 1])] for parameter in found)
    return found
