"""arithmetic with a value, a parameter and a number, and the constant."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_gradients, normal, run
from weft.kernels.arithmetic import Arithmetic, ArithmeticNumber, ArithmeticWeight, Constant
from weft.kernels.kernel import ArraySpec, Mode

FUNCTIONS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
}
operators = pytest.mark.parametrize("operator", FUNCTIONS)


def positive(*shape, seed=0):
    """Away from 0, where a quotient and a power are steep."""
    return np.abs(normal(*shape, seed=seed)) + 0.5


SHAPES = {
    "equal": ((2, 3, 4), (2, 3, 4)),
    "one of each axis": ((2, 3, 1, 5), (2, 1, 4, 5)),
    "fewer axes on the right": ((2, 3, 4), (2, 4)),
    "fewer axes on the left": ((2, 4), (2, 3, 4)),
    "nothing but the batch": ((2,), (2, 3)),
}


@operators
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_two_values(operator, shapes):
    first, second = (positive(*shape, seed=seed) for seed, shape in enumerate(shapes))
    kernel = Arithmetic(operator)
    b = run(kernel, allocate(kernel, first, second))
    wanted = [FUNCTIONS[operator](x, y) for x, y in zip(first, second, strict=True)]  # sample by sample
    np.testing.assert_allclose(b.output, wanted)
    check_gradients(kernel, first, second)


def test_gradients_that_nobody_wants_are_left_out():
    kernel = Arithmetic("mul")
    b = allocate(kernel, positive(2, 3), positive(2, 3, seed=1))
    b.input_gradients = (None, b.input_gradients[1])
    run(kernel, b)
    np.testing.assert_allclose(b.input_gradients[1], b.output_gradient * b.inputs[0])


@operators
@pytest.mark.parametrize("reverse", [False, True], ids=["x first", "the weight first"])
@pytest.mark.parametrize("shape", [(3, 1, 1), (5,), (2, 3, 4, 5), (1,)], ids=str)
def test_a_value_and_a_weight(operator, reverse, shape):
    kernel = ArithmeticWeight(operator, shape, reverse)
    b = allocate(kernel, positive(2, 3, 4, 5))
    weight = b.parameters[0]
    weight[...] = np.abs(weight) + 0.5
    kernel.forward(b, Mode())
    wanted = [FUNCTIONS[operator](*((weight, x) if reverse else (x, weight))) for x in b.inputs[0]]
    np.testing.assert_allclose(b.output, wanted)


@pytest.mark.parametrize("operator", ["add", "sub", "mul", "max", "min"])
@pytest.mark.parametrize("reverse", [False, True], ids=["x first", "the weight first"])
@pytest.mark.parametrize("shape", [(3, 1, 1), (5,), (2, 3, 4, 5)], ids=str)
def test_gradients_of_a_weight_are_summed_over_the_samples(operator, reverse, shape):
    check_gradients(ArithmeticWeight(operator, shape, reverse), positive(2, 3, 4, 5))


def test_gradients_of_a_base_and_of_a_divisor():
    for kernel in (ArithmeticWeight("div", (3,)), ArithmeticWeight("pow", (3,))):
        b = allocate(kernel, positive(2, 3))
        b.parameters[0][...] = [1.5, 2.0, 0.5]
        x, w, dy = b.inputs[0], b.parameters[0], b.output_gradient
        run(kernel, b)
        if kernel.operator == "div":
            np.testing.assert_allclose(b.weight_gradients[0], (-dy * x / w**2).sum(axis=0))
            np.testing.assert_allclose(b.input_gradients[0], dy / w)
        else:
            np.testing.assert_allclose(b.weight_gradients[0], (dy * x**w * np.log(x)).sum(axis=0))
            np.testing.assert_allclose(b.input_gradients[0], dy * w * x ** (w - 1))


@operators
@pytest.mark.parametrize("reverse", [False, True], ids=["x first", "the number first"])
def test_a_value_and_a_number(operator, reverse):
    kernel, x = ArithmeticNumber(operator, 2.0, reverse), positive(2, 3)
    b = run(kernel, allocate(kernel, x))
    np.testing.assert_allclose(b.output, FUNCTIONS[operator](*((2.0, x) if reverse else (x, 2.0))))
    check_gradients(kernel, x)


def test_a_number_keeps_float32():
    kernel = ArithmeticNumber("pow", 0.3)
    b = run(kernel, allocate(kernel, positive(2, 3).astype("float32")))
    assert b.output.dtype == b.input_gradients[0].dtype == np.float32


def test_a_power_of_zero_has_a_slope():
    kernel = Arithmetic("pow")
    b = run(kernel, allocate(kernel, np.zeros((1, 2)), np.array([[1.0, 2.0]])))
    np.testing.assert_array_equal(b.input_gradients[1], 0)
    b = run(kernel, allocate(kernel, np.zeros((1, 3)), np.array([[0.0, 1.0, 2.0]])))
    np.testing.assert_array_equal(b.input_gradients[0][0, [0, 2]], 0)


@pytest.mark.parametrize("operator", ["max", "min"])
def test_two_that_are_the_same_share_the_gradient(operator):
    """As PyTorch's maximum has it: counted for both, it was twice what it is."""
    x = np.array([[1.0, 2.0]])
    b = run(Arithmetic(operator), allocate(Arithmetic(operator), x, x.copy()))
    for gradient in b.input_gradients:
        np.testing.assert_array_equal(gradient, b.output_gradient / 2)


def test_no_number_is_the_larger_and_the_smaller():
    x = np.array([[np.nan, 1.0]])
    for operator in ("max", "min"):
        b = run(Arithmetic(operator), allocate(Arithmetic(operator), x, np.array([[0.0, np.nan]])))
        assert np.isnan(b.output).all()


def test_what_is_not_trained_never_moves():
    for kernel in (ArithmeticWeight("add", (3,), trained=False), Constant((3,), trained=False)):
        (spec,) = kernel.parameters(ArraySpec((2, 3)))
        assert (spec.role, spec.momentum) == ("statistic", 0.0)
        b = run(kernel, allocate(kernel, normal(2, 3)))
        np.testing.assert_array_equal(b.weight_gradients[0], 0)


def test_a_constant_is_given_to_every_sample():
    kernel = Constant((2, 3), dtype="float64")
    b = run(kernel, allocate(kernel, normal(4, 5)))
    np.testing.assert_array_equal(b.output, [b.parameters[0]] * 4)
    np.testing.assert_allclose(b.weight_gradients[0], b.output_gradient.sum(axis=0))


WRONG = {
    "shapes without a common one": (Arithmetic("add"), [(2, 3), (2, 4)], r"\(3,\) and \(4,\)"),
    "two batches": (Arithmetic("add"), [(2, 3), (1, 3)], r"\(2, 3\) .* and \(1, 3\)"),
    "a weight that does not fit": (ArithmeticWeight("mul", (2,)), [(2, 3)], r"\(3,\) and \(2,\)"),
}


@pytest.mark.parametrize(("kernel", "shapes", "message"), WRONG.values(), ids=WRONG.keys())
def test_shapes_that_do_not_fit_are_named(kernel, shapes, message):
    with pytest.raises(ValueError, match=message):
        kernel.output(*map(ArraySpec, shapes))


def test_an_unknown_operator_is_refused():
    with pytest.raises(ValueError, match="operator is 'mod'; give add, sub, mul, div, pow, max, min"):
        Arithmetic("mod")
