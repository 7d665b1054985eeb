"""Tasks that the ranks share: each runs once, idle ranks take theirs from others, the end is noticed."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from random import Random
from typing import Any

import numpy as np
import pytest

from tests.mpi.work.sums import over_ranks
from weft.runtime.errors import Mistake, TaskError
from weft.runtime.message import World, run, wire
from weft.runtime.work.pool import Pool, slots
from weft.runtime.work.pool.home import Submission
from weft.runtime.work.pool.parcel import Result


@pytest.mark.mpi
def test_r3_every_task_of_a_tree_runs_once_and_carries_its_arrays():
    """A range is halved until one number is left; the numbers and an array travel with the tasks."""
    numbers = 1000

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


@pytest.mark.mpi
def test_r3_nothing_is_lost_or_doubled_whatever_takes_how_long():
    """Trees of tasks that take random times, from random ranks: the end comes when all ran, not before."""

    async def main(world: World) -> None:
        ran: list[int] = []
        random = Random(world.rank)

        def grow(pool: Pool, body: list[int]) -> None:
            number, depth = body
            ran.append(number)
            if random.random() < 0.3:
                time.sleep(random.random() * 2e-3)
            for child in (2 * number, 2 * number + 1) if depth else ():
                pool.spawn("grow", [child, depth - 1], here=random.random() < 0.1)

        async with await Pool.open(world, {"grow": grow}, task_s=1e-2) as pool:
            for seed in range(6):
                ran.clear()
                chosen = Random(seed)
                for root in (1, 1000, 2000):
                    if chosen.randrange(world.size) == world.rank:
                        pool.spawn("grow", [root << 8, 5])
                await pool.run()
                count, total = await over_ranks(world, len(ran), sum(ran))
                assert count == 3 * 63
                assert total == sum(
                    ((root << 8) << depth) * (1 << depth) + (1 << depth) * ((1 << depth) - 1) // 2
                    for root in (1, 1000, 2000)
                    for depth in range(6)
                )

    run(main)


@pytest.mark.mpi(min_size=2)
def test_r3_what_a_busy_rank_has_put_out_is_run_by_another():
    """Rank 0 is at a task that ends when another, which it has put out, has run: without a theft, never."""

    async def main(world: World) -> None:
        ended = threading.Event()

        def where(pool: Pool, _: None, *arrays: np.ndarray) -> int:
            return world.rank

        def wait(pool: Pool, _: None) -> None:
            assert ended.wait(30), "nobody took the other task"

        async with await Pool.open(world, {"where": where, "wait": wait}) as pool:
            found = []

            async def ask() -> None:
                waits = pool.submit("wait", here=True)
                found.append(await pool.submit("where", seconds=1.0))
                found.append(await pool.submit("where", None, np.zeros(5000), seconds=1.0))
                ended.set()
                await waits

            tally = await pool.run(ask() if world.rank == 0 else None)
            assert all(result.body > 0 for result in found)
            assert len(found) == (2 if world.rank == 0 else 0)
            steals, far = await over_ranks(world, tally.steals, tally.far)
            assert steals == 2  # the second is too large for a place
            assert 1 <= far <= 2

    run(main)


@pytest.mark.mpi(min_size=2)
def test_tasks_and_results_are_larger_than_a_messages_body_may_be(monkeypatch):
    """Of 4 GiB, and here of 128 KiB: one task and its result are, and several that are taken at once."""
    pack = wire._pack

    def limited(content: Any) -> bytes:
        packed = pack(content)
        assert len(packed) < 1 << 17, f"a body of {len(packed)} bytes"
        return packed

    monkeypatch.setattr(wire, "_pack", limited)

    async def main(world: World) -> None:
        ended = threading.Event()

        def back(pool: Pool, n: int, given: np.ndarray) -> tuple[int, np.ndarray]:
            assert (given == n).all()
            return world.rank, given + 1

        def wait(pool: Pool, _: None) -> None:
            assert ended.wait(30), "nobody took the other tasks"

        async with await Pool.open(world, {"back": back, "wait": wait}) as pool:

            async def ask() -> None:
                waits = pool.submit("wait", here=True)
                for count, size in ((1, 40_000), (20, 4000)):
                    given = [np.full(size, float(n)) for n in range(count)]
                    made = [pool.submit("back", n, array, seconds=1.0) for n, array in enumerate(given)]
                    for n, each in enumerate(made):
                        result = await each
                        assert result.body > 0
                        np.testing.assert_array_equal(result.arrays[0], given[n] + 1)
                ended.set()
                await waits

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


@pytest.mark.mpi(min_size=2)
def test_a_result_may_be_larger_than_its_size_in_a_slot_can_say(monkeypatch):
    """4 GiB, and here 64 KiB."""
    monkeypatch.setattr(slots, "SIZE", struct.Struct("<H"))

    async def main(world: World) -> None:
        ended = threading.Event()

        def large(pool: Pool, _: None) -> tuple[int, np.ndarray]:
            return world.rank, np.ones(100_000, np.uint8)

        def wait(pool: Pool, _: None) -> None:
            assert ended.wait(30), "nobody took the other task"

        async with await Pool.open(world, {"large": large, "wait": wait}) as pool:

            async def ask() -> None:
                waits = pool.submit("wait", here=True)
                result = await pool.submit("large", seconds=1.0)
                assert result.body > 0
                assert result.arrays[0].sum() == 100_000
                ended.set()
                await waits

            await pool.run(ask() if world.rank == 0 else None)

    run(main)


@pytest.mark.mpi(min_size=3)
def test_a_large_task_that_is_not_worth_moving_keeps_nobody_from_the_work_of_other_nodes():
    """All but the mates of a rank that has one, on its node, are at tasks until a mate has run another's."""

    async def main(world: World) -> None:
        shared = [node for node in world.nodes if len(node) > 1]
        others = [node for node in world.nodes if node is not shared[0]] if shared else []
        if not others:
            return  # on one node, or with no mates
        holder, mates, asker = shared[0][0], shared[0][1:], others[0][0]
        ended = threading.Event()

        def wait(pool: Pool, _: None) -> None:
            assert ended.wait(30), "nobody of the other node has taken the task"

        def where(pool: Pool, _: None, *large: np.ndarray) -> int:
            return world.rank

        async with await Pool.open(world, {"wait": wait, "where": where}) as pool:

            async def ask() -> None:
                if world.rank not in mates:
                    pool.spawn("wait", here=True)
                if world.rank == holder:
                    pool.spawn("where", None, np.zeros(5000), seconds=0.0)
                await world.barrier()
                if world.rank == asker:
                    assert (await pool.submit("where", seconds=1.0)).body in mates
                await world.barrier()
                ended.set()

            await pool.run(ask())

    run(main)


