"""Training one job on all ranks of a world, from the job file to the last checkpoint.

prepare    data and graph, agreement between the ranks, weights new or from a checkpoint (prepare.py)
loop       steps, evaluations, checkpoints                                      (loop.py, step.py)
finish     last checkpoint, test score, the trace of all ranks, a sample of text
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...kernels.lane import Task
from ..message import World
from ..observe import Trace, write_chrome
from ..observe.trace import COMPUTE, WIRE, decode
from ..work import Compute
from . import checkpoint
from .data import Samples
from .evaluate import Score, evaluate
from .log import Log
from .loop import TrainingLoop, pauses
from .order import steps_per_epoch
from .prepare import Prepared, lineage, prepare
from .sample import write_text
from .schema import Job
from .step import Share
from .tally import Tally

SPANS = 1 << 18
"""Kept over all ranks: rank 0 gathers them, and writes about 200 bytes of JSON for each."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: steps done, whether a signal stopped it, the test score, and where it is stored."""

    steps: int
    stopped: bool
    score: Score | None
    folder: Path


async def train(world: World, job: Job, *, resume: Path | None = None) -> Result:
    """Train `job`; every rank calls it alike. `resume` is the folder of the run to go on with.

    Raises JobError, GraphError, DataError, CheckpointError or MachineError before anything is computed, and
    whatever a kernel raises while it is.
    """
    # A signal ends the run behind a step (loop.py), with a checkpoint; with no callback it would cancel main.
    world.on_stop(lambda: None)
    return await _Trainer(world, await prepare(world, job, resume)).run()


