"""The training loop of one rank: two steps in flight, boundaries where everything comes to rest.

    step k      submit ─ … ─ losses summed, all updates done
    step k + 1            submit as soon as step k is submitted; its first layers start with k's last portions
                          on the wire
    boundary    evaluation, checkpoint, end: both steps are waited for

A wish to stop (a signal on any rank) travels with the losses of step k and is obeyed by all ranks behind
step k + 1, so that no rank starts a collective that another does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import isfinite, prod
from typing import Protocol

from ...kernels.lane import Task
from ...kernels.schedule import Schedule
from ..errors import JobError, WeftError
from ..exchange import FlatExchange, Portion, Reducer, Round, cut, first_come
from ..exchange.exchange import Wire
from ..graph import Layout
from ..work import Compute
from .data import Data
from .order import batch_indices, micro_batches, owned, steps_per_epoch
from .replica import Replica
from .schema import Job
from .step import Share, StepMaker
from .tally import Tally


class Team(Protocol):
    """The part of a world that the loop needs."""

    rank: int
    size: int

    @property
    def stopping(self) -> bool:
        """Whether somebody wants the run to stop."""

    def position(self, text: str) -> None:
        """What this rank does, for those who wait for it."""


@dataclass(slots=True)
class InFlight:
    """A step that has been submitted and whose losses are still to be read."""

    share: Share
    tally: Tally
    round: Round


class TrainingLoop:
    """Runs steps; `on_step` is told of each one's share and summed tally, in order."""

    def __init__(
        self,
        team: Team,
        comm: Reducer,
        job: Job,
        data: Data,
        replica: Replica,
        compute: Compute,
        *,
        on_step: Callable[[Share, Tally], None],
        wire: Wire | None = None,
    ) -> None:
        self._team = team
        self._job = job
        self._data = data
        self._replica = replica
        self._compute = compute
        self._on_step = on_step
        self._portions = portions(replica.layout, job)
        self._exchange = FlatExchange(
            comm,
            replica.travelling,
            self._portions,
            first_come(self._portions, job.exchange.credit),
            model=job.name,
            wire=wire,
        )
        self._maker = StepMaker(
            replica, self._portions, compute, data.train, seed=job.seed, clip_norm=job.train.clip_norm
        )
        self.total_steps = job.train.total_steps(len(data.train))
        self._schedule = schedule(job, len(data.train))
        self._answers = prod(data.target_spec.shape)
        self._in_flight: InFlight | None = None
        self.stopped = False

    async def run(self, first_step: int, boundary: Callable[[int], Awaitable[bool]], pause: set[int]) -> int:
        """Train from `first_step` (steps done so far); returns the number of steps done at the end.

        After each number of steps in `pause` all comes to rest and `boundary` is awaited; True ends the run.
        """
        done = first_step
        async with self._communication():
            while done < self.total_steps and not self.stopped:
                await self._step(done)
                done += 1
                if done in pause:
                    await self.rest()
                    if await boundary(done):
                        break
            await self.rest()
        return done

    async def rest(self) -> None:
        """Wait until nothing of any step is left to do."""
        await self._account()
        await self._compute.run([Task("rest", lambda: None, self._maker.updates)])

    async def _step(self, step: int) -> None:
        share, tally = self.share(step)
        if self._team.stopping:
            tally.ask_to_stop()
        self._team.position(f"{self._job.name}: step {step + 1}")
        gates: list[Task] = []
        round_ = Round(
            step, len(self._portions), tally.array, arrived=lambda index: self._compute.finish(gates[index])
        )
        tasks, gates = self._maker.make(share, tally, round_)
        self._exchange.begin(round_)
        self._compute.submit(tasks)
        await self._account()
        self._in_flight = InFlight(share, tally, round_)

    def share(self, step: int) -> tuple[Share, Tally]:
        """This rank's part of a step, and the empty tally of the whole step."""
        train = self._job.train
        indices = batch_indices(self._job.seed, step, len(self._data.train), train.batch)
        parts = micro_batches(indices, train.micro_batch)
        mine = [(index, parts[index]) for index in owned(len(parts), self._team.rank, self._team.size)]
        share = Share(step, len(indices), mine, self._schedule.rate(step + 1))
        return share, Tally.of(len(parts), len(indices), len(indices) * self._answers)

    async def _account(self) -> None:
        """Wait for the losses of the step in flight, and tell."""
        if self._in_flight is None:
            return
        step, self._in_flight = self._in_flight, None
        await step.round.totals
        self.stopped = self.stopped or step.tally.stop
        if not isfinite(step.tally.loss):
            raise WeftError(
                f"the loss of {self._job.name} became {step.tally.loss} in step {step.share.step + 1}:"
                " training diverged; lower the optimizer's rate, or set clip_norm in [train]"
            )
        self._on_step(step.share, step.tally)

    @asynccontextmanager
    async def _communication(self) -> AsyncIterator[None]:
        """Runs beside the body: the communication task, and a watch on the lane. Any that fails ends all."""
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._exchange.run(), name="communication"),
                    group.create_task(self._failures(), name="failures of the lane"),
                ]
                yield
                for task in beside:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None

    async def _failures(self) -> None:
        await asyncio.shield(self._compute.failure)


def first_of(error: BaseException) -> BaseException:
    """The first exception of a group, however deep: the cause, and it alone is what a reader wants."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def schedule(job: Job, samples: int) -> Schedule:
    """The learning rate of a run; JobError where the schedule does not fit the run's length."""
    steps = job.train.total_steps(samples)
    try:
        return job.train.schedule.build(job.train.optimizer.rate, steps)
    except ValueError as error:
        raise JobError(
            f"{job.name}: [train] schedule does not fit a run of {steps} steps: {error}"
        ) from error


def portions(layout: Layout, job: Job) -> tuple[Portion, ...]:
    """The portions of a job's gradient."""
    return cut(layout, job.exchange.portion_bytes)


def pauses(job: Job, samples: int, first_step: int) -> tuple[set[int], set[int]]:
    """After how many steps a run evaluates, and after how many it writes a checkpoint."""
    total = job.train.total_steps(samples)
    unit = 1 if job.train.steps else steps_per_epoch(samples, job.train.batch)
    every = job.train.evaluate_every * unit
    evaluations = set(range(every, total + 1, every)) | {total}
    checkpoints = (
        set(range(job.checkpoint.every, total, job.checkpoint.every)) if job.checkpoint.every else set()
    )
    return {n for n in evaluations if n > first_step}, {n for n in checkpoints if n > first_step}
