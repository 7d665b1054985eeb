"""The weights of the best evaluation are kept and tested, and a run that gets no better stops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.mpi.train.fleets import RANK, assert_equal, changed, dense, fleet
from weft.runtime.observe import read_metrics
from weft.runtime.train import trainer
from weft.runtime.train.checkpoint import checkpoints, chosen, latest


def validation_losses(losses: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the validation set have these losses, one evaluation after the other; and the test set its own."""
    coming, evaluate = iter(losses), trainer.evaluate

    async def told(*arguments, what, **options):
        score = await evaluate(*arguments, what=what, **options)
        return score._replace(loss=next(coming)) if "validation" in what else score

    monkeypatch.setattr(trainer, "evaluate", told)


def steps_of(found) -> list[int]:
    return [int(path.stem.rpartition("-")[2]) for path in found]


@pytest.mark.mpi
@pytest.mark.limit(120)
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
def test_the_last_evaluation_may_be_the_best(folder):
    best = dense(folder, "best", best={"metric": "accuracy"})
    plain = dense(folder, "plain")
    ran = fleet([best])
    assert_equal(ran, 0, fleet([plain]))
    if RANK == 0:
        folder = ran.ready[0].folder.checkpoints
        assert chosen(folder) == latest(folder)
