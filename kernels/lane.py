"""A lane runs ready tasks back to back on one device: a thread, a heap, and counters of what is missing.

    submit(tasks) ──> waits == 0 ? ──> heap ──> thread: run(), then release the successors
                                        ^                                  │
                                        └──────────────────────────────────┘   no event loop in between

An asyncio Task costs 6.4 us here and a heap push and pop 1.4 us, so the lane never returns to the loop
between kernels: it decrements its successors' counters itself. The loop hears of a task only where somebody
asked (`notify`). What happens outside the lane (a portion of the gradient has arrived) is a *gate*: a task
without `run` that somebody else finishes.

Several models share a lane. The tasks of one model are a *group*: what one of them raises ends the group, not
the lane. The group's other tasks are then not run any more, but still finish: who waits for them, here or on
other ranks, goes on with meaningless numbers until all ranks have agreed to leave that model.

On a GPU `run` only launches work on the device's stream. Tasks of the same lane follow in stream order, so
their successors are released at launch; a task with `notify` is reported when the event behind it has passed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Protocol

import numpy as np

POLL_S = 50e-6  # between looks at GPU events while nothing can be launched; a kernel takes 5 us and up


class Event(Protocol):
    """A point in a device's stream of work."""

    @property
    def done(self) -> bool:
        """Whether the device has passed it."""


class Recorder(Protocol):
    """The part of a device that a lane needs."""

    def record(self) -> Event | None:
        """An event behind everything launched so far; None on a device that is always done (a CPU)."""

    def activate(self) -> None:
        """Called once by the lane's thread before its first task."""


Spans = Callable[["Task", int, int], None]
"""Told of every task that ran: the task, its start and its end in nanoseconds of time.monotonic_ns."""


class Group:
    """Tasks that fail together; `failed` is called once, on the thread that fails it, with the exception."""

    __slots__ = ("_failed", "error", "name")

    def __init__(self, name: str, failed: Callable[[Exception], None] | None = None) -> None:
        self.name = name
        self.error: Exception | None = None
        self._failed = failed

    def fail(self, error: Exception) -> None:
        """Run none of the group's tasks from here on; the first error counts."""
        if self.error is None:
            self.error = error
            if self._failed is not None:
                self._failed(error)


class Task:
    """One piece of work and what it waits for.

    `needs` are tasks (or gates) that must have finished; `priority` orders what is ready, smallest first.
    `notify` is called on the lane's thread once the work is done, or left out because `group` has failed.
    `info` travels to the trace untouched.
    """

    __slots__ = (
        "finished", "group", "info", "name", "needs", "notify", "priority", "run", "successors", "waits",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        run: Callable[[], None] | None,
        needs: Iterable[Task] = (),
        *,
        priority: int = 0,
        notify: Callable[[Task], None] | None = None,
        info: dict[str, object] | None = None,
        group: Group | None = None,
    ) -> None:
        self.name = name
        self.run = run
        self.needs: tuple[Task, ...] = tuple(needs)
        self.priority = priority
        self.notify = notify
        self.info = info
        self.group = group
        self.waits = 0
        self.successors: list[Task] = []
        self.finished = False

    def __repr__(self) -> str:
        state = "finished" if self.finished else f"waits for {self.waits}"
        return f"<Task {self.name!r} {state}>"


def gate(name: str) -> Task:
    """A task that no lane runs: whoever sees its event happen calls `Lane.finish`."""
    return Task(name, None)


