"""One model's life on a rank, from its first step to its last checkpoint.

    start      say what is trained, compile
    run        steps, evaluations, checkpoints (loop.py, step.py); last checkpoint, test score
    finish     a sample of text; say how it ended

Where other models train beside it (fleet.py), what goes wrong with a model ends it alone: a kernel that
raises, losses that are no numbers, a checkpoint that cannot be written. All ranks then leave it behind the
same step, and its last good checkpoint stays the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from shlex import quote

import numpy as np

from ...kernels.lane import Task
from ..errors import CheckpointError, Mistake
from ..exchange.exchange import Wire
from ..exchange.formats import warm_up
from ..message import Communicator, World
from ..observe.folder import write_whole
from ..observe.words import figure
from ..work import Compute
from . import checkpoint, residuals
from .chain import Share
from .course import Pauses
from .data import Samples
from .dealer import Dealer
from .ending import reached, told
from .evaluate import Score, evaluate
from .examine import lineage
from .failing import explain
from .halving import Halving
from .inference import WEIGHT, described
from .log import Log
from .loop import TrainingLoop, diverged, odd_weights
from .order import steps_per_epoch
from .prepare import Prepared
from .sample import shown, write_text
from .schema import Job
from .tally import Tally
from .turns import Turn
from .worked import tell_work


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: steps done, whether a signal stopped it, the test score, and where it is stored.

    `failure` tells in a line why it failed while others went on; None where it did not.
    """

    name: str
    steps: int
    stopped: bool
    score: Score | None
    folder: Path
    failure: str | None = None


COMPILING_S = 120.0
"""Nobody need hear of a rank that waits for another's compiler: that one tells of it itself."""


class StepError(Mistake):
    """A step that is worth nothing (loop.py): its sentence says all, so it comes without a traceback."""

    exit_status = 1


