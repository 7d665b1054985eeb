"""read(): an ONNX file as a graph of Weft's kernels and the values of its weights.

    file ── fixed? ──yes──> computed now (shapes, constants, what follows from weights alone)
                └──no───> OPERATORS ──> nodes and weights ──> merge ──> Model

The file's nodes come in order. Axis 0 of its inputs is the batch; an open batch (a name instead of a number)
and a fixed one both become Weft's, so the graph serves micro-batches of any size. A file whose inputs have no
batch axis is read with batched=False.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.activation import ReLU, Sigmoid, Softplus, Tanh
from ....kernels.arithmetic import Arithmetic, ArithmeticNumber
from ....kernels.choice import Compare
from ....kernels.function import ArcTan, Cast, Cos, Erf, Exp, Log, Rounded, Sin, Sqrt
from ....kernels.kernel import ArraySpec
from ....kernels.piecewise import LeakyReLU
from ....kernels.probability import LogSoftmax, Softmax
from ....kernels.reduce import ReduceL2, ReduceMax, ReduceMean, ReduceSum
from ...errors import GraphError
from ..graph import Graph
from . import algebra, choice, images, move, package, products, ranking, recurrent, reduction, volumes
from .attention import attention
from .einsum import einsum
from .merge import merge
from .model import Model
from .node import UNKNOWN_BATCH, At, Dynamic, Operand, Static, Writing, plain
from .rewrite import constants, is_mask, kinds, rewritten
from .sharing import folded, with_shared
from .volumes import or_images

Reading = Callable[[At], Operand | tuple[Operand, ...]]

NEGATIVE = ArithmeticNumber("mul", -1.0)

OPERATORS: Mapping[str, Reading] = {
    "Abs": algebra.unary(LeakyReLU(-1.0)),
    "Add": algebra.binary("add"),
    "And": choice.logical(Arithmetic("mul")),
    "ArgMax": ranking.arg_max(smallest=False),
    "ArgMin": ranking.arg_max(smallest=True),
    "Atan": algebra.unary(ArcTan()),
    "Attention": attention,
    "AveragePool": or_images(volumes.average_pool, images.average_pool),
    "BatchNormalization": images.batch_normalization,
    "Cast": move.cast,
    "Ceil": algebra.unary(Rounded("above")),
    "Celu": algebra.celu,
    "Clip": algebra.clip,
    "Concat": move.concat,
    "Conv": or_images(volumes.conv, images.conv),
    "ConvTranspose": or_images(volumes.conv_transpose, images.conv_transpose),
    "Cos": algebra.unary(Cos()),
    "CumSum": ranking.cumulative_sum,
    "DepthToSpace": move.depth_to_space,
    "Div": algebra.binary("div"),
    "Dropout": algebra.dropout,
    "Einsum": einsum,
    "Elu": algebra.elu,
    "Equal": choice.compare("equal"),
    "Erf": algebra.unary(Erf()),
    "Exp": algebra.unary(Exp()),
    "Expand": move.expand,
    "Floor": algebra.unary(Rounded("below")),
    "Flatten": move.flatten,
    "Gather": move.gather,
    "GRU": recurrent.gru,
    "Gelu": algebra.gelu,
    "Gemm": products.gemm,
    "GlobalAveragePool": or_images(volumes.global_average_pool, images.global_average_pool),
    "GlobalMaxPool": or_images(volumes.global_max_pool, images.global_max_pool),
    "Greater": choice.compare("greater"),
    "GreaterOrEqual": choice.compare("greater_equal"),
    "GroupNormalization": images.group_normalization,
    "HardSigmoid": algebra.hard_sigmoid,
    "HardSwish": algebra.hard_swish,
    "Identity": move.identity,
    "InstanceNormalization": images.instance_normalization,
    "IsInf": choice.is_inf,
    "IsNaN": choice.is_nan,
    "LRN": images.lrn,
    "LSTM": recurrent.lstm,
    "LayerNormalization": algebra.layer_normalization,
    "LeakyRelu": algebra.leaky_relu,
    "Less": choice.compare("less"),
    "LessOrEqual": choice.compare("less_equal"),
    "Log": algebra.unary(Log()),
    "LogSoftmax": algebra.softmax(LogSoftmax),
    "MatMul": products.matmul,
    "Max": choice.bounded(above=False),
    "MaxPool": or_images(volumes.max_pool, images.max_pool),
    "Min": choice.bounded(above=True),
    "Mish": algebra.mish,
    "Mul": algebra.binary("mul"),
    "Neg": algebra.unary(NEGATIVE),
    "Not": choice.negation,
    "Or": choice.logical(Arithmetic("add")),
    "PRelu": algebra.prelu,
    "Pad": move.pad,
    "Pow": algebra.binary("pow"),
    "RMSNormalization": algebra.rms_normalization,
    "Reciprocal": algebra.unary(ArithmeticNumber("div", 1.0, reverse=True)),
    "ReduceL1": reduction.reduce_of(ReduceSum, LeakyReLU(-1.0)),
    "ReduceL2": reduction.reduce(ReduceL2),
    "ReduceLogSumExp": reduction.reduce_log_sum_exp,
    "ReduceMax": reduction.reduce(ReduceMax),
    "ReduceMean": reduction.reduce(ReduceMean),
    "ReduceMin": reduction.reduce_of(ReduceMax, NEGATIVE, NEGATIVE),
    "ReduceSum": reduction.reduce(ReduceSum),
    "ReduceSumSquare": reduction.reduce_of(ReduceSum, ArithmeticNumber("pow", 2.0)),
    "RNN": recurrent.rnn,
    "Relu": algebra.unary(ReLU()),
    "Reshape": move.reshape,
    "Resize": move.resize,
    "Round": algebra.unary(Rounded("nearest")),
    "Selu": algebra.selu,
    "Shape": move.shape,
    "Sigmoid": algebra.unary(Sigmoid()),
    "Sign": choice.sign,
    "Sin": algebra.unary(Sin()),
    "Slice": move.cut,
    "Softmax": algebra.softmax(Softmax),
    "Softplus": algebra.unary(Softplus()),
    "Softsign": algebra.softsign,
    "SpaceToDepth": move.space_to_depth,
    "Split": move.split,
    "Sqrt": algebra.unary(Sqrt()),
    "Squeeze": move.squeeze,
    "Sub": algebra.binary("sub"),
    "Sum": algebra.total,
    "Tanh": algebra.unary(Tanh()),
    "ThresholdedRelu": choice.thresholded_relu,
    "Tile": move.tile,
    "TopK": ranking.top_k,
    "Transpose": move.transpose,
    "Unsqueeze": move.unsqueeze,
    "Upsample": move.resize,
    "Where": choice.where,
    "Xor": choice.logical(Compare("not_equal")),
}
"""The operators that Weft computes. Where all inputs are fixed, every operator of ONNX is understood."""

RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
"""Operators that draw anew in each run: nothing that is computed while the file is read."""

UNLEARNT = ("Ceil", "Cos", "Floor", "Round", "Sign", "Sin")
"""Operators that make no weight of one: what they are given are places and frequencies of a file's tables."""

