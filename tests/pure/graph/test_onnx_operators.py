"""What the onnx package's node tests do not show: older versions, batches, kinds of operands."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import compute, expected, file, node, normal, softmax
from weft.runtime.graph.onnx import read

W, V, M = normal(4), normal(3, 1), normal(4, 5)
X, Z = normal(2, 3, 4), normal(2, 1, 4, seed=1)
HIDDEN = np.tri(3, 4, dtype=bool)  # False above the diagonal, as a causal mask is

CASES = {
    # node, weights, what NumPy computes from x (2, 3, 4) and z (2, 1, 4)
    "a softmax of old over all later axes": (node("Softmax", "x", "y"), {}, softmax(X, (1, 2)), 9),
    "a softmax of old over the last axis": (node("Softmax", "x", "y", axis=2), {}, softmax(X, 2), 9),
    "values of unequal shapes": (node("Add", "x z", "y"), {}, X + Z, 18),
    "a weight of lower rank": (node("Mul", "x w", "y"), {"w": W}, X * W, 18),
    "a weight of the same rank": (node("Mul", "x w", "y"), {"w": V[None]}, X * V, 18),
    "a weight that was expanded to the batch": (
        node("Sub", "w x", "y"), {"w": np.stack([normal(3, 4, seed=2)] * 2)}, normal(3, 4, seed=2) - X, 18
    ),
    "a weight of old, that meets the axis it names": (
        node("Add", "x w", "y", broadcast=1, axis=1), {"w": normal(3)}, X + normal(3)[:, None], 6
    ),
    "a weight of old, that meets last axes": (
        node("Mul", "x w", "y", broadcast=1, axis=-2), {"w": normal(3, 4)}, X * normal(3, 4), 6
    ),
    "nearest elements of which a floor falls on one, as onnxruntime rounds it": (
        node("Resize", "x r s", "y", nearest_mode="floor"),
        {"r": np.ones(0, "f4"), "s": np.float32([1, 1, 0.6])}, X[:, :, [0, 2]], 19,
    ),
    "a number first": (node("Div", "w x", "y"), {"w": np.float32(2)}, 2 / X, 18),
    "a number in axes": (node("Add", "x w", "y"), {"w": np.full((1, 1, 1), 2, "f4")}, X + 2, 18),
    "a sum of values and weights": (node("Sum", "w x z", "y"), {"w": W}, W + X + Z, 18),
    "a power of whole numbers": (node("Pow", "x w", "y"), {"w": np.array(2)}, X**2, 18),
    "a stored matrix on the right": (node("MatMul", "x w", "y"), {"w": M}, X @ M, 18),
    "a stored vector on the right": (node("MatMul", "x w", "y"), {"w": W}, X @ W, 18),
    "a stored matrix on the left": (
        node("MatMul", "w x", "y"), {"w": normal(5, 3)}, normal(5, 3) @ X, 18
    ),
    "stored matrices for every sample": (
        node("MatMul", "x w", "y"), {"w": normal(1, 4, 5)}, X @ normal(1, 4, 5), 18
    ),
    "a stored part of a concat": (
        node("Concat", "x w", "y", axis=1), {"w": normal(1, 2, 4)},
        np.concatenate([X, np.concatenate([normal(1, 2, 4)] * 2)], axis=1), 18,
    ),
    "a slice that leaves nothing, and a concat with it": (
        node("Concat", "x none", "y", axis=1), {"none": np.zeros((2, 0, 4), "f4")}, X, 18
    ),
    "a slice backwards from before the first": (
        node("Slice", "x a b c s", "y"),
        {"a": np.array([-99]), "b": np.array([-99]), "c": np.array([2]), "s": np.array([-1])},
        X[:, :, :1], 13,
    ),
    "a slice of old, with attributes": (
        node("Slice", "x", "y", axes=[1, 2], starts=[0, -3], ends=[2, 9999]), {}, X[:, :2, -3:], 9
    ),
    "a slice of the whole batch": (
        node("Slice", "x a b", "y"), {"a": np.array([0, 1]), "b": np.array([2**62, 2])}, X[:, 1:2], 13
    ),
    "one element gathered": (node("Gather", "x w", "y", axis=1), {"w": np.array(-1)}, X[:, -1], 13),
    "elements gathered in a matrix": (
        node("Gather", "x w", "y", axis=2), {"w": np.array([[0, 3], [1, 1]])}, X[:, :, [[0, 3], [1, 1]]], 13
    ),
    "axes put in": (
        node("Unsqueeze", "x w", "y"), {"w": np.array([-1, 1])}, X[:, None, ..., None], 13
    ),
    "a mean over given axes": (node("ReduceMean", "x", "y", axes=[-1], keepdims=0), {}, X.mean(-1), 13),
    "a mean over none": (
        node("ReduceMean", "x w", "y", noop_with_empty_axes=1), {"w": np.zeros(0, int)}, X, 18
    ),
    "a pad of old": (node("Pad", "x", "y", paddings=[0, 1, 0, 0, 0, 2], value=0.5), {},
                     np.pad(X, ((0, 0), (1, 0), (0, 2)), constant_values=0.5), 1),
    "a pad of named axes that also cuts": (
        node("Pad", "x p v a", "y"),
        {"p": np.array([2, -1, -1, 1]), "v": np.float32(3), "a": np.array([-1, 1])},
        np.pad(X[:, 1:, :-1], ((0, 0), (0, 1), (2, 0)), constant_values=3), 18,
    ),
    "a pad that only cuts": (
        node("Pad", "x p", "y"), {"p": np.array([0, -1, 0, 0, 0, -2])}, X[:, 1:, :-2], 18
    ),
    "a pad with nothing": (node("Pad", "x p", "y"), {"p": np.zeros(6, int)}, X, 18),
    "a mirror": (node("Pad", "x p", "y", mode="reflect"), {"p": np.array([0, 0, 3, 0, 2, 1])},
                 np.pad(X, ((0, 0), (0, 2), (3, 1)), mode="reflect"), 18),
    "an edge that goes on": (node("Pad", "x p", "y", mode="edge"), {"p": np.array([0, 0, 3, 0, 9, 1])},
                             np.pad(X, ((0, 0), (0, 9), (3, 1)), mode="edge"), 18),
    "values expanded": (node("Expand", "z s", "y"), {"s": np.array([3, 4])}, np.repeat(Z, 3, 1), 18),
    "values expanded to less": (node("Expand", "x s", "y"), {"s": np.array([1, 1, 1])}, X, 18),
    "an enlarged image": (
        node("Resize", "x r s", "y", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"r": np.zeros(0, "f4"), "s": np.float32([1, 3, 2])}, X.repeat(3, 1).repeat(2, 2), 13,
    ),
    "an image of old, enlarged": (
        node("Resize", "x s", "y"), {"s": np.float32([1, 1, 3])}, X.repeat(3, 2), 10
    ),
    "scores that a mask hides": (
        node("Where", "c x w", "y"), {"c": HIDDEN, "w": np.float32(-np.inf)}, np.where(HIDDEN, X, -np.inf), 18
    ),
    "weights under a mask first": (
        node("Where", "c w x", "y"), {"c": HIDDEN, "w": W}, np.where(HIDDEN, W, X), 18
    ),
    "one or the other value": (node("Where", "c x z", "y"), {"c": HIDDEN}, np.where(HIDDEN, X, Z), 18),
    "a condition for all": (
        node("Where", "c x z", "y"), {"c": np.array(False)}, np.broadcast_to(Z, X.shape), 18
    ),
    "a softmax's logarithm of old over all later axes": (
        node("LogSoftmax", "x", "y"), {}, np.log(softmax(X, (1, 2))), 9
    ),
    "a mish": (node("Mish", "x", "y"), {}, X * np.tanh(np.log1p(np.exp(X))), 18),
    "lengths over all axes but the batch": (
        node("ReduceL2", "x a", "y", keepdims=0), {"a": np.array([1, 2])}, np.sqrt((X**2).sum((1, 2))), 18
    ),
    "the largest of a line": (node("GlobalMaxPool", "x", "y"), {}, X.max(2, keepdims=True), 18),
    "a slope of each channel": (
        node("PRelu", "x w", "y"), {"w": V}, np.where(X > 0, X, V * X), 18
    ),
    "a slope of old of each channel": (
        node("PRelu", "x w", "y"), {"w": V[:, 0]}, np.where(X > 0, X, V * X), 6
    ),
    "one slope": (node("PRelu", "x w", "y"), {"w": np.float32([0.3])}, np.where(X > 0, X, 0.3 * X), 18),
    "the least of all axes but the batch": (
        node("ReduceMin", "x", "y", axes=[1, -1], keepdims=0), {}, X.min((1, 2)), 13
    ),
    "sums of absolute values": (
        node("ReduceL1", "x a", "y"), {"a": np.array([1])}, abs(X).sum(1, keepdims=True), 18
    ),
    "logarithms of sums that would overflow": (
        node("ReduceLogSumExp", "x a", "y", keepdims=0), {"a": np.array([1, 2])},
        np.log(np.exp(X).sum((1, 2))), 18,
    ),
    "the larger of values and a number": (
        node("Max", "w x", "y"), {"w": np.float32(0.1)}, np.maximum(X, 0.1), 18
    ),
    "the smaller of values and two numbers": (
        node("Min", "w x v", "y"), {"w": np.float32([[0.5]]), "v": np.float32(-0.1)}, np.minimum(X, -0.1), 18
    ),
    "a selu": (node("Selu", "x", "y", alpha=1.2, gamma=0.9), {},
               0.9 * np.where(X > 0, X, 1.2 * np.expm1(X)), 18),
    "absolute values": (node("Abs", "x", "y"), {}, abs(X), 18),
    "the largest of all axes but the batch": (
        node("ReduceMax", "x", "y", axes=[1, -1], keepdims=0), {}, X.max((1, 2)), 13
    ),
    "sums over given axes": (
        node("ReduceSum", "x a", "y"), {"a": np.array([1])}, X.sum(1, keepdims=True), 13
    ),
    "a norm of instances": (
        node("InstanceNormalization", "x s b", "y", epsilon=1e-3), {"s": V[:, 0], "b": normal(3, seed=2)},
        (X - X.mean(2, keepdims=True)) / np.sqrt(X.var(2, keepdims=True) + 1e-3) * V
        + normal(3, seed=2)[:, None], 18,
    ),
    "a norm over two axes": (
        node("LayerNormalization", "x w", "y", axis=1), {"w": normal(3, 4)},
        (X - X.mean((1, 2), keepdims=True)) / np.sqrt(X.var((1, 2), keepdims=True) + 1e-5) * normal(3, 4), 17,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "weights", "wanted", "version"), CASES.values(), ids=CASES)
def test_an_operator_gives_what_numpy_does(given, weights, wanted, version):
    inputs = {name: shape for name, shape in {"x": X.shape, "z": Z.shape}.items() if name in given.input}
    for batch in ("n", 2):  # open and fixed
        shapes = {name: (batch, *shape[1:]) for name, shape in inputs.items()}
        model = read(file([given], shapes, ["y"], weights, version=version))
        (y,) = compute(model, {"x": X, "z": Z}).values()
        assert y.shape == wanted.shape
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_computed_indices_may_count_from_the_end():
    table, tokens = normal(5, 2, 3), np.array([[0, -1, 4], [-5, 2, -2]])
    proto = file([node("Gather", "w x", "y")], {"x": ("n", 3)}, ["y"], {"w": table}, integers=["x"])
    (y,) = compute(read(proto), {"x": tokens}).values()
    np.testing.assert_array_equal(y, table[tokens])


TRANSPOSED = {
    # attributes, and height, width and sides cut off at the top and left of a whole transposed convolution
    "of the size that comes of itself": ({}, (7, 5, 0, 0)),
    "padded": ({"pads": [1, 0, 2, 1]}, (4, 4, 1, 0)),
    "longer by a pixel": ({"output_padding": [1, 0]}, (8, 5, 0, 0)),
    "times the stride, more cut off at the end": ({"auto_pad": "SAME_UPPER"}, (6, 4, 0, 0)),
    "times the stride, more cut off at the start": ({"auto_pad": "SAME_LOWER"}, (6, 4, 1, 1)),
    "of a given size": ({"output_shape": [5, 4]}, (5, 4, 1, 1)),
    "of a given size that no window reaches": ({"output_shape": [8, 6]}, (8, 6, 0, 0)),
    "of no padding by name": ({"auto_pad": "VALID"}, (7, 5, 0, 0)),
}


@pytest.mark.parametrize(("attributes", "cut"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_a_transposed_convolution(attributes, cut):
    x, w, b = normal(2, 3, 3, 2), normal(3, 4, 3, 3), normal(4)
    whole = np.zeros((2, 4, 9, 7), np.float32)
    for i in range(3):
        for j in range(2):
            whole[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += np.einsum("nc,cohw->nohw", x[:, :, i, j], w)
    height, width, top, left = cut
    wanted = whole[:, :, top : top + height, left : left + width] + b[:, None, None]
    given = node("ConvTranspose", "x w b", "y", strides=[2, 2], **attributes)
    model = read(file([given], {"x": ("n", 3, 3, 2)}, ["y"], {"w": w, "b": b}))
    (y,) = compute(model, {"x": x}).values()
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


LINES = {
    "a transposed convolution": node(
        "ConvTranspose", "x t", "y", strides=[2], pads=[1, 0], output_padding=[1]
    ),
    "a convolution": node("Conv", "x w b", "y", strides=[2], pads=[2, 1], dilations=[2]),
    "a convolution in groups": node("Conv", "x g", "y", group=2),
    "a convolution that keeps the width": node("Conv", "x w", "y", auto_pad="SAME_UPPER", kernel_shape=[3]),
    "the largest of windows": node("MaxPool", "x", "y", kernel_shape=[3], strides=[2], pads=[1, 0]),
    "a last window that ends outside": node("MaxPool", "x", "y", kernel_shape=[2], strides=[2], ceil_mode=1),
    "means of windows": node("AveragePool", "x", "y", kernel_shape=[3], pads=[1, 1], count_include_pad=1),
    "means": node("GlobalAveragePool", "x", "y"),
    "a norm": node("BatchNormalization", "x s s s s", "y"),
}


@pytest.mark.parametrize("given", LINES.values(), ids=LINES)
def test_a_line_is_an_image_of_height_1(given):
    weights = {
        "w": normal(4, 4, 3),
        "b": normal(4),
        "g": normal(6, 2, 4),
        "s": normal(4) ** 2 + 1,
        "t": normal(4, 3, 3),
    }
    proto = file([given], {"x": ("n", 4, 9)}, ["y"], weights)
    samples = {"x": normal(2, 4, 9)}
    (wanted,) = expected(proto, samples)
    (y,) = compute(read(proto), samples).values()
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_computed_when_the_file_is_read_follows_the_standard():
    """The package's evaluator does not, for these sets of operators."""
    w, s, b, m, v = (
        normal(2, 3, 4),
        normal(3),
        normal(3, seed=1),
        normal(3, seed=2),
        normal(3, seed=3) ** 2 + 1,
    )
    chosen = np.zeros((2, 12), np.float32)
    chosen[[0, 1], w.reshape(2, 12).argmax(axis=1)] = 1
    neighbours = np.stack([(w[:, max(0, c - 1) : c + 2] ** 2).sum(axis=1) for c in range(3)], axis=1)
    one = (-1, 1)
    expected = {
        ("Softmax", "w", 11): softmax(w, (1, 2)),
        ("LogSoftmax", "w", 9): np.log(softmax(w, (1, 2))),
        ("Hardmax", "w", 11): chosen.reshape(2, 3, 4),
        ("Softmax", "w", 13): softmax(w, 2),
        ("BatchNormalization", "w s b m v", 9): (w - m.reshape(one)) / np.sqrt(v.reshape(one) + 1e-5)
        * s.reshape(one) + b.reshape(one),
        ("LRN", "w", 13): w / (1 + 1e-4 / 3 * neighbours) ** 0.75,
    }  # fmt: skip
    for (op, inputs, version), result in expected.items():
        more = {"size": 3} if op == "LRN" else {}
        nodes = [node(op, inputs, "p", **more), node("Add", "x p", "y")]
        proto = file(
            nodes, {"x": (2, 3, 4)}, ["y"], {"w": w, "s": s, "b": b, "m": m, "v": v}, version=version
        )
        x = normal(2, 3, 4, seed=9)
        (got,) = compute(read(proto, batched=False), {"x": x[None]}).values()
        np.testing.assert_allclose(got[0], x + result, rtol=1e-5, atol=1e-6, err_msg=op)


