"""A graph of tasks in virtual time: what runs when and where, as an executor that follows `choose` runs it.

The executor's own code, with a clock that jumps to the next end: deferral, pull-forward and combining can be
looked at on as many devices as one likes, before any of them computes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from .ready import PATIENCE, Deferred, choose, refuse_impossible, regained, without
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

    Ready tasks queue by priority, then in the order in which they became ready. Raises GraphError for a task
    that fits no device.
    """
    refuse_impossible(tasks.tasks, whole)
    free = list(whole)
    waits = {task.name: len(task.needs) for task in tasks.tasks}
    ready = sorted((task for task in tasks.tasks if not task.needs), key=_priority)
    deferred: tuple[Deferred, ...] = ()
    running: list[tuple[float, int, Run]] = []
    runs: list[Run] = []
    now_s = 0.0
    while True:
        choice = choose(ready, deferred, free, whole, started=len(runs), patience=patience)
        deferred = choice.deferred
        del ready[: choice.taken]
        for task, device in choice.start:
            run = Run(task, device, now_s, now_s + (task.seconds or 0.0) + overhead_s)
            free[device] = without(free[device], task)
            heappush(running, (run.end_s, len(runs), run))
            runs.append(run)
        if not running:
            return tuple(runs)
        now_s = running[0][0]
        while running and running[0][0] == now_s:
            run = heappop(running)[2]
            free[run.device] = regained(free[run.device], run.task)
            for reader in tasks.readers[run.task.name]:
                waits[reader] -= 1
                if waits[reader] == 0:
                    insort(ready, tasks.by_name[reader], key=_priority)


def _priority(task: TaskSpec) -> int:
    return task.priority
