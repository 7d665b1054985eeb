"""The backward graph, kernel by kernel: a serial list of calls whose data dependencies are by name.

Written for one micro-batch. In the backward part a node's weight gradient comes before its input gradient:
the portion it completes is on the wire while the input gradient is computed. A value that several nodes read
gets the sum of their gradients; kernels overwrite, so the sum is a call of its own.

Names of arrays: a value has its own name, its gradient is "NAME'", and a contribution by one of several
readers "NAME'READER.i". A view (reshape) and an add need no arithmetic backward: their arrays are aliases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from ...kernels.shape import Concat
from .graph import Graph, Node


class Phase(Enum):
    """What a call computes."""

    FORWARD = "forward"
    INPUT_GRADIENT = "input_gradient"
    WEIGHT_GRADIENT = "weight_gradient"
    SUM = "sum"


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call: its phase and the arrays, by name, that it reads and writes.

    For SUM, `writes[0] = reads[0] + reads[1]`; `writes[0]` may be `reads[0]` itself.
    """

    phase: Phase
    node: Node
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def name(self) -> str:
        """For traces and messages."""
        return f"{self.node.name}.{self.phase.value}"


@dataclass(frozen=True, slots=True)
class Calls:
    """A serial program: the calls, which arrays are other names for others, and where gradients stand.

    An alias is the whole of the other array, or begins at its element `offsets[alias]`.
    """

    forward: tuple[Call, ...]
    backward: tuple[Call, ...]
    aliases: Mapping[str, str]
    input_gradients: Mapping[str, tuple[str | None, ...]]  # by node: array of each input's gradient
    offsets: Mapping[str, int] = field(default_factory=dict)


def postponed(calls: Calls, nodes: frozenset[str]) -> Calls:
    """The same calls with the weight gradients of `nodes` last: who plans memory for this order may run them
    at any time from their own place on."""

    def late(call: Call) -> bool:
        return call.phase is Phase.WEIGHT_GRADIENT and call.node.name in nodes

    ordered = sorted(calls.backward, key=late)
    return replace(calls, backward=tuple(ordered))


def gradient(value: str) -> str:
    """Name of the array that holds a value's gradient."""
    return f"{value}'"


def inference(graph: Graph) -> Calls:
    """The forward pass alone."""
    forward, aliases = _forward(graph)
    return Calls(forward, (), aliases, {})


def of_one_sample(graph: Graph) -> Calls:
    """The forward pass of one sample: what is concatenated along its first axis is written in its place.

    With several samples the parts would not be contiguous.
    """
    calls = inference(graph)
    specs, aliases, offsets = graph.specs(1), dict(calls.aliases), {}
    gathered = set()
    for node in reversed(graph.nodes):
        parts = set(node.inputs)
        fresh = parts <= graph.by_name.keys() and parts.isdisjoint(aliases) and len(parts) == len(node.inputs)
        if (
            isinstance(node.kernel, Concat)
            and node.kernel.axis in (1, 1 - len(specs[node.name].shape))
            and fresh
        ):
            gathered.add(node.name)
            start = 0
            for value in node.inputs:
                aliases[value], offsets[value] = node.name, start
                start += specs[value].size
    forward = tuple(call for call in calls.forward if call.node.name not in gathered)
    return Calls(forward, (), aliases, {}, offsets)


def differentiate(graph: Graph) -> Calls:
    """Forward and backward calls for the gradient of the first output with respect to all parameters."""
    forward, aliases = _forward(graph)
    wanted = _values_with_gradient(graph)
    contributions: dict[str, list[str]] = {graph.outputs[0]: [gradient(graph.outputs[0])]}
    input_gradients: dict[str, tuple[str | None, ...]] = {}
    owned: set[str] = set()  # arrays that a call may add into: nobody else reads them
    backward: list[Call] = []

    for node in reversed(graph.nodes):
        parts = contributions.get(node.name)
        if not parts:  # no gradient of the loss comes here
            if keeps_parameters(graph, node):  # the exchange waits for its zeros like for any gradient
                backward.append(Call(Phase.WEIGHT_GRADIENT, node, node.inputs, ()))
            continue
        total = _sum(graph, node.name, parts, owned, backward)
        if total != gradient(node.name):
            aliases[gradient(node.name)] = total
        own = gradient(node.name)
        names: list[str | None] = []
        for position, value in enumerate(node.inputs):
            if value not in wanted or not has_gradient(node, position):
                names.append(None)
                continue
            several = len(graph.consumers[value]) > 1
            name = f"{value}'{node.name}.{position}" if several else gradient(value)
            names.append(name)
            contributions.setdefault(value, []).append(name)
            if node.kernel.view or node.kernel.passes_gradient:
                aliases[name] = own
            else:
                owned.add(name)
        input_gradients[node.name] = tuple(names)
        reads = (*node.inputs, node.name, own)
        if node.kernel.parameters(*graph.input_specs(node, graph.specs(1))):
            backward.append(Call(Phase.WEIGHT_GRADIENT, node, reads, ()))
        written = tuple(name for name in names if name is not None and name not in aliases)
        if written:
            backward.append(Call(Phase.INPUT_GRADIENT, node, reads, written))
    return Calls(forward, tuple(backward), aliases, input_gradients)


def _forward(graph: Graph) -> tuple[tuple[Call, ...], dict[str, str]]:
    aliases = {node.name: node.inputs[0] for node in graph.nodes if node.kernel.view}
    calls = tuple(
        Call(Phase.FORWARD, node, node.inputs, (node.name,)) for node in graph.nodes if not node.kernel.view
    )
    return calls, aliases


def has_gradient(node: Node, position: int) -> bool:
    """Whether a node passes a gradient to its input `position`."""
    return node.kernel.differentiable is None or position in node.kernel.differentiable


def keeps_parameters(graph: Graph, node: Node) -> bool:
    """Whether a node has parameters, all of which keep their first values: a mask, a table of places."""
    found = node.kernel.parameters(*graph.input_specs(node, graph.specs(1)))
    return bool(found) and all(each.role == "statistic" and each.momentum == 0 for each in found)


def _values_with_gradient(graph: Graph) -> set[str]:
    """Values whose gradient some weight needs: those computed, through gradients, from parameters."""
    specs = graph.specs(1)
    wanted: set[str] = set()
    for node in graph.nodes:
        has_weights = bool(node.kernel.parameters(*graph.input_specs(node, specs)))
        passes = any(
            value in wanted and has_gradient(node, position) for position, value in enumerate(node.inputs)
        )
        if has_weights or passes:
            wanted.add(node.name)
    return wanted


def _sum(graph: Graph, value: str, parts: list[str], owned: set[str], calls: list[Call]) -> str:
    """Append the calls that add up `parts`; returns the name of the array that holds the sum."""
    node = graph.by_name[value]
    ordered = sorted(parts, key=lambda part: part not in owned)  # add into an array nobody else reads
    total = ordered[0]
    for part in ordered[1:]:
        into = total if total in owned else gradient(value)
        calls.append(Call(Phase.SUM, node, (total, part), (into,)))
        owned.add(into)
        total = into
    return total