@pytest.mark.mpi
def test_results_come_home_with_arrays_and_go_on_to_the_tasks_that_need_them():
    async def main(world: World) -> None:
        def make(pool: Pool, n: int) -> tuple[dict[str, int], np.ndarray]:
            return {"n": n}, np.full((3, n), n, np.int32)

        def join(pool: Pool, body: str, own: np.ndarray, needs: list[Result]) -> np.ndarray:
            assert body == "all"
            for need in needs:
                assert need.arrays[0].shape == (3, need.body["n"])
                need.arrays[0][:] += 1  # its own copy
            return own + sum(int(need.arrays[0].sum()) for need in needs)

        async with await Pool.open(world, {"make": make, "join": join}) as pool:
            # More than there are slots, and some too large for one.
            sizes = [n % 40 for n in range(300)] + [3000]
            answers = []

            async def ask() -> None:
                made = [pool.submit("make", n) for n in sizes]
                joined = [pool.submit("join", "all", np.arange(2), needs=made) for _ in range(3)]
                for each in joined:
                    answers.append((await each).arrays[0].tolist())
                assert (await made[-1]).arrays[0][2, 2999] == 3000

            await pool.run(ask())
            total = sum(3 * n * (n + 1) for n in sizes)
            assert answers == [[total, total + 1]] * 3
            before = pool.submit("make", 2)  # before a run, and looked at after it
            assert not before.done
            await pool.run()
            assert before.done
            assert before.result().body == {"n": 2}

    run(main)


@pytest.mark.mpi
def test_a_task_gets_the_needs_that_it_was_given_even_none_of_them():
    """The corner of a wavefront: a list that happens to be empty is another thing than no list."""

    async def main(world: World) -> None:
        def count(pool: Pool, body: None, needs: list[Result]) -> int:
            return len(needs)

        def plain(pool: Pool, body: None) -> str:
            return "plain"

        async with await Pool.open(world, {"count": count, "plain": plain}) as pool:

            async def ask() -> None:
                corner = pool.submit("count", needs=[])
                assert (await pool.submit("count", needs=[corner])).body == 1
                assert (await corner).body == 0
                assert (await pool.submit("plain")).body == "plain"
                with pytest.raises(TaskError, match=r"plain\(\) got an unexpected keyword .*'needs'"):
                    await pool.submit("plain", needs=())
                with pytest.raises(TaskError, match=r"count\(\) missing 1 required .*'needs'"):
                    await pool.submit("count")

            await pool.run(ask())

    run(main)


@pytest.mark.mpi
def test_a_result_that_nobody_works_for_is_not_awaited_for_ever():
    async def main(world: World) -> None:
        def double(pool: Pool, n: int) -> int:
            return 2 * n

        async def wait_for(submission: Submission) -> int:
            return (await submission).body

        async with await Pool.open(world, {"double": double}) as pool:
            for n in (1, 2):  # before the first run, and between runs
                early, later = pool.submit("double", n), pool.submit("double", 10 * n)
                message = r"'double' is awaited, but nobody runs .* yet: await inside pool\.run\(main\(\)\)"
                with pytest.raises(Mistake, match=message):
                    await early
                beside = asyncio.create_task(wait_for(early))  # begins when this task first waits: in the run
                await pool.run(wait_for(later))
                assert await beside == (await early).body == 2 * n
                assert (await later).body == 20 * n

    run(main)


