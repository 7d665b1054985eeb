"""Neighbours that are one kernel in Weft: exporters write apart what training frameworks compute at once.

    dense without bias, + (features)            ->  dense
    pad, conv2d or a pool               ->  the same          where it pads with what the other pads with
    batch_norm or conv2d, · or + (C, 1, 1)      ->  the same
    conv2d or conv_transpose2d, batch_norm      ->  the first's kind  only for inference
    conv2d, add of another value                ->  conv2d_add        only for inference
    conv2d or conv2d_add, relu                  ->  the same          only for inference

The merged node has the second's name, which the others read, and the first's tags beneath the second's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from ....kernels.activation import ReLU
from ....kernels.arithmetic import ArithmeticWeight
from ....kernels.batch_norm import BatchNorm
from ....kernels.conv import Conv2d, Conv2dAdd
from ....kernels.conv_transpose import ConvTranspose2d
from ....kernels.kernel import ArraySpec, Kernel
from ....kernels.linear import Dense
from ....kernels.pool import AveragePool2d, MaxPool2d, Pool2d
from ....kernels.rearrange import Pad
from ....kernels.shape import Add
from ..graph import Node

Weights = dict[str, NDArray[np.float32]]
"""A node's parameters by their names within it."""

Rule = Callable[[Kernel, Weights, Kernel, Weights], tuple[Kernel, Weights] | None]


def merge(
    nodes: Iterable[Node],
    weights: Mapping[str, NDArray[np.float32]],
    inputs: Mapping[str, ArraySpec],
    outputs: set[str],
    *,
    inference: bool,
) -> tuple[list[Node], Weights]:
    """Nodes and weights, merged where a rule applies and nobody else reads what is between."""
    rules: tuple[Rule, ...] = (_bias, _channels, _padded)
    if inference:
        rules += _fold, _rectify
    nodes = _read(nodes, outputs)
    specs = dict(inputs)
    for node in nodes:
        specs[node.name] = node.kernel.output(*(specs[value] for value in node.inputs))
    readers = Counter(value for node in nodes for value in node.inputs)
    readers.update(outputs)
    own: dict[str, Weights] = {node.name: {} for node in nodes}
    for name, array in weights.items():
        node_name, _, parameter = name.rpartition(".")
        if node_name in own:
            own[node_name][parameter] = array
    kept: dict[str, Node] = {}
    for node in nodes:
        if inference and isinstance(node.kernel, Add) and len(node.inputs) == 2:
            node = _onto(node, kept, readers, own)
        first = kept.get(node.inputs[0])
        if first is not None and len(node.inputs) == 1 and readers[first.name] == 1:
            for rule in rules if len(specs[first.name].shape) == 4 else (_bias,):  # the others are of images
                merged = rule(first.kernel, own[first.name], node.kernel, own[node.name])
                if merged is not None:
                    kernel, own[node.name] = merged
                    node = Node(node.name, kernel, first.inputs, {**first.tags, **node.tags})
                    del kept[first.name]
                    break
        kept[node.name] = node
    found = {f"{name}.{parameter}": array for name in kept for parameter, array in own[name].items()}
    return list(kept.values()), found


def _read(nodes: Iterable[Node], outputs: set[str]) -> list[Node]:
    """The nodes that somebody reads: no view of what is read instead, nothing asked for its shape alone."""
    needed, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if node.name in needed:
            needed.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _onto(add: Node, kept: dict[str, Node], readers: Mapping[str, int], own: dict[str, Weights]) -> Node:
    """A sum, merged with the last convolution among its terms: whatever that is added to is there then."""
    place = {name: number for number, name in enumerate(kept)}
    terms: list[tuple[Node, Conv2d]] = []
    for value in add.inputs:
        node = kept.get(value)
        if node is not None and readers[value] == 1 and _plain(node.kernel):
            assert isinstance(node.kernel, Conv2d)
            terms.append((node, node.kernel))
    if not terms:
        return add
    term, kernel = max(terms, key=lambda found: place[found[0].name])
    (other,) = (value for value in add.inputs if value != term.name)
    given = {each.name: getattr(kernel, each.name) for each in fields(kernel) if each.init}
    own[add.name] = own[term.name]
    del kept[term.name]
    return Node(add.name, Conv2dAdd(**given), (*term.inputs, other), {**term.tags, **add.tags})


