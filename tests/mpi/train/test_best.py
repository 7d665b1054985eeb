"""The weights of the best evaluation are kept and tested, and a run that gets no better stops."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import pytest
from mpi4py import MPI

from tests.mpi.train.fleets import RANK, Held, assert_equal, changed, dense, fleet
from weft.runtime.errors import CheckpointError
from weft.runtime.observe import read_metrics
from weft.runtime.train import checkpoint, trainer
from weft.runtime.train.checkpoint import checkpoints, chosen, latest


def validation_losses(losses: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the validation set have these losses, one evaluation after the other; and the test set its own."""
    coming, evaluate = iter(losses), trainer.evaluate

    async def told(*arguments, what, **options):
        score = await evaluate(*arguments, what=what, **options)
        return score._replace(loss=next(coming)) if "validation" in what else score

    monkeypatch.setattr(trainer, "evaluate", told)


def worse_and_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a validation set's loss be the number of the step: the first evaluation is the best."""
    evaluate = trainer.evaluate

    async def told(*arguments, what, **options):
        score = await evaluate(*arguments, what=what, **options)
        return score._replace(loss=float(what.split()[-1])) if "validation" in what else score

    monkeypatch.setattr(trainer, "evaluate", told)


def steps_of(found) -> list[int]:
    return [int(path.stem.rpartition("-")[2]) for path in found]


@pytest.mark.mpi
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_a_run_that_gets_no_better_stops_and_its_best_weights_are_what_is_tested(inside, folder, monkeypatch):
    validation_losses([5.0, 3.0, 4.0, 3.0, 3.5, float("nan"), 3.0], monkeypatch)
    job = dense(folder, evaluate_every=1, steps=9, best={"metric": "loss", "patience": 3})
    job = changed(changed(job, "exchange", inside=inside), "checkpoint", keep=1)
    ran = fleet([job])
    (result,) = ran.results
    assert result.steps == 5
    run = ran.ready[0].folder
    if RANK == 0:
        assert steps_of(checkpoints(run.checkpoints)) == [5, 2]
        assert steps_of([chosen(run.checkpoints)]) == [2]
        assert read_metrics(run.metrics).end["reason"] == "no better for 3 evaluations"
    monkeypatch.undo()
    alone = changed(dense(folder, "alone", steps=2), "exchange", inside=inside)
    assert result.score == fleet([alone]).results[0].score

    validation_losses([2.9, 2.8, float("inf")], monkeypatch)
    longer = changed(job, "train", steps=8, best=job.train.best.model_copy(update={"patience": 4}))
    again = fleet([longer], resume=[run.path])
    monkeypatch.undo()
    assert again.results[0].steps == 8
    if RANK == 0:
        assert steps_of(checkpoints(run.checkpoints)) == [8, 7]
    seventh = changed(dense(folder, "seven", steps=7), "exchange", inside=inside)
    assert again.results[0].score == fleet([seventh]).results[0].score


@pytest.mark.mpi
@pytest.mark.parametrize("test", [0.2, 0.0], ids=["with a test set", "with none"])
def test_a_run_that_diverged_behind_its_best_evaluation_has_that(test, folder, monkeypatch):
    validation_losses([3.0, float("nan")], monkeypatch)
    job = changed(dense(folder, best={"metric": "loss"}), "data", test=test)
    (result,) = fleet([job]).results
    assert result.steps == 8
    assert result.failure is None
    assert (result.score is not None) == (test > 0)


@pytest.mark.mpi
def test_the_last_evaluation_may_be_the_best(folder):
    best = dense(folder, "best", best={"metric": "accuracy"})
    plain = dense(folder, "plain")
    ran = fleet([best])
    assert_equal(ran, 0, fleet([plain]))
    if RANK == 0:
        folder = ran.ready[0].folder.checkpoints
        assert chosen(folder) == latest(folder)


@pytest.mark.mpi
@pytest.mark.parametrize("inside", ["shared", "flat"])
def test_of_two_models_each_is_tested_with_its_own_best_weights(inside, folder, monkeypatch):
    """Ranks may take the weights of two models in another order: rank 0 those of the first, then the
    second's when that is tested; the others the other way round."""
    jobs = [dense(folder, name, best={"metric": "loss"}) for name in ("first", "second")]
    jobs = [changed(job, "exchange", inside=inside) for job in jobs]
    happened: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
    broadcast = Held.broadcast

    async def in_turn(self, array, root=0, *, what="", patience_s=None):
        await broadcast(self, array, root, what=what, patience_s=patience_s)
        happened[what].set()
        if what.startswith("first: the weights of") and RANK:
            await happened[what.replace("first", "second")].wait()
        if what.startswith("second: the weights of") and not RANK:
            await happened["first: test score after step 4"].wait()

    monkeypatch.setattr(Held, "broadcast", in_turn)
    worse_and_worse(monkeypatch)
    ran = fleet(jobs, started=lambda what: happened[what].set())
    monkeypatch.undo()
    fourth = changed(dense(folder, "fourth", steps=4), "exchange", inside=inside)
    expected = fleet([fourth]).results[0].score
    assert [result.score for result in ran.results] == [expected, expected]


@pytest.mark.mpi
def test_a_run_whose_best_checkpoint_was_removed_goes_on_without(folder, monkeypatch, capfd):
    job = dense(folder, best={"metric": "loss", "patience": 2})
    worse_and_worse(monkeypatch)
    run = fleet([job]).ready[0].folder
    if RANK == 0:
        chosen(run.checkpoints).unlink()
    MPI.COMM_WORLD.Barrier()
    again = fleet([changed(job, "train", steps=16)], resume=[run.path])
    assert again.results[0].steps == 16
    assert again.results[0].score is not None
    if RANK == 0:
        assert "step-00000004.safetensors, its best checkpoint, is missing" in capfd.readouterr().out
        assert steps_of([chosen(run.checkpoints)]) == [12]


@pytest.mark.mpi
def test_a_model_whose_best_checkpoint_is_lost_fails_alone(folder, monkeypatch):
    jobs = [dense(folder, name, best={"metric": "loss"}) for name in ("ill", "well")]
    worse_and_worse(monkeypatch)

    def lost(path):
        if "ill" in str(path):
            raise CheckpointError("the best is gone")
        return chosen(path)

    monkeypatch.setattr(checkpoint, "chosen", lost)
    ill, well = fleet(jobs).results
    assert well.failure is None
    assert well.score is not None
    assert ill.score is None
    assert "the best is gone (rank 0 on host" in str(ill.failure)
