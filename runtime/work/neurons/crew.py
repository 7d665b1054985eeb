"""The ranks of a node at blocks of one request: each takes what is ready, and none waits for a layer.

    front (rank 0)    a new request ─ rings ─ takes blocks like everybody ─ all have ended ─> answer
    helper's thread   asleep ──────── rung ── takes blocks ────────────────────────────────── asleep

A block is a tuple of calls on arrays that all ranks see. The threads need nobody to hand out work: claims.py
says how a block is taken. A helper that has just worked, and is free, watches for the next request for a
millisecond, which spares the next one a wake-up, then sleeps until the front rings.

Whose core has other work does not help (`free`): it takes no block, and comes back as soon as that is done.
Who has taken a block and does not end it, a stopped process say, holds up the request; a front that has only
so much patience gives it up then, and goes on with the next ones as soon as that block has ended after all.
"""

from __future__ import annotations

import asyncio
import select
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from ...errors import WeftError
from ...message import Communicator, World
from ...message.doorbell import Doorbells
from ...message.window import Window
from ..alike import all_or_none
from . import claims

Spans = Callable[[str, int, int, int], None]
"""Told of every block that ran here: its name, the request, start and end in ns of time.monotonic_ns.

Called on the thread that ran it. What it raises counts as raised by the block.
"""

Free = Callable[[], bool]
"""Whether the core of a rank has nothing better to do than another's request; asked before each block."""


def always() -> bool:
    """It has not."""
    return True


CLOSED = -1  # instead of a request
TEXT_BYTES = 8184  # of a traceback, behind its length
NAP_S = 0.5  # a sleeping helper looks so often whether it is to end; a request rings it
LOOKS = 2000  # for a block, before the thread looks whether it is to stop: about 0.1 ms
PATIENCE = 20  # looks for a block that is at home here, before others' count: about 1 us
SPIN_LOOKS = 1_000_000  # for the next request: about 1 ms, 10 times a wake-up
CROWDED_NAP_S = 50e-6  # where ranks share cores, whoever waits gives its core away
GRACE_S = 0.02  # for those who hold no block to leave a request that was given up: the others are named
BUSY_NAP_S = 200e-6  # between a busy helper's looks at whether it is free, while a request is under way


class BlockError(WeftError):
    """A block raised: `rank` of the node, the block's name and the traceback."""

    def __init__(self, rank: int, block: str, trace: str) -> None:
        super().__init__(f"rank {rank} of the node failed at the block {block!r}:\n{trace.rstrip()}")
        self.rank, self.block, self.traceback = rank, block, trace


class BlockHeld(WeftError):
    """A rank of the node has not ended the block that it took; `ranks` are those that have not even now."""

    def __init__(self, ranks: Sequence[int]) -> None:
        who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "a rank"
        super().__init__(f"a request was given up: {who} of the node did not end the block that it had taken")
        self.ranks = ranks


@dataclass(frozen=True, slots=True)
class Job:
    """Blocks to be run again and again: what each needs, its calls, and the order in which ranks look."""

    names: Sequence[str]
    needs: Sequence[Sequence[int]]
    calls: Sequence[Sequence[Callable[[], None]]]
    own: Sequence[int]  # at home here, urgent first
    others: Sequence[int]  # at home elsewhere
    took_s: Any  # a memoryview of doubles that all ranks see: what each block took last
    ranks: int  # of the node, from 0 on, that take part; the others sleep


