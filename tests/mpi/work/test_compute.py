"""The two tasks of a rank: one computes, on the lane, and one communicates, on the loop."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from weft.kernels.device import Device
from weft.kernels.lane import Task
from weft.runtime.message import World, run
from weft.runtime.work import Compute


@pytest.mark.mpi
def test_r1_every_ranks_loop_communicates_while_its_lane_computes():
    """The kernel of each rank ends when an all-reduce has, which is begun while all of them run."""

    async def main(world: World) -> None:
        begun, added = asyncio.Event(), threading.Event()

        def kernel() -> None:
            world.loop.call_soon_threadsafe(begun.set)
            assert added.wait(30), "no all-reduce has ended while the kernel ran"

        async with Compute(Device()) as compute:
            computing = asyncio.create_task(compute.run([Task("kernel", kernel)]))
            await begun.wait()
            ones = np.ones(200_000, np.float32)
            await world.allreduce(ones)
            assert compute.busy
            added.set()
            await computing
        assert (ones == world.size).all()

    run(main)
