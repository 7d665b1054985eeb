"""A run as an ONNX file: its newest checkpoint, for whatever else computes models."""

from __future__ import annotations

import json
from pathlib import Path

from ...kernels.kernel import ArraySpec
from ..graph import Graph, Layout
from ..graph.onnx import save, write
from ..observe.folder import require_file
from .data.samples import Affine
from .inference import trained


def export(run: Path, file: Path | None) -> str:
    """Write the run in this folder (or one of its checkpoints) as ONNX; returns what was written, in a line.

    Without `file` it becomes model.onnx in the run's folder. Raises Mistake for what is no run, GraphError
    where the model has a kernel that ONNX lacks or too many weights, MachineError where it can't be written.
    """
    if file is None:
        file = (run.parent.parent if run.suffix == ".safetensors" else run) / "model.onnx"
    require_file(file, "model.onnx")
    found = trained(run)
    properties = {"step": str(found.step)}
    if found.labels:
        properties["labels"] = json.dumps(found.labels)
    affine = found.affine
    proto = write(found.graph, found.weights, mean=affine.mean, scale=affine.scale, properties=properties)
    save(proto, file)
    return f"{file}: {_described(found.graph)}, as of step {found.step:,}{_coarse(affine)}"


def _coarse(affine: Affine) -> str:
    """A line where the file's samples tell less than the run's did.

    Of a feature that was constant in training, a date say, its answers are right as long as that stays so.
    """
    if affine.takes == "float32":
        return ""
    return (
        f"\nits samples are {affine.coarse()}: what the file answers to samples that differ there is "
        "wrong; train on that feature less a number near its mean. "
        "weft serve and weft predict take the run's float64"
    )


def _described(graph: Graph) -> str:
    """Its parameters, and what goes in and comes out."""
    specs = graph.specs(1)
    ends = (", ".join(_shown(name, specs[name]) for name in names) for names in (graph.inputs, graph.outputs))
    parameters = sum(parameter.spec.size for parameter in Layout.of(graph).parameters)
    return f"{parameters:,} parameters, {' to '.join(ends)}"


def _shown(name: str, spec: ArraySpec) -> str:
    return f"{name} {spec.dtype} [{', '.join(map(str, ('batch', *spec.shape[1:])))}]"
