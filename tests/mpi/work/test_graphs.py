"""Task graphs run across ranks, as they are and combined: the results are those of the plain loop."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import GraphError, Mistake, TaskError
from weft.runtime.graph.candidates import Thresholds
from weft.runtime.graph.combine import Combined, combine
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


TABLE, BUFFER = np.arange(4.0), np.zeros(4)


def table(pool: Any, body: None) -> np.ndarray:
    return TABLE  # and keeps it


def scale(pool: Any, factor: int, needs: list[Result]) -> np.ndarray:
    needs[0].arrays[0] *= factor
    return needs[0].arrays[0]


def fill(pool: Any, number: int, needs: list[Result] = ()) -> np.ndarray:
    BUFFER[:] = number  # which the next call fills again
    return BUFFER


def first(pool: Any, kind: str) -> Any:
    return {"list": [1, 2], "tuple": (1, 2), "float32": np.float32(0.1)}[kind]


def push(pool: Any, number: int, needs: list[Result]) -> Any:
    needs[0].body.append(number)
    return needs[0].body


def triple(pool: Any, body: None, needs: list[Result]) -> float:
    return float(needs[0].body * 3)


def add(pool: Any, body: None, needs: list[Result]) -> np.ndarray:
    return needs[0].arrays[0] + 10 * needs[1].arrays[0]


GIVEN = {each.__name__: each for each in (table, scale, fill, first, push, triple, add)}


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ({"a": Call("table"), "b a": Call("scale", 2)}, {"b": [0.0, 2.0, 4.0, 6.0]}),
        ({"a": Call("fill", 1), "b": Call("fill", 2), "c a b": Call("add")}, {"c": [21.0] * 4}),
        ({"a": Call("fill", 1), "b a": Call("fill", 2)}, {"a": [1.0] * 4, "b": [2.0] * 4}),
        (
            {"a": Call("first", "list"), "b a": Call("push", 3), "c a": Call("push", 4)},
            {"b": [1, 2, 3], "c": [1, 2, 4]},
        ),
        ({"a": Call("first", "tuple"), "b a": Call("push", 3)}, {"b": [1, 2, 3]}),
        ({"a": Call("first", "float32"), "b a": Call("triple")}, {"b": 3 * float(np.float32(0.1))}),
    ],
    ids=[
        "a reader changes what a function keeps",
        "a function fills the same buffer for two that one reads",
        "a function fills the same buffer again, and both are results",
        "two readers change a list",
        "a tuple arrives as a list",
        "a NumPy scalar arrives as a float",
    ],
)
def test_members_of_a_combined_task_see_what_would_have_travelled(calls, expected):
    """Each twice, for what one leaves behind; "b a": task b, which needs a."""
    needs = {name.split()[0]: name.split()[1:] for name in calls}
    calls = {name.split()[0]: call for name, call in calls.items()}
    graph = TaskGraph(
        tuple(
            TaskSpec(name, seconds=1e-6, needs=dict.fromkeys(own, 8), output_bytes=8, result=name in expected)
            for name, own in needs.items()
        )
    )

    def told(results: dict[str, Result]) -> dict[str, Any]:
        return {n: each.arrays[0].tolist() if each.arrays else each.body for n, each in results.items()}

    # Of one group, whatever is a result: what follows a result would not be put behind it.
    members = {"all": tuple(task.name for task in graph.tasks)}
    combined = Combined(TaskGraph((TaskSpec("all"),)), members, graph)

    async def main(world: World) -> None:
        async with await Pool.open(world, GIVEN) as pool:

            async def ask() -> None:
                for each in (graph, combined, combined):
                    assert told(await run_graph(pool, each, calls)) == expected
                assert told(run_serially(graph, calls, GIVEN)) == expected

            await pool.run(ask())

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
                with pytest.raises(Mistake, match=r"'b' calls 'fail'; give a Call, as in Call\('function'"):
                    await run_graph(pool, combined, {"a": Call("fail"), "b": "fail"})
                with pytest.raises(Mistake, match=r"'b' is given arrays of type ndarray; give a tuple, also"):
                    await run_graph(pool, graph, {"a": Call("fail"), "b": Call("fail", None, np.ones(2))})
                with pytest.raises(Mistake, match=r"graph is a list; give a TaskGraph\(tasks\)"):
                    await run_graph(pool, list(graph.tasks), {})
                with pytest.raises(Mistake, match="stands alone; give a list of what there is"):
                    await run_graph(pool, graph, dict.fromkeys("ab", Call("fail")), within=Capacity(1, 8))
                with pytest.raises(TaskError, match="ValueError: first"):
                    await run_graph(pool, combined, {"a": Call("fail", "first"), "b": Call("fail", "second")})

            await pool.run(ask())

    run(main)


def recording(pool: Pool, graph: TaskGraph) -> tuple[list[str], list[int]]:
    """What is given to the pool from now on, and after each of it the bytes of what has not ended."""
    demands = {task.name: task.memory_bytes for task in graph.tasks}
    submit, given, names, held = pool.submit, [], [], []

    def submitted(function: str, name: str, *arrays: np.ndarray, **tags: Any) -> Any:
        submission = submit(function, name, *arrays, **tags)
        given.append((submission, demands[name]))
        names.append(name)
        held.append(sum(nbytes for each, nbytes in given if not each.done))
        return submission

    pool.submit = submitted  # type: ignore[method-assign]
    return names, held


def pause(pool: Any, name: str, needs: list[Result] = ()) -> list[str]:
    time.sleep(1e-3)
    return [name, *(need.body[0] for need in needs)]


@pytest.mark.mpi
def test_s4_5_what_runs_at_once_never_demands_more_than_there_is():
    random = Random(5)
    graph = TaskGraph(
        tuple(
            TaskSpec(
                f"t{n}",
                needs=dict.fromkeys((f"t{m}" for m in range(max(0, n - 6), n) if random.random() < 0.2), 8),
                output_bytes=8,
                scratch_bytes=random.randrange(0, 500),
            )
            for n in range(40)
        )
    )
    calls = {task.name: Call("pause", task.name) for task in graph.tasks}
    expected = plain(run_serially(graph, calls, {"pause": pause}))
    within = [Capacity(lanes=8, memory_bytes=700)]

    async def main(world: World) -> None:
        async with await Pool.open(world, {"pause": pause}) as pool:
            names, held = recording(pool, graph)

            async def ask() -> None:
                assert plain(await run_graph(pool, graph, calls, within=within)) == expected
                assert sorted(names) == sorted(calls)
                assert max(held) <= 700
                assert max(held) > 350  # it waits for no more than it must
                held.clear()
                await run_graph(pool, graph, calls)
                assert max(held) > 700  # all are given at once then

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


@pytest.mark.mpi
def test_s4_5_what_fits_is_pulled_forward_past_what_is_deferred():
    sizes = {"a": 6, "b": 6, "c": 1, "d": 1}
    graph = TaskGraph(tuple(TaskSpec(name, scratch_bytes=size) for name, size in sizes.items()))
    calls = {name: Call("pause", name) for name in sizes}

    async def main(world: World) -> None:
        async with await Pool.open(world, {"pause": pause}) as pool:
            names, held = recording(pool, graph)

            async def ask() -> None:
                found = await run_graph(pool, graph, calls, within=[Capacity(lanes=2, memory_bytes=10)])
                assert {name: each.body for name, each in found.items()} == {name: [name] for name in sizes}
                assert names[:2] == ["a", "c"]
                assert max(held) <= 10

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


@pytest.mark.mpi
def test_s4_5_of_a_graph_that_can_never_fit_nothing_runs_and_behind_a_failure_nothing_more():
    def fail(pool: Any, name: str) -> None:
        raise ValueError(name)

    graph = TaskGraph((TaskSpec("large", scratch_bytes=11), TaskSpec("small", scratch_bytes=1)))
    calls = {"large": Call("fail", "large"), "small": Call("pause", "small")}

    async def main(world: World) -> None:
        async with await Pool.open(world, {"pause": pause, "fail": fail}) as pool:
            names, _ = recording(pool, graph)

            async def ask() -> None:
                with pytest.raises(GraphError, match="task 'large' demands 1 lanes and 11 bytes"):
                    await run_graph(pool, graph, calls, within=[Capacity(1, 10)])
                assert names == []
                with pytest.raises(TaskError, match="ValueError: large"):
                    await run_graph(pool, graph, calls, within=[Capacity(1, 11)])
                assert names == ["large"]

            await pool.run(ask() if world.rank == 0 else None)

    run(main)
