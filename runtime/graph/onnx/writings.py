"""How each kernel is written in ONNX's operators: WRITINGS, by the kernel's class.

What a kernel does at once takes several operators where ONNX has none of its own: attention is written as
exporters spell it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, sqrt
from typing import Any

import numpy as np

from ....kernels.activation import GELU, Dropout, ReLU, Sigmoid, Softplus, Tanh
from ....kernels.arithmetic import Arithmetic, ArithmeticNumber, ArithmeticWeight, Constant
from ....kernels.attention import Attention
from ....kernels.batch_norm import BatchNorm, InstanceNorm
from ....kernels.choice import Compare, CompareNumber, Where
from ....kernels.conv import Conv2d, Conv2dAdd
from ....kernels.conv3d import Conv3d, ConvTranspose3d, OfVolumes
from ....kernels.conv_transpose import ConvTranspose2d
from ....kernels.embedding import Embedding, PositionEmbedding
from ....kernels.function import ArcTan, Cast, Cos, Erf, Exp, Log, Rounded, Sin, Sqrt
from ....kernels.kernel import Kernel
from ....kernels.layer_norm import LayerNorm
from ....kernels.linear import Dense
from ....kernels.matmul import MatMul
from ....kernels.piecewise import ELU, Clip, LeakyReLU
from ....kernels.pool import AveragePool2d, GlobalAveragePool2d, MaxPool2d, Pool2d
from ....kernels.probability import LogSoftmax, Softmax
from ....kernels.ranking import ArgMax, CumulativeSum, TopK, TopKIndices
from ....kernels.rearrange import Pad, Slice, Take, Transpose
from ....kernels.recurrence import Recurrent
from ....kernels.recurrent import GRU, LSTM, RNN
from ....kernels.reduce import Reduce, ReduceL2, ReduceMax, ReduceMean, ReduceSum
from ....kernels.resample import Resample
from ....kernels.response_norm import ResponseNorm
from ....kernels.shape import Add, Concat, Flatten, Reshape
from .sheet import To

OPERATORS = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "max": "Max",
    "min": "Min",
}
OF_TRUTHS = {"add": "Or", "mul": "And"}
COMPARISONS = {
    "equal": "Equal",
    "not_equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
}


def _as(op: str) -> Callable[[To, Kernel], None]:
    """A kernel that is one operator without attributes."""

    def writing(to: To, kernel: Kernel) -> None:
        to.put(op, *to.node.inputs)

    return writing


def _rounded(to: To, kernel: Rounded) -> None:
    to.put({"below": "Floor", "above": "Ceil", "nearest": "Round"}[kernel.to], *to.node.inputs)


def _dense(to: To, kernel: Dense) -> None:
    (x,) = to.node.inputs
    if len(to.specs[0].shape) == 2:
        bias = [to.weight("bias")] if kernel.bias else []
        to.put("Gemm", x, to.weight(), *bias, transB=1)
        return
    across = to.store("weight", np.ascontiguousarray(to.parameters["weight"].T))
    if kernel.bias:
        to.put("Add", to.put("MatMul", x, across, to="product"), to.weight("bias"))
    else:
        to.put("MatMul", x, across)


def _conv(to: To, kernel: Conv2d) -> None:
    bias = [to.weight("bias")] if kernel.bias else []
    steps = ["Add"] * isinstance(kernel, Conv2dAdd) + ["Relu"] * kernel.relu
    window = kernel.window
    # The operator has the node's name, whatever comes behind it: readers call its weights after it.
    value = to.sheet.put(
        "Conv",
        [to.node.inputs[0], to.weight(), *bias],
        to.part("convolved") if steps else to.node.name,
        to.node.name,
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.padding,
        dilations=window.dilation,
        group=kernel.groups,
    )
    for number, op in enumerate(steps, 1):
        others = to.node.inputs[1:] if op == "Add" else ()
        last = number == len(steps)
        value = to.put(op, value, *others, to="" if last else "sum", name=op.lower())


def _conv_transpose(to: To, kernel: ConvTranspose2d) -> None:
    bias = [to.weight("bias")] if kernel.bias else []
    window = kernel.window
    to.put(
        "ConvTranspose",
        *to.node.inputs,
        to.weight(),
        *bias,
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.padding,
        output_padding=kernel.output_padding,
        dilations=window.dilation,
        group=kernel.groups,
    )


def _of_volumes(op: str) -> Callable[[To, Any], None]:
    def writing(to: To, kernel: OfVolumes) -> None:
        more: dict[str, Any] = {}
        if isinstance(kernel, ConvTranspose3d):
            more["output_padding"] = kernel.output_padding
        bias = [to.weight("bias")] if kernel.bias else []
        to.put(
            op, *to.node.inputs, to.weight(), *bias, kernel_shape=kernel.kernel_size, strides=kernel.stride,
            pads=kernel.padding, dilations=kernel.dilation, group=kernel.groups, **more,
        )  # fmt: skip

    return writing


def _pool(op: str) -> Callable[[To, Any], None]:
    def writing(to: To, kernel: Pool2d) -> None:
        window = kernel.window
        attributes: dict[str, Any] = {
            "kernel_shape": window.kernel, "strides": window.stride, "pads": window.padding
        }  # fmt: skip
        if isinstance(kernel, AveragePool2d):
            attributes["count_include_pad"] = int(kernel.count_include_pad)
        to.put(op, *to.node.inputs, **attributes)

    return writing


def _global_average_pool(to: To, kernel: GlobalAveragePool2d) -> None:
    to.put("Flatten", to.put("GlobalAveragePool", *to.node.inputs, to="pooled"), axis=1)


def _gelu(to: To, kernel: GELU) -> None:
    to.put("Gelu", *to.node.inputs, approximate=kernel.approximate)


def _clip(to: To, kernel: Clip) -> None:
    dtype = to.output.dtype
    bounds = [
        to.sheet.store(to.part(name), np.array(value, dtype)) if isfinite(value) else ""
        for name, value in (("minimum", kernel.minimum), ("maximum", kernel.maximum))
    ]
    to.put("Clip", *to.node.inputs, *bounds)


def _leaky_relu(to: To, kernel: LeakyReLU) -> None:
    to.put("LeakyRelu", *to.node.inputs, alpha=kernel.slope)


def _elu(to: To, kernel: ELU) -> None:
    to.put("Elu", *to.node.inputs, alpha=kernel.alpha)


def _cast(to: To, kernel: Cast) -> None:
    to.put("Cast", *to.node.inputs, to_type=kernel.dtype)


def _along(op: str) -> Callable[[To, Any], None]:
    def writing(to: To, kernel: Softmax) -> None:
        to.put(op, *to.node.inputs, axis=kernel.axis)

    return writing


def _add(to: To, kernel: Add) -> None:
    ops = {1: "Identity", 2: "Add"}
    to.put(ops.get(len(to.node.inputs), "Sum"), *to.node.inputs)


def _arithmetic(to: To, kernel: Arithmetic) -> None:
    axes = len(to.output.shape) - 1
    named = OPERATORS | (OF_TRUTHS if to.output.dtype == "bool" else {})
    to.put(named[kernel.operator], to.aligned(0, axes), to.aligned(1, axes))


def _arithmetic_weight(to: To, kernel: ArithmeticWeight) -> None:
    weight = to.store("weight", to.parameters["weight"], trained=kernel.trained)
    operands = to.aligned(0, len(to.output.shape) - 1), weight
    to.put(OPERATORS[kernel.operator], *(operands[::-1] if kernel.reverse else operands))


def _arithmetic_number(to: To, kernel: ArithmeticNumber) -> None:
    value = to.sheet.store(to.part("value"), np.array(kernel.value, to.specs[0].dtype))
    operands = to.node.inputs[0], value
    to.put(OPERATORS[kernel.operator], *(operands[::-1] if kernel.reverse else operands))


def _compare(to: To, kernel: Compare) -> None:
    axes = len(to.output.shape) - 1
    _compared(to, kernel.operator, to.aligned(0, axes), to.aligned(1, axes))


def _compare_number(to: To, kernel: CompareNumber) -> None:
    (x,), dtype = to.node.inputs, to.specs[0].dtype
    if dtype == "bool":  # the operators of order take numbers alone
        x, dtype = to.put("Cast", x, to="number", to_type="float32"), "float32"
    elif not float(kernel.value).is_integer() and not dtype.startswith("float"):
        x, dtype = to.put("Cast", x, to="number", to_type="float64"), "float64"
    _compared(to, kernel.operator, x, to.sheet.store(to.part("value"), np.array(kernel.value, dtype)))


def _compared(to: To, operator: str, first: str, second: str) -> None:
    if operator == "not_equal":
        to.put("Not", to.put("Equal", first, second, to="equal"))
    else:
        to.put(COMPARISONS[operator], first, second)


def _where(to: To, kernel: Where) -> None:
    axes = len(to.output.shape) - 1
    to.put("Where", *(to.aligned(index, axes) for index in range(3)))


def _constant(to: To, kernel: Constant) -> None:
    samples = to.put("Shape", *to.node.inputs, to="samples", start=0, end=1)
    shape = to.put("Concat", samples, to.integers("own", kernel.shape), to="shape", axis=0)
    value = to.store("weight", to.parameters["weight"].astype(kernel.dtype), trained=kernel.trained)
    to.put("Expand", value, shape)


def _matmul(to: To, kernel: MatMul) -> None:
    axes = len(to.output.shape) - 1
    to.put("MatMul", to.aligned(0, axes), to.aligned(1, axes))


def _reduce(op: str) -> Callable[[To, Any], None]:
    def writing(to: To, kernel: Reduce) -> None:
        (x,), axes = to.node.inputs, to.integers("axes", kernel.axes)
        to.put(op, x, axes, keepdims=int(kernel.keepdims))

    return writing


def _arg_max(to: To, kernel: ArgMax) -> None:
    op, keep, last = "ArgMin" if kernel.smallest else "ArgMax", int(kernel.keepdims), int(kernel.last)
    to.put(op, *to.node.inputs, axis=kernel.axis, keepdims=keep, select_last_index=last)


def _top_k(to: To, kernel: TopK | TopKIndices) -> None:
    own, other = to.node.name, to.part("other")
    to.sheet.put(
        "TopK",
        [*to.node.inputs, to.integers("k", [kernel.k])],
        own,
        outputs=(own, other) if isinstance(kernel, TopK) else (other, own),
        axis=kernel.axis,
        largest=int(not kernel.smallest),
    )


def _cumulative_sum(to: To, kernel: CumulativeSum) -> None:
    axis = to.sheet.store(to.part("axis"), np.array(kernel.axis, np.int64))
    to.put("CumSum", *to.node.inputs, axis, exclusive=int(kernel.exclusive), reverse=int(kernel.reverse))


def _concat(to: To, kernel: Concat) -> None:
    to.put("Concat", *to.node.inputs, axis=kernel.axis)


def _reshape(to: To, kernel: Reshape) -> None:
    to.put("Reshape", *to.node.inputs, to.integers("shape", (0, *kernel.shape)))  # 0: the batch, as it is


def _flatten(to: To, kernel: Flatten) -> None:
    to.put("Flatten", *to.node.inputs, axis=1)


def _transpose(to: To, kernel: Transpose) -> None:
    to.put("Transpose", *to.node.inputs, perm=(0, *kernel.axes))


def _slice(to: To, kernel: Slice) -> None:
    bounds = {"start": kernel.start, "stop": kernel.stop, "axis": kernel.axis, "step": kernel.step}
    to.put("Slice", *to.node.inputs, *(to.integers(name, [value]) for name, value in bounds.items()))


def _take(to: To, kernel: Take) -> None:
    to.put("Gather", *to.node.inputs, to.integers("indices", kernel.indices), axis=kernel.axis)


def _resample(to: To, kernel: Resample) -> None:
    rank = len(to.output.shape)
    axis = kernel.axis % rank
    by: dict[str, Any] = {
        "mode": kernel.mode, "coordinate_transformation_mode": kernel.coordinates, "axes": [axis]
    }  # fmt: skip
    if kernel.scale:
        scale = to.sheet.store(to.part("scale"), np.array([kernel.scale], np.float32))
        to.put("Resize", *to.node.inputs, "", scale, **by)
    else:
        to.put("Resize", *to.node.inputs, "", "", to.integers("extent", [kernel.extent]), **by)


def _pad(to: To, kernel: Pad) -> None:
    pads = to.integers("pads", (0, *kernel.before, 0, *kernel.after))
    value = to.sheet.store(to.part("value"), np.array(kernel.value, to.output.dtype))
    to.put("Pad", *to.node.inputs, pads, value)


def _batch_norm(to: To, kernel: BatchNorm) -> None:
    stored = (to.weight(name) for name in ("weight", "bias", "running_mean", "running_variance"))
    to.put("BatchNormalization", *to.node.inputs, *stored, epsilon=kernel.epsilon)


def _instance_norm(to: To, kernel: InstanceNorm) -> None:
    if kernel.affine:
        stored = [to.weight(), to.weight("bias")]
    else:  # constants, which who reads them does not train
        channels = to.output.shape[1]
        stored = [
            to.put("Constant", to=name, value_floats=[value] * channels)
            for name, value in (("ones", 1.0), ("zeros", 0.0))
        ]
    to.put("InstanceNormalization", *to.node.inputs, *stored, epsilon=kernel.epsilon)


def _layer_norm(to: To, kernel: LayerNorm) -> None:
    to.put(
        "LayerNormalization", *to.node.inputs, to.weight(), to.weight("bias"), axis=-1, epsilon=kernel.epsilon
    )


def _response_norm(to: To, kernel: ResponseNorm) -> None:
    to.put("LRN", *to.node.inputs, size=kernel.size, alpha=kernel.alpha, beta=kernel.beta, bias=kernel.bias)


def _embedding(to: To, kernel: Embedding) -> None:
    (tokens,) = to.node.inputs
    if to.specs[0].dtype not in ("int32", "int64"):  # what Gather takes
        tokens = to.put("Cast", tokens, to="tokens", to_type="int64")
    table = to.store("weight", to.parameters["weight"].astype(kernel.dtype))
    to.put("Gather", table, tokens, axis=0)


def _position_embedding(to: To, kernel: PositionEmbedding) -> None:
    to.put("Add", *to.node.inputs, to.weight())


def _attention(to: To, kernel: Attention) -> None:
    _, places, width = to.output.shape
    dtype, size = to.output.dtype, width // kernel.heads
    apart = to.integers("apart", (0, places, kernel.heads, size))
    found = {}
    for number, (name, order) in enumerate((("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3)))):
        first, stop, axis = (
            to.integers(f"{name}.{what}", [value])
            for what, value in (("start", number * width), ("stop", (number + 1) * width), ("axis", 2))
        )
        own = to.put("Slice", *to.node.inputs, first, stop, axis, to=name)
        own = to.put("Reshape", own, apart, to=f"{name}.apart")
        found[name] = to.put("Transpose", own, to=f"{name}.heads", perm=order)
    factor = to.sheet.store(to.part("factor"), np.array(1 / sqrt(size), dtype))
    scores = to.put("MatMul", found["q"], found["k"], to="products")
    scores = to.put("Mul", scores, factor, to="scores")
    if kernel.causal:
        # The least number, not -inf, which some runtimes turn into NaN.
        above = np.triu(np.full((places, places), np.finfo(dtype).min, dtype), 1)
        scores = to.put("Add", scores, to.sheet.store(to.part("mask"), above), to="masked")
    shares = to.put("Softmax", scores, to="probabilities", axis=-1)
    mixed = to.put("MatMul", shares, found["v"], to="mixed")
    mixed = to.put("Transpose", mixed, to="places", perm=(0, 2, 1, 3))
    to.put("Reshape", mixed, to.integers("together", (0, places, width)))


def _recurrent(to: To, kernel: Recurrent) -> None:
    """With transposes around it: layout 1, which has the batch in front, onnxruntime does not know."""
    (x, *begin), (*_, places, features) = to.node.inputs, to.specs[0].shape
    ways, width = kernel.directions, kernel.features
    if len(to.specs[0].shape) > 3:
        x = to.put("Reshape", x, to.integers("sequences", (-1, places, features)), to="together")
    x = to.put("Transpose", x, to="places", perm=(1, 0, 2))
    given = [x, to.weight(), to.weight("recurrent_weight")]
    if kernel.bias:
        both = [to.parameters[name] for name in ("bias", "recurrent_bias")]
        given.append(to.store("bias", np.concatenate(both, axis=1)))
    if begin:
        given += [""] * (5 - len(given))  # no bias, no lengths
        apart = to.integers("directions", (-1, ways, width))
        for number, state in enumerate(begin):
            state = to.put("Reshape", state, apart, to=f"begin{number}.apart")
            given.append(to.put("Transpose", state, to=f"begin{number}", perm=(1, 0, 2)))
    attributes: dict[str, Any] = {"hidden_size": width, "direction": kernel.direction}
    if isinstance(kernel, GRU):
        attributes["linear_before_reset"] = int(kernel.reset_after)
    if isinstance(kernel, RNN):
        attributes["activations"] = [kernel.activation.capitalize()] * ways
    y, cells = to.part("states"), to.part("cells")
    outputs = [y, "", cells] if kernel.places_behind else [y]
    # The operator has the node's name, by which readers call its weights.
    to.sheet.put(kernel.name.upper(), given, y, to.node.name, outputs=outputs, **attributes)
    y = to.put("Transpose", y, to="samples", perm=(2, 0, 1, 3))
    beside = (-1, *to.output.shape[1:-2], places, ways * width)
    if not kernel.places_behind:
        to.put("Reshape", y, to.integers("shape", beside), name="beside")
        return
    y = to.put("Reshape", y, to.integers("shape", beside), to="beside")
    cells = to.put("Transpose", cells, to="last", perm=(1, 0, 2))
    cells = to.put("Reshape", cells, to.integers("one", (*beside[:-2], 1, ways * width)), to="behind")
    to.put("Concat", y, cells, name="all", axis=len(beside) - 2)


WRITINGS: Mapping[type[Kernel], Callable[[To, Any], None]] = {
    Add: _add,
    ArgMax: _arg_max,
    ArcTan: _as("Atan"),
    Arithmetic: _arithmetic,
    ArithmeticNumber: _arithmetic_number,
    ArithmeticWeight: _arithmetic_weight,
    Attention: _attention,
    AveragePool2d: _pool("AveragePool"),
    BatchNorm: _batch_norm,
    Cast: _cast,
    Clip: _clip,
    Compare: _compare,
    CompareNumber: _compare_number,
    Concat: _concat,
    Constant: _constant,
    Conv2d: _conv,
    Conv2dAdd: _conv,
    ConvTranspose2d: _conv_transpose,
    Conv3d: _of_volumes("Conv"),
    ConvTranspose3d: _of_volumes("ConvTranspose"),
    Cos: _as("Cos"),
    CumulativeSum: _cumulative_sum,
    Dense: _dense,
    Dropout: _as("Identity"),
    ELU: _elu,
    Embedding: _embedding,
    Erf: _as("Erf"),
    Exp: _as("Exp"),
    Flatten: _flatten,
    GELU: _gelu,
    GRU: _recurrent,
    GlobalAveragePool2d: _global_average_pool,
    InstanceNorm: _instance_norm,
    LSTM: _recurrent,
    LayerNorm: _layer_norm,
    LeakyReLU: _leaky_relu,
    Log: _as("Log"),
    LogSoftmax: _along("LogSoftmax"),
    MatMul: _matmul,
    MaxPool2d: _pool("MaxPool"),
    Pad: _pad,
    PositionEmbedding: _position_embedding,
    RNN: _recurrent,
    ReLU: _as("Relu"),
    ReduceL2: _reduce("ReduceL2"),
    ReduceMax: _reduce("ReduceMax"),
    ReduceMean: _reduce("ReduceMean"),
    ReduceSum: _reduce("ReduceSum"),
    Resample: _resample,
    Reshape: _reshape,
    ResponseNorm: _response_norm,
    Rounded: _rounded,
    Sigmoid: _as("Sigmoid"),
    Sin: _as("Sin"),
    Slice: _slice,
    Softmax: _along("Softmax"),
    Softplus: _as("Softplus"),
    Sqrt: _as("Sqrt"),
    Take: _take,
    Tanh: _as("Tanh"),
    TopK: _top_k,
    TopKIndices: _top_k,
    Transpose: _transpose,
    Where: _where,
}
"""How each kernel is written; losses are left out, for they are no part of a prediction."""
