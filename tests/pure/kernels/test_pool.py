"""Pooling: every geometry by finite differences, oracle and PyTorch; ties, NaN and large windows."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from tests.pure.kernels.checks import (
    allocate,
    check_against,
    check_gradients,
    check_oracle,
    distinct,
    normal,
    oracle_only,
    run,
)
from weft.kernels.kernel import ArraySpec, Mode
from weft.kernels.pool import AveragePool2d, GlobalAveragePool2d, MaxPool2d

GEOMETRIES = {
    "2x2": ({"kernel_size": 2}, (2, 3, 6, 4)),
    "2x2 with a row and a column left over": ({"kernel_size": 2}, (2, 3, 7, 5)),
    "2x2, padded": ({"kernel_size": 2, "padding": 1}, (2, 2, 5, 6)),
    "overlapping windows": ({"kernel_size": 3, "stride": 2, "padding": 1}, (2, 2, 7, 8)),
    "a stride beyond the window": ({"kernel_size": 2, "stride": 3}, (2, 2, 8, 7)),
    "a window that is not square": ({"kernel_size": (3, 2), "stride": (2, 1)}, (2, 2, 7, 6)),
    "asymmetric padding": ({"kernel_size": 3, "stride": 2, "padding": (0, 1, 2, 0)}, (1, 2, 6, 6)),
    "1x1": ({"kernel_size": 1}, (1, 2, 3, 3)),
    "the whole image": ({"kernel_size": (5, 4)}, (2, 2, 5, 4)),
}
geometries = pytest.mark.parametrize(("attributes", "shape"), GEOMETRIES.values(), ids=GEOMETRIES.keys())
# Of the windows that are taken by vectors: rows of several, the last not full, and images of many rows.
LONG_ROWS = {
    "overlapping windows": ({"kernel_size": 3, "stride": 2}, (2, 2, 37, 81)),
    "overlapping windows, padded": ({"kernel_size": 3, "stride": 2, "padding": 1}, (1, 3, 36, 80)),
    "overlapping windows, padded where they begin": (
        {"kernel_size": 3, "stride": 2, "padding": (2, 2, 0, 0)},
        (1, 2, 20, 67),
    ),
    "overlapping windows, padded where they end": (
        {"kernel_size": 3, "stride": 2, "padding": (0, 0, 2, 2)},
        (1, 2, 20, 63),
    ),
    "neighbours": ({"kernel_size": 3, "stride": 1}, (2, 2, 11, 34)),
    "neighbours, padded": ({"kernel_size": 3, "stride": 1, "padding": 1}, (1, 2, 19, 48)),
    "side by side": ({"kernel_size": 2}, (2, 2, 35, 67)),
    "side by side, padded": ({"kernel_size": 2, "padding": 1}, (1, 2, 8, 32)),
    "one column": ({"kernel_size": 3, "stride": 2, "padding": 1}, (2, 2, 40, 1)),
    "one row": ({"kernel_size": 3, "stride": 1, "padding": 1}, (2, 2, 1, 40)),
    "other windows": ({"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)}, (2, 2, 11, 67)),
    "apart": ({"kernel_size": 2, "stride": 3}, (2, 2, 20, 67)),
}
long_rows = pytest.mark.parametrize(("attributes", "shape"), LONG_ROWS.values(), ids=LONG_ROWS.keys())
both_sizes = pytest.mark.parametrize("dtype", ["float32", "float64"])
counting = pytest.mark.parametrize("include_pad", [False, True], ids=["image only", "padding counted"])


@geometries
def test_max_gradient_equals_finite_differences(attributes, shape):
    check_gradients(MaxPool2d(**attributes), distinct(*shape))


@geometries
def test_max_equals_its_oracle(attributes, shape):
    check_oracle(MaxPool2d(**attributes), distinct(*shape))


@geometries
def test_max_equals_pytorch(attributes, shape):
    torch = pytest.importorskip("torch")
    kernel = MaxPool2d(**attributes)
    top, left, bottom, right = kernel.padding

    def reference(x):
        x = torch.nn.functional.pad(x, (left, right, top, bottom), value=-float("inf"))
        return torch.nn.functional.max_pool2d(x, kernel.kernel_size, kernel.stride)

    check_against(kernel, reference, distinct(*shape))


@geometries
def test_max_outside_training_is_the_same(attributes, shape):
    kernel = MaxPool2d(**attributes)
    x = distinct(*shape, dtype="float32")
    x[0, 0, 2, 2] = np.nan
    b = allocate(kernel, x)
    kernel.forward(b, Mode())
    trained = b.output.copy()
    for body in (nullcontext(), oracle_only()):
        b.output[...] = 77
        with body:
            kernel.forward(b, Mode(training=False))
        np.testing.assert_array_equal(b.output, trained)


def inferred(kernel, x):
    """Its output outside training, by the compiled loops and by the array-module body."""
    found = []
    for body in (nullcontext(), oracle_only()):
        b = allocate(kernel, x)
        with body:
            kernel.forward(b, Mode(training=False))
        found.append(b.output)
    return found


@long_rows
@both_sizes
def test_max_of_long_rows_equals_its_oracle_also_where_there_are_nans(attributes, shape, dtype):
    kernel = MaxPool2d(**attributes)
    x = distinct(*shape, dtype=dtype)
    np.testing.assert_array_equal(*inferred(kernel, x))
    x.reshape(-1)[[0, 1, x.size // 3, -1]] = np.nan, -np.inf, np.nan, np.nan
    np.testing.assert_array_equal(*inferred(kernel, x))


@long_rows
@counting
@both_sizes
def test_average_of_long_rows_equals_its_oracle(attributes, shape, include_pad, dtype):
    kernel = AveragePool2d(**attributes, count_include_pad=include_pad)
    got, wanted = inferred(kernel, normal(*shape, dtype=dtype))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 if dtype == "float32" else 1e-14)


@geometries
@counting
def test_average_gradient_equals_finite_differences(attributes, shape, include_pad):
    check_gradients(AveragePool2d(**attributes, count_include_pad=include_pad), normal(*shape))


@geometries
@counting
def test_average_equals_its_oracle(attributes, shape, include_pad):
    check_oracle(AveragePool2d(**attributes, count_include_pad=include_pad), normal(*shape))


@counting
def test_average_equals_pytorch(include_pad):
    torch = pytest.importorskip("torch")
    kernel = AveragePool2d(3, 2, 1, count_include_pad=include_pad)
    check_against(
        kernel,
        lambda x: torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=include_pad),
        normal(2, 3, 7, 8),
    )


@pytest.mark.parametrize("image", [(4, 5), (1, 1), (4, 8), (13, 13), (40, 31)])
def test_global_average_is_the_mean_and_what_a_window_as_large_as_the_image_finds(image):
    kernel = GlobalAveragePool2d()
    x = normal(2, 3, *image)
    check_gradients(kernel, x)
    check_oracle(kernel, x)
    output = run(kernel, allocate(kernel, x)).output
    np.testing.assert_allclose(output, x.mean(axis=(2, 3)), rtol=0, atol=1e-15)
    window = AveragePool2d(image)
    np.testing.assert_array_equal(run(window, allocate(window, x)).output[:, :, 0, 0], output)


@pytest.mark.parametrize("size", [2, 3], ids=["2x2", "3x3"])
def test_the_first_of_equal_elements_takes_the_gradient(size):
    kernel = MaxPool2d(size)
    b = run(kernel, allocate(kernel, np.ones((1, 1, size, size))))
    expected = np.zeros((size, size))
    expected[0, 0] = b.output_gradient.item()
    np.testing.assert_array_equal(b.input_gradients[0][0, 0], expected)


@pytest.mark.parametrize("size", [2, 3], ids=["2x2", "3x3"])
@pytest.mark.parametrize("place", [0, 1, 3], ids=["first", "second", "fourth"])
def test_a_nan_wins_so_that_it_shows(size, place):
    kernel = MaxPool2d(size)
    x = normal(1, 1, size, size)
    x.reshape(-1)[place] = np.nan
    assert np.isnan(run(kernel, allocate(kernel, x)).output).all()


def test_a_window_of_more_than_256_elements_keeps_its_winner():
    kernel = MaxPool2d(17)
    assert kernel.saved(ArraySpec((1, 1, 17, 17)))[0].dtype == "int32"
    x = np.arange(17.0 * 17).reshape(1, 1, 17, 17)
    b = run(kernel, allocate(kernel, x))
    assert b.input_gradients[0][0, 0, 16, 16] == b.output_gradient.item()


def test_padding_as_large_as_the_window_is_refused():
    with pytest.raises(ValueError, match=r"max_pool2d: padding is \(2, 2, 2, 2\).*smaller than the window"):
        MaxPool2d(2, padding=2)


@pytest.mark.parametrize(
    "kernel", [MaxPool2d(2), AveragePool2d(2), GlobalAveragePool2d()], ids=lambda k: k.name
)
def test_an_input_that_is_no_image_is_refused_by_shape(kernel):
    with pytest.raises(ValueError, match=rf"{kernel.name}: input has shape \(4, 5, 5\)"):
        kernel.output(ArraySpec((4, 5, 5)))


def test_an_image_smaller_than_the_window_is_refused_by_shape():
    with pytest.raises(ValueError, match=r"average_pool2d: kernel_size \(3, 3\).*\(1, 1, 2, 2\)"):
        AveragePool2d(3).output(ArraySpec((1, 1, 2, 2)))
