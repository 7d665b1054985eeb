"""Where every parameter stands in the flat vectors of weights, gradients and optimizer state.

One vector each: an optimizer updates a slice, an all-reduce moves a slice, a checkpoint stores a slice. The
layout follows from the graph alone, so it is the same on every rank. Each parameter starts on a 64-byte
boundary; the gaps hold zeros and stay zeros under every optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import groupby

import numpy as np

from ...kernels.kernel import Array, ParameterSpec
from .graph import Graph

ALIGNMENT = 16  # elements of float32: one cache line, and one 512-bit register


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: elements `start` to `stop` of the flat vectors."""

    node: str
    spec: ParameterSpec
    start: int

    @property
    def name(self) -> str:
        """Unique in the model, e.g. "conv2d_1.weight"."""
        return f"{self.node}.{self.spec.name}"

    @property
    def stop(self) -> int:
        """One past its last element."""
        return self.start + self.spec.size


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring parameters that an optimizer treats alike: one call on one slice."""

    start: int
    stop: int
    role: str
    decay: bool
    momentum: float


@dataclass(frozen=True)
class Layout:
    """All parameters of a model in the order of its nodes; `size` elements in all, gaps included.

    One that several nodes share stands where the first of them has it, whose own it is: `parameters` and
    `nodes` have it once, and `views` gives it to each.
    """

    parameters: tuple[Parameter, ...]
    size: int
    read: Mapping[str, tuple[Parameter, ...]] = field(default_factory=dict, repr=False)
    """Of nodes that share parameters of others what they read, in their kernel's order."""

    @staticmethod
    def of(graph: Graph) -> Layout:
        """The layout of a graph's parameters."""
        specs = graph.specs(1)
        found: dict[str, Parameter] = {}
        read: dict[str, tuple[Parameter, ...]] = {}
        position = 0
        for node in graph.nodes:
            names = []
            for spec in node.kernel.parameters(*graph.input_specs(node, specs)):
                own = Parameter(node.name, spec, position)
                names.append(node.shares.get(spec.name, own.name))
                if spec.name not in node.shares:
                    found[own.name] = own
                    position += -(-spec.size // ALIGNMENT) * ALIGNMENT
            if node.shares:
                read[node.name] = tuple(found[name] for name in names)
        return Layout(tuple(found.values()), position, read)

    @cached_property
    def nodes(self) -> Mapping[str, tuple[Parameter, ...]]:
        """Parameters by the node whose own they are, in the order of the nodes; those without are missing."""
        return {name: tuple(found) for name, found in groupby(self.parameters, key=lambda p: p.node)}

    def span(self, node: str) -> slice:
        """The slice of the flat vectors that holds a node's own parameters, trailing gap included."""
        own = self.nodes[node]
        return slice(own[0].start, -(-own[-1].stop // ALIGNMENT) * ALIGNMENT)

    def of_node(self, node: str) -> tuple[Parameter, ...]:
        """What a node's kernel reads, in its order: parameters of its own, and those that it shares."""
        return self.read.get(node) or self.nodes.get(node, ())

    def views(self, flat: Array, node: str) -> tuple[Array, ...]:
        """What a node's kernel reads as shaped views of `flat`."""
        return tuple(flat[p.start : p.stop].reshape(p.spec.shape) for p in self.of_node(node))

    def apart(self, flat: Array, node: str) -> tuple[Array, ...]:
        """Arrays of the same shapes, one behind the other from the beginning of `flat` on, each aligned."""
        found, start = [], 0
        for p in self.of_node(node):
            found.append(flat[start : start + p.spec.size].reshape(p.spec.shape))
            start += -(-p.spec.size // ALIGNMENT) * ALIGNMENT
        return tuple(found)

    @cached_property
    def largest(self) -> int:
        """Elements that `apart` takes for the node that needs most."""
        lines = (
            sum(-(-p.spec.size // ALIGNMENT) for p in self.of_node(node))
            for node in {*self.nodes, *self.read}
        )
        return ALIGNMENT * max(lines, default=0)

    def runs(self, start: int, stop: int) -> tuple[Run, ...]:
        """The slice `start` to `stop`, cut where the optimizer's treatment changes."""
        # The same in every step: among 100 parameters finding takes 7 us, looking up 0.1.
        found = self._runs.get((start, stop))
        if found is None:
            found = self._runs[start, stop] = tuple(self._find_runs(start, stop))
        return found

    @cached_property
    def _runs(self) -> dict[tuple[int, int], tuple[Run, ...]]:
        return {}

    def _find_runs(self, start: int, stop: int) -> Iterator[Run]:
        inside = [p for p in self.parameters if p.start < stop and p.stop > start]
        treatment = [(p.spec.role, p.spec.decay, p.spec.momentum) for p in inside]
        for (role, decay, momentum), group in groupby(
            zip(inside, treatment, strict=True), key=lambda x: x[1]
        ):
            members = [p for p, _ in group]
            yield Run(max(start, members[0].start), min(stop, members[-1].stop), role, decay, momentum)


def initialise(layout: Layout, seed: int) -> np.ndarray:
    """The flat float32 vector of initial weights, each parameter drawn by seed and name.

    A parameter's values do not depend on what other parameters the model has.
    """
    flat = np.zeros(layout.size, np.float32)
    for parameter in layout.parameters:
        view, spec = flat[parameter.start : parameter.stop], parameter.spec
        digest = blake2b(parameter.name.encode(), digest_size=8).digest()
        random = np.random.Generator(np.random.Philox(key=[seed % 2**64, int.from_bytes(digest, "little")]))
        match spec.initial:
            case "zeros":
                view[:] = 0
            case "ones":
                view[:] = 1
            case "normal":
                view[:] = spec.bound * random.standard_normal(spec.size, np.float32)
            case "uniform":
                view[:] = spec.bound * (2 * random.random(spec.size, np.float32) - 1)
    return flat
