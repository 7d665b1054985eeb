"""How the pool's thread of a rank sleeps, and is woken by whoever puts work out.

    sleeper   I nap; look once more; sleep until rung
    waker     put the work out; does anybody nap? ring

A doorbell (message/doorbell.py) of the pool's own: the loop's wakes the loop. Without doorbells, not on
Linux, the thread naps for two milliseconds at most.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
from typing import Self

from ...message import Communicator, World
from ...message.doorbell import Doorbells

# All who have something to give ring. Not longer, for whatever might have been missed: 20 wake-ups a second
# of 30 us each are a thousandth of a core.
RUNG_S = 50e-3
UNRUNG_S = 2e-3


class Rest:
    """Sleeping and waking among a node's ranks; made by `begin`, closed by `close` or with the world."""

    def __init__(self, world: World, bells: Doorbells | None) -> None:
        self._ends = world.ends
        self._ends.append(self.close)
        self._bells = bells
        self._rank = world.node_rank
        self._event = threading.Event()
        self._poll = select.poll()
        if self._bells is not None:
            self._poll.register(self._bells.fd, select.POLLIN)

    @classmethod
    async def begin(cls, world: World, node: Communicator) -> Self:
        """Collective over `node`."""
        bells = None
        if sys.platform == "linux":
            arrival = node.barrier(what="doorbells of a pool")
            bells = await node.meet(arrival, lambda: Doorbells(node.quiet))
        return cls(world, bells)

    def nap(self) -> None:
        """This rank is about to sleep: it must look for work once more now."""
        if self._bells is not None:
            self._bells.nap()

    def sleep(self) -> None:
        """Sleep until rung."""
        if self._bells is None:
            self._event.wait(UNRUNG_S)
            self._event.clear()
        elif self._poll.poll(RUNG_S * 1e3):
            self._bells.heard()

    def woke(self) -> None:
        """This rank looks by itself again."""
        if self._bells is not None:
            self._bells.woke()

    def ring(self, rank: int) -> bool:
        """Wake the node's rank `rank`, if it naps; whether it did."""
        if self._bells is not None:
            return self._bells.ring(rank)
        if rank == self._rank:
            self._event.set()
        return False

    def close(self) -> None:
        """Nobody can ring any more."""
        if self.close in self._ends:
            self._ends.remove(self.close)
        if self._bells is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(self._bells.fd)
            self._bells.close()
