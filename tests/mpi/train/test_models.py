"""Several models in one job: one order on every rank, the same weights as alone, and each fails alone."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from weft.kernels.lane import Task
from weft.runtime.errors import MachineError, Mistake
from weft.runtime.message import World, run
from weft.runtime.observe import RunFolder, read_chrome, read_metrics
from weft.runtime.train import checkpoint
from weft.runtime.train.data.section import NpzData
from weft.runtime.train.fleet import Fleet, claim
from weft.runtime.train.interleave import steps
from weft.runtime.train.prepare import Prepared, prepare
from weft.runtime.train.schema import Job
from weft.runtime.train.trainer import Result

RANK, SIZE = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rank 0's: the job, and so the folder in it, must be the same on all ranks."""
    return Path(MPI.COMM_WORLD.bcast(str(tmp_path)))


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
    return dict(checkpoint.load(path).tensors)


def assert_equal(found: Ran, model: int, alone: Ran) -> None:
    """Bit for bit the weights, optimizer states and losses of a run alone."""
    assert found.results[model].score == alone.results[0].score
    if RANK == 0:
        tensors, expected = final(found, model), final(alone, 0)
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
        losses = [
            [row["loss"] for row in read_metrics(one.folder.metrics).steps]
            for one in (found.ready[model], alone.ready[0])
        ]
        assert losses[0] == losses[1]


@pytest.mark.mpi
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_s2_4_the_weights_are_those_of_separate_runs(inside, folder):
    """Two models that differ in size, optimizer, data and length."""
    jobs = [changed(job, "exchange", inside=inside) for job in (dense(folder), text(folder))]
    together = fleet(jobs)
    assert [result.steps for result in together.results] == [8, 6]
    assert [result.failure for result in together.results] == [None, None]
    for model, job in enumerate(jobs):
        assert_equal(together, model, fleet([job]))


@pytest.mark.mpi(min_size=2)
def test_s2_4_models_whose_ranks_take_work_from_each_other_lose_and_double_nothing(folder):
    """Beside each other, and with ranks that are late: their losses are those of a fixed division."""
    jobs = [dense(folder, batch=72 * SIZE, steps=4), text(folder, batch=12 * SIZE)]
    fixed = fleet(jobs)
    free = fleet([changed(job, "train", deterministic=False) for job in jobs], arrange=disturbed)
    for model in range(2):
        assert free.results[model].score == pytest.approx(fixed.results[model].score, rel=1e-3)
        if RANK == 0:
            metrics = [read_metrics(ran.ready[model].folder.metrics) for ran in (free, fixed)]
            losses = [[row["loss"] for row in one.steps] for one in metrics]
            np.testing.assert_allclose(*losses, rtol=1e-4)
            if len(metrics[0].work) == SIZE:  # (who has its node's memory for itself takes nothing)
                counted = sum(sum(row["micro_batches"].values()) for row in metrics[0].work)
                assert counted == jobs[model].train.steps * 3 * SIZE
            assert not metrics[1].work


def disturbed(ready: list[Prepared]) -> None:
    """Ranks of which each is late in other steps."""
    late = random.Random(RANK)

    def tamper(one: Prepared) -> None:
        load = one.replica.load

        def slow_load(*arguments) -> None:
            time.sleep(late.choice([0, 0, 0.01]))
            load(*arguments)

        one.replica.load = slow_load  # type: ignore[method-assign]

    for one in ready:
        tamper(one)


@pytest.mark.mpi
def test_s2_1_steps_start_in_the_determined_order_on_every_rank(folder):
    jobs = [
        dense(folder, "one", steps=9),
        changed(text(folder, "two", steps=4), "run", share=2.0),
        dense(folder, "three", steps=6, batch=9, micro_batch=9),
        changed(dense(folder, "four", steps=5), "run", priority=1),
    ]
    ran = fleet(jobs, disturbed)
    claims = [claim(one.replica.graph, one.job, SIZE) for one in ran.ready]
    order = [(jobs[model].name, step) for model, step in steps(claims, [9, 4, 6, 5])]
    assert ran.starts == order
    if RANK == 0:
        for one in ran.ready:  # every model's folder holds the spans of all
            traces = read_chrome(one.folder.trace)
            assert [trace.rank for trace in traces] == list(range(SIZE))
            for trace in traces:
                first: dict[tuple[str, int], int] = {}
                for span in trace.spans:
                    if span.track == "compute" and "step" in span.args:
                        first.setdefault((span.args["model"], span.args["step"]), span.start_ns)
                assert sorted(first, key=first.__getitem__) == order


