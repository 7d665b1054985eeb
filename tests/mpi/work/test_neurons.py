"""One request on several ranks: the serial program's results, and blocks that run ahead of their layer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tests.pure.graph.neuron_graphs import GRAPHS, parameters, samples, serial
from weft.kernels.activation import ReLU
from weft.kernels.kernel import Buffers, Mode, Region
from weft.runtime.graph import Builder, Graph, Layout
from weft.runtime.graph.graph import Node
from weft.runtime.message import World, run
from weft.runtime.work.neurons import Neurons

from .engines import tags

Span = tuple[str, int, int, int]


CHANNELS, PIXELS = 8, 24


@pytest.mark.mpi
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", GRAPHS)
def test_s1_7_the_result_is_that_of_the_serial_program(name, batch):
    graph = GRAPHS[name]()
    flat = parameters(graph)

    async def main(world: World) -> None:
        for barrier in (False, True):
            engine = await Neurons.open(
                world, graph, flat, batch=batch, tags=tags(graph), capture=False, barrier=barrier
            )
            if world.node_rank == 0:
                for seed in range(3):
                    inputs = samples(graph, batch, seed)
                    outputs = await engine.infer(inputs)
                    for output, expected in serial(graph, batch, flat, inputs).items():
                        np.testing.assert_allclose(outputs[output], expected, rtol=1e-5, atol=1e-6)
            await engine.close()

    run(main)


@dataclass(frozen=True, slots=True)
class Held(ReLU):
    """A relu whose last block waits, wherever it runs, until two blocks of later layers have run."""

    seen: ClassVar[np.ndarray]

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        if region[1].stop == PIXELS:
            deadline = time.monotonic() + 30
            while not self.seen.all():
                assert time.monotonic() < deadline, (
                    "no block of the layers behind has run: there is a barrier"
                )
                time.sleep(1e-4)
        ReLU.forward_region(self, b, mode, region)


@dataclass(frozen=True, slots=True)
class Telling(ReLU):
    """A relu that tells when a block of it has run."""

    seen: ClassVar[np.ndarray]
    place: int = 0

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        ReLU.forward_region(self, b, mode, region)
        self.seen[self.place] = 1


def layers() -> Graph:
    """Three convolutions; a block of the first is held until the second and the third have begun."""
    b = Builder()
    h = b.input("x", (CHANNELS, PIXELS, PIXELS))
    kernels = (Held(), Telling(0), Telling(1))
    for i in range(len(kernels)):
        h = b("conv2d", h, channels=CHANNELS, kernel_size=3, padding=1, name=f"conv{i}")
        h = b("relu", h, name=f"after{i}")
    graph = b.build(h)
    by_name = {f"after{i}": kernel for i, kernel in enumerate(kernels)}
    nodes = tuple(Node(n.name, by_name.get(n.name, n.kernel), n.inputs) for n in graph.nodes)
    return Graph(graph.inputs, nodes, graph.outputs)


@pytest.mark.mpi(min_size=2)
def test_s1_5_lookahead_blocks_of_two_later_layers_run_while_the_first_does():
    """With a barrier after a layer this would never end. The trace shows that they begin before it ends."""
    graph = layers()
    flat = parameters(graph)

    async def main(world: World) -> None:
        window = await world.window(8)
        Held.seen = Telling.seen = window.array(0, np.int8, 2)
        spans: list[Span] = []
        costs = {f"conv{i}": {"cost_s": 1.0} for i in range(3)}
        engine = await Neurons.open(
            world, graph, flat, tags=costs, capture=False, spans=lambda *span: spans.append(span)
        )
        if world.node_rank == 0:
            assert {block.region[1].stop for block in engine.blocks.blocks} > {PIXELS}  # cut into rows
            inputs = samples(graph, 1)
            outputs = await engine.infer(inputs)
            (expected,) = serial(graph, 1, flat, inputs).values()
            np.testing.assert_allclose(outputs["after2"], expected, rtol=1e-5, atol=1e-6)
        await world.barrier()
        times = np.full((2, 3), 2**62)  # first start of a layer's block, and (negative) last end
        for name, _, start_ns, end_ns in spans:
            layer = int(name[4])
            times[:, layer] = np.minimum(times[:, layer], (start_ns, -end_ns))
        await world.allreduce(times, "min")
        starts, ends = times[0], -times[1]
        assert starts[1] < ends[0]
        assert starts[2] < ends[0]
        await engine.close()

    run(main)


@pytest.mark.mpi
def test_names_that_are_longer_than_the_tables_are_told_apart():
    b = Builder()
    h = b.input("x", (64,))
    for number, name in enumerate(["a" * 70, "a" * 80, "é" * 40]):
        h = b("dense", h, features=64 - 16 * number, name=name)
    graph = b.build(h)
    flat = parameters(graph)

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, flat)
        await engine.replan()
        if world.node_rank == 0:
            inputs = samples(graph, 1)
            (found,), (expected,) = (
                (await engine.infer(inputs)).values(),
                serial(graph, 1, flat, inputs).values(),
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        await world.barrier()
        await engine.close()

    run(main)


@pytest.mark.mpi
def test_s1_2_costs_are_captured_and_a_users_tag_overrides_them():
    graph = GRAPHS["inception"]()
    flat = parameters(graph)

    async def main(world: World) -> None:
        given = {"one0": {"cost_s": 500.0, "priority": 3}}
        engine = await Neurons.open(world, graph, flat, tags=given)
        rows = {row["name"].decode(): row for row in engine.graph_table[: len(graph.nodes)]}
        assert rows["one0"]["cost_s"] == 500.0
        assert (rows["one0"]["priority"], rows["one0"]["source"]) == (3, 1)
        assert rows["three0"]["source"] == 2  # measured when the engine was opened
        assert rows["three0"]["cost_s"] > 0
        assert rows["three0"]["filter_size"].tolist() == [8, 3, 3]
        if world.node_rank == 0:
            await engine.infer(samples(graph, 1))
        await world.barrier()
        await engine.replan(tags={})  # by what its blocks took
        rows = {row["name"].decode(): row for row in engine.graph_table[: len(graph.nodes)]}
        assert rows["one0"]["source"] == 2
        assert 0 < rows["one0"]["cost_s"] < 500
        await engine.close()

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["a" * 70, "a" * 63 + "é"], ids=["too long", "cut amid a letter"])
def test_s1_2_a_name_of_which_the_table_has_a_part_takes_tags(name):
    b = Builder()
    convolved = b("conv2d", b.input("x", (3, 8, 8)), channels=4, kernel_size=3, name="conv")
    graph = b.build(b("max_pool2d", convolved, kernel_size=2, name=name))

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, parameters(graph), tags={name: {"cost_s": 0.5}})
        assert 0.5 in engine.graph_table["cost_s"]
        await engine.close()

    run(main)


@pytest.mark.mpi
def test_s1_3_every_rank_reads_the_same_table():
    graph = GRAPHS["inception"]()
    flat = parameters(graph)

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, flat)
        table = np.frombuffer(engine.table.tobytes(), np.uint8).copy()
        greatest = table.copy()
        await world.allreduce(greatest, "max")
        assert (table == greatest).all()
        if world.node_rank == 0:
            await engine.infer(samples(graph, 1))
        await world.barrier()
        assert (engine.table["measured_s"] > 0).all()  # whoever ran it: each wrote what its blocks took
        await engine.close()

    run(main)


@pytest.mark.mpi(min_size=2)
def test_s1_6_other_cost_tags_alone_change_who_is_to_compute_what():
    graph = GRAPHS["inception"]()
    flat = parameters(graph)

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, flat, tags=tags(graph), capture=False)
        before = {row["name"].decode(): int(row["home"]) for row in engine.table}
        dear = next(name for name in before if name.startswith("three0"))
        await engine.replan(tags=tags(graph) | {dear: {"cost_s": 5.0}})
        after = {row["name"].decode(): int(row["home"]) for row in engine.table}
        assert before.keys() == after.keys()
        assert before != after
        inputs = samples(graph, 1)
        if world.node_rank == 0:
            (got,) = (await engine.infer(inputs)).values()
            (expected,) = serial(graph, 1, flat, inputs).values()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        await engine.close()

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "node", "none_left"),
    [
        pytest.param("inception", "five0", True, id="all of a layer"),
        pytest.param("residual", "deep", False, id="half of one, which another is added to"),
    ],
)
def test_s1_4_dropped_neurons_are_not_computed_and_come_back(name, node, none_left):
    graph = GRAPHS[name]()
    flat = parameters(graph)
    thinner = flat.copy()
    for each in Layout.of(graph).views(thinner, node):
        each[:16] = 0

    async def main(world: World) -> None:
        spans: list[Span] = []
        engine = await Neurons.open(
            world, graph, flat, tags=tags(graph), capture=False, spans=lambda *span: spans.append(span)
        )
        inputs = samples(graph, 1)
        for dropped, weights in (({node: range(16)}, thinner), ({}, flat)):
            await engine.replan(dropped=dropped)
            spans.clear()
            if world.node_rank == 0:
                outputs = await engine.infer(inputs)
                for output, expected in serial(graph, 1, weights, inputs).items():
                    np.testing.assert_allclose(outputs[output], expected, rtol=1e-5, atol=1e-6)
            await world.barrier()
            ran = np.array([sum(block.startswith(node) for block, *_ in spans)])
            await world.allreduce(ran)
            assert (ran[0] == 0) == (none_left and bool(dropped))
        await engine.close()

    run(main)
