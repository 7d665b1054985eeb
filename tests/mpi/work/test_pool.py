"""Tasks that a node's ranks share: each runs once, idle ranks take theirs from others, the end is noticed."""

from __future__ import annotations

import time

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.message import World, run
from weft.runtime.work.pool import Pool


async def over_ranks(world: World, *values: int) -> list[int]:
    total = np.array(values, np.int64)
    await world.allreduce(total)
    return total.tolist()


@pytest.mark.mpi
def test_r3_every_task_of_a_tree_runs_once_and_carries_its_arrays():
    """A range is halved until one number is left; the numbers and an array travel with the tasks."""
    numbers = 3000

    async def main(world: World) -> None:
        seen = []

        def halve(pool: Pool, body: dict[str, int], weights: np.ndarray, name: np.ndarray) -> None:
            assert weights.dtype == np.float32
            assert weights.shape == (2, 3)
            assert name.item() == "größe"
            first, last = body["first"], body["last"]
            if last - first == 1:
                seen.append(first)
                return
            middle = (first + last) // 2
            for part in ((first, middle), (middle, last)):
                pool.spawn("halve", {"first": part[0], "last": part[1]}, weights, name)

        async with await Pool.open(world, {"halve": halve}) as pool:
            for times in (1, 2):  # a pool runs again and again
                if world.rank == 0:
                    arrays = np.ones((2, 3), np.float32), np.array("größe")
                    pool.spawn("halve", {"first": 0, "last": numbers}, *arrays)
                tally = await pool.run()
                count, total = await over_ranks(world, len(seen), sum(seen))
                assert count == times * numbers
                assert total == times * numbers * (numbers - 1) // 2
                ran, stolen = await over_ranks(world, tally.ran, tally.stolen)
                assert ran == 2 * numbers - 1
                assert stolen < ran
            assert (await pool.run()).ran == 0  # nothing to do is soon done

    run(main)


@pytest.mark.mpi(min_size=2)
def test_r3_what_a_busy_rank_has_put_out_is_run_by_another():
    """Rank 0 is at a task that ends when another has run, which it has put out: without a theft, never."""

    async def main(world: World) -> None:
        window = await world.window(8)
        flag = window.array(0, np.int64, 1)

        def raise_flag(pool: Pool, _: None) -> None:
            flag[0] = 1 + world.rank

        def wait(pool: Pool, _: None) -> None:
            deadline = time.monotonic() + 30
            while not flag[0]:
                assert time.monotonic() < deadline, "nobody took the other task"
                time.sleep(1e-4)

        async with await Pool.open(world, {"raise": raise_flag, "wait": wait}) as pool:
            if world.rank == 0:
                pool.spawn("raise")
                pool.spawn("wait")  # the newest is run first, the oldest is put out
            tally = await pool.run()
            assert flag[0] > 1
            assert tally.steals == (1 if world.rank == flag[0] - 1 else 0)

    run(main)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "body", "array", "message"),
    [
        ("other", None, np.zeros(1), r"no task is called 'other'; this pool knows add, work"),
        ("work", None, np.zeros(2000), r"a task 'work' of 160\d\d bytes does not fit into a place of 8192"),
        ("work", {1, 2}, np.zeros(1), r"a message's body can't be sent: .* set"),
        ("work", None, np.array([{}]), r"an array of dtype object can't be sent"),
    ],
    ids=["unknown", "too large", "a body that cannot travel", "an array that cannot travel"],
)
def test_a_task_that_cannot_be_is_refused_where_it_is_spawned(name, body, array, message):
    async def main(world: World) -> None:
        async with await Pool.open(world, {"work": print, "add": print}) as pool:
            with pytest.raises(Mistake, match=message):
                pool.spawn(name, body, array)
            assert (await pool.run()).ran == 0

    run(main)
