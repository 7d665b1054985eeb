"""Who is to compute which block: decided beforehand from the blocks' costs, and only a preference later.

The longest chain decides what is urgent: in this order each block goes to the rank where, by the costs, it
would end first, a block that another rank's results must reach later by what bringing them takes. So costly
blocks spread over the ranks, and chains of blocks stay where their data lie in the cache. List scheduling by
upward rank: Topcuoglu, Hariri and Wu, "Performance-Effective and Low-Complexity Task Scheduling for
Heterogeneous Computing", 2002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from .blocks import Block

MOVE = 0.3
"""What a block costs more, as a share of its cost, where other ranks computed all that it needs."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The blocks' numbers from the most urgent on, and for every block (by number) its home, a rank."""

    urgent: tuple[int, ...]
    homes: tuple[int, ...]


def urgency(blocks: Sequence[Block], task_s: float = 0.0) -> list[float]:
    """For every block the seconds of the longest chain that begins with it."""
    total = [block.cost_s + task_s for block in blocks]
    for number in range(len(blocks) - 1, -1, -1):
        for need in blocks[number].needs:
            total[need] = max(total[need], blocks[need].cost_s + task_s + total[number])
    return total


def place(blocks: Sequence[Block], ranks: int, *, task_s: float = 0.0) -> Placement:
    """Homes of blocks that stand behind what they need; each costs `task_s` more than its arithmetic."""
    urgent = tuple(_by_urgency(blocks, urgency(blocks, task_s)))
    free_s = [0.0] * ranks
    ends_s, homes = [0.0] * len(blocks), [0] * len(blocks)
    for number in urgent:
        block = blocks[number]
        exists_s = max((ends_s[need] for need in block.needs), default=0.0)
        best = None
        for rank in range(ranks):
            away = sum(homes[need] != rank for need in block.needs) / max(1, len(block.needs))
            start_s = max(free_s[rank], exists_s)
            end_s = start_s + task_s + block.cost_s * (1 + MOVE * away)
            # Of ranks that would end alike, the one that has been free for the shortest time: the others
            # may yet take what does not exist now.
            if best is None or (end_s, -free_s[rank]) < best[:2]:
                best = end_s, -free_s[rank], rank
        assert best is not None
        ends_s[number], _, homes[number] = best
        free_s[homes[number]] = best[0]
    return Placement(urgent, tuple(homes))


def _by_urgency(blocks: Sequence[Block], seconds: Sequence[float]) -> list[int]:
    """The most urgent first, none before what it needs."""
    waits = [len(block.needs) for block in blocks]
    behind: list[list[int]] = [[] for _ in blocks]
    for number, block in enumerate(blocks):
        for need in block.needs:
            behind[need].append(number)
    ready = [(-seconds[number], number) for number, count in enumerate(waits) if not count]
    heapify(ready)
    found = []
    while ready:
        _, number = heappop(ready)
        found.append(number)
        for other in behind[number]:
            waits[other] -= 1
            if not waits[other]:
                heappush(ready, (-seconds[other], other))
    return found
