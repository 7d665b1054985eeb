"""The world: where this rank stands among the others, and everything it needs to talk to them.

async def main(world: World) -> None:
    print(f"rank {world.rank} of {world.size} on {world.host}")
    await world.allreduce(array)                    # the world is a communicator
    channel = await world.channel("news")           # messages of any content
    window = await world.window(1 << 20)            # memory shared with the ranks of this node
    board = await world.board(64)                   # counters in such memory, to be awaited
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
from mpi4py import MPI

from ..errors import Mistake
from .board import Board
from .channel import Channel
from .communicator import Communicator
from .failure import Failures, ranks_text
from .operation import Operation
from .quota import quota_cores
from .selector import MpiLoop
from .signals import Stop
from .switchboard import Switchboard
from .window import Window
from .wire import ESCAPE

PINGS = 20  # the fastest of 20 round trips is within a few microseconds of undisturbed
HOST_BYTES = 64
MOST_CORES = 8192  # that Linux numbers; a machine's may have gaps
SHOWN_BYTES = 256  # of a value on which the ranks do not agree


class World(Communicator):
    """All ranks, as this one sees them. `run(main)` makes it and hands it to main.

    As a communicator it is the user's own: no part of Weft sends on it.
    """

    def __init__(self, loop: MpiLoop, failures: Failures, stop: Stop) -> None:
        super().__init__(MPI.COMM_WORLD.Dup(), loop.mpi, "world")
        #: The event loop.
        self.loop = loop
        #: Name of this rank's host, and of every rank's.
        self.host = socket.gethostname()
        self.hosts = self._texts(self.host, HOST_BYTES)
        #: The ranks that share this rank's memory, as a communicator.
        self.node = Communicator(ranks_of_node(), loop.mpi, "node")
        #: This rank's number on its node, and how many ranks the node has.
        self.node_rank, self.node_size = self.node.rank, self.node.size
        #: How many cores the ranks of this node may use together.
        self.node_cores = self._count_cores()
        loop.mpi.policy = replace(loop.mpi.policy, crowded=self.node_size > self.node_cores)
        #: Process ids of the ranks of this node.
        self.node_pids = self._find_pids()
        #: The ranks of every node; nodes are ordered by their first rank.
        self.nodes = self._find_nodes()
        #: What to add to this rank's time.monotonic_ns() to get that of rank 0.
        self.clock_offset_ns = self._compare_clocks()
        #: What rank 0's process ends with after a stop by signal; None: 128 + signal. A program that only a
        #: signal ends sets 0 when it has done so in order.
        self.stop_status: int | None = None
        self._failures = failures
        self._stop = stop
        self._switchboard = Switchboard(Communicator(MPI.COMM_WORLD.Dup(), loop.mpi, "channels"))
        self._channels: dict[str, Channel] = {}
        self._windows: list[Window] = []
        self._background: set[asyncio.Task[Any]] = set()
        #: Background tasks that are not cancelled when main is over, but awaited.
        self.closings: set[asyncio.Task[Any]] = set()
        # For parts of Weft that duplicate it, apart from what others call on the node meanwhile.
        self._node_apart = Communicator(self.node.quiet.Dup(), loop.mpi, "node apart")
        self._position = ("the start of main", time.monotonic())

    # -- talking ------------------------------------------------------------------------------------

    async def channel(self, name: str) -> Channel:
        """The channel of that name; made at the first call."""
        if name not in self._channels:
            self._channels[name] = Channel(self._switchboard, name)
        return self._channels[name]

    async def window(self, nbytes: int, *, node: Communicator | None = None) -> Window:
        """Memory shared with the ranks of this node, `nbytes` of it this rank's; collective over the node.

        `node` is a duplicate of the world's, for who makes windows while others use that. The world closes
        it at the end, if nobody did before. Cancelling ends the waiting only.
        """
        return await Window.allocate(node or self.node, nbytes, keep=self._keep)

    async def board(self, counters: int, numbers: int = 0, *, name: str = "board") -> Board:
        """Counters that the ranks of this node see and await (board.py); collective over the node.

        The world closes it at the end, if nobody did before. Cancelling ends the waiting only.
        """
        return await Board.allocate(self.node, counters, numbers, name=name, keep=self._keep)

    async def apart(self, name: str, *, node: bool = False) -> Communicator:
        """A communicator of all ranks (or of this `node`'s) for a part of Weft, to be freed by it.

        Made apart from what the user calls on the world meanwhile, in whatever order. Of parts that are made
        at once all ranks make them in one order.
        """
        return await (self._node_apart if node else self._switchboard.comm).duplicate(name)

    def _keep(self, new: Window) -> None:
        # When it is made, not when who asked goes on: of who was cancelled between (with main's end) MPICH
        # 5.0.2 found the window in MPI_Finalize, and ended the job with "Device or resource busy".
        self._windows = [*(window for window in self._windows if not window.closed), new]

    async def agree(self, name: str, value: str | bytes, *, among: Communicator | None = None) -> None:
        """Make sure that all ranks hold the same `value`; otherwise all raise a Mistake naming who differs.

        Collective. For what must be equal from the start: versions, job files. `among` is a communicator of
        their own, of all ranks or of some, for who asks while others use the world.
        """
        comm = among or self
        data = value.encode(errors=ESCAPE) if isinstance(value, str) else value
        record = np.zeros(32 + SHOWN_BYTES, np.uint8)
        record[:32] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        shown = data[:SHOWN_BYTES]
        record[32 : 32 + len(shown)] = np.frombuffer(shown, np.uint8)
        records = np.empty((comm.size, record.size), np.uint8)
        await comm.allgather(record, records, what=f"agreement on {name}")
        groups: dict[bytes, list[int]] = {}
        for rank, told in zip(comm.ranks, records, strict=True):
            groups.setdefault(told.tobytes(), []).append(rank)
        if len(groups) > 1:
            raise Mistake(disagreement(name, groups, self.hosts))

    # -- what this rank is doing ----------------------------------------------------------------------

    def position(self, text: str) -> None:
        """Say what this rank is doing now ("step 41: evaluating"): ranks that wait too long for it tell."""
        self._position = (text, time.monotonic())

    def where(self) -> tuple[str, float]:
        """The last position, and when it was said (time.monotonic())."""
        return self._position

    # -- tasks and their end --------------------------------------------------------------------------

    def background(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task that runs beside main, and is cancelled when main is over on all ranks.

        An exception that it raises ends the job, at once: nobody needs to await it.
        """
        task = self.loop.create_task(coroutine, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def closing(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """The same for what ranks close together, which has some seconds more when main is over (DRAIN_S).

        Cancelled halfway, a rank had met the others for one window, and they it for another: each freed its
        own, and they waited for each other in MPI for ever.
        """
        task = self.background(coroutine, name)
        self.closings.add(task)
        task.add_done_callback(self.closings.discard)
        return task

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.local(error, f"background task {task.get_name()!r}")

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for (Ctrl-C, SIGTERM, SIGUSR1), here or on another rank.

        Ranks learn of it at slightly different times: agree by a collective on where to stop.
        """
        return self._stop.signal is not None

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call `callback()` in the loop when a stop is asked for; main is to return soon after.

        Without any callback a stop cancels main. Signals.py tells how much time launchers leave. Mistake for
        an `async def`, which nobody would await: a stop did nothing then.
        """
        if inspect.iscoroutinefunction(callback):
            raise Mistake(
                f"on_stop was given {callback!r:.80}, an `async def`; give a plain function, as an "
                "asyncio.Event's `set`, or one that calls asyncio.create_task"
            )
        self._stop.callbacks.append(callback)
        if self.stopping:
            callback()

    def meetings(self) -> list[Operation]:
        """To close what other ranks have not begun to close yet: they do in `close`, if not before."""
        begun = [window.meeting for window in self._windows if window.meeting]
        return [meeting.arrival for meeting in begun if not meeting.done()]

    async def close(self) -> None:
        """End what is still open; collective, by `run`, when nothing is under way any more."""
        for window in await self._in_order():
            await window.close()
        await self._switchboard.close()
        for comm in list(self.selector.communicators):
            comm.free()

    async def _in_order(self) -> list[Window]:
        """What is still open here, first what some rank of the node has begun to close (and was cancelled).

        Its barrier is posted there, and met the one for whatever else this rank closed first: each freed
        another window, and they waited for each other in MPI for ever.
        """
        left = sorted((window for window in self._windows if not window.closed), key=lambda one: one.key)
        of = {fingerprint(window.key): window for window in left}
        begun = sorted(
            (window.meeting.key[1], mark) for mark, window in of.items() if window.meeting is not None
        )
        comm = self._switchboard.comm  # on the world's own others may have left a collective, after a stop
        most = np.array([len(begun)], np.int64)
        await comm.allreduce(most, "max", what="every rank to close what it shares")
        if not most[0]:
            return left
        mine = np.zeros(int(most[0]), np.int64)
        mine[: len(begun)] = [mark for _, mark in begun]
        everyone = np.empty((self.size, mine.size), np.int64)
        await comm.allgather(mine, everyone, what="what every rank has begun to close")
        first = [of[mark] for mark in everyone[list(self.node.ranks)].ravel().tolist() if mark in of]
        return list(dict.fromkeys([*first, *left]))

    # -- the start --------------------------------------------------------------------------------------

    def _texts(self, text: str, nbytes: int) -> tuple[str, ...]:
        mine = np.zeros(nbytes, np.uint8)
        data = text.encode()[:nbytes]
        mine[: len(data)] = np.frombuffer(data, np.uint8)
        texts = np.empty((self.size, nbytes), np.uint8)
        self.mpi.Allgather(mine, texts)
        return tuple(shown_text(row.tobytes()) for row in texts)

    def _count_cores(self) -> int:
        # The union: a launcher may have bound every rank to a core of its own. Not the machine's: of a part
        # of a node (Slurm's, a container's) ranks that shared cores took them from each other while they
        # waited.
        allowed = np.zeros(MOST_CORES, np.uint8)
        allowed[list(os.sched_getaffinity(0))] = 1
        self.node.mpi.Allreduce(MPI.IN_PLACE, allowed, MPI.MAX)
        quota = np.array([min(quota_cores(), MOST_CORES)])
        self.node.mpi.Allreduce(MPI.IN_PLACE, quota, MPI.MAX)
        return max(1, min(int(allowed.sum()), int(quota[0])))

    def _find_pids(self) -> list[int]:
        pids = np.empty(self.node_size, np.int64)
        self.node.mpi.Allgather(np.array([os.getpid()], np.int64), pids)
        return [int(pid) for pid in pids]

    def _find_nodes(self) -> tuple[tuple[int, ...], ...]:
        leader = np.array([self.rank], np.int64)
        self.node.mpi.Bcast(leader)
        leaders = np.empty(self.size, np.int64)
        self.mpi.Allgather(leader, leaders)
        nodes: dict[int, list[int]] = {}
        for rank in range(self.size):
            nodes.setdefault(int(leaders[rank]), []).append(rank)
        return tuple(tuple(nodes[leader]) for leader in sorted(nodes))

    def _compare_clocks(self) -> int:
        """Every node's first rank plays ping-pong with rank 0; the fastest round trip counts.

        Measured once: clocks that no time service keeps together drift by some 10 us a second.

        A node's ranks share one clock. The other's time is taken in the middle of the round trip, so the
        error is at most half of it: some 10 us over TCP, 1 us over a fast network.
        """
        offset = np.zeros(1, np.int64)
        for node in self.nodes[1:]:
            if self.rank == 0:
                self._answer_pings(node[0])
            elif self.rank == node[0]:
                offset[0] = self._ping()
        self.node.mpi.Bcast(offset)
        return int(offset[0])

    def _ping(self) -> int:
        theirs = np.zeros(1, np.int64)
        trips = []
        for _ in range(PINGS):
            sent = time.monotonic_ns()
            self.mpi.Send(theirs, 0)
            self.mpi.Recv(theirs, 0)
            back = time.monotonic_ns()
            trips.append((back - sent, int(theirs[0]) - (sent + back) // 2))
        return min(trips)[1]

    def _answer_pings(self, rank: int) -> None:
        mine = np.zeros(1, np.int64)
        for _ in range(PINGS):
            self.mpi.Recv(mine, rank)
            mine[0] = time.monotonic_ns()
            self.mpi.Send(mine, rank)


def disagreement(name: str, groups: dict[bytes, list[int]], hosts: tuple[str, ...]) -> str:
    """What to say when ranks hold different values; `groups` maps digest and beginning to ranks."""
    lines = [f"the ranks do not hold the same {name}; give all of them the same one:"]
    for record, ranks in groups.items():
        where = ", ".join(dict.fromkeys(hosts[rank] for rank in ranks))
        value = shown_text(record[32:])
        same = sum(shown_text(other[32:]) == value for other in groups) > 1
        digest = f" (sha256 {record[:32].hex()[:12]}...)" if same else ""
        lines.append(f"  {ranks_text(ranks)} (host {where}): {value!r}{digest}")
    return "\n".join(lines)


def fingerprint(key: tuple[str, int]) -> int:
    """A number in place of a key, as an array holds it; never 0 but by chance."""
    digest = hashlib.blake2b(repr(key).encode(errors=ESCAPE), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def shown_text(data: bytes) -> str:
    """Text padded with zeros, as text."""
    return data.rstrip(b"\0").decode(errors="replace")


def ranks_of_node() -> MPI.Intracomm:
    """The communicator of the ranks that share memory with this one."""
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    assert isinstance(node, MPI.Intracomm)
    return node
