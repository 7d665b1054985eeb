"""dense: three products, and blocks of output neurons that equal the whole's rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.pure.kernels.checks import (
    allocate,
    check_against,
    check_gradients,
    check_oracle,
    check_rows,
    normal,
    run,
)
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


CUTS = {"thirds": [5, 9], "single neurons": list(range(1, 13)), "the last alone": [12]}
cuts = pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())


@cuts
@bias
def test_blocks_of_neurons_equal_the_whole_to_the_bit_where_sums_are_exact(cuts, bias):
    check_rows(Dense(13, bias), cuts, np.random.default_rng(0).integers(-4, 5, (10, 7)))


# BLAS adds up in another order at the edge of a block: 1000 terms of about 1 each, in 24 or 53 bits.
@pytest.mark.parametrize("cuts", [[48, 96], [7, 50]], ids=["multiples of the granule", "others"])
@pytest.mark.parametrize("shape", [(64, 200), (4, 100, 1000)], ids=["few samples", "a sequence"])
def test_blocks_of_neurons_equal_the_whole_within_rounding(cuts, shape):
    check_rows(Dense(150), cuts, normal(*shape), tolerances=(1e-5, 1e-14))


def test_a_block_of_neurons_is_written_in_place_without_a_copy():
    kernel, rows = Dense(1024), slice(256, 512)
    b = run(kernel, allocate(kernel, normal(1024, 512, dtype="float32")))
    tracemalloc.start()
    kernel.forward(b, Mode(), rows)
    kernel.weight_gradient(b, Mode(), rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Adding the bias takes buffers of 8192 elements.
    assert peak < 2**17, f"{peak} bytes; the block of the output has {1024 * 256 * 4}"


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
