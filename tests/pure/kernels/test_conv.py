"""conv2d: every geometry by finite differences, oracle and PyTorch; blocks of channels and of images."""

from __future__ import annotations

import pytest

from tests.pure.kernels.checks import (
    allocate,
    check_against,
    check_gradients,
    check_oracle,
    check_rows,
    close,
    normal,
    oracle_only,
    run,
)
from weft.kernels.conv import ROWS_GRANULE, Conv2d, Conv2dAdd
from weft.kernels.kernel import ArraySpec

CASES = {
    "a 3x3 window that keeps the size": (Conv2d(4, 3, padding=1), (2, 3, 5, 6)),
    "no padding": (Conv2d(4, 3), (2, 3, 5, 6)),
    "a stride of 2": (Conv2d(3, 3, stride=2, padding=1), (2, 2, 7, 6)),
    "a stride that leaves columns over": (Conv2d(2, 2, stride=3), (2, 2, 7, 9)),
    "strides that differ": (Conv2d(2, (3, 2), stride=(1, 3)), (1, 2, 6, 8)),
    "dilation": (Conv2d(3, 3, padding=2, dilation=2), (2, 2, 6, 7)),
    "dilations that differ": (Conv2d(2, (2, 3), dilation=(3, 1), padding=(1, 2)), (2, 2, 6, 5)),
    "asymmetric padding": (Conv2d(3, 3, padding=(0, 2, 1, 0)), (2, 2, 5, 4)),
    "padding beyond the window's first columns": (Conv2d(2, 3, padding=4), (1, 1, 3, 3)),
    "two groups": (Conv2d(6, 3, padding=1, groups=2), (3, 4, 4, 5)),
    "depthwise": (Conv2d(4, 3, padding=1, groups=4), (2, 4, 5, 5)),
    "depthwise, two filters a channel, strided": (Conv2d(6, 3, stride=2, groups=3), (2, 3, 7, 7)),
    "1x1": (Conv2d(5, 1), (2, 3, 4, 4)),
    "1x1, strided": (Conv2d(5, 1, stride=2), (2, 3, 5, 4)),
    "1x1, grouped": (Conv2d(4, 1, groups=2), (2, 6, 3, 3)),
    "without bias": (Conv2d(4, 3, bias=False), (2, 3, 5, 5)),
    "rectified": (Conv2d(4, 3, padding=1, relu=True), (2, 3, 5, 6)),
    "1x1, rectified": (Conv2d(5, 1, relu=True), (2, 3, 4, 4)),
    "1x1, more channels than stay near": (Conv2d(3, 1), (1, 150, 3, 5)),
    "1x1, more pixels than a panel": (Conv2d(2, 1), (1, 300, 15, 30)),
    "one image, one pixel out": (Conv2d(4, 3), (1, 2, 3, 3)),
    "images too many for one block": (Conv2d(2, 3, padding=1), (11, 1, 10, 10)),
    "strided, images too many for one product": (Conv2d(2, 3, stride=2), (25, 1, 11, 11)),
    "1x1 on large images": (Conv2d(2, 1), (2, 3, 23, 24)),
    "channels and pixels that fill no block": (Conv2d(9, 3, padding=1), (2, 5, 6, 17)),
    "strided, on images too large to share a product": (Conv2d(2, 3, stride=2), (2, 1, 49, 50)),
}
cases = pytest.mark.parametrize(("kernel", "shape"), CASES.values(), ids=CASES.keys())


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
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        y = torch.nn.functional.conv2d(x, weight, bias, kernel.stride, 0, kernel.dilation, kernel.groups)
        return torch.relu(y) if kernel.relu else y

    check_against(kernel, reference, normal(*shape))


@cases
def test_images_in_float64_may_meet_weights_in_float32(kernel, shape):
    """As behind a cast to float64: a model's weights are float32 whatever its values are."""
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


ADDED = {
    "a 3x3 window": (Conv2dAdd(4, 3, padding=1), (2, 3, 5, 6)),
    "strided, grouped, rectified": (Conv2dAdd(6, 3, stride=2, groups=2, relu=True), (2, 4, 7, 6)),
    "1x1": (Conv2dAdd(5, 1), (2, 3, 4, 4)),
    "1x1, rectified, without bias": (Conv2dAdd(5, 1, bias=False, relu=True), (2, 3, 4, 9)),
    "1x1, strided": (Conv2dAdd(5, 1, stride=2), (2, 3, 5, 4)),
    "1x1, more pixels than a panel": (Conv2dAdd(2, 1, relu=True), (1, 300, 15, 30)),
}


@pytest.mark.parametrize(("kernel", "shape"), ADDED.values(), ids=ADDED)
def test_onto_another_value_it_is_the_sum_of_both(kernel, shape):
    alone = Conv2d(kernel.channels, kernel.kernel_size, kernel.stride, kernel.padding, groups=kernel.groups)
    inputs = normal(*shape), normal(*alone.output(ArraySpec(shape)).shape, seed=1)
    check_gradients(kernel, *inputs, samples=20)
    check_oracle(kernel, *inputs)


