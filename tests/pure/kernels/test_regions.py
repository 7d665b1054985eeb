"""Regions of an output, one by one: together the whole, from what they say they need and nothing else."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure.kernels.checks import NAN, allocate, close, normal, oracle_only, spec
from weft.kernels.activation import GELU, Dropout, ReLU, Sigmoid, Softplus, Tanh
from weft.kernels.arithmetic import Arithmetic, ArithmeticNumber, ArithmeticWeight, Constant
from weft.kernels.attention import Attention
from weft.kernels.batch_norm import BatchNorm, InstanceNorm
from weft.kernels.choice import Compare, CompareNumber, Where
from weft.kernels.conv import Conv2d, Conv2dAdd
from weft.kernels.conv3d import Conv3d, ConvTranspose3d
from weft.kernels.conv_transpose import ConvTranspose2d
from weft.kernels.embedding import Embedding, PositionEmbedding
from weft.kernels.function import ArcTan, Cast, Cos, Erf, Exp, Log, Rounded, Sin, Sqrt
from weft.kernels.kernel import Kernel, Mode, Region
from weft.kernels.label_loss import BinaryCrossEntropy
from weft.kernels.layer_norm import LayerNorm
from weft.kernels.linear import Dense
from weft.kernels.loss import SoftmaxCrossEntropy
from weft.kernels.matmul import MatMul
from weft.kernels.piecewise import ELU, Clip, LeakyReLU
from weft.kernels.pool import AveragePool2d, GlobalAveragePool2d, MaxPool2d
from weft.kernels.probability import LogSoftmax, Softmax
from weft.kernels.ranking import ArgMax, CumulativeSum, TopK, TopKIndices
from weft.kernels.rearrange import Pad, Slice, Take, Transpose
from weft.kernels.recurrent import GRU, LSTM, RNN
from weft.kernels.reduce import ReduceL2, ReduceMax, ReduceMean, ReduceSum
from weft.kernels.region import reshaped
from weft.kernels.registry import KERNELS
from weft.kernels.resample import Resample
from weft.kernels.response_norm import ResponseNorm
from weft.kernels.shape import Add, Concat, Flatten, Reshape
from weft.kernels.value_loss import AbsoluteError, Huber, MeanSquaredError


def cut_up(kernel: Kernel, parts: int, *inputs: np.ndarray) -> list[Region]:
    """The output in about `parts` parts along every axis that the kernel's split names."""
    specs = [spec(each) for each in inputs]
    ways: list[list[slice]] = [[own] for own in kernel.output(*specs).region]
    for split in kernel.split(*specs):
        if split.axis > 0:
            step = split.granule if split.extent >= 2 * split.granule else 1  # a head of attention is one
            edges = {split.extent * k // parts // step * step for k in range(parts)} | {split.extent}
            ways[split.axis - 1] = [slice(*edge) for edge in pairwise(sorted(edges))]
    return list(product(*ways))


def check_regions(kernel: Kernel, parts: int, *inputs: np.ndarray, tolerance: float = 0.0) -> None:
    """Each part of the output alone: the whole's, from an input that is NaN where it is not needed."""
    specs = [spec(each) for each in inputs]
    mode = Mode(training=False)
    whole = allocate(kernel, *inputs)
    kernel.forward(whole, mode)
    regions = cut_up(kernel, parts, *inputs)
    done = np.zeros(whole.output.shape, int)
    for region in regions:
        needs = kernel.needs(region, *specs)
        seen = []
        for x, need in zip(inputs, needs, strict=True):
            only = np.full_like(x, {"f": NAN, "b": True}.get(x.dtype.kind, 77))
            only[:, *need] = x[:, *need]
            seen.append(only)
        b = allocate(kernel, *seen)
        kernel.forward_region(b, mode, region)
        at = (slice(None), *region)
        done[at] += 1
        close(f"{kernel}, {region}", b.output[at], whole.output[at], tolerance)
        if not kernel.view and b.output.dtype.kind == "f":
            outside = np.ones(b.output.shape, bool)
            outside[at] = False
            assert np.isnan(b.output[outside]).all(), f"{kernel}: {region} reaches further"
    assert (done == 1).all()


IMAGES, PLACES = (2, 6, 9, 7), (2, 6, 12)
CASES: dict[str, tuple[Kernel, tuple[tuple[int, ...], ...]]] = {
    "conv2d": (Conv2d(7, 3, padding=1), (IMAGES,)),
    "conv2d, strided": (Conv2d(5, 3, stride=2, padding=(0, 1, 2, 0)), (IMAGES,)),
    "conv2d, dilated": (Conv2d(5, (3, 2), dilation=(2, 1), padding=2), (IMAGES,)),
    "conv2d, rows that see padding alone": (Conv2d(2, 3, padding=4), ((1, 1, 3, 3),)),
    "conv2d, a row that sees nothing and steps over it": (Conv2d(2, 2, stride=5, padding=3), ((1, 2, 3, 4),)),
    "conv2d, groups": (Conv2d(6, 3, groups=3, bias=False), (IMAGES,)),
    "conv2d, depthwise": (Conv2d(12, 3, padding=1, groups=6), (IMAGES,)),
    "conv2d, 1x1": (Conv2d(9, 1), (IMAGES,)),
    "conv2d, rectified": (Conv2d(9, 3, relu=True), (IMAGES,)),
    "conv2d, 1x1 strided": (Conv2d(9, 1, stride=2), (IMAGES,)),
    "conv2d_add": (Conv2dAdd(7, 3, padding=1), (IMAGES, (2, 7, 9, 7))),
    "conv2d_add, 1x1 rectified": (Conv2dAdd(9, 1, relu=True), (IMAGES, (2, 9, 9, 7))),
    "conv_transpose2d": (ConvTranspose2d(5, 3, stride=2), (IMAGES,)),
    "conv3d": (Conv3d(5, 3, stride=(2, 1, 1), padding=1, dilation=(2, 1, 1)), ((2, 4, 9, 5, 6),)),
    "conv3d, layers that see padding alone": (Conv3d(2, 2, stride=3, padding=4), ((1, 2, 3, 4, 3),)),
    "conv_transpose3d": (ConvTranspose3d(5, 3, stride=2), ((2, 4, 3, 5, 4),)),
    "max_pool2d": (MaxPool2d(3, stride=2, padding=1), (IMAGES,)),
    "max_pool2d, apart": (MaxPool2d(2, stride=3), (IMAGES,)),
    "max_pool2d, rows of several vectors": (MaxPool2d(3, stride=2, padding=1), ((2, 3, 39, 70),)),
    "average_pool2d": (AveragePool2d(3, stride=1, padding=(1, 0, 2, 1)), (IMAGES,)),
    "average_pool2d, padding counts": (AveragePool2d(2, padding=1, count_include_pad=True), (IMAGES,)),
    "average_pool2d, rows of several vectors": (AveragePool2d(3, stride=1, padding=1), ((2, 3, 19, 40),)),
    "average_pool2d, the whole image": (AveragePool2d(IMAGES[2:]), (IMAGES,)),
    "global_average_pool2d": (GlobalAveragePool2d(), (IMAGES,)),
    "relu": (ReLU(), (IMAGES,)),
    "clip": (Clip(0, 6), (IMAGES,)),
    "leaky_relu": (LeakyReLU(), (IMAGES,)),
    "elu": (ELU(), (IMAGES,)),
    "gelu": (GELU(), (IMAGES,)),
    "tanh": (Tanh(), (PLACES,)),
    "sigmoid": (Sigmoid(), (IMAGES,)),
    "softplus": (Softplus(), (IMAGES,)),
    "sqrt": (Sqrt(), (IMAGES,)),
    "exp": (Exp(), (IMAGES,)),
    "log": (Log(), (IMAGES,)),
    "sin": (Sin(), (IMAGES,)),
    "cos": (Cos(), (IMAGES,)),
    "arctan": (ArcTan(), (IMAGES,)),
    "rounded": (Rounded(), (IMAGES,)),
    "erf": (Erf(), (IMAGES,)),
    "cast": (Cast("float32"), (IMAGES,)),
    "dropout": (Dropout(0.5), (IMAGES,)),
    "softmax": (Softmax(2), (IMAGES,)),
    "softmax, all features": (Softmax(), ((3, 12),)),
    "log_softmax": (LogSoftmax(2), (IMAGES,)),
    "add": (Add(), (IMAGES,) * 3),
    "add, one input": (Add(), (IMAGES,)),
    "arithmetic": (Arithmetic("mul"), (IMAGES, (2, 6, 1, 1))),
    "arithmetic, both broadcast": (Arithmetic("sub"), ((2, 6, 1, 5), (2, 3, 1))),
    "arithmetic_weight": (ArithmeticWeight("add", (6, 1, 1)), (IMAGES,)),
    "arithmetic_weight, fewer axes": (ArithmeticWeight("mul", (1, 7), reverse=True), (IMAGES,)),
    "arithmetic_number": (ArithmeticNumber("pow", 2.0), (IMAGES,)),
    "arithmetic, the larger": (Arithmetic("max"), (IMAGES, (2, 6, 1, 1))),
    "compare": (Compare("less"), (IMAGES, (2, 9, 1))),
    "compare_number": (CompareNumber("greater", 0.5), (IMAGES,)),
    "where": (Where(), (IMAGES, (2, 6, 1, 1), (2, 9, 7))),
    "constant": (Constant((3, 4)), (PLACES,)),
    "matmul": (MatMul(), ((2, 3, 4, 5), (2, 3, 5, 6))),
    "matmul, broadcast": (MatMul(), ((2, 4, 5), (2, 3, 1, 5, 6))),
    "reduce_mean": (ReduceMean((2,)), (PLACES,)),
    "reduce_sum": (ReduceSum((1,)), (PLACES,)),
    "reduce_max": (ReduceMax((2, 3), keepdims=False), (IMAGES,)),
    "reduce_l2": (ReduceL2((1,)), (IMAGES,)),
    "dense": (Dense(100), (PLACES,)),
    "dense, features alone": (Dense(150, bias=False), ((1, 9),)),
    "arg_max": (ArgMax(1), (PLACES,)),
    "top_k": (TopK(k=3), (PLACES,)),
    "top_k_indices": (TopKIndices(1, k=3), (PLACES,)),
    "cumulative_sum": (CumulativeSum(1), (PLACES,)),
    "concat": (Concat(), ((2, 3, 5, 4), (2, 1, 5, 4), (2, 4, 5, 4))),
    "concat, the last axis": (Concat(-1), ((2, 3, 5), (2, 3, 2))),
    "reshape": (Reshape((2, 3, -1, 7)), (IMAGES,)),
    "flatten": (Flatten(), (IMAGES,)),
    "transpose": (Transpose((3, 1, 2)), (IMAGES,)),
    "slice": (Slice(2, 1, 8, 3), (IMAGES,)),
    "take": (Take(-1, (4, 0, 4, 2)), (IMAGES,)),
    "pad": (Pad((2, 1, 0), (0, 3, 1), 0.5), (IMAGES,)),
    "pad, regions of padding alone": (Pad((9, 0, 7), (7, 0, 9)), ((2, 1, 3, 1),)),
    "resample": (Resample(2, 14), (IMAGES,)),
    "resample, the last axis": (Resample(-1, 3, "cubic"), (IMAGES,)),
    "batch_norm": (BatchNorm(), (IMAGES,)),
    "batch_norm of features": (BatchNorm(), ((4, 9),)),
    "instance_norm": (InstanceNorm(), (IMAGES,)),
    "instance_norm without weights": (InstanceNorm(affine=False), (IMAGES,)),
    "layer_norm": (LayerNorm(), (PLACES,)),
    "response_norm": (ResponseNorm(3, 0.5), (IMAGES,)),
    "attention": (Attention(2), (PLACES,)),
    "attention, causal": (Attention(2, causal=True), (PLACES,)),
    "lstm": (LSTM(5, "reverse"), (PLACES,)),
    "lstm, both directions": (LSTM(5, "bidirectional"), (PLACES,)),
    "lstm, both directions, with cells": (LSTM(5, "bidirectional", cells=True), (PLACES,)),
    "gru, both directions": (GRU(5, "bidirectional"), (PLACES,)),
    "rnn, both directions, with states": (RNN(5, "bidirectional"), (PLACES, (PLACES[0], 10))),
    "embedding": (Embedding(11, 8), ((3, 5),)),
    "position_embedding": (PositionEmbedding(), (PLACES,)),
    "softmax_cross_entropy": (SoftmaxCrossEntropy(), ((3, 5), (3,))),
    "binary_cross_entropy": (BinaryCrossEntropy(), ((3, 5), (3, 5))),
    "mean_squared_error": (MeanSquaredError(), ((3, 5), (3, 5))),
    "absolute_error": (AbsoluteError(), ((3, 5), (3, 5))),
    "huber": (Huber(0.7), ((3, 5), (3, 5))),
}
# BLAS takes the sums of a part in another order; softmax of a single column does as that of rows.
ROUNDED = ("matmul", "dense", "attention", "softmax", "log_softmax", "resample")


def inputs(kernel: Kernel, shapes: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    found = [normal(*shape, dtype="float32", seed=place) for place, shape in enumerate(shapes)]
    if kernel.name == "embedding":
        return [np.abs(found[0] * 3).astype("int64")]
    if kernel.name == "softmax_cross_entropy":
        return [found[0], np.abs(found[1]).astype("int64")]
    if kernel.name == "where":
        return [found[0] > 0, *found[1:]]
    return [np.abs(found[0])] if kernel.name in ("sqrt", "log") else found


@pytest.mark.parametrize("oracle", [False, True], ids=["compiled", "array module"])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "shapes"), CASES.values(), ids=CASES)
def test_regions_are_the_whole(kernel, shapes, parts, oracle):
    tolerance = 2e-6 if kernel.name in ROUNDED or oracle else 0.0
    if not oracle:
        check_regions(kernel, parts, *inputs(kernel, shapes), tolerance=tolerance)
        return
    with oracle_only():
        check_regions(kernel, parts, *inputs(kernel, shapes), tolerance=tolerance)