def test_a_norm_without_weights_has_none_that_are_trained():
    nodes = [
        node("Constant", "", "s", value_floats=[1.0] * 3), node("Constant", "", "b", value_floats=[0.0] * 3),
        node("InstanceNormalization", "x s b", "y"),
    ]  # fmt: skip
    model = read(file(nodes, {"x": ("n", 3, 4)}, ["y"], {}))
    assert model.weights == {}
    wanted = (X - X.mean(2, keepdims=True)) / np.sqrt(X.var(2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(*compute(model, {"x": X}).values(), wanted, rtol=1e-5, atol=1e-5)


def test_values_are_expanded_to_the_shape_of_others():
    nodes = [node("Shape", "x", "s"), node("Expand", "z s", "e"), node("Div", "x e", "y")]
    for batch in ("n", 2):
        model = read(file(nodes, {"x": (batch, 3, 4), "z": (batch, 1, 4)}, ["y"], {}))
        np.testing.assert_allclose(*compute(model, {"x": X, "z": Z}).values(), X / Z, rtol=1e-6)


def test_a_scale_of_an_image_makes_as_many_elements_as_in_pytorch():
    """0.7 is a little less in float32, but times 10 it is 7 there, as in onnxruntime; 6 were made."""
    x, weights = normal(2, 3, 10), {"r": np.zeros(0, "f4"), "s": np.float32([1, 1, 0.7])}
    nodes = [node("Resize", "x r s", "y", coordinate_transformation_mode="asymmetric", nearest_mode="floor")]
    (y,) = compute(read(file(nodes, {"x": ("n", 3, 10)}, ["y"], weights)), {"x": x}).values()
    np.testing.assert_array_equal(y, x[:, :, [0, 1, 2, 4, 5, 7, 8]])


def test_an_image_is_enlarged_to_the_size_of_another_in_an_open_batch():
    nodes = [
        node("Shape", "x", "s", end=1), node("Concat", "s more", "size", axis=0),
        node("Resize", "x r n size", "y"),
    ]  # fmt: skip
    weights = {"more": np.array([6, 4]), "r": np.zeros(0, "f4"), "n": np.zeros(0, "f4")}
    proto = file(nodes, {"x": ("n", 3, 4)}, ["y"], weights)
    proto.graph.node[2].input[1] = proto.graph.node[2].input[2] = ""
    np.testing.assert_array_equal(*compute(read(proto), {"x": X}).values(), X.repeat(2, 1))
