"""How many tasks there were and are: spawned and ended, counted in shared memory, and whether none is left.

    rank's segment   line 0   spawned: by its tasks, by its loop     each word has one writer, a thread,
                     line 1   ended: on its thread, at its home      and only grows
                     line 2   when its thread began to look for the task that it is at, 0 if it has none
                     line 3.. tasks too large for a place, by lane

A task counts as spawned before it can end. So who reads all ended ones first and all spawned ones then, and
finds as many, knows that nothing was left in between. Between nodes the same holds of two rounds of sums, the
second begun when the first is over: `Rounds`, after Mattern's four counters (Algorithms for Distributed
Termination Detection, Distributed Computing 2, 1987), where messages on their way need no counting since a
task that travels has been spawned and not ended.
"""

from __future__ import annotations

import numpy as np

from ...message import Communicator, World
from ...message.window import LINE_BYTES, WORD_BYTES, Window, rounded_up

THREADS, LOOPS = 0, 1
"""Of the two words of a counter, the one that the pool's thread writes, and the one under the home's lock."""


class Counts:
    """This rank's counters and its view of its node's."""

    def __init__(self, window: Window, rank: int, ranks: int, lanes: int) -> None:
        self.window = window
        words = [window.array(each, np.int64, words_of(lanes)) for each in range(ranks)]
        line = LINE_BYTES // WORD_BYTES
        self._all_spawned = [word[:2].data for word in words]
        self._all_ended = [word[line : line + 2].data for word in words]
        #: This rank's, as [by its thread, by its loop or at its home].
        self.spawned, self.ended = self._all_spawned[rank], self._all_ended[rank]
        #: For every rank of the node its tasks that fit no place, by lane.
        self.large = [word[3 * line : 3 * line + lanes].data for word in words]
        #: For every rank of the node when its thread began to look for its task, in `time.monotonic_ns()`.
        self.began_ns = [word[2 * line :][:1].data for word in words]

    @classmethod
    async def allocate(cls, world: World, node: Communicator, lanes: int) -> Counts:
        """Collective over `node`."""
        window = await world.window(words_of(lanes) * WORD_BYTES, node=node)
        return cls(window, node.rank, node.size, lanes)

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        self._all_spawned, self._all_ended, self.large, self.began_ns = [], [], [], []
        del self.spawned, self.ended
        await self.window.close()

    def sync(self) -> None:
        """A memory barrier."""
        self.window.sync()

    def over(self) -> bool:
        """Whether no task is left on this node, if it is the only one."""
        ended = sum(word[0] + word[1] for word in self._all_ended)
        self.window.sync()
        return ended == sum(word[0] + word[1] for word in self._all_spawned)

    def mine(self) -> tuple[int, int]:
        """What this rank has ended and spawned."""
        return self.ended[0] + self.ended[1], self.spawned[0] + self.spawned[1]


class Rounds:
    """Decides, round by round of sums over all ranks, whether no task is left anywhere."""

    def __init__(self) -> None:
        self._ended: int | None = None

    def over(self, ended: int, spawned: int) -> bool:
        """After a round that every rank joined when the one before was over, with its counts then."""
        before, self._ended = self._ended, ended
        return spawned == before


def words_of(lanes: int) -> int:
    """Words of a rank's segment."""
    return (3 * LINE_BYTES + rounded_up(lanes * WORD_BYTES)) // WORD_BYTES
