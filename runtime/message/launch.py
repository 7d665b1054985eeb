"""run(main): start MPI and the event loop, run main on every rank, and end everything in order.

    start   MPI, the loop, control messages, the world
    main    `await main(world)` and the tasks it starts; an uncaught error ends all ranks (failure.py)
    ─────── all ranks' mains are over ───────
    end     tasks cancelled, windows and channels closed, communicators freed, MPI_Finalize

A rank whose main returns early waits for the others, and goes on answering them meanwhile: they may still
want its help.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import gc
import math
import resource
import socket
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, NoReturn, TypeVar

from mpi4py import MPI

from ..errors import Mistake, PeerFailure
from . import mpi
from .control import Control
from .failure import Failures, abort, flush, render, report_of, say
from .meeting import Meetings
from .order import Orders
from .receive import Receive
from .selector import MpiLoop
from .signals import Stop, leave_last
from .stall import STALL_S, Stalls
from .world import World

T = TypeVar("T")
Main = Callable[[World], Coroutine[Any, Any, T]]

DRAIN_S = 2.0  # for operations that main left behind to end by themselves
FULL_S = 10.0  # between two words about connections that cannot be accepted
FIRST_S = 0.5  # head start of rank 0 where every rank would do the same


def run(main: Main[T], *, stall_s: float = STALL_S) -> T | None:
    """Run `await main(world)` on every rank, under mpirun or alone, and return what it returned here.

    An exception that main does not catch, on whatever rank, ends all ranks with the exception's exit status
    (errors.py). After a stop by signal rank 0 raises SystemExit(128 + signal), unless main has set
    `world.stop_status`, and the others return; None where the stop cancelled main. `stall_s` is how long a
    wait may last before it is reported (stall.py). Mistake in a coroutine, or a notebook: a loop runs there.
    """
    _require_no_loop()
    try:
        started = mpi.start()
    except Exception as error:
        _end_without_main(error)
    if started:
        # The interpreter, as it ends, looks for garbage in all that is left, twice: up to 0.1 s of a rank.
        atexit.register(gc.freeze)
    with asyncio.Runner(loop_factory=MpiLoop) as runner:
        try:
            loop = runner.get_loop()
            assert isinstance(loop, MpiLoop)
            rank: Rank[T] = Rank(loop, stall_s)
            runner.run(rank.run(main))
        except (Exception, SystemExit) as error:
            _end_without_main(error)
    flush()
    if rank.failures.any:  # alone: a world of several ranks has been aborted
        mpi.unlink_segments()
        raise SystemExit(rank.failures.status())
    if started:
        mpi.end()
    if rank.stop.signal is not None and rank.world.rank == 0:
        status = rank.world.stop_status
        if status != 0:
            leave_last(rank.world.node_pids)
            raise SystemExit(128 + rank.stop.signal if status is None else status)
    return rank.result


class Rank(Generic[T]):
    """One rank from the start of the loop to its end."""

    def __init__(self, loop: MpiLoop, stall_s: float) -> None:
        self.result: T | None = None
        self._loop = loop
        self._main: asyncio.Task[None]
        self._thrown: PeerFailure | None = None
        self._told_full_s = -math.inf
        self._control = Control(MPI.COMM_WORLD.Dup(), loop.mpi)
        self.failures = Failures(self._control, loop, self._interrupt)
        self._meetings = loop.mpi.meetings = Meetings(self._control, stall_s)
        loop.mpi.reporters.append(self._meetings.waiting)
        self.stop = Stop(self._control, loop, self.failures, self._cancel_main)
        self.world = World(loop, self.failures, self.stop)
        self._stalls = Stalls(self._control, self.world, stall_s)
        self._orders = Orders(self._control, self.world, self.failures)

    async def run(self, main: Main[T]) -> None:
        """Main, and what comes after it."""
        self._loop.set_exception_handler(self._on_loop_error)
        self.stop.install()
        try:
            self._main = self._loop.create_task(self._run_main(main), name="main")
            await asyncio.wait([self._main])
            self.world.position("the end of main")
            self._stalls.stop()
            self._orders.stop()
            if not self.failures.any:
                await self._orders.finish()
            if await self._all_over() and await self._tidied():
                return
            await self._cancel_tasks()
            self.failures.main_left()
            await self.failures.printed.wait()
            if self.world.size > 1:
                await self._loop.create_future()  # MPI_Abort comes
        finally:
            self.stop.remove()
            self.failures.close()

    # -- main -----------------------------------------------------------------------------------------

    async def _run_main(self, main: Main[T]) -> None:
        try:
            coroutine = main(self.world)
            if not isinstance(coroutine, Coroutine):  # (Cython's are of the abstract class alone)
                raise Mistake(
                    f"run(main) awaits what main(world) returns, which was {coroutine!r:.80}: make main a "
                    "coroutine function, `async def main(world)`"
                )
            self.result = await steered(coroutine, self._take_thrown)
        except asyncio.CancelledError as error:
            if self.stop.signal is None and not self.failures.any:
                self.failures.local(error, "main")
        except SystemExit as error:
            if error.code not in (None, 0):
                self.failures.local(error, "main")
        except BaseException as error:
            self.failures.local(error, "main")

    def _interrupt(self, failure: PeerFailure | None) -> None:
        """Another rank has failed (or another task of this one): main gets an exception where it waits."""
        self._thrown = failure
        self._main.cancel()

    def _take_thrown(self) -> PeerFailure | None:
        failure, self._thrown = self._thrown, None
        return failure

    def _cancel_main(self) -> None:
        self._main.cancel()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would log and forget.

        A callback or a task that raised, with nobody to notice, ends the job like an error in main. A
        connection's trouble does not: the other end may be no part of the job. (asyncio names the transport
        or protocol then, or the socket that listens.)
        """
        error = context.get("exception")
        if isinstance(error, OSError) and "socket" in context:
            self._tell_full(error)
            return
        if error is None or "transport" in context or "protocol" in context:
            loop.default_exception_handler(context)
            return
        task = context.get("task") or context.get("future")
        where = "a callback of the event loop"
        if isinstance(task, asyncio.Task):
            where = f"task {task.get_name()!r}"
        self.failures.local(error, where)

    def _tell_full(self, error: OSError) -> None:
        """A socket that listens cannot accept: asyncio tries again after a second, and tells each attempt."""
        now_s = time.monotonic()
        if now_s < self._told_full_s + FULL_S:
            return
        self._told_full_s = now_s
        remedy = "what waits is accepted when the machine has more to give"
        if error.errno == errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            remedy = (
                f"this process may have {limit} open. What waits is accepted when others are closed; "
                "`ulimit -n` allows more"
            )
        say(
            f"weft: rank {self.world.rank} of {self.world.size} on {socket.gethostname()} accepts no "
            f"connections for now: {error.strerror}; {remedy}"
        )

    # -- the end ----------------------------------------------------------------------------------------

    async def _all_over(self) -> bool:
        """Wait until main is over on all ranks; False if one of them failed."""
        # The second time for answers to questions that came before the first barrier.
        for _ in range(2):
            if not await self._reached(self._control.sent()):
                return False
            if not await self._reached(self._control.barrier()):
                return False
        return True

    async def _reached(self, end: asyncio.Future[Any]) -> bool:
        """Wait for `end`; False if some rank fails before."""
        failed = self.failures.happened
        await asyncio.wait([end, failed], return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            return False
        end.result()
        return True

    async def _tidied(self) -> bool:
        """End what main left, free all communicators; False if some rank fails meanwhile."""
        if self.world.closings:
            await asyncio.wait(self.world.closings, timeout=DRAIN_S)
        left = await self._cancel_tasks() + await self._drain()
        if left and self.stop.signal is not None:
            # Some ranks had posted a collective when the stop cancelled main, others had not.
            await asyncio.sleep(FIRST_S if self.world.rank else 0.0)
            abort(128 + self.stop.signal)
        if left:
            error = Mistake(
                f"main returned, and this is still under way: {'; '.join(left)}. Await it, or have the other "
                "rank do its part"
            )
            self.failures.local(error, "main")
        # Threads first: what they compute may lie in a window.
        if not await self._reached(self._loop.create_task(self._loop.shutdown_default_executor())):
            return False
        if not await self._reached(self._loop.create_task(self.world.close())):
            return False
        if not await self._all_over():  # what it told of its meetings
            return False
        self._control.close()
        return True

    async def _cancel_tasks(self) -> list[str]:
        """Cancel every other task, and let their `finally` blocks run; what did not end within `DRAIN_S`."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=DRAIN_S)
        return [f"task {task.get_name()!r}, which does not end when cancelled" for task in tasks]

    async def _drain(self) -> list[str]:
        """Have MPI's operations end; what did not within `DRAIN_S`."""
        selector = self._loop.mpi
        end_s = time.monotonic() + DRAIN_S
        for pending in selector.outstanding():
            if isinstance(pending, Receive):
                pending.cancel()
        meetings = self.world.meetings()

        def left() -> list[str]:
            under_way = [pending.what for pending in selector.outstanding() if pending not in meetings]
            return under_way + [waiting.what for waiting in self._meetings.waiting()]

        while left() and time.monotonic() < end_s:
            await asyncio.sleep(0.001)
        return left()


@types.coroutine
def steered(
    coroutine: Coroutine[Any, Any, T], thrown: Callable[[], BaseException | None]
) -> Generator[Any, Any, T]:
    """Run `coroutine` as `await` does, but on a cancel raise `thrown()` in it, where that is not None."""
    step, value = coroutine.send, None
    while True:
        try:
            waited = step(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        try:
            value = yield waited
            step = coroutine.send
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step, value = coroutine.throw, thrown() or error


def _require_no_loop() -> None:
    """Mistake where a loop runs in this thread: asyncio's words came late, with two tracebacks of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise Mistake(
        "run(main) was called while an event loop runs, as in a coroutine or a notebook: `await main(world)` "
        "where there is a world already; otherwise call run from plain code, as a program's last line"
    )


def _end_without_main(error: BaseException) -> NoReturn:
    """Report an error from before or after main (or that stopped the loop), and end all ranks."""
    rank, size = mpi.launched_as() or (0, 1)
    together = False
    if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
        together = True
        rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    report = report_of(error, rank, size, socket.gethostname(), "run(main), outside of main")
    mpi.unlink_segments()  # nobody finalizes MPI from here; and before rank 0 ends the ranks of other nodes
    if rank != 0:
        time.sleep(FIRST_S)  # most such errors are everybody's: rank 0 tells
    if rank == 0 or together:
        say(render([report]))
    if together:
        abort(report.status or 1)  # a task's sys.exit(0) is no success of the ranks that are still at work
    raise SystemExit(report.status) from None