class Trainer:
    """A prepared model, its communicator and its part of the lane.

    `compute` has a group if the model may fail alone; what then fails on one rank is told to all. `command`
    is what goes on with a run that was stopped, if that is to be said of this one.
    """

    def __init__(
        self,
        world: World,
        comm: Communicator,
        ready: Prepared,
        compute: Compute,
        log: Log,
        *,
        wire: Wire,
        turns: Turn | None = None,
        halving: Halving | None = None,
        model: int = 0,
        command: str = "",
    ) -> None:
        self._world = world
        self._comm = self._owing = comm
        self._asked = ready.asked
        self._job = job = ready.job
        self._data = ready.data
        self._replica, self._memory = ready.replica, ready.memory
        self._folder = ready.folder
        self._first_step = ready.first_step
        self._best, self._verdict = ready.best, ready.verdict
        self._halving, self._model = halving, model
        self._left = ready.steps_left
        self._stored = -1  # the step of the last checkpoint
        self._advice = ready.note
        self._compute = compute
        self._log = log
        self._command = command
        self._dealer = _dealer(world, job, turns)
        self._loop = TrainingLoop(
            world, comm, job, ready.data, ready.replica, compute,
            on_step=self._on_step, on_plan=log.exchange,
            wire=wire if world.size > 1 else None,  # alone it carries to nobody
            memory=ready.memory, turns=turns, model=model, dealer=self._dealer, residual=ready.residual,
        )  # fmt: skip
        self._written: asyncio.Task[Path] | None = None  # the checkpoint under way
        self._scored = ready.first_step, ready.score  # the last step where the validation set was evaluated
        self._reached = reached(job, ready.score)
        self._failed = False  # on some rank, as all ranks know
        self._odd = frozenset(self._odd_arrays())  # from the start: a mask's constants may be infinite
        self._diverged = ""  # what the last evaluation has found

    async def start(self) -> None:
        """Say what is trained, and compile; one model after the other."""
        self._log.note(self._headline())
        if self._advice:
            self._log.note(self._advice)
        if not self._left:
            ended, more = self._ended()
            self._log.note(f"{self._job.name}: {ended}, nothing is left to train; for more give --set {more}")
        await self._warm_up()
        await self._loop.open()
        if self._loop.residual is not None:
            # Its own: on the world's, which a model alone has, what a program had sent before came instead.
            self._owing = await self._comm.duplicate("what is left out")

    async def run(self) -> Result:
        """Train to the end."""
        loop, halving = self._loop, self._halving
        rungs = frozenset[int]() if halving is None else halving.pauses(self._model)
        pauses = Pauses.of(self._job, len(self._data.train), rungs)

        async def boundary(done: int) -> bool:
            better, best = False, self._best
            if pauses.evaluates(done) and len(self._data.validation):
                score = await self._evaluate(self._data.validation, "validation", done)
                self._scored = done, score
                self._reached = self._reached or reached(self._job, score)
                better = best is not None and score is not None and best.told(score, done)
            over = self._reached or self._failed or (best is not None and best.over)
            over = over or await self._outdone(done)
            if (pauses.saves(done) or better) and not await self._ill():
                await self._checkpoint(done)
            return over or self._failed

        ended = not self._left or await self._outdone(self._first_step)
        done = await loop.run(self._first_step, boundary, pauses, ended=ended)
        if halving is not None:
            halving.leave(self._model, stopped=loop.stopped)
        self._failed = self._failed or loop.failed
        if self._stored != done and not await self._ill():
            await self._checkpoint(done)
        await self._saved()  # before all else: a launcher may leave half a second after its signal
        if loop.wrong and self._compute.group is None:
            # Whoever raises first ends all ranks: a checkpoint that rank 0 still wrote was lost with them.
            await self._comm.barrier(what=f"{self._job.name}: the checkpoint that rank 0 writes")
            raise StepError(loop.wrong)
        score = None
        if not await self._ill():
            if not loop.stopped:
                tested = await self._take_best(done)
                if len(self._data.test) and not self._failed:
                    score = await self._evaluate(self._data.test, "test", tested)
            if not self._job.train.deterministic:
                await tell_work(
                    self._world, self._comm, self._job.name, self._memory, self._dealer, self._log
                )
        if self._diverged and not (self._failed or loop.stopped):
            if self._compute.group is None:
                raise StepError(self._diverged)
            loop.wrong, self._failed = self._diverged, True
        failure = None
        if await self._ill():
            failure = await explain(
                self._world, self._comm, self._job.name, self._compute, loop.wrong, self._log
            )
        reason = f"failed: {failure}" if failure else self._reason()
        self._log.end(done, reason, failed=failure is not None)
        return Result(self._job.name, done, loop.stopped, score, self._folder.path, failure)

    async def finish(self, result: Result) -> None:
        """Write a sample, and say how the run ended."""
        if self._world.rank != 0:
            return
        if self._job.sample is not None and not result.stopped and not result.failure:
            await self._write_sample()
        self._log.conclude(self._conclusion(result))

    # What is seen of the run

    def _on_step(self, share: Share, tally: Tally) -> None:
        epoch = share.step // steps_per_epoch(len(self._data.train), self._job.train.batch) + 1
        ending = self._loop.stopped
        self._log.step(share.step + 1, epoch, tally.loss, share.rate, share.samples, ending=ending)
        if self._written is not None and self._written.done():
            self._take_written()  # a full disk ends the run now, not at the next checkpoint

    def _headline(self) -> str:
        world, job, replica = self._world, self._job, self._replica
        ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
        if len(world.nodes) > 1:
            ranks += f" on {len(world.nodes)} nodes"
        start = f", from step {self._first_step}" if self._first_step else ""
        parameters = sum(p.spec.size for p in replica.layout.parameters)
        count, samples = self._loop.total_steps, len(self._data.train)
        files = f" in {self._data.train.files:,} files" if self._data.train.files > 1 else ""
        batch = f"{job.train.batch:,}" if job.train.batch <= samples else "all of them"
        steps = f"{count:,} step{'s' if count > 1 else ''} of {batch}{start}"
        wire = ""
        if self._loop.travels and job.exchange.wire != "float32":
            wire = f"; gradients travel as {job.exchange.wire}"
        return (
            f"{job.name}: {parameters:,} parameters, {samples:,} training samples of"
            f" {tuple(self._data.input_spec.shape)}{files}, {steps} on {ranks} ({replica.device.name}){wire}"
        )

    def _ended(self) -> tuple[str, str]:
        """Why there was nothing left to train from the start, and what of the job would change that."""
        if self._reached:
            return "its target was reached before", "train.target.value=VALUE"
        if self._best is not None and self._best.over:
            return f"it was no better for {self._best.waited} before", "train.best.patience=N"
        if self._verdict is not None and self._verdict.outdone:
            return "it was outdone by other models before", "run.halve=false"
        return "all steps were done before", "train.steps=N or train.epochs=N"

    def _reason(self) -> str:
        if self._loop.stopped:
            return "stopped by a signal"
        if self._reached:
            return "target reached"
        if self._best is not None and self._best.over:
            return f"no better for {self._best.waited}"
        if self._verdict is not None and self._verdict.outdone:
            return f"outdone: place {self._verdict.place} of {self._verdict.among}"
        return "all steps done"

    def _conclusion(self, result: Result) -> str:
        if result.failure:
            text = f"failed after step {result.steps}: {result.failure}"
            last = next(iter(checkpoint.checkpoints(self._folder.checkpoints)), None)
            kept = f"its last checkpoint is {last.name}" if last else "it has no checkpoint"
            return f"{text}\nstored in {result.folder}; {kept}"
        text = f"{self._reason()} after step {result.steps}"
        best = self._best if self._best is not None and self._best.step else None
        if best is not None:
            text += f"; best validation {best.asked.metric} {figure(best.value)} after step {best.step}"
        if (score := result.score) is not None:
            text += ";" if best is None else " with"
            text += f" test loss {figure(score.loss)}"
            text += "" if score.accuracy is None else f", test accuracy {score.accuracy:.4f}"
        text += f"\nstored in {result.folder}"
        if result.stopped and self._command:
            text += f"; go on with: {self._command} --resume {quote(str(result.folder))}"
        return text

    async def _write_sample(self) -> None:
        assert self._job.sample is not None
        sample, texts = self._job.sample, list[str]()
        write = Task("sample", lambda: texts.append(write_text(self._replica, sample, self._job.seed)))
        await self._compute.run([write])
        self._log.note(f"a sample:\n{shown(texts[0])}\n")
        with self._log.dispensable():
            write_whole(self._folder.path / "sample.txt", lambda file: file.write(texts[0]))

    # What all ranks do together

    async def _warm_up(self) -> None:
        """Compile: one rank of each node first, the others then find its work in numba's cache.

        All at once would compile the same code as often as there are ranks. And all wait for the last: while
        it compiled, the others told of it in their first step, as of a rank that holds them up.
        """
        self._world.position("getting kernels ready")
        size = min(self._job.train.micro_batch, len(self._data.train))

        async def compiled() -> None:
            await self._compute.run(
                [
                    Task("compile", lambda: self._replica.warm_up(size)),
                    Task("compile", lambda: warm_up(self._job.exchange.wire)),
                ]
            )

        if self._world.node_rank == 0:
            slow = asyncio.get_running_loop().call_later(
                2.0, self._log.note, "getting kernels ready (the first run on a machine compiles them)"
            )
            try:
                await compiled()
            finally:
                slow.cancel()
        await self._world.node.barrier(
            what="compiled kernels of this node's first rank", patience_s=COMPILING_S
        )
        if self._world.node_rank != 0:
            await compiled()
        await self._world.barrier(what="compiled kernels of all ranks", patience_s=COMPILING_S)

    async def _evaluate(self, samples: Samples, split: str, done: int) -> Score | None:
        """The score of a split; None, and the model has failed, where some rank could not do its part."""
        self._world.position(f"{self._job.name}: {split} after step {done}")
        with self._log.pause():
            score = await evaluate(
                self._replica,
                samples,
                self._compute,
                self._comm,
                micro_batch=self._job.train.micro_batch,
                rank=self._world.rank,
                ranks=self._world.size,
                model=self._job.name,
                what=f"{self._job.name}: {split} score after step {done}",
                tell=self._log.note,
            )
        if score is None:
            self._failed = True
        else:
            self._log.evaluation(done, split, score)
            lost = not (isfinite(score.loss) or score.damage)
            self._diverged = f"the {split} {diverged(self._job.name, score.loss, done)}" if lost else ""
        return score

    async def _outdone(self, done: int) -> bool:
        """Wait for the other models where they are compared; whether this one ends there."""
        halving = self._halving
        if halving is None or not halving.due(self._model, done):
            return False
        if self._scored[0] != done or self._scored[1] is None:
            self._scored = done, await self._evaluate(self._data.validation, "validation", done)
        if (score := self._scored[1]) is None:
            return True  # it has failed
        self._world.position(f"{self._job.name}: waits behind step {done} to be compared with other models")
        with self._log.pause():
            verdict = await halving.judge(self._model, score)
        if verdict is None:
            self._loop.stopped = True
            return True
        self._verdict = verdict
        return verdict.outdone

    async def _checkpoint(self, done: int) -> None:
        """Rank 0 copies the state and writes it while training goes on; one at a time.

        Weights that are no numbers are not written, and the model has failed. A loss tells of them only in
        the next step: a run whose last update overflowed, with nothing held out, ended as if all were well,
        and the newest checkpoint was one from which nothing could go on.
        """
        if odd := await self._odd_weights():
            self._loop.wrong, self._failed = odd_weights(self._job.name, odd, done), True
            return
        self._stored = done
        await self._saved()  # before the next copies are made: beside those of the last they fill memory
        nodes, layout = self._world.nodes, self._replica.layout
        holding = residuals.holders(nodes, shared=self._memory is not None)
        left_out = await residuals.gather(self._owing, holding, self._loop.residual, layout, self._job.name)
        if self._world.rank != 0:
            return
        self._keep_place()
        progress = {
            "lineage": lineage(self._job, self._data, self._replica.graph),
            "steps": self._loop.total_steps,
            "labels": list(self._data.labels),
            "samples": described(self._data),
            "exchange": {"ranks_of_nodes": [len(ranks) for ranks in nodes], **asdict(self._loop.settings)},
            **({} if self._best is None else self._best.progress),
            **told(self._scored[1] if self._scored[0] == done else None),
            **({} if self._verdict is None else self._verdict.progress),
        }
        snapshot = checkpoint.Snapshot(done, {**self._replica.tensors(), **left_out}, progress)
        self._written = asyncio.create_task(
            asyncio.to_thread(checkpoint.save, self._folder.checkpoints, snapshot, self._job.checkpoint.keep)
        )

    def _keep_place(self) -> None:
        """Where the run's folder was moved or removed meanwhile, make another in its place, with the job.

        Checkpoints went on under the old name, and nobody was told; the command that the run named to go on
        with failed, for want of a job.toml.
        """
        folder = self._folder
        if os.path.isfile(folder.job):
            return
        self._log.error(
            f"weft: {folder.path} was moved or removed while it trains: what is written from here on lies in "
            "a new folder of that name; metrics.jsonl and the checkpoints of before stay with the old one"
        )
        with self._log.dispensable(), contextlib.suppress(OSError):  # whoever writes there next tells of it
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            folder.keep(self._asked.dump())

    async def _take_best(self, done: int) -> int:
        """Have the weights of the best evaluation, where they are kept, for the test; returns their step.

        Where they cannot be read, the model has failed.
        """
        best = self._best
        if best is None or best.step in (0, done):
            return done
        flat = np.empty(self._replica.layout.size, np.float32)
        parameters = self._replica.layout.parameters
        if self._world.rank == 0:
            try:
                kept = (await asyncio.to_thread(self._kept)).tensors
                for parameter in parameters:
                    flat[parameter.start : parameter.stop] = kept[WEIGHT + parameter.name].reshape(-1)
            except CheckpointError as error:
                if self._compute.group is None:
                    raise
                self._compute.group.fail(error)
        if await self._ill():
            return done
        await self._comm.broadcast(flat, 0, what=f"{self._job.name}: the weights of step {best.step}")
        self._replica.begin({p.name: flat[p.start : p.stop] for p in parameters})
        if self._memory is not None:
            # By the model's own communicator: with the node's, which all models share, a rank that came to
            # another model first met this one's writer there, and tested weights that were not yet written.
            await self._memory.fence(among=self._comm)
        self._diverged = ""  # of weights that nobody uses any more
        return best.step

    def _kept(self) -> checkpoint.Snapshot:
        return checkpoint.load(checkpoint.chosen(self._folder.checkpoints))

    async def _odd_weights(self) -> str:
        """The first array of weights that has come to hold NaN or infinity, as rank 0 finds; else nothing."""
        found = (number for number in self._odd_arrays() if number not in self._odd)
        number = np.array([next(found, -1)], np.int64)
        await self._comm.broadcast(number, 0, what=f"{self._job.name}: whether its weights are numbers")
        return "" if number[0] < 0 else self._replica.layout.parameters[int(number[0])].name

    def _odd_arrays(self) -> Iterator[int]:
        """On rank 0 the arrays of weights that hold NaN or infinity, by number."""
        if self._world.rank != 0:
            return
        host = self._replica.device.to_host(self._replica.parameters)
        for number, parameter in enumerate(self._replica.layout.parameters):
            if not np.isfinite(host[parameter.start : parameter.stop]).all():
                yield number

    async def _saved(self) -> None:
        """Wait until the checkpoint under way is written."""
        if self._written is not None:
            await asyncio.wait([self._written])
            self._take_written()

    def _take_written(self) -> None:
        assert self._written is not None
        written, self._written = self._written, None
        if self._compute.group is None:
            written.result()
        elif isinstance(error := written.exception(), Exception):
            self._compute.group.fail(error)

    # Failing alone

    async def _ill(self) -> bool:
        """Whether some rank cannot go on with this model; every rank asks at the same place."""
        if self._compute.group is None or self._failed:
            return self._failed
        failed = np.array([self._compute.failed], np.float64)
        await self._comm.allreduce(failed, "max", what=f"{self._job.name}: whether a rank failed")
        self._failed = bool(failed[0])
        return self._failed


def _dealer(world: World, job: Job, turns: Turn | None) -> Dealer | None:
    """Inside a node ranks take work from each other; beside other models a pace says little about a rank."""
    if len(world.nodes) == 1 or job.train.deterministic or turns is not None:
        return None
    return Dealer(world.size)
