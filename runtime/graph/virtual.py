"""A graph of tasks in virtual time: what runs when and where, as `run_graph` runs it within these devices.

The same `Schedule`, with a clock that jumps to the next end: deferral, pull-forward and combining can be
looked at on as many devices as one likes, before any of them computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from .ready import PATIENCE
from .schedule import Schedule
from .tasks import Capacity, TaskGraph, TaskSpec


@dataclass(frozen=True, slots=True)
class Run:
    """One task's run on device `device` (its place among the capacities)."""

    task: TaskSpec
    device: int
    start_s: float
    end_s: float


def simulate(
    tasks: TaskGraph, whole: Sequence[Capacity], *, overhead_s: float = 0.0, patience: int = PATIENCE
) -> tuple[Run, ...]:
    """Every task's run in order of start. Each takes its seconds (none if unknown) and `overhead_s`.

    Raises GraphError for a task that fits no device.
    """
    schedule = Schedule(tasks, whole, patience=patience)
    running: list[tuple[float, int, Run]] = []
    runs: list[Run] = []
    now_s = 0.0
    while True:
        for task, device in schedule.start():
            run = Run(task, device, now_s, now_s + (task.seconds or 0.0) + overhead_s)
            heappush(running, (run.end_s, len(runs), run))
            runs.append(run)
        if not running:
            return tuple(runs)
        now_s = running[0][0]
        while running and running[0][0] == now_s:
            run = heappop(running)[2]
            schedule.ended(run.task, run.device)
