"""conv3d and conv_transpose3d: every geometry by finite differences, the array-module body and PyTorch."""

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
from weft.kernels.conv3d import Conv3d, ConvTranspose3d
from weft.kernels.kernel import ArraySpec

VOLUME = (2, 4, 4, 5, 6)
CASES = {
    "windows that overlap": (Conv3d(3, 3, padding=1), VOLUME),
    "strided": (Conv3d(3, 2, stride=2), VOLUME),
    "extents that differ": (Conv3d(3, (1, 3, 2), stride=(2, 1, 3), padding=(0, 1, 0)), VOLUME),
    "deeper than wide": (Conv3d(2, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)), VOLUME),
    "dilation": (Conv3d(3, 2, padding=1, dilation=(3, 2, 1)), VOLUME),
    "asymmetric padding": (Conv3d(3, 3, stride=2, padding=(0, 1, 2, 2, 0, 1)), VOLUME),
    "layers that see padding alone": (Conv3d(2, 2, stride=3, padding=4), (1, 1, 2, 3, 3)),
    "two groups": (Conv3d(6, 3, padding=1, groups=2), VOLUME),
    "depthwise": (Conv3d(4, (2, 3, 3), groups=4), VOLUME),
    "1x1x1, without bias": (Conv3d(5, 1, bias=False), VOLUME),
    "the whole volume": (Conv3d(3, VOLUME[2:]), VOLUME),
    "transposed": (ConvTranspose3d(3, 2, stride=2), (2, 4, 2, 3, 2)),
    "transposed, windows that overlap": (ConvTranspose3d(3, 3, stride=2, padding=1), (2, 4, 3, 2, 3)),
    "transposed, two groups and sizes that the stride leaves open": (
        ConvTranspose3d(4, 3, stride=(2, 1, 3), padding=1, groups=2, output_padding=(1, 0, 2)),
        (2, 4, 2, 3, 2),
    ),
    "transposed, without bias": (
        ConvTranspose3d(2, (1, 2, 3), dilation=(1, 2, 1), bias=False),
        (1, 2, 2, 3, 3),
    ),
}
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
    front, top, left, back, bottom, right = kernel.padding

    def reference(x, weight, bias=None):
        if isinstance(kernel, Conv3d):
            x = torch.nn.functional.pad(x, (left, right, top, bottom, front, back))
            return torch.nn.functional.conv3d(
                x, weight, bias, kernel.stride, 0, kernel.dilation, kernel.groups
            )
        return torch.nn.functional.conv_transpose3d(
            x, weight, bias, kernel.stride, (front, top, left), kernel.output_padding, kernel.groups,
            kernel.dilation,
        )  # fmt: skip

    check_against(kernel, reference, normal(*shape))


@cases
def test_volumes_in_float64_may_meet_weights_in_float32(kernel, shape):
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


def test_cost_counts_a_multiply_and_an_add_for_every_element_and_weight():
    for kernel in (Conv3d(4, 3, bias=False), ConvTranspose3d(4, 3, stride=2, bias=False)):
        x = ArraySpec((2, 3, 5, 6, 7))
        y = kernel.output(x)
        visits = y.size // 4 if isinstance(kernel, Conv3d) else x.size // 3
        assert kernel.cost(x).forward_flops == 2 * visits * (3 * 4 * 3 * 3 * 3)


def test_its_first_weights_keep_the_size_of_what_goes_through():
    for kernel in (Conv3d(16, 3), ConvTranspose3d(16, 4, stride=2, padding=1)):
        b = allocate(kernel, normal(2, 16, 6, 8, 8))
        b.parameters[0][...] = (
            normal(*b.parameters[0].shape) * kernel.parameters(ArraySpec((2, 16, 6, 8, 8)))[0].bound
        )
        b.parameters[1].fill(0)
        assert np.sqrt(np.mean(run(kernel, b).output ** 2)) == pytest.approx(
            np.sqrt(2), rel=0.2
        )  # for a ReLU


WRONG = {
    "images": (lambda: _of(Conv3d(4, 3), (2, 4, 5, 6)), r"input has shape \(2, 4, 5, 6\); it needs axes"),
    "a window that is too deep": (lambda: _of(Conv3d(4, (5, 1, 1))), r"\(5, 1, 1\) .* is deeper than"),
    "one that is too wide": (lambda: _of(Conv3d(4, (1, 1, 7))), "does not fit the input"),
    "two extents": (lambda: Conv3d(4, (3, 3)), r"kernel_size is \(3, 3\); give 1 or 3 integers of"),
    "four sides": (lambda: Conv3d(4, 3, padding=(1,) * 4), "padding is .*; give 1, 3 or 6 integers"),
    "groups": (lambda: _of(Conv3d(6, 3, groups=3)), "3 groups do not divide the 4 channels"),
    "an output padding that is another stride": (
        lambda: ConvTranspose3d(4, 3, output_padding=1), "output_padding is .*; make it smaller than"
    ),
    "padding that cuts everything off": (
        lambda: _of(ConvTranspose3d(4, 3, padding=2), (1, 4, 1, 5, 5)), "leaves nothing of"
    ),
}  # fmt: skip


def _of(kernel, shape=VOLUME):
    return kernel.output(ArraySpec(shape))


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=f"conv(_transpose)?3d: .*{message}"):
        make()
