"""Where every value of a graph stands when no layer waits for another to end: a buffer each, but for copies.

    view                the input's memory under another shape
    element by element  into the input, where nobody else reads that
    concat              no arithmetic: what is joined is written into its place, where that is contiguous

Buffers are not shared between values that are needed at different times, as a serial program's are: with
blocks of several layers at work at once a buffer would be free only when all readers of its first value have
run, and who writes the second would wait for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ....kernels.kernel import ArraySpec
from ..graph import Graph, Node

POINTWISE = frozenset(
    {
        *("add", "arithmetic", "arithmetic_number", "arithmetic_weight", "batch_norm", "dropout"),
        *("erf", "gelu", "relu", "sigmoid", "sqrt", "tanh"),
    }
)
"""Kernels of which every element of the output depends on one element of each input as large."""


@dataclass(frozen=True, slots=True)
class Place:
    """A value's memory: from element `start` on of the buffer that has the name `buffer`."""

    buffer: str
    start: int


@dataclass(frozen=True)
class Storage:
    """A place for every value; buffers by name with their specs; the concats that are joined in place."""

    places: Mapping[str, Place]
    buffers: Mapping[str, ArraySpec]
    joined: frozenset[str]

    @staticmethod
    def of(graph: Graph, batch: int) -> Storage:
        """For `batch` samples."""
        return _Claims(graph, batch).settle()


def roots(graph: Graph) -> dict[str, str]:
    """For every value the one whose memory it is a view of: itself, if it is none."""
    found = {name: name for name in graph.inputs}
    for node in graph.nodes:
        found[node.name] = found[node.inputs[0]] if node.kernel.view else node.name
    return found


def readers(graph: Graph) -> dict[str, list[Node]]:
    """For every value that is no view the nodes that read it or a view of it, once for each reading."""
    root = roots(graph)
    found: dict[str, list[Node]] = {name: [] for name in root.values()}
    for node in graph.nodes:
        if not node.kernel.view:
            for value in node.inputs:
                found[root[value]].append(node)
    return found


class _Claims:
    """Goes backwards through the graph: a reader may claim that its input be written where it wants it."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self._graph = graph
        self._specs = graph.specs(batch)
        self._roots = roots(graph)
        self._readers = readers(graph)
        self._held = {self._roots[value] for value in (*graph.inputs, *graph.outputs)}
        self._claimed: dict[str, tuple[str, int]] = {}
        self._joined: set[str] = set()
        self._overwritten: set[str] = set()

    def settle(self) -> Storage:
        for node in reversed(self._graph.nodes):
            if node.kernel.name == "concat":
                self._join(node)
            elif node.kernel.name in POINTWISE:
                self._overwrite(node)
        places = {value: self._place(root) for value, root in self._roots.items()}
        buffers = {place.buffer: self._specs[place.buffer] for place in places.values()}
        return Storage(places, buffers, frozenset(self._joined))

    def _join(self, node: Node) -> None:
        out = self._specs[node.name]
        axis = node.kernel.axis % len(out.shape)  # type: ignore[attr-defined]
        values = [self._roots[value] for value in node.inputs]
        free = [value not in self._graph.inputs and value not in self._claimed for value in values]
        if prod(out.shape[:axis]) != 1 or not all(free) or len(set(values)) < len(values):
            return
        if node.name in self._overwritten:  # and what is joined with it
            if any(len(self._readers[value]) > 1 or value in self._held for value in values):
                return
            self._overwritten.update(values)
        start = 0
        for value in values:
            self._claimed[value] = node.name, start
            start += self._specs[value].size
        self._joined.add(node.name)

    def _overwrite(self, node: Node) -> None:
        for value in node.inputs:
            root = self._roots[value]
            alone = len(self._readers[root]) == 1 and root not in self._held and root not in self._claimed
            if alone and self._specs[value] == self._specs[node.name]:
                self._claimed[root] = node.name, 0
                self._overwritten.add(root)
                return

    def _place(self, value: str) -> Place:
        start = 0
        while value in self._claimed:
            target, offset = self._claimed[value]
            value, start = self._roots[target], start + offset
        return Place(value, start)
