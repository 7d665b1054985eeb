"""conv_transpose2d: every geometry by finite differences, the array-module body and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.kernels.checks import (
    allocate,
    check_against,
    check_gradients,
    check_oracle,
    close,
    normal,
    run,
)
from weft.kernels.conv import Conv2d
from weft.kernels.conv_transpose import ConvTranspose2d
from weft.kernels.kernel import ArraySpec

CASES = {
    "a window as wide as the stride": (ConvTranspose2d(4, 2, stride=2), (2, 3, 5, 6)),
    "windows that overlap": (ConvTranspose2d(4, 3), (2, 3, 4, 5)),
    "a stride of 2 that doubles": (ConvTranspose2d(3, 4, stride=2, padding=1), (2, 2, 4, 5)),
    "a size that the stride leaves open": (
        ConvTranspose2d(3, 3, stride=2, padding=1, output_padding=1), (2, 2, 4, 3)
    ),
    "one of them in one direction": (
        ConvTranspose2d(2, 3, stride=3, output_padding=(0, 2)), (2, 2, 3, 4)
    ),
    "a stride that leaves pixels out": (ConvTranspose2d(2, 2, stride=3, output_padding=2), (2, 2, 3, 3)),
    "strides that differ": (ConvTranspose2d(2, (3, 2), stride=(1, 3)), (1, 2, 4, 3)),
    "dilation": (ConvTranspose2d(3, 3, padding=2, dilation=2), (2, 2, 5, 4)),
    "asymmetric padding": (ConvTranspose2d(3, 3, stride=2, padding=(0, 1, 2, 0)), (2, 2, 4, 4)),
    "padding beyond the window's first columns": (ConvTranspose2d(2, 3, padding=3), (1, 2, 6, 7)),
    "two groups": (ConvTranspose2d(6, 3, stride=2, padding=1, groups=2), (3, 4, 4, 5)),
    "depthwise": (ConvTranspose2d(4, 4, stride=2, padding=1, groups=4), (2, 4, 3, 3)),
    "1x1": (ConvTranspose2d(5, 1), (2, 3, 4, 4)),
    "1x1, strided": (ConvTranspose2d(5, 1, stride=2), (2, 3, 3, 4)),
    "without bias": (ConvTranspose2d(4, 3, stride=2, bias=False), (2, 3, 3, 3)),
    "a line": (ConvTranspose2d(4, (1, 4), stride=(1, 2), padding=(0, 1)), (2, 3, 1, 9)),
    "one pixel": (ConvTranspose2d(9, 4), (3, 5, 1, 1)),
    "more channels than a block computes": (ConvTranspose2d(23, 2, stride=2), (2, 19, 5, 5)),
    "images too large to share a product": (ConvTranspose2d(2, 3, stride=2), (2, 1, 24, 25)),
}  # fmt: skip
cases = pytest.mark.parametrize(("kernel", "shape"), CASES.values(), ids=CASES)


@cases
def test_gradients_equal_finite_differences(kernel, shape):
    check_gradients(kernel, normal(*shape), samples=20)


@cases
def test_equals_its_oracle(kernel, shape):
    check_oracle(kernel, normal(*shape))


@cases
def test_equals_pytorch(kernel, shape):
    torch = pytest.importorskip("torch")
    top, left, bottom, right = kernel.padding

    def reference(x, weight, bias=None):
        # PyTorch has one padding for both sides: what lies above and left is cut off.
        more = kernel.output_padding
        y = torch.nn.functional.conv_transpose2d(
            x, weight, None, kernel.stride, 0, more, kernel.groups, kernel.dilation
        )
        y = y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]
        return y if bias is None else y + bias[:, None, None]

    check_against(kernel, reference, normal(*shape))


@cases
def test_its_output_is_what_the_convolution_makes_its_input_of(kernel, shape):
    y = kernel.output(ArraySpec(shape))
    conv = Conv2d(shape[1], kernel.kernel_size, kernel.stride, kernel.padding, kernel.dilation, kernel.groups)
    assert conv.output(y).shape == shape


@cases
def test_images_in_float64_may_meet_weights_in_float32(kernel, shape):
    x = normal(*shape)
    mixed, wide = allocate(kernel, x), allocate(kernel, x)
    mixed.parameters = tuple(each.astype("float32") for each in wide.parameters)
    mixed.weight_gradients = tuple(each.astype("float32") for each in wide.weight_gradients)
    wide.parameters = tuple(each.astype("float64") for each in mixed.parameters)
    run(kernel, mixed)
    run(kernel, wide)
    close("output", mixed.output, wide.output, 1e-12)
    close("input gradient", mixed.input_gradients, wide.input_gradients, 1e-12)
    close("weight gradients", mixed.weight_gradients, wide.weight_gradients, 1e-6)


def test_cost_counts_a_multiply_and_an_add_for_every_pixel_and_weight():
    cost = ConvTranspose2d(4, 3, stride=2, bias=False).cost(ArraySpec((2, 3, 5, 6)))
    assert cost.forward_flops == 2 * (2 * 3 * 5 * 6) * (4 * 3 * 3)


def test_its_first_weights_keep_the_size_of_what_goes_through():
    kernel, x = ConvTranspose2d(16, 4, stride=2, padding=1), normal(2, 32, 16, 16)
    b = allocate(kernel, x)
    b.parameters[0][...] = normal(*b.parameters[0].shape) * kernel.parameters(ArraySpec(x.shape))[0].bound
    b.parameters[1].fill(0)
    assert np.sqrt(np.mean(run(kernel, b).output ** 2)) == pytest.approx(np.sqrt(2), rel=0.1)  # for a ReLU


WRONG = {
    "an input without channels": (lambda: _of((4, 5, 5)), r"input has shape \(4, 5, 5\)"),
    "groups that do not divide the input": (
        lambda: _of((1, 3, 5, 5), groups=2), "2 groups do not divide the 3 channels"
    ),
    "groups that do not divide the output": (lambda: _of((1, 3, 5, 5), groups=3), "groups must divide"),
    "padding that cuts everything off": (
        lambda: _of((1, 3, 1, 5), padding=2), r"padding \(2, 2, 2, 2\) leaves nothing of \(1, 3, 1, 5\)"
    ),
    "an output padding that is another stride": (
        lambda: _of((1, 3, 5, 5), output_padding=1),
        r"output_padding is \(1, 1\); make it smaller than the stride \(1, 1\)",
    ),
    "a negative output padding": (
        lambda: _of((1, 3, 5, 5), output_padding=-1), "output_padding is -1; give 1 or 2 integers of at"
    ),
}  # fmt: skip


def _of(shape, **attributes):
    return ConvTranspose2d(4, 3, **attributes).output(ArraySpec(shape))


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=f"conv_transpose2d: .*{message}"):
        make()
