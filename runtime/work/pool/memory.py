"""What the ranks of a node share for a pool: shelves, slots for results, counters, doorbells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ...message import Communicator, World
from ..made import Made
from .counts import Counts
from .rest import Rest
from .shelf import Shelf
from .slots import Slots


@dataclass(slots=True)
class Memory:
    """Made by `allocate`. `slots` is None where a rank is alone."""

    shelf: Shelf
    slots: Slots | None
    counts: Counts
    rest: Rest

    @classmethod
    async def allocate(
        cls,
        world: World,
        node: Communicator,
        made: Made,
        *,
        lanes: int,
        places: int,
        place_bytes: int,
    ) -> Self:
        """Collective over `node`, which is the pool's own; to be closed with `made`, or with the world."""
        shelf = await Shelf.allocate(world, node, lanes=lanes, places=places, place_bytes=place_bytes)
        made.push(shelf.close)
        slots = None
        if node.size > 1:
            slots = await Slots.allocate(world, node, places, place_bytes)
            made.push(slots.close)
        counts = await Counts.allocate(world, node, lanes)
        made.push(counts.close)
        rest = await Rest.begin(node)
        counts.window.at_close.append(rest.close)  # also where it is the world that closes that
        return cls(shelf, slots, counts, rest)
