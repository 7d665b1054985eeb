"""softmax and its logarithm along every axis: finite differences, the array-module body, PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, check_oracle, normal, run
from weft.kernels.kernel import ArraySpec
from weft.kernels.probability import LogSoftmax, Softmax

kinds = pytest.mark.parametrize("kind", [Softmax, LogSoftmax])
axes = pytest.mark.parametrize("axis", [1, 2, 3, -1])


@kinds
@axes
def test_gradients_equal_finite_differences(axis, kind):
    check_gradients(kind(axis), normal(2, 3, 4, 5))


@kinds
@axes
def test_equals_its_oracle_and_pytorch(axis, kind):
    check_oracle(kind(axis), normal(3, 6, 7, 40), dtypes=("float32", "float64"))
    torch = pytest.importorskip("torch")
    function = {Softmax: torch.softmax, LogSoftmax: torch.log_softmax}[kind]
    check_against(kind(axis), lambda x: function(x, axis), normal(3, 4, 5, 6))


@pytest.mark.parametrize("axis", [1, 2])
def test_numbers_of_any_size_do_not_overflow(axis):
    x = np.array([[[1e4, -1e4], [1e4, 1e4]]], "float32")
    y = run(Softmax(axis), allocate(Softmax(axis), x)).output
    np.testing.assert_allclose(y.sum(axis=axis), 1)
    assert np.isfinite(y).all()


def test_logarithms_of_probabilities_that_round_to_0_are_finite():
    x = np.array([[0, -1e4, -200, -np.inf]], "float32")
    b = run(LogSoftmax(), allocate(LogSoftmax(), x))
    np.testing.assert_array_equal(b.output, x)
    assert np.isfinite(b.input_gradients[0]).all()


@kinds
@pytest.mark.parametrize("axis", [1, 2])
def test_what_is_no_number_shows(axis, kind):
    x = normal(1, 3, 4, dtype="float32")
    x[0, 1, 2] = np.nan
    y = run(kind(axis), allocate(kind(axis), x)).output
    assert np.isnan(y).sum() == x.shape[axis]


@kinds
@pytest.mark.parametrize("axis", [0, 3, -3])
def test_an_axis_that_is_not_there_is_refused(axis, kind):
    with pytest.raises(ValueError, match=f"^{kind.name}: axis is {axis}; an input of 3 axes has 1 to 2"):
        kind(axis).output(ArraySpec((2, 3, 4)))
