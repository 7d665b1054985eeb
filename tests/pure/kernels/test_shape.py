"""add, concat, reshape and flatten."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import allocate, check_gradients, normal, run
from weft.kernels.kernel import ArraySpec
from weft.kernels.shape import Add, Concat, Flatten, Reshape


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_add(count):
    inputs = [normal(2, 3, 4, seed=seed) for seed in range(count)]
    b = run(Add(), allocate(Add(), *inputs))
    np.testing.assert_allclose(b.output, sum(inputs))
    check_gradients(Add(), *inputs)


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [
        (1, [(2, 3), (2, 1), (2, 4)]),
        (1, [(2, 3, 4, 5), (2, 2, 4, 5)]),
        (-1, [(2, 3, 4), (2, 3, 1)]),
        (2, [(2, 3, 4)]),
    ],
    ids=["vectors", "channels", "the last axis", "one input"],
)
def test_concat(axis, shapes):
    inputs = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    b = run(Concat(axis), allocate(Concat(axis), *inputs))
    np.testing.assert_array_equal(b.output, np.concatenate(inputs, axis))
    check_gradients(Concat(axis), *inputs)


def test_concat_leaves_out_unwanted_gradients():
    inputs = normal(2, 3), normal(2, 2)
    b = allocate(Concat(), *inputs)
    b.input_gradients = (None, b.input_gradients[1])
    run(Concat(), b)
    np.testing.assert_array_equal(b.input_gradients[1], b.output_gradient[:, 3:])


@pytest.mark.parametrize(
    ("kernel", "shape", "expected"),
    [
        (Reshape((3, 8)), (5, 4, 6), (5, 3, 8)),
        (Reshape([2, -1, 3]), (5, 4, 6), (5, 2, 4, 3)),
        (Flatten(), (5, 4, 6), (5, 24)),
        (Flatten(), (5, 7), (5, 7)),
    ],
    ids=["given in full", "with an open extent", "flatten", "flatten what is flat"],
)
def test_views_keep_the_batch(kernel, shape, expected):
    assert kernel.view
    assert kernel.output(ArraySpec(shape)).shape == expected


WRONG = {
    "adding different shapes": (Add(), [(2, 3), (2, 4)], r"add: inputs have shapes \(2, 3\).*\(2, 4\)"),
    "concat along the batch": (Concat(0), [(2, 3), (2, 3)], "concat: axis 0"),
    "concat along an axis that is not there": (Concat(2), [(2, 3), (2, 3)], "concat: axis 2"),
    "concat of unequal images": (
        Concat(1),
        [(2, 3, 4), (2, 3, 5)],
        r"\(2, 3, 4\).*\(2, 3, 5\).*more than axis 1",
    ),
    "reshape to more elements": (Reshape((5, 5)), [(2, 4, 6)], r"24 elements a sample \(input \(2, 4, 6\)\)"),
    "an open extent that does not divide": (Reshape((5, -1)), [(2, 4, 6)], "24 elements a sample"),
}


@pytest.mark.parametrize(("kernel", "shapes", "message"), WRONG.values(), ids=WRONG.keys())
def test_shapes_that_do_not_fit_are_named(kernel, shapes, message):
    with pytest.raises(ValueError, match=message):
        kernel.output(*map(ArraySpec, shapes))


@pytest.mark.parametrize("shape", [(-1, -1), (0, 3)], ids=["two open extents", "an extent of 0"])
def test_a_shape_that_means_nothing_is_refused(shape):
    with pytest.raises(ValueError, match="reshape: shape is"):
        Reshape(shape)
