"""MPI is the loop's thread's: what another begins is refused before it is begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from weft.runtime.errors import Mistake
from weft.runtime.message import Channel, World, run

BEGUN: dict[str, Callable[[World, Channel], Any]] = {
    "a send": lambda world, channel: world.send(np.zeros(1), world.rank),
    "a receive": lambda world, channel: world.recv(np.zeros(1), world.rank),
    "a barrier": lambda world, channel: world.barrier(),
    "a reduction": lambda world, channel: world.allreduce(np.zeros(1)),
    "a message": lambda world, channel: channel.post(world.rank, "text"),
    "a message of a loop's of its own": lambda world, channel: asyncio.run(channel.send(world.rank, "text")),
    "a communicator": lambda world, channel: asyncio.run(world.duplicate("another")),
}


@pytest.mark.mpi
@pytest.mark.parametrize("begin", BEGUN.values(), ids=BEGUN)
def test_what_another_thread_begins_is_refused_and_meets_nobody(begin: Callable[..., Any]) -> None:
    """It was posted, and the other ranks' next collective met it; who had called it could not await it."""

    async def main(world: World) -> None:
        channel = await world.channel("texts")
        if world.rank == 0:
            with pytest.raises(Mistake, match=r"MPI is called on thread 'asyncio_.*; messages and coll"):
                await asyncio.to_thread(begin, world, channel)
        total = np.ones(1)
        await world.allreduce(total)
        assert total == world.size

    run(main)


@pytest.mark.mpi
def test_a_thread_has_the_loop_see_to_its_messages() -> None:
    async def main(world: World) -> None:
        total = np.ones(1)

        async def add_up() -> None:
            await world.allreduce(total)

        def work() -> None:
            asyncio.run_coroutine_threadsafe(add_up(), world.loop).result()

        await asyncio.to_thread(work)
        assert total == world.size

    run(main)
