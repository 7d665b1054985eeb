"""The ranks at blocks of one request in virtual time: the loop that runs live, with a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from ...graph.neurons.blocks import Block
from ...graph.neurons.placement import Placement
from ...message.atomics import Words
from . import claims


@dataclass(frozen=True, slots=True)
class Ran:
    """A block that a rank computed, from when to when."""

    block: int
    rank: int
    start_s: float
    end_s: float


def simulate(
    blocks: Sequence[Block],
    placement: Placement,
    ranks: int,
    *,
    task_s: float = 0.0,
    speeds: Sequence[float] = (),
    requests: int = 1,
) -> list[Ran]:
    """What would run where and when in the last of some requests.

    Rank r computes `speeds[r]` times as fast as the blocks' costs say (1); one without work waits until
    another ends a block.
    """
    needs = [block.needs for block in blocks]
    books = []
    for rank in range(ranks):
        own = [number for number in placement.urgent if placement.homes[number] == rank]
        others = [number for number in placement.urgent if placement.homes[number] != rank]
        books.append(claims.book(needs, own, others))
    words = np.zeros(claims.words(len(blocks), ranks), np.int64)
    found: list[Ran] = []
    for request in range(1, requests + 1):
        found = _request(blocks, words, books, request, task_s, speeds or (1.0,) * ranks)
    return found


def _request(
    blocks: Sequence[Block],
    words: Words,
    books: Sequence[Words],
    request: int,
    task_s: float,
    speeds: Sequence[float],
) -> list[Ran]:
    found: list[Ran] = []
    running: list[tuple[float, int, int]] = []  # end, rank, block
    idle = list(range(len(books)))
    for book in books:
        claims.begin(book)

    def start(rank: int, block: int, now_s: float) -> None:
        end_s = now_s + (blocks[block].cost_s + task_s) / speeds[rank]
        found.append(Ran(block, rank, now_s, end_s))
        heappush(running, (end_s, rank, block))

    def wake(now_s: float) -> None:
        for rank in tuple(idle):
            block = claims.take(words, books[rank], request, 1, 0)
            if block >= 0:
                idle.remove(rank)
                start(rank, block, now_s)

    wake(0.0)
    while running:
        now_s, rank, block = heappop(running)
        following = claims.advance(words, books[rank], block, request, 1, 0)
        if following >= 0:
            start(rank, following, now_s)
        else:
            idle.append(rank)
        wake(now_s)
    return found
