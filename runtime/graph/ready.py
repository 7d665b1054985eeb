"""What of the ready tasks runs now, when together they demand more than there is.

    schedule = Schedule(tasks, [Capacity(lanes=4, memory_bytes=64 << 30)])
    for task, device in schedule.start(): ...       # these begin
    schedule.ended(task, device)                    # and when one has ended, `start` again

What fits is started, what does not is deferred, and later tasks that fit are pulled forward past it: tasks
that are ready do not depend on each other.

Nobody who was deferred starves. After `patience` starts of others a device is kept for it, on which nothing
else is started; what runs there ends, so one day it fits. Who was deferred first comes first then, whatever
the priorities, and nobody deferred later comes before it: its turn comes after finitely many starts. (Who
stands behind full lanes has not been deferred: there priority alone counts.) Backfilling, as batch systems
do it, needs the ends of what is running foretold (Lifka, The ANL/IBM SP Scheduling System, 1995); counting
starts needs no estimate.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from operator import attrgetter, itemgetter

from ..errors import GraphError
from .tasks import Capacity, TaskGraph, TaskSpec

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
        fitting = [
            device
            for device, capacity in enumerate(left)
            if (device == own or device not in kept) and capacity.fits(task)
        ]
        if fitting:
            # The tightest: the largest room stays for the largest task.
            device = min(fitting, key=lambda device: (left[device].lanes, left[device].memory_bytes))
            left[device] = without(left[device], task)
            start.append((task, device))
        return bool(fitting)

    early = [each for each in deferred if started - each.since < patience]
    late = [each for each in deferred if started - each.since >= patience]
    still: list[Deferred] = []
    for each in sorted(late, key=lambda each: each.since):
        # Each tried on every device, 500 who waited for memory took 4 ms a start.
        if each.device is None and kept.issuperset(devices):
            still.append(each)
        elif begin(each.task, each.device):
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


class Schedule:
    """A graph on devices: what starts now, and what is ready once something has ended.

    Whoever runs the tasks follows it, on ranks (runtime/work/pool/graphs.py) or in virtual time (virtual.py).
    Ready tasks queue by priority, then in the order in which they became ready. Raises GraphError for a task
    that fits no device.
    """

    def __init__(self, tasks: TaskGraph, whole: Sequence[Capacity], *, patience: int = PATIENCE) -> None:
        refuse_impossible(tasks.tasks, whole)
        self._tasks, self._whole, self._patience = tasks, tuple(whole), patience
        self._free = list(whole)
        self._waits = {task.name: len(task.needs) for task in tasks.tasks}
        self._ready = sorted((task for task in tasks.tasks if not task.needs), key=PRIORITY)
        self._deferred: tuple[Deferred, ...] = ()
        self._started = 0

    def start(self) -> tuple[tuple[TaskSpec, int], ...]:
        """What begins now, each on the device of that number; what it demands is taken."""
        choice = choose(
            self._ready,
            self._deferred,
            self._free,
            self._whole,
            started=self._started,
            patience=self._patience,
        )
        self._deferred = choice.deferred
        del self._ready[: choice.taken]
        self._started += len(choice.start)
        for task, device in choice.start:
            self._free[device] = without(self._free[device], task)
        return choice.start

    def ended(self, task: TaskSpec, device: int) -> None:
        """A task that was started has run: what it held is free, and who waited for it alone is ready."""
        self._free[device] = regained(self._free[device], task)
        for reader in self._tasks.readers[task.name]:
            self._waits[reader] -= 1
            if self._waits[reader] == 0:
                insort(self._ready, self._tasks.by_name[reader], key=PRIORITY)


PRIORITY = attrgetter("priority")


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
