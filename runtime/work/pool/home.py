"""Submissions: tasks whose results come home, and which may wait for each other's.

    submit ──> waits for its needs ──> ready: to the queue, with what they returned ──> result ──> its readers

The rank that submits keeps the dependencies and nobody else knows of them: a task that is ready carries all
that it needs, so whoever has it runs it. Results come from this rank's own thread, from slots in shared
memory, or by message; the loop's thread and the pool's both get here, hence the lock.
"""

from __future__ import annotations

import asyncio
import threading
import types
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from ...errors import Mistake, TaskError
from .counts import LOOPS, Counts
from .parcel import HEAD, NO_NEEDS, NO_SLOT, Result, unpack
from .slots import Slots, split


class Submission:
    """A task that was submitted; await it for its `Result`.

    Raises TaskError if it failed, with where it ran and the traceback, or if a task that it needs failed.
    """

    __slots__ = ("_home", "error", "future", "name", "parts", "queue", "readers", "slot", "task", "waits")

    def __init__(self, home: Home, name: str, queue: int) -> None:
        self._home, self.name, self.queue = home, name, queue
        self.future: asyncio.Future[None] | None = None  # made when somebody awaits it
        self.readers: list[tuple[Submission, int]] = []
        self.waits = 0  # for so many of its needs
        self.task: Waiting | None = None  # until it is ready
        self.slot = NO_SLOT
        self.parts: list[bytes] | None = None  # what it has returned
        self.error: TaskError | None = None  # or why there is nothing: its failure, or that of a need

    @property
    def done(self) -> bool:
        """Whether the result, or the failure, is here."""
        return self.parts is not None or self.error is not None

    def result(self, part: int = 0) -> Result:
        """What the task has returned; Mistake before it is done."""
        if self.error is not None:
            self._home.was_seen(self.error)
            raise self.error
        if self.parts is None:
            raise Mistake(f"the result of task {self.name!r} is asked for before it is there: await it")
        if not 0 <= part < len(self.parts):
            raise Mistake(
                f"part {part} of the result of task {self.name!r} is asked for, which has {len(self.parts)}"
            )
        return unpack(self.parts[part])[0]

    def __await__(self) -> Generator[Any, None, Result]:
        yield from self.ended()
        return self.result()

    @types.coroutine
    def ended(self) -> Generator[Any, None, None]:
        """Wait until it is done, and leave what it returned unopened."""
        if not self.done:
            yield from self._home.arrival(self)

    def __repr__(self) -> str:
        state = "failed" if self.error else "done" if self.done else f"waits for {self.waits}"
        return f"<Submission of task {self.name!r}, {state}>"


Need = tuple[Submission, int]
"""A task and which part of its result."""

Waiting = tuple[int, int, float, bytes, Sequence[Need] | None]
"""What is kept of a task: number of the function, lane, seconds, arguments, and needs, if any were given."""


