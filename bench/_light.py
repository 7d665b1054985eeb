"""The `light_*` models that ship with the onnx package: real graphs, here with random weights.

Their own weights are all equal, with which a wrong convolution looks like a right one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def names() -> list[str]:
    """The models that there are."""
    return sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("*.onnx"))


def load(name: str, pixels: int = 224) -> onnx.ModelProto:
    """A model with random weights, for images of `pixels` x `pixels`."""
    proto = random_weights(onnx.load(FOLDER / f"light_{name}.onnx"))
    stored = {each.name for each in proto.graph.initializer}
    (entry,) = (each for each in proto.graph.input if each.name not in stored)
    for dimension in entry.type.tensor_type.shape.dim[2:]:
        dimension.dim_value = pixels
    return proto


def random_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The file with weights drawn for every ConstantOfShape: the light models come with equal ones.

    Deviations as of He et al. keep numbers of one size through a hundred layers, so an error shows.
    """
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    graph = proto.graph
    shapes = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    roles = {
        name: (reader.op_type, place)
        for reader in reversed(graph.node)
        for place, name in enumerate(reader.input)
    }
    for each in graph.node:
        if each.op_type == "Softmax" and not each.attribute:
            # The default of these files' version; the evaluator takes that of today, the last axis.
            each.attribute.append(helper.make_attribute("axis", 1))
    generator = np.random.default_rng(0)
    for each in [each for each in graph.node if each.op_type == "ConstantOfShape"]:
        (name,) = each.output
        shape = tuple(int(extent) for extent in shapes[each.input[0]])
        value: NDArray[np.float32] = generator.standard_normal(shape, np.float32)
        op, place = roles[name]
        if len(shape) > 1:
            value *= np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
        elif (op == "BatchNormalization" and place in (1, 4)) or op in ("Mul", "Unsqueeze"):
            value = np.float32(1) + np.float32(0.3) * np.tanh(value)  # scales and variances
        else:
            value *= np.float32(0.1)
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        graph.node.remove(each)
    return proto
