"""What the ranks of a node share for a pool: shelves, slots for results, counters, doorbells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ...message import Communicator, World
from .counts import Counts
from .rest import Rest
from .shelf import Shelf
from .slots import Slots


@dataclass(slots=True)
class Memory:
    """Made by `allocate`; closed by `close`, or with the world. `slots` is None where a rank is alone."""

    shelf: Shelf
    slots: Slots | None
    counts: Counts
    rest: Rest

    @classmethod
    async def allocate(
        cls, world: World, node: Communicator, *, lanes: int, places: int, place_bytes: int
    ) -> Self:
        """Collective over `node`, which is the pool's own."""
        shelf = await Shelf.allocate(world, node, lanes=lanes, places=places, place_bytes=place_bytes)
        slots = await Slots.allocate(world, node, places, place_bytes) if node.size > 1 else None
        counts = await Counts.allocate(world, node, lanes)
        return cls(shelf, slots, counts, await Rest.begin(world, node))

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        await self.shelf.close()
        if self.slots is not None:
            await self.slots.close()
        await self.counts.close()
        self.rest.close()
