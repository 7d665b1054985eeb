"""arg_max, top_k and cumulative_sum: against finite differences; equal elements, what is no number."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_gradients, distinct, normal
from weft.kernels.kernel import ArraySpec, Kernel, Mode
from weft.kernels.ranking import ArgMax, CumulativeSum, TopK, TopKIndices


def computed(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    b = allocate(kernel, x)
    kernel.forward(b, Mode(training=False))
    return b.output


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("smallest", [False, True], ids=["largest", "smallest"])
def test_gradients_of_the_first_equal_finite_differences(axis, smallest):
    check_gradients(TopK(axis, 2, smallest), distinct(2, 5, 4))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("exclusive", [False, True], ids=["inclusive", "exclusive"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_gradients_of_sums_equal_finite_differences(axis, exclusive, reverse):
    check_gradients(CumulativeSum(axis, exclusive, reverse), normal(2, 5, 4))


def test_of_equal_elements_the_first_comes_first():
    x = np.array([[3, 1, 3, 2, 1]], np.float32)
    assert computed(ArgMax(), x).tolist() == [[0]]
    assert computed(ArgMax(last=True, keepdims=False), x).tolist() == [2]
    assert computed(ArgMax(smallest=True), x).tolist() == [[1]]
    assert computed(ArgMax(smallest=True, last=True), x).tolist() == [[4]]
    assert computed(TopKIndices(k=4), x).tolist() == [[0, 2, 3, 1]]
    assert computed(TopKIndices(k=4, smallest=True), x).tolist() == [[1, 4, 3, 0]]


def test_what_is_no_number_is_the_largest_and_found_by_every_arg_max():
    x = np.array([[3, np.nan, 7]], np.float32)
    assert computed(ArgMax(), x).tolist() == [[1]]
    assert computed(ArgMax(smallest=True), x).tolist() == [[1]]
    assert computed(TopKIndices(k=3), x).tolist() == [[1, 2, 0]]
    assert computed(TopKIndices(k=3, smallest=True), x).tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_whole_numbers_stay_whole(dtype):
    """Places, as RoBERTa counts them of a mask; of unsigned ones no negative is taken."""
    x = np.array([[1, 0, 1, 200]], dtype)
    for kernel, wanted in (
        (CumulativeSum(), np.cumsum(x, axis=1, dtype=dtype).tolist()),
        (TopK(k=2), [[200, 1]]),
    ):
        got = computed(kernel, x)
        assert (got.dtype, got.tolist()) == (dtype, wanted)


WRONG = {
    "an axis that is not there": (ArgMax(2), "axis is 2; an input of 2 axes has 1 to 1"),
    "the batch": (CumulativeSum(0), "cumulative_sum: axis is 0"),
    "more than there are": (TopK(k=6), r"top_k: k is 6; axis 1 of \(2, 5\) has 5"),
}


@pytest.mark.parametrize(("kernel", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(kernel, message):
    with pytest.raises(ValueError, match=message):
        kernel.output(ArraySpec((2, 5)))


def test_none_and_sums_of_truths_are_refused():
    with pytest.raises(ValueError, match="k is 0; give at least 1"):
        TopKIndices(k=0)
    with pytest.raises(ValueError, match="bool; put a cast before it"):
        CumulativeSum().output(ArraySpec((2, 5), "bool"))
