"""Shared windows: everybody's segment, seen by everybody on the node."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import MachineError, Mistake
from weft.runtime.message import Window, World, run
from weft.runtime.message.window import LINE_BYTES


def test_what_one_rank_writes_the_others_read() -> None:
    async def main(world: World) -> None:
        window = await world.window(1000)
        mine = window.array(world.node_rank, "float64", (5, 5))
        mine[:] = world.rank
        await window.fence()
        for number, rank in enumerate(world.node.ranks):
            np.testing.assert_array_equal(window.array(number, "float64", (5, 5)), np.full((5, 5), rank))
        await window.fence()
        if world.node_rank == 0:  # anybody may write anywhere
            for number in range(world.node_size):
                window.array(number, "int32", 3, offset_bytes=8)[:] = number
        await window.fence()
        assert window.array(world.node_rank, "int32", 3, offset_bytes=8).tolist() == [world.node_rank] * 3

    run(main)


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 4096, 1_000_001], ids=lambda n: f"{n} bytes")
def test_segments_start_zeroed_and_at_a_line_of_their_own(nbytes: int) -> None:
    async def main(world: World) -> None:
        async with await Window.allocate(world.node, nbytes) as window:
            starts = []
            for rank in range(world.node_size):
                segment = window.array(rank, "uint8", nbytes)
                assert not segment.any()
                starts.append(segment.ctypes.data)
                assert starts[-1] % LINE_BYTES == 0
            apart = np.diff(sorted(starts))
            assert (apart >= nbytes).all()
            await window.fence()
            window.array(world.node_rank, "uint8", nbytes)[:] = 1
            await window.fence()
        assert window.closed

    run(main)


def test_ranks_may_give_segments_of_different_sizes_or_none() -> None:
    async def main(world: World) -> None:
        window = await world.window(100 * world.node_rank)
        assert [window.nbytes(rank) for rank in range(world.node_size)] == [
            100 * rank for rank in range(world.node_size)
        ]
        assert window.array(0, "float32", 0).size == 0
        with pytest.raises(Mistake, match=r"ends at 1; the window's segment of rank 0 has 0 bytes"):
            window.array(0, "uint8", 1)

    run(main)


def test_an_array_that_does_not_fit_is_refused() -> None:
    async def main(world: World) -> None:
        window = await world.window(64)
        with pytest.raises(Mistake, match="ends at 68"):
            window.array(world.node_rank, "float32", 16, offset_bytes=4)
        with pytest.raises(Mistake, match="whole number, 0 or more"):
            await world.window(-1)
        for rank in (-1, world.node_size):  # -1 was the last
            with pytest.raises(Mistake, match=f"no rank {rank} on this node"):
                window.array(rank, "float32", 1)
        with pytest.raises(Mistake, match="no negative length"):
            window.array(world.node_rank, "float32", (2, -1))
        with pytest.raises(Mistake, match="multiple of 8"):
            window.atomic(world.node_rank, 4)

    run(main)


@pytest.mark.parametrize("kind", ["window", "board"])
def test_a_rank_that_no_longer_waits_keeps_nobody_from_shared_memory(kind: str) -> None:
    async def main(world: World) -> None:
        if world.node_rank == 0:
            making = asyncio.create_task(getattr(world, kind)(64))
            await asyncio.sleep(0)
            making.cancel()
            await asyncio.wait([making])
            await world.barrier()
        else:
            await world.barrier()
            await getattr(world, kind)(64)
        await world.barrier()

    run(main)


def test_closing_twice_is_closing_once() -> None:
    async def main(world: World) -> None:
        window = await world.window(64)
        await window.close()
        await window.close()

    run(main)


def test_too_little_shared_memory_is_said_before_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    # Docker gives a container 64 MiB; touching a page that is not there would be a SIGBUS.
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=16, f_frsize=2**20))

    async def main(world: World) -> None:
        with pytest.raises(MachineError, match=rf"want {100 * world.node_size} MiB, /dev/shm has 16 MiB"):
            await world.window(100 * 2**20)

    run(main)


def test_an_atomic_word_loses_no_addition_and_gives_each_rank_another_value() -> None:
    additions = 2000

    async def main(world: World) -> None:
        async with await Window.allocate(world.node, 256) as window:
            word = window.atomic(world.node_size - 1, 128)
            found = [word.add(3) for _ in range(additions)]
            assert found == sorted(set(found))
            await window.fence()
            assert word.peek() == 3 * additions * world.node_size
            total = np.array([sum(found)], np.int64)
            await world.node.allreduce(total)
            count = additions * world.node_size
            assert total[0] == 3 * count * (count - 1) // 2
            await window.fence()
            if world.node_rank == 0:
                assert word.swap(-5) == 3 * count
                assert word.add(1) == -5
            await window.fence()
            assert window.array(world.node_size - 1, "int64", 1, 128)[0] == -4

    run(main)


@pytest.mark.parametrize("kind", ["window", "board"])
def test_a_close_that_is_cancelled_ends_the_waiting_only(kind: str) -> None:
    """It met the others for the second time, who had met and freed the memory, and waited in MPI."""

    async def main(world: World) -> None:
        for again in (True, False):
            shared: Any = await (world.window(8) if kind == "window" else world.board(1))
            if world.node_rank == 0:
                closing = asyncio.create_task(shared.close())
                await asyncio.sleep(0)
                closing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closing
            await world.barrier()
            if again or world.node_rank:
                await asyncio.wait_for(shared.close(), 30)
                assert shared.closed

    run(main)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kind", ["window", "board"])
def test_what_one_rank_has_begun_to_close_the_others_may_leave_to_the_world(kind: str) -> None:
    """They closed the first window with its barrier for the second: each freed another, for ever."""

    async def main(world: World) -> None:
        shared: list[Any] = [
            await (world.window(8) if kind == "window" else world.board(1)) for _ in range(3)
        ]
        if world.node_rank == 0:
            for each in (shared[2], shared[1]):
                closing = asyncio.create_task(each.close())
                await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait([closing])

    run(main)


def test_what_is_closed_says_so() -> None:
    async def main(world: World) -> None:
        window, board = await world.window(8), await world.board(1)
        await window.close()
        await board.close()
        for use in (lambda: window.array(0, "int64", 1), lambda: window.atomic(0, 0)):
            with pytest.raises(Mistake, match="this window is closed, and its memory given back: make anoth"):
                use()
        with pytest.raises(Mistake, match="this window is closed"):
            await window.fence()
        for give in (lambda: board.publish(0, 1), lambda: board.reached(0, 1)):
            with pytest.raises(Mistake, match="'board' is closed, and its memory given back: make another"):
                give()

    run(main)
