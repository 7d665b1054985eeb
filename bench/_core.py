"""The core a rank runs on, and what of it others take: on a shared machine, what spoils a turn."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weft.runtime.message import Communicator, World

TICK_S = 1 / os.sysconf("SC_CLK_TCK")  # of /proc/stat: 10 ms, so what lasted a second is known to a percent
SLOWED = 1.1  # of the time that a core needs at best: what was measured meanwhile is measured again
SIDE, PRODUCTS = 256, 40  # of matrices that fit a core's own cache: 10 ms
MOST_CORES = 8192  # that Linux numbers
SOFTIRQ = 6  # its place in a line of /proc/stat; idle and waiting for a disk are 3 and 4, stolen 7


@dataclass(frozen=True, slots=True)
class Use:
    """Seconds since the machine's start: of the core by anybody, in softirqs (the network), by a process."""

    core: float
    softirq: float
    own: float

    def since(self, before: Use) -> Use:
        """The difference."""
        return Use(self.core - before.core, self.softirq - before.softirq, self.own - before.own)

    @property
    def others(self) -> float:
        """What neither the process nor the network used, or what the hypervisor kept."""
        return max(0.0, self.core - self.softirq - self.own)


class Speed:
    """How fast the core computes, seen from the CPU time of a fixed product.

    On a virtual machine the guests that share a core's other thread, its clock or its memory slow it down by
    up to a half for seconds, and no counter of this system tells.
    """

    def __init__(self) -> None:
        self._a = np.ones((SIDE, SIDE), np.float32)
        self._out = np.empty_like(self._a)
        self._best_s = np.inf
        self.slowdown()  # the first loads code

    def slowdown(self) -> float:
        """CPU time of the product now, over the least that it ever took here."""
        now_s = self.product_s()
        self._best_s = min(self._best_s, now_s)
        return now_s / self._best_s

    def product_s(self) -> float:
        """CPU time of the product now."""
        taken = []
        for _ in range(PRODUCTS):
            start = time.thread_time()
            np.matmul(self._a, self._a, out=self._out)
            taken.append(time.thread_time() - start)
        return statistics.median(taken)


class Cores:
    """The speed of several cores, as one process sees it that goes from one to the next."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._speeds = {core: Speed() for core in cores}
        self.slowdown()  # each on its own core

    def slowdown(self) -> float:
        """Of the slowest."""
        before, found = os.sched_getaffinity(0), []
        for core, speed in self._speeds.items():
            os.sched_setaffinity(0, {core})
            found.append(speed.slowdown())
        os.sched_setaffinity(0, before)
        return max(found)


def neighbours(world: World) -> Communicator:
    """The ranks with which this one has its cores in common: its node's, or those of all emulated hosts."""
    return world if "WEFT_BENCH_HOSTS" in os.environ else world.node


async def take_cores(ranks: Communicator) -> list[int]:
    """Bind each of `ranks`, which share a machine, to a core; returns these. Collective.

    Before anything starts a thread or a process: those that are there already stay where they are.
    """
    cores = dealt(await allowed_cores(ranks))
    os.sched_setaffinity(0, {cores[ranks.rank]})
    return cores


async def allowed_cores(ranks: Communicator) -> list[set[int]]:
    """The cores that each of `ranks` may use. Collective.

    Not os.cpu_count(): of that a launcher, a batch system or `taskset` may have left the ranks a part.
    """
    mine = np.zeros(MOST_CORES, np.uint8)
    mine[list(os.sched_getaffinity(0))] = 1
    everyone = np.zeros((ranks.size, MOST_CORES), np.uint8)
    await ranks.allgather(mine, everyone)
    return [set(np.flatnonzero(row).tolist()) for row in everyone]


def dealt(allowed: Sequence[Set[int]]) -> list[int]:
    """A core for every rank, of those that it may use.

    One of its own where there are as many as ranks, and the sets are disjoint, equal or one in the other, as
    launchers make them.

    Not the rank's number modulo its cores: four ranks that a launcher had bound to two sockets in turn
    would share a core of each, and leave the others idle. Who has the least choice chooses first.
    """
    taken: Counter[int] = Counter()
    found = [0] * len(allowed)
    for rank in sorted(range(len(allowed)), key=lambda rank: len(allowed[rank])):
        found[rank] = min(allowed[rank], key=lambda core: (taken[core], core))
        taken[found[rank]] += 1
    return found


def use(core: int, pids: tuple[int, ...]) -> Use:
    """What core and processes have used by now."""
    lines = Path("/proc/stat").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"cpu{core} "))
    ticks = [int(number) for number in line.split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    return Use(busy * TICK_S, ticks[SOFTIRQ] * TICK_S, sum(map(cpu_time, pids)))


def cpu_time(pid: int) -> float:
    """Seconds that all threads of a process have computed, system calls included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S
