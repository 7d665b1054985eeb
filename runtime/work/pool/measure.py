"""What it costs to take tasks from a rank of the node, and from another node: measured at the opening."""

from __future__ import annotations

import time

import numpy as np

from ...message import Channel, Communicator, World
from .shelf import Shelf
from .victims import Way

TRIES = 7  # the fastest of so many counts: what disturbs only makes it slower
MANY = 32
FAR_BYTES = 64 * 1024


def near(shelf: Shelf, rank: int) -> Way:
    """Taking from this rank's own shelf: the same claim and the same copy as from a neighbour's."""
    many = min(MANY, shelf.places // 2)
    small = [bytes(1)] * (2 * many)
    large = [bytes(shelf.place_bytes)] * (2 * many)
    one_s = min(_take(shelf, rank, small[:1]) for _ in range(TRIES))
    small_s = min(_take(shelf, rank, small) for _ in range(TRIES))
    large_s = min(_take(shelf, rank, large) for _ in range(TRIES))
    return Way(one_s, max(0.0, large_s - small_s) / max(1, many * (shelf.place_bytes - 1)))


def _take(shelf: Shelf, rank: int, tasks: list[bytes]) -> float:
    """Seconds to take half of some tasks, rounded up."""
    shelf.put_out(tasks)
    start = time.perf_counter()
    shelf.take(rank)
    seconds = time.perf_counter() - start
    shelf.take_back()
    return seconds


async def far(world: World, comm: Communicator, channel: Channel) -> Way:
    """Asking another node and getting an answer; collective, the slowest of all pairs of neighbours counts.

    Every node's first rank asks the next node's; who is asked must answer bytes with nothing.
    """
    found = np.zeros(2)
    firsts = [node[0] for node in world.nodes]
    if world.rank in firsts and len(firsts) > 1:
        peer = firsts[(firsts.index(world.rank) + 1) % len(firsts)]
        small_s, large_s = [
            min([await _ask(channel, peer, bytes(size)) for _ in range(TRIES)]) for size in (0, FAR_BYTES)
        ]
        found[:] = small_s, max(0.0, large_s - small_s) / FAR_BYTES
    await comm.allreduce(found, "max", what="what it costs to take tasks from another node")
    return Way(*map(float, found))


async def _ask(channel: Channel, rank: int, body: bytes) -> float:
    start = time.perf_counter()
    await channel.request(rank, body)
    return time.perf_counter() - start
