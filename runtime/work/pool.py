"""A pool of tasks that the ranks of a node share: registered functions, run by whoever is idle.

    async with await Pool.open(world, {"halve": halve}) as pool:
        if world.rank == 0:
            pool.spawn("halve", {"depth": 3}, array)   # before it runs, or by a task while it runs
        await pool.run()                               # every rank: until no task is left on any

A task is the name of a function, a body of what msgpack knows, and arrays; the function is called as
`halve(pool, body, *arrays)` on one thread, beside the loop's, of whichever rank has it then, and may spawn
others. A rank runs its newest tasks first (the rest of what it was at), and puts the oldest half out (the
largest parts of a tree) whenever its shelf is empty; an idle one takes half of somebody's (victims.py).

The end is detected, not announced: every rank counts in shared memory the tasks it spawned and those it
ended. Who reads all ended ones first and all spawned ones then, and finds as many, knows that nothing was
left in between: both only grow, and a task is counted as spawned before it can end.

What a task raises ends the job, with its traceback. Inside a node only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Self

import msgpack
import numpy as np
from numpy.typing import NDArray

from ..errors import Mistake
from ..message import World
from ..message.window import LINE_BYTES, Window
from ..message.wire import as_bytes, decode, encode
from .shelf import Shelf
from .victims import Declared, Way, choose

Array = NDArray[Any]
Function = Callable[..., object]
"""Called with the pool, the body and the arrays of a task."""

# A claim and its copy take 3 us under Open MPI, 6 us under MPICH, 0.4 us more for 8 KB; the rest is the nap
# in which the thief finds it.
NEAR = Way(latency_s=20e-6, byte_s=1e-10)
SHORTEST_NAP_S, LONGEST_NAP_S = 50e-6, 2e-3  # an idle rank looks 480 times a second, at 2% of a core


@dataclass(slots=True)
class Tally:
    """What a rank did."""

    ran: int = 0
    steals: int = 0
    stolen: int = 0  # tasks
    misses: int = 0  # an idle look that found nothing worth taking


class Pool:
    """This rank's part of the pool; made by `open`, closed by `close` or with the world."""

    def __init__(
        self, world: World, functions: Mapping[str, Function], shelf: Shelf, counts: Window, task_s: float
    ) -> None:
        self._world, self._functions, self._shelf, self._window = world, functions, shelf, counts
        self._rank, self._size = world.node_rank, world.node_size
        self._task_s = task_s
        self._own: list[bytes] = []
        self._random = Random(world.rank)
        words = [counts.array(rank, np.int64, 2 * LINE_BYTES // 8) for rank in range(self._size)]
        self._spawned = [word[:1].data for word in words]
        self._ended = [word[LINE_BYTES // 8 :][:1].data for word in words]
        self._stopped = False
        self.tally = Tally()

    @classmethod
    async def open(
        cls,
        world: World,
        functions: Mapping[str, Function],
        *,
        task_s: float = 1e-3,
        places: int = 256,
        place_bytes: int = 8192,
    ) -> Self:
        """For these functions, by name, the same on all ranks; collective over the node.

        `task_s` is about how long a task takes: the tag by which thieves judge whether to take any. A task
        has at most `place_bytes`, and `places` of a rank's can be out at a time.
        """
        await world.agree("names of the pool's functions", " ".join(sorted(functions)))
        shelf = await Shelf.allocate(world, places=places, place_bytes=place_bytes)
        return cls(world, functions, shelf, await world.window(2 * LINE_BYTES), task_s)

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        self._spawned, self._ended = [], []
        await self._shelf.close()
        await self._window.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, _: object) -> None:
        if error is None:
            await self.close()

    def spawn(self, name: str, body: Any = None, *arrays: Array) -> None:
        """Add a task; before `run`, or from within a task.

        Mistake for an unknown name, a body or an array that cannot travel, or a task that is too large.
        """
        if name not in self._functions:
            raise Mistake(f"no task is called {name!r}; this pool knows {', '.join(sorted(self._functions))}")
        header, frames = encode([name, body], arrays)
        task: bytes = msgpack.packb([header, len(arrays), [bytes(frame) for frame in frames]])
        if len(task) > (most := self._shelf.place_bytes):
            raise Mistake(
                f"a task {name!r} of {len(task)} bytes does not fit into a place of {most}: open the pool "
                "with a larger place_bytes, or spawn tasks that carry less"
            )
        self._own.append(task)
        self._spawned[self._rank][0] += 1

    async def run(self) -> Tally:
        """Run tasks until none is left on any rank of the node; collective over it.

        Returns what this rank did. What a task raises is raised here.
        """
        self.tally, self._stopped = Tally(), False
        await self._window.fence()  # what all have spawned
        try:
            await asyncio.to_thread(self._work)
        finally:
            self._stopped = True  # where another rank failed: nobody waits for the thread
        await self._window.fence()  # nobody spawns for the next run while another still looks
        return self.tally

    def _work(self) -> None:
        own, shelf, tally = self._own, self._shelf, self.tally
        nap_s = SHORTEST_NAP_S
        while not self._stopped:
            if own:
                if len(own) > 1 and not shelf.left(self._rank):
                    del own[: shelf.put_out(own[: len(own) // 2])]
                self._run(own.pop())
                nap_s = SHORTEST_NAP_S
            elif taken := shelf.take_back() or self._steal():
                own += taken
            elif self._over():
                return
            else:
                tally.misses += 1
                time.sleep(nap_s)
                nap_s = min(LONGEST_NAP_S, 2 * nap_s)

    def _run(self, task: bytes) -> None:
        header, count, frames = msgpack.unpackb(task)
        (name, body), arrays = decode(header, count)
        for array, frame in zip(arrays, frames, strict=True):
            as_bytes(array)[:] = np.frombuffer(frame, np.uint8)
        self._functions[name](self, body, *arrays)
        self.tally.ran += 1
        self._ended[self._rank][0] += 1

    def _steal(self) -> list[bytes]:
        declared = []
        for rank in range(self._size):
            if rank != self._rank and (left := self._shelf.left(rank)):
                nbytes = left * self._shelf.place_bytes
                declared.append(Declared(rank, left, left * self._task_s, nbytes, self._task_s))
        victim = choose(declared, NEAR, self._random)
        taken = self._shelf.take(victim.rank) if victim is not None else []
        if taken:
            self.tally.steals += 1
            self.tally.stolen += len(taken)
        return taken

    def _over(self) -> bool:
        """Whether no task is left anywhere: as many have ended as had been spawned."""
        ended = sum(word[0] for word in self._ended)
        self._window.sync()
        return ended == sum(word[0] for word in self._spawned)
