"""Who helps an engine with a request: ranks that are free; and one that does not end its block."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tests.mpi.serve.models import shared
from tests.mpi.work.engines import tags
from tests.pure.graph.neuron_graphs import GRAPHS, parameters, samples, serial
from weft.runtime.graph import Builder
from weft.runtime.message import World, run
from weft.runtime.work.neurons import BlockHeld, Neurons, claims
from weft.runtime.work.neurons.crew import BlockError

pytestmark = pytest.mark.mpi(min_size=2)

GRAPH = GRAPHS["chain"]()
FLAT = parameters(GRAPH)
LONG_S = 60.0  # longer than any block is waited for


class Flags:
    """Words that the ranks of a node tell each other, on whatever thread."""

    def __init__(self, folder: Path, world: World) -> None:
        self._stem = folder / f"node-{min(world.node.ranks)}"

    def _path(self, word: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{word}")

    def say(self, word: str) -> None:
        self._path(word).touch()

    def said(self, word: str) -> bool:
        return self._path(word).exists()

    def wait(self, word: str) -> None:
        end_s = time.monotonic() + LONG_S
        while not self.said(word):
            assert time.monotonic() < end_s, f"nobody has said {word!r}"
            time.sleep(0.002)


async def opened(world: World, **given: object) -> Neurons:
    """An engine whose every layer has blocks for all ranks."""
    return await Neurons.open(world, GRAPH, FLAT, tags=tags(GRAPH), capture=False, **given)


def infer(engine: Neurons, seed: int, patience_s: float = LONG_S) -> None:
    """A request on this thread, and whether its answer is right."""
    inputs = samples(GRAPH, 1)
    for name, array in inputs.items():
        engine.arrays[name][...] = inputs[name] = array + seed
    engine.infer_here(patience_s)
    for name, values in serial(GRAPH, 1, FLAT, inputs).items():
        np.testing.assert_allclose(engine.arrays[name], values, rtol=1e-4, atol=1e-5)


def test_s1_7_a_rank_takes_blocks_while_it_is_free(tmp_path: Path):
    async def main(world: World) -> None:
        flags = Flags(await shared(world, tmp_path / "flags", lambda _: None), world)
        free, took = [False], []

        def told(block: str, request: int, start_ns: int, end_ns: int) -> None:
            took.append(request)
            if world.node_rank:
                free[0] = request < 3  # the third one comes back to a rank that has other work from then on
            if request > 1:  # nobody computes all that there is before the others are awake
                first = world.node_rank == 0
                flags.say(f"{'first' if first else 'helped'} {request}")
                flags.wait(f"{'helped' if first else 'first'} {request}")

        engine = await opened(world, spans=told, free=lambda: free[0])
        if world.node_rank == 0 and world.node_size > 1:
            infer(engine, 1)
        await world.barrier()
        assert took == [] or world.node_rank == 0  # nobody was free: the first rank computed all of it
        free[0] = True
        await world.barrier()
        if world.node_rank == 0 and world.node_size > 1:
            infer(engine, 2)
            infer(engine, 3)
            assert set(took) == {1, 2, 3}
        await world.barrier()
        if world.node_rank:
            assert took.count(3) <= 1  # one block, and its core is wanted elsewhere
        await engine.close()

    run(main)


def test_who_has_other_work_does_not_watch_for_the_next_request(tmp_path: Path, monkeypatch):
    """A millisecond of its core behind each."""
    looked, watch = [], claims.watch

    def told(words: np.ndarray, at: int, value: int, looks: int) -> int:
        looked.append(looks)
        return watch(words, at, value, looks)

    async def main(world: World) -> None:
        flags = Flags(await shared(world, tmp_path / "flags", lambda _: None), world)

        def free() -> bool:
            flags.say(f"{world.node_rank} was asked")  # it has entered the request
            return False

        engine = await opened(world, free=free)
        monkeypatch.setattr(claims, "watch", told)
        await world.barrier()
        if world.node_rank == 0:
            infer(engine, 1)
            for rank in range(1, world.node_size):
                flags.wait(f"{rank} was asked")
        await world.barrier()
        await engine.close()
        assert set(looked) <= {1}

    run(main)


def test_a_request_of_which_a_block_is_held_is_given_up_and_the_next_ones_until_it_has_ended(tmp_path: Path):
    async def main(world: World) -> None:
        flags = Flags(await shared(world, tmp_path / "flags", lambda _: None), world)

        def told(block: str, request: int, start_ns: int, end_ns: int) -> None:
            if request == 1 and world.node_rank == 1:
                flags.say("has it")
                flags.wait("go on")
            elif request == 1:  # nor is all done before it has one
                flags.wait("has it")

        engine = await opened(world, spans=told)
        if world.node_rank == 0 and world.node_size > 1:
            for patience_s in (0.1, LONG_S):  # the second time at once, without beginning anything
                with pytest.raises(BlockHeld, match=r"1.* of the node did not end the block"):
                    infer(engine, 1, patience_s)
            flags.say("go on")
            end_s = time.monotonic() + LONG_S
            while engine._crew._inside():
                assert time.monotonic() < end_s
                time.sleep(0.002)
            for seed in (2, 3):  # the first one, too
                infer(engine, seed)
        await world.barrier()
        await engine.close()

    run(main)


def test_a_block_that_raises_is_told_also_to_who_has_only_so_much_patience(tmp_path: Path):
    async def main(world: World) -> None:
        flags = Flags(await shared(world, tmp_path / "flags", lambda _: None), world)

        def told(block: str, request: int, start_ns: int, end_ns: int) -> None:
            if request == 1 and world.node_rank == world.node_size - 1:
                flags.say("raises")
                raise ArithmeticError("too large")
            if request == 1:
                flags.wait("raises")

        engine = await opened(world, spans=told)
        if world.node_rank == 0:
            with pytest.raises(BlockError, match="too large"):
                infer(engine, 1)
            infer(engine, 2)
        await world.barrier()
        await engine.close()

    run(main)


@pytest.mark.parametrize("capture", [True, False])
def test_what_is_infinite_is_no_error_on_any_rank(capture: bool):
    """As on a lane. Before the first request all inputs are 0; NumPy warns by thread, here by an error."""
    b = Builder()
    graph = b.build(b("log", b.input("x", (64, 64)), name="y"))

    async def main(world: World) -> None:
        engine = await Neurons.open(world, graph, np.zeros(0, np.float32), tags=tags(graph), capture=capture)
        if world.node_rank == 0:
            engine.infer_here()
            assert (engine.arrays["y"] == -np.inf).all()
            found = await engine.infer({"x": np.zeros((1, 64, 64), np.float32)})
            assert (found["y"] == -np.inf).all()
        await world.barrier()
        await engine.close()

    run(main)


def test_weights_that_all_ranks_see_already_are_not_copied():
    async def main(world: World) -> None:
        window = await world.window(FLAT.nbytes if world.node_rank == 0 else 0, node=world.node)
        flat = window.array(0, np.float32, FLAT.size)
        if world.node_rank == 0:
            flat[:] = FLAT
        await window.fence()
        engine = await Neurons.open(world, GRAPH, flat, shared=True, capture=False, tags=tags(GRAPH))
        assert engine.parameters is flat
        if world.node_rank == 0:
            infer(engine, 1)
            flat *= np.float32(0.5)
            with pytest.raises(AssertionError, match="Not equal"):
                infer(engine, 1)
        await world.barrier()
        await engine.close()
        await window.close()

    run(main)
