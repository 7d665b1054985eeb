"""What tests of engines share."""

from __future__ import annotations

from weft.runtime.graph import Graph


def tags(graph: Graph, cost_s: float = 1.0) -> dict[str, dict[str, float]]:
    """Costs at which every node is cut into as many blocks as there may be."""
    return {node.name: {"cost_s": cost_s} for node in graph.nodes if not node.kernel.view}