class Home:
    """What this rank has submitted. `give(queue, task)` puts a task that is ready into this rank's queue."""

    def __init__(
        self, rank: int, counts: Counts, slots: Slots | None, give: Callable[[int, bytes], None]
    ) -> None:
        self._rank, self._counts, self._slots, self._give = rank, counts, slots, give
        self._loop = asyncio.get_running_loop()
        self._lock, self._collecting = threading.Lock(), threading.Lock()
        self._open: dict[int, Submission] = {}
        self._number = self._mains = 0
        self._backlog: deque[tuple[int, Submission]] = deque()  # ready, and no slot is free
        self._arrived: list[asyncio.Future[None]] = []
        self._failures: dict[TaskError, None] = {}  # of which nobody was told
        self._forsaken = 0  # submissions up to this number: nobody is to be told of their failures
        #: Whether a run has been called and is not over: else a result is awaited in vain.
        self.running = False
        #: Tasks that were given here since, and that nobody has run if the pool is closed now.
        self.given = 0

    @property
    def open(self) -> bool:
        """Whether results are still to come."""
        return bool(self._open)

    @property
    def quiet(self) -> bool:
        """Whether nothing here is waited for."""
        return not self._open and not self._mains

    # -- what the loop's thread does -------------------------------------------------------------------

    def has(self, submission: Submission) -> bool:
        """Whether it was submitted here: to this rank's part of this pool."""
        return submission._home is self

    def submit(self, name: str, queue: int, task: Waiting) -> Submission:
        """Take a task that runs when all of its needs are there."""
        submission = Submission(self, name, queue)
        submission.task = task
        with self._lock:
            self._number = number = self._number + 1
            self._counts.spawned[LOOPS] += 1
            self._open[number] = submission
            for need, _ in task[-1] or ():
                if need.error is not None:
                    self._fail(number, submission, need.error)
                    return submission
                if need.parts is None:
                    need.readers.append((submission, number))
                    submission.waits += 1
            self.given += not self.running
            if not submission.waits:
                self._ready(number, submission)
        return submission

    def spawned(self) -> None:
        """The loop has spawned a task."""
        with self._lock:
            self._counts.spawned[LOOPS] += 1
            self.given += not self.running

    def begin(self) -> None:
        """Something runs on the loop that may submit: no end before it has called `end`."""
        with self._lock:
            self._mains += 1
            # No task that is given: the run may have been cancelled by now, and nobody is to run its main.
            self._counts.spawned[LOOPS] += 1

    def end(self) -> None:
        """It is over."""
        with self._lock:
            self._mains -= 1
            self._counts.ended[LOOPS] += 1

    def arrival(self, submission: Submission) -> Generator[Any, None, None]:
        """Wait until a submission is done; Mistake outside a run, where that would be for ever."""
        if not self.running:
            raise Mistake(
                f"the result of task {submission.name!r} is awaited, but nobody runs this pool yet:"
                " await inside pool.run(main())"
            )
        with self._lock:
            if submission.done:
                return
            if submission.future is None:
                submission.future = self._loop.create_future()
        yield from asyncio.shield(submission.future)  # one of several that wait may be cancelled

    def was_seen(self, error: TaskError) -> None:
        """Somebody was told of a failure."""
        self._failures.pop(error, None)

    def forsake(self) -> None:
        """A main has failed: the failures of what it leaves behind are for those who await it still."""
        with self._lock:
            self._failures.clear()
            self._forsaken = self._number

    def raise_unseen(self) -> None:
        """Raise the first failure of which nobody was told."""
        failures, self._failures = self._failures, {}
        for error in failures:
            raise error

    # -- what any thread does --------------------------------------------------------------------------

    def collect(self) -> bool:
        """Take the results that have come through shared memory; whether there were any."""
        found = False
        if self._slots is not None and self._slots.any():
            with self._collecting:
                for result in self._slots.arrived():
                    self.arrived(*split(result))
                    found = True
        return found

    def arrived(self, number: int, failed: bool, parts: list[bytes]) -> None:
        """The result of a task, or as one part its failure: the rank, its host, the traceback."""
        with self._lock:
            submission = self._open[number]
            if failed:
                error = TaskError(submission.name, *unpack(parts[0])[0].body)
                if number > self._forsaken:
                    self._failures[error] = None
                self._fail(number, submission, error)
                return
            submission.parts = parts
            self._done(number, submission)
            for reader, of_reader in submission.readers:
                reader.waits -= 1
                if not reader.waits and reader.error is None:
                    self._ready(of_reader, reader)
            submission.readers.clear()

    def _fail(self, number: int, submission: Submission, error: TaskError) -> None:
        waiting = [(number, submission)]
        while waiting:
            number, submission = waiting.pop()
            if submission.error is None:
                submission.error = error
                self._done(number, submission)
                waiting += [(of_reader, reader) for reader, of_reader in submission.readers]
                submission.readers.clear()

    def _done(self, number: int, submission: Submission) -> None:
        del self._open[number]
        self._counts.ended[LOOPS] += 1
        if submission.slot != NO_SLOT and self._slots is not None:
            self._slots.free(submission.slot)
            submission.slot = NO_SLOT
            if self._backlog:
                self._ready(*self._backlog.popleft())
        if submission.future is not None:
            if not self._arrived:
                self._loop.call_soon_threadsafe(self._tell)
            self._arrived.append(submission.future)

    def _ready(self, number: int, submission: Submission) -> None:
        slot = NO_SLOT
        if self._slots is not None:
            free = self._slots.take()
            if free is None:
                self._backlog.append((number, submission))
                return
            submission.slot = slot = free
        assert submission.task is not None
        function, lane, seconds, own, needs = submission.task
        submission.task = None
        count = NO_NEEDS if needs is None else len(needs)
        task = HEAD.pack(function, lane, count, slot, self._rank, number, seconds) + own
        if needs:
            task += b"".join([need.parts[part] for need, part in needs if need.parts is not None])
        self._give(submission.queue, task)

    def _tell(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for future in arrived:
            if not future.done():
                future.set_result(None)
