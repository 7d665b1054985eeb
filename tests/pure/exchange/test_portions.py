"""Portions cover the gradient exactly once, in the order in which backward completes it."""

from itertools import pairwise

import pytest

from weft.runtime.exchange import blocks, cut, rows_of
from weft.runtime.graph import Layout, sequential
from weft.runtime.graph.backward import Phase, differentiate


def layout_of(*features):
    return Layout.of(sequential((64,), [("dense", {"features": f, "bias": False}) for f in features]))


@pytest.mark.parametrize(
    ("features", "portion_bytes", "nodes"),
    [
        pytest.param((64, 64, 64), 16384, [["dense_3"], ["dense_2"], ["dense_1"]], id="a layer is a portion"),
        pytest.param(
            (64, 64, 64), 32768, [["dense_3", "dense_2"], ["dense_1"]], id="small layers travel together"
        ),
        pytest.param((64, 64), 1 << 20, [["dense_2", "dense_1"]], id="a small model is one portion"),
        pytest.param(
            (64, 64), 8192, [["dense_2"], ["dense_2"], ["dense_1"], ["dense_1"]], id="a large layer is cut"
        ),
        pytest.param(
            (16, 512, 16), 32768,
            [["dense_3"], ["dense_2"], ["dense_1"]],
            id="a layer that does not fit beside its neighbours travels alone",
        ),
    ],
)  # fmt: skip
def test_s3_1_the_gradient_is_cut_into_portions(features, portion_bytes, nodes):
    assert [list(portion.nodes) for portion in cut(layout_of(*features), portion_bytes)] == nodes


@pytest.mark.parametrize("portion_bytes", [64, 1000, 4096, 20000, 1 << 20])
@pytest.mark.parametrize("features", [(3,), (64, 10, 300), (1, 1, 1, 1), (100,) * 6])
def test_every_element_travels_exactly_once(features, portion_bytes):
    layout = layout_of(*features)
    portions = cut(layout, portion_bytes)
    assert [portion.index for portion in portions] == list(range(len(portions)))
    spans = sorted((portion.start, portion.stop) for portion in portions)
    assert spans[0][0] == 0
    assert spans[-1][1] == layout.size
    assert all(stop == start for (_, stop), (start, _) in pairwise(spans))
    assert all(start % 16 == 0 for start, _ in spans)


def two_layers():
    layers = [("dense", {"features": 96, "name": "one"}), ("dense", {"features": 144, "name": "two"})]
    return sequential((64,), layers)


def portions_by_rows(graph, portion_bytes=16_200):
    return cut(Layout.of(graph), portion_bytes, rows_of(graph))


def test_s3_1_a_large_layer_is_cut_by_output_neurons_its_bias_with_the_first_portion():
    portions = portions_by_rows(two_layers())
    assert [(p.nodes, p.rows, p.layer) for p in portions] == [
        (("two",), (96, 144), 1),
        (("two",), (48, 96), 1),
        (("two",), (0, 48), 1),
        (("one",), (48, 96), 0),
        (("one",), (0, 48), 0),
    ]
    weights = Layout.of(two_layers()).nodes["two"]
    assert portions[0].start == weights[0].start + 96 * 96
    assert portions[0].stop >= weights[1].stop
    assert portions[1].name == "portion 1 (two rows 48-95)"


def grouped():
    """Cut in groups of 24 filters of 9 elements each, which are no multiple of a cache line."""
    return sequential((10, 8, 8), [("conv2d", {"channels": 240, "kernel_size": 3, "groups": 10})])


@pytest.mark.parametrize("portion_bytes", [64, 1000, 4096, 16_200, 20000, 1 << 20])
@pytest.mark.parametrize("graph", [two_layers(), grouped()], ids=["dense", "grouped"])
def test_cut_by_rows_every_element_travels_exactly_once(graph, portion_bytes):
    portions = portions_by_rows(graph, portion_bytes)
    spans = sorted((portion.start, portion.stop) for portion in portions)
    assert spans[0][0] == 0
    assert spans[-1][1] == Layout.of(graph).size
    assert all(stop == start for (_, stop), (start, _) in pairwise(spans))
    assert all(start % 16 == 0 for start, _ in spans)


def test_a_bias_is_no_reason_to_cut_a_layer_in_two():
    graph = sequential((64,), [("dense", {"features": 96})])
    assert [p.rows for p in portions_by_rows(graph, 96 * 64 * 4)] == [None]
    assert [p.rows for p in portions_by_rows(graph, 96 * 32 * 4)] == [(48, 96), (0, 48)]


def test_backward_comes_in_blocks_that_complete_one_portion_each():
    graph = sequential((64,), [("dense", {"features": 144}), ("relu", {}), ("dense", {"features": 144})])
    portions = portions_by_rows(graph)
    calls = differentiate(graph).backward
    found = blocks(calls, portions, movable={"dense_2"})
    assert [(calls[b.call].name, b.rows, b.completes, b.movable) for b in found] == [
        *[(f"dense_2.{Phase.WEIGHT_GRADIENT.value}", p.rows, (p.index,), True) for p in portions[:3]],
        ("dense_2.input_gradient", None, (), False),
        ("relu_1.input_gradient", None, (), False),
        *[(f"dense_1.{Phase.WEIGHT_GRADIENT.value}", p.rows, (p.index,), False) for p in portions[3:]],
    ]


def test_a_layer_that_travels_whole_is_movable_but_not_one_that_shares_its_portion():
    layers = [("dense", {"features": 64}), ("dense", {"features": 8}), ("dense", {"features": 96})]
    graph = sequential((64,), layers)
    portions = cut(Layout.of(graph), 17_000, rows_of(graph))
    assert [portion.nodes for portion in portions] == [("dense_3", "dense_2"), ("dense_1",)]
    found = blocks(differentiate(graph).backward, portions, movable={"dense_1", "dense_2", "dense_3"})
    assert [block.completes for block in found if block.movable] == [(1,)]


def test_small_layers_are_complete_with_the_lowest_of_them():
    graph = sequential((64,), [("dense", {"features": 8}), ("dense", {"features": 8})])
    portions = cut(Layout.of(graph), 1 << 20, rows_of(graph))
    found = blocks(differentiate(graph).backward, portions)
    assert [block.completes for block in found] == [(), (), (0,)]
