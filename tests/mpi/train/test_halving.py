"""The worse half of the models that train together ends at each rung, and the best is what it is alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mpi.train.fleets import RANK, assert_equal, changed, dense, fleet
from weft.runtime.message import World
from weft.runtime.observe import read_metrics
from weft.runtime.train.halving import Halving, Verdict
from weft.runtime.train.schema import Job

pytestmark = pytest.mark.mpi


def of_rate(folder: Path, name: str, rate: float, **run: object) -> Job:
    optimizer = dense(folder).train.optimizer.model_copy(update={"rate": rate})
    job = changed(dense(folder, name, evaluate_every=8), "train", optimizer=optimizer)
    return changed(job, "run", halve=True, **run)


def test_s2_4_the_best_of_a_sweep_goes_on_alone_and_is_what_it_is_alone(folder, capfd):
    rates = {"least": 1e-6, "best": 0.05, "little": 1e-5, "second": 0.02, "none": 1e-7}
    ran = fleet([of_rate(folder, name, rate) for name, rate in rates.items()])
    assert [result.steps for result in ran.results] == [2, 8, 2, 4, 2]
    assert not any(result.stopped or result.failure for result in ran.results)
    assert_equal(ran, 1, fleet([changed(of_rate(folder, "alone", 0.05), "run", halve=False)]))
    said = capfd.readouterr().out
    if RANK == 0:
        assert "behind 1/4 of their steps 2 of 5 models go on: best, second (" in said
        assert "behind 1/2 of their steps 1 of 2 models go on: best (" in said
        ends = [read_metrics(one.folder.metrics).end["reason"] for one in ran.ready]
        assert ends[1] == "all steps done"
        assert ends[3] == "outdone: place 2 of 2"

    outdone = ran.ready[3].folder.path
    again = fleet([of_rate(folder, "second", 0.02)], resume=[outdone])
    assert again.results[0].steps == 4
    more = changed(of_rate(folder, "second", 0.02), "run", halve=False)
    assert fleet([more], resume=[outdone]).results[0].steps == 8
    said = capfd.readouterr().out
    if RANK == 0:
        assert "it was outdone by other models before, nothing is left to train" in said
        assert "for more give --set run.halve=false" in said


@pytest.mark.parametrize("comes", ["before the other", "last"])
def test_models_that_a_signal_stops_at_a_rung_are_judged_when_they_go_on(comes, folder, monkeypatch):
    """The first waits at the rung while the other, which has a smaller share, is far from it; or the other
    is the one that comes last: both are judged, and the one that goes on is stopped."""
    jobs = [of_rate(folder, "good", 0.05, share=8.0), of_rate(folder, "bad", 1e-6)]
    asked = list[int]()
    judge = Halving.judge

    async def watched(self: Halving, model: int, score) -> Verdict | None:
        if model == (comes == "last"):
            asked.append(model)
        return await judge(self, model, score)

    monkeypatch.setattr(Halving, "judge", watched)
    monkeypatch.setattr(World, "stopping", property(lambda world: bool(asked)))
    stopped = fleet(jobs)
    monkeypatch.undo()
    good, bad = stopped.results
    assert good.stopped
    if comes == "last":
        assert 4 < good.steps < 8
        assert (bad.steps, bad.stopped) == (4, False)
    else:
        assert good.steps == 4
        assert bad.steps < 4
        assert bad.stopped
    going_on = [number for number, result in enumerate(stopped.results) if result.stopped]
    again = fleet([jobs[n] for n in going_on], resume=[stopped.ready[n].folder.path for n in going_on])
    assert [result.steps for result in again.results] == [8, 4][: len(going_on)]
    assert_equal(again, 0, fleet([changed(of_rate(folder, "alone", 0.05), "run", halve=False)]))
