"""Where results come home inside a node: each rank's slots in shared memory, written by whoever ran the task.

    home      take a slot ──> (in the task's head) ──────────────> look which are full, copy, free them
    runner                                          write, then full = 1; ring

A slot has one writer at a time, the rank that runs its task. A result that is too large for one comes by
message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ...message import Communicator, World
from ...message.window import Window
from .shelf import Lane, Layout

RESULT = struct.Struct("<QBI")  # number, whether it failed, parts; behind it their sizes, and the parts
SIZE = struct.Struct("<I")


def joined(number: int, failed: bool, parts: list[bytes]) -> bytes:
    """A result as one piece."""
    sizes = [SIZE.pack(len(part)) for part in parts]
    return b"".join([RESULT.pack(number, failed, len(parts)), *sizes, *parts])


def split(data: bytes) -> tuple[int, bool, list[bytes]]:
    """What `joined` joined."""
    number, failed, count = RESULT.unpack_from(data)
    at = RESULT.size + count * SIZE.size
    parts = []
    for (size,) in SIZE.iter_unpack(data[RESULT.size : at]):
        parts.append(data[at : at + size])
        at += size
    return number, bool(failed), parts


class Slots:
    """This rank's slots, and its view of its node's."""

    def __init__(self, window: Window, rank: int, ranks: int, layout: Layout) -> None:
        self._window = window
        self._lanes = [Lane(window, owner, 0, layout) for owner in range(ranks)]
        self._full = self._lanes[rank].full
        self._own = self._lanes[rank]
        self.place_bytes = layout.place_bytes
        self._free = list(range(layout.places))

    @classmethod
    async def allocate(cls, world: World, node: Communicator, places: int, place_bytes: int) -> Slots:
        """Collective over `node`."""
        layout = Layout(places, place_bytes)
        return cls(await world.window(layout.nbytes, node=node), node.rank, node.size, layout)

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        self._lanes = []
        del self._full, self._own
        await self._window.close()

    def take(self) -> int | None:
        """A slot of this rank's for a result to come; None if all are in use."""
        return self._free.pop() if self._free else None

    def free(self, slot: int) -> None:
        """The slot serves again."""
        self._free.append(slot)

    def put(self, rank: int, slot: int, number: int, failed: bool, parts: list[bytes]) -> bool:
        """Write a result into a slot of the node's rank `rank`; False if it is too large.

        What is too large is not joined first: a size of 4 GiB does not fit in front of it, and ended the job.
        """
        if RESULT.size + sum(SIZE.size + len(part) for part in parts) > self.place_bytes:
            return False
        lane = self._lanes[rank]
        lane.write(slot, joined(number, failed, parts))
        self._window.sync()
        lane.full[slot] = 1
        return True

    def any(self) -> bool:
        """Whether a result has come."""
        return 1 in bytes(self._full)

    def arrived(self) -> Iterator[bytes]:
        """The results that have come since, each once."""
        full = bytes(self._full)
        slot = full.find(1)
        if slot >= 0:
            self._window.sync()
        while slot >= 0:
            result = self._own.read(slot)
            self._full[slot] = 0
            yield result
            slot = full.find(1, slot + 1)
