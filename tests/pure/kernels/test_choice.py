"""compare, compare_number and where."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_against, check_gradients, normal, run
from weft.kernels.choice import MIRRORED, Compare, CompareNumber, Where
from weft.kernels.kernel import ArraySpec

operators = pytest.mark.parametrize("operator", MIRRORED)


@operators
def test_two_values_are_compared_sample_by_sample(operator):
    first, second = np.rint(normal(2, 3, 4)), np.rint(normal(2, 4, seed=1))
    b = run(Compare(operator), allocate(Compare(operator), first, second))
    wanted = [getattr(np, operator)(x, y) for x, y in zip(first, second, strict=True)]
    assert b.output.dtype == bool
    np.testing.assert_array_equal(b.output, wanted)
    np.testing.assert_array_equal(
        [getattr(np, MIRRORED[operator])(y, x) for x, y in zip(first, second, strict=True)], wanted
    )


@operators
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_a_value_and_a_number(operator, dtype):
    x = np.abs(normal(2, 9) * 2).astype(dtype)
    for value in (1.0, 0.5):
        kernel = CompareNumber(operator, value)
        np.testing.assert_array_equal(
            run(kernel, allocate(kernel, x)).output, getattr(np, operator)(x, value)
        )


def test_large_tokens_are_compared_as_they_are():
    x = np.array([[2**60, 2**60 + 1]])
    kernel = CompareNumber("equal", 2.0**60)
    np.testing.assert_array_equal(run(kernel, allocate(kernel, x)).output, [[True, False]])


SHAPES = {
    "all equal": ((2, 3, 4), (2, 3, 4), (2, 3, 4)),
    "a mask of places": ((2, 1, 4), (2, 3, 4), (2, 3, 4)),
    "numbers for each sample": ((2, 3, 4), (2,), (2, 3, 1)),
    "a condition of more axes": ((2, 3, 4), (2, 4), (2, 1)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_the_side_that_is_taken_has_the_gradient(shapes):
    condition = normal(*shapes[0]) > 0
    first, second = normal(*shapes[1], seed=1), normal(*shapes[2], seed=2)
    b = run(Where(), allocate(Where(), condition, first, second))
    wanted = [np.where(*each) for each in zip(condition, first, second, strict=True)]
    np.testing.assert_array_equal(b.output, wanted)
    check_gradients(Where(), condition, first, second)


def test_where_is_as_pytorchs():
    torch = pytest.importorskip("torch")
    check_against(Where(), torch.where, normal(2, 3, 4) > 0, normal(2, 3, 4), normal(2, 3, 4, seed=1))


def test_what_is_not_taken_may_be_no_number():
    condition, taken = np.array([[True, False]]), np.array([[1.0, np.nan]])
    b = run(Where(), allocate(Where(), condition, taken, np.array([[np.inf, 2.0]])))
    np.testing.assert_array_equal(b.output, [[1, 2]])
    np.testing.assert_array_equal(b.input_gradients[1], b.output_gradient * [[1, 0]])


WRONG = {
    "a condition of numbers": (Where(), [((2, 3), "float32")] * 3, "its condition is .* float32; give bool"),
    "sides of two types": (
        Where(), [((2, 3), "bool"), ((2, 3), "float32"), ((2, 3), "int64")], "float32 and .* int64"
    ),
    "two batches": (
        Compare("less"), [((2, 3), "float32"), ((1, 3), "float32")], r"\(2, 3\) .* and \(1, 3\)"
    ),
    "no common shape": (Compare("less"), [((2, 3), "int64"), ((2, 4), "int64")], r"\(3,\) and \(4,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("kernel", "inputs", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(kernel, inputs, message):
    with pytest.raises(ValueError, match=message):
        kernel.output(*(ArraySpec(*each) for each in inputs))


def test_an_unknown_comparison_is_refused():
    for make in (lambda: Compare("above"), lambda: CompareNumber("above", 1.0)):
        with pytest.raises(ValueError, match="operator is 'above'; give equal, not_equal, less, "):
            make()
