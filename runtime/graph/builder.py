"""Writing a model down: a chain of layers, or a function of values.

layers = [("conv2d", {"channels": 16, "kernel_size": 3, "padding": 1}), ("relu", {}), ("flatten", {})]
graph = sequential((1, 8, 8), layers)

b = Builder()
x = b.input("x", (1, 8, 8))
h = b("relu", b("conv2d", x, channels=16, kernel_size=3, padding=1))
graph = b.build(b("add", x, h))

A kernel is named as in the registry, or given: b(MyKernel(slope=0.1), x).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NewType

from ...kernels.kernel import ArraySpec, Kernel
from ...kernels.loss import Loss
from ...kernels.registry import kernel
from ..errors import GraphError
from .backward import has_gradient, keeps_parameters
from .graph import NO_TAGS, NOTHING_SHARED, Graph, Node

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
        kernel_or_name: Kernel | str,
        *inputs: Value,
        name: str | None = None,
        tags: Mapping[str, Any] = NO_TAGS,
        shares: Mapping[str, str] = NOTHING_SHARED,
        **attributes: Any,
    ) -> Value:
        """Apply a kernel, one from the registry by its name and attributes, or the caller's own.

        Without `name` the node is called after the kernel and numbered. `shares` gives it parameters of nodes
        before it in place of its own: shares={"weight": "tokens.weight"} behind a node called tokens.
        """
        given = kernel_or_name if isinstance(kernel_or_name, Kernel) else None
        title = str(kernel_or_name) if given is None else given.name
        if name is None:
            self._counts[title] += 1
            name = f"{title}_{self._counts[title]}"
        if given is not None and attributes:
            raise GraphError(
                f"node {name!r}: {', '.join(attributes)} cannot be set any more: the kernel is made already"
            )
        try:
            made = kernel(title, **attributes) if given is None else given
        except ValueError as error:
            raise GraphError(f"node {name!r}: {error}") from error
        self._nodes.append(Node(name, made, tuple(inputs), tags, shares))
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


def with_loss(graph: Graph, loss: str, target: ArraySpec, **attributes: Any) -> Graph:
    """The graph with a loss kernel behind its only output: nodes "target" (an input) and "loss" are added.

    `target` is per sample, and `attributes` are the loss's. The first output is the loss, the second the
    prediction it was computed from.
    """
    if len(graph.outputs) != 1:
        raise GraphError(f"a loss needs one prediction; the graph has outputs {', '.join(graph.outputs)}")
    prediction = graph.outputs[0]
    needed, reached = {prediction}, {prediction}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
        if node.name in reached:
            reached.update(value for at, value in enumerate(node.inputs) if has_gradient(node, at))
    # The weights of such a node would never get a gradient, and all ranks would wait for it.
    unused = [node.name for node in graph.nodes if node.name not in needed]
    if unused:
        raise GraphError(f"the output {prediction!r} does not depend on {', '.join(unused)}: remove them")
    specs = graph.specs(1)
    # The same of weights behind which everything is tokens, or a value of which only the samples are counted.
    cut_off = [
        node.name
        for node in graph.nodes
        if node.name not in reached
        and node.kernel.parameters(*graph.input_specs(node, specs))
        and not keeps_parameters(graph, node)
    ]
    if cut_off:
        behind = set(cut_off)  # and what is computed from them: other tokens end no gradient of theirs
        for node in graph.nodes:
            if behind.intersection(node.inputs):
                behind.add(node.name)
        ends = [
            f"{node.name} ({node.kernel.name})"
            for node in graph.nodes
            if node.name in reached
            and any(value in behind and not has_gradient(node, at) for at, value in enumerate(node.inputs))
        ]
        raise GraphError(
            f"no gradient of the output {prediction!r} reaches the weights of {', '.join(cut_off)}: it ends "
            f"at {', '.join(ends)}; remove these weights, or train a value before that (of an ONNX file, "
            "[model] output names it)"
        )
    node = Node("loss", kernel(loss, **attributes), (prediction, "target"))
    return Graph({**graph.inputs, "target": target}, (*graph.nodes, node), ("loss", prediction))


def loss_of(graph: Graph) -> Loss:
    """The kernel that `with_loss` has put behind a model."""
    found = graph.by_name[graph.outputs[0]].kernel
    assert isinstance(found, Loss), f"{graph.outputs[0]} is a {found.name}: the graph has no loss"
    return found
