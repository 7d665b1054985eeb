"""Regions: parts of an array, a slice for every axis behind the batch, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import prod

from ....kernels.kernel import ArraySpec, Region

AXES = {1: ("neurons",), 2: ("places", "neurons"), 3: ("channels", "rows", "columns")}
"""What the axes behind the batch are called, by their number."""


def size(region: Region) -> int:
    """Elements of one sample."""
    return prod(part.stop - part.start for part in region)


def meets(one: Region, other: Region) -> bool:
    """Whether two parts of one array share an element."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def grid(spec: ArraySpec, cuts: Sequence[Sequence[int]]) -> Iterator[Region]:
    """The parts into which an array falls when every axis is cut at `cuts`, both of its ends included."""
    if len(cuts) != len(spec.shape) - 1:
        raise ValueError(f"cuts of {len(cuts)} axes, the array has {len(spec.shape) - 1} behind the batch")
    yield from product(*([slice(a, b) for a, b in pairwise(at)] for at in cuts))


def text(region: Region, spec: ArraySpec) -> str:
    """For people: "channels 0-31, rows 7-13"; "" for all of it."""
    axes = AXES.get(len(region), tuple(f"axis {i + 1}" for i in range(len(region))))
    return ", ".join(
        f"{name} {part.start}-{part.stop - 1}"
        for name, part, extent in zip(axes, region, spec.shape[1:], strict=True)
        if part.stop - part.start != extent
    )
