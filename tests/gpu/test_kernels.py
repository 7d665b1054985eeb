"""Every kernel's array-module body on CuPy arrays gives what the compiled one gives on NumPy arrays."""

from __future__ import annotations

import numpy as np
import pytest

from weft.kernels.device import choose_device
from weft.kernels.kernel import ArraySpec, Buffers, Mode
from weft.kernels.registry import kernel

IMAGE, ROWS, TOKENS = ArraySpec((4, 6, 10, 9)), ArraySpec((4, 7, 12)), ArraySpec((4, 7), "int32")
STATE, VOLUME = ArraySpec((4, 5)), ArraySpec((2, 4, 5, 6, 7))
CALLS = {
    "dense": (kernel("dense", features=5), (ROWS,)),
    "conv2d": (kernel("conv2d", channels=8, kernel_size=3, stride=2, padding=1, groups=2), (IMAGE,)),
    "conv2d_add": (
        kernel("conv2d_add", channels=6, kernel_size=3, padding=1, relu=True),
        (IMAGE, IMAGE),
    ),
    "conv_transpose2d": (
        kernel(
            "conv_transpose2d", channels=4, kernel_size=3, stride=2, padding=1, output_padding=1, groups=2
        ),
        (IMAGE,),
    ),
    "conv3d": (kernel("conv3d", channels=4, kernel_size=3, stride=(1, 2, 1), padding=1, groups=2), (VOLUME,)),
    "conv_transpose3d": (kernel("conv_transpose3d", channels=3, kernel_size=2, stride=2), (VOLUME,)),
    "max_pool2d": (kernel("max_pool2d", kernel_size=3, stride=2, padding=1), (IMAGE,)),
    "average_pool2d": (kernel("average_pool2d", kernel_size=2), (IMAGE,)),
    "global_average_pool2d": (kernel("global_average_pool2d"), (IMAGE,)),
    "relu": (kernel("relu"), (ROWS,)),
    "gelu": (kernel("gelu"), (ROWS,)),
    "gelu tanh": (kernel("gelu", approximate="tanh"), (ROWS,)),
    "clip": (kernel("clip", minimum=-0.5, maximum=0.5), (ROWS,)),
    "elu": (kernel("elu", alpha=0.7), (ROWS,)),
    "leaky_relu": (kernel("leaky_relu"), (ROWS,)),
    "tanh": (kernel("tanh"), (ROWS,)),
    "sigmoid": (kernel("sigmoid"), (ROWS,)),
    "softplus": (kernel("softplus"), (ROWS,)),
    "exp": (kernel("exp"), (ROWS,)),
    "dropout": (kernel("dropout", rate=0.4), (ROWS,)),
    "batch_norm": (kernel("batch_norm"), (IMAGE,)),
    "instance_norm": (kernel("instance_norm"), (IMAGE,)),
    "instance_norm without weights": (kernel("instance_norm", affine=False), (IMAGE,)),
    "layer_norm": (kernel("layer_norm"), (ROWS,)),
    "attention": (kernel("attention", heads=2), (ROWS,)),
    "lstm": (kernel("lstm", features=5, direction="bidirectional"), (ROWS,)),
    "gru": (kernel("gru", features=5, direction="reverse"), (ROWS,)),
    "gru, first reset": (kernel("gru", features=5, reset_after=False), (ROWS,)),
    "rnn": (kernel("rnn", features=5, direction="bidirectional"), (ROWS,)),
    "lstm, with states and cells": (
        kernel("lstm", features=5, cells=True),
        (ROWS, STATE, STATE),
    ),
    "embedding": (kernel("embedding", entries=9, width=5), (TOKENS,)),
    "position_embedding": (kernel("position_embedding"), (ROWS,)),
    "erf": (kernel("erf"), (ROWS,)),
    "cast": (kernel("cast", dtype="float64"), (ROWS,)),
    "softmax": (kernel("softmax"), (ROWS,)),
    "softmax of channels": (kernel("softmax", axis=1), (IMAGE,)),
    "log_softmax": (kernel("log_softmax"), (ROWS,)),
    "log_softmax of channels": (kernel("log_softmax", axis=1), (IMAGE,)),
    "response_norm": (kernel("response_norm", size=3, alpha=0.3), (IMAGE,)),
    "reduce_sum": (kernel("reduce_sum", axes=[1], keepdims=False), (IMAGE,)),
    "reduce_max": (kernel("reduce_max", axes=[2, 3]), (IMAGE,)),
    "reduce_l2": (kernel("reduce_l2", axes=[2, 3]), (IMAGE,)),
    "reduce_mean": (kernel("reduce_mean", axes=[2, 3]), (IMAGE,)),
    "arg_max": (kernel("arg_max", axis=1, last=True), (IMAGE,)),
    "top_k": (kernel("top_k", axis=1, k=3), (IMAGE,)),
    "top_k_indices": (kernel("top_k_indices", k=3, smallest=True), (ROWS,)),
    "cumulative_sum": (kernel("cumulative_sum", axis=1, exclusive=True), (ROWS,)),
    "arithmetic": (kernel("arithmetic", operator="mul"), (ROWS, ArraySpec((4, 12)))),
    "arithmetic_weight": (kernel("arithmetic_weight", operator="div", shape=[6, 1, 1]), (IMAGE,)),
    "arithmetic_number": (kernel("arithmetic_number", operator="pow", value=2.0), (ROWS,)),
    "arithmetic, the larger": (kernel("arithmetic", operator="max"), (ROWS, ArraySpec((4, 12)))),
    "sin": (kernel("sin"), (ROWS,)),
    "cos": (kernel("cos"), (ROWS,)),
    "arctan": (kernel("arctan"), (ROWS,)),
    "rounded": (kernel("rounded"), (ROWS,)),
    "rounded up": (kernel("rounded", to="above"), (ROWS,)),
    "compare": (kernel("compare", operator="less"), (ROWS, ROWS)),
    "compare_number": (kernel("compare_number", operator="greater", value=0.5), (ROWS,)),
    "where": (kernel("where"), (ArraySpec(ROWS.shape, "bool"), ROWS, ROWS)),
    "constant": (kernel("constant", shape=[3, 2]), (ROWS,)),
    "matmul": (kernel("matmul"), (ROWS, ArraySpec((4, 12, 3)))),
    "transpose": (kernel("transpose", axes=[2, 3, 1]), (IMAGE,)),
    "slice": (kernel("slice", axis=2, start=1, stop=8, step=3), (IMAGE,)),
    "pad": (kernel("pad", before=[0, 1, 2], after=[1, 0, 2], value=0.5), (IMAGE,)),
    "resample": (kernel("resample", axis=2, extent=7, mode="cubic"), (IMAGE,)),
    "take": (kernel("take", axis=1, indices=[4, 0, 4]), (IMAGE,)),
    "add": (kernel("add"), (ROWS, ROWS)),
    "concat": (kernel("concat", axis=1), (ROWS, ROWS)),
    "softmax_cross_entropy": (kernel("softmax_cross_entropy"), (ROWS, TOKENS)),
    "binary_cross_entropy": (kernel("binary_cross_entropy"), (ROWS, ROWS)),
    "mean_squared_error": (kernel("mean_squared_error"), (ROWS, ROWS)),
    "absolute_error": (kernel("absolute_error"), (ROWS, ROWS)),
    "huber": (kernel("huber", delta=0.7), (ROWS, ROWS)),
}


