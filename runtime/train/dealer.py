"""Deals a step's micro-batches to the ranks of several nodes, so that all end alike: more to the faster.

    step s      each rank notes what a micro-batch took, from the end of one forward pass to that of the next
    step s + 2  tells it with its losses; the sums make all ranks know all paces
    step s + 4  is dealt by them, on every rank alike

Inside a node ranks take work from each other within the step (work/claims.py), which needs shared memory; who
has it and who has not is dealt to by the same rule. Between nodes nothing moves but these numbers: every rank
can read every sample, and gradients are sums, whoever computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

EVEN = 1.1
"""Ranks whose paces differ by less get equal parts: so much they vary by chance."""

FRESH = 0.3
"""Part that the newest step has in a rank's pace."""

FORGET = 0.98
"""What is left of a pace after a step with too few micro-batches to measure: who was slow gets more again."""


class Dealer:
    """One rank's; all come to the same result as long as `learn` is told the same sums."""

    def __init__(self, ranks: int) -> None:
        #: Seconds that a micro-batch takes on this rank; 0: not known yet.
        self.own_s = 0.0
        #: How many this rank has computed.
        self.computed = 0
        self._paces_s = [0.0] * ranks

    def measured(self, ends_s: Sequence[float]) -> None:
        """A step is over; its forward passes on this rank ended at these times."""
        self.computed += len(ends_s)
        if len(ends_s) > 1:
            taken_s = median(after - before for before, after in pairwise(ends_s))
            self.own_s += (FRESH if self.own_s else 1.0) * (taken_s - self.own_s)
        else:
            self.own_s *= FORGET

    def learn(self, paces_s: NDArray[np.float64]) -> None:
        """What a micro-batch takes on each rank, as all ranks are told; a pace of 0 is not known."""
        self._paces_s = paces_s.tolist()

    def deal(self, count: int) -> list[list[int]]:
        """The micro-batches of each rank; dealt in turn while not all paces are known, or they are alike."""
        paces_s = self._paces_s
        if min(paces_s) <= 0.0 or max(paces_s) < EVEN * min(paces_s):
            paces_s = [1.0] * len(paces_s)
        shares: list[list[int]] = [[] for _ in paces_s]
        ends = [(pace_s, rank) for rank, pace_s in enumerate(paces_s)]  # with one micro-batch more
        heapify(ends)
        for index in range(count):
            end_s, rank = ends[0]
            shares[rank].append(index)
            heapreplace(ends, (end_s + paces_s[rank], rank))
        return shares
