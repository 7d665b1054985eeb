"""How a stage is cut into blocks: into how many, and along which axes of its output.

Every block is a call of some microseconds, and what all blocks read they read again: rows of an image share
the filters, blocks of channels share the image. So a stage falls into as many blocks as its cost is worth,
an equal number for each rank, and along the axes where least is read twice: rows above (large images, few
filters), channels below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from ....kernels.kernel import ArraySpec, Region, Split
from .regions import grid


@dataclass(frozen=True, slots=True)
class Grain:
    """How fine blocks are: at least and about so long, and at most so many of a stage for each rank."""

    least_s: float
    target_s: float
    most: int = 2

    @staticmethod
    def of(task_s: float) -> Grain:
        """From what a block costs besides its arithmetic, `task_s`.

        With 10 times that for a target and at most 4 blocks of a layer for each rank, resnet50's blocks took
        21% longer than its layers whole, with 100 times and at most 2 it was 5%: to pad and pack the same
        image or filters more often loses more than a finer balance gains.
        """
        return Grain(3 * task_s, 100 * task_s)


SCATTERED = 0.5
"""How much longer element by element takes on rows of many channels, in pieces of some KB: adding
256 x 14 x 56 takes 147 us where a fourth of the whole takes 64, a relu 112 where that takes 64."""


def count(cost_s: float, ranks: int, grain: Grain) -> int:
    """Into how many blocks a stage of this cost falls: a multiple of the ranks, or fewer than that."""
    if ranks == 1:
        return 1
    if cost_s < ranks * grain.least_s:
        return max(1, min(ranks, int(cost_s / grain.least_s)))
    return ranks * min(grain.most, max(1, round(cost_s / (ranks * grain.target_s))))


def regions(
    output: ArraySpec,
    splits: Sequence[Split],
    wanted: int,
    *,
    weight_bytes: float = 0.0,
    input_bytes: float = 0.0,
    follow_bytes: float = 0.0,
) -> tuple[Region, ...]:
    """The output in at most `wanted` parts, of the possible cuts the one in the most parts that costs least.

    A part of a weight axis reads its own weights and all of the input; a part of another axis the other way
    round. What follows element by element visits `follow_bytes`. Where a cut is as good as another, the first
    axes are cut: such parts are contiguous.
    """
    axes = {split.axis: split for split in splits if split.extent > 1}

    def cost(parts: dict[int, int]) -> tuple[float, int]:
        by_weight = prod(n for axis, n in parts.items() if axes[axis].weight_axis is not None)
        total = prod(parts.values())
        scattered = any(n > 1 for axis, n in parts.items() if axis > 1)
        visited = weight_bytes * total / by_weight + input_bytes * by_weight
        return visited + SCATTERED * follow_bytes * scattered, sum(axis for axis in parts if parts[axis] > 1)

    best = min(_factored(axes, wanted), key=lambda parts: (-prod(parts.values()), *cost(parts)))
    cuts = [
        bounds(extent, axes[axis].granule, best[axis]) if axis in best else [0, extent]
        for axis, extent in enumerate(output.shape[1:], 1)
    ]
    return tuple(grid(output, cuts))


def bounds(extent: int, granule: int, parts: int) -> list[int]:
    """Where an axis is cut into so many parts, nearly equal multiples of the granule but for the last."""
    units = -(-extent // granule)
    return [min(extent, granule * (part * units // parts)) for part in range(parts + 1)]


def _factored(axes: dict[int, Split], wanted: int) -> Iterator[dict[int, int]]:
    """Every way to give axes numbers of parts whose product is at most `wanted`."""
    if not axes:
        yield {}
        return
    (axis, split), *rest = axes.items()
    for parts in range(1, min(wanted, -(-split.extent // split.granule)) + 1):
        for others in _factored(dict(rest), wanted // parts):
            yield {axis: parts} | others
