"""How graphs are cut: where values stand, which nodes are computed together, how many blocks, and where."""

from __future__ import annotations

import pytest

from tests.pure.graph import neuron_graphs
from weft.kernels.kernel import ArraySpec, Split
from weft.runtime.graph import Builder, Graph
from weft.runtime.graph.neurons.cut import Grain, bounds, count, regions
from weft.runtime.graph.neurons.regions import text
from weft.runtime.graph.neurons.stages import stages
from weft.runtime.graph.neurons.storage import Storage

IMAGES = ArraySpec((1, 64, 56, 56))
CHANNELS, ROWS = Split(1, 64, 16, weight_axis=0), Split(2, 56)


def stage_names(graph: Graph) -> list[str]:
    return ["+".join(stage.nodes) for stage in stages(graph, 1, Storage.of(graph, 1))]


def test_what_follows_element_by_element_is_computed_with_its_convolution():
    assert stage_names(neuron_graphs.residual()) == [
        "first+batch_norm_1+relu_1",
        "short",
        "long+batch_norm_2+sum0+out0",
        "deep+sum1+out1",
    ]


def test_views_and_joins_are_no_stages():
    names = stage_names(neuron_graphs.chain())
    assert names == [
        "conv0+relu0",
        "conv1+relu1",
        "conv2+relu2",
        "pool",
        "norm",
        "dense0+relu_1",
        "dense1",
        "softmax_1",
    ]
    assert not any("joined" in name for name in stage_names(neuron_graphs.inception()))


def test_what_others_read_too_is_not_overwritten():
    b = Builder()
    h = b("conv2d", b.input("x", (4, 8, 8)), channels=4, kernel_size=1, name="conv")
    graph = b.build(b("add", b("relu", h, name="relu"), h, name="sum"))
    storage = Storage.of(graph, 1)
    assert storage.places["relu"].buffer == "sum"
    assert storage.places["conv"].buffer == "conv"
    assert stage_names(graph) == ["conv", "relu+sum"]


def test_an_output_is_not_overwritten():
    b = Builder()
    h = b("conv2d", b.input("x", (4, 8, 8)), channels=4, kernel_size=1, name="conv")
    graph = b.build(h, b("relu", h, name="relu"))
    assert Storage.of(graph, 1).places["conv"].buffer == "conv"
    assert stage_names(graph) == ["conv", "relu"]


def test_joined_values_stand_one_behind_the_other():
    graph = neuron_graphs.dense_net()
    storage = Storage.of(graph, 1)
    pixels = 21 * 17
    for i in range(3):
        place = storage.places[f"grow{i}"]
        assert (place.buffer, place.start) == ("all2", (8 + 8 * i) * pixels)
    assert storage.places["stem"] == storage.places["all1"]
    assert storage.joined == {"all0", "all1", "all2"}


def test_what_is_joined_of_several_samples_is_copied():
    assert not Storage.of(neuron_graphs.dense_net(), 2).joined


def test_what_is_joined_and_then_overwritten_has_no_other_reader():
    b = Builder()
    x = b.input("x", (4, 8, 8))
    left, right = (b("conv2d", x, channels=4, kernel_size=1, name=name) for name in ("left", "right"))
    joined = b("concat", left, right, name="joined")
    graph = b.build(b("relu", joined, name="over"), b("relu", left, name="also"))
    assert "joined" not in Storage.of(graph, 1).joined


GRAIN = Grain(least_s=20e-6, target_s=100e-6, most=4)


@pytest.mark.parametrize(
    ("cost_us", "ranks", "expected"),
    [
        (30, 2, 1),
        (41, 2, 2),
        (250, 2, 2),
        (450, 2, 4),
        (1e6, 2, 8),
        (1e6, 1, 1),
        (50, 4, 2),
        (1000, 4, 8),
    ],
    ids=[
        "what takes no longer than two blocks must is one",
        "what takes as long as a block for each rank must is one for each",
        "as many as are about as long as blocks should be, and no rank without",
        "twice as many where they would be twice as long",
        "never more than four for each rank",
        "one rank computes everything whole",
        "not every rank has a block where they would be too small",
        "a multiple of the ranks",
    ],
)
def test_a_stage_falls_into_as_many_blocks_as_its_cost_is_worth(cost_us, ranks, expected):
    assert count(cost_us * 1e-6, ranks, GRAIN) == expected


@pytest.mark.parametrize(
    ("splits", "wanted", "weights", "image", "expected"),
    [
        ((CHANNELS, ROWS), 4, 1e3, 1e6, ["rows 0-13", "rows 14-27", "rows 28-41", "rows 42-55"]),
        ((CHANNELS, ROWS), 2, 1e6, 1e3, ["channels 0-31", "channels 32-63"]),
        ((CHANNELS,), 8, 1, 1, ["channels 0-15", "channels 16-31", "channels 32-47", "channels 48-63"]),
        ((CHANNELS,), 3, 1, 1, ["channels 0-15", "channels 16-31", "channels 32-63"]),
        ((Split(1, 64), ROWS), 2, 0, 1, ["channels 0-31", "channels 32-63"]),
        ((ROWS, Split(3, 56)), 2, 0, 1, ["rows 0-27", "rows 28-55"]),
        ((), 8, 1, 1, [""]),
        ((CHANNELS, ROWS), 1, 1, 1, [""]),
    ],
    ids=[
        "a large image by few filters is cut into rows",
        "many filters over a small image are cut into channels",
        "no block is smaller than a granule",
        "blocks are whole granules, nearly equal",
        "where both are alike, parts are contiguous",
        "rows rather than columns",
        "what cannot be split stays whole",
        "one block is all of it",
    ],
)
def test_a_stage_is_cut_where_least_is_read_twice(splits, wanted, weights, image, expected):
    found = regions(IMAGES, splits, wanted, weight_bytes=weights, input_bytes=image)
    assert [text(region, IMAGES) for region in found] == expected


def test_bounds_end_at_the_extent():
    assert bounds(100, 48, 3) == [0, 48, 96, 100]
