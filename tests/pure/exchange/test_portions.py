"""Portions cover the gradient exactly once, in the order in which backward completes it."""

from itertools import pairwise

import pytest

from weft.runtime.exchange import Plan, cut, first_come
from weft.runtime.graph import Layout, sequential


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


def test_first_come_is_the_order_of_backward():
    portions = cut(layout_of(64, 64, 64), 16384)
    assert first_come(portions, credit=2) == Plan((0, 1, 2), 2)


@pytest.mark.parametrize(
    ("order", "credit", "words"),
    [
        pytest.param((0, 0, 1), 1, "every portion once", id="a portion twice"),
        pytest.param((0, 2), 1, "every portion once", id="a portion missing"),
        pytest.param((0,), 0, "at least one", id="no credit"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(order, credit, words):
    with pytest.raises(ValueError, match=words):
        Plan(order, credit)
