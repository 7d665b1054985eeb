"""A napping rank is woken by who sends to it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from mpi4py import MPI

from weft.runtime.message.doorbell import doorbells
from weft.runtime.message.nap import NapPolicy

from .talk import Talk, talk

# Whoever is not rung sleeps longer than a test may take.
RUNG = NapPolicy(spin_s=0.0, rung_s=1e4, shortest_s=1e4, awaited_s=1e-3)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("computing", [False, True], ids=["idle", "computing"])
def test_messages_requests_and_replies_wake_who_waits(computing: bool) -> None:
    async def main(ranks: Talk) -> None:
        assert ranks.loop.mpi.bells is not None
        ranks.loop.mpi.computing = lambda: computing
        channel, handled = ranks.channel(), ranks.channel("handled")
        handled.serve(lambda message: message.body + 1)
        for i in range(5):
            await asyncio.sleep(0.002)  # everyone sleeps, until rank 0's timer
            if ranks.rank == 0:
                for dest in range(1, ranks.size):
                    assert (await channel.request(dest, i)).body == i
                    assert (await handled.request(dest, i)).body == i + 1
                    await channel.send(dest, "large", np.ones(100_000))
            else:
                message = await channel.receive()
                await message.reply(message.body)
                assert (await channel.receive()).arrays[0].sum() == 100_000
        await ranks.comm.barrier()

    talk(main, RUNG)


def test_only_a_rank_that_naps_is_rung() -> None:
    comm = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    bells = doorbells(comm)
    if comm.size == 1:
        assert bells is None
        return
    assert bells is not None
    assert bells.everyone
    other = (comm.rank + 1) % comm.size

    def heard() -> bool:
        try:
            return len(bells._bell.recv(10)) == 0
        except BlockingIOError:
            return False

    bells.ring(other)
    comm.Barrier()
    assert not heard()
    bells.nap()
    comm.Barrier()
    bells.ring(other)
    bells.ring(other)
    comm.Barrier()
    assert heard()
    bells.heard()
    assert not heard()
    bells.woke()
    comm.Barrier()
    bells.ring(other)
    comm.Barrier()
    assert not heard()
    bells.close()
    comm.Barrier()
    bells.ring(comm.rank)  # nobody there: no error
