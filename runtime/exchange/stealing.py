"""What the ranks of a node need to take work from each other: claims, offers, and each other's arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MachineError
from ..message import Window, World
from ..message.window import check_room, rounded_up
from ..work.claims import Claims
from ..work.offers import Offers


@dataclass(frozen=True, slots=True)
class Lent:
    """The nodes whose weight gradients others may compute, and the bytes that they must see for it."""

    nodes: frozenset[str]
    nbytes: int


class Stealing:
    """Made by `allocate`, closed by `close` or with the world.

    `offers` is None where no kernel is worth it. `arrays` makes, by rank of the node, arrays that all see.
    """

    def __init__(
        self, claims: Claims, offers: Offers | None, nodes: frozenset[str], window: Window | None, rank: int
    ) -> None:
        self.claims, self.offers, self.nodes = claims, offers, nodes
        self.rank = rank
        self._window = window
        self.arrays: Callable[[int], Segment] | None = None if window is None else self._arrays

    @classmethod
    async def allocate(cls, world: World, lent: Lent, capacity: int, takers: int) -> Stealing:
        """For a model cut into at most `capacity` portions; collective over the node.

        Its first `takers` ranks run others' kernels, too.
        """
        claims = await Claims.allocate(world)
        if not lent.nodes or not await _is_room(world, lent.nbytes):
            return cls(claims, None, frozenset(), None, world.node_rank)
        offers = await Offers.allocate(world, len(lent.nodes) + capacity, takers)
        return cls(claims, offers, lent.nodes, await world.window(lent.nbytes), world.node_rank)

    async def close(self) -> None:
        """Give everything back; collective over the node."""
        await self.claims.close()
        if self.offers is not None:
            await self.offers.close()
        if self._window is not None:
            await self._window.close()

    def _arrays(self, rank: int) -> Segment:
        assert self._window is not None
        return Segment(self._window, rank)


async def _is_room(world: World, nbytes: int) -> bool:
    """Whether all ranks' arrays take at most half of the shared memory that is left: others need some."""
    fits = np.ones(1, np.uint8)
    try:
        check_room(2 * nbytes * world.node_size, world.node_size)
    except MachineError:
        fits[0] = 0
    await world.node.allreduce(fits, "min", what="whether kernels' inputs fit into shared memory")
    return bool(fits[0])


class Segment:
    """Gives out a rank's segment of a window, one array behind the other: the same to all who ask alike."""

    def __init__(self, window: Window, rank: int) -> None:
        self._window, self._rank, self._used = window, rank, 0

    def zeros(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The next array; of zeros while nobody has written to it."""
        found = self._window.array(self._rank, dtype, shape, self._used)
        self._used += rounded_up(np.dtype(dtype).itemsize * prod(shape))
        return found