NO_KERNEL = "write the model without it, or read it up to a value before it"
WITHOUT = dict.fromkeys(
    ("If", "Loop", "Scan"),
    "its graphs do not branch or loop; export the model with fixed lengths, and an nn.Embedding with a mean "
    "or a sum behind it in place of nn.EmbeddingBag",
)
"""What to do without an operator that has no kernel."""

SHOWN = 5  # values that an error lists

TAG = "weft."
"""A node's metadata property "weft.cost" (or priority, device, …) in the file is its tag of that name."""


def read(
    source: str | PathLike[str] | package.Proto,
    *,
    batched: bool = True,
    outputs: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
    inference: bool = False,
) -> Model:
    """The model in a file, or in a ModelProto.

    `outputs` names values of the file to compute instead of its outputs (the logits before a softmax, to
    train with cross-entropy). `sizes` fixes axes that the file leaves open, by their names: {"places": 128}.
    With `inference` batch norms are folded into the convolutions before them, for good.

    Raises GraphError naming the node for what Weft cannot compute.
    """
    proto = package.load(Path(source)) if isinstance(source, str | PathLike) else source
    told = proto.graph.value_info
    proto = package.inlined(proto)
    file = proto.graph
    version = package.operator_set(proto)
    if file.sparse_initializer:
        name = file.sparse_initializer[0].values.name
        raise GraphError(f"the weight {name!r} is stored as a sparse tensor; store it with all its elements")
    stored = {each.name: package.tensor(each) for each in file.initializer}
    fixed = constants(proto.producer_name, file.node, stored, kinds(told))
    operands: dict[str, Operand] = {
        name: Static(array, name not in fixed and not _counts(array)) for name, array in stored.items()
    }
    entries = [each for each in file.input if each.name not in stored]
    _require_once(file, entries)
    _require_axes(entries, sizes or {})
    shapes = {each.name: _shape(each, batched, sizes or {}) for each in entries}
    writing = Writing(batched, _batch(shapes) if batched else 1)
    inputs = {}
    for each in entries:
        name = writing.name("x" if len(entries) == 1 else each.name)
        kind = package.dtype(each.type.tensor_type.elem_type)
        own = shapes[each.name][1:] if batched else shapes[each.name]
        writing.inputs[name] = ArraySpec((writing.batch, *own), kind)
        operands[each.name] = writing.value(name, writing.inputs[name])
        inputs[each.name] = name

    wanted = list(outputs) or [each.name for each in file.output]
    if not wanted:
        raise GraphError("the file has no output; name values of it with outputs=[…]")
    _require_values(file.node, wanted, operands)
    nodes = _needed(rewritten(file.node, stored), wanted)
    same = folded(stored)
    sources = {
        name: {same.get(name, name)}
        for name, each in operands.items()
        if isinstance(each, Static) and each.trained
    }
    readers: dict[str, list[str]] = {}
    read_later = {*wanted, *(name for _, node in nodes for name in node.input)} - {""}
    for number, node in nodes:
        title = node.name or next((name for name in node.output if name), f"{node.op_type} {number}")
        read_here = [name in read_later for name in node.output]
        written = len(writing.weights)
        results = _node(node, title, operands, version, writing, read_here)
        for name in read_later.intersection(node.output[len(results) :]):
            made = ", ".join(repr(name) for name in node.output[: len(results)] if name) or "those before it"
            raise GraphError(
                f"node {title!r} ({node.op_type}): its output {name!r} is needed, and Weft makes only {made};"
                " export the model without it, or name the values that you need with outputs=[…]"
            )
        operands.update((name, result) for name, result in zip(node.output, results, strict=False) if name)
        from_weights: set[str] = set().union(*(sources.get(name, ()) for name in node.input))
        if all(isinstance(each, Static) for each in results):
            sources.update((name, from_weights) for name in node.output if name)
        elif len(writing.weights) > written:  # a Resize, say, makes no weight of its factors
            for name in from_weights:
                readers.setdefault(name, []).append(title)

    model = _model(writing, operands, wanted, inputs, inference)
    # A copy for inference has nothing to add up, and norms are folded into some of its weights.
    return model if inference else with_shared(model, stored, readers)


