"""ArgMax, TopK and CumSum in models: their batch, older versions, places of tokens; what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.pure.graph.onnx_files import compute, expected, file, node, normal, one
from weft.runtime.errors import GraphError
from weft.runtime.graph.onnx import read


def test_the_places_of_tokens_follow_from_a_mask():
    """As RoBERTa counts them: padding is no place, and has that of its table's padding."""
    nodes = [
        node("Equal", "x one", "pad"), node("Not", "pad", "real"),
        node("Cast", "real", "mask", to=TensorProto.INT32), node("CumSum", "mask axis", "count"),
        node("Mul", "count mask", "seen"), node("Cast", "seen", "wide", to=TensorProto.INT64),
        node("Add", "wide one", "places"), node("Gather", "table places", "y"),
    ]  # fmt: skip
    weights = {"one": np.array(1), "axis": np.array(1), "table": normal(9, 4)}
    proto = file(nodes, {"x": ("n", 6)}, ["y"], weights, integers=("x",))
    samples = {"x": np.array([[5, 6, 7, 1, 1, 1], [2, 3, 4, 5, 6, 1]])}
    (y,) = compute(read(proto), samples).values()
    np.testing.assert_array_equal(y, expected(proto, samples)[0])


def test_of_the_first_elements_only_what_is_read_is_computed():
    for wanted, kernels in ((["v"], ["top_k"]), (["i"], ["top_k_indices"])):
        proto = file([node("TopK", "x k", "v i")], {"x": ("n", 5)}, wanted, {"k": np.array([2])})
        model = read(proto)
        assert [each.kernel.name for each in model.graph.nodes] == kernels
        samples = {"x": normal(3, 5)}
        (y,) = compute(model, samples).values()
        np.testing.assert_array_equal(y, expected(proto, samples)[0])


def test_of_old_the_first_elements_were_counted_by_an_attribute():
    x = normal(3, 5)
    (y,) = compute(read(one("TopK", shape=("n", 5), version=9, k=2)), {"x": x}).values()
    np.testing.assert_array_equal(y, -np.sort(-x)[:, :2])


def test_sums_along_an_axis_are_so_wherever_the_batch_is():
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("CumSum", "t axis", "s"),
        node("Transpose", "s", "y", perm=[1, 0, 2]),
    ]
    proto = file(nodes, {"x": ("n", 3, 4)}, ["y"], {"axis": np.array(0)})
    (y,) = compute(read(proto), {"x": normal(2, 3, 4)}).values()
    np.testing.assert_allclose(y, normal(2, 3, 4).cumsum(1), rtol=1e-6)


REFUSED = {
    "the largest of samples": (one("ArgMax"), "it works along axis 0, the batch, and would mix samples"),
    "sums of samples": (one("CumSum", "x a", weights={"a": np.array(0)}), "axis 0, the batch"),
    "more than there are": (one("TopK", "x k", weights={"k": np.array([5])}), "k is 5; axis 1 of"),
    "none": (one("TopK", "x k", weights={"k": np.array([0])}), "k is 0; give at least 1"),
    "how many is not one number": (
        one("TopK", "x k", weights={"k": np.array([2, 3])}), "its k is [2, 3]; it needs one number"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("proto", "words"), REFUSED.values(), ids=REFUSED)
def test_what_mixes_samples_or_is_not_there_is_refused(proto, words):
    with pytest.raises(GraphError) as caught:
        read(proto)
    assert words in str(caught.value)
