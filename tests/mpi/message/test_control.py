"""Control messages: they arrive, in order, whatever else goes on, and leave nothing behind."""

from __future__ import annotations

import asyncio

from mpi4py import MPI

from weft.runtime.message.control import Control
from weft.runtime.message.selector import MpiLoop


def test_what_is_told_reaches_every_other_rank_in_order() -> None:
    loop = MpiLoop()
    control = Control(MPI.COMM_WORLD.Dup(), loop.mpi)
    heard: list[tuple[int, int]] = []
    everything = loop.create_future()

    def hear(source: int, number: int, text: str) -> None:
        assert text == "reading \udcff.npy" * 100  # a file's name that is no text
        heard.append((source, number))
        if len(heard) == 10 * (control.size - 1):
            everything.set_result(None)

    async def main() -> None:
        for number in range(10):
            control.tell("news", number, "reading \udcff.npy" * 100)
        if control.size > 1:
            await everything
        await control.sent()
        await control.barrier()

    control.on("news", hear)  # before the loop runs: others may be earlier
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main())
        control.close()
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert loop.mpi.outstanding() == []
    for rank in range(control.size):
        numbers = [number for source, number in heard if source == rank]
        assert numbers == ([] if rank == control.rank else list(range(10)))
