"""write(): a graph and its weights as an ONNX model, for whoever computes it next.

    samples ── as the data held them ──> scale ──> every node by WRITINGS ──> outputs under the graph's names

An operator is called after the node whose value it makes, and weights as in a checkpoint ("conv2d_1.weight").
Operator set 20 is the first with Gelu; runtimes of the end of 2023 know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.kernel import ArraySpec
from ...errors import GraphError
from ..graph import Graph
from ..parameters import Layout
from . import package
from .sheet import Sheet, To
from .writings import WRITINGS

OPERATOR_SET = 20
BATCH = "batch"  # what the open axis of inputs and outputs is called


def write(
    graph: Graph,
    weights: Mapping[str, NDArray[Any]],
    *,
    mean: NDArray[Any] | float = 0.0,
    scale: NDArray[Any] | float = 1.0,
    properties: Mapping[str, str] | None = None,
) -> package.Proto:
    """The ModelProto of a graph for inference, with an open batch; `weights` by the layout's names.

    A graph with one input takes its samples raw and computes (x - mean) * scale first. `properties` become
    the file's metadata. Dropout becomes Identity, and statistics of batch norms constants.

    Raises GraphError for a kernel that ONNX has no operators for, naming the node.
    """
    sheet, layout, specs = Sheet(), Layout.of(graph), graph.specs(1)
    renamed: dict[str, str] = {}
    for op, operand, neutral in (("Sub", mean, 0), ("Mul", scale, 1)):
        if np.any(np.asarray(operand) != neutral):
            (entry,) = graph.inputs
            stored = sheet.store(f"{entry}/{op.lower()}", np.asarray(operand, specs[entry].dtype))
            renamed[entry] = sheet.put(op, [renamed.get(entry, entry), stored], f"{entry}/after_{op.lower()}")
    for node in graph.nodes:
        writing = WRITINGS.get(type(node.kernel))
        if writing is None:
            raise GraphError(f"node {node.name!r}: {node.kernel.name} has no operator in ONNX")
        own = node.kernel.parameters(*graph.input_specs(node, specs))
        parameters = {
            spec.name: np.asarray(weights[parameter.name]).reshape(spec.shape)
            for spec, parameter in zip(own, layout.of_node(node.name), strict=True)
        }
        read = replace(node, inputs=tuple(renamed.get(value, value) for value in node.inputs))
        to = To(sheet, read, graph.input_specs(node, specs), specs[node.name], parameters)
        writing(to, node.kernel)
    return package.model(
        sheet.operators,
        sheet.stored,
        {name: _entry(spec) for name, spec in graph.inputs.items()},
        {name: _entry(ArraySpec(specs[name].shape[1:], specs[name].dtype)) for name in graph.outputs},
        OPERATOR_SET,
        properties or {},
    )


def _entry(sample: ArraySpec) -> package.Entry:
    return sample.dtype, (BATCH, *sample.shape)
