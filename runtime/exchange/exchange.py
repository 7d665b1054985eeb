"""The communication task: starts portions in planned order, at most `credit` at once, tells who has arrived.

    lane:  portion ready ──> Round.ready ─┐
                                          │   order of the plan, credit
    wire:                     Iallreduce <┘──> Round.arrived ──> the lane's gate: update

Statistics (the losses of the step's micro-batches) travel first: they are ready when the last forward pass
is. Every rank starts the same collectives in the same order, whatever its own timing, because both orders,
within a round and of the rounds, are fixed. A round ends before the next begins, which costs nothing: the
next step's first loss needs every weight, hence every portion of this one.

The plan is made on rank 0 from what all ranks measured in past rounds, and told to all between two rounds,
while the lanes are busy with the next forward pass.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .held import best_plan
from .plan import Plan, Rule, drifted
from .portions import Block, Portion
from .profile import Profile

PATIENCE_S = 2.5
"""A wait of the exchange that lasts longer is told, with what its ranks are doing (at most 5 s in all)."""

ROUNDS_KEPT = 4  # that a profile is the median of

Buffer = NDArray[np.generic]

Wire = Callable[[str, int, int, dict[str, object]], None]
"""Told of each transfer: name, start and end in nanoseconds of time.monotonic_ns, and its facts."""


class Reducer(Protocol):
    """The part of a communicator that the exchange needs."""

    rank: int
    size: int

    def allreduce(
        self,
        array: NDArray[np.generic],
        op: str = "sum",
        *,
        what: str = "",
        patience_s: float | None = None,
    ) -> Awaitable[None]:
        """Start adding up `array` over all ranks, in place."""

    def broadcast(
        self, array: NDArray[np.generic], root: int = 0, *, what: str = "", patience_s: float | None = None
    ) -> Awaitable[None]:
        """Start copying `array` of rank `root` to all."""

    def alltoall(
        self, array: Buffer, into: Buffer, *, what: str = "", patience_s: float | None = None
    ) -> Awaitable[None]:
        """Start sending the i-th of `size` blocks of `array` to rank i; its block is the i-th of `into`."""

    def allgather(
        self, share: Buffer, array: Buffer, *, what: str = "", patience_s: float | None = None
    ) -> Awaitable[None]:
        """Start copying every rank's `share`, by rank, to everyone's `array`."""

    async def duplicate(self, name: str) -> Reducer:
        """Another of the same ranks, whose order of operations is its own."""


class Carrier(ABC):
    """How portions are added up over ranks, in place: exactly (`Exact`), or in fewer bytes (formats.py)."""

    encodes = False
    """Whether `encode` and `decode` do anything."""

    async def open(self) -> None:
        """Make what it needs; collective, before the first `start`."""

    @abstractmethod
    def cut(self, parts: Sequence[slice]) -> None:
        """Carry these slices of the gradient, one of every portion, from here on; when all is at rest."""

    @abstractmethod
    def nbytes(self, portion: Portion) -> int:
        """Of this rank's part of a portion, as it travels."""

    def encode(self, portion: Portion) -> None:
        """Ready this rank's part of a portion for `start`: on the lane, once it is whole."""

    @abstractmethod
    def start(self, portion: Portion, what: str) -> Awaitable[None]:
        """Start the sum of a portion, which is ready; in the plan's order on every rank."""

    def decode(self, portion: Portion) -> None:
        """Put the sum where the part was: on the lane, once it has arrived."""


class Exact(Carrier):
    """Float32, summed by MPI where the portion lies."""

    def __init__(self, comm: Reducer, gradient: NDArray[np.float32]) -> None:
        self._comm = comm
        self._gradient = gradient
        self._parts: list[NDArray[np.float32]] = []

    def cut(self, parts: Sequence[slice]) -> None:
        """See `Carrier`."""
        self._parts = [self._gradient[part] for part in parts]

    def nbytes(self, portion: Portion) -> int:
        """See `Carrier`."""
        return self._parts[portion.index].nbytes

    def start(self, portion: Portion, what: str) -> Awaitable[None]:
        """See `Carrier`."""
        return self._comm.allreduce(self._parts[portion.index], what=what, patience_s=PATIENCE_S)


