"""What is merged when a file is read: biases, scales, pads, norms, sums and ReLUs; and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import compute, expected, file, node, normal
from weft.runtime.graph import describe
from weft.runtime.graph.onnx import read


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_what_looks_like_channels_behind_a_norm_of_volumes_is_not_merged(op):
    weights = {name: normal(3, seed=i) ** 2 + 1 for i, name in enumerate("sbmv")} | {"k": normal(3, 1, 1)}
    nodes = [node("BatchNormalization", "x s b m v", "n"), node(op, "n k", "y")]
    (y,) = compute(
        read(file(nodes, {"x": ("n", 3, 3, 2, 2)}, ["y"], weights)), {"x": (x := normal(2, 3, 3, 2, 2))}
    ).values()
    s, b, m, v = (weights[name].reshape(3, 1, 1, 1) for name in "sbmv")
    normed = (x - m) / np.sqrt(v + 1e-5) * s + b
    wanted = normed + weights["k"] if op == "Add" else normed * weights["k"]
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_norm_is_folded_into_a_transposed_convolution(groups):
    weights = {"w": normal(4, 3, 2, 2)} | {
        name: normal(3 * groups, seed=i) ** 2 + 1 for i, name in enumerate("sbmv")
    }
    nodes = [
        node("ConvTranspose", "x w", "c", strides=[2, 2], group=groups),
        node("BatchNormalization", "c s b m v", "y"),
    ]  # fmt: skip
    proto = file(nodes, {"x": ("n", 4, 3, 2)}, ["y"], weights)
    model, folded = read(proto), read(proto, inference=True)
    assert [each.kernel.name for each in folded.graph.nodes] == ["conv_transpose2d"]
    (wanted,) = compute(model, {"x": normal(2, 4, 3, 2)}).values()
    (y,) = compute(folded, {"x": normal(2, 4, 3, 2)}).values()
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_layers_of_lines_are_merged_as_those_of_images():
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1]), node("BatchNormalization", "c s s s s", "n"),
        node("Relu", "n", "r"), node("Conv", "r v", "d", pads=[1, 1]), node("Add", "d r", "y"),
    ]  # fmt: skip
    weights = {"w": normal(4, 2, 3), "b": normal(4), "v": normal(4, 4, 3), "s": normal(4) ** 2 + 1}
    proto = file(nodes, {"x": ("n", 2, 9)}, ["y"], weights)
    samples = {"x": normal(2, 2, 9)}
    (wanted,) = expected(proto, samples)
    folded = read(proto, inference=True)
    names = [each.kernel.name for each in folded.graph.nodes]
    assert names == ["reshape", "conv2d", "conv2d_add", "reshape"]
    for model in (read(proto), folded):
        (y,) = compute(model, samples).values()
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def channels(*nodes, outputs=("y",)):
    """Norm and what follows it on images of 3 channels."""
    weights = {
        "s": normal(3, seed=1), "b": normal(3, seed=2), "m": normal(3, seed=3),
        "v": normal(3, seed=4) ** 2 + 1, "f": normal(3, 1, 1, seed=5), "t": normal(3, 1, 1, seed=6),
        "number": np.float32(3),
    }  # fmt: skip
    proto = file(
        [node("BatchNormalization", "x s b m v", "n"), *nodes], {"x": ("n", 3, 2, 2)}, outputs, weights
    )
    x = normal(2, 3, 2, 2)

    def one(name):
        return weights[name].reshape(-1, 1, 1)

    n = (x - one("m")) / np.sqrt(one("v") + 1e-5) * one("s") + one("b")
    return proto, x, n, weights


def test_what_scales_and_shifts_a_norm_is_merged_into_it():
    proto, x, n, weights = channels(node("Mul", "n f", "scaled"), node("Add", "t scaled", "y"))
    model = read(proto)
    assert [(each.name, each.kernel.name) for each in model.graph.nodes] == [("y_node", "batch_norm")]
    (y,) = compute(model, {"x": x}).values()
    np.testing.assert_allclose(y, n * weights["f"] + weights["t"], rtol=1e-4, atol=1e-5)


def test_what_is_asked_for_its_shape_alone_is_not_computed():
    nodes = [
        node("Conv", "x w", "c"), node("Shape", "c", "s"), node("Reshape", "x r", "f"),
        node("Relu", "f", "h"), node("Reshape", "h s", "y"),
    ]  # fmt: skip
    weights = {"w": normal(3, 3, 1, 1), "r": np.array([0, -1])}
    model = read(file(nodes, {"x": ("n", 3, 2, 4)}, ["y"], weights))
    assert [each.kernel.name for each in model.graph.nodes] == ["reshape", "relu", "reshape"]
    assert not model.weights
    (y,) = compute(model, {"x": (x := normal(2, 3, 2, 4))}).values()
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_what_others_read_is_not_merged():
    proto, x, n, weights = channels(node("Mul", "n f", "scaled"), node("Add", "n scaled", "y"))
    (y,) = compute(read(proto), {"x": x}).values()
    np.testing.assert_allclose(y, n * weights["f"] + n, rtol=1e-4, atol=1e-5)
    proto, x, n, weights = channels(node("Mul", "n f", "y"), outputs=["n", "y"])
    first, second = compute(read(proto), {"x": x}).values()
    np.testing.assert_allclose(first, n, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second, n * weights["f"], rtol=1e-4, atol=1e-5)


def test_a_number_is_not_merged():
    proto, x, n, _ = channels(node("Mul", "n number", "y"))
    model = read(proto)
    (y,) = compute(model, {"x": x}).values()
    np.testing.assert_allclose(y, n * 3, rtol=1e-4, atol=1e-5)
    assert [each.kernel.name for each in model.graph.nodes] == ["batch_norm", "arithmetic_number"]


K = normal(3, 2, 3, 3)
IMAGES = normal(2, 2, 5, 6)
ONE_ROUND = [0, 0, 1, 1, 0, 0, 1, 1]
PADDED = {
    # the pad's value and pads, what is behind it, and whether the two are one
    "zeros before a convolution": (
        0, [0, 0, 1, 0, 0, 0, 2, 1], node("Conv", "p k", "y", pads=[0, 1, 0, 1]), True
    ),
    "zeros before filters that step over them": (
        0, [0, 0, 4, 4, 0, 0, 4, 4], node("Conv", "p k", "y", strides=[5, 5]), True
    ),
    "ones before a convolution": (1, ONE_ROUND, node("Conv", "p k", "y"), False),
    "what is below all before a largest": (
        -np.inf, ONE_ROUND, node("MaxPool", "p", "y", kernel_shape=[3, 3], strides=[2, 2]), True
    ),
    "zeros before a largest": (0, ONE_ROUND, node("MaxPool", "p", "y", kernel_shape=[3, 3]), False),
    "more than a window before a largest": (
        -np.inf, [0, 0, 0, 3, 0, 0, 0, 0], node("MaxPool", "p", "y", kernel_shape=[4, 3]), False
    ),
    "zeros before a mean": (
        0, [0, 0, 1, 1, 0, 0, 0, 1], node("AveragePool", "p", "y", kernel_shape=[3, 2]), True
    ),
    "zeros before a mean that leaves out its own": (
        0, [0, 0, 1, 0, 0, 0, 0, 1],
        node("AveragePool", "p", "y", kernel_shape=[3, 2], pads=[1, 1, 0, 0]), False,
    ),
    "zeros before a mean that counts its own": (
        0, [0, 0, 1, 0, 0, 0, 0, 0],
        node("AveragePool", "p", "y", kernel_shape=[3, 2], pads=[1, 1, 0, 0], count_include_pad=1), True,
    ),
    "channels of zeros": (
        0, [0, 1, 0, 0, 0, 0, 0, 0], node("AveragePool", "p", "y", kernel_shape=[3, 2]), False
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "pads", "behind", "merged"), PADDED.values(), ids=PADDED)
def test_pixels_around_an_image_become_padding_where_they_are_the_same(value, pads, behind, merged):
    weights = {"k": K, "pads": np.array(pads), "value": np.float32(value)}
    proto = file([node("Pad", "x pads value", "p"), behind], {"x": ("n", 2, 5, 6)}, ["y"], weights)
    for inference in (False, True):
        model = read(proto, inference=inference)
        assert len(model.graph.nodes) == (1 if merged else 2)
        (y,) = compute(model, {"x": IMAGES}).values()
        (wanted,) = expected(proto, {"x": IMAGES})
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_a_pad_that_others_read_too_stays_apart():
    weights = {"k": normal(2, 2, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    nodes = [
        node("Pad", "x pads", "p"), node("Conv", "p k", "c", pads=[1, 1, 1, 1]), node("Add", "c p", "y")
    ]  # fmt: skip
    proto = file(nodes, {"x": ("n", 2, 5, 6)}, ["y"], weights)
    (y,) = compute(read(proto), {"x": IMAGES}).values()
    np.testing.assert_allclose(y, expected(proto, {"x": IMAGES})[0], rtol=1e-5, atol=1e-5)


def test_for_inference_a_convolution_takes_the_norm_and_the_scale_behind_it():
    weights = {
        "k": normal(3, 2, 3, 3), "s": normal(3, seed=1), "b": normal(3, seed=2), "m": normal(3, seed=3),
        "v": normal(3, seed=4) ** 2 + 1, "f": normal(3, 1, 1, seed=5),
    }  # fmt: skip
    nodes = [
        node("Conv", "x k", "c"), node("BatchNormalization", "c s b m v", "n", epsilon=0.1),
        node("Mul", "n f", "y"),
    ]  # fmt: skip
    proto = file(nodes, {"x": ("n", 2, 5, 5)}, ["y"], weights)
    apart, folded = read(proto), read(proto, inference=True)
    assert [each.kernel.name for each in apart.graph.nodes] == ["conv2d", "batch_norm"]
    (only,) = folded.graph.nodes
    assert (only.name, only.kernel.name) == ("y_node", "conv2d")
    assert sum(each.parameters for each in describe(folded.graph, 1).values()) == 3 * 2 * 9 + 3
    x = normal(2, 2, 5, 5)
    (one,), (other,) = (compute(model, {"x": x}).values() for model in (apart, folded))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["n short", "short n"])
def test_for_inference_a_sum_and_what_bends_it_are_merged_into_the_last_convolution(order):
    weights = {
        "j": normal(3, 2, 1, 1, seed=7), "k": normal(3, 2, 3, 3), "s": normal(3, seed=1),
        "b": normal(3, seed=2), "m": normal(3, seed=3), "v": normal(3, seed=4) ** 2 + 1,
    }  # fmt: skip
    nodes = [
        node("Conv", "x j", "short"), node("Conv", "x k", "c", pads=[1] * 4),
        node("BatchNormalization", "c s b m v", "n"), node("Add", order, "sum"), node("Relu", "sum", "y"),
    ]  # fmt: skip
    proto = file(nodes, {"x": ("n", 2, 5, 5)}, ["y"], weights)
    apart, merged = read(proto), read(proto, inference=True)
    assert [(each.name, each.kernel.name) for each in merged.graph.nodes] == [
        ("short_node", "conv2d"), ("y_node", "conv2d_add")
    ]  # fmt: skip
    assert merged.graph.nodes[1].kernel.relu
    x = normal(2, 2, 5, 5)
    (one,), (other,) = (compute(model, {"x": x}).values() for model in (apart, merged))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_norm_behind_a_sum_is_not_taken_for_the_convolutions_own():
    weights = {
        "k": normal(2, 2, 1, 1), "s": normal(2, seed=1), "b": normal(2, seed=2), "m": normal(2, seed=3),
        "v": normal(2, seed=4) ** 2 + 1, "f": normal(2, 1, 1, seed=5),
    }  # fmt: skip
    nodes = [node("Conv", "x k", "c"), node("Add", "c x", "sum")]
    for last in (node("BatchNormalization", "sum s b m v", "y"), node("Mul", "sum f", "y")):
        proto = file([*nodes, last], {"x": ("n", 2, 3, 3)}, ["y"], weights)
        apart, merged = read(proto), read(proto, inference=True)
        assert merged.graph.nodes[0].kernel.name == "conv2d_add"
        x = normal(2, 2, 3, 3)
        (one,), (other,) = (compute(model, {"x": x}).values() for model in (apart, merged))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_is_added_to_itself_or_read_by_others_stays():
    weights = {"k": normal(2, 2, 1, 1)}
    for sum_of, outputs in (("c c", ["y"]), ("c x", ["c", "y"])):
        nodes = [node("Conv", "x k", "c"), node("Add", sum_of, "y")]
        proto = file(nodes, {"x": ("n", 2, 3, 3)}, outputs, weights)
        model = read(proto, inference=True)
        assert [each.kernel.name for each in model.graph.nodes] == ["conv2d", "add"]
