"""The loop's part of a pool: what moves by message. Work from other nodes, results to them, and the end.

    thread finds nothing ──> ask a rank of another node ──> its loop takes for us from the fullest shelf of
                             its node and answers with whole tasks, or with none; then, after a pause that
                             doubles, ask another

Tasks and results that are too large for a place in shared memory travel the same way inside a node. The end
is agreed on by rounds of a non-blocking all-reduce, each joined by a rank that has nothing to do (counts.py).
"""

from __future__ import annotations

import asyncio
import sys
import time
from math import inf
from random import Random
from typing import Any

import numpy as np

from ...message import Channel, Communicator, Message, World
from .counts import Counts, Rounds
from .home import Home
from .lanes import Lanes
from .memory import Memory
from .parcel import Head, for_message, from_message
from .queues import Queues
from .victims import Way, fullest, pause_s
from .worker import Outside, Worker

# The loop's thread wants the interpreter several times for an answer, and a task in plain Python gives it up
# after Python's switch interval only: with 5 ms a theft between nodes took 11 ms, with 0.5 ms it took 5, but
# the changes cost such tasks a quarter of their core; with 1 ms a few percent.
SWITCH_S = 1e-3


class Switching:
    """The interpreter's switch interval while runs of this process may be asked from other nodes.

    Of any number of pools: where each put back what it had found, the last that ended could put back another
    pool's, for good.
    """

    def __init__(self) -> None:
        self._runs, self._before_s = 0, 0.0

    def begin(self) -> None:
        """A run begins."""
        if not self._runs:
            self._before_s = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH_S, self._before_s))
        self._runs += 1

    def end(self) -> None:
        """It is over."""
        self._runs -= 1
        if not self._runs:
            sys.setswitchinterval(self._before_s)


SWITCHING = Switching()


