"""Several models in one job: what one fails of, and that the others go on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from tests.mpi.telling import listen
from tests.mpi.train.fleets import (
    RANK,
    SIZE,
    after_compiling,
    assert_equal,
    before_kernel,
    changed,
    dense,
    fleet,
)
from weft.runtime.errors import MachineError, Mistake
from weft.runtime.message import World, run
from weft.runtime.observe import RunFolder, read_metrics
from weft.runtime.train import checkpoint
from weft.runtime.train.data.section import NpzData
from weft.runtime.train.prepare import Prepared, prepare
from weft.runtime.train.trainer import Result


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
def test_a_model_fails_alone(broken, inside, folder, capfd, monkeypatch):
    listen(monkeypatch)  # so that stderr has no word of ranks that are slow
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
@pytest.mark.parametrize("last", [4, 8], ids=["while it trains", "in its last step"])
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_weights_that_are_no_numbers_are_not_stored(inside, last, folder):
    """The loss of that step was still a number: they would have been the newest checkpoint."""
    jobs = [changed(dense(folder, name, evaluate_every=8), "checkpoint", every=2) for name in ("ill", "well")]
    jobs = [changed(job, "exchange", inside=inside) for job in jobs]
    jobs = [changed(job, "data", validation=0.0, test=0.0) for job in jobs]

    def arrange(ready: list[Prepared]) -> None:
        replica = ready[0].replica
        update = replica.update

        def overflows(start: int, stop: int, *, step: int, **keys) -> None:
            update(start, stop, step=step, **keys)
            if step == last:
                replica.parameters[start:stop] *= np.inf

        replica.update = overflows  # type: ignore[method-assign]

    ran = fleet(jobs, arrange)
    ill, well = ran.results
    assert well.failure is None
    assert f"dense_1.weight of ill holds NaN or infinity after step {last}" in str(ill.failure)
    assert ill.steps == last
    if RANK == 0:
        newest = checkpoint.load(checkpoint.latest(ran.ready[0].folder.checkpoints))
        assert newest.step == last - 2
        assert all(np.isfinite(tensor).all() for tensor in newest.tensors.values())


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