def _node(
    node: package.Proto,
    title: str,
    operands: Mapping[str, Operand],
    version: int,
    writing: Writing,
    outputs: Sequence[bool],
) -> Sequence[Operand]:
    """The outputs of one node: computed now where its inputs are fixed, else what its operator makes."""
    for name in node.input:
        if name and name not in operands:
            raise GraphError(f"node {title!r} ({node.op_type}) reads {name!r}, which nothing before it makes")
    found = tuple(operands[name] if name else None for name in node.input)
    known = [each.array if each else None for each in found if not isinstance(each, Dynamic)]
    standard = node.domain in ("", "ai.onnx")
    fixed = len(known) == len(found) and node.op_type not in RANDOM and not package.has_subgraph(node)
    if standard and fixed:
        statics = [each for each in found if isinstance(each, Static)]
        learns = any(each.trained for each in statics) and node.op_type not in UNLEARNT
        arrays = _computed(node, title, known, version)
        trained = [learns and not _counts(array) and not is_mask(array) for array in arrays]
        if all(each.other is None for each in statics):
            return [Static(array, own) for array, own in zip(arrays, trained, strict=True)]
        known = [
            each.other if isinstance(each, Static) and each.other is not None else array
            for each, array in zip(found, known, strict=True)
        ]
        others = _computed(node, title, known, version)
        return [
            Static(array, own, None if np.array_equal(array, other) else other)
            for array, own, other in zip(arrays, trained, others, strict=True)
        ]
    reading = OPERATORS.get(node.op_type) if standard else None
    if reading is None:
        op = node.op_type if standard else f"{node.domain}.{node.op_type}"
        raise GraphError(
            f"node {title!r}: Weft has no kernel for the operator {op}: {WITHOUT.get(op, NO_KERNEL)}; it has "
            f"{', '.join(sorted(OPERATORS))}"
        )
    tags = {
        each.key.removeprefix(TAG): each.value for each in node.metadata_props if each.key.startswith(TAG)
    }
    _require_numbers(title, node.op_type, tags)
    attributes = package.attributes(node)
    at = At(node.op_type, title, found, attributes, version, tuple(outputs), tags, writing)
    try:
        result = reading(at)
    except KeyError as error:
        at.refuse(f"its attribute {error.args[0]!r} is missing")
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError) as error:
        # of attributes and weights that do not fit together
        at.refuse(str(error))
    except MemoryError as error:
        at.refuse(f"what it makes is too large for this machine: {str(error) or 'out of memory'}")
    return result if isinstance(result, tuple) else (result,)


