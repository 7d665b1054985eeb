"""The batch of a file: folded into other axes, moved to them, of 1, open while numbers follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import compute, expected, file, node, normal, softmax
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import read

W, M, X = normal(4), normal(4, 5), normal(2, 3, 4)
HIDDEN = np.tri(3, 4, dtype=bool)  # False above the diagonal, as a causal mask is


def test_a_batch_may_be_folded_away_for_a_product_and_come_back():
    nodes = [
        node("Reshape", "x rows", "flat"), node("Gemm", "flat m b", "h"), node("Relu", "h", "r"),
        node("Mul", "r r", "s"), node("Shape", "x", "shape", end=2),
        node("Concat", "shape wide", "back", axis=0), node("Reshape", "s back", "y"),
    ]  # fmt: skip
    weights = {"rows": np.array([-1, 4]), "wide": np.array([5]), "m": M, "b": normal(5)}
    for batch in ("n", 1, 2):
        model = read(file(nodes, {"x": (batch, 3, 4)}, ["y"], weights))
        (y,) = compute(model, {"x": X}).values()
        np.testing.assert_allclose(y, np.maximum(X @ M + normal(5), 0) ** 2, rtol=1e-5, atol=1e-6)
        assert [each.kernel.name for each in model.graph.nodes] == ["dense", "relu", "arithmetic"]


@pytest.mark.parametrize("shape", [[-1, 6], [2, -1], [4, -1]], ids=str)
def test_a_batch_is_folded_in_no_other_way(shape):
    nodes = [node("Reshape", "x s", "flat"), node("Relu", "flat", "y")]
    with pytest.raises(GraphError, match="which mixes the batch with other axes"):
        read(file(nodes, {"x": ("n", 3, 4)}, ["y"], {"s": np.array(shape)}))


@pytest.mark.parametrize("batch", ["n", 1, 3])
@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)], ids=str)
def test_a_batch_norm_of_folded_rows_is_one_of_channels_over_samples_and_places(shape, batch):
    """As models normalise each place of a sequence: BatchNorm1d behind a reshape to (-1, features)."""
    weights = {
        "s": np.array([-1, 5]), "back": np.array([-1, *shape]), "w": normal(5, 5), "scale": normal(5),
        "shift": normal(5, seed=1), "mean": normal(5, seed=2), "variance": normal(5, seed=3) ** 2 + 0.5,
    }  # fmt: skip
    nodes = [
        node("Reshape", "x s", "flat"), node("MatMul", "flat w", "h"),
        node("BatchNormalization", "h scale shift mean variance", "n"), node("Relu", "n", "r"),
        node("Reshape", "r back", "y"),
    ]  # fmt: skip
    proto = file(nodes, {"x": (batch, *shape)}, ["y"], weights)
    samples = {"x": normal(1 if batch == 1 else 3, *shape)}
    model = read(proto)
    (got,), (wanted,) = compute(model, samples).values(), expected(proto, samples)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    (norm,) = (each for each in model.graph.nodes if each.kernel.name == "batch_norm")
    channels = model.graph.specs(3)[norm.inputs[0]].shape
    assert channels == (3, 5, *shape[:-1]), "training takes its statistics over samples and places"


FOLDED = {
    "softmax of another axis": node("Softmax", "flat", "y", axis=0),
    "a mean": node("ReduceMean", "flat", "y", axes=[-1], keepdims=1),
    "a slice": node("Slice", "flat from to axis", "y"),
    "a concat": node("Concat", "flat flat", "y", axis=1),
    "a transpose": node("Transpose", "flat", "y", perm=[1, 0]),
    "an output": node("Relu", "flat", "y"),
}


@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("given", FOLDED.values(), ids=FOLDED)
def test_behind_a_folded_batch_axes_are_not_taken_for_others(given, batch):
    """A batch of 1, which moves nothing when it is folded, is no exception."""
    weights = {"s": np.array([-1, 4]), "from": np.array([0]), "to": np.array([2]), "axis": np.array([1])}
    proto = file([node("Reshape", "x s", "flat"), given], {"x": (batch, 3, 4)}, ["y"], weights, version=13)
    with pytest.raises(GraphError, match=r"batch (folded into its first|in another) axis|axis 0, the batch"):
        read(proto)


def reshaped(values: str, shape: list[int], at: str) -> list:
    return [
        node("Constant", "", f"{at}_shape", value_ints=shape),
        node("Reshape", f"{values} {at}_shape", at),
    ]


def transposed(values: str, perm: list[int], at: str) -> list:
    return [node("Transpose", values, at, perm=perm)]


MOVED = {
    "places in front, as PyTorch's attention wants them": [
        *transposed("x", [1, 0, 2], "t"), node("MatMul", "t m", "p"), node("Add", "p b", "q"),
        node("Softmax", "q", "s", axis=-1), *transposed("s", [1, 0, 2], "y"),
    ],
    "queries, keys and values in front": [
        *reshaped("x", [-1, 3, 2, 2], "r"), *transposed("r", [2, 0, 3, 1], "t"),
        node("Gather", "t first", "q", axis=0), node("Gather", "t second", "k", axis=0),
        *transposed("k", [0, 2, 1], "kt"), node("MatMul", "q kt", "y"),
    ],
    "heads folded with samples": [
        *transposed("x", [1, 0, 2], "t"), *reshaped("t", [3, -1, 2], "h"), *transposed("h", [1, 0, 2], "q"),
        *transposed("q", [0, 2, 1], "k"), node("Mul", "q half", "qs"), node("MatMul", "qs k", "s"),
        node("Softmax", "s", "p", axis=-1), node("MatMul", "p q", "o"), *transposed("o", [1, 0, 2], "u"),
        *reshaped("u", [-1, 4], "rows"), node("Gemm", "rows m b", "g"), *reshaped("g", [3, -1, 5], "v"),
        *transposed("v", [1, 0, 2], "y"),
    ],
    "windows folded with samples, and a bias of each head": [
        *reshaped("x", [-1, 3, 2, 2], "r"), *transposed("r", [0, 2, 1, 3], "t"),
        *reshaped("t", [-1, 1, 3, 2], "w"), node("Add", "w table", "a"), node("Softmax", "a", "s"),
        *reshaped("s", [-1, 2, 3, 2], "u"), *transposed("u", [0, 2, 1, 3], "v"),
        *reshaped("v", [-1, 3, 4], "y"),
    ],
    "an axis put in front and cut": [
        node("Unsqueeze", "x zero", "u"), *transposed("u", [3, 2, 1, 0], "t"), node("Squeeze", "t last", "s"),
        node("Slice", "s one four zero", "c"), node("Split", "c", "e f g", axis=0, num_outputs=3),
        node("Sub", "e g", "d"), node("Max", "d f", "h"), *transposed("h", [2, 1, 0], "y"),
    ],
    "a bound of axes the other way round": [
        *transposed("x", [2, 0, 1], "t"), node("Max", "t half", "h"), *transposed("h", [1, 2, 0], "y")
    ],
}  # fmt: skip


@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("nodes", MOVED.values(), ids=MOVED)
def test_a_batch_may_move_to_other_axes_and_come_back(nodes, batch):
    """PyTorch's attention, and transformers of images, move it, and were refused."""
    weights = {
        "m": M, "b": normal(5), "first": np.array(0), "second": np.array(1), "half": np.float32([0.5]),
        "table": normal(1, 1, 3, 2), "zero": np.array([0]), "last": np.array([3]), "one": np.array([1]),
        "four": np.array([4]),
    }  # fmt: skip
    model = read(file(nodes, {"x": (batch, 3, 4)}, ["y"], weights))
    (wanted,) = expected(file(nodes, {"x": (2, 3, 4)}, ["y"], weights), {"x": X})
    if batch == 1:  # such a file has other shapes for one sample alone
        alone = file(nodes, {"x": (1, 3, 4)}, ["y"], weights)
        wanted = np.concatenate([expected(alone, {"x": each[None]})[0] for each in X])
    (y,) = compute(model, {"x": X}).values()
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["Add", "Greater", "Max", "And"])
@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 4), (3, 1, 4)], ids=str)
def test_what_meets_a_moved_batch_is_not_taken_for_what_meets_places(op, shape):
    """Samples and places are both two here, so that either fits."""
    w = normal(*shape) > 0 if op == "And" else normal(*shape)
    nodes = [node("Cast", "x", "c", to=9 if op == "And" else 1), *transposed("c", [1, 0, 2], "t")]
    nodes += [node(op, "t w", "h"), node("Cast", "h", "f", to=1), *transposed("f", [1, 0, 2], "y")]
    with pytest.raises(GraphError, match=f"node 'h_node' .{op}.*batch in another axis"):
        read(file(nodes, {"x": (2, shape[0] if len(shape) > 2 and shape[0] > 1 else 2, 4)}, ["y"], {"w": w}))