class Posted:
    """Whose portion 0 has left on this rank; lanes can wait for it."""

    def __init__(self) -> None:
        self.events: dict[str, threading.Event] = defaultdict(threading.Event)

    def __call__(self, what: str) -> None:
        if "portion 0" in what:
            self.events[portion_of(what)[0]].set()

    def before(self, one: Prepared, model: str) -> None:
        """Have the last weight gradient of the first step of `one` wait for portion 0 of `model`.

        Later steps must not: portions leave when those of the step before have arrived, for which another
        rank may need the lane that waits.
        """

        def wait(step: int) -> None:
            assert step or self.events[model].wait(30), f"portion 0 of {model} did not leave"

        after_compiling(one, lambda: before_kernel(one, "backward", wait))


def portion_of(what: str) -> tuple[str, int]:
    """Model and step (from 0) of a portion, as the exchange describes its transfer."""
    model, _, rest = what.partition(": step ")
    return model, int(rest.partition(",")[0]) - 1


@pytest.mark.mpi
def test_s2_2_one_model_computes_while_the_others_gradients_travel(folder):
    """The last weight gradient of b waits, on the lane, until the first portion of a has left, and no portion
    of a arrives before that weight gradient: spans overlap on every rank, or nothing goes on."""
    jobs = [changed(dense(folder, name, evaluate_every=8), "exchange", inside="flat") for name in "ab"]
    posted = Posted()

    def hold(what: str) -> tuple[str, str, int] | None:
        if what[0] == "a" and "portion" in what:
            return ("b", "dense_1.weight_gradient", portion_of(what)[1])
        return None

    ran = fleet(jobs, lambda ready: posted.before(ready[1], "a"), hold, posted)
    assert [result.steps for result in ran.results] == [8, 8]
    ends = {
        task.info["step"]: end
        for model, task, _, end in ran.spans
        if model == "b" and task.name == "dense_1.weight_gradient" and task.info
    }
    assert sorted(ends) == list(range(8))
    travelling = [(facts["step"], left, arrived) for _, left, arrived, facts in ran.wires
                  if facts["model"] == "a"]  # fmt: skip
    assert all(ends[step] <= arrived for step, _, arrived in travelling)
    assert any(left <= ends[step] for step, left, _ in travelling if step == 0)


@pytest.mark.mpi
def test_s2_3_synchronisation_starts_before_all_gradients_exist(folder):
    """The last weight gradient of each model's first step waits, on the lane, until a portion has left."""
    jobs = [changed(dense(folder, name), "exchange", inside="flat") for name in "ab"]
    posted = Posted()

    def arrange(ready: list[Prepared]) -> None:
        for one in ready:
            posted.before(one, one.job.name)

    ran = fleet(jobs, arrange, started=posted)
    assert [(result.failure, result.steps) for result in ran.results] == [(None, 8), (None, 8)]


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


@pytest.mark.mpi
def test_a_model_whose_target_is_reached_leaves_the_others(folder):
    target = {"metric": "loss", "value": 100.0}
    jobs = [dense(folder, "early", target=target), dense(folder, "late", evaluate_every=8)]
    ran = fleet(jobs)
    assert [result.steps for result in ran.results] == [4, 8]
    assert_equal(ran, 1, fleet([jobs[1]]))


@pytest.mark.mpi
def test_runs_of_several_models_are_resumed_together(folder):
    # Portions as large as layers: a run's first step computes layers whole, and rows may round otherwise.
    jobs = [changed(job, "exchange", portion_bytes=1 << 20) for job in (dense(folder), text(folder))]
    whole = fleet(jobs)
    short = [changed(job, "train", steps=3, evaluate_every=3) for job in jobs]
    first = fleet(short)
    runs = [result.folder for result in first.results]
    second = fleet(jobs, resume=runs)
    assert [one.first_step for one in second.ready] == [3, 3]
    if RANK == 0:
        for model in range(2):
            expected = final(whole, model)
            for name, tensor in final(second, model).items():
                np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


# ------------------------------------------------------------------------------------------- failing alone


def break_kernel(one: Prepared, phase: str, step: int) -> None:
    """The last kernel of the phase raises in this step, counted from 0."""

    def fail(number: int) -> None:
        if number >= step:
            raise ArithmeticError("the kernel's own words")

    before_kernel(one, phase, fail)


def break_update(one: Prepared, last: int) -> None:
    """Updates behind this step, counted from 1, raise on the last rank."""
    update = one.replica.update

    def broken(*slices, step: int, **keys) -> None:
        if step > last:
            raise ArithmeticError("the kernel's own words")
        update(*slices, step=step, **keys)

    one.replica.update = broken  # type: ignore[method-assign]


def break_evaluation(one: Prepared) -> None:
    """Evaluations raise on the last rank."""

    def broken(batch: int) -> None:
        raise ArithmeticError("the kernel's own words")

    after_compiling(one, lambda: setattr(one.replica, "inference", broken))


