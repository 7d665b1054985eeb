"""A step's micro-batches in words that the ranks of a node share: each is claimed once, by whoever is free.

    a rank's segment   pot      how many of its micro-batches it has taken, from the front, and how many
                                others have, from the back; a word for even steps and one for odd     atomics
                       leavers  how many ranks have left the rest to others, in rank 0's segment      atomics
                       pace     seconds a micro-batch takes here, and when those taken are done       stores

The first micro-batch of every rank is its own, the others lie in its pot. A rank takes from its own while
there is any, then from that of another: one at a time, by one atomic addition, made by the lane's own thread.
Who takes no more may leave something (pace.py), but not the last who could: whatever ranks expected of each
other, everything is claimed.

A pot is emptied for the next step by its owner, behind its own first micro-batch: by then every rank is done
with the step before, and none begins the next until all are done with this one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..message import World
from ..message.window import LINE_BYTES, Window
from .pace import Pace, leaves, victim

BACK = 1 << 32
"""What a claim from the back adds to a pot's word; one from the front adds 1."""

FRESH = 0.3
"""Part that the newest micro-batch has in a rank's pace: what happened ten ago counts for 1%."""

FORGET = 0.95
"""What is left of a pace when the rest is left to others before anything was measured, down to the fastest's:
who has stood still for a moment, and seems slow, takes a second one again after some tens of steps."""


@dataclass(slots=True)
class Counts:
    """What a rank did, over all steps; whose it was by ranks of the world."""

    micro_batches: Counter[int] = field(default_factory=Counter)
    kernels: Counter[int] = field(default_factory=Counter)  # of others
    attempts: int = 0  # claims of others' micro-batches
    misses: int = 0  # of them: somebody else was quicker
    left: int = 0  # steps of which the rest was left to faster ranks


