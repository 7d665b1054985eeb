"""Jobs of several models for the tests, trained together and watched, or tampered with."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
from mpi4py import MPI

from weft.kernels.lane import Task
from weft.runtime.message import World, run
from weft.runtime.observe import read_metrics
from weft.runtime.train import checkpoint
from weft.runtime.train.fleet import Fleet
from weft.runtime.train.prepare import Prepared, prepare
from weft.runtime.train.schema import Job
from weft.runtime.train.trainer import Result

RANK, SIZE = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def dense(folder: Path, name: str = "dense", **changes: object) -> Job:
    layers = [
        {"kernel": "flatten"},
        {"kernel": "dense", "features": 48},
        {"kernel": "relu"},
        {"kernel": "dropout", "rate": 0.2},
        {"kernel": "dense", "features": 10},
    ]
    train = {
        "batch": 24 * SIZE,
        "micro_batch": 24,
        "steps": 8,
        "evaluate_every": 4,
        "deterministic": True,  # most tests compare bits
        "optimizer": {"name": "sgd", "rate": 0.05, "momentum": 0.9},
    }
    return made(folder, name, {"source": "digits"}, {"layers": layers}, {**train, **changes})


def text(folder: Path, name: str = "text", **changes: object) -> Job:
    data = {"source": "text", "path": "{stdlib}", "files": "json/*.py", "context": 16}
    train = {
        "batch": 10,
        "micro_batch": 4,
        "steps": 6,
        "evaluate_every": 6,
        "deterministic": True,
        "optimizer": {"name": "adamw", "rate": 0.002},
        "clip_norm": 1.0,
    }
    model = {"gpt": {"layers": 1, "width": 16, "heads": 2}}
    return made(folder, name, data, model, {**train, **changes})


def made(folder: Path, name: str, data: object, model: object, train: object) -> Job:
    run = {"folder": str(folder / "runs")}
    job = {"name": name, "seed": 3, "data": data, "model": model, "train": train, "run": run}
    return Job.model_validate({**job, "exchange": {"portion_bytes": 4096}, "device": "cpu"})


def changed(job: Job, section: str, **values: object) -> Job:
    return job.model_copy(update={section: getattr(job, section).model_copy(update=values)})


@dataclass
class Ran:
    """What a fleet left behind on this rank."""

    results: list[Result]
    ready: list[Prepared]
    spans: list[tuple[str, Task, int, int]] = field(default_factory=list)
    wires: list[tuple[str, int, int, dict[str, object]]] = field(default_factory=list)

    @property
    def starts(self) -> list[tuple[str, int]]:
        """(model, step) in the order in which the first task of each began."""
        first: dict[tuple[str, int], int] = {}
        for model, task, start, _ in self.spans:
            if task.info and "step" in task.info:
                first.setdefault((model, task.info["step"]), start)
        return sorted(first, key=first.__getitem__)


class Watched(Fleet):
    """A fleet that tells of what runs on its lane."""

    def __init__(self, world: World, ran: Ran, ran_kernel: Callable[[str, str, int], None]) -> None:
        super().__init__(world, ran.ready)
        self.ran, self.ran_kernel = ran, ran_kernel

    def _span(self, task: Task, start_ns: int, end_ns: int) -> None:
        super()._span(task, start_ns, end_ns)
        info = task.info or {}
        model = str(info.get("model"))
        self.ran.spans.append((model, task, start_ns, end_ns))
        if "step" in info:
            self._world.loop.call_soon_threadsafe(self.ran_kernel, model, task.name, info["step"])

    def _wire(self, name: str, start_ns: int, end_ns: int, facts: dict[str, object]) -> None:
        super()._wire(name, start_ns, end_ns, facts)
        self.ran.wires.append((name, start_ns, end_ns, facts))


class Held:
    """A model's communicator; `hold` names, for what travels, the kernel that must have run here before."""

    def __init__(self, comm, hold, started) -> None:
        self.comm, self.rank, self.hold, self.started = comm, comm.rank, hold, started
        self.ran: dict[tuple[str, str, int], asyncio.Event] = defaultdict(asyncio.Event)

    def broadcast(self, array, root=0, *, what="", patience_s=None):
        return self.comm.broadcast(array, root, what=what, patience_s=patience_s)

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def allreduce(self, array, op="sum", *, what="", patience_s=None):
        self.started(what)
        return asyncio.ensure_future(self._held(self.comm.allreduce(array, op, what=what), what))

    async def _held(self, reduced, what: str) -> None:
        await reduced
        if (kernel := self.hold(what)) is not None:
            await self.ran[kernel].wait()


def fleet(
    jobs: Sequence[Job],
    arrange: Callable[[list[Prepared]], None] = lambda ready: None,
    hold: Callable[[str], tuple[str, str, int] | None] = lambda what: None,
    started: Callable[[str], None] = lambda what: None,
    resume: Sequence[Path] = (),
) -> Ran:
    """Train `jobs` together on all ranks; `arrange` may tamper with what has been prepared."""

    async def main(world: World) -> Ran:
        held = []

        async def duplicate(name: str):
            held.append(Held(await World.duplicate(world, name), hold, started))
            return held[-1]

        def ran_kernel(model: str, name: str, step: int) -> None:
            for comm in held:
                comm.ran[model, name, step].set()

        ran = Ran([], await prepare(world, jobs, list(resume) or [None] * len(jobs)))
        arrange(ran.ready)
        world.duplicate = duplicate  # type: ignore[method-assign]
        ran.results = await Watched(world, ran, ran_kernel).run()
        return ran

    ran = run(main)
    assert ran is not None
    return ran


def final(ran: Ran, model: int) -> dict[str, np.ndarray]:
    """The last checkpoint, on rank 0."""
    path = checkpoint.latest(ran.ready[model].folder.checkpoints)
    snapshot = checkpoint.load(path)
    return {**snapshot.tensors, **checkpoint.read(path, snapshot.left_out)}


def assert_equal(found: Ran, model: int, alone: Ran) -> None:
    """Bit for bit the weights, optimizer states and losses of a run alone."""
    assert found.results[model].score == alone.results[0].score
    if RANK == 0:
        tensors, expected = final(found, model), final(alone, 0)
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
        losses = [
            read_metrics(one.folder.metrics).steps.loss.tolist()
            for one in (found.ready[model], alone.ready[0])
        ]
        assert losses[0] == losses[1]


def after_compiling(one: Prepared, then: Callable[[], None]) -> None:
    """Have `then` called once the model's kernels have been compiled."""
    warm_up = one.replica.warm_up

    def warm(batch: int) -> None:
        warm_up(batch)
        then()

    one.replica.warm_up = warm  # type: ignore[method-assign]


def before_kernel(one: Prepared, phase: str, then: Callable[[int], None]) -> None:
    """Have `then` called, on the lane, before the last kernel of a phase, with the number of its run: that of
    the step, from 0, where a rank has one micro-batch a step and the kernel's layer is not cut by rows."""
    make, numbers, changed = one.replica.training, count(), set[int]()

    def training(batch: int):
        program = make(batch)  # one a batch size, kept
        if id(program) not in changed:
            changed.add(id(program))
            *calls, last = getattr(program, phase)

            def run(**keys) -> None:
                then(next(numbers))
                last.run(**keys)

            setattr(program, phase, (*calls, replace(last, run=run)))
        return program

    one.replica.training = training  # type: ignore[method-assign]
