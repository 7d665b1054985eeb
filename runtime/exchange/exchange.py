"""The communication task: starts portions in planned order, at most `credit` at once, tells who has arrived.

    lane:  portion ready ──> Round.ready ─┐
                                          │   order of the plan, credit
    wire:                     Iallreduce <┘──> Round.arrived ──> the lane's gate: update

Statistics (the losses of the step's micro-batches) travel first: they are ready when the last forward pass
is. Every rank starts the same collectives in the same order, whatever its own timing, because both orders,
within a round and of the rounds, are fixed. A round ends before the next begins, which costs nothing: the
next step's first loss needs every weight, hence every portion of this one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .portions import Portion

Wire = Callable[[str, int, int, dict[str, object]], None]
"""Told of each transfer: name, start and end in nanoseconds of time.monotonic_ns, and its facts."""


class Reducer(Protocol):
    """The part of a communicator that the exchange needs."""

    def allreduce(self, array: NDArray[np.generic], op: str = "sum", *, what: str = "") -> Awaitable[None]:
        """Start adding up `array` over all ranks, in place."""


class Round:
    """One step's exchange: what is ready here, and whom to tell when it is whole.

    `arrived` is called on the loop with a portion's index; `totals` completes when the statistics are summed.
    """

    def __init__(
        self, step: int, portions: int, statistics: NDArray[np.float64], arrived: Callable[[int], None]
    ) -> None:
        self.step = step
        self.statistics = statistics
        self.arrived = arrived
        self.ready = [asyncio.Event() for _ in range(portions)]
        self.counted = asyncio.Event()
        self.totals: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class FlatExchange:
    """All-reduce of the flat gradient, portion by portion. `run` is the rank's communication task."""

    def __init__(
        self,
        comm: Reducer,
        gradients: NDArray[np.float32],
        portions: Sequence[Portion],
        plan: Plan,
        *,
        model: str,
        wire: Wire | None = None,
    ) -> None:
        self._comm = comm
        self._slices = [gradients[portion.start : portion.stop] for portion in portions]
        self._portions = portions
        self._plan = plan
        self._model = model
        self._wire = wire
        self._rounds: asyncio.Queue[Round] = asyncio.Queue()

    def begin(self, round_: Round) -> None:
        """Queue a step's exchange; rounds are worked off in the order of their beginning."""
        self._rounds.put_nowait(round_)

    async def run(self) -> None:
        """Work off rounds until cancelled."""
        while True:
            round_ = await self._rounds.get()
            await self._work_off(round_)

    async def _work_off(self, round_: Round) -> None:
        credit = asyncio.Semaphore(self._plan.credit)
        await round_.counted.wait()
        statistics = self._comm.allreduce(
            round_.statistics, what=f"{self._model}: losses of step {round_.step}"
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._count(round_, statistics))
            for index in self._plan.order:
                await round_.ready[index].wait()
                await credit.acquire()
                started_ns = time.monotonic_ns()
                portion = self._portions[index]
                reduced = self._comm.allreduce(
                    self._slices[index], what=f"{self._model}: step {round_.step}, {portion.name}"
                )
                group.create_task(self._land(round_, portion, reduced, credit, started_ns))

    async def _count(self, round_: Round, statistics: Awaitable[None]) -> None:
        await statistics
        round_.totals.set_result(None)

    async def _land(
        self,
        round_: Round,
        portion: Portion,
        reduced: Awaitable[None],
        credit: asyncio.Semaphore,
        started_ns: int,
    ) -> None:
        await reduced
        round_.arrived(portion.index)
        credit.release()
        if self._wire is not None:
            facts: dict[str, object] = {
                "bytes": portion.nbytes,
                "step": round_.step,
                "portion": portion.index,
            }
            self._wire(portion.name, started_ns, time.monotonic_ns(), facts)
