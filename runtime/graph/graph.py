"""A model is a graph of kernels: nodes in topological order, each naming the values it reads.

A value is a graph input or a node's output and carries that name. Shapes follow from the input shapes and a
batch size, so one graph serves every micro-batch size. The graph is immutable data: no array, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ...kernels.kernel import ArraySpec, Kernel
from ..errors import GraphError

NAME = re.compile(r"[\w.-]+")
"""What a value may be called; other characters mark arrays that belong to values (backward.py)."""

NO_TAGS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Node:
    """One kernel applied to named values; the user's `tags` override what the framework determines."""

    name: str
    kernel: Kernel
    inputs: tuple[str, ...]
    tags: Mapping[str, Any] = field(default_factory=lambda: NO_TAGS, hash=False)


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, input shapes per sample (without the batch axis), and the outputs' names.

    Raises GraphError for an unknown or doubled name, an input without elements, a node before its inputs, a
    wrong number of inputs, or shapes that do not fit (naming the node).
    """

    inputs: Mapping[str, ArraySpec]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        known = set(self.inputs)
        for name in (*self.inputs, *(node.name for node in self.nodes)):
            if not NAME.fullmatch(name):
                raise GraphError(f"a value is called {name!r}; names are letters, digits, '_', '-' and '.'")
        for name, spec in self.inputs.items():
            if any(extent < 1 or extent != int(extent) for extent in spec.shape):
                raise GraphError(f"input {name!r} has the shape {spec.shape} a sample; extents are 1 or more")
        for node in self.nodes:
            if node.name in known:
                raise GraphError(f"two values are called {node.name!r}; give one of the nodes another name")
            arity = node.kernel.arity
            if len(node.inputs) < 1 or (arity is not None and len(node.inputs) != arity):
                raise GraphError(
                    f"node {node.name!r}: {node.kernel.name} takes {arity or 'one or more'} inputs,"
                    f" got {len(node.inputs)}"
                )
            for value in node.inputs:
                if value not in known:
                    raise GraphError(
                        f"node {node.name!r} reads {value!r}, which no node before it makes;"
                        f" known so far: {', '.join(sorted(known))}"
                    )
            known.add(node.name)
        for value in self.outputs:
            if value not in known:
                raise GraphError(f"output {value!r} is no value of the graph")
        self.specs(1)  # shapes that do not fit are found where the model is written, not in the first step

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """For every value the nodes that read it, a node twice where it reads it twice."""
        found: dict[str, list[Node]] = {name: [] for name in (*self.inputs, *self.by_name)}
        for node in self.nodes:
            for value in node.inputs:
                found[value].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def specs(self, batch: int) -> dict[str, ArraySpec]:
        """Shape and dtype of every value for `batch` samples."""
        specs = {name: ArraySpec((batch, *spec.shape), spec.dtype) for name, spec in self.inputs.items()}
        for node in self.nodes:
            try:
                specs[node.name] = node.kernel.output(*(specs[value] for value in node.inputs))
            except ValueError as error:
                raise GraphError(f"node {node.name!r} ({node.kernel.name}): {error}") from error
        return specs

    def input_specs(self, node: Node, specs: Mapping[str, ArraySpec]) -> tuple[ArraySpec, ...]:
        """Specs of what `node` reads."""
        return tuple(specs[value] for value in node.inputs)
