"""sqrt, exp, log, sin, cos, erf and cast."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, check_oracle, normal, run
from weft.kernels.function import Cast, Cos, Erf, Exp, Log, Sin, Sqrt


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [(Sqrt(), np.sqrt), (Exp(), np.exp), (Log(), np.log), (Sin(), np.sin), (Cos(), np.cos)],
)
def test_functions_of_positive_numbers(kernel, wanted):
    x = np.abs(normal(2, 3, 4)) + 0.1
    check_gradients(kernel, x)
    np.testing.assert_allclose(run(kernel, allocate(kernel, x)).output, wanted(x))


def test_erf():
    check_gradients(Erf(), normal(2, 3, 4))
    check_oracle(Erf(), normal(3, 70))
    torch = pytest.importorskip("torch")
    check_against(Erf(), torch.erf, normal(2, 30))


@pytest.mark.parametrize(
    ("source", "target"), [("float32", "float64"), ("int64", "float32"), ("float32", "int32")]
)
def test_cast(source, target):
    x = (normal(2, 3) * 5).astype(source)
    b = run(Cast(target), allocate(Cast(target), x))
    assert b.output.dtype == target
    np.testing.assert_array_equal(b.output, x.astype(target))


def test_a_cast_to_integers_has_no_gradient():
    b = run(Cast("int32"), allocate(Cast("int32"), normal(2, 3)))
    np.testing.assert_array_equal(b.input_gradients[0], 0)
    b = run(Cast("float64"), allocate(Cast("float64"), normal(2, 3, dtype="float32")))
    np.testing.assert_allclose(b.input_gradients[0], b.output_gradient, rtol=1e-6)
