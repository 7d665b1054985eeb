"""A model from an ONNX file, and layers of one's own behind it: [model] onnx, output and head.

x ── the file's operators ── output ── head ── prediction
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...kernels.kernel import ArraySpec
from ...kernels.registry import kernel
from ..errors import GraphError, WeftError
from ..graph import Graph, Node
from .data.files import locate
from .schema import Layer, Model

if TYPE_CHECKING:
    from ..graph.onnx import Model as OnnxModel

Weights = Mapping[str, NDArray[np.float32]]

SHOWN = 4  # nodes in a line


def imported(model: Model, sample: ArraySpec) -> tuple[Graph, Weights, str]:
    """The graph that [model] describes for such samples, the weights in its file, and a note on them.

    GraphError where the file takes something else, or has more than one output to train.
    """
    place = f"[model] onnx = {model.onnx!r}"
    found = read(locate(str(model.onnx)), model.output, place, sample)
    graph = found.graph
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
    return (
        _with_head(Graph({"x": sample}, graph.nodes, graph.outputs), model.head or []),
        found.weights,
        _told(found.shared, found.parted),
    )


def _told(shared: Mapping[str, tuple[str, ...]], parted: Mapping[str, tuple[str, ...]]) -> str:
    """What is told of weights of the file that several nodes read; nothing where there are none."""
    lines = []
    for weights, fate in (
        (shared, "they train it together"),
        (parted, "each trains a copy of its own, from the same values"),
    ):
        if not weights:
            continue
        name, readers = next(iter(weights.items()))
        more = f", and so have {len(weights) - 1:,} more" if len(weights) > 1 else ""
        lines.append(
            f"the file's weight {name!r} has {len(readers)} readers ({', '.join(readers[:SHOWN])}"
            f"{', …' * (len(readers) > SHOWN)}){more}: {fate}"
        )
    return "\n".join(lines)


def read(path: Path, output: str | None, place: str, sample: ArraySpec | None = None) -> OnnxModel:
    """What is in a file, up to a value of it; an error begins with `place`.

    Axes that the file leaves open behind the batch are as long as those of a sample.
    """
    from ..graph.onnx import load, sizes_of  # needs the onnx package
    from ..graph.onnx import read as read_onnx

    try:
        proto = load(path)
        sizes = sizes_of(proto, sample.shape) if sample else {}
        return read_onnx(proto, outputs=[output] if output else [], sizes=sizes)
    except WeftError as error:
        raise type(error)(f"{place}: {error}") from error


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
