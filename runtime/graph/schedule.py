"""A graph on devices: what starts now, and what is ready once something has ended.

    schedule = Schedule(tasks, [Capacity(lanes=4, memory_bytes=64 << 30)])
    for task, device in schedule.start(): ...       # these begin
    schedule.ended(task, device)                    # and when one has ended, `start` again

Whoever runs the tasks follows it, on ranks (runtime/work/pool/graphs.py) or in virtual time (virtual.py). It
decides as `choose` does (ready.py), which is its oracle and says why. That looks at all who were deferred, at
every start: four times as many who wait for memory take sixteen times as long (4,000 took 5.9 s). Here they
stand in trees by what they demand (waiting.py), only who may begin is looked at, and it is four times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from operator import attrgetter

from .ready import PATIENCE, refuse_impossible, regained, tightest, without
from .tasks import Capacity, TaskGraph, TaskSpec, devices
from .waiting import Waiter, Waiting

Starts = list[tuple[TaskSpec, int]]


class Schedule:
    """What of a graph runs on which device; a device is its place in `whole`.

    Ready tasks queue by priority, then in the order in which they became ready. Raises GraphError for a task
    that fits no device.
    """

    def __init__(self, tasks: TaskGraph, whole: Sequence[Capacity], *, patience: int = PATIENCE) -> None:
        self._whole = devices(whole)
        refuse_impossible(tasks.tasks, self._whole)
        self._tasks, self._patience = tasks, patience
        self._left = list(self._whole)
        self._waits = {task.name: len(task.needs) for task in tasks.tasks}
        self._turns = count()  # of those who became ready, and of those who were deferred
        first = (task for task in tasks.tasks if not task.needs)
        self._ready = [(task.priority, next(self._turns), task) for task in first]
        heapify(self._ready)
        self._deferred: deque[tuple[int, Waiter]] = deque()  # with the starts there had been by then
        self._early = Waiting(tasks.tasks, attrgetter("priority"))
        self._late = Waiting(tasks.tasks, lambda task: 0)  # who was overtaken too often
        self._kept: dict[int, Waiter] = {}  # devices, and for whom
        self._started = 0

    def start(self) -> tuple[tuple[TaskSpec, int], ...]:
        """What begins now, each on the device of that number; what it demands is taken."""
        while self._deferred and self._started - self._deferred[0][0] >= self._patience:
            _, waiter = self._deferred.popleft()
            if waiter in self._early:
                self._early.remove(waiter)
                self._late.add(waiter)
        starts: Starts = []
        self._start_late(starts)
        self._start_others(starts)
        self._started += len(starts)
        return tuple(starts)

    def ended(self, task: TaskSpec, device: int) -> None:
        """A task that was started has run: what it held is free, and who waited for it alone is ready."""
        self._left[device] = regained(self._left[device], task)
        for reader in self._tasks.readers[task.name]:
            self._waits[reader] -= 1
            if self._waits[reader] == 0:
                ready = self._tasks.by_name[reader]
                heappush(self._ready, (ready.priority, next(self._turns), ready))

    def _start_late(self, starts: Starts) -> None:
        """Those overtaken too often, who was deferred first first: each begins, or a device is kept for it.

        Who has none kept, and for whom none can be, is passed over: a device that is given back meanwhile was
        kept for one deferred later, and would have been kept for it, could it run there.
        """
        holders = deque(sorted((waiter.number, device) for device, waiter in self._kept.items()))
        while True:
            able = self._late.first([self._whole[device] for device in self._open()])
            if holders and (able is None or holders[0][0] < able.number):
                _, device = holders.popleft()
                if self._begin(self._kept[device].task, starts, sorted([device, *self._open()])):
                    del self._kept[device]
            elif able is not None:
                self._late.remove(able)
                if not self._begin(able.task, starts, self._open()):
                    fitting = [device for device in self._open() if self._whole[device].fits(able.task)]
                    emptiest = max(fitting, key=lambda d: (self._left[d].lanes, self._left[d].memory_bytes))
                    self._kept[emptiest] = able
            else:
                return

    def _start_others(self, starts: Starts) -> None:
        """Those who were deferred and those who are ready by priority, of equals the former first."""
        while any(self._left[device].lanes for device in self._open()):
            able = self._early.first([self._left[device] for device in self._open()])
            if able is not None and (not self._ready or able.task.priority <= self._ready[0][0]):
                self._early.remove(able)
                self._begin(able.task, starts, self._open())
            elif self._ready:
                *_, task = heappop(self._ready)
                if not self._begin(task, starts, self._open()):
                    waiter = Waiter(task, next(self._turns))
                    self._early.add(waiter)
                    self._deferred.append((self._started, waiter))
            else:
                return

    def _open(self) -> list[int]:
        """The devices that are kept for nobody."""
        return [device for device in range(len(self._whole)) if device not in self._kept]

    def _begin(self, task: TaskSpec, starts: Starts, among: Sequence[int]) -> bool:
        """Start a task on one of these devices, if it fits any."""
        device = tightest(task, self._left, among)
        if device is None:
            return False
        self._left[device] = without(self._left[device], task)
        starts.append((task, device))
        return True
