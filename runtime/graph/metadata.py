"""The tags a scheduler reads, for every node: what it is, how large, what it costs, how it divides.

Cost is *determined* from the kernel's FLOPs and bytes unless the user *gave* one in the node's tags; a
measured cost replaces a determined one, never a given one. All sizes are for one micro-batch. Nodes, layers
(nodes that share a name) and blocks of neurons stand side by side in a table that all ranks see (table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ...kernels.kernel import Cost, Split
from .graph import Graph

CostSource = Literal["determined", "given", "measured"]

ACTIVATIONS = frozenset({"erf", "gelu", "relu", "sigmoid", "softmax", "tanh"})


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of a node without running it."""

    kernel: str
    layer: str  # the node's own name, unless its tag "layer" names a group
    attributes: Mapping[str, Any]  # kernel size, stride, filters, dropout rate, ... as the kernel names them
    shape: tuple[int, ...]  # of the output
    filter_size: tuple[int, ...]  # of the weights of one neuron; () without weights
    neurons: int  # output elements of one sample
    parameters: int
    cost: Cost
    cost_source: CostSource
    splits: tuple[Split, ...]
    priority: int
    device: str | None  # "cpu", "cuda" or None for any
    tags: Mapping[str, Any]  # the user's own

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Of a window over images; () where there is none."""
        return tuple(self.attributes.get("kernel_size", ()))

    @property
    def activation(self) -> str | None:
        """What the kernel is, or applies in the same visit; None if it does neither."""
        if self.attributes.get("relu"):
            return "relu"
        return self.kernel if self.kernel in ACTIVATIONS else None

    @property
    def dropout(self) -> float:
        """The share of neurons that training drops."""
        return float(self.attributes.get("rate", 0.0)) if self.kernel == "dropout" else 0.0


def describe(graph: Graph, batch: int) -> dict[str, Metadata]:
    """Metadata of every node for `batch` samples.

    Tags that are understood: "cost" (forward FLOPs), "layer", "priority" and "device"; others are kept.
    """
    specs = graph.specs(batch)
    found = {}
    for node in graph.nodes:
        inputs = graph.input_specs(node, specs)
        cost, source = node.kernel.cost(*inputs), "determined"
        parameters = node.kernel.parameters(*inputs)
        if "cost" in node.tags:
            cost, source = _scaled(cost, float(node.tags["cost"])), "given"
        found[node.name] = Metadata(
            kernel=node.kernel.name,
            layer=str(node.tags.get("layer", node.name)),
            attributes={f.name: getattr(node.kernel, f.name) for f in fields(node.kernel)},
            shape=specs[node.name].shape,
            filter_size=parameters[0].shape[1:] if parameters else (),
            neurons=specs[node.name].size // batch,
            parameters=sum(p.size for p in parameters if p.name not in node.shares),
            cost=cost,
            cost_source=source,  # type: ignore[arg-type]
            splits=node.kernel.split(*inputs),
            priority=int(node.tags.get("priority", 0)),
            device=node.tags.get("device"),
            tags=node.tags,
        )
    return found


def _scaled(cost: Cost, forward_flops: float) -> Cost:
    """A given forward cost; the gradients keep their proportion to it."""
    factor = forward_flops / cost.forward_flops if cost.forward_flops else 1.0
    return Cost(
        forward_flops, cost.input_gradient_flops * factor, cost.weight_gradient_flops * factor, cost.bytes
    )
