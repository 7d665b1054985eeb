"""What a new run starts from: weights that were trained before, of an ONNX file, a run, or another program.

    [model] onnx = FILE        the graph, and the weights in the file
    [model] weights = FILE     weights for any model, by their names; they go before those of an ONNX model

A weight that is missing, or has another shape, is drawn as it always is, and the run says so: with a new last
layer that is what one wants, and after a misspelt name it is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ...kernels.kernel import ArraySpec
from ..errors import CheckpointError, Mistake
from ..graph import Graph, Layout
from ..observe import RunFolder
from . import checkpoint, imported
from .data.files import locate
from .imported import Weights
from .inference import WEIGHT
from .schema import Model

SHOWN = 4  # names in a line
PYTORCH = {"running_var": "running_variance"}  # a parameter's name there, and here


@dataclass(frozen=True, slots=True)
class Start:
    """First weights by the layout's names, the others being drawn; `note` tells of them."""

    weights: Weights = field(default_factory=dict)
    note: str = ""

    def digest(self) -> str:
        """The same on two ranks exactly if they have read the same weights."""
        hashed = blake2b(digest_size=16)
        for name, array in sorted(self.weights.items()):
            hashed.update(f"{name} {array.shape}".encode())
            hashed.update(np.ascontiguousarray(array).data)
        return hashed.hexdigest()


def start(model: Model, graph: Graph, given: Weights, of_given: str = "") -> Start:
    """The `given` weights of the model's own file, and over them what [model] weights has for the graph.

    `of_given` is told of the former. Raises Mistake where [model] weights has nothing for the graph,
    CheckpointError or GraphError where it cannot be read.
    """
    if model.weights is None:
        return Start(given, of_given)
    path = locate(model.weights)
    found = stored(path, graph.inputs.get("x"))
    names, fitting, drawn = [], {}, []
    for parameter in Layout.of(graph).parameters:
        names.append(parameter.name)
        array = found.get(parameter.name)
        if array is not None and array.shape == parameter.spec.shape:
            fitting[parameter.name] = np.asarray(array, np.float32)
        elif parameter.name not in given:
            shapes = "" if array is None else f" ({array.shape} there, {parameter.spec.shape} here)"
            drawn.append(parameter.name + shapes)
    if not fitting:
        raise Mistake(
            f"[model] weights = {model.weights!r}: nothing in it has the name and the shape of one of the "
            f"model's; it holds {_some(found)}, and the model has {_some(drawn or names)}"
        )
    note = f"starts with {len(fitting):,} of its {len(names):,} arrays from {path}"
    note = f"{note}; drawn anew: {_some(drawn)}" if drawn else note
    return Start({**given, **fitting}, "\n".join(filter(None, (of_given, note))))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = [f"and {len(names) - SHOWN:,} more"] * (len(names) > SHOWN)
    return ", ".join(names[:SHOWN] + more) or "nothing"


def stored(path: Path, sample: ArraySpec | None = None) -> Weights:
    """The weights of a run (its folder, or a checkpoint), of an ONNX file or of another safetensors file.

    Axes that an ONNX file leaves open are as long as those of a sample of the model that wants its weights.
    """
    if path.suffix == ".onnx":
        return imported.read(path, None, "[model] weights", sample).weights
    if path.is_dir():
        path = checkpoint.chosen(RunFolder.open(path).checkpoints)
    try:
        with safe_open(path, framework="numpy") as file:
            ours = (file.metadata() or {}).get("format") == checkpoint.FORMAT
            arrays = {} if ours else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: numbers that NumPy lacks
        raise CheckpointError(
            f"[model] weights = {path}: cannot be read as safetensors ({error}); give a run's folder, a "
            "safetensors file, or a file whose name ends in .onnx"
        ) from error
    if ours:
        tensors = checkpoint.load(path).tensors.items()
        arrays = {name.removeprefix(WEIGHT): array for name, array in tensors if name.startswith(WEIGHT)}
    return {_ours(name): array for name, array in arrays.items()}


def _ours(name: str) -> str:
    node, dot, parameter = name.rpartition(".")
    return node + dot + PYTORCH.get(parameter, parameter)
