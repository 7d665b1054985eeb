"""The stealing policy in virtual time, from 16 to 4,096 ranks.

python -m bench policy
python -m bench policy --ranks 64,1024 --node 32 --task-bytes 100000

efficiency_R_SHAPE   all work over R times the time until the last task has ended; what moving costs is in it
static_SHAPE         the same without stealing, at the largest R
steals, asked        at the largest R, of the shape that steals most: thefts, and questions to other nodes

Shapes of the work that ranks begin with, `--tasks` of some milliseconds for each:
    one       rank 0 has all of it
    uneven    shares drawn from a lognormal distribution: the largest of 4,096 has some twenty times the mean
    slow      equal shares, every eighth rank works at half speed

An emulation: ranks, network and time are simulated, tasks are numbers. Victims are chosen by the functions
that the pool uses, in a node and between nodes. Here a thief takes half of all that its victim has not begun;
in the pool half of what the victim has out, the older half of its queue. Every task has run once, or there
are no figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from bench.harness import Figure, amount_or_none, check, positive, several
from weft.runtime.work.pool.victims import Declared, Way, choose, fullest, pause_s

TASK_S = 2e-3  # mean of a task; lengths vary evenly from none to twice that
NEAR_S, NEAR_BYTE_S = 20e-6, 1e-10  # a theft inside a node, 10 GB/s
FAR_S, FAR_BYTE_S = 200e-6, 1e-9  # a question to another node and its answer, 1 GB/s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--ranks",
        type=several(positive),
        default="16,64,256,1024,4096",
        metavar="R[,R...]",
        help="how many, one after the other (16,64,256,1024,4096)",
    )
    add("--node", type=positive, default=16, metavar="N", help="ranks of a node (16)")
    add("--tasks", type=positive, default=50, metavar="N", help="for each rank (50)")
    add("--task-bytes", type=amount_or_none, default=1000.0, metavar="N", help="that move with a task (1000)")
    add("--seed", type=int, default=1, metavar="N", help="of what is drawn at random (1)")


def main(args: argparse.Namespace) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    sizes = sorted(args.ranks)
    most = (0, 0)
    for shape in SHAPES:
        for ranks in sizes:
            work, speeds = SHAPES[shape](ranks, args.tasks, Random(args.seed))
            ran = Simulation(work, speeds, args.node, args.task_bytes, args.seed).run()
            found[f"efficiency_{ranks}_{shape}"] = Figure.of([ran.efficiency], "")
        # Of the largest, which came last.
        most = max(most, (ran.steals, ran.asked))
        alone = max(sum(own) / speed for own, speed in zip(work, speeds, strict=True))
        found[f"static_{shape}"] = Figure.of([sum(map(sum, work)) / sum(speeds) / alone], "")
    found["steals"], found["asked"] = (Figure.of([number], "") for number in most)
    return found


Shape = Callable[[int, int, Random], tuple[list[list[float]], list[float]]]


def tasks(count: int, random: Random) -> list[float]:
    return [random.uniform(0, 2 * TASK_S) for _ in range(count)]


def one(ranks: int, count: int, random: Random) -> tuple[list[list[float]], list[float]]:
    return [tasks(ranks * count, random), *([] for _ in range(ranks - 1))], [1.0] * ranks


def uneven(ranks: int, count: int, random: Random) -> tuple[list[list[float]], list[float]]:
    shares = [random.lognormvariate(-0.5, 1.0) for _ in range(ranks)]
    return [tasks(round(share * count), random) for share in shares], [1.0] * ranks


def slow(ranks: int, count: int, random: Random) -> tuple[list[list[float]], list[float]]:
    return [tasks(count, random) for _ in range(ranks)], [
        0.5 if rank % 8 == 0 else 1.0 for rank in range(ranks)
    ]


SHAPES: dict[str, Shape] = {"one": one, "uneven": uneven, "slow": slow}


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a simulation."""

    efficiency: float
    steals: int
    asked: int


