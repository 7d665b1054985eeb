"""Volumes, (N, channels, depth, height, width), against the onnx package's evaluator and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import compute, expected, file, node, normal
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import read

SHAPE = (2, 4, 5, 6, 7)
WEIGHTS = {
    "w": normal(3, 4, 3, 2, 3), "b": normal(3), "g": normal(6, 2, 1, 3, 3), "t": normal(4, 3, 2, 3, 2),
    "s": normal(4) ** 2 + 1,
}  # fmt: skip

VOLUMES = {
    "a convolution": node("Conv", "x w b", "y", strides=[2, 1, 3], pads=[1, 0, 2, 1, 1, 0]),
    "a convolution with dilation": node("Conv", "x w", "y", dilations=[2, 3, 1]),
    "a convolution in groups": node("Conv", "x g", "y", group=2),
    "a convolution that keeps the extents": node("Conv", "x w", "y", auto_pad="SAME_UPPER"),
    "the largest of windows": node("MaxPool", "x", "y", kernel_shape=[2, 3, 2], strides=[2, 1, 3]),
    "the largest, with padding": node(
        "MaxPool", "x", "y", kernel_shape=[3, 3, 3], strides=[2, 2, 2], pads=[1, 0, 1, 1, 1, 0]
    ),
    "a last window that ends outside": node(
        "MaxPool", "x", "y", kernel_shape=[2, 2, 2], strides=[2, 2, 2], ceil_mode=1
    ),
    "means": node(
        "AveragePool", "x", "y", kernel_shape=[3, 2, 3], pads=[1, 0, 1, 1, 1, 0], strides=[1, 2, 2]
    ),
    "means that count the padding": node(
        "AveragePool", "x", "y", kernel_shape=[3, 2, 3], pads=[1, 1, 1, 1, 0, 1], count_include_pad=1
    ),
    "means along the depth alone": node("AveragePool", "x", "y", kernel_shape=[3, 1, 1]),
    "means of images alone": node("AveragePool", "x", "y", kernel_shape=[1, 2, 2]),
    "the mean": node("GlobalAveragePool", "x", "y"),
    "a norm of batches": node("BatchNormalization", "x s s s s", "y"),
    "a norm of instances": node("InstanceNormalization", "x s s", "y"),
}


@pytest.mark.parametrize("given", VOLUMES.values(), ids=VOLUMES)
def test_volumes_give_what_the_evaluator_makes_of_them(given):
    proto = file([given], {"x": ("n", *SHAPE[1:])}, ["y"], WEIGHTS)
    samples = {"x": normal(*SHAPE)}
    (wanted,) = expected(proto, samples)
    (y,) = compute(read(proto), samples).values()
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_the_largest_of_a_volume():
    """The evaluator takes the largest of each layer."""
    x = normal(*SHAPE)
    (y,) = compute(read(file([node("GlobalMaxPool", "x", "y")], {"x": SHAPE}, ["y"], {})), {"x": x}).values()
    np.testing.assert_array_equal(y, x.max(axis=(2, 3, 4), keepdims=True))


TRANSPOSED = {
    "strided": {"strides": [2, 2, 1]},
    "of a size that the stride leaves open": {"strides": [2, 3, 2], "output_padding": [1, 2, 0]},
    "cut": {"strides": [2, 2, 2], "pads": [1, 1, 0, 1, 1, 0], "dilations": [1, 2, 1]},
}


@pytest.mark.parametrize("attributes", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolutions_of_volumes_are_pytorchs(attributes):
    torch = pytest.importorskip("torch")
    proto = file(
        [node("ConvTranspose", "x t b", "y", **attributes)], {"x": ("n", *SHAPE[1:])}, ["y"], WEIGHTS
    )
    x, t, b = (torch.from_numpy(each) for each in (normal(*SHAPE), WEIGHTS["t"], WEIGHTS["b"]))
    wanted = torch.nn.functional.conv_transpose3d(
        x, t, b, attributes["strides"], attributes.get("pads", [0] * 3)[:3],
        attributes.get("output_padding", 0), 1, attributes.get("dilations", 1),
    )  # fmt: skip
    (y,) = compute(read(proto), {"x": x.numpy()}).values()
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


REFUSED = {
    "pads of images": (
        node("Conv", "x w", "y", pads=[1, 1, 1, 1]),
        "volumes have 6: front, top, left, back, bottom",
    ),
    "strides of images": (
        node("Conv", "x w", "y", strides=[1, 1]),
        "volumes have 3 numbers: depth, height, width",
    ),
    "filters of images": (node("Conv", "x images", "y"), r"filters have shape \(3, 4, 2, 2\)"),
    "dilated pools": (
        node("MaxPool", "x", "y", kernel_shape=[2, 2, 2], dilations=[2, 1, 1]),
        "pools have none",
    ),
    "a window that is too deep": (
        node("MaxPool", "x", "y", kernel_shape=[6, 2, 2]),
        "does not fit the input",
    ),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_a_volume_is_told_with_the_node(given, words):
    proto = file([given], {"x": ("n", *SHAPE[1:])}, ["y"], {**WEIGHTS, "images": normal(3, 4, 2, 2)})
    with pytest.raises(GraphError, match=f"node 'y_node' .*{words}"):
        read(proto)
