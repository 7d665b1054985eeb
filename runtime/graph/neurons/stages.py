"""Stages: a node with arithmetic of its own, and those element by element that follow on its blocks at once.

    conv ─> batch_norm ─┐
                        add ─> relu        one stage: a block of it is computed by four calls in a row
    (another stage) ────┘

What follows reads a block while it is still in the cache, and waits for nothing but its other inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph import Graph
from .storage import POINTWISE, Storage, readers, roots


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes that are computed together, the head first; all outputs have one shape."""

    nodes: tuple[str, ...]

    @property
    def head(self) -> str:
        """The node whose kernel decides how the stage is cut."""
        return self.nodes[0]

    @property
    def tail(self) -> str:
        """The node whose value others read."""
        return self.nodes[-1]


def stages(graph: Graph, batch: int, storage: Storage) -> tuple[Stage, ...]:
    """The stages in the order of their tails: every stage comes behind all that it reads."""
    specs, root, read = graph.specs(batch), roots(graph), readers(graph)
    held = {root[value] for value in graph.outputs}
    chains: dict[str, list[str]] = {}  # by tail
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.kernel.view or node.name in storage.joined:
            continue
        fits = [
            value
            for value in node.inputs
            if value in chains
            and specs[value] == specs[node.name]
            and len(read[value]) == 1
            and value not in held
        ]
        if node.kernel.name in POINTWISE and fits:
            # The latest: the others exist by then, or soon.
            chains[node.name] = [*chains.pop(max(fits, key=place.__getitem__)), node.name]
        else:
            chains[node.name] = [node.name]
    return tuple(Stage(tuple(nodes)) for _, nodes in sorted(chains.items(), key=lambda item: place[item[0]]))


def stage_of(chains: tuple[Stage, ...]) -> Mapping[str, int]:
    """The number of every node's stage."""
    return {node: number for number, stage in enumerate(chains) for node in stage.nodes}
