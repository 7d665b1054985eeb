"""Windows, boards and communicators that are made and given back at once: nobody waits in a circle."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Coroutine
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import MachineError
from weft.runtime.message import World, meeting, run, window
from weft.runtime.work.pool import Pool


@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(3))
def test_what_is_made_and_closed_at_once_in_another_order_on_every_rank_keeps_nobody(seed: int) -> None:
    """Each of two ranks waited in MPI for the other, in another call, with its loop."""

    async def main(world: World) -> None:
        random = Random(1000 * seed + world.rank)

        async def at_once(*some: Coroutine[Any, Any, Any]) -> list[Any]:
            """All of them, begun in an order of this rank's own; their results as they were given."""
            tasks: dict[int, asyncio.Task[Any]] = {}
            for place in random.sample(range(len(some)), len(some)):
                tasks[place] = asyncio.create_task(some[place])
                await asyncio.sleep(0)
            return [await tasks[place] for place in range(len(some))]

        apart = [await world.node.duplicate(f"part {n}") for n in range(4)]
        whole = [await world.duplicate(f"whole {n}") for n in range(3)]
        windows = await at_once(*(world.window(8 * (n + 1), node=comm) for n, comm in enumerate(apart)))
        assert [each.nbytes(world.node_rank) for each in windows] == [8, 16, 24, 32]
        parts = await at_once(
            whole[0].split(0, name="alike"),
            whole[1].split(0, -world.rank, name="turned round"),
            whole[2].duplicate("again"),
            *(comm.duplicate("again") for comm in apart),
            world.board(2),
        )
        assert parts[1].rank == world.size - 1 - world.rank
        await asyncio.gather(*(part.barrier() for part in parts[:-1]))
        await at_once(*(each.close() for each in (*windows, parts[-1])))

    run(main)


@pytest.mark.mpi
def test_a_window_and_a_pool_are_made_at_once_in_either_order() -> None:
    """Open MPI's ranks waited for each other: one in the pool's memory, another in the window."""

    async def main(world: World) -> None:
        making = [
            Pool.open(world, {"one": lambda pool, body: 1}),
            world.window(8),
            world.duplicate("another"),
        ]
        tasks = [asyncio.create_task(each) for each in (making[::-1] if world.rank % 2 else making)]
        made = await asyncio.gather(*tasks)
        pool, shared, another = made[::-1] if world.rank % 2 else made
        await asyncio.gather(another.barrier(), shared.fence(), pool.run())
        closing = [pool.close(), shared.close()]
        await asyncio.gather(*(closing[::-1] if world.rank % 2 else closing))

    run(main)


@pytest.mark.mpi(min_size=2)
def test_a_pool_for_which_a_rank_no_longer_waits_has_memory_of_its_own() -> None:
    """What that rank made meanwhile the others took for the pool's."""

    async def main(world: World) -> None:
        opening = asyncio.create_task(Pool.open(world, {"one": lambda pool, body: 1}))
        if world.rank == 0:
            for _ in range(3):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
        sizes = 0, 24, 8, 56
        windows = [await world.window(size) for size in sizes]
        for size, one in zip(sizes, windows, strict=True):
            assert [one.nbytes(rank) for rank in range(world.node_size)] == [size] * world.node_size
        if world.rank:
            await opening

    run(main)


