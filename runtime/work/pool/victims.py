"""Whom an idle rank robs, and whether that pays: pure functions of what others declare to have left.

    own node     every shelf can be looked at: of two drawn at random the one that gains more (Mitzenmacher,
                 "The Power of Two Choices in Randomized Load Balancing", 2001), so that thieves spread
    other nodes  only when the own node has nothing; one is drawn and asked by message, and answers from the
                 fullest of its shelves, or with nothing; then another is asked, after a pause that doubles

What is declared is work in seconds, from the tags of the tasks that wait. Half of it is taken, so victim and
thief end at about the same time, after half the work: that is the gain, less what it costs to move it. Small
tasks that carry much are not worth moving, and left: to an owner that can run them itself. What is closed to
its owner ends with a thief or never, so taking it always pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from random import Random

LONGEST_PAUSE_S = 10e-3
"""Between two questions to other nodes that had nothing: an idle rank then sends 100 messages a second."""


@dataclass(frozen=True, slots=True)
class Way:
    """What it costs to take tasks from somewhere: seconds a time, and seconds a byte."""

    latency_s: float
    byte_s: float


@dataclass(frozen=True, slots=True)
class Declared:
    """What a rank has out for others: how many tasks, the seconds they take, the bytes they carry.

    `busy_s` is how long it still works on what it has begun. `closed` says that it cannot run them itself.
    """

    rank: int
    tasks: int
    seconds: float
    nbytes: float
    busy_s: float = 0.0
    closed: bool = False


def gain_s(victim: Declared, way: Way) -> float:
    """By how much sooner the work of `victim` ends when half of it, rounded up, is taken by an idle rank."""
    if victim.tasks == 0:
        return 0.0
    if victim.closed:
        return inf
    share = (victim.tasks + 1) // 2 / victim.tasks
    taken_s, moved_s = share * victim.seconds, way.latency_s + share * victim.nbytes * way.byte_s
    alone_s = victim.busy_s + victim.seconds
    return alone_s - max(alone_s - taken_s, moved_s + taken_s)


def choose(declared: Sequence[Declared], way: Way, random: Random) -> Declared | None:
    """The victim among the ranks of the own node; None where nothing is worth taking."""
    worth = [victim for victim in declared if gain_s(victim, way) > 0]
    if len(worth) < 2:
        return worth[0] if worth else None
    return max(random.choices(worth, k=2), key=lambda victim: gain_s(victim, way))


def fullest(declared: Sequence[Declared], way: Way) -> Declared | None:
    """Whom a node that was asked takes from: where most is gained; None where nothing is worth sending."""
    best = max(declared, key=lambda victim: gain_s(victim, way), default=None)
    return best if best is not None and gain_s(best, way) > 0 else None


def pause_s(misses: int, latency_s: float) -> float:
    """How long to wait before the next question to another node, after so many that brought nothing."""
    return min(LONGEST_PAUSE_S, latency_s * 2 ** min(misses, 30)) if misses else 0.0
