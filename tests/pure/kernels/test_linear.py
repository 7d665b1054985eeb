"""dense: three products, and blocks of output neurons that equal the whole's rows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, check_oracle, normal, run
from weft.kernels.kernel import ArraySpec, Mode
from weft.kernels.linear import Dense

SHAPES = {
    "a batch of vectors": (5, 7),
    "one sample": (1, 3),
    "a sequence": (2, 3, 4),
    "two inner axes": (2, 2, 3, 5),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
bias = pytest.mark.parametrize("bias", [True, False], ids=["with bias", "without bias"])


@shapes
@bias
def test_gradients_equal_finite_differences(shape, bias):
    check_gradients(Dense(6, bias), normal(*shape))


@shapes
@bias
def test_equals_pytorch(shape, bias):
    torch = pytest.importorskip("torch")
    check_against(Dense(6, bias), torch.nn.functional.linear, normal(*shape))


def test_equals_its_oracle():
    check_oracle(Dense(6), normal(5, 7))


@pytest.mark.parametrize("rows", [slice(0, 4), slice(3, 9), slice(8, 13)], ids=["first", "middle", "last"])
def test_a_block_of_neurons_equals_the_rows_of_the_whole(rows):
    kernel = Dense(13)
    x = np.random.default_rng(0).integers(-4, 5, (10, 7)).astype("float32")  # integers: sums are exact
    b = allocate(kernel, x)
    b.output_gradient[...] = np.random.default_rng(1).integers(-4, 5, b.output.shape)
    run(kernel, b)
    whole = [each.copy() for each in b.weight_gradients]
    for each in b.weight_gradients:
        each.fill(np.nan)
    kernel.weight_gradient(b, Mode(), rows)
    for block, expected in zip(b.weight_gradients, whole, strict=True):
        np.testing.assert_array_equal(block[rows], expected[rows])
        assert np.isnan(np.delete(block, np.r_[rows], axis=0)).all()


def test_an_unwanted_input_gradient_is_not_computed():
    kernel = Dense(3)
    b = allocate(kernel, normal(2, 4))
    b.input_gradients = (None,)
    run(kernel, b)


def test_cost_counts_a_multiply_and_an_add_for_every_weight_and_sample():
    cost = Dense(10, bias=False).cost(ArraySpec((32, 20)))
    assert cost.forward_flops == cost.input_gradient_flops == cost.weight_gradient_flops == 2 * 32 * 20 * 10


def test_an_input_without_features_is_refused_by_shape():
    with pytest.raises(ValueError, match=r"dense: input has shape \(5,\)"):
        Dense(3).output(ArraySpec((5,)))


def test_no_features_are_refused():
    with pytest.raises(ValueError, match="features is 0"):
        Dense(0)