class Beyond:
    """This rank's part. It answers from the beginning; between `begin` and `stop` it asks."""

    def __init__(
        self,
        world: World,
        channel: Channel,
        comm: Communicator,
        memory: Memory,
        lanes: Lanes,
        queues: Queues,
        worker: Worker,
        home: Home,
    ) -> None:
        self._world, self._channel = world, channel
        #: The pool's own, of all ranks.
        self.comm = comm
        self._lanes, self._queues, self._worker, self._home = lanes, queues, worker, home
        #: What it costs to take something by message.
        self.far = Way(0.0, 0.0)
        self._counts: Counts = memory.counts
        self._shelf = memory.shelf
        self._rest = memory.rest
        self._slots = memory.slots is not None
        self._loop = world.loop
        self._random = Random(world.rank)
        self._others = [node for node in world.nodes if world.rank not in node]
        self._mine = [lane for lanes_of in lanes.open_to(world.rank) for lane in lanes_of]
        self._idle, self._quiet = asyncio.Event(), asyncio.Event()
        #: Set when this run is given up on all ranks: a main has failed, here or elsewhere.
        self.given_up = asyncio.Event()
        self._run = 0  # its number, by which one that others give up is told from the next
        self._over = False
        self._late: list[tuple[int, int, bool, list[bytes]]] = []  # results that no run is at work to take
        self._running: list[asyncio.Task[Any]] = []
        worker.outside = Outside(self._from_thread(self._is_idle), self._from_thread(self._send))
        channel.serve(self._answer)

    def _from_thread(self, callback: Any) -> Any:
        return lambda *args: self._loop.call_soon_threadsafe(callback, *args)

    def enter(self) -> None:
        """A run is about to begin: as soon as all ranks are here, any of them can give it up."""
        self._run += 1
        self.given_up.clear()

    async def start(self) -> None:
        """All ranks are here."""
        await self.comm.barrier(what="the start of a pool's run")

    def begin(self) -> None:
        """A run has begun."""
        self._over = False
        late, self._late = self._late, []
        for result in late:
            self._send(*result)
        selector = self._loop.mpi
        selector.beside.add(self._busy)
        if self._slots:  # a watch has the loop look without sleeping for a while after every message
            selector.watch(self)
        if self._others:
            SWITCHING.begin()
        background = self._world.background
        self._running = [background(self._ask(), "the pool asks others for tasks")]
        if self._others:
            self._loop.mpi.expecting += 1  # who asks waits for this rank's next look at MPI: at most 1 ms
            self._running.append(background(self._agree_on_the_end(), "the pool agrees on its end"))

    def give_up(self) -> bool:
        """End this run on all ranks; False if it is over here."""
        if self._over:
            return False
        for rank in range(self._world.size):
            if rank != self._world.rank:
                self._channel.post(rank, self._run)
        self.given_up.set()
        return True

    def stop(self) -> None:
        """Ask no more, and give back what `begin` took of the loop: the run is over, or was given up."""
        self._over = True
        self._is_idle()
        self._loop.mpi.unwatch(self)
        self._loop.mpi.beside.discard(self._busy)
        if self._others:
            SWITCHING.end()
            self._loop.mpi.expecting -= 1

    def pass_by(self) -> None:
        """A run has begun that was given up here before: others agree with this rank on its end still."""
        self._over = True
        self._running = []
        if self._others:
            self._running = [self._world.background(self._agree_on_the_end(), "the pool agrees on its end")]

    async def end(self) -> None:
        """The run is over, or was given up, on all ranks: the messages that belong to it have come."""
        for task in self._running:
            await task  # the last answer must have come: it could bring tasks, if this were not the end
        # Nobody spawns for the next while one still looks.
        await self.comm.barrier(what="the end of a pool's run")

    async def close(self) -> None:
        """Nobody is answered any more, and what comes late is dropped; collective."""
        await self.comm.barrier(what="the close of a pool")
        self._channel.close()

    def look(self) -> bool:
        """Collect results that have come home while the thread is at a task; called by the selector."""
        if not (self._home.open and self._worker.engaged(self._world.node_rank)):
            return False
        if found := self._home.collect():
            self._worker.offer()
        return found

    def _busy(self) -> bool:
        """Whether the thread has something to do: the selector then naps longer."""
        return not self._worker.idle

    def _is_idle(self) -> None:
        self._idle.set()
        self._quiet.set()

    # -- asking ----------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        while not self._over:
            await self._idle.wait()
            self._idle.clear()
            misses = 0
            while self._worker.idle and not self._over and (rank := self._whom(misses)) is not None:
                start_ns = time.monotonic_ns()
                reply = await self._channel.request(rank)
                lane, taken = reply.body[0], from_message(reply.body[1], reply.arrays)
                tally = self._queues.tally.lanes[lane]
                tally.attempts += 1
                if taken:
                    self._worker.came(lane, taken, start_ns, rank)
                    break
                tally.misses += 1
                misses += 1
                await asyncio.sleep(pause_s(misses, self.far.latency_s))

    def _whom(self, misses: int) -> int | None:
        """A rank that may have something: of this node what is too large for its shelf, else of another.

        After `misses` answers with nothing. A rank of this node may keep what it has, since that is not worth
        moving, for as long as the task lasts that it is at. Asked every time, it kept those that were idle
        here from all that other nodes had; so every second question goes there.
        """
        node = self._world.node.ranks
        large = [
            node[index]
            for index, words in enumerate(self._counts.large)
            if index != self._world.node_rank and any(words[lane] for lane in self._mine)
        ]
        if large and not (self._others and misses % 2):
            return self._random.choice(large)
        return self._random.choice(self._random.choice(self._others)) if self._others else None

    # -- answering -------------------------------------------------------------------------------------

    async def _answer(self, message: Message) -> Any:
        if isinstance(message.body, bytes):  # the opening measures the way
            return None
        if isinstance(message.body, int):  # a late one is of the run before: several may give up a run
            if message.body == self._run:
                self.given_up.set()
            return None
        if not message.wants_reply:
            number, failed, parts = message.body
            self._home.arrived(number, failed, from_message(parts, message.arrays))
            self._worker.offer()
            return None
        lane, taken = self._give(message.source)
        parcels, arrays = for_message(taken)
        await message.reply([lane, parcels], *arrays)
        return None

    def _give(self, thief: int) -> tuple[int, list[bytes]]:
        """Tasks and their lane, or none and the lane that was looked into last.

        A rank of this node takes from the shelves itself, and asks for what is too large for them.
        """
        near = thief in self._world.node.ranks
        lane = 0
        for lanes in self._lanes.open_to(thief):
            for lane in () if near else lanes:
                if taken := self._from_shelves(lane):
                    return lane, taken
            if taken := self._queues.large.take(lanes, self.far):
                return Head.of(taken[0]).lane, taken
        return lane, []

    def _from_shelves(self, lane: int) -> list[bytes]:
        mates, closed = range(self._world.node_size), self._queues.closed_in[lane]
        declared = self._shelf.declared(mates, lane, closed)
        victim = fullest(declared, self.far)
        if victim is None:
            if declared:
                self._queues.tally.lanes[lane].refused["not worth sending"] += 1
            return []
        taken = self._shelf.take(victim.rank, lane)
        if taken:
            self._rest.ring(victim.rank)  # which may have more of what it cannot run itself
        return taken

    def _send(self, home: int, number: int, failed: bool, parts: list[bytes]) -> None:
        if self._over:  # given up: nobody may be there to receive it before the next run
            self._late.append((home, number, failed, parts))
            return
        parcels, arrays = for_message(parts)
        message = self._channel.send(home, [number, failed, parcels], *arrays)
        self._world.background(message, f"the result of a task to rank {home}")

    # -- the end ---------------------------------------------------------------------------------------

    async def _agree_on_the_end(self) -> None:
        rounds = Rounds()
        over = False
        while not over:
            while not (self._over or (self._worker.idle and self._home.quiet)):
                await self._quiet.wait()
                self._quiet.clear()
            # Who has given up joins, too: others may be in this round, which cannot be recalled, and would be
            # one round ahead in the next run. All leave after the same one.
            counts = np.array([*self._counts.mine(), self._over], np.int64)
            # Others may be at work for hours before they join: nothing to report.
            await self.comm.allreduce(counts, what="a pool's agreement on its end", patience_s=inf)
            ended, spawned, gave_up = map(int, counts)
            over = rounds.over(ended, spawned) or gave_up == self._world.size
            if not over:
                await asyncio.sleep(self.far.latency_s)
        self._worker.stop()
