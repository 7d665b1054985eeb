"""matmul: against NumPy sample by sample, finite differences and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, normal, run
from weft.kernels.kernel import ArraySpec
from weft.kernels.matmul import MatMul

SHAPES = {
    "matrices": ((3, 2, 4), (3, 4, 5)),
    "heads": ((2, 3, 4, 5), (2, 3, 5, 2)),
    "one matrix for all heads": ((2, 3, 4, 5), (2, 5, 2)),
    "both broadcast": ((2, 3, 1, 4, 5), (2, 1, 2, 5, 2)),
}
shapes = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


@shapes
def test_products_and_gradients(shapes):
    a, b = (normal(*shape, seed=seed) for seed, shape in enumerate(shapes))
    found = run(MatMul(), allocate(MatMul(), a, b))
    np.testing.assert_allclose(found.output, [x @ y for x, y in zip(a, b, strict=True)], atol=1e-12)
    check_gradients(MatMul(), a, b)


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    check_against(MatMul(), torch.matmul, normal(2, 3, 4, 5), normal(2, 3, 5, 6, seed=1))


def test_a_gradient_that_nobody_wants_is_left_out():
    b = allocate(MatMul(), normal(2, 3, 4), normal(2, 4, 5, seed=1))
    b.input_gradients = (None, b.input_gradients[1])
    run(MatMul(), b)
    np.testing.assert_allclose(b.input_gradients[1], b.inputs[0].swapaxes(1, 2) @ b.output_gradient)


WRONG = {
    "rows and columns that differ": ([(2, 3, 4), (2, 5, 6)], r"4 columns, \(2, 5, 6\) has 5 rows"),
    "a vector": ([(2, 3), (2, 3, 4)], "each needs a batch axis and matrices"),
    "two batches": ([(2, 3, 4), (1, 4, 5)], "each needs a batch axis"),
    "heads that differ": ([(2, 3, 4, 5), (2, 2, 5, 4)], "no common shape"),
}


@pytest.mark.parametrize(("inputs", "message"), WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_fit_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        MatMul().output(*map(ArraySpec, inputs))
