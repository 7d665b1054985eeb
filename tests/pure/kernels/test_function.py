"""sqrt, exp, log, sin, cos, arctan, erf, rounded and cast."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, check_oracle, normal, run
from weft.kernels.function import ArcTan, Cast, Cos, Erf, Exp, Log, Rounded, Sin, Sqrt


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        (Sqrt(), np.sqrt),
        (Exp(), np.exp),
        (Log(), np.log),
        (Sin(), np.sin),
        (Cos(), np.cos),
        (ArcTan(), np.arctan),
    ],
)
def test_functions_of_positive_numbers(kernel, wanted):
    x = np.abs(normal(2, 3, 4)) + 0.1
    check_gradients(kernel, x)
    np.testing.assert_allclose(run(kernel, allocate(kernel, x)).output, wanted(x))


def test_angles_of_all_numbers():
    x = np.array([[-np.inf, -1e30, -3, 0, 1e-30, 1e30, np.inf]], np.float32)
    with np.errstate(over="ignore"):  # as a lane does
        b = run(ArcTan(), allocate(ArcTan(), x))
    np.testing.assert_allclose(b.output, np.arctan(x), rtol=1e-6)
    wanted = b.output_gradient * np.array([0, 0, 0.1, 1, 1, 0, 0], np.float32)
    np.testing.assert_allclose(b.input_gradients[0], wanted, rtol=1e-6)


HALVES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1.2, -1.2, 7.0, np.inf]


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        ("nearest", [-2, -2, -0.0, 0, 2, 2, 1, -1, 7, np.inf]),
        ("below", [-3, -2, -1, 0, 1, 2, 1, -2, 7, np.inf]),
        ("above", [-2, -1, -0.0, 1, 2, 3, 2, -1, 7, np.inf]),
    ],
)
def test_whole_numbers_beside_others(to, wanted):
    b = run(Rounded(to), allocate(Rounded(to), np.array([[*HALVES, np.nan]], np.float32)))
    np.testing.assert_array_equal(b.output, [[*wanted, np.nan]])


def test_what_is_rounded_to_is_checked():
    with pytest.raises(ValueError, match="rounded: to is 'up'; give one of below, above, nearest"):
        Rounded("up")


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
