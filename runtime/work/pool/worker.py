"""The pool's thread on one rank: takes the next task, runs it, sees that its result gets home, or rests.

    here only ┐
    own tasks ├──> next: the highest class that there is; in it its own newest, then what is left of
    shelves   ┘    its own on the shelf, then half of what somebody else has out

The newest first is the rest of what it was at; the oldest half, the largest parts of a tree, lies on the
shelf for others whenever that is empty.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from ...message import World
from .home import Home
from .lanes import Lanes
from .large import Large
from .memory import Memory
from .parcel import HEAD, NO_SLOT, Head, pack, packed, unpack, unpack_all
from .slots import joined
from .tally import Tally
from .victims import Declared, Way, choose

THREADS = 0  # of the two words of a counter, the one that this thread writes

# Whoever is at work puts more out, or sends a result, within some 100 us, and a wake-up takes as long. Not
# where ranks share cores: there whoever has the work needs this one.
SPIN_S = 200e-6
LEARNED = 1 / 8  # weight of the last run in what a function's tasks are taken to cost

# A task that has run for so long offers what it spawns at once, not when it ends, and leaves to the loop what
# comes home meanwhile.
SOON_NS = 1_000_000


class Recorder(Protocol):
    """What is told of every task that ran and every theft: `observe.Trace` is one."""

    def span(self, track: str, name: str, start_ns: int, end_ns: int, **args: Any) -> None:
        """Record `[start_ns, end_ns)` of `time.monotonic_ns()`; from any thread."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What the thread asks of the loop, at once and without waiting: any thread may call these."""

    idle: Callable[[], None]
    """Nothing is to be found on this node."""
    send: Callable[[int, int, bool, list[bytes]], None]
    """Send a result to its home: rank, number, whether it failed, parts."""


