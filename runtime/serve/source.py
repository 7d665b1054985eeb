"""What the files of a model's version hold, whoever wrote them: a graph, its weights and its names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.kernel import ArraySpec
from ..errors import GraphError, MachineError, WeftError
from ..graph import Graph, Layout
from ..train.data.samples import Affine
from ..train.inference import trained
from .repository import Platform

DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip
"""The protocol's name of a dtype."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model to be served. `inputs` and `outputs` lead from the names that clients use to the graph's."""

    graph: Graph
    weights: Mapping[str, NDArray[np.float32]]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    affine: Affine | None = None  # of the only input, where samples come raw: in its mean's dtype
    labels: tuple[str, ...] = ()
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # outputs that depend on no input

    def describe(self) -> dict[str, Any]:
        """What rank 0 has to know; equal on two ranks exactly if they have read the same model."""
        specs = self.graph.specs(1)  # inputs too
        if self.affine is not None:
            (raw,) = self.inputs.values()
            specs[raw] = replace(specs[raw], dtype=str(self.affine.mean.dtype))
        fixed = [
            [name, _datatype(name, str(array.dtype)), list(array.shape)]
            for name, array in self.constants.items()
        ]
        return {
            "inputs": [_told(name, specs[own]) for name, own in self.inputs.items()],
            "outputs": [_told(name, specs[own]) for name, own in self.outputs.items()] + fixed,
            "labels": list(self.labels),
            "digest": self._digest(),
        }

    def _digest(self) -> str:
        hashed = hashlib.blake2b(repr((self.graph, self.inputs, self.outputs, self.affine)).encode())
        for name in sorted(self.weights):
            hashed.update(name.encode())
            hashed.update(np.ascontiguousarray(self.weights[name]).data)
        return hashed.hexdigest()[:32]

    def fill(self, flat: NDArray[np.float32]) -> None:
        """Write the weights into the layout's flat vector."""
        for parameter in Layout.of(self.graph).parameters:
            flat[parameter.start : parameter.stop] = self.weights[parameter.name].reshape(-1)


def _told(name: str, spec: ArraySpec) -> list[Any]:
    return [name, _datatype(name, spec.dtype), [-1, *spec.shape[1:]]]


def _datatype(name: str, dtype: str) -> str:
    if dtype not in DATATYPES:
        raise GraphError(f"{name!r} is {dtype}, which is not served: make it one of {', '.join(DATATYPES)}")
    return DATATYPES[dtype]


def read(path: Path, platform: Platform, sizes: Mapping[str, int]) -> tuple[Source, dict[str, Any]]:
    """The model in a version's folder (or an ONNX file itself), described.

    A WeftError says why it cannot be served.

    For a thread: reading a model of 270 MB takes seconds, and its digest half of one.
    """
    try:
        onnx = path if path.is_file() else path / "model.onnx"
        source = _onnx(onnx, sizes) if platform is Platform.ONNX else _checkpoint(path)
        return source, source.describe()
    except WeftError as error:
        text = str(error)
        raise type(error)(text if str(path) in text else f"{path}: {text}") from error
    except ModuleNotFoundError as error:
        raise MachineError(
            f"{path}: reading ONNX needs the onnx package, which is missing: pip install 'weft[onnx]'"
        ) from error
    except Exception as error:  # a damaged file makes its reader raise anything
        raise GraphError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def _onnx(path: Path, sizes: Mapping[str, int]) -> Source:
    from ..graph.onnx import load  # needs the onnx package
    from ..graph.onnx import read as read_onnx

    proto = load(path)
    model = read_onnx(proto, sizes=sizes, inference=True)
    if not model.outputs:
        raise GraphError("no output of the file depends on an input: there is nothing to serve")
    source = Source(model.graph, model.weights, model.inputs, model.outputs, constants=model.constants)
    properties = {each.key: each.value for each in proto.metadata_props}
    told = properties.get("labels", "") if proto.producer_name == "weft" else ""
    return replace(source, labels=_labels(told, source))


def _labels(told: str, source: Source) -> tuple[str, ...]:
    """The names of classes that `weft export` has written; none that do not fit what the file answers now.

    Of its own files alone: their output is a classifier's logits, behind which an ensemble's has deviations.
    What another program calls labels may name anything, and what its file gives may be shares already, of
    which a softmax would be other ones.
    """
    try:
        labels = json.loads(told) if told else []
    except ValueError:
        return ()
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return ()
    first, *others = source.outputs
    shape = source.graph.specs(1)[source.outputs[first]].shape
    of_one = not source.constants and all(other == f"{first}_deviation" for other in others)
    return tuple(labels) if of_one and len(shape) == 2 and len(labels) <= shape[1] else ()


def _checkpoint(path: Path) -> Source:
    found = trained(path)
    for parameter in Layout.of(found.graph).parameters:
        weight = found.weights.get(parameter.name)
        if weight is None or weight.size != parameter.stop - parameter.start:
            raise GraphError(
                f"the checkpoint's {parameter.name!r} does not fit the model in job.toml: was that changed "
                "after the run?"
            )
    (output,) = found.graph.outputs
    mean = np.asarray(found.affine.mean, found.affine.takes)
    scale = np.asarray(found.affine.scale, np.float32)
    affine = Affine(mean, scale) if mean.any() or (scale != 1).any() else None
    return Source(found.graph, found.weights, {"x": "x"}, {output: output}, affine, found.labels)
