"""Blocks of neurons compute what the serial program does, in whatever order their needs allow."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from tests.pure.graph import neuron_graphs
from tests.pure.graph.neuron_graphs import GRAPHS, parameters, samples, serial
from weft.kernels import conv
from weft.runtime.errors import GraphError
from weft.runtime.graph import Builder, Graph, Layout
from weft.runtime.graph.neurons.bind import Bound, arena_nbytes
from weft.runtime.graph.neurons.blocks import Blocks, cut
from weft.runtime.graph.neurons.cut import Grain

FINE = Grain(least_s=1.0, target_s=1.0, most=3)


def blocks_of(graph: Graph, batch: int, flat: np.ndarray, ranks: int = 2, **options) -> Blocks:
    """As many blocks as can be: every node costs enough for all of them."""
    costs = {node.name: 100.0 for node in graph.nodes}
    return cut(graph, batch, flat, costs, ranks=ranks, grain=FINE, **options)


def run(
    found: Blocks,
    flat: np.ndarray,
    inputs: dict,
    seed: int,
    poison: float = np.nan,
    dropped=None,
    requests: int = 1,
) -> dict:
    """All blocks, each when it is ready, the next one drawn; before all of them memory holds `poison`."""
    arena = np.zeros(arena_nbytes(found.storage), np.uint8)
    arena.view(np.float32)[:] = poison
    bound = Bound(found.graph, found.batch, found.storage, arena, flat)
    random = Random(seed)
    for _ in range(requests):
        for name, array in inputs.items():
            bound.values[name][...] = array
        left, ended = set(range(len(found.blocks))), set()
        while left:
            ready = [number for number in sorted(left) if ended.issuperset(found.blocks[number].needs)]
            number = random.choice(ready)
            for call in bound.calls(found, found.blocks[number], dropped or {}):
                call()
            left.remove(number)
            ended.add(number)
    return {name: np.array(bound.values[name]) for name in found.graph.outputs}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", GRAPHS)
def test_s1_7_blocks_in_any_order_compute_what_the_serial_program_does(name, batch):
    graph = GRAPHS[name]()
    flat, inputs = parameters(graph), samples(graph, batch)
    expected = serial(graph, batch, flat, inputs)
    found = blocks_of(graph, batch, flat)
    assert len(found.blocks) > 2 * len(found.stages)
    for seed in range(3):
        for output, array in run(found, flat, inputs, seed).items():
            np.testing.assert_allclose(array, expected[output], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["inception", "residual", "dense_net"])
def test_s1_7_convolutions_by_blocks_are_the_same_to_the_bit(name):
    """Every sum is taken in one block, in the order of the whole."""
    graph = GRAPHS[name]()
    flat, inputs = parameters(graph), samples(graph, 1)
    expected = serial(graph, 1, flat, inputs)
    for output, array in run(blocks_of(graph, 1, flat), flat, inputs, 0).items():
        np.testing.assert_array_equal(array, expected[output])


@pytest.fixture
def sixteen(monkeypatch):
    """Channels come in blocks of 16, as with vectors of 512 bits; of 12 with half as wide ones."""
    monkeypatch.setattr(conv, "ROWS_GRANULE", 16)


@pytest.mark.usefixtures("sixteen")
def test_s1_4_a_block_of_rows_waits_for_the_rows_under_its_windows_alone():
    graph = neuron_graphs.chain()
    found = blocks_of(graph, 1, parameters(graph))
    by_name = {block.name: block for block in found.blocks}
    waits = {
        name: [found.blocks[need].name for need in block.needs]
        for name, block in by_name.items()
        if name.startswith("conv1")
    }
    # conv0 in 6 blocks of rows, conv1 (stride 2, padding 1) in 6 of its 11 rows
    assert waits["conv1 rows 0-0"] == ["conv0 rows 0-2"]
    assert waits["conv1 rows 1-2"] == ["conv0 rows 0-2", "conv0 rows 3-6"]
    assert waits["conv1 rows 7-8"] == ["conv0 rows 10-13", "conv0 rows 14-16", "conv0 rows 17-20"]
    assert waits["conv1 rows 9-10"] == ["conv0 rows 17-20"]


def test_a_barrier_makes_every_block_wait_for_the_whole_stage_before():
    graph = neuron_graphs.chain()
    found = blocks_of(graph, 1, parameters(graph), barrier=True)
    for block in found.blocks:
        before = [n for n, other in enumerate(found.blocks) if other.stage == block.stage - 1]
        assert list(block.needs) == before


def by_channels(graph: Graph, flat: np.ndarray, **options) -> Blocks:
    """Of images of one pixel: four blocks of `first`, two of `second`."""
    costs = {"first": 4.0, "bent": 0.0, "second": 4.0}
    return cut(graph, 1, flat, costs, ranks=4, grain=Grain(1.0, 1.0, most=1), **options)


def needs_of(found: Blocks, name: str) -> set[str]:
    (block,) = (block for block in found.blocks if block.name == name)
    return {found.blocks[need].name for need in block.needs}


def views(graph: Graph, flat: np.ndarray, node: str) -> tuple[np.ndarray, ...]:
    return Layout.of(graph).views(flat, node)


CUTS = ["first channels 0-15", "first channels 16-31", "first channels 32-47", "first channels 48-63"]


@pytest.fixture
def small(sixteen):
    b = Builder()
    h = b(
        "relu", b("conv2d", b.input("x", (64, 1, 1)), channels=64, kernel_size=1, name="first"), name="bent"
    )
    graph = b.build(b("conv2d", h, channels=32, kernel_size=3, padding=1, name="second"))
    return graph, parameters(graph)


def test_s1_4_without_pruning_all_inputs_are_waited_for(small):
    assert needs_of(by_channels(*small), "second channels 0-15") == set(CUTS)


def test_s1_4_nobody_waits_for_neurons_that_are_dropped_and_nobody_computes_them(small):
    graph, flat = small
    found = by_channels(graph, flat, dropped={"first": range(16, 32)})
    assert needs_of(found, "second channels 0-15") == {CUTS[0], CUTS[2], CUTS[3]}
    assert CUTS[1] not in {block.name for block in found.blocks}


def test_s1_4_neurons_whose_weights_are_all_zero_are_not_waited_for(small):
    graph, flat = small
    for each in views(graph, flat, "first"):
        each[32:64] = 0
    assert needs_of(by_channels(graph, flat), "second channels 0-15") == {CUTS[0], CUTS[1]}


@pytest.mark.usefixtures("sixteen")
def test_s1_4_a_neuron_without_weights_that_another_value_is_added_to_is_waited_for():
    b = Builder()
    x = b.input("x", (64, 1, 1))
    h = b("conv2d_add", x, x, channels=64, kernel_size=1, name="first")
    graph = b.build(
        b("conv2d", b("relu", h, name="bent"), channels=32, kernel_size=3, padding=1, name="second")
    )
    flat = parameters(graph)
    for each in views(graph, flat, "first"):
        each[32:64] = 0
    assert needs_of(by_channels(graph, flat), "second channels 0-15") == set(CUTS)


def test_s1_4_neurons_to_which_all_weights_are_zero_are_not_waited_for_by_those_whose_weights_they_are(small):
    graph, flat = small
    views(graph, flat, "second")[0][:16, 16:] = 0
    found = by_channels(graph, flat)
    assert needs_of(found, "second channels 0-15") == {CUTS[0]}
    assert needs_of(found, "second channels 16-31") == set(CUTS)


@pytest.mark.parametrize("name", ["chain", "inception", "residual", "dense_net"])
def test_s1_7_dropped_neurons_count_as_zero(name):
    """As if their weights were zero; a part of a block, and all of one."""
    graph = GRAPHS[name]()
    flat, inputs = parameters(graph), samples(graph, 1)
    node = next(each.name for each in graph.nodes if each.kernel.name == "conv2d")
    dropped = {node: [0, 2, 3, *range(8, len(views(graph, flat, node)[0]))]}
    found = blocks_of(graph, 1, flat, dropped=dropped)
    got = run(found, flat, inputs, 0, poison=0.0, dropped=dropped)
    for each in views(graph, flat, node):
        each[list(dropped[node])] = 0
    for output, array in serial(graph, 1, flat, inputs).items():
        np.testing.assert_allclose(got[output], array, rtol=1e-5, atol=1e-6)


def test_s1_4_a_place_is_waited_for_whatever_the_weights_of_features_are():
    """As many places as features, and a dense layer that does not read most of those."""
    b = Builder()
    x = b.input("x", (64, 64))
    graph = b.build(b("dense", b("softmax", x, name="first"), features=64, name="second"))
    flat = parameters(graph)
    views(graph, flat, "second")[0][:, 16:] = 0
    found = blocks_of(graph, 1, flat)
    assert len(found.blocks) > 2
    expected = serial(graph, 1, flat, inputs := samples(graph, 1))
    for seed in range(10):
        got = run(found, flat, inputs, seed)
        np.testing.assert_allclose(got["second"], expected["second"], rtol=1e-5, atol=1e-6)


def test_s1_4_places_whose_embedding_is_zero_keep_what_it_is_added_to():
    b = Builder()
    graph = b.build(b("position_embedding", b.input("x", (64, 32)), name="placed"))
    flat = parameters(graph)
    views(graph, flat, "placed")[0][32:] = 0
    inputs = samples(graph, 1)
    got = run(blocks_of(graph, 1, flat), flat, inputs, 0)
    np.testing.assert_array_equal(got["placed"], serial(graph, 1, flat, inputs)["placed"])


@pytest.mark.parametrize("kind", ["relu", "add"])
def test_s1_7_dropped_neurons_are_zero_where_another_stage_has_written(kind):
    """In place of what is joined, and of one of two terms."""
    b = Builder()
    x = b.input("x", (4, 9, 9))
    first, second = (b("conv2d", x, channels=8, kernel_size=3, name=name) for name in ("a", "c"))
    values = (b("concat", first, second),) if kind == "relu" else (first, second)
    graph = b.build(b("tanh", b(kind, *values, name="dropped")))
    flat, inputs = parameters(graph), samples(graph, 1)
    dropped = {"dropped": range(8)}
    for seed in range(5):
        (got,) = run(blocks_of(graph, 1, flat, dropped=dropped), flat, inputs, seed, dropped=dropped).values()
        (expected,) = serial(graph, 1, flat, inputs).values()
        np.testing.assert_array_equal(got[:, :8], 0)
        np.testing.assert_allclose(got[:, 8:], expected[:, 8:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dead", ["weights are zero", "dropped"])
@pytest.mark.parametrize("kind", ["add", "pool and add", "batch_norm"])
def test_s1_7_what_others_write_over_is_zero_in_the_next_request_too(kind, dead):
    b = Builder()
    x = b.input("x", (4, 9, 9))
    first, second = (b("conv2d", x, channels=8, kernel_size=3, name=name) for name in ("a", "c"))
    if kind == "pool and add":
        first = b("max_pool2d", first, kernel_size=3, stride=1, padding=1)
    terms = (b("concat", first, second),) if kind == "batch_norm" else (first, second)
    graph = b.build(b(kind.split()[-1], *terms))
    flat, inputs = parameters(graph), samples(graph, 1)
    without = flat.copy()
    for each in views(graph, without, "a"):
        each[:] = 0
    (expected,) = serial(graph, 1, without, inputs).values()
    dropped = {"a": range(8)} if dead == "dropped" else {}
    used = flat if dropped else without
    found = blocks_of(graph, 1, used, dropped=dropped)
    for seed in range(3):
        (got,) = run(found, used, inputs, seed, poison=0.0, dropped=dropped, requests=3).values()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_s1_4_dropped_neurons_that_are_computed_with_live_ones_are_waited_for():
    """Their block makes them zero at its end, and something else stands there before."""
    b = Builder()
    a = b("conv2d", b.input("x", (4, 64, 64)), channels=32, kernel_size=3, padding=1, name="a")
    graph = b.build(b("batch_norm", a, name="norm"), b("relu", a, name="relu"))
    found = blocks_of(graph, 1, parameters(graph), dropped={"a": range(16, 32)})
    by_rows = {block.name for block in found.blocks if block.name.startswith("a rows")}
    assert by_rows
    readers = [block.name for block in found.blocks if block.name.startswith("norm")]
    assert readers
    for name in readers:
        assert needs_of(found, name) == by_rows


def test_what_computes_nothing_of_its_own_has_no_neurons_to_drop():
    b = Builder()
    x = b.input("x", (4, 3, 3))
    joined = b("concat", *(b("conv2d", x, channels=4, kernel_size=1, name=name) for name in "ac"), name="j")
    graph = b.build(b("flatten", joined, name="f"))
    for name, inputs in (("j", "'a', 'c'"), ("f", "'j'")):
        with pytest.raises(
            GraphError, match=f"{name!r} are dropped, which computes nothing .*: drop those of {inputs}$"
        ):
            blocks_of(graph, 1, parameters(graph), dropped={name: [0]})


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ({"third": [0]}, "neurons of 'third' are dropped, and no node is called so"),
        ({"first": [64]}, "neuron 64 of 'first' is dropped; it has neurons 0 to 63"),
    ],
    ids=["a node that there is not", "a neuron that there is not"],
)
def test_what_is_not_there_cannot_be_dropped(small, dropped, message):
    with pytest.raises(GraphError, match=message):
        by_channels(*small, dropped=dropped)