class _Trainer:
    """What the phases of one run share."""

    def __init__(self, world: World, ready: Prepared) -> None:
        self._world = world
        self._job = job = ready.job
        self._data = ready.data
        self._replica = ready.replica
        self._memory = ready.memory
        self._folder = ready.folder
        self._first_step = ready.first_step
        self._trace = Trace(world.rank, world.host, limit=SPANS // world.size if job.run.trace else 0)
        self._written: asyncio.Task[Path] | None = None  # the checkpoint under way
        self._reached = False

    async def run(self) -> Result:
        job, world = self._job, self._world
        total = job.train.total_steps(len(self._data.train))
        folder = self._folder if world.rank == 0 else None
        with Log(folder, job.name, self._first_step, total) as log:
            self._log = log
            async with Compute(self._replica.device, spans=self._span) as compute:
                self._compute = compute
                world.selector.computing = lambda: compute.busy  # naps are longer while a kernel runs
                try:
                    return await self._train(total)
                finally:
                    world.selector.computing = lambda: False

    async def _train(self, total: int) -> Result:
        job, world, replica, log = self._job, self._world, self._replica, self._log
        log.note(self._headline(total))
        await self._warm_up()
        evaluations, checkpoints = pauses(job, len(self._data.train), self._first_step)

        async def boundary(done: int) -> bool:
            if done in evaluations and len(self._data.validation):
                score = await self._evaluate(self._data.validation, "validation", done)
                self._reached = self._reached or reached(job, score)
            if done in checkpoints:
                await self._checkpoint(done)
            return self._reached

        loop = TrainingLoop(
            world, world.comm, job, self._data, replica, self._compute,
            on_step=self._on_step, wire=self._wire, memory=self._memory,
        )  # fmt: skip
        done = await loop.run(self._first_step, boundary, evaluations | checkpoints)
        await self._checkpoint(done)
        if self._written is not None:
            await self._written  # before all else: a launcher may leave half a second after its signal
        score = None
        if not loop.stopped and len(self._data.test):
            score = await self._evaluate(self._data.test, "test", done)
        await self._gather_trace()
        log.end(done, self._reason(loop.stopped))
        if world.rank == 0 and job.sample is not None and not loop.stopped:
            await self._write_sample()
        log.note(self._conclusion(done, loop.stopped, score))
        return Result(done, loop.stopped, score, self._folder.path)

    # What is seen of the run

    def _span(self, task: Task, start_ns: int, end_ns: int) -> None:
        self._trace.span(COMPUTE, task.name, start_ns, end_ns, **(task.info or {}))

    def _wire(self, name: str, start_ns: int, end_ns: int, facts: dict[str, object]) -> None:
        self._trace.span(WIRE, name, start_ns, end_ns, **facts)

    def _on_step(self, share: Share, tally: Tally) -> None:
        epoch = share.step // steps_per_epoch(len(self._data.train), self._job.train.batch) + 1
        self._log.step(share.step + 1, epoch, tally.loss, share.rate, share.samples)
        if self._written is not None and self._written.done():
            self._written.result()  # a full disk ends the run now, not at the next checkpoint

    def _headline(self, total: int) -> str:
        world, job, replica = self._world, self._job, self._replica
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
        if len(world.nodes) > 1:
            ranks += f" on {len(world.nodes)} nodes"
        start = f", from step {self._first_step}" if self._first_step else ""
        parameters = sum(p.spec.size for p in replica.layout.parameters)
        return (
            f"{job.name}: {parameters:,} parameters, {len(self._data.train):,} training samples,"
            f" {total:,} steps of {job.train.batch}{start} on {ranks} ({replica.device.name})"
        )

    def _reason(self, stopped: bool) -> str:
        if stopped:
            return "stopped by a signal"
        return "target reached" if self._reached else "all steps done"

    def _conclusion(self, done: int, stopped: bool, score: Score | None) -> str:
        text = f"{self._reason(stopped)} after step {done}"
        if score is not None:
            text += f"; test loss {score.loss:.4f}"
            text += "" if score.accuracy is None else f", test accuracy {score.accuracy:.4f}"
        text += f"\nstored in {self._folder.path}"
        return text + (f"; go on with: weft train --resume {self._folder.path}" if stopped else "")

    async def _write_sample(self) -> None:
        assert self._job.sample is not None
        sample, texts = self._job.sample, list[str]()
        write = Task("sample", lambda: texts.append(write_text(self._replica, sample, self._job.seed)))
        await self._compute.run([write])
        (self._folder.path / "sample.txt").write_text(texts[0], encoding="utf-8")
        self._log.note(f"a sample:\n{texts[0]}\n")

    # What all ranks do together

    async def _warm_up(self) -> None:
        """Compile: one rank of each node first, the others then find its work in numba's cache.

        All at once would compile the same code as often as there are ranks.
        """
        self._world.position("compiling kernels")
        size = min(self._job.train.micro_batch, len(self._data.train))

        async def compiled() -> None:
            await self._compute.run([Task("compile", lambda: self._replica.warm_up(size))])

        if self._world.node_rank == 0:
            slow = asyncio.get_running_loop().call_later(
                2.0, self._log.note, "compiling kernels (only the first run on a machine takes this long)"
            )
            try:
                await compiled()
            finally:
                slow.cancel()
        await self._world.node.barrier(what="compiled kernels of this node's first rank")
        if self._world.node_rank != 0:
            await compiled()

    async def _evaluate(self, samples: Samples, split: str, done: int) -> Score:
        self._world.position(f"{self._job.name}: {split} after step {done}")
        score = await evaluate(
            self._replica,
            samples,
            self._compute,
            self._world.comm,
            micro_batch=self._job.train.micro_batch,
            rank=self._world.rank,
            ranks=self._world.size,
            what=f"{self._job.name}: {split} score after step {done}",
        )
        self._log.evaluation(done, split, score)
        return score

    async def _checkpoint(self, done: int) -> None:
        """Rank 0 copies the state and writes it while training goes on; one at a time."""
        if self._world.rank != 0:
            return
        if self._written is not None:
            await self._written
        progress = {"lineage": lineage(self._job, self._data), "labels": list(self._data.labels)}
        snapshot = checkpoint.Snapshot(done, self._replica.tensors(), progress)
        self._written = asyncio.create_task(
            asyncio.to_thread(checkpoint.save, self._folder.checkpoints, snapshot, self._job.checkpoint.keep)
        )

    async def _gather_trace(self) -> None:
        """All spans to rank 0, on its clock, into one file."""
        if not self._job.run.trace:
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
        write_chrome(self._folder.trace, sorted(traces, key=lambda trace: trace.rank))


def reached(job: Job, score: Score) -> bool:
    """Whether the job's target is met."""
    target = job.train.target
    if target is None:
        return False
    if target.metric == "loss":
        return score.loss <= target.value
    return score.accuracy is not None and score.accuracy >= target.value