def test_onto_a_value_of_another_shape_it_is_refused():
    with pytest.raises(ValueError, match=r"conv2d_add: \(2, 4, 1, 6\) is to be added to \(2, 4, 5, 6\)"):
        Conv2dAdd(4, 3, padding=1).output(ArraySpec((2, 3, 5, 6)), ArraySpec((2, 4, 1, 6)))


BLOCKS = {
    "channels of the only group": (Conv2d(7, 3, padding=1), [2, 5]),
    "single channels": (Conv2d(4, 3), [1, 2, 3]),
    "more channels than a block computes": (Conv2d(23, 3, padding=1), [9]),
    "whole groups": (Conv2d(6, 3, groups=3), [2, 4]),
    "parts of groups": (Conv2d(6, 3, groups=3), [1, 5]),
    "depthwise": (Conv2d(3, 3, padding=1, groups=3), [2]),
    "1x1": (Conv2d(7, 1), [3]),
    "strided": (Conv2d(7, 3, stride=2), [2, 5]),
    "without bias": (Conv2d(5, 3, bias=False), [2]),
}


@pytest.mark.parametrize("shape", [(5, 3, 6, 6), (3, 3, 24, 24)], ids=["blocks of images", "single images"])
@pytest.mark.parametrize(("kernel", "cuts"), BLOCKS.values(), ids=BLOCKS.keys())
def test_blocks_of_channels_equal_the_whole_to_the_bit(kernel, cuts, shape):
    check_rows(kernel, cuts, normal(*shape))


@pytest.mark.parametrize(("kernel", "cuts"), BLOCKS.values(), ids=BLOCKS.keys())
def test_blocks_of_channels_of_the_array_module_body_equal_its_whole(kernel, cuts):
    with oracle_only():
        check_rows(kernel, cuts, normal(5, 3, 6, 6))


GRANULES = {
    "one group": (Conv2d(3 * ROWS_GRANULE + 1, 3), ROWS_GRANULE),
    "groups of full blocks": (Conv2d(6 * ROWS_GRANULE, 3, groups=3), ROWS_GRANULE),
    "groups that are not": (Conv2d(3 * ROWS_GRANULE + 3, 3, groups=3), ROWS_GRANULE + 1),
    "depthwise": (Conv2d(3, 3, groups=3), 1),
}


@pytest.mark.parametrize(("kernel", "granule"), GRANULES.values(), ids=GRANULES.keys())
def test_channels_are_cut_where_a_block_of_one_group_ends(kernel, granule):
    channels, rows = kernel.split(ArraySpec((2, 3, 9, 5)))
    assert (channels.granule, rows.granule) == (granule, 1)


def test_splits_by_channels_and_by_rows():
    channels, rows = Conv2d(6, 3, groups=3).split(ArraySpec((2, 3, 9, 5)))
    assert (channels.axis, channels.extent, channels.weight_axis) == (1, 6, 0)
    assert (rows.axis, rows.extent, rows.weight_axis) == (2, 7, None)


def test_cost_counts_a_multiply_and_an_add_for_every_pixel_and_weight():
    cost = Conv2d(4, 3, padding=1, bias=False).cost(ArraySpec((2, 3, 5, 6)))
    assert cost.forward_flops == 2 * (2 * 4 * 5 * 6) * (3 * 3 * 3)


WRONG = {
    "an input without channels": (Conv2d(2, 3), (4, 5, 5), r"input has shape \(4, 5, 5\)"),
    "a window larger than the image": (Conv2d(2, 7), (1, 2, 5, 9), r"\(7, 7\).*does not fit.*\(1, 2, 5, 9\)"),
    "groups that do not divide": (
        Conv2d(4, 1, groups=2),
        (1, 3, 5, 5),
        "2 groups do not divide the 3 channels",
    ),
}


@pytest.mark.parametrize(("kernel", "shape", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_input_that_does_not_fit_is_refused_by_shape(kernel, shape, message):
    with pytest.raises(ValueError, match=message):
        kernel.output(ArraySpec(shape))


ATTRIBUTES = {
    "a stride of 0": ({"stride": 0}, "stride is 0"),
    "three paddings": ({"padding": (1, 2, 3)}, r"padding is \(1, 2, 3\); give 1 or 2 or 4 integers"),
    "groups that do not divide the channels": ({"groups": 3}, "channels is 4, groups is 3"),
}


@pytest.mark.parametrize(("attributes", "message"), ATTRIBUTES.values(), ids=ATTRIBUTES.keys())
def test_wrong_attributes_are_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        Conv2d(4, 3, **attributes)
