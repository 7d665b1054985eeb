"""The training loop of one rank: two steps in flight, boundaries where everything comes to rest.

    step k      submit ─ … ─ losses summed, all updates done
    step k + 1            submit as soon as step k is submitted; its first layers start with k's last portions
                          on the wire
    boundary    evaluation, checkpoint, end: both steps are waited for

A wish to stop (a signal on any rank) travels with the losses of step k and is obeyed by all ranks behind
step k + 1, so that no rank starts a collective that another does not. So does the news that a rank cannot go
on with a model, where others train beside it (fleet.py); losses that are no numbers are seen by all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import isfinite, prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...kernels.lane import Task
from ..errors import WeftError, first_of
from ..exchange import (
    Block,
    Carrier,
    Exchange,
    NodeMemory,
    Plan,
    Portion,
    Profile,
    Reducer,
    Round,
    blocks,
    cut,
    rows_of,
    travels,
)
from ..exchange.exchange import PATIENCE_S, Wire
from ..exchange.formats import make_carrier
from ..exchange.plan import describe
from ..exchange.portions import ELEMENT_BYTES
from ..exchange.tune import SMALLEST_BYTES, STEPS, STEPS_PER_TRIAL, Settings, Tuner
from ..work import Compute
from .chain import Share
from .course import schedule
from .data import Data, Samples
from .dealer import Dealer
from .helping import Helper
from .node_updates import NodeUpdates
from .order import batch_indices, micro_batches, owned
from .replica import Replica
from .schema import Job
from .step import StepMaker
from .tally import Tally
from .turns import Turn
from .updates import FlatUpdates, Updates

TUNED_STEPS = 100
"""A run with fewer steps left is over before tuning has paid."""

MEASURABLE_S = 2e-3
"""CPU time that tells whether a step was disturbed; that of less work varies by itself."""

STOP_S = 30.0
"""How long a stop waits for the end of a step, if steps do not take a third of that anyway: as long as Slurm
leaves between SIGTERM and SIGKILL."""

REMEDY = "training diverged; lower the optimizer's rate, or set clip_norm in [train]"


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


@dataclass(frozen=True, slots=True)
class Planned:
    """How gradients travel behind `step` steps, `on_trial` of which were taken to find `settings`."""

    step: int
    settings: Settings
    on_trial: int
    words: str  # of the plan


class TrainingLoop:
    """Runs steps; `on_step` is told of each one's share and summed tally, in order, `on_plan` of every new
    plan of the exchange but those on trial.

    `memory` is what the ranks of a node share; without it the exchange is flat. `turns` are given where other
    models train beside this one, which is number `model` among them. With a `dealer` faster ranks get more
    micro-batches; else all get the same number. `residual` is what the wire's format left out before, where
    ranks have none in `memory`; None for zeros.
    """

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
        on_plan: Callable[[Planned], None] = lambda planned: None,
        wire: Wire | None = None,
        memory: NodeMemory | None = None,
        turns: Turn | None = None,
        model: int = 0,
        dealer: Dealer | None = None,
        residual: NDArray[np.float32] | None = None,
    ) -> None:
        self._team = team
        self._comm = comm
        self._job = job
        self._data = data
        self._replica = replica
        self._compute = compute
        self._on_step = on_step
        self._on_plan = on_plan
        self._wire = wire
        self._memory = memory
        self._stealing = None if memory is None else memory.stealing
        self._turns = turns
        self._model = model
        self._dealer = dealer
        self.total_steps = job.train.total_steps(len(data.train))
        self._schedule = schedule(job, len(data.train))
        self._answers = prod(data.target_spec.shape)
        self._in_flight: InFlight | None = None
        self._step_began: float | None = None  # the step under way; None while the loop is at rest
        self._longest_s = 0.0
        self._profile = Profile.guess(replica.graph, replica.calls, job.train.micro_batch)
        self._communication: asyncio.Task[None] | None = None
        #: Whether a signal ended the run; whether a rank could not go on; and if the losses tell, why.
        self.stopped, self.failed, self.wrong = False, False, ""
        self.settings = job.exchange.settings()
        self._on_trial = 0  # steps that tuning has taken
        self._planned: Plan | None = None  # that was told
        #: Whether gradients travel at all.
        self.travels = travels(team.size, memory)
        #: What the wire's format has left out here; None where nothing is.
        self.residual = residual if memory is None else memory.residual
        self._carrier = self._make_carrier()
        self._configure(self.settings)

    @property
    def exchange(self) -> Exchange:
        """The exchange as it is now, with its plan."""
        return self._exchange

    def _configure(self, settings: Settings) -> None:
        """Cut and plan anew; only while all is at rest, and alike on all ranks."""
        replica, job, memory = self._replica, self._job, self._memory
        self.settings = settings
        # Where nothing travels nobody waits for rows, and whole layers are computed faster than blocks.
        rows = rows_of(replica.graph) if self.travels else {}
        portions = cut(replica.layout, settings.portion_bytes, rows)
        pieces = blocks(replica.calls, portions, replica.memory.movable)
        carrier, updates = self._carrier, self._updates(portions)
        if carrier is not None:
            whole = [slice(portion.start, portion.stop) for portion in portions]
            carrier.cut(whole if memory is None else memory.slices(portions))
        self._exchange = Exchange(
            self._comm,
            carrier,
            portions,
            pieces,
            self._profile,
            rule=settings.rule,
            credit=settings.credit,
            model=job.name,
            replan=self.travels,
            wire=self._wire,
        )
        self._maker = StepMaker(
            replica, portions, pieces, updates, self._compute, self._data.train,
            seed=job.seed, model=job.name, helper=self._helper(pieces),
        )  # fmt: skip
        self._portions = portions

    def _helper(self, pieces: Sequence[Block]) -> Helper | None:
        """What runs kernels that other ranks put out, where any are worth it."""
        stealing, seed = self._stealing, self._job.seed
        if stealing is None or stealing.offers is None:
            return None
        return Helper(self._replica, pieces, stealing, stealing.offers, self._compute, seed=seed)

    def _updates(self, portions: Sequence[Portion]) -> Updates:
        replica, memory, carrier = self._replica, self._memory, self._carrier
        clip_norm, model = self._job.train.clip_norm, self._job.name
        if memory is not None:
            return NodeUpdates(
                replica, memory, portions, self._compute, carrier, clip_norm=clip_norm, model=model
            )
        assert carrier is not None
        return FlatUpdates(replica, portions, self._compute, carrier, clip_norm=clip_norm, model=model)

    def _make_carrier(self) -> Carrier | None:
        """What takes this rank's part of the gradient to others: to all, or from node to node."""
        replica, memory, exchange = self._replica, self._memory, self._job.exchange
        wire = exchange.wire if self.travels else "float32"
        if memory is None:
            if wire != "float32" and self.residual is None:
                self.residual = np.zeros_like(replica.travelling)
            return make_carrier(
                wire, self._comm, replica.travelling, self.residual, replica.layout, keep=exchange.keep
            )
        if memory.peers is None:
            return None
        return make_carrier(
            wire, memory.peers, memory.gradients, self.residual, replica.layout, keep=exchange.keep
        )

    async def open(self) -> None:
        """Make what the wire's format needs; collective. Where several models train, one after the other."""
        if self._carrier is not None:
            await self._carrier.open()

    async def run(
        self,
        first_step: int,
        boundary: Callable[[int], Awaitable[bool]],
        pause: Container[int],
        *,
        ended: bool = False,
    ) -> int:
        """Train from `first_step` (steps done so far); returns the number of steps done at the end.

        After each number of steps in `pause` all comes to rest and `boundary` is awaited; True ends the run.
        One that has `ended` before takes no step.
        """
        await self.open()
        async with self._communicating() as group:
            done = first_step
            tuner = self._tuner(self.total_steps - done)
            while done < self.total_steps and not ended and not (self.stopped or self.failed):
                if (settings := tuner.next()) is not None and done + 1 not in pause:
                    await self._try(settings, tuner, done, group)
                    done += STEPS_PER_TRIAL
                    goes_on = tuner.next() is not None and not (self.stopped or self.failed)
                    if not goes_on or done in pause or done + 1 in pause:
                        await self._reconfigure(tuner.best, group)
                else:
                    await self._step(done)
                    done += 1
                if tuner.next() is None or (not self._on_trial and done + 1 in pause):
                    self._tell_plan(done)  # the latter: one that pauses after each step is not tuned
                if done in pause:
                    await self.rest()
                    self._step_began = None
                    if self.failed or await boundary(done):
                        break
                    self._step_began = time.monotonic()
            if self._turns is not None:
                self._turns.leave(self._model)
            await self.rest()
        return done

    async def rest(self) -> None:
        """Wait until nothing of any step is left to do."""
        await self._account()
        await self._compute.run([Task("rest", lambda: None, self._maker.updated)])
        await self._exchange.settled()

    def _tuner(self, steps: int) -> Tuner:
        """What finds, by measuring the first of so many steps, what the job file leaves open."""
        train, exchange, layout = self._job.train, self._job.exchange, self._replica.layout
        # Beside others a step's time says little about its settings. What is measured differs from run to
        # run, and with it where blocks of rows end. And of one portion nothing can be chosen.
        tuned = self.travels and self._turns is None and steps >= TUNED_STEPS and not train.deterministic
        several = tuned and len(cut(layout, SMALLEST_BYTES, rows_of(self._replica.graph))) > 1
        return Tuner(self.settings, exchange.fixed(), STEPS if several else 0, layout.size * ELEMENT_BYTES)

    async def _try(self, settings: Settings, tuner: Tuner, done: int, group: asyncio.TaskGroup) -> None:
        """Two steps with `settings`, and tell the tuner what the second took."""
        await self._reconfigure(settings, group)
        await self._step(done)
        first = self._moment()
        await self._step(done + 1)
        second = self._moment()
        self._on_trial += STEPS_PER_TRIAL
        assert self._in_flight is not None
        timed = self._in_flight.round
        await self.rest()
        self._profile = await self._exchange.measured()
        seconds = np.zeros(1 + self._team.size)  # of the step; of the same work, by rank
        seconds[0] = await second - await first
        if timed.chain_cpu_s * self._job.train.micro_batch >= MEASURABLE_S:
            seconds[1 + self._team.rank] = timed.chain_cpu_s
        what = f"{self._job.name}: time of a step on trial"
        await self._comm.allreduce(seconds, "max", what=what, patience_s=PATIENCE_S)
        tuner.told(float(seconds[0]), seconds[1:].tolist())

    def _tell_plan(self, done: int) -> None:
        plan = self._exchange.plan
        if self.travels and plan != self._planned:
            self._planned = plan
            self._on_plan(Planned(done, self.settings, self._on_trial, describe(plan, self._portions)))

    async def _reconfigure(self, settings: Settings, group: asyncio.TaskGroup) -> None:
        await self._end_communication()
        self._configure(settings)
        self._start_communication(group)

    def _moment(self) -> asyncio.Future[float]:
        """When all updates of the step made last have ended; not waited for, so that the next may begin."""
        moment: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        ended: list[float] = []
        task = Task("ended", lambda: ended.append(time.perf_counter()), self._maker.updated)

        def tell() -> None:
            if not moment.done():  # (cancelled with who waited for it)
                moment.set_result(ended[0])

        task.notify = self._compute.tell(tell)
        self._compute.submit([task])
        return moment

    async def _step(self, step: int) -> None:
        turn = step if self._turns is None else await self._turns.take(self._model)
        share, tally = self.share(step)
        if self._team.stopping:
            tally.ask_to_stop()
        if self._compute.failed:
            tally.fail()
        self._team.position(f"{self._job.name}: step {step + 1}")
        round_ = Round(step, len(self._portions), tally.array)
        tasks = self._maker.make(share, tally, round_, self._exchange.plan, turn)
        if self._turns is not None:
            self._turns.begin(tasks[0])
        self._exchange.begin(round_)
        self._compute.submit(tasks)
        await self._account()
        self._in_flight = InFlight(share, tally, round_)

    def share(self, step: int) -> tuple[Share, Tally]:
        """This rank's part of a step, and the empty tally of the whole step."""
        train = self._job.train
        indices = batch_indices(self._job.seed, step, len(self._data.train), train.batch)
        parts = micro_batches(indices, train.micro_batch)
        shares = self._deal(len(parts))
        mine, dealt = shares(self._team.rank), None
        if self._stealing is not None:
            claims = self._stealing.claims
            dealt, mine = claims.deal([shares(rank) for rank in claims.ranks]), mine[:1]
        share = Share(step, len(indices), parts, mine, self._schedule.rate(step + 1), dealt)
        ranks = 0 if self._dealer is None else self._team.size
        answers = len(indices) * self._answers
        tally = Tally.of(len(parts), len(indices), answers, ranks=ranks)
        if self._dealer is not None:
            tally.paces_s[self._team.rank] = self._dealer.own_s
        return share, tally

    def _deal(self, count: int) -> Callable[[int], Sequence[int]]:
        """Tells each rank's micro-batches of so many."""
        if self._dealer is not None:
            return self._dealer.deal(count).__getitem__
        return lambda rank: owned(count, rank, self._team.size)

    async def _account(self) -> None:
        """Wait for the losses of the step in flight, and tell."""
        if self._in_flight is None:
            return
        step, self._in_flight = self._in_flight, None
        await step.round.totals
        if self._dealer is not None:
            self._dealer.measured(step.tally.ends_s)
            self._dealer.learn(step.tally.paces_s)
        now = time.monotonic()
        if self._step_began is not None:
            self._longest_s = max(self._longest_s, now - self._step_began)
        self._step_began = now
        self.stopped = self.stopped or step.tally.stop
        if not self.failed:
            self.wrong = _wrong(self._job.name, step, self._data.train)
            self.failed = step.tally.failed or bool(self.wrong)
        if not self.failed:
            self._on_step(step.share, step.tally)

    @asynccontextmanager
    async def _communicating(self) -> AsyncIterator[asyncio.TaskGroup]:
        """Runs beside the body: the communication task, and a watch on the lane. Any that fails ends all."""
        try:
            async with asyncio.TaskGroup() as group:
                self._start_communication(group)
                beside = [
                    group.create_task(self._failures(), name="failures of the lane"),
                    group.create_task(self._stuck(), name="watch on a stop"),
                ]
                self._step_began = time.monotonic()
                yield group
                for task in beside:
                    task.cancel()
                await self._end_communication()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None

    def _start_communication(self, group: asyncio.TaskGroup) -> None:
        self._communication = group.create_task(self._exchange.run(), name="communication")

    async def _end_communication(self) -> None:
        """Let it come to its end: the last round may be followed by a new plan, a collective."""
        assert self._communication is not None
        self._exchange.end()
        await self._communication

    async def _failures(self) -> None:
        await asyncio.shield(self._compute.failure)

    async def _stuck(self) -> None:
        """A stop is obeyed behind a step: end the job if that step never comes."""
        while True:
            await asyncio.sleep(1.0)
            if not self._team.stopping or self._step_began is None:
                continue
            limit_s = max(STOP_S, 3 * self._longest_s)
            if time.monotonic() - self._step_began > limit_s:
                raise WeftError(
                    f"{self._job.name}: a stop was asked for, and no step has ended for {limit_s:.0f} s:"
                    " ended without a checkpoint. The last one that was written is kept"
                )


