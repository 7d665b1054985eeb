"""Tasks on shelves in shared memory: every one is taken once, whoever takes it and whenever."""

from __future__ import annotations

import struct
from random import Random

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.message import World, run
from weft.runtime.work.pool.shelf import Shelf

TASK = struct.Struct("<iq")  # owner, number


@pytest.mark.mpi
def test_r3_every_task_is_taken_once_while_all_put_out_and_take():
    """40,000 tasks in all, claimed by all ranks at once; sizes of lots and moments are random."""
    each = 40_000

    async def main(world: World) -> None:
        shelf = await Shelf.allocate(world, world.node, places=64, place_bytes=TASK.size)
        mine, random = each // world.node_size, Random(world.rank)
        waiting = [TASK.pack(world.node_rank, number) for number in range(mine)]
        seen = [0] * world.node_size
        numbers = [0] * world.node_size
        total = [0]

        def count(tasks: list[bytes]) -> None:
            for task in tasks:
                owner, number = TASK.unpack(task)
                seen[owner] += 1
                numbers[owner] += number
            total[0] += len(tasks)

        idle = 0
        while idle < 200:
            before = total[0]
            if waiting and not shelf.left(world.node_rank):
                put = shelf.put_out(waiting[: random.randrange(1, 65)])
                del waiting[:put]
            if random.random() < 0.1:
                count(shelf.take_back())
            victim = random.randrange(world.node_size)
            count(shelf.take(victim))
            idle = 0 if waiting or total[0] != before or shelf.left(world.node_rank) else idle + 1
        await world.node.barrier()
        for victim in range(world.node_size):  # what the owner put out last, and others left
            count(shelf.take_back() if victim == world.node_rank else [])
        found = np.array([seen, numbers], np.int64)
        await world.node.allreduce(found)
        assert found[0].tolist() == [mine] * world.node_size
        assert found[1].tolist() == [mine * (mine - 1) // 2] * world.node_size
        await shelf.close()

    run(main)


@pytest.mark.mpi
def test_r3_half_is_taken_and_the_rest_comes_back():
    async def main(world: World) -> None:
        shelf = await Shelf.allocate(world, world.node, lanes=2, places=8, place_bytes=100)
        if world.node_rank == 0:
            assert shelf.put_out([bytes([n]) * n for n in range(1, 12)], lane=1) == 8
        await world.node.barrier()
        thief = world.node_size - 1
        if world.node_rank == thief:
            assert shelf.left(0, lane=0) == 0
            assert shelf.take(0, lane=0) == []
            assert shelf.left(0, lane=1) == 8
            assert shelf.take(0, lane=1) == [bytes([n]) * n for n in (1, 2, 3, 4)]
            assert shelf.take(0, lane=1) == [bytes([n]) * n for n in (5, 6)]
        await world.node.barrier()
        if world.node_rank == 0:
            with pytest.raises(Mistake, match="take them back first"):
                shelf.put_out([b"more"], lane=1)
            assert shelf.take_back(1) == [bytes([n]) * n for n in (7, 8)]
            assert shelf.take_back(1) == []
            assert shelf.put_out([b"again"], lane=1) == 1
            assert shelf.take_back(1) == [b"again"]
        await shelf.close()

    run(main)


@pytest.mark.mpi
def test_what_no_shelf_can_be_is_refused():
    async def main(world: World) -> None:
        with pytest.raises(Mistake, match="a shelf of 0 places was asked for; it has 1 to"):
            await Shelf.allocate(world, world.node, places=0)

    run(main)
