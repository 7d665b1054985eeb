"""Turns of candidates on all ranks: what each gave is checked, and it is repeated where others disturbed it.

barrier ─ turn ─ barrier       the slowest rank's time; bytes over the link; losses; weights as on all ranks
  └─ others used more than 5% of some rank's core, or it computed 10% slower before or behind the turn than
     it can: wait until neither is so, and again
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench._core import SLOWED, Speed, Use, neighbours, take_cores, use
from bench._rig import link_bytes
from bench._steps import Turn, check_losses
from bench.harness import check
from weft.runtime.message import World

DISTURBED = 0.05  # of a core, used by others: such a turn is repeated
JUDGED_S = 0.5  # use of a core is counted in ticks of 10 ms: of shorter turns it tells nothing


@dataclass(frozen=True, slots=True)
class Candidate:
    """What takes a turn, and what it is held to.

    `losses` are those its first steps should have, `apart` whether each rank knows those of its own samples
    alone. At least `nbytes` go over every host's link; with none, ranks do not exchange gradients, and only
    the first loss and no weights are the same as with.
    """

    take: Callable[[], Awaitable[Turn]]
    nbytes: int = 0
    losses: Sequence[float] = ()
    apart: bool = False


class Judge:
    """Lets candidates take their turns; on one core a rank, which `open` takes. All ranks call it alike.

    `patience_s` is what all repetitions together may take.
    """

    def __init__(self, world: World, patience_s: float) -> None:
        self._world, self._patience_s = world, patience_s
        (self._core,) = os.sched_getaffinity(0)
        self._speed = Speed()
        #: The processes that may use the core.
        self.pids = [os.getpid()]
        #: What others used of a core, and how much slower the slowest computed than it can, turn by turn.
        self.others: list[float] = []
        self.slowed: list[float] = []

    @classmethod
    async def open(cls, world: World, patience_s: float) -> Judge:
        """Take this rank's core: before there are lanes, or peers, which are to have the same."""
        cores = await take_cores(neighbours(world))
        # Ranks that share a core disturb each other in any case.
        return cls(world, patience_s if len(set(cores)) == len(cores) else 0.0)

    async def turn(self, name: str, candidate: Candidate) -> tuple[Turn, float]:
        """What a turn gave here, and its `seconds` on the slowest rank."""
        others = 0.0
        while True:
            await self._quiet(others)
            turn, seconds, others, whole_s = await self._once(name, candidate)
            slowed = await self._slowdown()
            if (others <= DISTURBED and slowed <= SLOWED) or self._patience_s <= 0.0:
                break
            self._patience_s -= whole_s
        self.others.append(others)
        self.slowed.append(slowed)
        return turn, seconds

    def _use(self) -> Use:
        return use(self._core, tuple(self.pids))

    async def _quiet(self, others: float) -> None:
        """Wait until the ranks' cores are theirs and as fast as they can be, or until patience is over.

        `others` is what others used of a core until now.
        """
        while self._patience_s > 0.0 and (others > DISTURBED or await self._slowdown() > SLOWED):
            before = self._use()
            await asyncio.sleep(JUDGED_S)
            self._patience_s -= JUDGED_S
            found = np.array([self._use().since(before).others / JUDGED_S])
            await self._world.allreduce(found, "max")
            others = float(found[0])

    async def _slowdown(self) -> float:
        """Of the slowest rank's core, while all compute."""
        await self._world.barrier()
        slowed = np.array([self._speed.slowdown()])
        await self._world.allreduce(slowed, "max")
        return float(slowed[0])

    async def _once(self, name: str, candidate: Candidate) -> tuple[Turn, float, float, float]:
        link = link_bytes()  # behind the barrier others of this host may have sent all before this rank looks
        await self._world.barrier()
        before, start = self._use(), time.monotonic()
        turn = await candidate.take()
        whole_s = time.monotonic() - start
        await self._world.barrier()  # another rank of this host may still be sending
        moved, spent = link_bytes() - link, self._use().since(before)
        if len(self._world.nodes) > 1:
            least = candidate.nbytes
            check(moved >= least, f"{name}: {moved} bytes went over this host's link, {least} or more should")
        losses = np.array(turn.losses)
        if candidate.apart:
            await self._world.allreduce(losses)
        if candidate.losses:
            steps = None if candidate.nbytes else 1
            check_losses(name, list(losses)[:steps], candidate.losses)
        if turn.digest and candidate.nbytes:
            await self._world.agree(f"weights after a turn of {name}", turn.digest)
        slowest = np.array([turn.seconds, spent.others / whole_s if whole_s > JUDGED_S else 0.0, whole_s])
        await self._world.allreduce(slowest, "max")
        return turn, float(slowest[0]), float(slowest[1]), float(slowest[2])


def at_once(make: Callable[[], Turn]) -> Callable[[], Awaitable[Turn]]:
    """A turn that blocks, the loop with it: nothing may look at MPI meanwhile."""

    async def take() -> Turn:
        return make()

    return take
