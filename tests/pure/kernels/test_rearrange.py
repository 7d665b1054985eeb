"""transpose, slice, take and pad, and the reductions: against NumPy and finite differences."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, normal, run
from weft.kernels.kernel import ArraySpec
from weft.kernels.rearrange import Pad, Slice, Take, Transpose
from weft.kernels.reduce import ReduceL2, ReduceMax, ReduceMean, ReduceSum

CASES = {
    **{
        f"transpose {axes}": (Transpose(axes), lambda x, a=axes: x.transpose(0, *a))
        for axes in permutations((1, 2, 3))
    },
    "slice a channel": (Slice(1, 1, 2), lambda x: x[:, 1:2]),
    "slice by steps": (Slice(-1, 0, 5, 2), lambda x: x[..., 0:5:2]),
    "slice by steps that end early": (Slice(3, 1, 4, 2), lambda x: x[..., 1:4:2]),
    "take backwards": (Take(2, (3, 2, 0)), lambda x: x[:, :, [3, 2, 0]]),
    "take one twice": (Take(-1, (1, 1, 4)), lambda x: x[..., [1, 1, 4]]),
    "pad on all sides": (
        Pad((1, 0, 2), (0, 3, 1), 0.5),
        lambda x: np.pad(x, ((0, 0), (1, 0), (0, 3), (2, 1)), constant_values=0.5),
    ),
    "pad with nothing": (Pad([0, 0, 0], [0, 0, 0]), lambda x: x),
    "sum of pixels": (ReduceSum((2, 3)), lambda x: x.sum(axis=(2, 3), keepdims=True)),
    "sum that drops its axis": (ReduceSum((-2,), keepdims=False), lambda x: x.sum(axis=2)),
    "largest of pixels": (ReduceMax((2, 3)), lambda x: x.max(axis=(2, 3), keepdims=True)),
    "largest that drops its axis": (ReduceMax((1,), keepdims=False), lambda x: x.max(axis=1)),
    "length of pixels": (ReduceL2((2, 3)), lambda x: np.sqrt((x * x).sum(axis=(2, 3), keepdims=True))),
    "length that drops its axis": (ReduceL2((-1,), keepdims=False), lambda x: np.linalg.norm(x, axis=3)),
    "mean of pixels": (ReduceMean((2, 3)), lambda x: x.mean(axis=(2, 3), keepdims=True)),
    "mean that drops its axis": (ReduceMean((-2,), keepdims=False), lambda x: x.mean(axis=2)),
    "mean of everything": (ReduceMean([1, 2, 3], keepdims=False), lambda x: x.mean(axis=(1, 2, 3))),
}


@pytest.mark.parametrize(("kernel", "wanted"), CASES.values(), ids=CASES)
def test_values_and_gradients(kernel, wanted):
    x = normal(2, 3, 4, 5)
    b = run(kernel, allocate(kernel, x))
    np.testing.assert_allclose(b.output, wanted(x))
    check_gradients(kernel, x)


TAKEN = {
    "each twice": np.repeat(np.arange(6), 2),
    "one many times": np.zeros(9, int),
    "two many times, by turns": np.tile([4, 1], 8),
    "a mirror": np.array([2, 1, 0, 1, 2, 3, 4, 5, 4, 3]),
    "backwards": np.arange(5, -1, -1),
    "backwards, some left out": np.array([4, 2, 0]),
    "all twice, the second time backwards": np.array([0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]),
    "one of them": np.array([3]),
    **{
        f"at random, number {seed}": np.random.default_rng(seed).integers(0, 6, 3 + 5 * seed)
        for seed in range(6)
    },
}


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("indices", TAKEN.values(), ids=TAKEN)
def test_what_was_taken_often_has_the_sum_of_the_gradients(indices, axis):
    kernel, x = Take(axis, tuple(indices.tolist())), normal(2, 6, 6)
    b = run(kernel, allocate(kernel, x))
    wanted = np.zeros_like(x)
    np.add.at(np.moveaxis(wanted, axis, 0), indices, np.moveaxis(b.output_gradient, axis, 0))
    np.testing.assert_allclose(b.input_gradients[0], wanted, rtol=1e-12, atol=1e-12)


def test_largest_elements_share_the_gradient_as_pytorchs():
    torch = pytest.importorskip("torch")
    x = np.array([[[2.0, 2.0, 1.0], [0.0, 2.0, 2.0]]])
    for axes in ((1, 2), (1,), (2,)):
        check_against(ReduceMax(axes), lambda x, axes=axes: torch.amax(x, axes, keepdim=True), x)


def test_a_length_of_0_has_no_slope():
    """Half of 0 by 0 is what the root of the sum of squares would give: no number."""
    b = run(ReduceL2((1,)), allocate(ReduceL2((1,)), np.zeros((2, 3), "float32")))
    np.testing.assert_array_equal(b.output, 0)
    np.testing.assert_array_equal(b.input_gradients[0], 0)


WRONG = {
    "transposing the batch": (lambda: Transpose((0, 1)), "give each of 1 to 2 once"),
    "a transpose of another rank": (lambda: Transpose((2, 1)).output(ArraySpec((2, 3))), "do not fit"),
    "an empty slice": (lambda: Slice(1, 2, 2), "holds nothing"),
    "a slice backwards": (lambda: Slice(1, 0, 2, -1), "holds nothing"),
    "a slice that ends outside": (lambda: Slice(1, 0, 4).output(ArraySpec((2, 3))), "axis 1 of .* ends at 3"),
    "a slice of the batch": (lambda: Slice(0, 0, 1).output(ArraySpec((2, 3))), "slice: axis 0"),
    "taking nothing": (lambda: Take(1, ()), "give at least one"),
    "taking what is not there": (lambda: Take(1, (0, 3)).output(ArraySpec((2, 3))), "index 3 of axis 1"),
    "the mean of the batch": (lambda: ReduceMean((0,)).output(ArraySpec((2, 3))), "axes are"),
    "the mean of an axis twice": (lambda: ReduceMean((1, -1)).output(ArraySpec((2, 3))), "axes are"),
    "the mean of nothing": (lambda: ReduceMean(()).output(ArraySpec((2, 3))), "axes are"),
    "the largest of the batch": (lambda: ReduceMax((0,)).output(ArraySpec((2, 3))), "reduce_max: axes are"),
    "a negative pad": (lambda: Pad((0, -1), (0, 0)), "0 or more, for each axis behind the batch"),
    "a pad of half an element": (lambda: Pad((0.5,), (0,)), "0 or more, for each axis behind the batch"),
    "a pad by what the input cannot hold": (
        lambda: Pad((1,), (0,), -1).output(ArraySpec((2, 3), "uint8")),
        "value is -1, and the input uint8; give one from 0 to 255",
    ),
    "a pad of unequal axes": (lambda: Pad((0, 1), (0,)), "0 or more, for each axis behind the batch"),
    "a pad of other axes": (lambda: Pad((1,), (1,)).output(ArraySpec((2, 3, 4))), "for 1 axes behind"),
    "a pad of tokens with a fraction": (
        lambda: Pad((1,), (1,), 0.5).output(ArraySpec((2, 3), "int32")),
        "pad: an input is .* int32",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
