"""The flat gradient cut into portions: the unit that travels.

    flat:      | conv1 | conv2 |   dense1 (large)      | dense2 |
    portions:  |      3        |    2     |     1      |   0    |     in order of readiness: backward

Small layers are fused until a portion is worth a message; a large layer is cut so that what follows need not
wait for all of it. The cut follows from the layout alone, so every rank makes the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.parameters import ALIGNMENT, Layout

ELEMENT_BYTES = 4  # the flat gradient is float32


@dataclass(frozen=True, slots=True)
class Portion:
    """Elements `start` to `stop` of the flat gradient, ready when all of `nodes` have theirs."""

    index: int
    start: int
    stop: int
    nodes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return (self.stop - self.start) * ELEMENT_BYTES

    @property
    def name(self) -> str:
        """For traces and messages."""
        return f"portion {self.index} ({', '.join(self.nodes)})"


def cut(layout: Layout, portion_bytes: int) -> tuple[Portion, ...]:
    """Portions of about `portion_bytes`, numbered in the order in which backward completes them."""
    limit = max(ALIGNMENT, portion_bytes // ELEMENT_BYTES // ALIGNMENT * ALIGNMENT)
    portions: list[Portion] = []
    waiting: list[str] = []  # nodes that are too small to travel alone, the last of the model first

    def close() -> None:
        if waiting:
            start, stop = layout.span(waiting[-1]).start, layout.span(waiting[0]).stop
            portions.append(Portion(len(portions), start, stop, tuple(waiting)))
            waiting.clear()

    for node in reversed(tuple(layout.nodes)):
        span = layout.span(node)
        if span.stop - span.start > limit:
            close()
            pieces = max(1, round((span.stop - span.start) / limit))  # a bias is no reason to cut in two
            each = -(-(span.stop - span.start) // pieces // ALIGNMENT) * ALIGNMENT
            for start in reversed(range(span.start, span.stop, each)):
                portions.append(Portion(len(portions), start, min(start + each, span.stop), (node,)))
            continue
        if waiting and layout.span(waiting[0]).stop - span.start > limit:
            close()
        waiting.append(node)
    close()
    return tuple(portions)
