"""Running a coroutine on Weft's event loop with a communicator and channels of its own, for one test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mpi4py import MPI

from weft.runtime.message.channel import Channel
from weft.runtime.message.communicator import Communicator
from weft.runtime.message.nap import NapPolicy
from weft.runtime.message.selector import MpiLoop
from weft.runtime.message.switchboard import Switchboard


class Talk:
    """What a test gets: this rank, its communicator, its channels."""

    def __init__(self, loop: MpiLoop) -> None:
        self.loop = loop
        self.comm = Communicator(MPI.COMM_WORLD.Dup(), loop.mpi, "test")
        self.board = Switchboard(Communicator(MPI.COMM_WORLD.Dup(), loop.mpi, "test's channels"))
        self.rank = self.comm.rank
        self.size = self.comm.size
        #: The neighbours on a ring; with one rank it is its own.
        self.right = (self.rank + 1) % self.size
        self.left = (self.rank - 1) % self.size

    def channel(self, name: str = "test") -> Channel:
        return Channel(self.board, name)


def talk(main: Callable[[Talk], Awaitable[None]], policy: NapPolicy | None = None) -> None:
    """Run `main` on every rank; ends together, and with nothing left outstanding."""
    loop = MpiLoop(policy)
    asyncio.set_event_loop(loop)
    errors = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        ranks = Talk(loop)
        loop.run_until_complete(main(ranks))
        loop.run_until_complete(ranks.board.close())
        ranks.comm.free()
        assert loop.mpi.pending() == []
        assert errors == []
    finally:
        asyncio.set_event_loop(None)
        loop.close()
