"""The core a rank runs on, and how much of it others take: on a shared machine, what spoils a turn."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")  # of /proc/stat: 10 ms, so what lasted a second is known to a percent
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


def take_core(number: int) -> int:
    """Bind this process to the `number`-th of its cores, which may be the only one; returns it."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[number % len(cores)]
    os.sched_setaffinity(0, {core})
    return core


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