class Lane:
    """One thread that runs ready tasks in order of priority, then of submission.

    `failed` is called once, on the lane's thread, with the first exception that a task without a group
    raised; every task that has not run by then is dropped. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        device: Recorder | None = None,
        *,
        spans: Spans | None = None,
        failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._device = device
        self._spans = spans
        self._failed = failed
        self._ready: list[tuple[int, int, Task]] = []
        self._submitted = 0
        self._changed = threading.Condition()
        self._closing = False
        self._in_flight: deque[tuple[Event, Task]] = deque()
        self.running: Task | None = None
        self._thread = threading.Thread(target=self._work, name="lane", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a task runs or could run at once."""
        return self.running is not None or bool(self._ready)

    @property
    def next(self) -> Task | None:
        """What would run next, as things stand; exact on the lane's own thread only."""
        ready = self._ready
        return ready[0][2] if ready else None

    def submit(self, tasks: Iterable[Task]) -> None:
        """Hand over tasks; each runs when all it needs has finished. Needs may be of earlier submissions."""
        with self._changed:
            for task in tasks:
                for need in task.needs:
                    if not need.finished:
                        need.successors.append(task)
                        task.waits += 1
                task.needs = ()  # a finished step must not keep the one before it alive
                if task.run is not None and task.waits == 0:
                    self._push(task)
            self._changed.notify()

    def run_if_idle(self, task: Task) -> bool:
        """Run a task that needs nothing on the calling thread, if the lane has nothing to do; whether it did.

        For tasks that take less than the two ways between threads, some 50 us each. What it raises is raised
        here. Not on a GPU, whose work belongs to the lane's thread.
        """
        with self._changed:
            if self._closing or self.busy:
                return False
            self.running = task
        try:
            with np.errstate(all="ignore"):  # NumPy keeps it by thread, and this one is the caller's
                self._run(task)
        finally:
            with self._changed:
                if self.running is task:  # it has raised
                    self.running = None
                self._changed.notify()  # of what was submitted meanwhile
        return True

    def finish(self, *events: Task) -> None:
        """Open gates. May be called from any thread."""
        with self._changed:
            for event in events:
                self._release(event)
            self._changed.notify()

    def close(self) -> None:
        """Stop after the running task; what has not run is dropped. Returns when the thread has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Below: the lane's thread, or callers holding the condition.

    def _push(self, task: Task) -> None:
        self._submitted += 1
        heappush(self._ready, (task.priority, self._submitted, task))

    def _release(self, task: Task) -> None:
        task.finished = True
        for successor in task.successors:
            successor.waits -= 1
            if successor.waits == 0 and successor.run is not None:
                self._push(successor)
        task.successors = []

    def _next(self) -> Task | None:
        with self._changed:
            while not self._closing:
                if self._in_flight:
                    self._report_passed()
                if self._ready and self.running is None:  # else another thread is at a task
                    self.running = heappop(self._ready)[2]
                    return self.running
                self._changed.wait(POLL_S if self._in_flight else None)
        return None

    def _report_passed(self) -> None:
        while self._in_flight and self._in_flight[0][0].done:
            task = self._in_flight.popleft()[1]
            assert task.notify is not None
            task.notify(task)

    def _work(self) -> None:
        try:
            if self._device is not None:
                self._device.activate()
            # What overflows is infinite, as IEEE 754 has it: who reads a result says so in words.
            with np.errstate(all="ignore"):
                while (task := self._next()) is not None:
                    self._run(task)
        except BaseException as error:
            with self._changed:
                self._closing = True
                self._ready.clear()
            self.running = None
            if self._failed is None:
                raise
            self._failed(error)

    def _run(self, task: Task) -> None:
        start_ns = time.monotonic_ns()
        ran = self._attempt(task)
        end_ns = time.monotonic_ns()
        event = self._device.record() if self._device is not None and task.notify is not None else None
        with self._changed:
            self._release(task)
            self.running = None
            if event is not None:
                self._in_flight.append((event, task))
        if event is None and task.notify is not None:
            task.notify(task)
        if ran and self._spans is not None:
            self._spans(task, start_ns, end_ns)

    def _attempt(self, task: Task) -> bool:
        """Run a task; False if its group has failed, before or now."""
        assert task.run is not None
        if task.group is None:
            task.run()
            return True
        if task.group.error is not None:
            return False
        try:
            task.run()
        except Exception as error:
            task.group.fail(error)
            return False
        return True
