"""The tags a scheduler reads, for every node: what it is, how large, what it costs, how it divides.

Cost is *determined* from the kernel's FLOPs and bytes unless the user *gave* one in the node's tags; a
measured cost replaces a determined one, never a given one. All sizes are for one micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ...kernels.kernel import Cost, Split
from .graph import Graph

CostSource = Literal["determined", "given", "measured"]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of a node without running it."""

    kernel: str
    attributes: Mapping[str, Any]  # kernel size, stride, filters, dropout rate, ... as the kernel names them
    shape: tuple[int, ...]  # of the output
    neurons: int  # output elements of one sample
    parameters: int
    cost: Cost
    cost_source: CostSource
    splits: tuple[Split, ...]
    priority: int
    device: str | None  # "cpu", "cuda" or None for any
    tags: Mapping[str, Any]  # the user's own


def describe(graph: Graph, batch: int) -> dict[str, Metadata]:
    """Metadata of every node for `batch` samples.

    Tags that are understood: "cost" (forward FLOPs), "priority" and "device"; others are kept as they are.
    """
    specs = graph.specs(batch)
    found = {}
    for node in graph.nodes:
        inputs = graph.input_specs(node, specs)
        cost, source = node.kernel.cost(*inputs), "determined"
        if "cost" in node.tags:
            cost, source = _scaled(cost, float(node.tags["cost"])), "given"
        found[node.name] = Metadata(
            kernel=node.kernel.name,
            attributes={f.name: getattr(node.kernel, f.name) for f in fields(node.kernel)},
            shape=specs[node.name].shape,
            neurons=specs[node.name].size // batch,
            parameters=sum(p.size for p in node.kernel.parameters(*inputs)),
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
