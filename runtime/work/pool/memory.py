"""What the ranks of a node share for a pool: shelves, slots for results, counters, doorbells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ...message import World
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
    async def allocate(cls, world: World, *, lanes: int, places: int, place_bytes: int) -> Self:
        """Collective over the node."""
        shelf = await Shelf.allocate(world, lanes=lanes, places=places, place_bytes=place_bytes)
        slots = await Slots.allocate(world, places, place_bytes) if world.node_size > 1 else None
        return cls(shelf, slots, await Counts.allocate(world, lanes), Rest(world))

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        await self.shelf.close()
        if self.slots is not None:
            await self.slots.close()
        await self.counts.close()
        self.rest.close()
