"""The ranks of a node divide its cores, of which they know how many there are."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from weft.runtime.graph import Builder, Layout
from weft.runtime.message import World, run
from weft.runtime.message import world as message_world
from weft.runtime.work.neurons import Neurons
from weft.runtime.work.pool import Pool


def blas_threads() -> dict[str, int]:
    """By file, of every BLAS that this process has loaded by now."""
    return {lib["filepath"]: lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


@pytest.mark.mpi
@pytest.mark.parametrize("part", ["pool", "neurons"])
def test_whoever_computes_on_all_ranks_divides_the_cores_among_them(part: str) -> None:
    async def main(world: World) -> None:
        before = blas_threads()
        every = world.size + len(os.sched_getaffinity(0))
        with threadpool_limits(limits=every):
            assert set(blas_threads().values()) == {every}
            async with AsyncExitStack() as stack:
                if part == "pool":
                    pool = await Pool.open(world, {"nothing": lambda pool, body: None})
                    await stack.enter_async_context(pool)
                else:
                    b = Builder()
                    graph = b.build(b("dense", b.input("x", (4,)), features=2))
                    zeros = np.zeros(Layout.of(graph).size, np.float32)
                    await stack.enter_async_context(await Neurons.open(world, graph, zeros))
                # Of ranks that no launcher bound: all cores are everybody's.
                part_of_all = max(1, len(os.sched_getaffinity(0)) // world.node_size)
                assert {blas_threads()[library] for library in before} == {part_of_all}

    run(main)


@pytest.mark.mpi
def test_ranks_that_were_left_one_core_between_them_know_that_they_share_it() -> None:
    """As in a part of a node, a Slurm job's or a container's, whose other cores are somebody else's."""
    allowed = os.sched_getaffinity(0)

    async def main(world: World) -> None:
        assert world.node_cores == 1
        assert world.loop.mpi.policy.crowded is (world.node_size > 1)

    os.sched_setaffinity(0, {min(allowed)})
    try:
        run(main)
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.mpi
def test_ranks_of_a_container_with_the_time_of_one_core_know_that_they_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its cores are all of the machine's, of which it may use one's time."""
    monkeypatch.setattr(message_world, "quota_cores", lambda: 1.5)

    async def main(world: World) -> None:
        assert world.node_cores == 1
        assert world.loop.mpi.policy.crowded is (world.node_size > 1)

    run(main)