class Simulation:
    """Ranks with tasks of so many seconds each, at speeds of 1 and less."""

    def __init__(
        self, work: list[list[float]], speeds: list[float], node: int, task_bytes: float, seed: int
    ) -> None:
        self._work = [list(own) for own in work]
        self._left = [sum(own) for own in work]
        self._speeds, self._node, self._bytes = speeds, node, task_bytes
        self._random = Random(seed)
        self._free_at = [0.0] * len(work)  # when a rank ends what it has begun
        self._misses = [0] * len(work)
        self._open = self._total = sum(map(len, work))
        self._seconds = sum(self._left)
        self._events: list[tuple[float, int, int]] = []
        self._arriving: dict[int, list[float]] = {}  # by rank: what has been taken, and is under way
        self._steals = self._asked = self._order = 0
        self._now = 0.0

    def run(self) -> Ran:
        """Until the last task has ended."""
        for rank in range(len(self._work)):
            self._later(rank, 0.0)
        end, ended_s = 0.0, 0.0
        while self._open:
            self._now, _, rank = heappop(self._events)
            if rank in self._arriving:
                came = self._arriving.pop(rank)
                self._work[rank] += came
                self._left[rank] += sum(came)
            if self._work[rank]:
                seconds = self._work[rank].pop()
                self._left[rank] = self._left[rank] - seconds if self._work[rank] else 0.0
                self._open -= 1
                ended_s += seconds
                self._free_at[rank] = self._now + seconds / self._speeds[rank]
                end = max(end, self._free_at[rank])
                self._later(rank, self._free_at[rank])
            else:
                self._steal(rank)
        check(abs(ended_s - self._seconds) <= 1e-9 * self._seconds, "the tasks that ran are not those given")
        check(not self._arriving and not any(self._work), "tasks are left")
        return Ran(self._seconds / sum(self._speeds) / end, self._steals, self._asked)

    def _later(self, rank: int, when: float) -> None:
        self._order += 1
        heappush(self._events, (when, self._order, rank))

    def _steal(self, thief: int) -> None:
        first = thief // self._node * self._node
        near = Way(NEAR_S, NEAR_BYTE_S)
        victim = choose(self._declared(first, thief), near, self._random)
        if victim is not None:
            self._take(thief, victim, near)
            return
        nodes = -(-len(self._work) // self._node)
        far = Way(FAR_S, FAR_BYTE_S)
        if nodes > 1 and self._misses[thief] % 2 == 0:  # ask, else only look at the own node again
            self._asked += 1
            other = self._random.randrange(nodes - 1)
            other += other >= thief // self._node
            victim = fullest(self._declared(other * self._node, thief), far)
            if victim is not None:
                self._take(thief, victim, far)
                return
        self._misses[thief] += 1
        latency_s = FAR_S if nodes > 1 else NEAR_S
        self._later(thief, self._now + latency_s + pause_s(self._misses[thief], latency_s))

    def _declared(self, first: int, thief: int) -> list[Declared]:
        """What ranks of a node declare, those that have something out."""
        ranks: range | list[int] = range(first, min(first + self._node, len(self._work)))
        return [
            Declared(
                rank,
                len(self._work[rank]),
                self._left[rank] / self._speeds[rank],
                len(self._work[rank]) * self._bytes,
                max(0.0, self._free_at[rank] - self._now),
            )
            for rank in ranks
            if rank != thief and self._work[rank]
        ]

    def _take(self, thief: int, victim: Declared, way: Way) -> None:
        own = self._work[victim.rank]
        count = (len(own) + 1) // 2
        taken, self._work[victim.rank] = own[:count], own[count:]
        seconds = sum(taken)
        self._left[victim.rank] = self._left[victim.rank] - seconds if self._work[victim.rank] else 0.0
        self._arriving[thief] = taken
        self._misses[thief] = 0
        self._steals += 1
        self._later(thief, self._now + way.latency_s + count * self._bytes * way.byte_s)
