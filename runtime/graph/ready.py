"""What of the ready tasks runs now, when together they demand more than there is: the policy, plainly.

What fits is started, what does not is deferred, and later tasks that fit are pulled forward past it: tasks
that are ready do not depend on each other.

Nobody who was deferred starves. After `patience` starts of others a device is kept for it, on which nothing
else is started; what runs there ends, so one day it fits. Who was deferred first comes first then, whatever
the priorities, and nobody deferred later comes before it: its turn comes after finitely many starts. (Who
stands behind full lanes has not been deferred: there priority alone counts.) Backfilling, as batch systems
do it, needs the ends of what is running foretold (Lifka, The ANL/IBM SP Scheduling System, 1995); counting
starts needs no estimate.

`choose` decides once, from plain data, and looks at everybody. `Schedule` (schedule.py) is what runs: it
decides the same for a whole graph and looks at few; `choose` is its oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from operator import itemgetter

from ..errors import GraphError
from .tasks import Capacity, TaskSpec

PATIENCE = 16
"""Starts by which a deferred task may be overtaken. A device that is kept runs empty meanwhile; where it has
16 lanes or fewer, all of them have been given anew before, and the task may have found its room without that.
"""


@dataclass(frozen=True, slots=True)
class Deferred:
    """A ready task that did not fit: how many starts there had been by then, and the device kept for it."""

    task: TaskSpec
    since: int
    device: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What to start, and on which device; who is deferred now; how many of `ready` are in either."""

    start: tuple[tuple[TaskSpec, int], ...]
    deferred: tuple[Deferred, ...]
    taken: int


def choose(
    ready: Iterable[TaskSpec],
    deferred: Sequence[Deferred],
    free: Sequence[Capacity],
    whole: Sequence[Capacity],
    *,
    started: int,
    patience: int = PATIENCE,
) -> Choice:
    """Decide what of `deferred` and `ready` runs now, given what is free of each whole device.

    `ready` is in order of priority and is read only as far as somebody may still start, so thousands may
    wait for one lane; `deferred` is what the choice before gave. `started` counts all starts before this one.
    Raises GraphError for a task that fits no device even when that is idle.
    """
    left, devices = list(free), range(len(free))
    kept = {each.device for each in deferred}  # None among them does no harm
    start: list[tuple[TaskSpec, int]] = []

    def begin(task: TaskSpec, own: int | None = None) -> bool:
        device = tightest(task, left, [each for each in devices if each == own or each not in kept])
        if device is None:
            return False
        left[device] = without(left[device], task)
        start.append((task, device))
        return True

    early = [each for each in deferred if started - each.since < patience]
    late = [each for each in deferred if started - each.since >= patience]
    still: list[Deferred] = []
    for each in sorted(late, key=lambda each: each.since):
        if begin(each.task, each.device):
            kept.discard(each.device)
        elif each.device is None:
            possible = [d for d, capacity in enumerate(whole) if d not in kept and capacity.fits(each.task)]
            emptiest = max(possible, key=lambda d: (left[d].lanes, left[d].memory_bytes), default=None)
            kept.add(emptiest)
            still.append(each if emptiest is None else replace(each, device=emptiest))
        else:
            still.append(each)

    early.sort(key=lambda each: each.task.priority)
    known = ((each.task.priority, each.task, each) for each in early)
    unknown = ((task.priority, task, None) for task in ready)
    begun: set[int] = set()  # by identity: many graphs may have a task of that name
    fresh: list[Deferred] = []
    taken = 0
    for _, task, before in merge(known, unknown, key=itemgetter(0)):  # equals: those deferred come first
        if all(device in kept or capacity.lanes == 0 for device, capacity in enumerate(left)):
            break
        taken += before is None
        if begin(task):
            begun.add(id(before))
        elif before is None:
            refuse_impossible([task], whole)
            fresh.append(Deferred(task, started))
    still += (each for each in early if id(each) not in begun)
    return Choice(tuple(start), (*still, *fresh), taken)


def tightest(task: TaskSpec, left: Sequence[Capacity], among: Iterable[int]) -> int | None:
    """The fullest of these devices that `task` fits: the largest room stays for the largest task."""
    fitting = (device for device in among if left[device].fits(task))
    return min(fitting, key=lambda device: (left[device].lanes, left[device].memory_bytes), default=None)


def without(capacity: Capacity, task: TaskSpec) -> Capacity:
    """What is left while `task` runs."""
    return replace(
        capacity, lanes=capacity.lanes - task.lanes, memory_bytes=capacity.memory_bytes - task.memory_bytes
    )


def regained(capacity: Capacity, task: TaskSpec) -> Capacity:
    """What is free when `task` has run."""
    return replace(
        capacity, lanes=capacity.lanes + task.lanes, memory_bytes=capacity.memory_bytes + task.memory_bytes
    )


def refuse_impossible(tasks: Iterable[TaskSpec], whole: Sequence[Capacity]) -> None:
    """Raise GraphError for the first task that would wait for ever: no device fits it even when idle."""
    for task in tasks:
        if not any(capacity.fits(task) for capacity in whole):
            have = "; ".join(f"{c.device}: {c.lanes} lanes, {c.memory_bytes} bytes" for c in whole)
            raise GraphError(
                f"task {task.name!r} demands {task.lanes} lanes and {task.memory_bytes} bytes on"
                f" {task.device or 'any device'}, and no device has that ({have or 'there is none'}):"
                " divide the task, or run it where there is more"
            )