@pytest.mark.parametrize(("made", "inputs"), CALLS.values(), ids=CALLS)
def test_a_kernel_computes_the_same_on_both(made, inputs):
    results = []
    for device in (choose_device("cpu", 0), choose_device("cuda", 0)):
        device.activate()
        random = np.random.default_rng(11)

        def array(spec, device=device, random=random):
            whole = np.dtype(spec.dtype).kind in "iu"
            drawn = random.integers(0, 9, spec.shape) if whole else random.standard_normal(spec.shape)
            return device.to_device(drawn.astype(spec.dtype))

        def empty(spec, device=device):
            return device.zeros(spec.shape, spec.dtype)

        output = made.output(*inputs)
        parameters = [ArraySpec(p.shape) for p in made.parameters(*inputs)]
        floats = [np.dtype(spec.dtype).kind == "f" for spec in inputs]
        wanted = [
            f and (made.differentiable is None or i in made.differentiable) for i, f in enumerate(floats)
        ]
        b = Buffers(
            inputs=tuple(array(spec) for spec in inputs),
            output=empty(output),
            parameters=tuple(array(spec) for spec in parameters),
            saved=tuple(empty(spec) for spec in made.saved(*inputs)),
            scratch=tuple(empty(spec) for spec in (*made.scratch(*inputs), *made.gradient_scratch(*inputs))),
            output_gradient=array(output),
            input_gradients=tuple(empty(spec) if w else None for spec, w in zip(inputs, wanted, strict=True)),
            weight_gradients=tuple(empty(spec) for spec in parameters),
            key=3,
        )
        mode = Mode(training=True, seed=77)
        made.forward(b, mode)
        if not made.passes_gradient:
            made.input_gradient(b, mode)
        made.weight_gradient(b, mode)
        found = [b.output, *b.weight_gradients, *(g for g in b.input_gradients if g is not None)]
        results.append([device.to_host(value) for value in found])
    for cpu, gpu in zip(*results, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=2e-4, atol=2e-5)