def _plain(kernel: Kernel) -> bool:
    """Whether it is a convolution and nothing more, so that its weights tell all of its output."""
    return isinstance(kernel, Conv2d) and not (kernel.relu or isinstance(kernel, Conv2dAdd))


def _bias(first: Kernel, weights: Weights, second: Kernel, more: Weights) -> tuple[Kernel, Weights] | None:
    if not (isinstance(first, Dense) and not first.bias and _adds(second)):
        return None
    if more["weight"].shape != (first.features,):
        return None
    return replace(first, bias=True), {**weights, "bias": more["weight"]}


def _adds(kernel: Kernel) -> bool:
    return isinstance(kernel, ArithmeticWeight) and kernel.operator == "add" and kernel.trained


def _channels(
    first: Kernel, weights: Weights, second: Kernel, more: Weights
) -> tuple[Kernel, Weights] | None:
    """y · s + t after channels that have weights and biases of their own: the same with other ones."""
    if not (isinstance(first, BatchNorm) or _plain(first)):
        return None
    if not (isinstance(second, ArithmeticWeight) and second.trained):
        return None
    channels = len(weights["weight"])
    if second.operator not in ("add", "mul") or more["weight"].shape != (channels, 1, 1):
        return None
    factor = more["weight"].reshape(-1)
    bias = weights.get("bias", np.zeros_like(factor))
    if isinstance(first, Conv2d):
        first = replace(first, bias=True)
    if second.operator == "add":
        return first, {**weights, "bias": bias + factor}
    weight = weights["weight"] * factor.reshape(-1, *(1,) * (weights["weight"].ndim - 1))
    return first, {**weights, "weight": weight, "bias": bias * factor}


def _padded(first: Kernel, weights: Weights, second: Kernel, more: Weights) -> tuple[Kernel, Weights] | None:
    """Pixels around an image that the window behind them can see as padding of its own."""
    if not isinstance(first, Pad) or first.before[0] or first.after[0]:
        return None
    if not isinstance(second, Conv2d | Pool2d):
        return None
    if first.value != (-inf if isinstance(second, MaxPool2d) else 0):
        return None
    more_sides = (*first.before[1:], *first.after[1:])
    padding = tuple(map(sum, zip(second.window.padding, more_sides, strict=True)))
    with suppress(ValueError):  # a pool's own padding is smaller than its window
        if isinstance(second, AveragePool2d):
            if any(second.window.padding) and not second.count_include_pad:
                return None
            return replace(second, padding=padding, count_include_pad=True), more
        return replace(second, padding=padding), more
    return None


def _fold(first: Kernel, weights: Weights, second: Kernel, more: Weights) -> tuple[Kernel, Weights] | None:
    if not isinstance(second, BatchNorm):
        return None
    if not (isinstance(first, ConvTranspose2d) or (_plain(first) and isinstance(first, Conv2d))):
        return None
    factor = more["weight"] / np.sqrt(more["running_variance"] + np.float32(second.epsilon))
    bias = weights.get("bias", np.zeros_like(factor))
    shifted = (bias - more["running_mean"]) * factor + more["bias"]
    weight = weights["weight"]
    if isinstance(first, ConvTranspose2d):  # its output's channels are those of each group, along axis 1
        grouped = weight.reshape(first.groups, -1, *weight.shape[1:])
        scaled = grouped * factor.reshape(first.groups, 1, -1, 1, 1)
        return replace(first, bias=True), {"weight": scaled.reshape(weight.shape), "bias": shifted}
    return replace(first, bias=True), {"weight": weight * factor[:, None, None, None], "bias": shifted}


def _rectify(first: Kernel, weights: Weights, second: Kernel, more: Weights) -> tuple[Kernel, Weights] | None:
    """A training graph keeps the two apart: the gradient would have to mask its own."""
    if not (isinstance(first, Conv2d) and isinstance(second, ReLU)):
        return None
    return replace(first, relu=True), weights
