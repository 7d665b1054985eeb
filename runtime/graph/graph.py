"""A model is a graph of kernels: nodes in topological order, each naming the values it reads.

A value is a graph input or a node's output and carries that name. Shapes follow from the input shapes and a
batch size, so one graph serves every micro-batch size. The graph is immutable data: no array, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ...kernels.kernel import ArraySpec, Kernel, ParameterSpec
from ..errors import GraphError

NAME = re.compile(r"[\w.-]+")
"""What a value may be called; other characters mark arrays that belong to values (backward.py)."""

NO_TAGS: Mapping[str, Any] = MappingProxyType({})
NOTHING_SHARED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Node:
    """One kernel applied to named values; the user's `tags` override what the framework determines.

    `shares` leads from parameters of its kernel to those of nodes before it, in whose place it reads them:
    {"weight": "tokens.weight"} where the last layer of a language model has the weights of its first.
    """

    name: str
    kernel: Kernel
    inputs: tuple[str, ...]
    tags: Mapping[str, Any] = field(default_factory=lambda: NO_TAGS, hash=False)
    shares: Mapping[str, str] = field(default_factory=lambda: NOTHING_SHARED, hash=False)


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, input shapes per sample (without the batch axis), and the outputs' names.

    Raises GraphError for an unknown or doubled name, an input without elements, a node before its inputs, a
    wrong number of inputs, shapes that do not fit, or a shared parameter that is not there (naming the node).
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
        specs = self.specs(1)  # what does not fit is found where the model is written, not in the first step
        self._require_shared(specs)

    def _require_shared(self, specs: Mapping[str, ArraySpec]) -> None:
        """GraphError for a shared parameter that no node before owns, or that has another shape or role."""
        if not any(node.shares for node in self.nodes):
            return
        owned: dict[str, ParameterSpec] = {}
        for node in self.nodes:
            own = {each.name: each for each in node.kernel.parameters(*self.input_specs(node, specs))}
            for name, theirs in node.shares.items():
                if name not in own:
                    there = ", ".join(own) or "none"
                    raise GraphError(
                        f"node {node.name!r} ({node.kernel.name}) shares its {name!r}; its parameters are: "
                        f"{there}"
                    )
                if theirs not in owned:
                    there = ", ".join(owned) or "none"
                    raise GraphError(
                        f"node {node.name!r} shares {theirs!r}, which no node before it has as its own "
                        f"parameter; these are there: {there}"
                    )
                mine, other = own[name], owned[theirs]
                if mine.shape != other.shape:
                    raise GraphError(
                        f"node {node.name!r}: its {name} has shape {mine.shape}, and {theirs!r}, which it "
                        f"shares, {other.shape}"
                    )
                if "statistic" in (mine.role, other.role):
                    raise GraphError(
                        f"node {node.name!r} shares {theirs!r}, which is no weight that is trained: give it "
                        "one of its own"
                    )
            owned |= {
                f"{node.name}.{each.name}": each for each in own.values() if each.name not in node.shares
            }

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def sharing(self) -> frozenset[str]:
        """Nodes that share a parameter: those whose own it is, and those that read it in place of one."""
        found = {node.name for node in self.nodes if node.shares}
        return frozenset(found | {own.rpartition(".")[0] for n in self.nodes for own in n.shares.values()})

    def parted(self, stored: Collection[str]) -> Graph:
        """The graph in which parameters that are `stored` by a node's own name are its own.

        Weights of a run that was begun before nodes could share them: each had a copy, trained apart.
        """
        if not self.sharing:
            return self
        nodes = [
            replace(
                node,
                shares={own: of for own, of in node.shares.items() if f"{node.name}.{own}" not in stored},
            )
            for node in self.nodes
        ]
        return Graph(self.inputs, tuple(nodes), self.outputs)

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
