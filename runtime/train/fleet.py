"""One job of several models: each has its own folder, communicators and trainer, and all share the lane.

    lane   a: forward, backward ─────────┐ b: forward, backward ─────────┐ a: forward, …
    wire                    a's gradients └───────────────┘ b's gradients └──────────────

Steps are taken in one order on every rank (interleave.py, turns.py). A model that ends leaves the order, one
that fails leaves it behind the same step on every rank, and the others go on. A model alone is a fleet of
one: it takes no turns, and what fails ends the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np

from ...kernels.lane import Group, Task
from ..errors import first_of
from ..graph import Graph
from ..launcher import as_launched
from ..message import World
from ..observe import RunFolder, Screen, Trace, write_chrome
from ..observe.trace import COMPUTE, WIRE, decode
from ..work import Compute
from .advice import once
from .halving import Contender, Halving, metric
from .interleave import Claim, ModelOrder, preview, step_cost, weights
from .log import Log
from .prepare import Prepared, prepare
from .schema import Job
from .trainer import Result, Trainer
from .turns import Turns

NAMED = 8  # models whose shares the first line tells

SPANS = 1 << 18
"""Kept over all ranks: rank 0 gathers them, and writes about 200 bytes of JSON for each."""


Beside = Callable[[Compute, Sequence[RunFolder]], AbstractAsyncContextManager[object]]
"""What is to go on beside the training, on the same lane; told where the runs are stored."""


def nothing(compute: Compute, folders: Sequence[RunFolder]) -> AbstractAsyncContextManager[None]:
    """Only the training."""
    return nullcontext()


async def train(
    world: World,
    jobs: Sequence[Job],
    *,
    resume: Sequence[Path] = (),
    beside: Beside = nothing,
    command: str = "weft train",
) -> list[Result]:
    """Train all jobs at once; every rank calls it alike. `resume` are runs to go on with, one a job.

    `beside` is entered before the first step and left after the last. `command` is what goes on with a run.
    A stop that comes before there is a run ends main: CancelledError.

    Raises JobError, GraphError, DataError, CheckpointError or MachineError before anything is computed. Of a
    single job it also raises whatever a kernel raises; among several the result tells of a failure.
    """
    # A signal ends what comes before there is a run at once (interrupt.py), a run behind a step (loop.py).
    ready = await prepare(world, jobs, resume or [None] * len(jobs))
    return await Fleet(world, ready, as_launched(command, world.size)).run(beside)


def claim(graph: Graph, job: Job, samples: int, ranks: int) -> Claim:
    """What a model claims of the lane, which has so many samples to train on."""
    cost = step_cost(graph, min(job.train.batch, samples), job.train.micro_batch, ranks)
    return Claim(cost, job.run.share, job.run.priority)


class Fleet:
    """Prepared models on this rank."""

    def __init__(self, world: World, ready: Sequence[Prepared], command: str = "weft train") -> None:
        self._world = world
        self._command = command
        self._note, notes = once({one.job.name: one.note for one in ready})
        self._ready = ready = [replace(one, note=notes[one.job.name]) for one in ready]
        traced = any(one.job.run.trace for one in ready)
        self._trace = Trace(world.rank, world.host, limit=SPANS // world.size if traced else 0)
        self._screen: Screen | None = None
        self._results: list[Result] = []
        self._steps = [one.job.train.total_steps(len(one.data.train)) for one in ready]
        self._left = [one.steps_left for one in ready]
        self._claims = [claim(one.replica.graph, one.job, len(one.data.train), world.size) for one in ready]

    async def run(self, beside: Beside = nothing) -> list[Result]:
        """Train all to their ends."""
        world = self._world
        with ExitStack() as stack:
            if world.rank == 0:
                self._screen = Screen()
                stack.callback(self._screen.close)
            logs = [
                stack.enter_context(
                    Log(
                        one.folder, one.job.name, one.first_step, steps, self._screen,
                        ranks=world.size, several=self._several,
                    )
                )
                for one, steps in zip(self._ready, self._steps, strict=True)
            ]  # fmt: skip
            if world.rank == 0:
                for one in self._ready:  # the runs are ours now: no other process may write to their folders
                    one.folder.keep(one.asked.dump())
            async with Compute(self._ready[0].replica.device, spans=self._span) as compute:
                world.selector.computing = lambda: compute.busy  # naps are longer while a kernel runs
                try:
                    async with beside(compute, [one.folder for one in self._ready]):
                        return await self._train(compute, logs)
                finally:
                    world.selector.computing = lambda: False

    @property
    def _several(self) -> bool:
        return len(self._ready) > 1

    async def _train(self, compute: Compute, logs: Sequence[Log]) -> list[Result]:
        if self._several:
            turns = Turns(ModelOrder(self._claims))
            halving = self._halving(turns, logs[0])
            trainers = [
                Trainer(
                    self._world, await self._world.duplicate(one.job.name), one,
                    compute.part(Group(one.job.name)), log,
                    wire=self._wire, turns=turns, halving=halving, model=number,
                )
                for number, (one, log) in enumerate(zip(self._ready, logs, strict=True))
            ]  # fmt: skip
            logs[0].note("\n".join(filter(None, (self._headline(), self._note))))
        else:
            trainers = [
                Trainer(
                    self._world, self._world, self._ready[0], compute, logs[0],
                    wire=self._wire, command=self._command,
                )
            ]  # fmt: skip
        for trainer in trainers:
            await trainer.start()
        results = await self._together(trainers)
        await self._gather_trace(logs)
        if self._screen is not None:
            self._screen.close()  # what is noted from here on stands below the bars
        for trainer, result in zip(trainers, results, strict=True):
            await trainer.finish(result)
        stopped = [result.folder for result in results if result.stopped and not result.failure]
        if self._several and stopped:
            runs = " ".join(f"--resume {quote(str(path))}" for path in stopped)
            logs[0].note(f"go on with: {self._command} {runs}")
        return results

    def _halving(self, turns: Turns, log: Log) -> Halving | None:
        """What stops the worse half at each rung, where the jobs ask for it."""
        job = self._ready[0].job
        if not job.run.halve:
            return None
        contenders = {
            number: Contender(one.job.name, steps, one.first_step, one.verdict)
            for number, (one, steps) in enumerate(zip(self._ready, self._steps, strict=True))
            if one.steps_left
        }
        return Halving(contenders, turns, metric(job), log.note)

    async def _together(self, trainers: Sequence[Trainer]) -> list[Result]:
        if len(trainers) == 1:
            return [await trainers[0].run()]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(trainer), name="training") for trainer in trainers]
                await asyncio.wait(tasks)  # here, not in the group's exit: what is thrown into main ends them
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None
        return [task.result() for task in tasks]

    async def _one(self, trainer: Trainer) -> Result:
        self._tell_status()
        result = await trainer.run()
        self._results.append(result)
        self._tell_status()
        return result

    # What is seen of the run

    def _span(self, task: Task, start_ns: int, end_ns: int) -> None:
        self._trace.span(COMPUTE, task.name, start_ns, end_ns, **(task.info or {}))

    def _wire(self, name: str, start_ns: int, end_ns: int, facts: dict[str, object]) -> None:
        self._trace.span(WIRE, name, start_ns, end_ns, **facts)

    def _headline(self) -> str:
        names = [one.job.name for one in self._ready]
        parts = [f"{name} {part:.0%}" for name, part in zip(names, weights(self._claims), strict=True)]
        if len(parts) > NAMED:
            parts[NAMED - 1 :] = [f"and {len(parts) - NAMED + 1} more"]
        order = preview(self._claims, self._left, names)
        steps = f"\nsteps in the order {order}" if order else ""  # none are left of runs that have ended
        return f"{len(names)} models share every rank's compute time: {', '.join(parts)}{steps}"

    def _tell_status(self) -> None:
        if self._screen is not None:
            failed = sum(result.failure is not None for result in self._results)
            left, ended = len(self._ready) - len(self._results), len(self._results) - failed
            counts = {f"{left} train": left, f"{ended} ended": ended, f"{failed} failed": failed}
            self._screen.status(", ".join(text for text, count in counts.items() if count))

    async def _gather_trace(self, logs: Sequence[Log]) -> None:
        """All spans to rank 0, on its clock, into one file for every model that had steps to take."""
        wanted = [
            (one.folder, log)
            for one, log, left in zip(self._ready, logs, self._left, strict=True)
            if one.job.run.trace and left
        ]
        if not wanted:
            return
        channel = await self._world.channel("trace")
        mine = self._trace.encode(self._world.clock_offset_ns)
        if self._world.rank != 0:
            await channel.send(0, None, np.frombuffer(mine, np.uint8))
            return
        traces = [decode(mine)]
        for _ in range(self._world.size - 1):
            message = await channel.receive()
            traces.append(decode(message.arrays[0].tobytes()))
        for folder, log in wanted:
            with log.dispensable():
                write_chrome(folder.trace, traces)
