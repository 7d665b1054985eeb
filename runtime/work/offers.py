"""Kernels that a rank puts out at the end of a step, for ranks of its node that have nothing left to do.

    a rank's segment   idle   the step whose own part it has ended                              stores
                       out    that step, and how many kernels of it are out                    stores
                       of     the micro-batch they are of, and whether it is the rank's first  stores
                       and for each place
                              kernel  what is out there, a number                              stores
                              claim   the step in which somebody has claimed it                atomics
                              done    the step in which who claimed it has ended it, and in how
                                      many nanoseconds                                         stores

Weight gradients are what is put out: nothing of the same micro-batch waits for them. While nobody is idle
nothing is: a rank looks at its others' `idle`, a load each, and runs its kernel. A claim swaps the step's
number in; who finds another number there has the kernel. The numbers never need to be put back.

Only who updates weights may claim, and only while not all others have ended their own parts: none begins the
next step without its updates, so the step can't be over before its look is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..graph import Graph, describe
from ..message import World
from ..message.window import LINE_BYTES, Window

COUNT = 1 << 16  # of kernels in the word `out`

FLOPS_PER_S = 50e9
"""Of a core, about: what turns the operations of a cost tag into seconds."""

WORTH_S = 0.5e-3
"""A kernel from which on it is put out. It takes 0.15 ms on average until an idle rank looks, as much until
the owner sees that it is done, and the inputs are in another core's cache."""


def worth_offering(graph: Graph, batch: int) -> frozenset[str]:
    """The nodes whose weight gradient, by their cost tags, is worth another rank's while.

    None that share parameters: who runs them elsewhere would add to one gradient at the same time.
    """
    return frozenset(
        name
        for name, found in describe(graph, batch).items()
        if found.parameters
        and name not in graph.sharing
        and found.cost.weight_gradient_flops / FLOPS_PER_S >= WORTH_S
    )


@dataclass(frozen=True, slots=True)
class Offer:
    """A kernel that another rank has put out, and this one has claimed."""

    rank: int  # of the node
    place: int
    kernel: int
    micro_batch: int
    first: bool


class Offers:
    """This rank's view of its node's; made by `allocate`, closed by `close` or with the world.

    Steps are numbered from 1, alike on all ranks. Who puts out does so on its lane, who is idle looks on its
    loop.
    """

    def __init__(self, window: Window, rank: int, ranks: int, places: int, takers: int) -> None:
        self._window, self._rank, self._places, self._takers = window, rank, places, takers
        self._others = [other for other in range(ranks) if other != rank]
        self._idle = [window.array(owner, np.int64, 1) for owner in range(ranks)]
        self._out = [window.array(owner, np.int64, 3, LINE_BYTES) for owner in range(ranks)]
        lines = [2 * LINE_BYTES + place * LINE_BYTES for place in range(places)]
        self._claims = [[window.atomic(owner, line) for line in lines] for owner in range(ranks)]
        self._kernels = [
            [window.array(owner, np.int64, 3, line + 8) for line in lines] for owner in range(ranks)
        ]

    @classmethod
    async def allocate(cls, world: World, places: int, takers: int) -> Offers:
        """For at most so many kernels a step, which the node's first `takers` ranks may take; collective over
        the node."""
        window = await world.window((2 + places) * LINE_BYTES)
        return cls(window, world.node_rank, world.node_size, places, takers)

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        self._idle, self._out, self._kernels, self._claims = [], [], [], []
        await self._window.close()

    @property
    def closed(self) -> bool:
        """Whether it has been given back."""
        return not self._idle or self._window.closed

    # Who puts out

    def wanted(self, step: int) -> bool:
        """Whether another rank has ended its own part of the step."""
        return any(self._idle[other][0] == step for other in self._others if other < self._takers)

    def put_out(self, step: int, kernel: int, micro_batch: int, first: bool) -> int | None:
        """Put a kernel of the rank's last micro-batch out; returns its place, None where all are full."""
        own = self._out[self._rank]
        out = int(own[0])
        place = out % COUNT if out // COUNT == step else 0
        if place == self._places:
            return None
        self._kernels[self._rank][place][0] = kernel
        own[1], own[2] = micro_batch, first
        self._window.sync()  # what the kernel reads, and which it is, before the word that shows it
        own[0] = step * COUNT + place + 1
        return place

    def take_back(self, step: int, place: int) -> bool:
        """Claim what this rank has put out itself; False where it is another's by now."""
        return self._claims[self._rank][place].swap(step) != step

    def ended(self, step: int, places: Iterable[int]) -> list[tuple[int, int]]:
        """Which of these, claimed by others, are done, and in how many nanoseconds."""
        own = self._kernels[self._rank]
        found = [place for place in places if own[place][1] == step]
        if found:
            self._window.sync()
        return [(place, int(own[place][2])) for place in found]

    # Who is idle

    def rest(self, step: int) -> None:
        """This rank has ended its own part of the step."""
        self._idle[self._rank][0] = step

    def over(self, step: int) -> bool:
        """Whether all others have."""
        return all(self._idle[other][0] >= step for other in self._others)

    def claim(self, step: int) -> Offer | None:
        """A kernel of another rank, the one put out first; None on a rank that takes none.

        None, too, once the step is over for all others: what they have put out is done. They may begin the
        next while this rank looks, and it took a kernel of that for one of this step, which others had.
        """
        for other in self._others if self._rank < self._takers and not self.over(step) else ():
            out = int(self._out[other][0])
            for place in range(out % COUNT if out // COUNT == step else 0):
                word = self._claims[other][place]
                if word.peek() != step and word.swap(step) != step:
                    self._window.sync()
                    _, micro_batch, first = self._out[other].tolist()
                    return Offer(other, place, int(self._kernels[other][place][0]), micro_batch, bool(first))
        return None

    def end(self, step: int, offer: Offer, took_ns: int) -> None:
        """What was claimed is done."""
        words = self._kernels[offer.rank][offer.place]
        words[2] = took_ns
        self._window.sync()
        words[1] = step
