"""Who computed what: told at the end of a run in which ranks took work from each other, or were dealt it."""

from __future__ import annotations

import numpy as np

from ..exchange import NodeMemory
from ..message import Communicator, World
from .dealer import Dealer
from .log import Log


async def tell_work(
    world: World, comm: Communicator, name: str, memory: NodeMemory | None, dealer: Dealer | None, log: Log
) -> None:
    """Gather each rank's work for the log; collective. Nothing where nobody could choose: no `memory` that
    ranks share, and no `dealer` of work by their paces."""
    if memory is None and dealer is None:
        return
    size = world.size
    rows = np.zeros((size, 2 * size + 3), np.int64)
    own = rows[world.rank]
    if memory is not None and memory.stealing is not None:
        counts = memory.stealing.claims.counts
        own[-3:] = counts.attempts, counts.misses, counts.left
        for start, of in ((0, counts.micro_batches), (size, counts.kernels)):
            for rank, count in of.items():
                own[start + rank] = count
    elif dealer is not None:  # alone on its node
        own[world.rank] = dealer.computed
    await comm.allreduce(rows, what=f"{name}: who computed what")
    for rank, row in enumerate(rows.tolist()):
        if not any(row):
            continue  # had no choice
        micro_batches, kernels = (
            {str(other): count for other, count in enumerate(part) if count}
            for part in (row[:size], row[size:-3])
        )
        attempts, misses, left = row[-3:]
        log.work(rank, micro_batches, kernels, attempts, misses, left)
