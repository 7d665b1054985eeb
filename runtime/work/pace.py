"""Who takes what is left of a step's micro-batches: pure functions of how fast the ranks of a node are.

    fast   ▒▒▒▒ ▒▒▒▒ ▒▒▒▒ ▒▒▒▒ ▒▒▒▒│▒▒▒▒            two are left: the slow rank leaves them, for the fast
    slow   ▒▒▒▒▒▒▒▒ ▒▒▒▒▒▒▒▒ ▒▒▒▒▒▒▒▒│              one will have done both before it could do one

Whoever takes one micro-batch at a time whenever it can is late by a whole one of the slowest rank's at the
end of the step. So a rank takes no more when the others can do all that is left before it could do one more.
In simulations (tests/pure/work/test_pace.py), two ranks of speed 1 and 1/2 kept 99% of their joint speed at
64 micro-batches a step, and 97% without this; three of speed 1 and one of 1/2 kept 91% at 16 and 96% at 64,
and 76% and 91% without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a rank takes for a micro-batch, 0 where that is not known yet, and when it is done with those
    it has taken."""

    seconds: float = 0.0
    free_s: float = 0.0

    def expected_s(self, now_s: float) -> float:
        """When it is free, as far as can be told now: one that is late is expected to be as late again."""
        return max(self.free_s, 2 * now_s - self.free_s)


def leaves(now_s: float, left: int, own: Pace, others: Iterable[Pace]) -> bool:
    """Whether a rank leaves all that is `left` to `others`: they have done it before it could do one more.

    `free_s` of `own` is the end of what it is at; among equals none leaves what is its own.
    """
    if not own.seconds:
        return False
    until_s = own.free_s + own.seconds
    for other in others:
        if other.seconds:
            left -= max(0, ceil((until_s - other.expected_s(now_s)) / other.seconds) - 1)
    return left <= 0


def victim(now_s: float, left: Sequence[int], paces: Sequence[Pace]) -> int:
    """Whose micro-batch to take, of those who have some left: who would be done last with its own."""
    ends = [
        (pace.expected_s(now_s) + n * pace.seconds, n) if n else (-1.0, 0)
        for n, pace in zip(left, paces, strict=True)
    ]
    return max(range(len(left)), key=ends.__getitem__)
