"""Which neurons are live, and which live ones a block reads: readiness follows these alone.

A neuron whose weights and bias are all zero, or that is pruned or dropped by name, is zero for every input.
It need not be computed, and nobody waits for it; nor does a neuron wait for one to which all its weights are
zero. "Neuron" is an index of the first axis behind the batch: a channel of images, a feature of a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from ....kernels.kernel import Array, ArraySpec, ByRows
from ...errors import GraphError
from ..graph import Graph, Node
from ..parameters import Layout

Mask = NDArray[np.bool_]

ZERO_STAYS = frozenset(
    {
        "average_pool2d",
        "dropout",
        "erf",
        "gelu",
        "global_average_pool2d",
        "max_pool2d",
        "relu",
        "sqrt",
        "tanh",
    }
)
"""Kernels that make zero of a channel of zeros."""


def live(
    graph: Graph,
    batch: int,
    parameters: Array,
    dropped: Mapping[str, Collection[int]],
    kept: Mapping[str, Mask],
) -> dict[str, Mask]:
    """For every value its live neurons; `dropped` names those of nodes that are pruned or dropped.

    Those in `kept` are live whatever they are: where they stand is something else for a while, so somebody
    has to make them zero, and readers wait for that. GraphError for a node or a neuron that the graph lacks.
    """
    layout, specs = Layout.of(graph), graph.specs(batch)
    for name in dropped:
        if name not in graph.by_name:
            raise GraphError(f"neurons of {name!r} are dropped, and no node is called so")
    found = {name: np.ones(specs[name].shape[1:2], bool) for name in graph.inputs}
    for node in graph.nodes:
        mask = _inherited(node, [found[value] for value in node.inputs], specs)
        if _by_neurons(node, specs):
            rows = [_any(each) for each in layout.views(parameters, node.name)]
            # What is added to a sum, by conv2d_add, comes to its neurons one by one.
            mask &= np.logical_or.reduce([*rows, *(found[value] for value in node.inputs[1:])])
        for neuron in dropped.get(node.name, ()):
            if not 0 <= neuron < len(mask):
                raise GraphError(
                    f"neuron {neuron} of {node.name!r} is dropped; it has neurons 0 to {len(mask) - 1}"
                )
            mask[neuron] = False
        found[node.name] = mask | kept.get(node.name, False)
    return found


def reads(node: Node, neurons: slice, parameters: tuple[Array, ...], spec: ArraySpec) -> Mask:
    """Which neurons of its (first) input `neurons` of a node have a weight for that is not zero."""
    kernel = node.kernel
    summed = kernel.input_axis if isinstance(kernel, ByRows) else None
    if summed is None or summed % len(spec.shape) != 1 or getattr(kernel, "groups", 1) != 1:
        return np.ones(spec.shape[1], bool)
    mask: Mask = _any(parameters[0][neurons].swapaxes(0, 1))
    return mask


def _by_neurons(node: Node, specs: Mapping[str, ArraySpec]) -> bool:
    """Whether each neuron is a sum by its own row of every parameter, and nothing else."""
    own = specs[node.name].shape
    kernel = node.kernel
    return (isinstance(kernel, ByRows) and kernel.input_axis is not None) and any(
        split.axis == 1 and split.weight_axis == 0 and split.extent == own[1]
        for split in kernel.split(*(specs[value] for value in node.inputs))
    )


def _inherited(node: Node, inputs: list[Mask], specs: Mapping[str, ArraySpec]) -> Mask:
    """The neurons that may be other than zero by what the inputs are."""
    extent = specs[node.name].shape[1] if len(specs[node.name].shape) > 1 else 1
    kernel = node.kernel
    if kernel.name in ZERO_STAYS and len(inputs[0]) == extent:
        return inputs[0].copy()
    if kernel.name == "add":
        mask: Mask = np.logical_or.reduce(inputs)
        return mask
    if kernel.name == "concat" and sum(map(len, inputs)) == extent:
        return np.concatenate(inputs)
    if kernel.view and extent % len(inputs[0]) == 0:  # flattened: the elements of a channel lie together
        return np.repeat(inputs[0], extent // len(inputs[0]))
    return np.ones(extent, bool)


def _any(parameter: Array) -> Mask:
    mask: Mask = (parameter != 0).reshape(len(parameter), -1).any(axis=1)
    return mask
