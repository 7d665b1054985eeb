"""A model's memory on a node: every rank's gradients, and one copy of weights and optimizer state for all.

    rank 0's segment    weights | state | state        one copy a node, read by all its ranks
    each rank's own     gradients                      written by its kernels, read by the owners of slices

Owner i, the node's rank i, sums slice i of every portion over the node's ranks, adds it up with the owners of
slice i on other nodes, updates that slice of the weights and publishes it. Every node has the same number of
owners, the ranks of the smallest: the others compute gradients and own nothing.

What is handed over is told by counters, one a portion and event, whose value is the round. A weight is
overwritten only when every rank of the node has run the last kernel that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..graph.parameters import ALIGNMENT
from ..message import Communicator, Window, World
from ..message.board import Board
from .portions import ELEMENT_BYTES, Portion
from .stealing import Lent, Stealing

Flat = NDArray[np.float32]


class Event(IntEnum):
    """What a rank tells the others of its node about a portion."""

    READY = 0  # its gradient stands in this rank's segment
    READ = 1  # the last kernel that reads its weights has run here
    SQUARED = 2  # the squared norm of this owner's slice of the sum is known
    UPDATED = 3  # this owner's slice of the weights is new


class NodeMemory:
    """Made by `allocate`, closed by `close` or with the world."""

    def __init__(
        self, world: World, windows: tuple[Window, Window], board: Board, peers: Communicator | None,
        size: int, slots: int, capacity: int, residual: bool, stealing: Stealing | None,
    ) -> None:  # fmt: skip
        shared, own = windows
        flats = shared.array(0, "float32", (1 + slots + residual, size))
        self._windows = windows
        self._capacity = capacity
        self.parameters: Flat = flats[0]
        self.states: tuple[Flat, ...] = tuple(flats[1 : 1 + slots])
        #: What wire formats leave out; one a node, since with another cut a slice may have another owner.
        self.residual: Flat | None = flats[-1] if residual else None
        #: The gradients of the node's ranks; `gradients` are this rank's own.
        self.parts: list[Flat] = [own.array(rank, "float32", size) for rank in range(world.node_size)]
        self.gradients: Flat = self.parts[world.node_rank]
        self.board = board
        #: How the node's ranks take work from each other; None where who does what is settled beforehand.
        self.stealing = stealing
        #: By owner: the squared norms of its slices, by portion.
        self.squares = [board.numbers(rank)[:capacity] for rank in range(owners(world.nodes))]
        #: Rounds begun so far: what an event's counter is to reach.
        self.rounds = 0
        #: The owners of the same slices on other nodes; None on a rank that owns nothing, or without others.
        self.peers = peers
        self.rank, self.owners = world.node_rank, owners(world.nodes)
        #: Whether this rank writes what is one copy a node (new weights, a checkpoint's).
        self.writes = world.node_rank == 0
        #: Whether there are other nodes.
        self.travels = len(world.nodes) > 1

    @classmethod
    async def allocate(
        cls,
        world: World,
        size: int,
        slots: int,
        capacity: int,
        *,
        residual: bool = False,
        lent: Lent | None = None,
    ) -> NodeMemory:
        """For `size` float32 parameters with `slots` states, in at most `capacity` portions; collective.

        With `lent` the ranks of a node take work from each other.
        MachineError when the node has too little shared memory.
        """
        row = -(-size // ALIGNMENT) * ALIGNMENT
        if row != size:
            raise ValueError(f"size is {size}; layouts are multiples of {ALIGNMENT} elements")
        rows = 1 + slots + residual
        shared = await world.window(rows * size * ELEMENT_BYTES if world.node_rank == 0 else 0)
        own = await world.window(size * ELEMENT_BYTES)
        board = await world.board(len(Event) * capacity, capacity)
        mine = world.node_rank if world.node_rank < owners(world.nodes) else None
        peers = await world.split(mine, world.rank, name="peers") if len(world.nodes) > 1 else None
        stealing = None
        if lent is not None and world.node_size > 1:
            stealing = await Stealing.allocate(world, lent, capacity, owners(world.nodes))
        return cls(world, (shared, own), board, peers, size, slots, capacity, residual, stealing)

    async def fence(self, *, among: Communicator | None = None) -> None:
        """What any rank of the node has written is seen by all; collective over the node, or over `among`."""
        await self._windows[0].fence(among=among)

    async def close(self) -> None:
        """Give everything back; collective over the node."""
        await self.board.close()
        if self.stealing is not None:
            await self.stealing.close()
        for window in self._windows:
            await window.close()

    def slices(self, portions: Sequence[Portion]) -> list[slice]:
        """This rank's slice of every portion; empty for those who own nothing."""
        if len(portions) > self._capacity:
            raise ValueError(f"{len(portions)} portions, but memory was made for {self._capacity}")
        return [owned(portion, self.rank, self.owners) for portion in portions]

    def counter(self, event: Event, portion: int) -> int:
        """The number of a counter on the board."""
        return event * self._capacity + portion


def travels(ranks: int, memory: NodeMemory | None) -> bool:
    """Whether gradients go from rank to rank by messages; `memory` is what the ranks of a node share."""
    return ranks > 1 and (memory is None or memory.travels)


def owners(nodes: Sequence[Sequence[int]]) -> int:
    """How many ranks of each node own slices."""
    return min(len(ranks) for ranks in nodes)


def owned(portion: Portion, rank: int, owners: int) -> slice:
    """Slice `rank` of a portion that `owners` ranks share; whole cache lines, so that no two write to one."""
    each = -(-(portion.stop - portion.start) // owners // ALIGNMENT) * ALIGNMENT
    start = min(portion.start + rank * each, portion.stop)
    return slice(start, min(start + each, portion.stop) if rank < owners else start)