def _computed(
    node: package.Proto, title: str, known: Sequence[NDArray[Any] | None], version: int
) -> list[NDArray[Any]]:
    """The outputs of a node whose inputs are fixed."""
    try:
        return package.evaluate(node, known, version)
    except Exception as error:  # whatever the evaluator raises for what it cannot do
        raise GraphError(f"node {title!r} ({node.op_type}) cannot be computed: {error}") from error


def _require_numbers(title: str, op: str, tags: Mapping[str, str]) -> None:
    """Raise GraphError for a cost or a priority that is none."""
    for name, kind in (("cost", float), ("cost_s", float), ("priority", int)):
        try:
            kind(tags.get(name, "0"))
        except ValueError:
            raise GraphError(
                f"node {title!r} ({op}): its tag {TAG + name!r} is {tags[name]!r}; give a number"
            ) from None


def _counts(array: NDArray[Any]) -> bool:
    """Whether an array holds truths or whole numbers, which no step changes, and no cast makes weights.

    Those of 8 bits may be a weight that is stored in few.
    """
    return array.dtype.kind == "b" or (array.dtype.kind in "iu" and array.dtype.itemsize > 1)


def _needed(nodes: Iterable[package.Proto], wanted: Iterable[str]) -> list[tuple[int, package.Proto]]:
    """The nodes, numbered, without which `wanted` cannot be computed."""
    names = set(wanted)
    found = []
    for number, node in reversed(list(enumerate(nodes))):
        if names.intersection(node.output):
            names.update(node.input)
            found.append((number, node))
    return found[::-1]


def _require_values(nodes: Sequence[Any], wanted: Iterable[str], known: Collection[str]) -> None:
    """Raise GraphError for a wanted value that nothing makes, with what is there in its place.

    Whoever looks for a name finds nodes in `weft info`, called as here; exporters call values otherwise.
    """
    made = {name: node for node in nodes for name in node.output if name}
    for name in wanted:
        if name in made or name in known:
            continue
        meant = [value for value, node in made.items() if node.name and name in (node.name, plain(node.name))]
        which = f"node {name!r} makes" if meant else "its last values are"
        listed = ", ".join(map(repr, meant or list(made)[-SHOWN:])) or "none"
        raise GraphError(f"the file has no value {name!r} that could be an output; {which} {listed}")


def _require_once(file: package.Proto, entries: Iterable[Any]) -> None:
    """Raise GraphError for a name that has several values: which of them was meant, nobody knows."""
    names = [each.name for each in (*file.initializer, *entries)]
    names += [name for node in file.node for name in node.output if name]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise GraphError(
            f"the file gives {twice[0]!r} several values; give every input, weight and output of a node a "
            "name of its own"
        )


