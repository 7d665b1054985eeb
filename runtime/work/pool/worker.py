"""The pool's thread on one rank: takes the next task, runs it, sees that its result gets home, or rests.

    collect what came home ──> next (queues.py) ──> run ──> its result: kept, to a slot, or by message
                                     └─ nothing: look again for a while, ask other nodes, sleep until rung

One task at a time; beside it the loop goes on, which can stop it between tasks only.
"""

from __future__ import annotations

import inspect
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ...errors import Mistake
from ...message import World
from .counts import THREADS
from .home import Home
from .memory import Memory
from .parcel import HEAD, NO_NEEDS, NO_SLOT, pack, packed, unpack, unpack_all
from .queues import Queues
from .tally import Recorder

# Whoever is at work puts more out, or sends a result, within some 100 us, and a wake-up takes as long. Not
# where ranks share cores: there whoever has the work needs this one.
SPIN_S = 200e-6
LEARNED = 1 / 8  # weight of the last run in what a function's tasks are taken to cost

# A task that has run for so long offers what it spawns at once, not when it ends, and leaves to the loop what
# comes home meanwhile.
SOON_NS = 1_000_000


NOT_BEGUN = (inspect.iscoroutine, inspect.isgenerator, inspect.isasyncgen)
"""Whether an object is work that somebody must run."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What the thread asks of the loop, at once and without waiting: any thread may call these."""

    idle: Callable[[], None]
    """Nothing is to be found on this node."""
    send: Callable[[int, int, bool, list[bytes]], None]
    """Send a result to its home: rank, number, whether it failed, parts."""