ALONE = normal(1, 1, 3, 3)
BEHIND = [*transposed("x", [1, 2, 3, 0], "t"), node("Cast", "t", "i", to=7), node("Cast", "i", "c", to=1)]
OF_ONE = {
    "a product with what was brought to the front": [*BEHIND, node("Mul", "t c", "y")],
    "a comparison with it": [*BEHIND, node("Greater", "t c", "g"), node("Cast", "g", "y", to=1)],
    "a sum with the axes the other way round": [
        *transposed("x", [1, 0, 3, 2], "t"), node("Sum", "x t", "y")
    ],
}  # fmt: skip


@pytest.mark.parametrize("nodes", OF_ONE.values(), ids=OF_ONE)
def test_a_batch_of_1_may_lie_otherwise_in_what_meets(nodes):
    """Axes in other places met each other: the result was wrong where extents fitted, else a riddle."""
    proto = file(nodes, {"x": (1, 1, 3, 3)}, ["y"], {"one": np.array([1])})
    (y,) = compute(read(proto), {"x": ALONE}).values()
    np.testing.assert_allclose(y, expected(proto, {"x": ALONE})[0], rtol=1e-5, atol=1e-6)


def test_an_array_that_meets_a_moved_batch_of_1_is_not_taken_for_what_meets_places():
    nodes = [*transposed("x", [1, 2, 3, 0], "t"), node("Mul", "t w", "y")]
    with pytest.raises(GraphError, match=r"'y_node' .Mul.: 'x' has .* with the batch in another axis"):
        read(file(nodes, {"x": (1, 1, 3, 3)}, ["y"], {"w": normal(3, 1)}))


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_norms_and_softmax_along_the_last_axis_work_on_a_folded_batch(batch):
    nodes = [
        node("Reshape", "x s", "flat"), node("LayerNormalization", "flat w b", "n"),
        node("Softmax", "n", "p", axis=1), node("Reshape", "p back", "y"),
    ]  # fmt: skip
    weights = {"s": np.array([-1, 4]), "w": W, "b": normal(4, seed=1), "back": np.array([-1, 3, 4])}
    (y,) = compute(read(file(nodes, {"x": (batch, 3, 4)}, ["y"], weights)), {"x": X}).values()
    normed = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, softmax(normed * W + normal(4, seed=1), 2), rtol=1e-5, atol=1e-6)


