"""Task graphs run across ranks, as they are and combined: the results are those of the plain loop."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import GraphError, TaskError
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import combine
from weft.runtime.graph.tasks import Capacity, TaskGraph, TaskSpec
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool
from weft.runtime.work.pool.graphs import Call, run_graph, run_serially
from weft.runtime.work.pool.parcel import Result

NBYTES = 8 * 16


def mix(pool: Any, number: int, own: np.ndarray, needs: list[Result] = ()) -> tuple[int, np.ndarray]:
    """No two orders of needs, and no other inputs, give the same."""
    state = np.int64(number)
    for place, need in enumerate(needs):
        assert isinstance(need.body, int)
        need.arrays[0][:] *= 31 + place  # a reader's copy: no other reader sees it
        own = own * np.int64(17) + need.arrays[0]
        state = state * np.int64(13) + need.body % 1000
    return int(state) % 10**9, own + state


def graph_of(seed: int, size: int = 60) -> tuple[TaskGraph, dict[str, Call]]:
    random = Random(seed)
    tasks, calls = [], {}
    for index in range(size):
        earlier = [
            f"t{n}" for n in random.sample(range(max(0, index - 12), index), min(index, random.randrange(4)))
        ]
        tasks.append(
            TaskSpec(
                f"t{index}",
                seconds=random.choice((1e-6, 1e-6, 1e-3)),
                needs=dict.fromkeys(earlier, NBYTES),
                output_bytes=NBYTES,
                result=random.random() < 0.05,
            )
        )
        calls[f"t{index}"] = Call("mix", index, (np.arange(16) * index,))
    return TaskGraph(tuple(tasks)), calls


def plain(results: dict[str, Result]) -> dict[str, tuple[Any, list[Any]]]:
    return {name: (found.body, [array.tolist() for array in found.arrays]) for name, found in results.items()}


@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(3))
def test_s4_4_a_combined_graph_on_several_ranks_gives_what_the_plain_loop_gives(seed):
    graph, calls = graph_of(seed)
    expected = plain(run_serially(graph, calls, {"mix": mix}))

    async def main(world: World) -> None:
        combined = combine(graph, [Capacity(1, 1 << 30)], Thresholds(overhead_s=50e-6, workers=2))
        assert len(combined.tasks.tasks) < 0.9 * len(graph.tasks)
        found = []
        async with await Pool.open(world, {"mix": mix}) as pool:

            async def ask() -> None:
                for each in (graph, combined):
                    found.append(plain(await run_graph(pool, each, calls)))

            for asker in {0, world.size - 1}:
                await pool.run(ask() if world.rank == asker else None)
        assert all(each == expected for each in found)
        assert len(found) == 2 * (world.rank in (0, world.size - 1))

    run(main)


@pytest.mark.mpi
def test_a_graph_that_cannot_run_says_why():
    async def main(world: World) -> None:
        def fail(pool: Any, body: str) -> None:
            raise ValueError(body)

        graph = TaskGraph(tuple(TaskSpec(name, seconds=1e-6) for name in "ab"))
        combined = combine(graph, [Capacity(1, 1 << 30)], Thresholds())
        assert len(combined.tasks.tasks) == 1
        async with await Pool.open(world, {"fail": fail}) as pool:

            async def ask() -> None:
                with pytest.raises(GraphError, match=r"no call is given for task 'b' \(of 1 without one\)"):
                    await run_graph(pool, graph, {"a": Call("fail")})
                with pytest.raises(TaskError, match="ValueError: first"):
                    await run_graph(pool, combined, {"a": Call("fail", "first"), "b": Call("fail", "second")})

            await pool.run(ask())

    run(main)
