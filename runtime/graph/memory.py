"""Buffers planned once: which arrays a program needs, from which call to which, and where each may stand.

Arrays whose lifetimes do not meet share memory. Offsets are assigned to the largest array first, each at the
lowest place that is free during its whole life ("greedy by size", Pisarchyk and Lee, Efficient Memory
Management for Deep Neural Net Inference, 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...kernels.kernel import Array, ArraySpec
from .backward import Call, Calls, Phase
from .graph import Graph, Node

ALIGNMENT = 64  # bytes: a cache line, and one 512-bit register


@dataclass(frozen=True, slots=True)
class Lifetime:
    """An array of `nbytes` bytes that is needed from call `first` to call `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both are needed at some call."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Placement:
    """Byte offset of every array in an arena of `nbytes` bytes."""

    offsets: Mapping[str, int]
    nbytes: int


def saved_name(node: str, index: int) -> str:
    """Name of an array that a node's forward leaves for its gradients."""
    return f"{node}:saved{index}"


def resolve(name: str, aliases: Mapping[str, str]) -> str:
    """The array that `name` is another name for."""
    while name in aliases:
        name = aliases[name]
    return name


def begin(name: str, calls: Calls) -> int:
    """The element of that array at which `name` begins."""
    first = 0
    while name in calls.aliases:
        first += calls.offsets.get(name, 0)
        name = calls.aliases[name]
    return first


def lifetimes(graph: Graph, calls: Calls, batch: int, outside: Iterable[str]) -> list[Lifetime]:
    """What the arena must hold for `batch` samples; arrays in `outside` have memory of their own."""
    specs = graph.specs(batch)
    excluded = set(outside)
    program = (*calls.forward, *calls.backward)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, call in enumerate(program):
        for name in (*call.reads, *call.writes):
            array = resolve(name, calls.aliases)
            first.setdefault(array, index)
            last[array] = index
    for value in graph.outputs:  # whoever runs the program reads them afterwards
        last[resolve(value, calls.aliases)] = len(program)
    found = [
        Lifetime(name, specs[value_of(name)].nbytes, first[name], last[name])
        for name in first
        if name not in excluded
    ]
    for node in graph.nodes:
        used = [index for index, call in enumerate(program) if _uses_saved(call, node.name)]
        for number, spec in enumerate(node.kernel.saved(*graph.input_specs(node, specs))):
            found.append(Lifetime(saved_name(node.name, number), spec.nbytes, used[0], used[-1]))
    return found


def value_of(array: str) -> str:
    """The value whose shape an array has: gradients are named after their value."""
    return array.partition("'")[0]


def scratch_nbytes(graph: Graph, batch: int, training: bool) -> int:
    """Workspace for the neediest kernel; calls are serial, so all share it."""
    specs = graph.specs(batch)
    return max(
        carved_nbytes(workspace(node, graph.input_specs(node, specs), training)) for node in graph.nodes
    )


def workspace(node: Node, inputs: Sequence[ArraySpec], training: bool) -> tuple[ArraySpec, ...]:
    """What a node's kernel works in; its gradients may need more than its output."""
    more = node.kernel.gradient_scratch(*inputs) if training else ()
    return (*node.kernel.scratch(*inputs), *more)


def carved_nbytes(specs: Iterable[ArraySpec]) -> int:
    """What `carved` takes for such arrays."""
    return sum(_aligned(spec.nbytes) for spec in specs)


def carved(memory: Array, specs: Iterable[ArraySpec]) -> tuple[Array, ...]:
    """Arrays in `memory`, bytes, one behind the other, each from a cache line of its own on."""
    found, offset = [], 0
    for spec in specs:
        raw = memory[offset : offset + spec.nbytes]
        found.append(raw.view(np.dtype(spec.dtype)).reshape(spec.shape))
        offset += _aligned(spec.nbytes)
    return tuple(found)


def place(arrays: Iterable[Lifetime]) -> Placement:
    """Offsets such that arrays needed at the same call never overlap."""
    placed: list[tuple[int, Lifetime]] = []
    for array in sorted(arrays, key=lambda a: (-a.nbytes, a.first, a.name)):
        offset = 0
        for start, end in sorted((s, s + other.nbytes) for s, other in placed if other.meets(array)):
            if start - offset >= array.nbytes:
                break
            offset = max(offset, _aligned(end))
        placed.append((offset, array))
    end = max((_aligned(offset + array.nbytes) for offset, array in placed), default=0)
    return Placement({array.name: offset for offset, array in placed}, end)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _uses_saved(call: Call, node: str) -> bool:
    return call.node.name == node and call.phase is not Phase.SUM
