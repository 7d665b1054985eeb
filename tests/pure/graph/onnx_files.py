"""What the tests of the ONNX reader share: graphs written down in a line each, and their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_rnn import RNN_14

from weft.runtime.graph import Layout, Memory, Program
from weft.runtime.graph.onnx import Model


class Host:
    """The allocator of the tests."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype)


def file(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray],
    *,
    version: int = 18,
    integers: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model; `inputs` are names and shapes (a text is an open axis), those in `integers` hold tokens."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in integers else TensorProto.FLOAT, list(shape)
            )
            for name, shape in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are parted by blanks, and it is called after its first output."""
    names = outputs.split()
    return helper.make_node(op, inputs.split(), names, name=f"{names[0]}_node", **attributes)


def compute(model: Model, samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's outputs for these samples by Weft, by the file's names."""
    found: dict[str, np.ndarray] = dict(model.constants)
    if not model.outputs:
        return found
    layout = Layout.of(model.graph)
    batch = len(next(iter(samples.values())))
    memory = Memory(model.graph, layout, Host(), batch, training=False)
    program = Program(model.graph, layout, memory, batch, model.parameters(layout))
    for name, own in model.inputs.items():
        program.inputs[own][...] = samples[name]
    for step in program.forward:
        step.run()
    places = {name: index for index, name in enumerate(model.graph.outputs)}
    return found | {name: program.outputs[places[own]] for name, own in model.outputs.items()}


class BatchNormalization(OpRun):
    """For inference, as the standard has it; the evaluator's of version 9 mixes in the batch's statistics."""

    op_domain = ""

    def _run(self, x, scale, bias, mean, variance, epsilon, **others):
        one = (-1, *(1,) * (x.ndim - 2))
        normal = (x - mean.reshape(one)) / np.sqrt(variance.reshape(one) + np.float32(epsilon))
        return (normal * scale.reshape(one) + bias.reshape(one),)


class LRN(OpRun):
    """The evaluator's own goes through as many channels as there are samples and leaves the others."""

    op_domain = ""

    def _run(self, x, alpha, beta, bias, size):
        squares = np.pad(x * x, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
        summed = sum(squares[:, shift : shift + x.shape[1]] for shift in range(size))
        return ((x / (bias + alpha / size * summed) ** beta).astype(x.dtype),)


class RNN(RNN_14):
    """The evaluator's own knows Tanh alone of the operator's curves."""

    op_domain = ""

    def choose_act(self, name, alpha, beta):
        return (lambda x: np.maximum(x, 0)) if name == "Relu" else super().choose_act(name, alpha, beta)


def expected(proto: onnx.ModelProto, samples: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The same by the onnx package's evaluator."""
    evaluator = ReferenceEvaluator(proto, new_ops=[BatchNormalization, LRN, RNN])
    return [np.asarray(each) for each in evaluator.run(None, dict(samples))]


def one(op: str, inputs: str = "x", *, shape=("n", 4), weights=None, version=18, integers=(), **attributes):
    """A file of one node."""
    return file([node(op, inputs, "y", **attributes)], {"x": shape}, ["y"], weights or {},
                version=version, integers=integers)  # fmt: skip


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def softmax(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    powers = np.exp(x)
    return powers / powers.sum(axis=axis, keepdims=True)
