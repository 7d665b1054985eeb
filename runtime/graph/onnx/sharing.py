"""Weights of a file that several of its nodes read: one parameter of the graph, where all read it alike.

The tokens' table of a language model is its last layer's matrix, too; a network is called twice; a loop is
written out. Nodes are merged and renamed while a file is read, so they are found by what they hold.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph
from ..parameters import Layout, Parameter
from .model import Model

UNNAMED = "onnx::"
"""What PyTorch's names of arrays begin with that are no parameters of a module."""

PLACE = re.compile(r"\.[0-9]+(?=/)")
"""In a node's name from PyTorch the place of a module in its list."""


def with_shared(
    model: Model, stored: Mapping[str, NDArray[Any]], readers: Mapping[str, Sequence[str]]
) -> Model:
    """The model with parameters shared that are one weight of the file; `readers` are nodes of the file.

    Those of one weight are shared if all its readers have it in one form. Where one has it transposed, say,
    or they are copies that were equal when the file was written, each has its own, as `parted` tells.
    """
    # Of arrays that hold one number alone, as new norms do, exporters store equal ones once.
    several = {name: tuple(found) for name, found in readers.items() if found[1:] and np.ptp(stored[name])}
    if not several:
        return model
    weights = [p for p in Layout.of(model.graph).parameters if p.spec.role == "weight"]
    shares: dict[str, dict[str, str]] = {}
    shared, parted, weightless = {}, {}, set[str]()
    for name, found in several.items():
        owner, *others = _alike(weights, model.weights, stored[name]) or (None,)
        if owner is None or len(others) + 1 != len(found) or _copies(found):
            parted[name] = found
            continue
        shared[name] = found
        for each in others:
            shares.setdefault(each.node, {})[each.spec.name] = owner.name
            weightless.add(each.name)
    nodes = tuple(replace(n, shares=shares[n.name]) if n.name in shares else n for n in model.graph.nodes)
    return replace(
        model,
        graph=Graph(model.graph.inputs, nodes, model.graph.outputs),
        weights={name: array for name, array in model.weights.items() if name not in weightless},
        shared=shared,
        parted=parted,
    )


def folded(stored: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Arrays without names of their own that are another's transpose, by theirs: name -> the other's.

    PyTorch's older exporter computes the transpose of a matrix while it writes, so that tied embeddings are
    stored twice: as "wte.weight" and as "onnx::MatMul_42".
    """
    named: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, array in stored.items():
        if array.ndim == 2 and array.dtype.kind == "f" and not name.startswith(UNNAMED):
            named[array.shape].append(name)
    return {
        name: other
        for name, array in stored.items()
        if name.startswith(UNNAMED) and array.ndim == 2 and array.size
        for other in named[array.shape[::-1]]
        if stored[other][0, 0] == array[0, 0] and np.array_equal(stored[other].T, array) and np.ptp(array)
    }


def _copies(readers: Sequence[str]) -> bool:
    """Whether readers are the same part of several modules of one list, as "/layers.0/linear1/MatMul" and
    "/layers.1/linear1/MatMul" are.

    PyTorch's older exporter stores equal arrays once, and layers of a new nn.TransformerEncoder are equal.
    """
    places: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for reader in readers:
        parts = reader.rstrip("0123456789").removesuffix("_")  # a name that comes again is numbered
        places[PLACE.sub("", parts)].add(tuple(PLACE.findall(reader)))
    return any(len(found) > 1 for found in places.values())


def _alike(
    parameters: Sequence[Parameter], weights: Mapping[str, NDArray[np.float32]], array: NDArray[Any]
) -> list[Parameter]:
    """The parameters, all of one shape, that hold an array or all of them its transpose; none where that
    cannot be told: of a symmetric matrix nobody knows who reads it transposed."""
    plain = np.ascontiguousarray(array, np.float32)
    turned = np.ascontiguousarray(plain.T)
    if plain.ndim > 1 and plain.shape == turned.shape and np.array_equal(plain, turned):
        return []
    forms = [plain] if plain.ndim < 2 else [plain, turned]
    found = [
        [p for p in parameters if p.spec.size == form.size and _holds(weights[p.name], form)]
        for form in forms
    ]
    one = [each for each in found if each]
    same = len(one) == 1 and len({p.spec.shape for p in one[0]}) == 1
    return one[0] if same and len({p.node for p in one[0]}) == len(one[0]) else []


def _holds(weight: NDArray[np.float32], form: NDArray[np.float32]) -> bool:
    return bool(weight.reshape(-1)[0] == form.reshape(-1)[0]) and np.array_equal(
        weight.reshape(-1), form.reshape(-1)
    )
