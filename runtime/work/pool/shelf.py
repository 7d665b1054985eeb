"""Shelves: where each rank of a node puts tasks out, and whoever is idle takes half of them, unasked.

    rank's segment, for each lane of the queue
        word           which places hold tasks that nobody has claimed (lot.py)         changed by atomics
        means          seconds and bytes of a task that is out, for thieves to judge by: a hint
        full           a byte for each place: 1 from `put_out` until what is in it has been copied away
        sizes, places  a task as bytes in each place, `place_bytes` at most             written by the owner

The owner never waits for a thief, and a thief never for the owner: a claim is one atomic addition, then the
claimed places are the thief's until it has copied them. A place serves again when its byte says so.

Inside a node only; between nodes a thief asks by message, and the rank that it asks takes for it. One thread
of a rank puts out and takes back; any may take.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import numpy as np

from ...errors import Mistake
from ...message import Communicator, World
from ...message.window import LINE_BYTES, WORD_BYTES, Window, rounded_up
from . import lot
from .victims import Declared


class Shelf:
    """This rank's shelf, and its view of its node's; made by `allocate`, closed by `close` or the world."""

    def __init__(self, window: Window, rank: int, ranks: int, lanes: int, layout: Layout) -> None:
        self._window, self._rank = window, rank
        self.places, self.place_bytes = layout.places, layout.place_bytes
        self._lanes = [
            [Lane(window, owner, lane * layout.nbytes, layout) for lane in range(lanes)]
            for owner in range(ranks)
        ]
        self._next = [0] * lanes  # where the owner puts the next task out

    @classmethod
    async def allocate(
        cls, world: World, node: Communicator, *, lanes: int = 1, places: int = 256, place_bytes: int = 8192
    ) -> Shelf:
        """Shelves of so many places a rank and lane; collective over `node`, alike on its ranks."""
        if not 0 < places <= lot.LONGEST:
            raise Mistake(f"a shelf of {places} places was asked for; it has 1 to {lot.LONGEST}")
        layout = Layout(places, place_bytes)
        window = await world.window(lanes * layout.nbytes, node=node)
        return cls(window, node.rank, node.size, lanes, layout)

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        self._lanes = []
        await self._window.close()

    def put_out(self, tasks: Sequence[bytes], lane: int = 0, seconds: float = 0.0) -> int:
        """Put the first of `tasks` out, as many as there is room for, in place of a lot that is empty.

        Returns how many. `seconds` is what one of them takes, about. Mistake when the lot that is out is not
        empty (`take_back` it first). No task may be larger than `place_bytes`.
        """
        own = self._lanes[self._rank][lane]
        if lot.left(own.word.peek()):
            raise Mistake("tasks are put out while others are out still: take them back first")
        first, count = self._next[lane], 0
        for place, task in zip(range(first, self.places), tasks, strict=False):
            if len(task) > self.place_bytes:
                raise Mistake(f"a task of {len(task)} bytes does not fit into a place of {self.place_bytes}")
            if own.full[place]:
                break  # a thief is copying it
            own.write(place, task)
            own.full[place] = 1
            count += 1
        if count:
            own.means[0] = seconds
            own.means[1] = sum(map(len, tasks[:count])) / count
            self._window.sync()  # what is written, before the word that shows it
            own.word.swap(lot.word(first, count))
            self._next[lane] = (first + count) % self.places
        return count

    def take_back(self, lane: int = 0) -> list[bytes]:
        """What is out on this rank's own shelf and nobody has claimed."""
        own = self._lanes[self._rank][lane]
        return self._copied(own, lot.left(own.word.swap(lot.NONE))) if lot.left(own.word.peek()) else []

    def left(self, rank: int, lane: int = 0) -> int:
        """How many tasks are out on the shelf of the node's rank `rank`, at the cost of a load."""
        return len(lot.left(self._lanes[rank][lane].word.peek()))

    def declared(self, ranks: Iterable[int], lane: int = 0, closed: Container[int] = ()) -> list[Declared]:
        """What these ranks of the node have out, if anything; each is taken to be at one task more.

        Those that are `closed` cannot run what is in the lane themselves.
        """
        found = []
        for rank in ranks:
            if left := self.left(rank, lane):
                seconds, nbytes = self._lanes[rank][lane].means.tolist()
                found.append(Declared(rank, left, left * seconds, left * nbytes, seconds, rank in closed))
        return found

    def take(self, rank: int, lane: int = 0) -> list[bytes]:
        """Half of what is out on the shelf of the node's rank `rank`, rounded up; [] if there is nothing."""
        victim = self._lanes[rank][lane]
        if not lot.left(victim.word.peek()):
            return []
        return self._copied(victim, lot.taken(victim.word.add(lot.CLAIM)))

    def _copied(self, lane: Lane, places: Iterable[int]) -> list[bytes]:
        self._window.sync()
        tasks = [lane.read(place) for place in places]
        self._window.sync()  # what was read, before the places serve again
        for place in places:
            lane.full[place] = 0
        return tasks


class Layout:
    """Where things stand in a lane's part of a segment, in bytes."""

    def __init__(self, places: int, place_bytes: int) -> None:
        self.places, self.place_bytes = places, rounded_up(place_bytes)
        self.full = LINE_BYTES
        self.sizes = self.full + rounded_up(places)
        self.bodies = self.sizes + rounded_up(places * 8)
        self.nbytes = self.bodies + places * self.place_bytes


class Lane:
    """One lane of one rank's shelf."""

    def __init__(self, window: Window, owner: int, start: int, layout: Layout) -> None:
        self.word = window.atomic(owner, start)
        self.means = window.array(owner, np.float64, 2, start + WORD_BYTES)
        self.full = window.array(owner, np.uint8, layout.places, start + layout.full).data
        self._sizes = window.array(owner, np.int64, layout.places, start + layout.sizes).data
        bodies = window.array(owner, np.uint8, layout.places * layout.place_bytes, start + layout.bodies)
        self._bodies, self._stride = bodies.data, layout.place_bytes

    def write(self, place: int, task: bytes) -> None:
        """Put a task into a place."""
        start = place * self._stride
        self._bodies[start : start + len(task)] = task
        self._sizes[place] = len(task)

    def read(self, place: int) -> bytes:
        """The task in a place."""
        start = place * self._stride
        return bytes(self._bodies[start : start + self._sizes[place]])