def later(phase: str) -> Callable[[Prepared], None]:
    """A kernel of the phase raises in the sixth step."""
    return lambda one: after_compiling(one, lambda: break_kernel(one, phase, 5))


BROKEN = {
    "in a forward pass": (later("forward"), "shared"),
    "in a backward pass": (later("backward"), "flat"),
    "while compiling": (lambda one: break_kernel(one, "forward", 0), "shared"),
    "in an update": (lambda one: break_update(one, 4), "flat"),
    "in an update of the node's weights": (lambda one: break_update(one, 4), "shared"),
    "in an evaluation": (break_evaluation, "shared"),
}


@pytest.mark.mpi
@pytest.mark.parametrize(("broken", "inside"), BROKEN.values(), ids=BROKEN)
def test_a_model_fails_alone(broken, inside, folder, capfd):
    # Where nodes have 2+1 or 2+1+1 ranks, dealt in turn, the last is its node's second: it owns no slice.
    failing = SIZE - 2 if "+1" in os.environ.get("WEFT_NODES", "") else SIZE - 1
    jobs = [changed(dense(folder, name), "exchange", inside=inside) for name in ("ill", "well")]
    jobs = [changed(job, "checkpoint", every=2) for job in jobs]

    def arrange(ready: list[Prepared]) -> None:
        if failing == RANK:
            broken(ready[0])

    ran = fleet(jobs, arrange)
    ill, well = ran.results
    assert well.failure is None
    assert ill.failure is not None
    assert ill.steps < 8
    assert "ArithmeticError: the kernel's own words (rank " in ill.failure
    assert MPI.COMM_WORLD.allgather((ill.steps, ill.failure)) == [(ill.steps, ill.failure)] * SIZE
    told = capfd.readouterr()
    if RANK == 0:
        assert told.err.count("ArithmeticError: the kernel's own words") == 1, told.err
        assert f"rank {failing} of {SIZE} on " in told.err
        assert "failed in the model ill:" in told.err
        assert f"ill: failed after step {ill.steps}: " in told.out
        assert "well: all steps done after step 8" in told.out
        assert_sound(ill, ran.ready[0].folder)
        end = read_metrics(ran.ready[0].folder.metrics).end
        assert end is not None
        assert "ArithmeticError" in end["reason"]
    else:
        assert told.err == ""
    assert_equal(ran, 1, fleet([jobs[1]]))


def assert_sound(ill: Result, kept: RunFolder) -> None:
    """No checkpoint was written once the model had failed: those that are there are of the steps before."""
    for path in checkpoint.checkpoints(kept.checkpoints):
        snapshot = checkpoint.load(path)
        assert snapshot.step < ill.steps or snapshot.step == 4
        assert all(np.isfinite(tensor).all() for tensor in snapshot.tensors.values())


@pytest.mark.mpi
def test_a_checkpoint_that_cannot_be_written_ends_its_model_alone(folder, monkeypatch):
    save = checkpoint.save

    def full(path: Path, snapshot: checkpoint.Snapshot, keep: int) -> Path:
        if "ill" in str(path):
            raise MachineError("the disk is full")
        return save(path, snapshot, keep)

    monkeypatch.setattr(checkpoint, "save", full)
    jobs = [changed(dense(folder, name), "checkpoint", every=2) for name in ("ill", "well")]
    ill, well = fleet(jobs).results
    assert well.failure is None
    assert well.steps == 8
    assert ill.steps < 8
    assert "the disk is full (rank 0 on host" in str(ill.failure)


@pytest.mark.mpi
def test_two_models_may_fail_and_the_third_goes_on(folder):
    jobs = [dense(folder, name) for name in ("first", "well", "second")]

    def arrange(ready: list[Prepared]) -> None:
        if RANK == 0:
            after_compiling(ready[0], lambda: break_kernel(ready[0], "backward", 2))
        if RANK == SIZE - 1:
            after_compiling(ready[2], lambda: break_kernel(ready[2], "forward", 3))

    ran = fleet(jobs, arrange)
    assert [result.failure is None for result in ran.results] == [False, True, False]
    assert_equal(ran, 1, fleet([jobs[1]]))


@pytest.mark.mpi
def test_what_is_wrong_with_the_data_of_all_jobs_is_told_together(folder):
    jobs = [
        dense(folder, name).model_copy(update={"data": NpzData(source="npz", path=f"{folder}/{name}.npz")})
        for name in ("one", "two")
    ]

    async def main(world: World) -> None:
        with pytest.raises(Mistake) as caught:
            await prepare(world, [jobs[0], dense(folder), jobs[1]], [None] * 3)
        lines = str(caught.value).splitlines()
        assert [line.partition(":")[0] for line in lines] == ["one", "two"]
        assert "one.npz" in lines[0]
        assert "two.npz" in lines[1]

    run(main)
    assert not (folder / "runs").exists()
