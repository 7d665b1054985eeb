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
    most: int = 4

    @staticmethod
    def of(task_s: float) -> Grain:
        """From what a block costs besides its arithmetic: at least 2, and mostly 10 times as long."""
        return Grain(2 * task_s, 10 * task_s)


def count(cost_s: float, ranks: int, grain: Grain) -> int:
    """Into how many blocks a stage of this cost falls: a multiple of the ranks, or fewer than that."""
    if ranks == 1:
        return 1
    if cost_s < ranks * grain.least_s:
        return max(1, min(ranks, int(cost_s / grain.least_s)))
    return ranks * min(grain.most, max(1, round(cost_s / (ranks * grain.target_s))))


def regions(
    output: ArraySpec, splits: Sequence[Split], wanted: int, weight_bytes: float, input_bytes: float
) -> tuple[Region, ...]:
    """The output in at most `wanted` parts, of the possible cuts the one in the most parts that reads least.

    A part of a weight axis reads its own weights and all of the input; a part of another axis the other way
    round.
    """
    axes = {split.axis: split for split in splits if split.extent > 1}

    def read_bytes(parts: dict[int, int]) -> float:
        by_weight = prod(n for axis, n in parts.items() if axes[axis].weight_axis is not None)
        total = prod(parts.values())
        return weight_bytes * total / by_weight + input_bytes * by_weight

    best = max(_factored(axes, wanted), key=lambda parts: (prod(parts.values()), -read_bytes(parts)))
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