class Worker:
    """The thread and its queue. Any thread may `add`; the loop's calls `offer` behind it."""

    def __init__(
        self,
        world: World,
        pool: Any,
        functions: Mapping[str, Callable[..., object]],
        lanes: Lanes,
        memory: Memory,
        near: Way,
        task_s: float,
    ) -> None:
        self._pool = pool
        self._world_rank, self._rank = world.rank, world.node_rank
        self._shelf, self._slots, self._counts, self._rest = (
            memory.shelf,
            memory.slots,
            memory.counts,
            memory.rest,
        )
        self._near, self._random = near, Random(world.rank)
        self._one_node = len(world.nodes) == 1
        self._others = [rank for rank in range(world.node_size) if rank != self._rank]
        #: The node's rank of each of its ranks in the world.
        self._mates = {rank: index for index, rank in enumerate(world.node.ranks)}
        self._spin_s = 0.0 if world.node_size > (os.cpu_count() or 1) else SPIN_S
        self._functions = [functions[name] for name in sorted(functions)]
        self._names = sorted(functions)
        #: By function: what a task of it takes, measured here, or the pool's first guess.
        self.seconds = [task_s] * len(functions)
        self._lanes = lanes
        shelves = len(lanes.all)
        #: For each class its queues: tasks that may only run here, then the lanes that this rank may take.
        self._classes = [(shelves + priority, own) for priority, own in enumerate(lanes.open_to(world.rank))]
        self._closed = lanes.closed_to(world.rank)
        self._own: list[list[bytes]] = [[] for _ in range(shelves + lanes.classes)]
        self._listeners = [
            [self._mates[rank] for rank in lane.ranks if rank in self._mates and rank != world.rank]
            for lane in lanes.all
        ]
        self.large = Large(memory.counts, self._rank, shelves)
        #: Lanes of which anybody else could run something.
        self._offered = [number for number, lane in enumerate(lanes.all) if lane.ranks - {world.rank}]
        self._given: list[bytes] = []  # got by message, to be run by nobody else
        self._lock = threading.Lock()  # for the queues, and this rank's own shelf
        self._ident = 0  # of the thread
        self._began_ns = memory.counts.began_ns[self._rank]  # the task that it is at
        self._bells = world.selector.bells  # of the ranks' loops
        self._arrival: tuple[int, int] | None = None
        self.home: Home
        self.outside: Outside
        self.trace: Recorder | None = None
        self.tally: Tally
        self.begin()
        #: Whether the thread has found nothing to do and rests.
        self.idle = False
        self.stopped = True

    def begin(self) -> None:
        """A new run."""
        self.tally = Tally.of([lane.name for lane in self._lanes.all])
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
        if self._offered and self._began_ns[0]:
            with self._lock:
                self._put_out(keep=0)
        self.wake()

    def engaged(self, rank: int) -> bool:
        """Whether the thread of the node's rank `rank` has been at a task for a while."""
        began_ns: int = self._counts.began_ns[rank][0]
        return began_ns > 0 and time.monotonic_ns() - began_ns > SOON_NS

    def spawn(self, queue: int, task: bytes) -> None:
        """Add a task for the one that the thread is at."""
        self._counts.spawned[THREADS] += 1
        self.add(queue, task)
        if self._offered and self.engaged(self._rank):
            with self._lock:
                self._put_out(keep=0)

    def add(self, queue: int, task: bytes) -> None:
        """Put a task into a queue: a lane, or behind the lanes a class of what may only run here."""
        if len(task) > self._shelf.place_bytes and queue in self._offered:
            self.large.add(queue, task)
            self._counts.sync()
            for rank in self._listeners[queue]:
                if self._rest.ring(rank):
                    return
        else:
            with self._lock:
                self._own[queue].append(task)

    # -- the thread ------------------------------------------------------------------------------------

    def work(self) -> None:
        """Run tasks until stopped, or until no task is left, where this is the only node."""
        home = self.home
        idle_since = 0.0
        self._ident = threading.get_ident()
        while not self.stopped:
            if home.open:
                home.collect()
            task = self._next()
            if self._arrival is not None:
                self._tell_arrival()
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
        """A task to run now, the others of its kind put out or into their queues."""
        self._began_ns[0] = time.monotonic_ns()  # before the look: what is added behind it is for `offer`
        if self._offered:
            with self._lock:
                sure = self._given or any(self._own[here] for here, _ in self._classes)
                self._put_out(keep=0 if sure else 1)
        for here, lanes in self._classes:
            with self._lock:
                task = self._own_next(here, lanes)
            if task is None and self._others:
                task = self._steal(lanes)
            if task is not None:
                return task
        self._began_ns[0] = 0
        return None

    def _own_next(self, here: int, lanes: Sequence[int]) -> bytes | None:
        own = self._own
        if self._given:
            return self._given.pop()
        if own[here]:
            return own[here].pop()
        for lane in lanes:
            if own[lane]:
                return own[lane].pop()
        for lane in lanes:
            if self.large.has(lane) and (task := self.large.pop(lane)):
                return task
            if self._offered and (taken := self._shelf.take_back(lane)):
                own[lane] += taken
                return own[lane].pop()
        return None

    def _put_out(self, keep: int) -> None:
        """Let others see the oldest half of every queue whose shelf is empty; all of what cannot run here.

        `keep` is how many of the first queue are left out of it, for this rank to run now.
        """
        for lane in self._offered:
            own = self._own[lane]
            if not own:
                continue
            closed = lane in self._closed
            count = len(own) if closed else (len(own) + 1 - keep) // 2
            keep = keep if closed else 0
            if count and not self._shelf.left(self._rank, lane):
                put = self._shelf.put_out(own[:count], lane, self._mean_s(own[:count]))
                del own[:put]
                self._counts.sync()
                for rank in self._listeners[lane]:
                    if put > 0 and self._rest.ring(rank):
                        put -= 1

    def _mean_s(self, tasks: Sequence[bytes]) -> float:
        """What one of some tasks takes, by the tags of a few."""
        few = tasks[:: len(tasks) // 8 + 1]
        return sum(Head.of(task).seconds for task in few) / len(few)

    # -- theft inside the node -------------------------------------------------------------------------

    def _look(self, lanes: Sequence[int]) -> tuple[int, int] | None:
        """Whom to rob, and of what lane."""
        shelf = self._shelf
        for lane in lanes:
            declared = []
            for rank in self._others:
                if left := shelf.left(rank, lane):
                    seconds, nbytes = shelf.means(rank, lane)
                    declared.append(Declared(rank, left, left * seconds, left * nbytes, seconds))
            if declared:
                victim = choose(declared, self._near, self._random)
                if victim is not None:
                    return victim.rank, lane
                self.tally.lanes[lane].refused["not worth it"] += 1
        return None

    def _steal(self, lanes: Sequence[int]) -> bytes | None:
        start_ns = time.monotonic_ns()
        found = self._look(lanes)
        if found is None:
            return None
        victim, lane = found
        taken = self._shelf.take(victim, lane)
        end_ns = time.monotonic_ns()
        tally = self.tally.lanes[lane]
        tally.attempts += 1
        if not taken:
            tally.misses += 1
            return None
        self._took(lane, taken, far=False)
        self._rest.ring(victim)  # which may have more of what it cannot run itself
        if self.trace is not None:
            about = {"tasks": len(taken), "lane": lane, "from": victim}
            self.trace.span("steal", "near", start_ns, end_ns, **about)
        with self._lock:
            self._own[lane] += taken
            return self._own[lane].pop()

    def _took(self, lane: int, taken: Sequence[bytes], *, far: bool) -> None:
        tally = self.tally.lanes[lane]
        tally.steals += 1
        tally.stolen += len(taken)
        tally.far += len(taken) if far else 0
        tally.nbytes += sum(map(len, taken))

    def came(self, lane: int, taken: Sequence[bytes], start_ns: int, rank: int) -> None:
        """Take tasks that were got by message, on the loop's thread; rank `rank` was asked at `start_ns`."""
        self._took(lane, taken, far=True)
        self._arrival = start_ns, rank
        self.idle = False
        with self._lock:
            self._given.append(
                taken[-1]
            )  # for certain: others would ask for a large one before it is looked at
        for task in taken[:-1]:
            self.add(lane, task)
        self.wake()

    def _tell_arrival(self) -> None:
        (start_ns, rank), self._arrival = self._arrival or (0, 0), None
        if self.trace is not None:
            self.trace.span("steal", "far", start_ns, time.monotonic_ns(), asked=rank)

    # -- a task ----------------------------------------------------------------------------------------

    def _run(self, task: bytes) -> None:
        self.idle = False
        function, lane, needs, slot, home, number, _ = HEAD.unpack_from(task)
        (body, arrays), at = unpack(task, HEAD.size)
        start_ns = time.monotonic_ns()
        failed = False
        try:
            call = self._functions[function]
            if needs:
                value = call(self._pool, body, *arrays, needs=unpack_all(task, at, needs))
            else:
                value = call(self._pool, body, *arrays)
            end_ns = time.monotonic_ns()
            parts = packed(value) if number else []
        except Exception as error:
            if not number:
                error.add_note(f"(in task {self._names[function]!r} of the pool)")
                raise
            end_ns = time.monotonic_ns()
            failed = True
            trace = "".join(traceback.format_exception(type(error), error, _own_frames(error)))
            parts = [pack([self._world_rank, socket.gethostname(), trace])]
        if home == self._world_rank and number:
            self.home.arrived(number, failed, parts)
        elif number:
            self._deliver(home, slot, number, failed, parts)
        else:
            self._counts.ended[THREADS] += 1
        self._began_ns[0] = 0
        self._tell(function, lane, home if number else self._world_rank, start_ns, end_ns)

    def _deliver(self, home: int, slot: int, number: int, failed: bool, parts: list[bytes]) -> None:
        """Get a result home: through shared memory, or by message."""
        mate = self._mates.get(home)
        slots = self._slots if mate is not None and slot != NO_SLOT else None
        if slots is not None and mate is not None and slots.put(mate, slot, joined(number, failed, parts)):
            self._counts.sync()
            if not self._rest.ring(mate) and self._bells is not None and self.engaged(mate):
                self._bells.ring(home)  # its loop collects what its thread has no time for
        else:
            self.outside.send(home, number, failed, parts)

    def _tell(self, function: int, lane: int, home: int, start_ns: int, end_ns: int) -> None:
        seconds = (end_ns - start_ns) * 1e-9
        tally = self.tally
        tally.lanes[lane].ran += 1
        name = self._names[function]
        total = tally.functions.get(name)
        if total is None:
            total = tally.functions[name] = [0, 0.0]
            self.seconds[function] = seconds
        total[0] += 1
        total[1] += seconds
        self.seconds[function] += LEARNED * (seconds - self.seconds[function])
        if self.trace is not None:
            self.trace.span("compute", name, start_ns, end_ns, lane=lane, home=home)

    # -- nothing to do ---------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Until somebody rings who has put something out, or has something to say."""
        if not self.idle:
            self.idle = True
            self._tell_refusals()
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
            or any(self._own[queue] for here, lanes in self._classes for queue in (here, *lanes))
            or any(self._shelf.left(self._rank, lane) for _, lanes in self._classes for lane in lanes)
            or any(self.large.has(lane) for _, lanes in self._classes for lane in lanes)
            or bool(self._given)
            or bool(self.home.open and self._slots is not None and self._slots.any())
            or any(self._look(lanes) is not None for _, lanes in self._classes)
            or any(self._own[lane] and not self._shelf.left(self._rank, lane) for lane in self._closed)
            or (self._one_node and self._counts.over())
        )

    def _tell_refusals(self) -> None:
        for lane, why in self._closed.items():
            if any(self._shelf.left(rank, lane) for rank in self._others):
                self.tally.lanes[lane].refused[why] += 1


def _own_frames(error: BaseException) -> Any:
    """The traceback of what a task raised, without the frame of this file that called it."""
    trace = error.__traceback__
    return trace.tb_next if trace is not None and trace.tb_next is not None else trace