OF_THE_BATCH = {
    "a number": [node("Gather", "f first", "n"), node("Div", "x n", "y")],
    "the root of one": [node("Gather", "f first", "n"), node("Sqrt", "n", "r"), node("Mul", "x r", "y")],
    "whether it is one": [
        node("Gather", "f first", "n"), node("Equal", "n one", "is"), node("Cast", "is", "c", to=1),
        node("Mul", "x c", "y"),
    ],
    "the end of a slice": [
        node("Slice", "s zero three zero", "n"), node("Sub", "n ones", "less"),
        node("Slice", "x zero less ones", "y"),
    ],
    "a gathered place": [
        node("Gather", "s first", "n"), node("Sub", "n n8190", "p"), node("Gather", "x p", "y", axis=1)
    ],
    "an output": [node("Identity", "s", "y")],
}  # fmt: skip


@pytest.mark.parametrize("nodes", OF_THE_BATCH.values(), ids=OF_THE_BATCH)
def test_what_is_computed_from_an_open_batch_is_refused(nodes):
    weights = {
        "first": np.array(0), "one": np.float32(1), "zero": np.array([0]), "three": np.array([1]),
        "ones": np.array([1]), "n8190": np.array(8190),
    }  # fmt: skip
    whole = [node("Shape", "x", "s"), node("Cast", "s", "f", to=1), *nodes]
    with pytest.raises(GraphError, match="it computes with the batch size, which is open"):
        read(file(whole, {"x": ("n", 8)}, ["y"], weights))


def test_what_an_open_batch_makes_no_difference_to_is_read():
    """The number of features, from the shape; zeros as many as samples; and all samples sliced."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s one", "c"), node("Cast", "c", "f", to=1),
        node("Div", "x f", "d"), node("ConstantOfShape", "s", "z"), node("Add", "d z", "a"),
        node("Slice", "s zero ones", "n"), node("Slice", "a zero n zero", "y"),
    ]  # fmt: skip
    weights = {"one": np.array(1), "zero": np.array([0]), "ones": np.array([1])}
    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    (y,) = compute(read(file(nodes, {"x": ("n", 8)}, ["y"], weights)), {"x": x}).values()
    np.testing.assert_allclose(y, x / 8, rtol=1e-6)