@st.composite
def windows(draw):
    """A convolution and an image that it fits."""
    sizes = st.tuples(*[st.integers(1, 4)] * 2)
    kernel, stride, dilation = draw(sizes), draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(sizes)
    padding = draw(st.tuples(*[st.integers(0, 5)] * 4))
    extents = [
        draw(st.integers(max(1, (k - 1) * d + 1 - before - after), 16))
        for k, d, before, after in zip(kernel, dilation, padding[:2], padding[2:], strict=True)
    ]
    groups = draw(st.integers(1, 3))
    conv = Conv2d(groups * draw(st.integers(1, 9)), kernel, stride, padding, dilation, groups)
    return conv, (draw(st.integers(1, 2)), groups * draw(st.integers(1, 3)), *extents)


@given(case=windows(), parts=st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_regions_of_any_convolution_are_the_whole(case, parts):
    kernel, shape = case
    check_regions(kernel, parts, *inputs(kernel, (shape,)))


@given(case=windows(), parts=st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_regions_of_any_pool_are_the_whole(case, parts):
    conv, shape = case
    padding = tuple(min(pad, k - 1) for pad, k in zip(conv.padding, 2 * conv.kernel_size, strict=True))
    if any(
        k > extent + before + after
        for k, extent, before, after in zip(
            conv.kernel_size, shape[2:], padding[:2], padding[2:], strict=True
        )
    ):
        return
    for kernel in (MaxPool2d, AveragePool2d):
        pool = kernel(conv.kernel_size, conv.stride, padding)
        check_regions(pool, parts, *inputs(pool, (shape,)))


@given(data=st.data())
def test_a_reshaped_region_holds_its_elements_and_cut_channels_keep_the_rows(data):
    into = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    shape = data.draw(st.sampled_from([(-1,), *permutations_of_groups(into)]))
    numbers = np.arange(np.prod(into)).reshape(into)
    seen = numbers.reshape(shape)
    region = tuple(
        slice(first := data.draw(st.integers(0, extent - 1)), data.draw(st.integers(first + 1, extent)))
        for extent in seen.shape
    )
    found = numbers[reshaped(region, seen.shape, into)]
    assert set(seen[region].flat) <= set(found.flat)


def permutations_of_groups(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes that come of it by folding neighbours, and by ones put between."""
    folded = [
        (*shape[:i], int(np.prod(shape[i:j])), *shape[j:])
        for i in range(len(shape))
        for j in range(i + 1, len(shape) + 1)
    ]
    return [*folded, *((*each, 1) for each in folded), *((each[0], 1, *each[1:]) for each in folded)]


SHAPES = {
    "channels in groups leave rows alone": (
        (8, 5, 7), (2, 4, 5, 7), [(2, 4), (1, 3), (0, 7)], [(0, 1), (2, 4), (1, 3), (0, 7)],
    ),
    "channels of two groups": ((8, 5), (2, 4, 5), [(2, 6), (1, 3)], [(0, 2), (0, 4), (1, 3)]),
    "features of a flat image": ((12,), (3, 2, 2), [(4, 8)], [(1, 2), (0, 2), (0, 2)]),
    "features within a row": ((12,), (3, 2, 2), [(5, 7)], [(1, 2), (0, 2), (0, 2)]),
    "one pixel": ((12,), (3, 2, 2), [(7, 8)], [(1, 2), (1, 2), (1, 2)]),
    "axes of extent 1": ((6, 1, 1), (6,), [(1, 3), (0, 1), (0, 1)], [(1, 3)]),
    "nothing": ((6,), (3, 2), [(2, 2)], [(0, 0), (0, 0)]),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "into", "region", "found"), SHAPES.values(), ids=SHAPES)
def test_a_region_under_another_shape(shape, into, region, found):
    assert reshaped(tuple(slice(*each) for each in region), shape, into) == tuple(
        slice(*each) for each in found
    )


UNCUT = {
    "columns of images": (Conv2d(4, 3), (IMAGES,), [(0, 4), (0, 7), (0, 2)]),
    "the channels that a norm looks across": (ResponseNorm(3), (IMAGES,), [(0, 3), (0, 9), (0, 7)]),
    "rows that are normalised": (InstanceNorm(), (IMAGES,), [(0, 6), (0, 4), (0, 7)]),
    "features that are normalised": (LayerNorm(), (PLACES,), [(0, 6), (0, 3)]),
    "probabilities of one sum": (Softmax(), (PLACES,), [(0, 6), (0, 3)]),
    "places of a dense layer": (Dense(4), (PLACES,), [(0, 3), (0, 4)]),
    "half a head": (Attention(2), (PLACES,), [(0, 6), (0, 1)]),
    "half a direction": (LSTM(4, "bidirectional"), (PLACES,), [(0, 6), (0, 6)]),
    "places that follow each other": (GRU(4), (PLACES,), [(0, 3), (0, 4)]),
    "an axis that is resampled": (Resample(2, 14), (IMAGES,), [(0, 6), (0, 4), (0, 7)]),
    "a mean": (ReduceMean((2,)), (PLACES,), [(0, 3), (0, 1)]),
}  # fmt: skip


@pytest.mark.parametrize(("kernel", "shapes", "region"), UNCUT.values(), ids=UNCUT)
def test_a_cut_that_a_kernel_cannot_make_is_refused(kernel, shapes, region):
    b = allocate(kernel, *inputs(kernel, shapes))
    with pytest.raises(ValueError, match=f"{kernel.name}: .*slice"):
        kernel.forward_region(b, Mode(training=False), tuple(slice(*each) for each in region))


def test_every_kernel_is_cut():
    assert {kernel.name for kernel, _ in CASES.values()} == set(KERNELS)
