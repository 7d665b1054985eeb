"""The world and run: nodes, agreement, what is left behind at the end."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.message import Message, World, launch, run


def test_run_returns_what_main_returned_on_this_rank() -> None:
    async def main(world: World) -> str:
        return f"rank {world.rank}"

    from mpi4py import MPI

    assert run(main) == f"rank {MPI.COMM_WORLD.rank}"


def test_every_rank_is_on_one_node_and_knows_its_place_there() -> None:
    async def main(world: World) -> None:
        assert sorted(rank for node in world.nodes for rank in node) == list(range(world.size))
        assert [node[0] for node in world.nodes] == sorted(node[0] for node in world.nodes)
        mine = next(node for node in world.nodes if world.rank in node)
        assert len(mine) == world.node_size == world.node.size
        assert mine[world.node_rank] == world.rank
        assert world.node.ranks == mine
        assert len(world.hosts) == world.size
        assert world.hosts[world.rank] == world.host
        assert len(world.node_pids) == world.node_size
        assert world.node_pids[world.node_rank] == os.getpid()

    run(main)


def test_ranks_of_the_first_node_have_its_clock() -> None:
    async def main(world: World) -> None:
        if world.rank in world.nodes[0]:
            assert world.clock_offset_ns == 0

    run(main)


def test_the_world_is_a_communicator_and_has_one_of_its_node() -> None:
    async def main(world: World) -> None:
        total = np.array([world.rank + 1])
        there = np.array([1])
        await asyncio.gather(world.allreduce(total), world.node.allreduce(there), world.barrier())
        assert total[0] == world.size * (world.size + 1) // 2
        assert there[0] == world.node_size

    run(main)


@pytest.mark.parametrize(
    "value", ["1.0", b"\0\1", "", "x" * 100_000], ids=["text", "bytes", "nothing", "long"]
)
def test_ranks_with_the_same_value_agree(value: str | bytes) -> None:
    async def main(world: World) -> None:
        await world.agree("version", value)

    run(main)


@pytest.mark.parametrize("length", [1, 100_000], ids=["short values", "values that differ at their end"])
def test_ranks_with_different_values_all_hear_who_has_which(length: int) -> None:
    async def main(world: World) -> None:
        value = "x" * length + ("a" if world.rank == 0 else "b")
        if world.size == 1:
            await world.agree("job file", value)
            return
        with pytest.raises(Mistake) as error:
            await world.agree("job file", value)
        others = "rank 1 (" if world.size == 2 else f"ranks 1-{world.size - 1} ("
        assert "the same job file" in str(error.value)
        assert "rank 0 (" in str(error.value)
        assert others in str(error.value)

    run(main)


def test_what_ranks_agree_on_and_meet_for_may_name_a_file_that_is_no_text() -> None:
    async def main(world: World) -> None:
        await world.agree("job file", "\udcff.toml")
        await world.barrier(what="reading \udcff.npy")

    run(main)


def test_a_rank_whose_main_is_over_still_answers() -> None:
    async def main(world: World) -> None:
        channel = await world.channel("squares")

        def square(message: Message) -> int:
            return int(message.body) ** 2

        channel.serve(square)
        if world.rank == 0:
            for rank in range(world.size):
                assert (await channel.request(rank, rank, timeout=30)).body == rank**2

    run(main)


def test_nothing_is_left_at_mpi() -> None:
    worlds = []

    async def main(world: World) -> None:
        worlds.append(world)
        await world.channel("one")
        await world.window(1000)
        other = await world.duplicate("another")
        await (await other.duplicate("of the other")).barrier()
        world.recv(np.zeros(1))  # never awaited, never sent

    run(main)
    selector = worlds[0].selector
    assert selector.outstanding() == []
    assert selector.communicators == []
    assert not selector._requests  # standing receives included


def test_tasks_that_main_left_are_cancelled_and_may_clean_up() -> None:
    seen = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    async def main(world: World) -> asyncio.Task[None]:
        world.background(forever(), "background")
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return task

    run(main)
    assert seen == ["cleaned up"] * 2


def test_threads_that_main_left_end_before_windows_are_closed() -> None:
    seen = []

    async def main(world: World) -> None:
        window = await world.window(8)
        numbers = window.array(world.node_rank, "int64", 1)
        go = threading.Event()

        def work() -> None:
            go.wait()
            numbers[0] = 7  # a SIGSEGV, were the window gone
            seen.append(int(numbers[0]))

        asyncio.get_running_loop().run_in_executor(None, work)
        asyncio.get_running_loop().call_later(0.05, go.set)

    run(main)
    assert seen == [7]


def test_a_connection_that_breaks_ends_no_job() -> None:
    async def main(world: World) -> None:
        done = asyncio.Event()

        async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            done.set()

        server = await asyncio.start_server(visit, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * 100)
        writer.transport.abort()
        await done.wait()
        server.close()
        await world.barrier()

    run(main)


def test_a_run_inside_a_run_is_refused_and_the_outer_one_goes_on() -> None:
    """asyncio ended the job, with two tracebacks out of its own files and none of whoever had called."""

    async def main(world: World) -> None:
        with pytest.raises(Mistake, match=r"run\(main\) was called while an event loop runs"):
            run(main)
        await world.barrier()

    run(main)


def test_what_nobody_would_await_is_no_callback_of_a_stop() -> None:
    """It was called, and a stop did nothing."""

    async def main(world: World) -> None:
        async def stop() -> None: ...

        with pytest.raises(
            Mistake, match=r"on_stop was given .*stop.*, an `async def`; give a plain function"
        ):
            world.on_stop(stop)

    run(main)


def test_timers_and_threads_run_while_a_collective_is_awaited() -> None:
    async def main(world: World) -> None:
        release = asyncio.Event()
        ticks = []

        async def tick() -> None:
            for _ in range(5):
                await asyncio.sleep(0.001)
                ticks.append(time.monotonic())
            release.set()

        async def late() -> None:
            if world.rank == world.size - 1:
                await release.wait()
            await world.barrier()

        await asyncio.gather(tick(), late(), asyncio.to_thread(lambda: None))
        assert len(ticks) == 5

    run(main)


@pytest.mark.mpi
def test_what_ranks_close_together_goes_on_to_its_end_when_main_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled halfway, a rank met the others for one window, they it for another: for ever, in MPI."""
    over, closed = asyncio.Event(), []
    wait = launch.Rank._all_over

    async def all_over(rank: launch.Rank[None]) -> bool:
        found = await wait(rank)
        over.set()
        return found

    monkeypatch.setattr(launch.Rank, "_all_over", all_over)

    async def main(world: World) -> None:
        first, second = await world.window(8), await world.window(8)

        async def close() -> None:
            if world.node_rank:
                await over.wait()
            await second.close()
            await first.close()
            closed.append(second.closed and first.closed)

        world.closing(close(), "two windows close")

    run(main)
    assert closed == [True]
