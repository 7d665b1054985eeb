"""exp, tanh and erf in compiled code: float32 within a few units in the last place, float64 exact."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.kernels import elementary
from weft.kernels.compiled import jit


@jit
def exp(x, y):
    for i in range(x.size):
        y[i] = elementary.exp(x[i])


@jit
def tanh(x, y):
    for i in range(x.size):
        y[i] = elementary.tanh(x[i])


@jit
def erf(x, y):
    for i in range(x.size):
        y[i] = elementary.erf(x[i])


FUNCTIONS = {"exp": (exp, math.exp, 1, 87), "tanh": (tanh, math.tanh, 5, 30), "erf": (erf, math.erf, 6, 30)}
functions = pytest.mark.parametrize(
    ("function", "exact", "ulps", "limit"), FUNCTIONS.values(), ids=FUNCTIONS.keys()
)


@functions
def test_float32_is_within_a_few_units_in_the_last_place(function, exact, ulps, limit):
    x = np.concatenate(
        [np.linspace(-limit, limit, 40_001), np.linspace(-5, 5, 20_001), np.geomspace(1e-30, 1, 2_001)]
    ).astype("float32")
    y = np.empty_like(x)
    function(x, y)
    expected = np.array([exact(value) for value in x.astype("float64")])
    error = np.abs(y - expected) / np.spacing(np.abs(expected).astype("float32"))
    assert error.max() <= ulps


@functions
def test_float64_is_the_math_library(function, exact, ulps, limit):
    x = np.linspace(-30, 30, 1001)
    y = np.empty_like(x)
    function(x, y)
    np.testing.assert_allclose(y, [exact(value) for value in x], rtol=1e-15)


@functions
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_nan_stays_nan(function, exact, ulps, limit, dtype):
    x = np.full(33, np.nan, dtype)
    y = np.zeros_like(x)
    function(x, y)
    assert np.isnan(y).all()


@functions
def test_infinities_are_where_the_function_ends(function, exact, ulps, limit):
    x = np.array([-np.inf, np.inf, -1e30, 1e30, -89, 89], "float32")
    y = np.empty_like(x)
    function(x, y)
    np.testing.assert_array_equal(y, {"exp": [0, np.inf]}.get(exact.__name__, [-1, 1]) * 3)


def test_outside_compiled_code_they_say_what_to_use():
    with pytest.raises(TypeError, match=r"use numpy\.exp"):
        elementary.exp(1.0)