class Round:
    """One step's exchange: what is ready here, whom to tell when it is whole, and when all that was.

    `arrived` is called on the loop with a portion's index; `totals` completes when the statistics are summed.
    The lane fills `spent_s`, seconds of each block of the last micro-batch's backward, and `chain_cpu_s`, CPU
    time a sample of its input gradients: work that is the same whatever the settings.
    """

    def __init__(self, step: int, portions: int, statistics: NDArray[np.float64]) -> None:
        self.step = step
        self.serial = 0  # of the round among all that this node's memory has seen
        self.statistics = statistics
        self.arrived: Callable[[int], None] = lambda index: None
        self.ready = [asyncio.Event() for _ in range(portions)]
        self.ready_ns, self.posted_ns, self.done_ns = np.zeros((3, portions), np.int64)
        self.counted = asyncio.Event()
        self.totals: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.spent_s: NDArray[np.float64] = np.zeros(0)
        self.chain_cpu_s = 0.0

    def mark_ready(self, index: int) -> None:
        """A portion's sum over what this rank has to contribute is where the wire finds it."""
        self.ready_ns[index] = time.monotonic_ns()
        self.ready[index].set()


class Exchange:
    """All-reduce of the gradient, portion by portion. `run` is the rank's communication task.

    `comm` joins all ranks and carries statistics and plans. `carrier` carries this rank's part of the
    portions; None where it has none (all ranks share a node, or none of the other nodes has such a rank).
    """

    def __init__(
        self,
        comm: Reducer,
        carrier: Carrier | None,
        portions: Sequence[Portion],
        blocks: Sequence[Block],
        profile: Profile,
        *,
        rule: Rule,
        credit: int,
        model: str,
        replan: bool = True,
        wire: Wire | None = None,
    ) -> None:
        self._comm = comm
        self._carrier = carrier
        self._portions = portions
        self._blocks = blocks
        self._rule: Rule = rule
        self._model = model
        self._wire = wire
        self._replan_after = _milestones() if replan else iter(())
        self._next_replan = next(self._replan_after, -1)
        self._timings = profile.timings(blocks, portions)
        self._rounds: asyncio.Queue[Round | None] = asyncio.Queue()
        self._past: deque[Round] = deque(maxlen=ROUNDS_KEPT)
        self._worked_off = 0
        self._guessed = True  # the plan comes from costs, or from another cut
        self.profile = profile
        self.plan: Plan = best_plan(self._timings, rule, credit)

    def begin(self, round_: Round) -> None:
        """Queue a step's exchange; rounds are worked off in the order of their beginning."""
        self._rounds.put_nowait(round_)

    def end(self) -> None:
        """Let `run` return behind the rounds begun so far."""
        self._rounds.put_nowait(None)

    async def run(self) -> None:
        """Work off rounds until the end."""
        while (round_ := await self._rounds.get()) is not None:
            await self._work_off(round_)
            self._worked_off += 1
            self._past.append(round_)
            if self._worked_off == self._next_replan:
                self._next_replan = next(self._replan_after)
                await self._replan()
            self._rounds.task_done()

    async def settled(self) -> None:
        """Wait until the rounds begun are worked off, and a new plan made where one is due behind them."""
        await self._rounds.join()

    async def _work_off(self, round_: Round) -> None:
        await round_.counted.wait()
        statistics = self._comm.allreduce(
            round_.statistics,
            what=f"{self._model}: losses of step {round_.step + 1}",
            patience_s=PATIENCE_S,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._count(round_, statistics))
            if self._carrier is not None:
                await self._carry(self._carrier, round_, group)

    async def _count(self, round_: Round, statistics: Awaitable[None]) -> None:
        await statistics
        if not round_.totals.done():  # (cancelled with who waited for it, when a peer has failed)
            round_.totals.set_result(None)

    async def _carry(self, carrier: Carrier, round_: Round, group: asyncio.TaskGroup) -> None:
        credit = asyncio.Semaphore(self.plan.credit)
        for index in self.plan.order:
            await round_.ready[index].wait()
            await credit.acquire()
            portion = self._portions[index]
            round_.posted_ns[index] = time.monotonic_ns()
            summed = carrier.start(portion, f"{self._model}: step {round_.step + 1}, {portion.name}")
            nbytes = carrier.nbytes(portion)
            group.create_task(self._land(round_, portion, nbytes, summed, credit))

    async def _land(
        self, round_: Round, portion: Portion, nbytes: int, summed: Awaitable[None], credit: asyncio.Semaphore
    ) -> None:
        await summed
        index = portion.index
        round_.done_ns[index] = time.monotonic_ns()
        round_.arrived(index)
        credit.release()
        if self._wire is not None:
            posted_ns = int(round_.posted_ns[index])
            facts: dict[str, object] = {
                "bytes": nbytes,
                "step": round_.step,
                "portion": index,
                "waited_us": (posted_ns - int(round_.ready_ns[index])) / 1e3,
                "model": self._model,
            }
            self._wire(portion.name, posted_ns, int(round_.done_ns[index]), facts)

    async def measured(self) -> Profile:
        """What the last rounds took, agreed by all ranks; collective.

        A kernel takes as long as on the slowest rank. A transfer takes as long as where it was posted last,
        so the least over the ranks: the others' includes the wait for that rank.
        """
        calls = 1 + max(block.call for block in self._blocks)
        own = np.zeros(calls + 1)
        if rounds := [r for r in self._past if len(r.spent_s)]:
            spent = np.median([r.spent_s for r in rounds], axis=0)
            for block, seconds in zip(self._blocks, spent, strict=True):
                own[block.call] += seconds
        own[-1] = -np.inf
        if self._carrier is not None and self._past:
            own[-1] = -median(byte_s(self.plan.order, self._portions, r) for r in self._past)
        what = f"{self._model}: timings for a plan"
        await self._comm.allreduce(own, "max", what=what, patience_s=PATIENCE_S)
        return Profile(tuple(map(float, own[:-1])), -float(own[-1]))

    async def _replan(self) -> None:
        """Rank 0 replaces the plan if timings have moved; all ranks follow."""
        profile = await self.measured()
        told = np.zeros(1 + len(self._portions) + len(self._blocks), np.int64)
        if self._comm.rank == 0:
            timings = profile.timings(self._blocks, self._portions)
            if self._guessed or drifted(self._timings, timings):
                self._guessed = False
                self._timings = timings
                self.profile = profile
                plan = best_plan(timings, self._rule, self.plan.credit)
                told[:] = [1, *plan.order, *plan.backward]
        what = f"{self._model}: the plan that rank 0 makes"
        await self._comm.broadcast(told, 0, what=what, patience_s=PATIENCE_S)
        if told[0]:
            order, backward = np.split(told[1:], [len(self._portions)])
            self.plan = Plan(tuple(map(int, order)), tuple(map(int, backward)), self.plan.credit)


def byte_s(order: Iterable[int], portions: Sequence[Portion], round_: Round) -> float:
    """Seconds a byte took on the wire, waits for this rank left out."""
    busy_ns, free_ns, nbytes = 0, 0, 0
    for index in order:
        posted_ns, done_ns = int(round_.posted_ns[index]), int(round_.done_ns[index])
        busy_ns += max(0, done_ns - max(posted_ns, free_ns))
        free_ns = max(free_ns, done_ns)
        nbytes += portions[index].nbytes
    return busy_ns / 1e9 / nbytes


def _milestones() -> Iterator[int]:
    """After how many rounds the plan is looked at: soon, since the first is a guess, then now and then."""
    yield from (3, 10, 30)
    number = 100
    while True:
        yield number
        number += 100