class Crew:
    """This rank's part; made by `open`, ended by `close` on all ranks of the node."""

    def __init__(
        self, world: World, job: Job, spans: Spans | None, free: Free, window: Window, bells: Doorbells
    ) -> None:
        self._world, self._job, self._spans, self._window = world, job, spans, window
        self._free = free if world.node_rank else always
        self._rank, self._ranks = world.node_rank, world.node_size
        self._book = claims.book(job.needs, job.own, job.others)
        count = claims.words(len(job.needs), self._ranks)
        self._words = window.array(0, np.int64, count)
        self._texts = [
            window.array(0, np.uint8, 8 + TEXT_BYTES, 8 * count + (8 + TEXT_BYTES) * rank)
            for rank in range(self._ranks)
        ]
        self._bells = bells
        self._crowded = world.loop.mpi.policy.crowded
        self._request, self._stopped, self._busy = 0, False, False
        self._failed = False  # the last request has, and not all have left it yet
        self._loop = world.loop
        #: On the front, one for each request.
        self._asked: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard: asyncio.Task[None]

    @classmethod
    async def open(
        cls, world: World, node: Communicator, job: Job, spans: Spans | None = None, free: Free = always
    ) -> Self:
        """Collective over `node`; all but `own`, `others` and the calls' arrays alike on its ranks."""
        # Behind the words a place for every rank's traceback.
        nbytes = 8 * claims.words(len(job.needs), world.node_size) + (8 + TEXT_BYTES) * world.node_size
        window = await world.window(nbytes if world.node_rank == 0 else 0, node=node)
        arrival = node.barrier(what="doorbells of an engine")
        bells = await node.meet(arrival, lambda: Doorbells(node.quiet))
        self = None
        try:
            async with all_or_none(node):
                self = cls(world, job, spans, free, window, bells)
                # Before the thread begins: the world may end while others are waited for.
                self._guard = world.background(self._end_with_the_world(), "neurons")
                await asyncio.to_thread(claims.warm_up)
                if self._rank < job.ranks:
                    target = self._help if self._rank else self._answer
                    self._thread = threading.Thread(target=target, name="neurons", daemon=True)
                    self._thread.start()
        except Exception:
            if self is None:
                bells.close()
            else:
                self._guard.cancel()
                await asyncio.wait([self._guard])
            world.closing(window.close(), "the memory of a crew that could not be opened closes")
            raise
        # The loop's thread naps longer while a kernel of ours computes on its core.
        world.loop.mpi.beside.add(self.busy)
        return self

    async def run(self) -> None:
        """Run all blocks once; on the front alone, one call at a time. BlockError when one raised.

        Who is cancelled waits for the blocks that run: until then the arrays are theirs.
        """
        # Not asyncio.to_thread, whose futures and tasks took 0.1 ms longer, of a request's 5.
        ended: asyncio.Future[None] = self._loop.create_future()
        self._asked.put(ended)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            await asyncio.gather(ended, return_exceptions=True)
            raise

    def busy(self) -> bool:
        """Whether a block runs on this rank."""
        return self._busy

    def _answer(self) -> None:
        """The front's thread."""
        while (ended := self._asked.get()) is not None:
            try:
                self.front()
            except Exception as error:
                self._loop.call_soon_threadsafe(ended.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(ended.set_result, None)

    def front(self, patience_s: float = inf) -> None:
        """Run all blocks once, on the calling thread; on the front alone, and never beside `run`.

        BlockError when one raised. BlockHeld when nothing has ended for `patience_s`, as a rank does not end
        the block that it has taken; and at once, as long as that rank has not come back.
        """
        if self._failed:
            error = self._recover(0.0)
            if self._failed:
                raise error
        self._request += 1
        claims.put(self._words, claims.REQUEST, self._request)
        self._ring()
        given_up = self._work(self._request, patience_s)
        if self._words[claims.FAILED] == self._request:
            self._failed = True
            raise self._recover(GRACE_S if given_up else patience_s)

    def _ring(self) -> None:
        for rank in range(1, self._job.ranks):
            self._bells.ring(rank)

    def _help(self) -> None:
        request = 0
        while (request := self._next(request)) != CLOSED:
            self._work(request)

    def _next(self, last: int) -> int:
        """The next request, or CLOSED."""
        words, bells = self._words, self._bells
        looks = 1 if self._crowded or not last or not self._free() else SPIN_LOOKS
        while not self._stopped:
            if (found := claims.watch(words, claims.REQUEST, last, looks)) != last:
                return found
            looks = 1
            bells.nap()
            if claims.watch(words, claims.REQUEST, last, looks) == last:
                select.select([bells.fd], [], [], NAP_S)
            bells.woke()
            bells.heard()
        return CLOSED

    # As on a lane, what overflows is infinite; NumPy keeps that by thread, and a warning may be an error.
    @np.errstate(all="ignore")
    def _work(self, request: int, patience_s: float = inf) -> bool:
        """Take blocks of a request until none is left; whether it was given up here."""
        words, book, job, spans, free = self._words, self._book, self._job, self._spans, self._free
        take, advance, now_ns = claims.take, claims.advance, time.monotonic_ns
        mine = claims.entered(len(job.needs), self._rank)
        claims.put(words, mine, request)
        claims.begin(book)
        given_up, ended, since_s = False, -1, 0.0
        looks = LOOKS if free() else 0  # with none a block is never taken
        block = take(words, book, request, looks, PATIENCE)
        while block != claims.OVER:
            self._busy = looks > 0
            if block == claims.NOTHING:
                if self._stopped:
                    break
                if ended != words[claims.ENDED]:
                    ended, since_s = int(words[claims.ENDED]), time.monotonic()
                elif given_up := time.monotonic() - since_s > patience_s:
                    claims.fail(words, request)
                    break
                if not looks:
                    time.sleep(BUSY_NAP_S)
                elif self._crowded:
                    time.sleep(CROWDED_NAP_S)
                looks = LOOKS if free() else 0
                block = take(words, book, request, looks, PATIENCE)
                continue
            start_ns = now_ns()
            try:
                for call in job.calls[block]:
                    call()
                end_ns = now_ns()
                if spans is not None:
                    spans(job.names[block], request, start_ns, end_ns)
            except BaseException:  # SystemExit, too: nobody would hear of a thread that it ends
                self._tell(block, request)
                break
            job.took_s[block] = (end_ns - start_ns) * 1e-9
            looks = LOOKS if free() else 0
            block = advance(words, book, block, request, looks, PATIENCE)
        self._busy = False
        claims.put(words, mine + 1, request)
        return given_up

    def _tell(self, block: int, request: int) -> None:
        """Leave the traceback where the front finds it; nobody takes another block."""
        text = traceback.format_exc().encode(errors="backslashreplace")[-TEXT_BYTES:]
        own = self._texts[self._rank]
        own[8 : 8 + len(text)] = np.frombuffer(text, np.uint8)
        own[:8].view(np.int32)[:] = block, len(text)
        claims.fail(self._words, request)

    def _recover(self, within_s: float) -> WeftError:
        """What the last request failed of; the next may begin once all have left it, else it is BlockHeld."""
        end_s = time.monotonic() + within_s
        while inside := self._inside():
            if time.monotonic() >= end_s:
                return BlockHeld(inside)
            time.sleep(CROWDED_NAP_S)
        claims.settle(self._words, self._book, self._request)
        self._failed = False
        errors = []
        for rank, own in enumerate(self._texts):
            block, length = own[:8].view(np.int32).tolist()
            if length:
                trace = own[8 : 8 + length].tobytes().decode(errors="replace")
                errors.append(BlockError(rank, self._job.names[block], trace))
                own[:8] = 0
        return errors[0] if errors else BlockHeld(inside)

    def _inside(self) -> list[int]:
        """The ranks that have entered the last request and not left it."""
        words, request, count = self._words, self._request, len(self._job.needs)
        lines = [claims.entered(count, rank) for rank in range(self._ranks)]
        return [
            rank for rank, at in enumerate(lines) if words[at] == request != claims.watch(words, at + 1, 0, 1)
        ]

    async def _end_with_the_world(self) -> None:
        """The thread, where nobody closes: it looked at the window that the world had closed, a SIGSEGV."""
        try:
            await asyncio.Event().wait()
        finally:
            self._stopped = True
            if self._thread is not None and self._thread.is_alive():
                self._asked.put(None)
                self._bells.ring(self._rank)
                await asyncio.to_thread(self._thread.join)
            self._bells.close()

    async def close(self) -> None:
        """End the helpers; collective over the node, when no request is under way."""
        if self._rank == 0:
            claims.put(self._words, claims.REQUEST, CLOSED)
            self._ring()
            self._asked.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._guard.cancel()
        await asyncio.wait([self._guard])
        self._world.loop.mpi.beside.discard(self.busy)
        await self._window.close()
