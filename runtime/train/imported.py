"""A model from an ONNX file, and layers of one's own behind it: [model] onnx, output and head.

x ── the file's operators ── output ── head ── prediction
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...kernels.kernel import ArraySpec
from ...kernels.registry import kernel
from ..errors import GraphError, WeftError
from ..graph import Graph, Node
from .data.files import locate
from .schema import Layer, Model

Weights = Mapping[str, NDArray[np.float32]]


def imported(model: Model, sample: ArraySpec) -> tuple[Graph, Weights]:
    """The graph that [model] describes for such samples, and the weights in its file.

    GraphError where the file takes something else, or has more than one output to train.
    """
    place = f"[model] onnx = {model.onnx!r}"
    graph, weights = read(locate(str(model.onnx)), model.output, place)
    if len(graph.outputs) != 1:
        raise GraphError(
            f"{place} has {len(graph.outputs)} outputs that depend on an input; name the value to train as "
            '[model] output = "NAME"'
        )
    own = graph.inputs.get("x")
    if own is not None and _counts(own) and not _counts(sample) and own.shape == sample.shape:
        raise GraphError(
            f"{place} takes {own.dtype} {own.shape}, and samples of the data are {sample.dtype}: whole "
            'numbers, as tokens are, come from source = "text" alone. Export the model with a float32 input '
            "and a conversion of its own behind it (x.long() in PyTorch), and keep the data as they are: "
            '[data] normalise = "none"'
        )
    if len(graph.inputs) != 1 or own is None or not _fits(own, sample):
        told = ", ".join(f"{spec.dtype} {spec.shape}" for spec in graph.inputs.values())
        raise GraphError(
            f"{place} takes {told}, and a sample of the data is {sample.dtype} {sample.shape}; [data] shape "
            "gives samples another shape"
        )
    return _with_head(Graph({"x": sample}, graph.nodes, graph.outputs), model.head or []), weights


def read(path: Path, output: str | None, place: str) -> tuple[Graph, Weights]:
    """A file's graph, up to a value of it, and its weights; an error begins with `place`."""
    from ..graph.onnx import read as read_onnx  # needs the onnx package

    try:
        model = read_onnx(path, outputs=[output] if output else [])
    except WeftError as error:
        raise type(error)(f"{place}: {error}") from error
    return model.graph, model.weights


def _fits(own: ArraySpec, sample: ArraySpec) -> bool:
    """Whether samples are what the file takes; tokens may be integers of any size."""
    return own.shape == sample.shape and (own.dtype == sample.dtype or (_counts(own) and _counts(sample)))


def _counts(spec: ArraySpec) -> bool:
    """Whether its elements are whole numbers."""
    return np.dtype(spec.dtype).kind in "iu"


def _with_head(graph: Graph, head: list[Layer]) -> Graph:
    """The graph with these layers behind its output; nodes without a name are head_1, head_2, …"""
    (value,) = graph.outputs
    nodes = list(graph.nodes)
    for number, layer in enumerate(head, 1):
        attributes = layer.attributes
        name = attributes.pop("name", f"head_{number}")
        nodes.append(Node(name, kernel(layer.kernel, **attributes), (value,)))
        value = name
    return replace(graph, nodes=tuple(nodes), outputs=(value,))
