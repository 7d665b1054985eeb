"""A pool of tasks that all ranks share: registered functions, run by whoever is idle.

    async with await Pool.open(world, {"halve": halve, "square": square}) as pool:

        async def ask():                                       # from the loop: results come back
            squares = [pool.submit("square", n) for n in range(8)]
            total = pool.submit("add", needs=squares)
            print((await total).body)

        if world.rank == 0:
            pool.spawn("halve", {"depth": 3}, array)           # fire and forget; tasks may spawn, too
        await pool.run(ask() if world.rank == 0 else None)     # every rank: until no task is left on any

A task is the name of a function, a body of what msgpack knows, and arrays; the function is called as
`halve(pool, body, *arrays)`, with `needs=[Result, ...]` where it was given needs, on one thread, beside the
loop's, of whichever rank has it then.

    loop's thread    submit, spawn ──┐                   home (home.py) <── results by message
    pool's thread    spawn ────> own queue ──> run ──> result ──> slot in shared memory, or home
                     shelf (shelf.py) <── the oldest half │ a thief of the node takes half, unasked
    loop's thread    between nodes: ask, answer, agree on the end (beyond.py)

Where each decision stands: what a task may ask for in demands.py, who may run what in lanes.py, what is next
in queues.py, whom to rob and whether that pays in victims.py, what is ready in home.py, when all is over in
counts.py.

What a spawned task raises ends the job, with its traceback; what a submitted one raises is raised where its
result is awaited, or by `run`, if nobody awaited it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self

import msgpack
import numpy as np

from ...errors import Mistake
from ...message import Communicator, World
from ...message.meeting import to_the_end
from ..cores import share_cores
from ..made import Made
from . import measure
from .beyond import Beyond
from .demands import Demand, Demands, Function, checked_seconds
from .group import GROUP, run_group
from .home import Home, Need, Submission
from .lanes import UNLIMITED, Lanes, Offer
from .memory import Memory
from .opening import check_functions, check_settings, checked_offer
from .parcel import HEAD, MOST_NEEDS, NO_NEEDS, NO_SLOT, Array, Result, pack
from .queues import Queues
from .tally import Recorder, Tally
from .victims import Way
from .worker import Worker, own_frames

OFFER_BYTES = 256


class Pool:
    """This rank's part of the pool; made by `open`, closed by `close` or with the world."""

    def __init__(
        self,
        world: World,
        functions: Mapping[str, Function],
        lanes: Lanes,
        memory: Memory,
        *,
        near: Way,
        task_s: float,
        trace: Recorder | None,
    ) -> None:
        self._world, self._lanes, self._memory = world, lanes, memory
        self._demands = Demands(functions, lanes, world.rank)
        self._queues = Queues(world, lanes, memory, near, trace)
        self._home = Home(world.rank, memory.counts, memory.slots, self._queues.add)
        self._worker = Worker(
            world, self, functions, self._queues, memory, self._home, task_s=task_s, trace=trace
        )
        self._running: list[asyncio.Task[Any]] = []  # the thread and the main of this run, or of the last
        self._ending: asyncio.Task[None] | None = None  # what all ranks do together behind the last run
        self._closing: asyncio.Task[None] | None = None
        self._closes = asyncio.Event()  # set when that begins
        self._made: Made  # what is to be closed when nobody is answered any more
        self._beyond: Beyond
        #: What it costs to take tasks from a rank of this node, and from another node, as measured.
        self.near, self.far = near, near

    @classmethod
    @to_the_end
    async def open(
        cls,
        world: World,
        functions: Mapping[str, Function],
        *,
        classes: int = 1,
        devices: Sequence[str] = ("cpu",),
        memory_bytes: int = UNLIMITED,
        task_s: float = 1e-3,
        places: int = 256,
        place_bytes: int = 8192,
        trace: Recorder | None = None,
        name: str = "pool",
    ) -> Self:
        """For these functions, by name, the same on all ranks; collective over the world.

        `classes` is how many priorities tasks may have, `devices` and `memory_bytes` what this rank has for
        them. `task_s` is what a task is taken to cost until one of its function was measured. For each lane
        `places` tasks (65,535 at most) of up to `place_bytes` each can be out on a rank's shelf at a time; a
        larger task, or result, goes by message. `name` is what reports call it.
        From then on BLAS uses this rank's part of the node's cores: tasks run on all ranks at once.

        Cancelling ends the waiting only: the others get theirs, and this rank's is closed with the world.
        """
        check_functions(name, functions)
        check_settings(name, classes=classes, task_s=task_s, places=places, place_bytes=place_bytes)
        offer = checked_offer(name, devices, memory_bytes)
        made = Made()
        try:
            # Its own: one that was cancelled while it waited for others may use the world's before they are
            # here.
            comm = await world.apart(f"weft {name}")
            made.push(comm.free)
            functions = {GROUP: run_group, **functions}
            settings = [sorted(functions), classes, places, place_bytes]
            await world.agree(f"functions and settings of the pool {name!r}", str(settings), among=comm)
            share_cores(world)
            lanes = Lanes(await offers(comm, offer), classes)
            # Its own, too: of two that were opened at once a rank had the one's memory for the other's.
            node = await comm.split(world.node.ranks[0], world.node_rank, name="node")
            assert node is not None
            made.push(node.free)
            memory = await Memory.allocate(
                world, node, made, lanes=len(lanes.all), places=places, place_bytes=place_bytes
            )
            near = measure.near(memory.shelf, world.node_rank)
            pool = cls(world, functions, lanes, memory, near=near, task_s=task_s, trace=trace)
            # Its own, not the name's: what was still on its way to a pool of that name when it was closed
            # (one that was given up does not wait for it) was taken for this one's, whose tasks have the same
            # numbers.
            channel = await world.channel(comm.group)
            pool._made = made
            pool._beyond = Beyond(world, channel, comm, memory, lanes, pool._queues, pool._worker, pool._home)
            pool.far = pool._beyond.far = await measure.far(world, comm, channel)
            world.background(pool._left_open(), "a pool is left open, with tasks that nobody has run")
            return pool
        except Exception:  # most often all ranks have it; others' part in this is not waited for
            world.closing(made.close(), "a pool that could not be opened closes")
            raise

    async def close(self) -> None:
        """Give the memory back; collective over the world. Mistakes from then on: tasks, and runs.

        A Mistake, when it is closed, on a rank that has given tasks and called no run behind them: they were
        dropped without a word. Cancelling ends the waiting only.
        """
        if self._closing is None:
            self._closes.set()
            self._closing = self._world.closing(self._close(), "a pool closes")
        await asyncio.shield(self._closing)
        self._require_none_given("a pool is closed")

    async def _left_open(self) -> None:
        """Until it is closed, or main is over: Mistake then, for they were dropped without a word.

        Not where a stop has cut main short.
        """
        try:
            await self._closes.wait()
        except asyncio.CancelledError:
            if not self._world.stopping:
                self._require_none_given("main ends, and leaves a pool open,")
            raise

    def _require_none_given(self, what: str) -> None:
        given, self._home.given = self._home.given, 0
        if given:
            raise Mistake(
                f"{what} with {given} task{'s' * (given > 1)} that nobody has run, given on rank"
                f" {self._world.rank}: every rank calls `await pool.run()` behind them"
            )

    async def _close(self) -> None:
        await self._left(self._ending)
        self._demands.close()
        await self._beyond.close()
        await self._made.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, _: object) -> None:
        if error is None:
            await self.close()
        else:  # which whoever catches it knows of: that tasks were left behind is no news
            self._home.given = 0

    # -- tasks -----------------------------------------------------------------------------------------

    def spawn(
        self,
        name: str,
        body: Any = None,
        *arrays: Array,
        seconds: float | None = None,
        priority: int = 0,
        device: str | None = None,
        memory_bytes: int = 0,
        here: bool = False,
    ) -> None:
        """Add a task whose result nobody waits for; from within a task, or from the loop.

        Tags: the `seconds` that it takes (else what its function's tasks took here), its `priority` class (0
        is first), the `device` it needs, the `memory_bytes` it holds while it runs; `here` keeps it on this
        rank. Mistake for an unknown name, a body or an array that cannot travel, or a demand that no rank
        can meet. What is given may be changed when this returns.
        """
        number, lane, queue = self._demands.place(Demand(name, priority, device, memory_bytes, here))
        seconds = self._worker.seconds[number] if seconds is None else checked_seconds(name, seconds)
        task = HEAD.pack(number, lane, NO_NEEDS, NO_SLOT, self._world.rank, 0, seconds) + pack(body, arrays)
        if self._worker.inside:
            self._worker.spawn(queue, task)
        else:
            self._home.spawned()
            self._queues.add(queue, task)
            self._worker.offer()

    def submit(
        self,
        name: str,
        body: Any = None,
        *arrays: Array,
        needs: Sequence[Submission | Need] | None = None,
        seconds: float | None = None,
        priority: int = 0,
        device: str | None = None,
        memory_bytes: int = 0,
        here: bool = False,
    ) -> Submission:
        """Add a task and get something to await its `Result` by; from the loop, before a run or during it.

        It starts when all of `needs`, earlier submissions of this rank, are done, and is called with their
        results as `needs=[Result, ...]`: with `needs=[]` where none are given, without where `needs` is None.
        Tags and mistakes as for `spawn`, and a Mistake for more than 65,534 needs, or one that is no
        submission of this pool. To await it is for the time of a run: before, and after, that is a Mistake
        unless the result is there.
        """
        if self._worker.inside:
            raise Mistake(
                f"task {name!r} is submitted by a task; tasks spawn, only the loop submits and awaits"
            )
        number, lane, queue = self._demands.place(Demand(name, priority, device, memory_bytes, here))
        seconds = self._worker.seconds[number] if seconds is None else checked_seconds(name, seconds)
        wanted = None if needs is None else self._needs(name, needs)
        task = (number, lane, seconds, pack(body, arrays), wanted)
        submission = self._home.submit(name, queue, task)
        self._worker.offer()
        return submission

    async def run(self, main: Coroutine[Any, Any, object] | None = None) -> Tally:
        """Run tasks until none is left on any rank, and `main` is over on all; collective over the world.

        `main` runs on the loop meanwhile, and may submit, spawn and await. Returns what this rank did. What a
        spawned task raises is raised here, and ends the job though it be caught: others wait for that task.
        The failure of a submitted one of which nobody was told is raised here, too.

        What `main` raises ends the run on all ranks: it is raised here, and on the others `run` cancels their
        mains and returns.

        Whoever cancels `run` gives it up, on this rank alone, and also if others have not called it yet.
        However it is given up, the thread stops after the task that it is at, and nothing waits for that but
        `close`, the next run, and the end of the world; tasks that were not begun are left for the next run.
        """
        if main is not None and not isinstance(main, Coroutine):
            raise Mistake(
                f"a pool's run was given a {type(main).__name__} as its main; give a coroutine, what an"
                " `async def` returns when it is called: pool.run(main())"
            )
        if self._demands.closed or self._home.running:
            if main is not None:
                main.close()
            self._demands.check_open()
            raise Mistake(
                f"this pool is run already on rank {self._world.rank}: await that run before the next"
            )
        self._home.running, self._home.given = True, 0
        entered = self._world.background(self._enter(self._ending, main), "a pool's run begins")
        try:
            await asyncio.shield(entered)
        except BaseException:
            self._home.running = False
            self._ending = self._world.background(self._pass(entered, main), "a pool's run passes")
            raise
        worker = self._worker
        thread = asyncio.create_task(asyncio.to_thread(worker.work), name="the pool's thread")
        mains = []
        if main is not None:
            mains.append(asyncio.create_task(self._main(main), name="the main of a pool's run"))
        given_up = asyncio.create_task(self._beyond.given_up.wait(), name="a pool's run may be given up")
        self._running = [thread, *mains]
        self._beyond.begin()
        try:
            try:
                await asyncio.wait([thread, given_up], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                if _failure(thread) is None:  # else it is told, though the run was cancelled just then
                    raise
            if error := _failure(thread):
                raise error
        finally:
            # Where something failed, here or elsewhere, nobody waits here for the thread: the error would be
            # told when the task that it is at ends.
            self._home.running = False
            worker.stop()
            self._beyond.stop()
            for task in (given_up, *mains):
                task.cancel()
            if not thread.done():
                self._world.background(self._watch(thread), "a task that outlived its pool's run")
            elif _failure(thread):  # raised here, and told in any case: see there
                self._world.background(self._watch(thread), "a task of a pool")
            self._ending = self._world.background(self._beyond.end(), "a pool's run ends")
        await asyncio.shield(self._ending)
        for task in mains:
            cut_short = self._beyond.given_up.is_set() and (task.cancelled() or not task.done())
            if not cut_short and (failure := task.result()) is not None:
                raise failure
        self._home.raise_unseen()
        return self._queues.tally

    @property
    def tally(self) -> Tally:
        """What this rank has done in this run, or in the last."""
        return self._queues.tally

    def function(self, name: str) -> Function:
        """The function of that name; Mistake if there is none."""
        return self._demands.function(name)

    async def _main(self, main: Coroutine[Any, Any, object]) -> Exception | None:
        """Run it; what it raises in the time of the run is returned, for `run` to raise after the end."""
        try:
            await main
        except Exception as error:
            if not self._beyond.give_up():  # the run was over: it raised when it was cancelled
                raise
            self._home.forsake()
            return error
        else:
            return None
        finally:
            self._home.end()
            self._worker.wake()

    # Ranks count on each other at the start of a run and at its end, also on one that gives it up: what they
    # do together there goes on behind its back. (Where a cancel ended that, too, the next run met others in
    # this one: all waited for each other, or were told that they had called different collectives.)

    async def _enter(
        self, before: asyncio.Task[None] | None, main: Coroutine[Any, Any, object] | None
    ) -> None:
        """Until all ranks are here, behind the run before."""
        await self._left(before)
        self._beyond.enter()
        self._worker.begin()
        if main is not None:
            self._home.begin()
        await self._beyond.start()  # what all have spawned is counted

    async def _pass(self, entered: asyncio.Task[None], main: Coroutine[Any, Any, object] | None) -> None:
        """A run that this rank gave up before it began."""
        await asyncio.wait([entered])
        if main is not None:
            main.close()
            self._home.end()
        self._worker.stop()
        self._beyond.pass_by()
        await self._beyond.end()

    async def _left(self, ending: asyncio.Task[None] | None) -> None:
        """A run that was given up leaves the thread at a task, maybe: wait until it is out of the memory."""
        left = self._running if ending is None else [*self._running, ending]
        if left:
            await asyncio.wait(left)

    async def _watch(self, thread: asyncio.Task[None]) -> None:
        """What a spawned task raises ends the job, whoever catches it around `run`, and whenever it comes.

        It is never counted as ended. A program that went on from there left the others in the run for ever,
        with a report that named the next collective; so did one whose run had been given up before.
        """
        await asyncio.wait([thread])
        if error := _failure(thread):
            raise error

    def _needs(self, name: str, given: Any) -> list[Need]:
        """The needs of task `name` as they were given; Mistake if they are none."""
        if isinstance(given, Submission) or not isinstance(given, Iterable):
            raise Mistake(
                f"task {name!r} is submitted with needs of type {type(given).__name__}; give a list, also of"
                " one: needs=[pool.submit(...)]"
            )
        needs = [self._need(name, need) for need in given]
        if len(needs) > MOST_NEEDS:
            raise Mistake(
                f"task {name!r} is submitted with {len(needs)} needs; it can have {MOST_NEEDS} at most: have"
                " tasks between gather their results"
            )
        return needs

    def _need(self, name: str, given: Any) -> Need:
        """A need of task `name` as it was given, and which part of it; Mistake if it is none."""
        part_of = isinstance(given, tuple) and not isinstance(given, Result) and len(given) == 2
        submission, part = given if part_of else (given, 0)
        if not isinstance(submission, Submission):
            raise Mistake(
                f"task {name!r} is submitted with a need of type {type(given).__name__}; needs are what"
                " `submit` returns, not awaited: needs=[pool.submit(...)]. What is here already goes into the"
                " body and the arrays"
            )
        if not self._home.has(submission):
            raise Mistake(
                f"task {name!r} is submitted with a need of another pool, task {submission.name!r}: await"
                " that, and give its result as body and arrays"
            )
        if part != 0 and submission.name != GROUP:  # found when that had ended, and ended the job
            raise Mistake(
                f"task {name!r} is submitted with a need of part {part!r} of task {submission.name!r}, which"
                " returns one part: give what `submit` returned, and take of its arrays what is wanted"
            )
        return submission, part


def _failure(thread: asyncio.Task[None]) -> BaseException | None:
    """What a spawned task has raised, if that has ended the pool's thread."""
    error = thread.exception() if thread.done() and not thread.cancelled() else None
    return error and error.with_traceback(own_frames(error))


async def offers(comm: Communicator, mine: Offer) -> list[Offer]:
    """What every rank offers; collective."""
    packed: bytes = msgpack.packb([mine.devices, mine.memory_bytes])
    if len(packed) > OFFER_BYTES:
        raise Mistake(f"the names of the devices {mine.devices} are too long: {OFFER_BYTES} bytes at most")
    record = np.zeros(OFFER_BYTES, np.uint8)
    record[: len(packed)] = np.frombuffer(packed, np.uint8)
    records = np.empty((comm.size, OFFER_BYTES), np.uint8)
    await comm.allgather(record, records, what="what the ranks of a pool offer")
    found = []
    for row in records:
        unpacker = msgpack.Unpacker()
        unpacker.feed(row.tobytes())
        devices, memory_bytes = unpacker.unpack()
        found.append(Offer(tuple(devices), memory_bytes))
    return found