class Claims:
    """This rank's view of its node's pots; made by `allocate`, closed by `close` or with the world."""

    def __init__(
        self, window: Window, rank: int, ranks: Sequence[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        size = len(ranks)
        self._window, self.rank, self.ranks = window, rank, ranks
        self.clock = clock
        self.counts = Counts()
        self.pots = [[window.atomic(owner, line * LINE_BYTES) for owner in range(size)] for line in (0, 1)]
        self.leavers = [window.atomic(0, line * LINE_BYTES) for line in (2, 3)]
        self._paces = [window.array(owner, np.float64, 2, 4 * LINE_BYTES) for owner in range(size)]
        self._steps = 0
        #: What a micro-batch takes here, and of that what is behind its forward pass; 0: not known yet.
        self.seconds = self.backward_s = 0.0

    @classmethod
    async def allocate(cls, world: World) -> Claims:
        """For one model; collective over the node."""
        window = await world.window(5 * LINE_BYTES)
        return cls(window, world.node_rank, world.node.ranks)

    async def close(self) -> None:
        """Give the memory back; collective over the node."""
        self.pots, self.leavers, self._paces = [], [], []
        await self._window.close()

    def deal(self, shares: Sequence[Sequence[int]]) -> Dealt:
        """The next step's micro-batches: those of each rank of the node, which all ranks know alike."""
        self._steps += 1
        return Dealt(self, self._steps, shares)

    # On the lane

    def pace(self, rank: int) -> Pace:
        """What a rank of the node has last told of itself."""
        seconds, free_s = self._paces[rank].tolist()
        return Pace(seconds, free_s)

    def tell(self, pace: Pace) -> None:
        """This rank's pace, for all to see."""
        self._paces[self.rank][:] = pace.seconds, pace.free_s
        self._window.sync()

    def took(self, seconds: float, forward_s: float) -> None:
        """How long a micro-batch took here, and its forward pass."""
        fresh = FRESH if self.seconds else 1.0
        self.seconds += fresh * (seconds - self.seconds)
        self.backward_s += fresh * (max(0.0, seconds - forward_s) - self.backward_s)

    def forget(self, others: Iterable[Pace]) -> None:
        """Nothing was measured here: believe a little less in being slower than the fastest of the others."""
        fastest_s = min((other.seconds for other in others if other.seconds), default=0.0)
        if self.seconds > fastest_s:
            kept = max(FORGET, fastest_s / self.seconds)
            self.seconds, self.backward_s = kept * self.seconds, kept * self.backward_s


class Dealt:
    """One step's micro-batches as this rank takes them, on the lane."""

    def __init__(self, claims: Claims, step: int, shares: Sequence[Sequence[int]]) -> None:
        self._claims = claims
        parity = step % 2
        #: Its number among all that these ranks have dealt, from 1.
        self.step = step
        #: Who may take what is left: who was dealt nothing takes no part.
        self._others = [rank for rank, share in enumerate(shares) if share and rank != claims.rank]
        self._pots = [share[1:] for share in shares]
        self._words, self._leavers = claims.pots[parity], claims.leavers[parity]
        self._after = claims.pots[1 - parity][claims.rank], claims.leavers[1 - parity]
        self._last = False  # of those who take more
        self._measured = False  # what a micro-batch takes, in this step
        self._loaded_s = self._known_s = 0.0  # when the last micro-batch began, and its loss was known
        own = shares[claims.rank]
        #: The micro-batch that is this rank's own; None where there are fewer than ranks.
        self.first: int | None = own[0] if own else None

    def loading(self) -> None:
        """The next micro-batch begins."""
        claims = self._claims
        self._loaded_s = claims.clock()
        if not self._known_s:
            claims.counts.micro_batches[claims.ranks[claims.rank]] += 1
            claims.tell(Pace(claims.seconds, self._loaded_s + claims.seconds))

    def next(self) -> tuple[int, int | None] | None:
        """Behind a forward pass: the micro-batch to compute next, and whose it is, if another rank's.

        None: the one that is being computed is this rank's last of the step.
        """
        self._note()
        while left := sum(counts := [self._left(rank) for rank in range(len(self._pots))]):
            if self._leaves(left):
                return None
            if (index := self._claim(counts)) is not None:
                return index
        return None

    def clear(self) -> None:
        """Empty this rank's pot for the step after this one; when all ranks are done with the one before."""
        pot, leavers = self._after
        pot.swap(0)
        if self._claims.rank == 0:
            leavers.swap(0)

    def _note(self) -> None:
        """A forward pass has ended: from one such time to the next a rank takes a micro-batch's time."""
        claims, now = self._claims, self._claims.clock()
        if self._known_s:
            claims.took(now - self._known_s, now - self._loaded_s)
            self._measured = True
        else:
            self.clear()
        self._known_s = now

    def _left(self, rank: int) -> int:
        word = self._words[rank].peek()
        return max(0, len(self._pots[rank]) - word % BACK - word // BACK)

    def _leaves(self, left: int) -> bool:
        """Whether the rest is left to others, and they know that they must take it."""
        claims, now = self._claims, self._known_s
        own = Pace(claims.seconds, now + claims.backward_s)
        claims.tell(own)  # before others are looked at: two that are both late do not leave it to each other
        others = [claims.pace(rank) for rank in self._others]
        if not self._last and leaves(now, left, own, others):
            self._last = self._leavers.add(1) == len(self._others)
            if not self._last:
                claims.counts.left += 1
                if not self._measured:
                    claims.forget(others)
                claims.tell(Pace())  # takes no more
                return True
        claims.tell(Pace(own.seconds, own.free_s + own.seconds))
        return False

    def _claim(self, counts: Sequence[int]) -> tuple[int, int | None] | None:
        """One of this rank's own, or of another's; None if somebody else was quicker."""
        claims = self._claims
        own = counts[claims.rank] > 0
        rank = claims.rank if own else victim(self._known_s, counts, [*map(claims.pace, range(len(counts)))])
        pot, word = self._pots[rank], self._words[rank].add(1 if own else BACK)
        front, back = word % BACK, word // BACK
        claimed = front + back < len(pot)
        claims.counts.attempts += not own
        claims.counts.misses += not own and not claimed
        if not claimed:
            return None
        claims.counts.micro_batches[claims.ranks[rank]] += 1
        return (pot[front], None) if own else (pot[-1 - back], claims.ranks[rank])
