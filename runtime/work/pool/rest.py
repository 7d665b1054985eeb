"""How the pool's thread of a rank sleeps, and is woken by whoever puts work out.

    sleeper   I nap; look once more; sleep until rung
    waker     put the work out; does anybody nap? ring

A doorbell (message/doorbell.py) of the pool's own: the loop's wakes the loop.
"""

from __future__ import annotations

import contextlib
import select
from typing import Self

from ...message import Communicator
from ...message.doorbell import Doorbells

# All who have something to give ring. Not longer, for whatever might have been missed: 20 wake-ups a second
# of 30 us each are a thousandth of a core.
RUNG_S = 50e-3


class Rest:
    """Sleeping and waking among a node's ranks; made by `begin`, ended by `close`."""

    def __init__(self, bells: Doorbells) -> None:
        self._bells = bells
        self._poll = select.poll()
        self._poll.register(bells.fd, select.POLLIN)

    @classmethod
    async def begin(cls, node: Communicator) -> Self:
        """Collective over `node`."""
        arrival = node.barrier(what="doorbells of a pool")
        return cls(await node.meet(arrival, lambda: Doorbells(node.quiet)))

    def nap(self) -> None:
        """This rank is about to sleep: it must look for work once more now."""
        self._bells.nap()

    def sleep(self) -> None:
        """Sleep until rung."""
        if self._poll.poll(RUNG_S * 1e3):
            self._bells.heard()

    def woke(self) -> None:
        """This rank looks by itself again."""
        self._bells.woke()

    def ring(self, rank: int) -> bool:
        """Wake the node's rank `rank`, if it naps; whether it did."""
        return self._bells.ring(rank)

    def close(self) -> None:
        """Nobody can ring any more."""
        with contextlib.suppress(OSError):
            self._poll.unregister(self._bells.fd)
        self._bells.close()
