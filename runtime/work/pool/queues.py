"""A rank's queues, one for each lane: what is next, what others may take, and half of what they have out.

    here only ┐
    own tasks ├──> next: the highest class that there is; in it its own newest, then what is left of
    shelves   ┘    its own on the shelf, then half of what somebody else has out

The newest first is the rest of what it was at; the oldest half, the largest parts of a tree, lies on the
shelf for others whenever that is empty. Between nodes somebody must ask: beyond.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from random import Random

from ...message import World
from .lanes import Lanes
from .large import Large
from .memory import Memory
from .parcel import Head
from .tally import Recorder, Tally
from .victims import Way, choose


class Queues:
    """This rank's. The pool's thread takes the `next`; any thread may `add`, and `offer` behind it."""

    def __init__(
        self, world: World, lanes: Lanes, memory: Memory, near: Way, trace: Recorder | None = None
    ) -> None:
        self._rank = world.node_rank
        self._shelf, self._counts, self._rest = memory.shelf, memory.counts, memory.rest
        self._near, self._random, self._trace = near, Random(world.rank), trace
        self._others = [rank for rank in range(world.node_size) if rank != self._rank]
        self._lanes = lanes
        shelves = len(lanes.all)
        #: For each class its queues: tasks that may only run here, then the lanes that this rank may take.
        self._classes = [(shelves + priority, own) for priority, own in enumerate(lanes.open_to(world.rank))]
        self._closed = lanes.closed_to(world.rank)
        #: For each lane the ranks of the node that cannot run what they have out there.
        self.closed_in = lanes.closed_in(world.node.ranks)
        self._own: list[list[bytes]] = [[] for _ in range(shelves + lanes.classes)]
        #: For each lane the others of the node that can run what is in it.
        self._listeners = [
            [mate for mate in self._others if world.node.ranks[mate] in lane.ranks] for lane in lanes.all
        ]
        self.large = Large(memory.counts, self._rank, shelves, self._closed)
        #: Lanes of which anybody else could run something.
        self._offered = [number for number, lane in enumerate(lanes.all) if lane.ranks - {world.rank}]
        self._given: list[bytes] = []  # got by message, to be run by nobody else
        self._lock = threading.Lock()  # for the queues, and this rank's own shelf
        #: What this rank did in this run, or in the last.
        self.tally: Tally
        self.begin()

    def begin(self) -> None:
        """A new run."""
        self.tally = Tally.of([lane.name for lane in self._lanes.all])

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

    def offer(self) -> None:
        """Let others find what was added, while this rank's thread is at a task."""
        if self._offered:
            with self._lock:
                self._put_out(keep=0)

    def came(self, lane: int, taken: Sequence[bytes]) -> None:
        """Add tasks that were got by message."""
        self._took(lane, taken, far=True)
        with self._lock:
            self._given.append(taken[-1])  # for certain: others would ask for a large one before it is seen
        for task in taken[:-1]:
            self.add(lane, task)

    # -- what the thread takes -------------------------------------------------------------------------

    def next(self) -> bytes | None:
        """A task to run now; before, what others may have of the rest is put out."""
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
        return None

    def anything(self) -> bool:
        """Whether there is something to take, or to put out."""
        return (
            bool(self._given)
            or any(self._own[queue] for here, lanes in self._classes for queue in (here, *lanes))
            or any(self._shelf.left(self._rank, lane) for _, lanes in self._classes for lane in lanes)
            or any(self.large.has(lane) for _, lanes in self._classes for lane in lanes)
            or any(self._look(lanes) is not None for _, lanes in self._classes)
            or any(self._own[lane] and not self._shelf.left(self._rank, lane) for lane in self._closed)
        )

    def tell_refusals(self) -> None:
        """Note what others have out and this rank cannot run; it has nothing to do."""
        for lane, why in self._closed.items():
            if any(self._shelf.left(rank, lane) for rank in self._others):
                self.tally.lanes[lane].refused[why] += 1

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
        for lane in lanes:
            if declared := self._shelf.declared(self._others, lane, self.closed_in[lane]):
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
        if self._trace is not None:
            about = {"tasks": len(taken), "lane": lane, "from": victim}
            self._trace.span("steal", "near", start_ns, end_ns, **about)
        with self._lock:
            self._own[lane] += taken
            return self._own[lane].pop()

    def _took(self, lane: int, taken: Sequence[bytes], *, far: bool) -> None:
        tally = self.tally.lanes[lane]
        tally.steals += 1
        tally.stolen += len(taken)
        tally.far += len(taken) if far else 0
        tally.nbytes += sum(map(len, taken))
