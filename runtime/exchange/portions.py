"""The flat gradient cut into portions: the unit that travels.

    flat:      | conv1 | conv2 |      dense1 (large)       | dense2 |
    portions:  |      4        |  3   |    2    |    1     |   0    |     in order of readiness: backward
                                rows    rows      rows
                                0-255   256-511   512-767 and bias

Small layers are fused until a portion is worth a message. A large layer is cut by rows, blocks of its output
neurons, where its kernel computes weight gradients so: its first portion leaves before its gradient is whole.
What is not the weight matrix (the bias) goes with the layer's first portion, the highest rows, which it
follows in memory. The cut follows from graph and layout alone, so every rank makes the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm

from ...kernels.kernel import ByRows
from ..graph import Graph
from ..graph.backward import Call, Phase
from ..graph.parameters import ALIGNMENT, Layout

ELEMENT_BYTES = 4  # the flat gradient is float32


@dataclass(frozen=True, slots=True)
class Portion:
    """Elements `start` to `stop` of the flat gradient, ready when all of `nodes` have theirs.

    `rows` is the block of output neurons, first and one past the last, where a layer is cut by rows. `layer`
    is the place in the forward pass of the lowest of its nodes: who is first is wanted first.
    """

    index: int
    start: int
    stop: int
    nodes: tuple[str, ...]
    layer: int
    rows: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return (self.stop - self.start) * ELEMENT_BYTES

    @property
    def name(self) -> str:
        """For traces and messages."""
        rows = f" rows {self.rows[0]}-{self.rows[1] - 1}" if self.rows else ""
        return f"portion {self.index} ({', '.join(self.nodes)}{rows})"


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the last micro-batch's backward: call number `call` of the program, or only rows of it.

    `completes` are the portions that are ready when it has run. A `movable` block may run later.
    """

    call: int
    completes: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None
    movable: bool = False


def rows_of(graph: Graph) -> dict[str, tuple[int, int]]:
    """By node: output neurons, and the multiple in which its weight gradient may be computed by rows.

    None of nodes that share parameters: their gradients add up in the order of backward, and whole.
    """
    specs = graph.specs(1)
    found = {}
    for node in graph.nodes:
        if isinstance(node.kernel, ByRows) and node.name not in graph.sharing:
            for split in node.kernel.split(*graph.input_specs(node, specs)):
                if split.weight_axis == 0:
                    found[node.name] = (split.extent, split.granule)
    return found


def cut(
    layout: Layout, portion_bytes: int, rows: Mapping[str, tuple[int, int]] | None = None
) -> tuple[Portion, ...]:
    """Portions of about `portion_bytes`, numbered in the order in which backward completes them.

    Only nodes in `rows` (of `rows_of`) are cut by rows; other large ones are cut anywhere, and all their
    portions are ready at once.
    """
    limit = max(ALIGNMENT, portion_bytes // ELEMENT_BYTES // ALIGNMENT * ALIGNMENT)
    places = {node: place for place, node in enumerate(layout.nodes)}
    portions: list[Portion] = []
    waiting: list[str] = []  # nodes that are too small to travel alone, the last of the model first

    def add(start: int, stop: int, nodes: tuple[str, ...], rows: tuple[int, int] | None = None) -> None:
        portions.append(Portion(len(portions), start, stop, nodes, places[nodes[-1]], rows))

    def close() -> None:
        if waiting:
            add(layout.span(waiting[-1]).start, layout.span(waiting[0]).stop, tuple(waiting))
            waiting.clear()

    for node in reversed(tuple(layout.nodes)):
        span = layout.span(node)
        if span.stop - span.start > limit:
            close()
            pieces = max(1, round((span.stop - span.start) / limit))  # a bias is no reason to cut in two
            blocks = _row_blocks(layout, node, pieces, *(rows or {}).get(node, (0, 1)))
            if len(blocks) > 1:
                for start, stop, block in blocks:
                    add(start, stop, (node,), block)
                continue
            each = -(-(span.stop - span.start) // pieces // ALIGNMENT) * ALIGNMENT
            for start in reversed(range(span.start, span.stop, each)):
                add(start, min(start + each, span.stop), (node,))
            continue
        if waiting and layout.span(waiting[0]).stop - span.start > limit:
            close()
        waiting.append(node)
    close()
    return tuple(portions)


def _row_blocks(
    layout: Layout, node: str, pieces: int, extent: int, granule: int
) -> list[tuple[int, int, tuple[int, int]]]:
    """Start and stop in the flat vector and rows of about `pieces` blocks, the highest rows first."""
    weight, span = layout.nodes[node][0], layout.span(node)
    if not extent or weight.spec.shape[0] != extent:
        return []
    row = weight.spec.size // extent
    step = lcm(granule, ALIGNMENT // gcd(row, ALIGNMENT))  # so that every portion starts on a cache line
    each = max(step, -(-extent // pieces // step) * step)
    found = []
    for first in reversed(range(0, extent, each)):
        last = min(first + each, extent)
        stop = span.stop if last == extent else weight.start + last * row
        found.append((weight.start + first * row, stop, (first, last)))
    return found


def blocks(
    calls: Sequence[Call], portions: Sequence[Portion], movable: Collection[str] = ()
) -> tuple[Block, ...]:
    """Backward in its natural order, calls that complete several portions of one layer in blocks of rows.

    Those of nodes in `movable`, whose inputs the caller keeps to the end of backward, are movable; so is the
    whole call of a layer that travels in one portion, unless that waits for other layers, too.
    """
    completes = {
        node: [p for p in portions if p.nodes[-1] == node] for node in {p.nodes[-1] for p in portions}
    }
    found: list[Block] = []
    for number, call in enumerate(calls):
        own = completes.get(call.node.name, []) if call.phase is Phase.WEIGHT_GRADIENT else []
        if own and own[0].rows is not None:
            found += [Block(number, (p.index,), p.rows, call.node.name in movable) for p in own]
        else:
            alone = bool(own) and all(len(p.nodes) == 1 for p in own)
            movable_whole = alone and call.node.name in movable
            found.append(Block(number, tuple(p.index for p in own), movable=movable_whole))
    return tuple(found)