@pytest.mark.mpi
def test_r3_no_rank_runs_what_its_device_or_its_memory_cannot():
    """Tasks from every rank: the last one alone has the device, and only odd ones have much memory."""

    async def main(world: World) -> None:
        last = world.rank == world.size - 1
        big = world.rank % 2 == 1 or last
        ran: dict[str, int] = {"any": 0, "gpu": 0, "big": 0}

        def work(pool: Pool, kind: str) -> None:
            ran[kind] += 1
            assert kind != "gpu" or last
            assert kind != "big" or big
            time.sleep(2e-4)

        offer = {"devices": ("cpu", "gpu") if last else ("cpu",), "memory_bytes": 2000 if big else 1000}
        async with await Pool.open(world, {"work": work}, task_s=1e-2, **offer) as pool:
            for _ in range(20):
                pool.spawn("work", "any", seconds=0.1)
                pool.spawn("work", "big", memory_bytes=1001, seconds=0.1)
                pool.spawn("work", "gpu", device="gpu", seconds=0.1)
            if not last:
                with pytest.raises(Mistake, match=r"is to run on rank \d, which cannot: wrong device"):
                    pool.spawn("work", "gpu", device="gpu", here=True)
            tally = await pool.run()
            assert await over_ranks(world, *ran.values()) == [20 * world.size] * 3
            assert sum(lane.ran for lane in tally.lanes) == sum(ran.values())
            if world.size > 2:
                names = [name for name in tally.names if "gpu" in name]
                assert names == ["class 0 on gpu up to 2000 bytes"]

    run(main)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("size", [1, 20_000], ids=["small", "large"])
def test_r3_what_its_rank_cannot_run_is_taken_even_where_that_does_not_pay(size):
    """The device is on the last rank; the tasks of rank 0 for it are done in no time, by their tags."""

    async def main(world: World) -> None:
        last = world.rank == world.size - 1

        def where(pool: Pool, _: None, weights: np.ndarray) -> int:
            return world.rank

        async with await Pool.open(world, {"where": where}, devices=("gpu",) if last else ("cpu",)) as pool:

            async def ask() -> None:
                for count in (1, 5):
                    tasks = [
                        pool.submit("where", None, np.zeros(size), device="gpu", seconds=1e-9)
                        for _ in range(count)
                    ]
                    for task in tasks:
                        assert (await asyncio.wait_for(task, 20)).body == world.size - 1

            tally = await pool.run(ask() if world.rank == 0 else None)
            assert tally.ran == (6 if last else 0)

    run(main)


@pytest.mark.mpi
def test_pools_that_are_opened_run_and_closed_at_once_keep_apart():
    """A rank had the memory of the one where the others had the other's, or all hung."""

    async def main(world: World) -> None:
        for turn in range(6):
            if world.rank == turn % world.size:  # comes when the others have met already
                await asyncio.sleep(1e-3)
            pools = await asyncio.gather(
                *(Pool.open(world, {"f": lambda pool, body: body}, name=f"pool {k}") for k in range(3))
            )

            async def ask(k: int, pool: Pool) -> None:
                for n in range(20):
                    assert (await pool.submit("f", [k, n])).body == [k, n]

            await asyncio.gather(*(pool.run(ask(k, pool)) for k, pool in enumerate(pools)))
            await asyncio.gather(*(pool.close() for pool in pools))

    run(main)


@pytest.mark.mpi
def test_r3_the_first_class_comes_first():
    async def main(world: World) -> None:
        order = []

        def work(pool: Pool, body: list[int]) -> None:
            order.append(body)

        async with await Pool.open(world, {"work": work}, classes=3) as pool:
            for number in range(30):
                pool.spawn("work", [number % 3, number], priority=number % 3, here=True)
            await pool.run()
            assert [priority for priority, _ in order] == [0] * 10 + [1] * 10 + [2] * 10

    run(main)


@pytest.mark.mpi(min_size=2)
def test_r3_what_is_not_worth_taking_is_left_and_told():
    """Two tasks of no cost wait behind one that ends when all that are idle have looked at them."""

    async def main(world: World) -> None:
        seen = threading.Event()
        mates = world.node.ranks[1:] if 0 in world.node.ranks else ()

        def work(pool: Pool, waits: bool) -> None:
            assert not waits or seen.wait(30), "a rank of the node has not looked"

        channel = await world.channel("looked")
        async with await Pool.open(world, {"work": work}) as pool:

            async def ask() -> None:
                if world.rank in mates:
                    while not pool.tally.lanes[0].refused["not worth it"]:
                        await asyncio.sleep(1e-3)
                    await channel.send(0)
                if world.rank == 0:
                    for rank in mates:
                        await channel.receive(rank)
                    seen.set()

            if world.rank == 0:
                for _ in range(3):
                    pool.spawn("work", False, seconds=1e-9)
                pool.spawn("work", True, seconds=1e-9)  # the newest, and it runs first
            tally = await pool.run(ask())
            assert tally.ran == (4 if world.rank == 0 else 0)
            assert bool(tally.lanes[0].refused["not worth it"]) == (world.rank in mates)
            assert ("left alone" in str(tally)) == (world.rank in mates) or world.rank == 0

    run(main)
