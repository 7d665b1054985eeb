"""An engine: opened, planned anew and closed, beside others; errors, and whom they reach."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from tests.pure.graph.neuron_graphs import GRAPHS, parameters, samples, serial
from weft.kernels.activation import ReLU
from weft.kernels.kernel import Buffers, Mode, Region
from weft.runtime.errors import GraphError, MachineError, Mistake, WeftError
from weft.runtime.graph import Builder, Graph, sequential
from weft.runtime.graph.graph import Node
from weft.runtime.message import World, run, window
from weft.runtime.work.neurons import Neurons, claims
from weft.runtime.work.neurons.crew import BlockError
from weft.runtime.work.pool import Pool

from .engines import tags

CHANNELS, PIXELS = 8, 24


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
@pytest.mark.parametrize(
    "closes",
    [lambda rank: False, lambda rank: True, lambda rank: rank == 0],
    ids=[
        "by nobody",
        "by some that did not wait for the others",
        "by one, while the others leave it to the end",
    ],
)
def test_an_engine_that_is_not_closed_ends_with_the_world(closes):
    """Its thread looked for the next request where there was no memory any more."""
    graph = GRAPHS[next(iter(GRAPHS))]()

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, parameters(graph), capture=False)
        if world.node_rank == 0:
            await engine.infer(samples(graph, 1))
        await world.barrier()
        if closes(world.node_rank):
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


UNLIKE = {
    "another graph": ("node 1 of the model of an engine", lambda last: {"relu": last}),
    "a graph with more nodes": ("number of nodes of the model", lambda last: {"layers": 2 + last}),
    "another batch": ("settings of an engine", lambda last: {"batch": 1 + last}),
    "barriers": ("settings of an engine", lambda last: {"barrier": last}),
    "tags": ("tags and dropped neurons", lambda last: {"tags": {"conv2d_1": {"cost_s": 1.0 + last}}}),
    "a name without tags": ("tags and dropped neurons", lambda last: {"tags": {"conv9": {}} if last else {}}),
    "dropped neurons": ("tags and dropped neurons", lambda last: {"dropped": {"conv2d_1": range(last)}}),
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("case", UNLIKE)
def test_an_engine_of_which_ranks_have_another_idea_is_refused_on_all(case):
    """Each computed what it took for its blocks: some requests got other numbers, others no answer."""

    async def main(world: World) -> None:
        text, of = UNLIKE[case]
        given = dict(of(world.rank == world.size - 1))
        convolution = {"channels": 2, "kernel_size": 3, "relu": given.pop("relu", True)}
        graph = sequential((3, 24, 24), [("conv2d", convolution)] * given.pop("layers", 2))
        with pytest.raises(Mistake, match=f"the ranks do not hold the same {text}") as told:
            await Neurons.open(world, graph, parameters(graph), **given)
        assert f"rank {world.size - 1} (host {world.host})" in str(told.value)

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("windows", [0, 1, 2])
def test_an_engine_that_cannot_be_opened_leaves_no_communicator_and_no_memory(monkeypatch, windows):
    """They stayed to the end of the job, for every time that it was tried."""
    graph = GRAPHS["inception"]()

    async def main(world: World) -> None:
        before, rooms = list(world.selector.communicators), iter([*[1 << 30] * windows, 100])
        monkeypatch.setattr(window, "room_bytes", lambda: next(rooms))
        with pytest.raises(MachineError, match="shared memory is too small"):
            await Neurons.open(world, graph, parameters(graph), capture=False)
        while world.closings:
            await asyncio.wait(world.closings)
        assert world.selector.communicators == before
        assert all(each.closed for each in world._windows)

    run(main)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("part", ["engine.Bound", "engine.cut", "claims.warm_up", "crew.threading"])
def test_an_engine_for_which_one_rank_has_no_memory_is_opened_on_none(monkeypatch, part):
    """The others waited for that rank, in its next collective."""
    graph = GRAPHS["inception"]()

    class Failing:
        def __call__(self, *_: object, **__: object) -> None:
            raise MemoryError("no memory")

        Thread = __call__

    async def main(world: World) -> None:
        alone = world.node_rank == world.node_size - 1
        if alone:
            monkeypatch.setattr(f"weft.runtime.work.neurons.{part}", Failing())
        error, text = (
            (MemoryError, "no memory") if alone else (WeftError, "another rank of the node could not")
        )
        async with asyncio.timeout(60):
            with pytest.raises(error, match=text):
                await Neurons.open(world, graph, parameters(graph), capture=False)
        while world.closings:
            await asyncio.wait(world.closings)
        assert all(each.closed for each in world._windows)

    run(main)


@pytest.mark.mpi(min_size=2)
def test_an_engine_that_ranks_would_plan_differently_is_left_as_it_was():
    graph = GRAPHS[next(iter(GRAPHS))]()

    async def main(world: World) -> None:
        async with await Neurons.open(world, graph, parameters(graph)) as engine:
            node = graph.nodes[0].name
            with pytest.raises(Mistake, match="do not hold the same tags and dropped neurons of an engine"):
                await engine.replan(dropped={node: range(world.rank)})
            if world.node_rank == 0:
                inputs = samples(graph, 1)
                expected = serial(graph, 1, parameters(graph), inputs)
                for name, values in (await engine.infer(inputs)).items():
                    np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)

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


@dataclass(frozen=True, slots=True)
class Failing(ReLU):
    """A relu that raises in the last block of an image of large numbers."""

    raised: type[BaseException] = ArithmeticError

    def forward_region(self, b: Buffers, mode: Mode, region: Region) -> None:
        ReLU.forward_region(self, b, mode, region)
        if region[1].stop == PIXELS and b.output[:, :, region[1]].max() > 1e6:
            raise self.raised("too large")


@pytest.mark.mpi
@pytest.mark.parametrize(
    "raised",
    [
        pytest.param(ArithmeticError, id="an error"),
        pytest.param(SystemExit, id="what would end the thread, and was awaited for ever"),
    ],
)
def test_an_error_in_a_block_reaches_the_caller_and_the_next_request_is_answered(raised):
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
    nodes = tuple(
        Node(n.name, Failing(raised) if n.name == "bent" else n.kernel, n.inputs) for n in plain.nodes
    )
    graph, flat = Graph(plain.inputs, nodes, plain.outputs), parameters(plain)

    async def main(world: World) -> None:
        costs = {name: {"cost_s": 1.0} for name in ("conv", "last")}
        engine = await Neurons.open(world, graph, flat, tags=costs, capture=False)
        if world.node_rank == 0:
            inputs = samples(plain, 1)
            (expected,) = serial(plain, 1, flat, inputs).values()
            for _ in range(3):
                with pytest.raises(
                    BlockError, match=rf"(?s)at the block 'conv.*{raised.__name__}: too large"
                ):
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
