"""One request on several ranks: the serial program's results, and blocks that run ahead of their layer."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tests.pure.graph.neuron_graphs import GRAPHS, parameters, samples, serial
from weft.kernels.activation import ReLU
from weft.kernels.kernel import Buffers, Mode, Region
from weft.runtime.errors import GraphError, Mistake
from weft.runtime.graph import Builder, Graph, Layout
from weft.runtime.graph.graph import Node
from weft.runtime.graph.table import of_kind
from weft.runtime.message import World, run
from weft.runtime.work.neurons import Neurons, claims
from weft.runtime.work.neurons.crew import BlockError
from weft.runtime.work.pool import Pool

Span = tuple[str, int, int, int]


def tags(graph: Graph, cost_s: float = 1.0) -> dict[str, dict[str, float]]:
    """Costs at which every node is cut into as many blocks as there may be."""
    return {node.name: {"cost_s": cost_s} for node in graph.nodes if not node.kernel.view}


@pytest.mark.mpi
def test_an_engine_that_was_planned_with_a_mistake_says_so_on_all_ranks_and_is_closed():
    graph = GRAPHS[next(iter(GRAPHS))]()

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, parameters(graph))
        wrong = asyncio.create_task(engine.replan(tags={"nowhere": {"cost_s": 1.0}}))
        behind = asyncio.create_task(
            engine.replan()
        )  # on rank 0 it looked for a table, and the others waited
        with pytest.raises(GraphError, match="'nowhere'"):
            await wrong
        with pytest.raises(Mistake, match="was planned with a mistake before"):
            await asyncio.wait_for(behind, 20)
        for _ in range(2):
            with pytest.raises(
                Mistake, match="is closed, or was planned with a mistake before: open another"
            ):
                await asyncio.wait_for(engine.replan(), 20)
            await engine.close()

    run(main)


@pytest.mark.mpi
def test_an_engines_threads_begin_when_all_that_they_call_is_compiled(monkeypatch):
    """numba takes seconds to start on a busy machine: a world that was over before waited for it in vain."""
    graph, warm_up, seen = GRAPHS[next(iter(GRAPHS))](), claims.warm_up, []
    compiled = [claims.begin, claims.take, claims.advance, claims.put, claims.watch]

    def warmed_up() -> None:
        seen.append("neurons" in {thread.name for thread in threading.enumerate()})
        warm_up()

    monkeypatch.setattr(claims, "warm_up", warmed_up)

    async def main(world: World) -> None:
        async with await Neurons.open(world, graph, parameters(graph), capture=False) as engine:
            assert seen == [False]
            known = [len(each.signatures) for each in compiled]
            if world.node_rank == 0:
                await engine.infer(samples(graph, 1))
        assert known == [len(each.signatures) for each in compiled]

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("close", [False, True], ids=["by nobody", "by one that did not wait for the others"])
def test_an_engine_that_is_not_closed_ends_with_the_world(close):
    """Its thread looked for the next request where there was no memory any more."""
    graph = GRAPHS[next(iter(GRAPHS))]()

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, parameters(graph), capture=False)
        if world.node_rank == 0:
            await engine.infer(samples(graph, 1))
        await world.barrier()
        if close:
            closing = asyncio.create_task(engine.close())
            for _ in range(3):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])

    run(main)
    assert "neurons" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("again", [False, True], ids=["to open", "to plan anew"])
def test_a_rank_that_no_longer_waits_for_an_engine_keeps_nobody_from_it(again):
    graph = GRAPHS[next(iter(GRAPHS))]()

    async def main(world: World) -> None:
        def opening():
            return Neurons.open(world, graph, parameters(graph), capture=False)

        engine = await opening() if again else None
        channel = await world.channel("cancelled")
        coroutine = engine.replan() if engine else opening()
        if world.rank == 0:
            waiting = asyncio.create_task(coroutine)
            for _ in range(3):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            for rank in range(1, world.size):
                await channel.send(rank)
        else:
            await channel.receive(0)
            await coroutine
        await world.barrier()
        if engine is not None:
            await engine.close()

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("given", [{"ranks": 0}, {"ranks": -1}, {"batch": 0}], ids=str)
def test_an_engine_of_nobody_or_for_nothing_is_refused(given):
    graph = GRAPHS[next(iter(GRAPHS))]()

    async def main(world: World) -> None:
        (what, count), *_ = given.items()
        with pytest.raises(Mistake, match=f"asked for with {what}={count}; give 1 or more"):
            await Neurons.open(world, graph, parameters(graph), **given)

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, -1)], ids=["a number", "one", "too few", "two axes"])
def test_parameters_of_another_shape_are_refused_also_a_single_one(shape):
    graph = GRAPHS[next(iter(GRAPHS))]()
    all_of_them = parameters(graph)

    async def main(world: World) -> None:
        if world.node_rank == 0:  # which alone reads them
            given = all_of_them.reshape(shape) if -1 in shape else np.zeros(shape, np.float32)
            with pytest.raises(
                Mistake, match=rf"of shape .*; this graph has {all_of_them.size}, in one flat"
            ):
                await Neurons.open(world, graph, given, capture=False)

    run(main)


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


CHANNELS, PIXELS = 8, 24


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
        given = {"one0": {"cost_s": 0.5, "priority": 3}}
        engine = await Neurons.open(world, graph, flat, tags=given)
        rows = {row["name"].decode(): row for row in of_kind(engine.graph_table, "kernel")}
        assert rows["one0"]["cost_s"] == 0.5
        assert (rows["one0"]["priority"], rows["one0"]["source"]) == (3, 1)
        assert rows["three0"]["source"] == 2  # measured when the engine was opened
        assert rows["three0"]["cost_s"] > 0
        assert rows["three0"]["filter_size"].tolist() == [8, 3, 3]
        if world.node_rank == 0:
            await engine.infer(samples(graph, 1))
        await world.barrier()
        await engine.replan(tags={})  # by what its blocks took
        rows = {row["name"].decode(): row for row in of_kind(engine.graph_table, "kernel")}
        assert rows["one0"]["source"] == 2
        assert 0 < rows["one0"]["cost_s"] < 0.5
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


@dataclass(frozen=True, slots=True)
class Failing(ReLU):
    """A relu that raises in the last block of an image of large numbers."""

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        ReLU.forward_region(self, b, mode, region)
        if region[1].stop == PIXELS and b.output[:, :, region[1]].max() > 1e6:
            raise ArithmeticError("too large")


@pytest.mark.mpi
def test_an_error_in_a_block_reaches_the_caller_and_the_next_request_is_answered():
    b = Builder()
    h = b(
        "conv2d",
        b.input("x", (CHANNELS, PIXELS, PIXELS)),
        channels=CHANNELS,
        kernel_size=3,
        padding=1,
        name="conv",
    )
    plain = b.build(b("conv2d", b("relu", h, name="bent"), channels=4, kernel_size=1, name="last"))
    nodes = tuple(Node(n.name, Failing() if n.name == "bent" else n.kernel, n.inputs) for n in plain.nodes)
    graph, flat = Graph(plain.inputs, nodes, plain.outputs), parameters(plain)

    async def main(world: World) -> None:
        costs = {name: {"cost_s": 1.0} for name in ("conv", "last")}
        engine = await Neurons.open(world, graph, flat, tags=costs, capture=False)
        if world.node_rank == 0:
            inputs = samples(plain, 1)
            (expected,) = serial(plain, 1, flat, inputs).values()
            for _ in range(3):
                with pytest.raises(BlockError, match=r"(?s)at the block 'conv.*ArithmeticError: too large"):
                    await engine.infer({"x": inputs["x"] * np.float32(1e8)})
                (got,) = (await engine.infer(inputs)).values()
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        await engine.close()

    run(main)


@pytest.mark.mpi
def test_an_error_of_who_is_told_of_blocks_reaches_the_caller():
    graph = GRAPHS["chain"]()
    flat = parameters(graph)

    def told(block: str, request: int, start_ns: int, end_ns: int) -> None:
        if request == 1:
            raise OSError("no room for spans")

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, flat, tags=tags(graph), capture=False, spans=told)
        if world.node_rank == 0:
            inputs = samples(graph, 1)
            with pytest.raises(BlockError, match="OSError: no room for spans"):
                await engine.infer(inputs)
            (got,), (expected,) = (
                (await engine.infer(inputs)).values(),
                serial(graph, 1, flat, inputs).values(),
            )
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        await engine.close()

    run(main)


@pytest.mark.mpi
def test_requests_follow_one_another_whoever_asks_at_once():
    graph = GRAPHS["chain"]()
    flat = parameters(graph)

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, flat, tags=tags(graph), capture=False)
        if world.node_rank == 0:
            inputs = [samples(graph, 1, seed) for seed in range(8)]
            left = asyncio.create_task(engine.infer(inputs[0]))
            await asyncio.sleep(0)
            left.cancel()  # whoever leaves disturbs nobody
            answers = await asyncio.gather(*(engine.infer(each) for each in inputs))
            for each, answer in zip(inputs, answers, strict=True):
                (got,), (expected,) = answer.values(), serial(graph, 1, flat, each).values()
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        await engine.close()

    run(main)


@pytest.mark.mpi
def test_an_engine_is_planned_anew_between_requests_that_are_under_way():
    """One that began just then put its number where the helpers were to read that they end: all hung."""
    graph = GRAPHS["chain"]()
    flat = parameters(graph)

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, flat, tags=tags(graph), capture=False)
        inputs = [samples(graph, 1, seed) for seed in range(3)]
        for turn in range(8):
            asked = []
            if world.node_rank == 0:
                asked = [asyncio.create_task(engine.infer(each)) for each in inputs]
                for _ in range(turn % 4):
                    await asyncio.sleep(0)
            await engine.replan()
            for each, answer in zip(inputs, await asyncio.gather(*asked), strict=False):
                (got,), (expected,) = answer.values(), serial(graph, 1, flat, each).values()
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        await engine.close()

    run(main)


@pytest.mark.mpi
def test_engines_that_are_opened_planned_and_closed_at_once_keep_apart_also_from_a_pool():
    graph = GRAPHS["chain"]()
    flats = [parameters(graph) * (1 + number) for number in range(3)]

    def double(pool: Pool, number: int) -> int:
        return 2 * number

    async def use(pool: Pool) -> None:
        assert [(await pool.submit("double", number)).body for number in range(3)] == [0, 2, 4]

    async def main(world: World) -> None:
        for turn in range(3):
            if world.rank == turn % world.size:  # comes when the others have met already
                await asyncio.sleep(1e-3)
            pool, *engines = await asyncio.gather(
                Pool.open(world, {"double": double}),
                *(Neurons.open(world, graph, flat, capture=turn == 0) for flat in flats),
            )
            await asyncio.gather(*(engine.replan() for engine in engines))
            await pool.run(use(pool))
            for engine, flat in zip(engines, flats, strict=True):
                if world.node_rank == 0:
                    inputs = samples(graph, 1)
                    (got,), (expected,) = (
                        (await engine.infer(inputs)).values(),
                        serial(graph, 1, flat, inputs).values(),
                    )
                    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
            await asyncio.gather(pool.close(), *(engine.close() for engine in engines))

    run(main)


@pytest.mark.mpi
def test_what_cannot_be_answered_is_refused():
    graph = GRAPHS["chain"]()
    flat = parameters(graph)

    async def main(world: World) -> None:
        with pytest.raises(GraphError, match="tags are given for 'conv9'"):
            await Neurons.open(world, graph, flat, tags={"conv9": {}}, capture=False)
        engine = await Neurons.open(world, graph, flat, capture=False)
        if world.node_rank == 0:
            for wrong in ({}, samples(graph, 2), {"x": np.zeros((1, 6, 21, 17))}):
                with pytest.raises(Mistake, match=r"input 'x' is \(1, 6, 21, 17\) float32 in this engine"):
                    await engine.infer(wrong)
            (name, given), *_ = samples(graph, 1).items()
            with pytest.raises(Mistake, match="input 'x' has a mask"):
                await engine.infer({name: np.ma.masked_less(given, 0)})
        else:
            with pytest.raises(Mistake, match="ask rank 0"):
                await engine.infer(samples(graph, 1))
        await engine.close()
        if world.node_rank == 0:
            with pytest.raises(Mistake, match="closed"):
                await engine.infer(samples(graph, 1))

    run(main)
