"""Writing a model down: a chain of layers, or a function of values.

layers = [("conv2d", {"channels": 16, "kernel_size": 3, "padding": 1}), ("relu", {}), ("flatten", {})]
graph = sequential((1, 8, 8), layers)

b = Builder()
x = b.input("x", (1, 8, 8))
h = b("relu", b("conv2d", x, channels=16, kernel_size=3, padding=1))
graph = b.build(b("add", x, h))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NewType

from ...kernels.kernel import ArraySpec
from ...kernels.registry import kernel
from ..errors import GraphError
from .graph import NO_TAGS, Graph, Node

Value = NewType("Value", str)
"""The name of a value, as the builder hands it out."""


class Builder:
    """Collects inputs and nodes; `build` closes the graph."""

    def __init__(self) -> None:
        self._inputs: dict[str, ArraySpec] = {}
        self._nodes: list[Node] = []
        self._counts: Counter[str] = Counter()

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Value:
        """A graph input of `shape` per sample (the batch axis is added in front)."""
        if name in self._inputs:
            raise GraphError(f"two inputs are called {name!r}; give one another name")
        self._inputs[name] = ArraySpec(tuple(shape), dtype)
        return Value(name)

    def __call__(
        self,
        kernel_name: str,
        *inputs: Value,
        name: str | None = None,
        tags: Mapping[str, Any] = NO_TAGS,
        **attributes: Any,
    ) -> Value:
        """Apply a kernel from the registry; without `name` the node is called after it and numbered."""
        if name is None:
            self._counts[kernel_name] += 1
            name = f"{kernel_name}_{self._counts[kernel_name]}"
        try:
            made = kernel(kernel_name, **attributes)
        except ValueError as error:
            raise GraphError(f"node {name!r}: {error}") from error
        self._nodes.append(Node(name, made, tuple(inputs), tags))
        return Value(name)

    def build(self, *outputs: Value) -> Graph:
        """The graph of everything applied so far."""
        return Graph(dict(self._inputs), tuple(self._nodes), tuple(outputs))


def sequential(
    shape: Sequence[int], layers: Iterable[tuple[str, Mapping[str, Any]]], *, dtype: str = "float32"
) -> Graph:
    """A chain: each layer, (kernel name, attributes), reads the one before; the input is called "x"."""
    builder = Builder()
    value = builder.input("x", shape, dtype)
    for kernel_name, attributes in layers:
        value = builder(kernel_name, value, **attributes)
    return builder.build(value)


def with_loss(graph: Graph, loss: str, target: ArraySpec) -> Graph:
    """The graph with a loss kernel behind its only output: nodes "target" (an input) and "loss" are added.

    `target` is per sample. The first output is the loss, the second the prediction it was computed from.
    """
    if len(graph.outputs) != 1:
        raise GraphError(f"a loss needs one prediction; the graph has outputs {', '.join(graph.outputs)}")
    prediction = graph.outputs[0]
    needed = {prediction}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    # The weights of such a node would never get a gradient, and all ranks would wait for it.
    unused = [node.name for node in graph.nodes if node.name not in needed]
    if unused:
        raise GraphError(f"the output {prediction!r} does not depend on {', '.join(unused)}: remove them")
    node = Node("loss", kernel(loss), (prediction, "target"))
    return Graph({**graph.inputs, "target": target}, (*graph.nodes, node), ("loss", prediction))