def _wrong(name: str, step: InFlight, samples: Samples) -> str:
    """What makes a step of the model `name` worthless, if no rank has failed; empty if nothing does."""
    tally, number = step.tally, step.share.step + 1
    if tally.failed and isfinite(tally.entered):
        return (
            f"of the {tally.micro_batches} micro-batches of step {number} of {name} {tally.entered:.0f} were"
            " computed: a mistake of Weft, which is worth a report; --resume goes on from the last checkpoint"
        )
    if tally.failed or isfinite(tally.loss):
        return ""
    if damage := tally.damage(samples, step.share.parts):
        return f"the loss of {name} is {tally.loss} in step {number}: {damage}; clean it"
    if not step.share.step:
        return (
            f"the loss of {name} is {tally.loss} in its first step, before any update: the initial"
            " weights hold values that are not finite, or they or the data are too large"
        )
    return f"the {diverged(name, tally.loss, number)}"


def diverged(name: str, loss: float, step: int) -> str:
    """What to say of a loss of the model `name` that is no number any more."""
    return f"loss of {name} became {loss} in step {step}: {REMEDY}"


def odd_weights(name: str, array: str, step: int) -> str:
    """What to say where an array of the model's weights holds what is no number behind a step."""
    return f"{array} of {name} holds NaN or infinity after step {step}, and is not stored: {REMEDY}"
