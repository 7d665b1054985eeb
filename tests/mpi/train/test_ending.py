"""A run that its target or its patience has ended stays so when resumed, until the job asks for more.

And one whose folder was moved while it trained can be resumed where it says that it is stored.
"""

from __future__ import annotations

from math import nan
from pathlib import Path

import pytest
from mpi4py import MPI

from tests.mpi.train.fleets import RANK, changed, dense, fleet
from tests.mpi.train.test_best import worse_and_worse
from weft.runtime.observe import read_metrics
from weft.runtime.train import checkpoint, trainer
from weft.runtime.train.job import load_job
from weft.runtime.train.schema import KeepBest, Target

ENDED = {
    "its target was reached": (
        {"target": {"metric": "loss", "value": 100.0}},
        4,
        {"target": Target(metric="loss", value=1e-9)},
        "target reached",
    ),
    "it was no better for 1 evaluation": (
        {"best": {"metric": "loss", "patience": 1}},
        8,
        {"best": KeepBest(metric="loss", patience=9)},
        "no better for 1 evaluation",
    ),
}


def steps(run: Path) -> list[int]:
    return [int(step) for step in read_metrics(run / "metrics.jsonl").steps.step]


@pytest.mark.mpi
@pytest.mark.parametrize("why", ENDED)
def test_a_run_that_ended_before_its_last_step_takes_no_more_when_it_is_resumed(
    why, folder, monkeypatch, capfd
):
    asked, last, more, reason = ENDED[why]
    worse_and_worse(monkeypatch)
    job = dense(folder, steps=12, **asked)
    ran = fleet([job])
    run, score = ran.ready[0].folder.path, ran.results[0].score
    trace = (run / "trace.json").read_bytes()
    for _ in range(2):  # each writes the checkpoint from which the next one starts
        MPI.COMM_WORLD.Barrier()
        (again,) = fleet([job], resume=[run]).results
        assert (again.steps, again.score) == (last, score)
        assert (run / "trace.json").read_bytes() == trace
        if RANK == 0:
            assert steps(run) == list(range(1, last + 1))
            assert read_metrics(run / "metrics.jsonl").end["reason"] == reason
            assert f"dense: {why} before, nothing is left to train" in capfd.readouterr().out
    (longer,) = fleet([changed(job, "train", **more)], resume=[run]).results
    assert longer.steps == 12


@pytest.mark.mpi
def test_a_run_whose_patience_ran_out_without_a_best_evaluation_stays_ended(folder, monkeypatch):
    """A damaged sample that is held out makes all of them NaN; what the run had waited was forgotten."""
    evaluate = trainer.evaluate

    async def damaged(*arguments, what, **options):
        score = await evaluate(*arguments, what=what, **options)
        return score._replace(loss=nan, damage="sample 7") if "validation" in what else score

    monkeypatch.setattr(trainer, "evaluate", damaged)
    job = dense(folder, steps=12, best={"metric": "loss", "patience": 2})
    ran = fleet([job])
    MPI.COMM_WORLD.Barrier()
    (again,) = fleet([job], resume=[ran.ready[0].folder.path]).results
    assert (ran.results[0].steps, again.steps) == (8, 8)
    assert again.score == ran.results[0].score


@pytest.mark.mpi
def test_of_two_models_that_are_resumed_the_one_at_its_target_leaves_the_lane_to_the_other(folder):
    jobs = [dense(folder, "there", target={"metric": "loss", "value": 100.0}), dense(folder, "alone")]
    runs = [one.folder.path for one in fleet(jobs).ready]
    there, alone = fleet([jobs[0], changed(jobs[1], "train", steps=12)], resume=runs).results
    assert (there.steps, alone.steps) == (4, 12)
    assert there.failure is None


@pytest.mark.mpi
def test_a_run_whose_folder_was_moved_while_it_trained_is_where_it_says(folder, monkeypatch, capfd):
    save, moved = checkpoint.save, folder / "moved"

    def save_and_move(checkpoints, snapshot, keep):
        path = save(checkpoints, snapshot, keep)
        if not moved.exists():
            checkpoints.parent.rename(moved)
        return path

    monkeypatch.setattr(checkpoint, "save", save_and_move)
    job = changed(dense(folder), "checkpoint", every=3)
    ran = fleet([job])
    MPI.COMM_WORLD.Barrier()
    place = ran.ready[0].folder
    if RANK == 0:
        assert f"weft: {place.path} was moved or removed while it trains" in capfd.readouterr().err
        assert load_job(place.require_job()) == job
        assert sorted(path.name for path in place.checkpoints.iterdir()) == [
            "step-00000006.safetensors",
            "step-00000008.safetensors",
        ]
        assert steps(moved) == list(range(1, 9))
    (again,) = fleet([changed(job, "train", steps=10)], resume=[place.path]).results
    assert again.steps == 10