class Worker:
    """What runs on the thread, in `work`, and what other threads tell it."""

    def __init__(
        self,
        world: World,
        pool: Any,
        functions: Mapping[str, Callable[..., object]],
        queues: Queues,
        memory: Memory,
        home: Home,
        *,
        task_s: float,
        trace: Recorder | None,
    ) -> None:
        self._pool, self._home = pool, home
        self._world_rank, self._rank = world.rank, world.node_rank
        self._queues, self._trace = queues, trace
        self._slots, self._counts, self._rest = memory.slots, memory.counts, memory.rest
        self._one_node = len(world.nodes) == 1
        self._others = [rank for rank in range(world.node_size) if rank != self._rank]
        #: For each rank of the node, as the world counts, its number in the node.
        self._mates = {rank: index for index, rank in enumerate(world.node.ranks)}
        self._spin_s = 0.0 if world.loop.mpi.policy.crowded else SPIN_S
        self._functions = [functions[name] for name in sorted(functions)]
        self._names = sorted(functions)
        #: By function: what a task of it takes, measured here, or the pool's first guess.
        self.seconds = [task_s] * len(functions)
        self._ident = 0  # of the thread
        self._began_ns = memory.counts.began_ns[self._rank]
        self._bells = world.selector.bells  # of the ranks' loops
        #: When a question was asked that has brought tasks, and whom; told when the thread sees them.
        self._arrival: tuple[int, int] | None = None
        self.outside: Outside
        #: Whether the thread has found nothing to do and rests.
        self.idle = False
        self.stopped = True

    def begin(self) -> None:
        """A new run."""
        self._queues.begin()
        self.stopped = self.idle = False

    def stop(self) -> None:
        """Have the thread return after the task that it is at; from any thread."""
        self.stopped = True
        self.wake()

    @property
    def inside(self) -> bool:
        """Whether this is the pool's thread."""
        return threading.get_ident() == self._ident

    def wake(self) -> None:
        """There is something to look at; from any thread.

        Without a memory barrier, which other ranks need: here the interpreter's lock is one. MPI's lets go of
        that lock, and each submission had the two threads change places: 22 us, not 12.
        """
        self._rest.ring(self._rank)

    def offer(self) -> None:
        """Have what was added found, by this rank's thread or, while that is at a task, by others."""
        if self._began_ns[0]:
            self._queues.offer()
        self.wake()

    def engaged(self, rank: int) -> bool:
        """Whether the thread of the node's rank `rank` has been at a task for a while."""
        began_ns: int = self._counts.began_ns[rank][0]
        return began_ns > 0 and time.monotonic_ns() - began_ns > SOON_NS

    def spawn(self, queue: int, task: bytes) -> None:
        """Add a task for the one that the thread is at."""
        self._counts.spawned[THREADS] += 1
        self._queues.add(queue, task)
        if self.engaged(self._rank):
            self._queues.offer()

    def came(self, lane: int, taken: Sequence[bytes], start_ns: int, rank: int) -> None:
        """Take tasks that were got by message, on the loop's thread; rank `rank` was asked at `start_ns`."""
        self._arrival = start_ns, rank
        self.idle = False
        self._queues.came(lane, taken)
        self.wake()

    # -- the thread ------------------------------------------------------------------------------------

    def work(self) -> None:
        """Run tasks until stopped, or until no task is left, where this is the only node."""
        home = self._home
        idle_since = 0.0
        self._ident = threading.get_ident()
        while not self.stopped:
            if home.open:
                home.collect()
            task = self._next()
            if self._arrival is not None:
                self._tell_arrival(*self._arrival)
            if task is not None:
                self._run(task)
                idle_since = 0.0
            elif not idle_since:
                idle_since = time.perf_counter()
            elif time.perf_counter() - idle_since < self._spin_s:
                os.sched_yield()  # and let the loop's thread have the interpreter
            elif self._one_node and self._counts.over():
                self.stopped = True
                for rank in self._others:
                    self._rest.ring(rank)
            else:
                self._sleep()

    def _next(self) -> bytes | None:
        self._began_ns[0] = time.monotonic_ns()  # before the look: what is added behind it is for `offer`
        task = self._queues.next()
        if task is None:
            self._began_ns[0] = 0
        return task

    def _tell_arrival(self, start_ns: int, rank: int) -> None:
        self._arrival = None
        if self._trace is not None:
            self._trace.span("steal", "far", start_ns, time.monotonic_ns(), asked=rank)

    # -- a task ----------------------------------------------------------------------------------------

    def _run(self, task: bytes) -> None:
        self.idle = False
        function, lane, needs, slot, home, number, _ = HEAD.unpack_from(task)
        (body, arrays), at = unpack(task, HEAD.size)
        start_ns = time.monotonic_ns()
        failed = False
        try:
            call = self._functions[function]
            if needs == NO_NEEDS:
                value = call(self._pool, body, *arrays)
            else:
                value = call(self._pool, body, *arrays, needs=unpack_all(task, at, needs))
            end_ns = time.monotonic_ns()
            parts = packed(value) if number else unasked(self._names[function], value)
        except BaseException as error:  # a library's sys.exit() is no wish of this rank's to end
            if not number:
                error.add_note(f"(in task {self._names[function]!r} of the pool)")
                if not isinstance(error, Exception) or isinstance(error, StopIteration):
                    raise told_as_error(error) from None
                raise
            end_ns = time.monotonic_ns()
            failed = True
            trace = "".join(traceback.format_exception(type(error), error, own_frames(error)))
            trace = trace.encode(errors="backslashreplace").decode()  # the name of a file may not be UTF-8
            parts = [pack([self._world_rank, socket.gethostname(), trace])]
        if home == self._world_rank and number:
            self._home.arrived(number, failed, parts)
        elif number:
            self._deliver(home, slot, number, failed, parts)
        else:
            self._counts.ended[THREADS] += 1
        self._began_ns[0] = 0
        self._tell(function, lane, home if number else self._world_rank, start_ns, end_ns)

    def _deliver(self, home: int, slot: int, number: int, failed: bool, parts: list[bytes]) -> None:
        """Get a result home: through shared memory, or by message."""
        mate = self._mates.get(home)
        slots = self._slots
        if (
            mate is not None
            and slots is not None
            and slot != NO_SLOT
            and slots.put(mate, slot, number, failed, parts)
        ):
            self._counts.sync()
            if not self._rest.ring(mate) and self._bells is not None and self.engaged(mate):
                self._bells.ring(home)  # its loop collects what its thread has no time for
        else:
            self.outside.send(home, number, failed, parts)

    def _tell(self, function: int, lane: int, home: int, start_ns: int, end_ns: int) -> None:
        seconds = (end_ns - start_ns) * 1e-9
        tally = self._queues.tally
        tally.lanes[lane].ran += 1
        name = self._names[function]
        total = tally.functions.get(name)
        if total is None:
            total = tally.functions[name] = [0, 0.0]
            self.seconds[function] = seconds
        total[0] += 1
        total[1] += seconds
        self.seconds[function] += LEARNED * (seconds - self.seconds[function])
        if self._trace is not None:
            self._trace.span("compute", name, start_ns, end_ns, lane=lane, home=home)

    # -- nothing to do ---------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Until somebody rings who has put something out, or has something to say."""
        if not self.idle:
            self.idle = True
            self._queues.tell_refusals()
        self.outside.idle()
        self._rest.nap()
        self._counts.sync()
        if not self._anything():
            self._rest.sleep()
        self._rest.woke()

    def _anything(self) -> bool:
        """Whether there is something to do after all."""
        return (
            self.stopped
            or (self._home.open and self._slots is not None and self._slots.any())
            or self._queues.anything()
            or (self._one_node and self._counts.over())
        )


def own_frames(error: BaseException) -> TracebackType | None:
    """The traceback of what a task raised, without the frames that called it; of anything else all of it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not Worker._run.__code__:
        trace = trace.tb_next
    return trace.tb_next if trace is not None and trace.tb_next is not None else error.__traceback__


def unasked(name: str, value: object) -> list[bytes]:
    """Nothing of what a spawned task has returned. Mistake where that is its work, which is not done."""
    if value is not None and any(kind(value) for kind in NOT_BEGUN):
        if inspect.iscoroutine(value):
            value.close()
        raise Mistake(
            f"the spawned task {name!r} returned {value!r:.80}, which nobody runs: its function, a lambda"
            " maybe, calls one that is `async def`, or has a `yield`; let it call `asyncio.run`, or consume"
            " the generator"
        )
    return []


def told_as_error(error: BaseException) -> RuntimeError:
    """What stands for what a task raised and the loop must not see: told the same.

    A future takes no StopIteration (nor does a generator, PEP 479). What is no Exception has a meaning for
    the loop: a SystemExit ended the job then and there, one of status 0 as if all had been done.
    """
    told = RuntimeError(f"a task raised {error!r}").with_traceback(own_frames(error))
    for note in error.__notes__:
        told.add_note(note)
    return told
