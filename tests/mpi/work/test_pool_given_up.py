"""Runs of a pool that are given up, by a cancel or by what a main raises, and the runs behind them."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from tests.mpi.work.sums import over_ranks
from weft.runtime.errors import Mistake, TaskError
from weft.runtime.message import World, run
from weft.runtime.message.switchboard import MESSAGE
from weft.runtime.work.pool import Pool
from weft.runtime.work.pool.parcel import pack


@pytest.mark.mpi
def test_a_run_that_is_cancelled_gives_the_loop_back_and_its_memory_is_kept_for_the_thread():
    """Every rank's task ends later than the run: the next run waits for it, and so does `close`."""

    async def main(world: World) -> None:
        begun, ended = threading.Event(), threading.Event()

        def work(pool: Pool, _: None) -> None:
            begun.set()
            assert ended.wait(30)

        async with await Pool.open(world, {"work": work}) as pool:

            async def give_up() -> None:
                before = loop_settings(world)
                begun.clear()
                ended.clear()
                pool.spawn("work", here=True)
                running = asyncio.create_task(pool.run(asyncio.sleep(60)))
                assert await asyncio.to_thread(begun.wait, 30)
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
                assert loop_settings(world) == before
                assert pool.tally.ran == 0
                world.loop.call_later(0.05, ended.set)

            await give_up()
            assert (await pool.run()).ran == 0
            assert pool.tally.ran == 0
            await give_up()
        assert pool.tally.ran == 1

    run(main)


def loop_settings(world: World) -> tuple[Any, ...]:
    selector = world.selector
    watches, beside = set(selector._watches), set(selector.beside)
    return watches, selector.computing, beside, selector.expecting, sys.getswitchinterval()


@pytest.mark.mpi
@pytest.mark.parametrize("first", [0, 1])
def test_two_pools_that_run_at_once_give_the_loop_back_whichever_ends_first(first):
    async def main(world: World) -> None:
        both, ended = asyncio.Barrier(2), asyncio.Event()
        functions = {"nothing": lambda pool, body: None}
        pools = [await Pool.open(world, functions, name=name) for name in ("a", "b")]

        async def ask(number: int) -> None:
            await both.wait()
            if number != first:
                await ended.wait()

        async def follow(number: int) -> None:
            await pools[number].run(ask(number))
            assert loop_settings(world) != before
            ended.set()

        before = loop_settings(world)
        await asyncio.wait_for(asyncio.gather(follow(first), pools[1 - first].run(ask(1 - first))), 30)
        assert loop_settings(world) == before
        for pool in pools:
            await pool.close()

    run(main)


