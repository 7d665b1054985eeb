"""The training loop of `weft train`, which takes turns with other candidates of a bench.

It lives as long as the bench and comes to rest between turns, so that its settings are tuned once and its
plan is made from measured timings, as in any run; every turn begins with the same weights.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench._steps import Turn
from bench._weft import Fixed, Model, digest
from weft.kernels.lane import Task
from weft.runtime.exchange.tune import STEPS, Settings
from weft.runtime.message import Communicator
from weft.runtime.observe.trace import COMPUTE, WIRE, Span
from weft.runtime.train.loop import TrainingLoop
from weft.runtime.train.turns import Turn as Order
from weft.runtime.work import Compute

FIRST_TURN = STEPS + 4
"""Steps until a loop rests for the first time: it has then tuned its settings, and planned with them."""

PLANNED = 4
"""The same of a loop with nothing to tune: it replaces its first plan, a guess, behind the third."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """What had passed at a moment, in seconds: time, and CPU of the loop's and of the lane's thread."""

    time: float = 0.0
    loop: float = 0.0
    lane: float = 0.0

    def since(self, before: Clocks) -> Clocks:
        """The difference."""
        return Clocks(self.time - before.time, self.loop - before.loop, self.lane - before.lane)

    @classmethod
    def now(cls, lane: int) -> Clocks:
        """`lane` is its thread's identifier, or 0; to be called on the loop's."""
        cpu_s = time.clock_gettime(time.pthread_getcpuclockid(lane)) if lane else 0.0
        return cls(time.monotonic_ns() / 1e9, time.thread_time(), cpu_s)


@dataclass(slots=True)
class Trained(Turn):
    """A loop's turn: also what was spent and seen in the timed steps."""

    whole: Clocks = field(default_factory=Clocks)  # from rest to rest
    spent: Clocks = field(default_factory=Clocks)
    window: tuple[int, int] = (0, 0)  # of `spent`, in nanoseconds
    spans: list[Span] = field(default_factory=list)  # of these steps and the warm ones


class Training:
    """A training loop that makes its steps in turns. Use as an async context manager.

    `compute` and `order` are given where it is number `number` of several that share a lane (_several.py).
    """

    def __init__(
        self,
        model: Model,
        comm: Communicator,
        fixed: Fixed,
        *,
        compute: Compute | None = None,
        order: Order | None = None,
        number: int = 0,
    ) -> None:
        self.model = model
        self._order, self._number = order, number
        self._done = 0
        tunes = order is None and not fixed.everything
        self._pauses = {FIRST_TURN if tunes else PLANNED}  # the loop looks at it behind each step
        self._go: asyncio.Future[bool] | None = None  # True: it is to end
        self._rests = asyncio.Event()
        self._turn = Trained(0.0)
        self._marks: list[Clocks] = []
        self._lane = 0
        self._own_lane = compute is None
        self._compute = compute or Compute(model.replica.device, spans=self._on_span)
        self._loop = TrainingLoop(
            model.world,
            comm,
            model.job(fixed),
            model.data,
            model.replica,
            self._compute,
            on_step=self._on_step,
            wire=self._on_wire,
            memory=model.memory,
            turns=order,
            model=number,
        )
        self._running: asyncio.Task[int] | None = None

    @classmethod
    async def open(cls, model: Model, fixed: Fixed) -> Training:
        """With a communicator of its own, as a model has that trains beside others."""
        return cls(model, await model.world.duplicate("training"), fixed)

    @property
    def settings(self) -> Settings:
        """What tuning has found."""
        return self._loop.settings

    async def first_turn(self) -> Trained:
        """The steps in which the loop finds its settings; `seconds` are those of the last two."""
        await self.model.reset()
        turn = (await take(self._compute, [self], [None]))[0]
        turn.seconds = self._marks[-1].since(self._marks[-3]).time / 2
        return turn

    async def turn(self, steps: int, warm: int) -> Trained:
        """So many more steps, from the first weights; those after `warm` of them are timed."""
        await self.model.reset()
        before = Clocks.now(self._lane)
        turn = (await take(self._compute, [self], [steps]))[0]
        turn.whole = Clocks.now(self._lane).since(before)
        turn.spent = self._marks[-1].since(self._marks[warm - 1])
        turn.window = (int(self._marks[warm - 1].time * 1e9), int(self._marks[-1].time * 1e9))
        # From one step's losses to another's, equally far behind their steps' starts: what comes before and
        # behind the steady state does not count.
        turn.seconds = turn.spent.time / (steps - warm)
        turn.digest = digest(self.model.replica)
        return turn

    def go(self, steps: int | None) -> None:
        """Begin a turn: so many steps, or the first."""
        self._turn, self._marks = Trained(0.0), []
        self._rests.clear()
        if steps is not None:
            self._pauses.add(self._done + steps)
        if self._go is None:
            self._running = asyncio.create_task(self._loop.run(0, self._boundary, self._pauses))
        else:
            self._go.set_result(False)

    async def rested(self) -> Trained:
        """Wait until a turn is over."""
        rests = asyncio.ensure_future(self._rests.wait())
        assert self._running is not None
        await asyncio.wait((rests, self._running), return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            self._running.result()
        return self._turn

    async def _boundary(self, done: int) -> bool:
        self._done = done
        if self._order is not None:
            self._order.leave(self._number)
        self._go = asyncio.get_running_loop().create_future()
        self._rests.set()
        return await self._go

    def _on_step(self, share: object, tally: Any) -> None:
        self._turn.losses.append(tally.loss)
        self._marks.append(Clocks.now(self._lane))

    def _on_span(self, task: Task, start_ns: int, end_ns: int) -> None:
        self._lane = threading.get_ident()
        self._turn.spans.append(Span(COMPUTE, task.name, start_ns, end_ns, task.info or {}))

    def _on_wire(self, name: str, start_ns: int, end_ns: int, facts: dict[str, object]) -> None:
        self._turn.spans.append(Span(WIRE, name, start_ns, end_ns, facts))

    async def __aenter__(self) -> Training:
        return self

    async def __aexit__(self, error: object, *_: object) -> None:
        if self._running is not None and not self._running.done():
            if error is None and self._go is not None:
                self._go.set_result(True)
            else:
                self._running.cancel()
            await asyncio.wait((self._running,))
        if self._own_lane:
            await self._compute.__aexit__()


async def take(compute: Compute, trainings: Sequence[Training], steps: Sequence[int | None]) -> list[Trained]:
    """Let loops on one lane take a turn, each so many steps (None: the first); returns when all rest."""
    selector = trainings[0].model.world.selector
    selector.computing = lambda: compute.busy
    try:
        for training, count in zip(trainings, steps, strict=True):
            training.go(count)
        return list(await asyncio.gather(*(training.rested() for training in trainings)))
    finally:
        selector.computing = lambda: False