@pytest.mark.mpi
def test_where_one_rank_finds_too_little_memory_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look at different times: who found enough waited in MPI, for ever, for who did not."""

    async def main(world: World) -> None:
        if world.node_rank == world.node_size - 1:
            monkeypatch.setattr(window, "room_bytes", lambda: 100)
        with pytest.raises(MachineError, match=r"shared memory is too small: the \d ranks of this node"):
            await world.window(101)
        await world.window(1)

    run(main)


@pytest.mark.mpi
def test_where_one_rank_may_map_too_little_memory_all_are_told() -> None:
    """MPI failed in it: MPICH with the assertion of a barrier, and no word of memory."""

    async def main(world: World) -> None:
        await world.window(1)  # so that all is imported that a window takes
        each, last = (40 << 20) // world.node_size, world.node.ranks[-1]
        before = resource.getrlimit(resource.RLIMIT_AS)
        if world.rank == last:
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + (32 << 20), before[1]))
        try:
            with pytest.raises(MachineError, match=rf"^rank {last} may map too little memory: .* 40 MiB"):
                await world.window(each)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        await world.window(each)

    run(main)


@pytest.mark.mpi
def test_communicators_whose_names_end_alike_are_duplicated_at_once() -> None:
    """Two with one group were in one meeting: no rank went in twice, and both waited for ever."""

    async def main(world: World) -> None:
        a, x, _ = [await world.duplicate(name) for name in ("a", "x", "x")]
        alike = [await a.duplicate("b"), await world.duplicate("a/b"), await world.duplicate("x (2)"), x]
        groups = [comm.group for comm in world.selector.communicators]
        assert len(set(groups)) == len(groups)
        made = await asyncio.gather(*(comm.duplicate("next") for comm in alike))
        await asyncio.gather(*(comm.barrier() for comm in made))

    run(main)


@pytest.mark.mpi
def test_a_window_that_is_made_when_all_tasks_were_cancelled_is_closed_with_the_world() -> None:
    """As at main's end. MPICH found it in MPI_Finalize, and ended the job."""

    async def main(world: World) -> None:
        before = asyncio.all_tasks()
        opening = [asyncio.create_task(world.window(64)), asyncio.create_task(world.board(2))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await asyncio.wait(opening)
        await world.node.duplicate("behind them")
        while len(world._windows) < 2:  # another thread makes them: they are kept behind that, if not yet
            await asyncio.sleep(0.001)

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["window", "board", "split", "duplicate"])
def test_what_is_made_leaves_the_communicator_to_other_collectives_meanwhile(kind: str) -> None:
    """Behind its memory a board called one of its own, behind or before what the program called by then."""

    async def main(world: World) -> None:
        makes: dict[str, Any] = {
            "window": lambda: world.window(8),
            "board": lambda: world.board(1),
            "split": lambda: world.node.split(0, name="part"),
            "duplicate": lambda: world.node.duplicate("part"),
        }
        making = asyncio.create_task(makes[kind]())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if world.node_rank == 0:
            await making  # all is made here before the next is called; on the others not yet
        total = np.ones(1)
        await world.node.allreduce(total)
        assert total[0] == world.node_size
        await making

    run(main)


@pytest.mark.mpi(min_size=2)
def test_who_waits_in_mpi_for_a_rank_that_blocks_its_loop_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It told of nothing, and who waited for it was told that it was the one whose loop stood still."""

    async def main(world: World) -> None:
        told = await world.window(8)
        word = told.array(0, "int64", 1)
        pair = await world.split(0 if world.rank < 2 else None, name="pair")
        if pair is None or len(world.nodes) > 1:
            return  # (of one node, for what rank 1 looks at meanwhile is its memory)
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            word[0] = 1

        monkeypatch.setattr(meeting, "say", say)
        making = asyncio.create_task(pair.duplicate("again"))
        if world.rank == 1:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            end_s = time.monotonic() + 30
            while not word[0] and time.monotonic() < end_s:
                world.selector.test()  # so that the others see that it has come
                time.sleep(0.01)  # but the loop stands still
            assert word[0]
        await making
        if world.rank == 0:
            (text,) = said
            assert "in MPI for 1 s, in \"duplicate as 'again'\", and does nothing else" in text
            assert "it waits for rank 1, whose event loop has been blocked" in text
            assert "asyncio.to_thread" in text

    run(main, stall_s=1.0)


@pytest.mark.mpi
@pytest.mark.parametrize("stall_s", [inf, sys.maxsize])
def test_where_stalls_are_told_never_nothing_is(stall_s: float, capfd: pytest.CaptureFixture[str]) -> None:
    """The thread that tells of them was to wait longer than one can."""

    async def main(world: World) -> None:
        await world.window(8)
        await world.node.duplicate("again")

    run(main, stall_s=stall_s)
    assert "Traceback" not in capfd.readouterr().err