async def cancelled(running: asyncio.Task[Any]) -> None:
    """Cancel a run, and wait until it has been given up."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.mpi
@pytest.mark.parametrize("last_too", [True, False], ids=["the last gives up, too", "the last ends its run"])
def test_a_run_that_is_cancelled_before_the_last_rank_has_called_it_is_no_other_ranks_next(last_too):
    async def main(world: World) -> None:
        last = world.rank == world.size - 1
        async with await Pool.open(world, {"nothing": lambda pool, body: None}) as pool:
            for _ in range(2):
                if not last:
                    await cancelled(await begun(pool.run(asyncio.sleep(60))))
                await world.barrier()
                if last and last_too:
                    await cancelled(await begun(pool.run(asyncio.sleep(60))))
                elif last:
                    await asyncio.wait_for(pool.run(), 30)
                await world.barrier()
                with pytest.raises(Mistake, match="nobody runs"):  # none is under way here
                    await pool.submit("nothing")
                tally = await asyncio.wait_for(pool.run(), 30)
                assert await over_ranks(world, tally.ran) == [world.size]

    async def begun(run: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        running = asyncio.create_task(run)
        await asyncio.sleep(0)
        return running

    run(main)


@pytest.mark.mpi
def test_ranks_that_are_at_a_task_of_the_run_before_may_give_up_the_next_as_others_do():
    async def main(world: World) -> None:
        at_task, ended = threading.Event(), threading.Event()

        def work(pool: Pool, _: None) -> None:
            at_task.set()
            assert ended.wait(30)

        async with await Pool.open(world, {"work": work}) as pool:
            if world.rank == 0:
                pool.spawn("work", here=True)
            first = asyncio.create_task(pool.run())
            while not at_task.is_set() and world.rank == 0:
                await asyncio.sleep(1e-3)
            await world.barrier()
            await cancelled(first)
            second = asyncio.create_task(pool.run())
            await world.barrier()  # (rank 0 waits for its task, and the others for rank 0)
            await cancelled(second)
            await world.barrier()
            ended.set()
            await asyncio.wait_for(pool.run(), 30)

    run(main)


@pytest.mark.mpi
def test_a_run_may_be_given_up_where_others_have_come_to_its_end():
    """Rank 0 does not notice the end of the run that it gives up; the others wait for it there."""

    async def main(world: World) -> None:
        noticed = threading.Event()
        async with await Pool.open(world, {"print": print}) as pool:
            work = pool._worker.work

            def held() -> None:
                work()
                assert noticed.wait(30)

            if world.rank == 0:
                pool._worker.work = held  # type: ignore[method-assign]
            running = asyncio.create_task(pool.run())
            while (await over_ranks(world, pool._worker.stopped or world.rank == 0))[0] < world.size:
                await asyncio.sleep(1e-3)
            for _ in range(20):  # until they wait
                await over_ranks(world)
            running.cancel()
            await asyncio.wait([running])
            noticed.set()
            for _ in range(2):
                assert (await asyncio.wait_for(pool.run(), 30)).ran == 0

    run(main)


@pytest.mark.mpi
def test_a_large_result_of_a_run_that_was_given_up_comes_home_in_the_next():
    """Too large for a slot, and its task ends when no run is at work any more, on another rank than its."""

    async def main(world: World) -> None:
        begun, ended = threading.Event(), threading.Event()

        def slow(pool: Pool, _: None) -> np.ndarray:
            begun.set()
            assert ended.wait(30)
            return np.full(100_000, world.rank)

        async with await Pool.open(world, {"slow": slow}) as pool:
            given = []
            if world.rank == 0:  # the newest runs first: here, and the other wherever it is taken
                given = [pool.submit("slow", seconds=1.0, here=here) for here in (False, True)]
            running = asyncio.create_task(pool.run(asyncio.sleep(60)))
            while await over_ranks(world, begun.is_set()) != [min(2, world.size)]:
                await asyncio.sleep(1e-3)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await world.barrier()
            ended.set()
            await asyncio.wait_for(pool.run(), 30)
            ran_on = [int(submission.result().arrays[0][-1]) for submission in given]
            assert len(set(ran_on)) == (min(2, world.size) if world.rank == 0 else 0)

    run(main)


@pytest.mark.mpi
def test_a_result_that_comes_when_its_pool_is_closed_is_not_that_of_another_of_its_name():
    """As one that was on its way when its run was given up: closing does not wait for it."""

    async def main(world: World) -> None:
        told = asyncio.Event()
        ended = threading.Event()

        def wait(pool: Pool, _: None) -> str:
            assert ended.wait(30)
            return "this pool's"

        async with await Pool.open(world, {"wait": wait}) as before:
            old = before._beyond._channel
        async with await Pool.open(world, {"wait": wait}) as pool:

            async def ask() -> None:
                submission = pool.submit("wait", here=True)
                await world.barrier()
                late = [1, False, [pack("the other's")]]
                world._switchboard.post(MESSAGE, old._id, 0, (world.rank + 1) % world.size, late, ())
                behind = await world.channel("behind")
                behind.serve(lambda message: told.set())
                behind.post((world.rank + 1) % world.size)
                await told.wait()
                ended.set()
                assert (await submission).body == "this pool's"

            await asyncio.wait_for(pool.run(ask()), 30)

    run(main)


@pytest.mark.mpi
def test_pools_of_one_name_run_at_once():
    """Results that are too large for a slot: they came home by message, to the pool that was opened last."""

    async def main(world: World) -> None:
        def add(pool: Pool, number: int) -> np.ndarray:
            return np.full(10_000, number + 1)

        def double(pool: Pool, number: int) -> np.ndarray:
            return np.full(10_000, 2 * number)

        devices = ("cpu", "last") if world.rank == world.size - 1 else ("cpu",)
        add_pool, double_pool = [
            await Pool.open(world, {"work": function}, devices=devices) for function in (add, double)
        ]

        async def ask(pool: Pool, expected: range) -> None:
            given = [pool.submit("work", number, device="last") for number in range(20)]
            assert [int((await each).arrays[0][-1]) for each in given] == [*expected]

        both = (
            add_pool.run(ask(add_pool, range(1, 21))),
            double_pool.run(ask(double_pool, range(0, 40, 2))),
        )
        await asyncio.wait_for(asyncio.gather(*both), 30)
        await add_pool.close()
        await double_pool.close()

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["a task", "main"])
def test_r3_what_a_main_raises_ends_the_run_on_all_ranks_and_the_pool_runs_again(kind):
    """Others are at tasks that end later than the run, and with a main of their own; more tasks wait."""

    async def main(world: World) -> None:
        last = world.rank == world.size - 1
        begun, ended = threading.Event(), threading.Event()
        ran: list[int] = []
        cancelled = []

        def fail(pool: Pool, _: None) -> None:
            raise ArithmeticError("the words of a task")

        def work(pool: Pool, number: int) -> None:
            ran.append(number)
            begun.set()
            assert ended.wait(30)

        async def ask() -> None:
            if kind == "main":
                raise ArithmeticError("the words of main")
            first, second = pool.submit("fail", here=True), pool.submit("fail", here=True)
            while not (first.done and second.done):
                await asyncio.sleep(1e-3)
            await first  # nobody is told of the second, neither in this run nor in the next

        async def wait() -> None:
            try:
                assert await asyncio.to_thread(begun.wait, 30)
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(world.rank)
                raise

        async with await Pool.open(world, {"fail": fail, "work": work}) as pool:
            for times in (1, 2, 3):
                ran.clear()
                begun.clear()
                ended.clear()
                if last:
                    with pytest.raises((TaskError, ArithmeticError), match="the words of"):
                        await asyncio.wait_for(pool.run(ask()), 30)
                else:
                    for number in range(2):
                        pool.spawn("work", number, here=True)
                    await asyncio.wait_for(pool.run(wait()), 30)
                    assert len(cancelled) == times
                    assert len(ran) <= 1
                ended.set()
                tally = await asyncio.wait_for(pool.run(), 30)
                assert len(ran) == (0 if last else 2)  # what was not begun was left for this run
                assert tally.ran == len(ran) or not last

    run(main)


@pytest.mark.mpi
def test_several_mains_may_raise_and_what_one_raises_while_it_is_cancelled_is_raised_too():
    async def main(world: World) -> None:
        async def fail() -> None:
            raise ArithmeticError(f"main of rank {world.rank}")

        async def stumble() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ArithmeticError(f"main of rank {world.rank}") from None

        async with await Pool.open(world, {"print": print}) as pool:
            for mains in ([fail, fail], [fail, stumble]) * 3:
                with pytest.raises(ArithmeticError, match=f"main of rank {world.rank}"):
                    await asyncio.wait_for(pool.run(mains[world.rank % 2]()), 30)
                assert (await asyncio.wait_for(pool.run(), 30)).ran == 0

    run(main)


@pytest.mark.mpi
def test_the_main_of_a_run_that_was_cancelled_is_no_task_that_nobody_has_run():
    """A pool that was closed behind it told of a task, and ended the job."""

    async def main(world: World) -> None:
        at_task, ended = threading.Event(), threading.Event()

        def work(pool: Pool, _: None) -> None:
            at_task.set()
            assert ended.wait(30)

        async with await Pool.open(world, {"work": work}) as pool:
            pool.spawn("work", here=True)
            first = asyncio.create_task(pool.run())
            assert await asyncio.to_thread(at_task.wait, 30)
            await cancelled(first)
            second = asyncio.create_task(pool.run(asyncio.sleep(60)))  # waits for the thread
            await world.barrier()
            await cancelled(second)
            ended.set()

    run(main)
