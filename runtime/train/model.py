"""From the job file's [model] to a graph with its loss."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Protocol

from ...kernels.kernel import ArraySpec
from ...kernels.loss import Predicts
from ..errors import GraphError
from ..graph import Builder, Graph, Layout, Node, with_loss
from .imported import Weights, imported
from .losses import LossSection
from .schema import Gpt, Layer, Model

BYTES = 256  # the alphabet of a byte-level model

SQUASHING: dict[Predicts, tuple[str, ...]] = {
    "classes": ("softmax",),
    "labels": ("sigmoid", "softmax"),
    "values": (),
}
"""What a model must not end in, by what its loss has it predict: the loss does that itself."""


class Shaped(Protocol):
    """What a model sees of its data; `classes` is None where the loss is not of classes."""

    @property
    def input_spec(self) -> ArraySpec:
        """One sample's input."""

    @property
    def target_spec(self) -> ArraySpec:
        """One sample's target."""

    @property
    def classes(self) -> int | None:
        """Number of classes."""


def build(model: Model, data: Shaped) -> Graph:
    """The graph to be trained on `data`; outputs are the loss (batch,) and the prediction it judges.

    Raises GraphError, naming the node, where the model does not fit the data.
    """
    return build_with_weights(model, data)[0]


def build_with_weights(model: Model, data: Shaped) -> tuple[Graph, Weights, str]:
    """The same, the weights that a model's own file has, by the layout's names, and a note on them."""
    sample, target = data.input_spec, data.target_spec
    weights: Weights = {}
    note = ""
    if model.onnx is not None:
        graph, weights, note = imported(model, sample)
    elif model.gpt is not None:
        graph = gpt(model.gpt, sample)
    elif model.layers is not None:
        graph = chain(model.layers, sample)
    else:
        graph = from_python(str(model.python), sample)
        if dict(graph.inputs) != {"x": sample}:
            raise GraphError(
                f"[model] python = {model.python!r} has the inputs {dict(graph.inputs)}; it must have one,"
                f" called 'x', of the data's shape and dtype: {sample}"
            )
    _require_shape(graph, target, model.loss)
    trained = with_loss(graph, model.loss.name, target, **model.loss.attributes)
    if not Layout.of(trained).size:
        raise GraphError("the model has no weights: there is nothing to train")
    last = next(node for node in trained.nodes if node.name == trained.outputs[1])
    if last.kernel.name in SQUASHING[model.loss.predicts]:
        remedy = "leave the node out" if model.onnx is None else "name the value before it as [model] output"
        raise GraphError(
            f"node {last.name!r} is a {last.kernel.name}, and the loss {model.loss.name} takes logits, of any"
            f" size: {remedy}"
        )
    logits = trained.specs(1)[trained.outputs[1]].shape[-1]
    if data.classes is not None and data.classes > logits:
        raise GraphError(
            f"node {trained.outputs[1]!r} has {logits} outputs, but the data has {data.classes} classes;"
            " the last layer needs one for each (they are numbered from 0 to the greatest target)"
        )
    return trained, weights, note


def _require_shape(graph: Graph, target: ArraySpec, loss: LossSection) -> None:
    """GraphError, with what to do, where targets have an axis for the classes, as one-hot targets do; or,
    of labels and values, where there is not one for each output.
    """
    if len(graph.outputs) != 1:
        return  # for `with_loss` to say
    output = graph.specs(1)[graph.outputs[0]].shape[1:]
    shapes = f"a sample has targets {target.shape} and the model's outputs are {output}: {loss.name} takes "
    if loss.predicts == "classes":
        if target.shape and len(output) == len(target.shape):
            raise GraphError(
                f"{shapes}the class's number in place of the last axis. If the targets are one-hot, store "
                "targets.argmax(-1); if they are labels, of which several may hold, use [model] loss = "
                '"binary_cross_entropy"; if they are values, "mean_squared_error"'
            )
    elif output != target.shape:
        if prod(output) == prod(target.shape):
            remedy = f'end the model in {{ kernel = "reshape", shape = {list(target.shape)} }}'
        elif len(output) == len(target.shape) == 1:
            remedy = f"give the last layer {target.shape[0]}"
        else:
            remedy = "let the model end in the targets' shape"
        if loss.predicts == "labels" and target.shape == (1,):
            remedy += ', or, if a target is the number of a class, use [model] loss = "softmax_cross_entropy"'
        raise GraphError(f"{shapes}one output for each target: {remedy}")


def chain(layers: list[Layer], sample: ArraySpec) -> Graph:
    """One layer after the other, from the input "x"."""
    builder = Builder()
    value = builder.input("x", sample.shape, sample.dtype)
    for layer in layers:
        value = builder(layer.kernel, value, **layer.attributes)
    return builder.build(value)


def gpt(shape: Gpt, sample: ArraySpec) -> Graph:
    """A decoder-only transformer with the norm before each part (GPT-2, Radford et al. 2019), over bytes."""
    b = Builder()
    h = b(
        "embedding", b.input("x", sample.shape, sample.dtype), entries=BYTES, width=shape.width, name="bytes"
    )
    h = b("position_embedding", h, name="positions")
    for layer in range(1, shape.layers + 1):
        part = f"block{layer}"
        a = b("layer_norm", h, name=f"{part}.norm1")
        a = b("dense", a, features=3 * shape.width, name=f"{part}.qkv")
        a = b("attention", a, heads=shape.heads, name=f"{part}.attention")
        a = b("dense", a, features=shape.width, name=f"{part}.project")
        if shape.dropout:
            a = b("dropout", a, rate=shape.dropout, name=f"{part}.dropout1")
        h = b("add", h, a, name=f"{part}.add1")
        a = b("layer_norm", h, name=f"{part}.norm2")
        a = b("dense", a, features=4 * shape.width, name=f"{part}.expand")
        a = b("gelu", a, approximate="tanh", name=f"{part}.gelu")
        a = b("dense", a, features=shape.width, name=f"{part}.contract")
        if shape.dropout:
            a = b("dropout", a, rate=shape.dropout, name=f"{part}.dropout2")
        h = b("add", h, a, name=f"{part}.add2")
    h = b("layer_norm", h, name="norm")
    return b.build(b("dense", h, features=BYTES, bias=False, name="logits"))


def from_python(reference: str, sample: ArraySpec) -> Graph:
    """What the user's function "module:function" returns for one sample's spec."""
    try:
        graph = function_of(reference)(sample)
    except StopIteration as error:  # which no future takes: the thread's told nobody of it (PEP 479)
        raise RuntimeError(f"[model] python = {reference!r} raised StopIteration") from error
    if not isinstance(graph, Graph):
        raise GraphError(f"[model] python = {reference!r} returned {type(graph).__name__}, not a Graph")
    return graph


def function_of(reference: str) -> Callable[[ArraySpec], object]:
    """The user's function "module:function"; the working folder counts."""
    module_name, _, function_name = reference.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    # First what is there: on another thread import_module waits for a module whose import is not over.
    function: Callable[[ArraySpec], object] | None = getattr(
        sys.modules.get(module_name), function_name, None
    )
    try:
        return function or getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise GraphError(
            f"[model] python = {reference!r}: {error}; looked in {here} and on sys.path"
        ) from error


def without_loss(graph: Graph) -> Graph:
    """The part that predicts: what serving and sampling run."""
    prediction = graph.outputs[1]
    needed = {prediction}
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name in needed:
            nodes.append(node)
            needed.update(node.inputs)
    inputs = {name: spec for name, spec in graph.inputs.items() if name in needed}
    return Graph(inputs, tuple(reversed(nodes)), (prediction,))
