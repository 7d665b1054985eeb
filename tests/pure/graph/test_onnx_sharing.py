"""Weights of a file that several of its nodes read: which become one parameter of the graph."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pure.graph.onnx_files import compute, file, node
from weft.runtime.graph import Layout
from weft.runtime.graph.onnx import read, write

SHARED = {
    "a table that comes back transposed": (
        [node("Gather", "w x", "h"), node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "h t", "y")],
        np.arange(12, dtype=np.float32).reshape(4, 3), {"w": ("h_node", "y_node")},
    ),
    "a table that was transposed when the file was written": (
        [node("Gather", "w x", "h"), node("MatMul", "h onnx::MatMul_4", "y")],
        np.arange(12, dtype=np.float32).reshape(4, 3), {"w": ("h_node", "y_node")},
    ),
    "a table that is read once": (
        [node("Gather", "w x", "y")], np.arange(12, dtype=np.float32).reshape(4, 3), {},
    ),
    "equal numbers, which exporters store once": (
        [node("Gather", "w x", "h"), node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "h t", "y")],
        np.ones((4, 3), np.float32), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "weight", "shared"), SHARED.values(), ids=SHARED)
def test_weights_that_several_nodes_read_are_one_parameter(nodes, weight, shared):
    stored = {"w": weight, "onnx::MatMul_4": np.ascontiguousarray(weight.T)}
    model = read(file(nodes, {"x": ("n", 5)}, ["y"], stored, integers=["x"]))
    assert (model.shared, model.parted) == (shared, {})
    numbers = sum(p.spec.size for p in Layout.of(model.graph).parameters)
    assert numbers == weight.size * (2 if len(nodes) > 1 and not shared else 1)


APART = {
    "as it is and transposed": np.arange(9, dtype=np.float32).reshape(3, 3),
    "symmetric, so that nobody knows": np.eye(3, dtype=np.float32),
}


@pytest.mark.parametrize("weight", APART.values(), ids=APART)
def test_weights_that_are_read_in_different_forms_become_several(weight):
    nodes = [node("Gemm", "x w", "h"), node("Gemm", "h w", "y", transB=1)]
    model = read(file(nodes, {"x": ("n", 3)}, ["y"], {"w": weight}))
    assert (model.shared, model.parted) == ({}, {"w": ("h_node", "y_node")})
    assert [*model.weights] == ["h_node.weight", "y_node.weight"]


def test_copies_that_were_equal_when_the_file_was_written_become_several():
    """As PyTorch's older exporter writes a new nn.TransformerEncoder; a module called twice is none."""
    stored = {"w": np.arange(9, dtype=np.float32).reshape(3, 3)}
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h w", "y")]
    proto = file(nodes, {"x": ("n", 3)}, ["y"], stored)
    for names, apart in (
        (("/layers.0/fc/MatMul", "/layers.1/fc/MatMul"), True),
        (("/layers.0/fc/MatMul", "/layers.0/fc_1/MatMul"), False),
        (("/layers.0/fc/MatMul", "/layers.0/fc/MatMul_1"), False),
        (("/first/MatMul", "/layers.1/fc/MatMul"), False),
    ):
        for each, name in zip(proto.graph.node, names, strict=True):
            each.name = name
        assert bool(read(proto).parted) == apart, names


def test_shared_weights_and_biases_are_found_behind_what_is_merged():
    """A product and its sum are one dense layer, called after the second of them."""
    random = np.random.default_rng(0)
    stored = {"w": random.standard_normal((3, 3), np.float32), "b": random.standard_normal(3, np.float32)}
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "g"), node("MatMul", "g w", "f"),
             node("Add", "f b", "y")]  # fmt: skip
    proto = file(nodes, {"x": ("n", 3)}, ["y"], stored)
    model = read(proto)
    assert [*model.shared] == ["w", "b"]
    assert [*model.weights] == [p.name for p in Layout.of(model.graph).parameters]
    assert len(model.weights) == 2
    (y,) = compute(model, {"x": random.standard_normal((2, 3), np.float32)}).values()
    again = read(write(model.graph, model.weights))
    assert len(again.weights) == 2
    assert read(proto, inference=True).shared == {}
    assert y.shape == (2, 3)


def test_stored_numbers_of_which_no_weight_is_made_are_not_told_of():
    """Two Resizes read one array of factors, and one without any numbers as their region."""
    nodes = [node("Resize", "x region factors", "h"), node("Resize", "h region factors", "y")]
    stored = {"region": np.zeros(0, np.float32), "factors": np.array([1, 1, 2, 2], np.float32)}
    assert read(file(nodes, {"x": ("n", 3, 4, 4)}, ["y"], stored)).shared == {}