def sizes_of(proto: package.Proto, sample: Sequence[int]) -> dict[str, int]:
    """What `sizes` are where the file's one input takes samples of this shape; none where it takes others."""
    stored = {each.name for each in proto.graph.initializer}
    entries = [each for each in proto.graph.input if each.name not in stored]
    axes = list(entries[0].type.tensor_type.shape.dim) if len(entries) == 1 else []
    if len(axes) != 1 + len(sample):
        return {}
    batch, *names = (each.dim_param for each in axes)
    return {name: size for name, size in zip(names, sample, strict=True) if name not in ("", batch)}


def _require_axes(entries: Iterable[Any], sizes: Mapping[str, int]) -> None:
    """Raise GraphError for sizes of axes that no input has."""
    axes = {dimension.dim_param: None for entry in entries for dimension in entry.type.tensor_type.shape.dim}
    if unknown := [name for name in sizes if name not in axes]:
        there = ", ".join(repr(name) for name in axes if name) or "none"
        raise GraphError(f"no input has an axis {unknown[0]!r} to give a size; axes with names: {there}")


def _shape(entry: Any, batched: bool, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """An input's shape; an open batch is UNKNOWN_BATCH."""
    kind = entry.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        raise GraphError(
            f"the input {entry.name!r} is a {kind.removesuffix('_type')}; Weft's graphs take tensors alone"
        )
    if not entry.type.tensor_type.HasField("shape"):
        raise GraphError(f"the file does not say what shape the input {entry.name!r} has; export it with one")
    shape = []
    for axis, dimension in enumerate(entry.type.tensor_type.shape.dim):
        extent = sizes.get(dimension.dim_param, dimension.dim_value)
        if extent < 1 and (axis or not batched):
            name, behind = dimension.dim_param, " behind the batch" if batched else ""
            called = f" ({name!r})" if name else ""
            way = (
                f"by its name, with --size {name}=128 for weft info, sizes = {{ {name} = 128 }} in weft.toml "
                f"for weft serve, sizes={{{name!r}: 128}} in Python"
            )
            state = extent if dimension.HasField("dim_value") else "open"
            raise GraphError(
                f"axis {axis}{called} of the input {entry.name!r} is {state}; Weft's graphs have fixed shapes"
                f"{behind}: fix it {way if name else 'in the file, for it has no name'}"
            )
        shape.append(extent if extent > 0 else UNKNOWN_BATCH)
    if not shape and batched:
        raise GraphError(
            f"the input {entry.name!r} has no axis, so it has no batch; read the file with batched=False"
        )
    return tuple(shape)


def _batch(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The batch of all inputs."""
    found = {shape[0] for shape in shapes.values()}
    if len(found) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise GraphError(
            f"the inputs have different first axes ({listed}), which cannot all be the batch; a model "
            "without a batch axis is read with batched=False"
        )
    return next(iter(found), 1)


def _model(
    writing: Writing,
    operands: Mapping[str, Operand],
    wanted: Sequence[str],
    inputs: Mapping[str, str],
    inference: bool,
) -> Model:
    names, constants = {}, {}
    for name in wanted:
        operand = operands[name]
        at = At("output", name, (), {}, 0, (True,), {}, writing)
        if isinstance(operand, Static):
            at.check_fixed(operand)
            constants[name] = operand.array
            continue
        operand = at.plain(operand)
        if operand.name in writing.inputs:  # a program's outputs are its own arrays
            operand = at.add(at.kernel(Cast, operand.spec.dtype), operand)
        names[name] = operand.name
    nodes, weights = merge(
        writing.nodes, writing.weights, writing.inputs, set(names.values()), inference=inference
    )
    used = {value for node in nodes for value in node.inputs}
    specs = {
        name: ArraySpec(spec.shape[1:], spec.dtype) for name, spec in writing.inputs.items() if name in used
    }
    kept = {name: own for name, own in inputs.items() if own in used}
    graph = Graph(specs, tuple(nodes), tuple(names.values()))
    return Model(graph, weights, kept, names, constants)
