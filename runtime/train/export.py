"""A run, or an ensemble of several, as an ONNX file: of newest checkpoints, for others to compute."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...kernels.kernel import ArraySpec
from ..errors import Mistake
from ..graph import Graph, Layout
from ..graph.onnx import save, write
from ..observe.folder import require_file
from .data.samples import Affine
from .ensemble import ensemble
from .inference import Trained, trained


def export(runs: Sequence[Path], file: Path | None) -> str:
    """Write the runs in these folders (or checkpoints in them) as ONNX; returns what was written, in a line.

    A single one becomes, without `file`, model.onnx in its folder. Raises Mistake for what is no run, for
    several that do not take and predict the same, or have no `file`; GraphError where a model has a kernel
    that ONNX lacks or too many weights, MachineError where it can't be written.
    """
    if file is None:
        if len(runs) > 1:
            raise Mistake(
                f"{len(runs)} runs become one file, which is named behind them, ending in .onnx; the last is "
                f"{runs[-1]}"
            )
        file = (runs[0].parent.parent if runs[0].suffix == ".safetensors" else runs[0]) / "model.onnx"
    require_file(file, "model.onnx")
    found = [trained(run) for run in runs]
    if len(runs) > 1:
        return _export_ensemble(found, [str(run) for run in runs], file)
    (one,) = found
    affine, properties = one.affine, {"step": str(one.step), **_labels(one)}
    save(write(one.graph, one.weights, mean=affine.mean, scale=affine.scale, properties=properties), file)
    return f"{file}: {_described(one.graph)}, as of step {one.step:,}{_coarse(affine)}"


def _export_ensemble(members: Sequence[Trained], names: Sequence[str], file: Path) -> str:
    graph, weights = ensemble(members, names)
    save(write(graph, weights, properties=_labels(members[0])), file)
    coarse = next(filter(None, (_coarse(member.affine) for member in members)), "")
    return f"{file}: {len(members)} members, {_described(graph)}{coarse}"


def _labels(found: Trained) -> dict[str, str]:
    return {"labels": json.dumps(found.labels)} if found.labels else {}


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
