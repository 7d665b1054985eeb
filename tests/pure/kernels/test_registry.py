"""Kernels by name: every one is found, and every wrong name or attribute is named with what is allowed."""

from __future__ import annotations

from dataclasses import fields

import pytest

from weft.kernels.kernel import ArraySpec
from weft.kernels.linear import Dense
from weft.kernels.registry import KERNELS, kernel


def test_a_kernel_is_made_with_its_attributes():
    assert kernel("dense", features=3, bias=False) == Dense(3, bias=False)


def test_a_whole_number_does_for_a_number():
    assert kernel("dropout", rate=0) == kernel("dropout", rate=0.0)


def test_every_kernel_is_known_by_its_own_name():
    assert all(kind.name == name for name, kind in KERNELS.items())
    assert len(KERNELS) >= 20


def test_kernels_with_equal_attributes_are_equal_and_hashable():
    once, again = (kernel("conv2d", channels=4, kernel_size=[3, 3], padding=[1, 1]) for _ in range(2))
    assert once == again
    assert len({once, again, kernel("conv2d", channels=4, kernel_size=3)}) == 2


IMAGE, VOLUME, PLACES = (2, 4, 6, 6), (2, 4, 3, 4, 5), (2, 4, 6)
OF_FLOATS = {
    "dense": ({"features": 3}, IMAGE),
    "conv2d": ({"channels": 3, "kernel_size": 3}, IMAGE),
    "conv2d_add": ({"channels": 4, "kernel_size": 3, "padding": 1}, IMAGE, IMAGE),
    "conv_transpose2d": ({"channels": 3, "kernel_size": 2, "stride": 2}, IMAGE),
    "conv3d": ({"channels": 3, "kernel_size": 3}, VOLUME),
    "conv_transpose3d": ({"channels": 3, "kernel_size": 2, "stride": 2}, VOLUME),
    "max_pool2d": ({"kernel_size": 2}, IMAGE),
    "average_pool2d": ({"kernel_size": 2}, IMAGE),
    "global_average_pool2d": ({}, IMAGE),
    "relu": ({}, IMAGE),
    "clip": ({"maximum": 6}, IMAGE),
    "leaky_relu": ({}, IMAGE),
    "elu": ({}, IMAGE),
    "gelu": ({}, IMAGE),
    "tanh": ({}, IMAGE),
    "sigmoid": ({}, IMAGE),
    "softplus": ({}, IMAGE),
    "sqrt": ({}, IMAGE),
    "exp": ({}, IMAGE),
    "log": ({}, IMAGE),
    "sin": ({}, IMAGE),
    "cos": ({}, IMAGE),
    "arctan": ({}, IMAGE),
    "rounded": ({}, IMAGE),
    "erf": ({}, IMAGE),
    "softmax": ({}, IMAGE),
    "log_softmax": ({}, IMAGE),
    "dropout": ({"rate": 0.5}, IMAGE),
    "arithmetic": ({"operator": "div"}, IMAGE, IMAGE),
    "arithmetic_weight": ({"operator": "add", "shape": [6]}, IMAGE),
    "arithmetic_number": ({"operator": "mul", "value": 0.5}, IMAGE),
    "reduce_mean": ({"axes": [1]}, IMAGE),
    "reduce_sum": ({"axes": [1]}, IMAGE),
    "reduce_max": ({"axes": [1]}, IMAGE),
    "reduce_l2": ({"axes": [1]}, IMAGE),
    "resample": ({"axis": 2, "extent": 9}, IMAGE),
    "pad": ({"before": [0, 1, 1], "after": [0, 0, 0], "value": 0.5}, IMAGE),
    "batch_norm": ({}, IMAGE),
    "instance_norm": ({}, IMAGE),
    "layer_norm": ({}, IMAGE),
    "response_norm": ({"size": 3}, IMAGE),
    "attention": ({"heads": 2}, PLACES),
    "rnn": ({"features": 3}, PLACES),
    "lstm": ({"features": 3}, PLACES),
    "gru": ({"features": 3}, PLACES),
    "position_embedding": ({}, PLACES),
    "binary_cross_entropy": ({}, IMAGE, IMAGE),
    "mean_squared_error": ({}, IMAGE, IMAGE),
    "absolute_error": ({}, IMAGE, IMAGE),
    "huber": ({}, IMAGE, IMAGE),
    "softmax_cross_entropy": ({}, PLACES, PLACES[:2]),
}


@pytest.mark.parametrize(("name", "case"), OF_FLOATS.items(), ids=OF_FLOATS)
def test_a_kernel_that_computes_with_floats_takes_no_whole_numbers(name, case):
    """Their outputs were cut to whole numbers in silence, or numba failed in the first step."""
    attributes, *shapes = case
    made = kernel(name, **attributes)
    with pytest.raises(ValueError, match=f"{name}: an input is .* uint8; it computes with float32"):
        made.output(*(ArraySpec(each, "uint8") for each in shapes))


WRONG = {
    "an unknown kernel": ("convolution", {}, "unknown kernel 'convolution'; there are .*conv2d, .*dense"),
    "an unknown attribute": (
        "dense",
        {"features": 3, "width": 4},
        "dense: unknown attribute width; it takes features, bias",
    ),
    "an attribute where there is none": (
        "relu",
        {"slope": 1},
        "relu: unknown attribute slope; it takes no attributes",
    ),
    "a missing attribute": ("conv2d", {"channels": 4}, "conv2d: kernel_size is not given"),
    "an inner field": ("conv2d", {"channels": 4, "kernel_size": 3, "window": 0}, "unknown attribute window"),
    "text for a number": ("dense", {"features": "ten"}, "dense: features is 'ten'; give a whole number"),
    "a fraction for a whole number": ("dense", {"features": 2.5}, "features is 2.5; give a whole number"),
    "true for a number": ("dropout", {"rate": True}, "dropout: rate is True; give a number"),
    "a number for a switch": ("dense", {"features": 2, "bias": 1}, "bias is 1; give true or false"),
    "an unknown choice": ("gelu", {"approximate": "fast"}, "approximate is 'fast'; give 'none' or 'tanh'"),
    "fractions for extents": (
        "max_pool2d",
        {"kernel_size": [1.5, 2]},
        r"kernel_size is \[1.5, 2\]; give a whole number or a list of numbers",
    ),
    "a wrong value": ("dropout", {"rate": 2}, "dropout: rate is 2"),
    "a distance below 0": ("huber", {"delta": -1}, "huber: delta is -1; give a number above 0"),
}


@pytest.mark.parametrize(("name", "attributes", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_named(name, attributes, message):
    with pytest.raises(ValueError, match=message):
        kernel(name, **attributes)


ATTRIBUTES = [(name, field.name) for name, kind in KERNELS.items() for field in fields(kind) if field.init]


@pytest.mark.parametrize(("name", "attribute"), ATTRIBUTES, ids=lambda each: each)
def test_every_attribute_says_what_it_takes(name, attribute):
    required = {field.name: object() for field in fields(KERNELS[name]) if field.init}
    with pytest.raises(ValueError, match=f"{name}: {attribute} is .*; give "):
        kernel(name, **{attribute: object()}, **{key: required[key] for key in required if key != attribute})
