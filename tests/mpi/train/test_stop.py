"""A stop that waits for a step which never ends."""

from __future__ import annotations

import pytest
from mpi4py import MPI

from tests.mpi.training import Bench
from weft.runtime.train import loop
from weft.runtime.train.job import load_job


@pytest.mark.mpi
def test_a_stop_ends_a_run_whose_step_never_ends(monkeypatch, capfd):
    if MPI.COMM_WORLD.Get_size() > 1:
        pytest.skip("on several ranks the failure ends MPI, and this test with it")
    monkeypatch.setattr(loop, "STOP_S", 0.1)
    bench = Bench(load_job("digits", ["train.steps=6", "train.evaluate_every=6"]))

    def stop(step, team):
        if step == 2:
            team.stopping = True

    def hold(what):
        return ("a kernel that is not there", 0) if "step 4, portion" in what else None

    with pytest.raises(SystemExit):
        bench.train(stop, hold=hold)
    assert "digits: a stop was asked for, and no step has ended" in capfd.readouterr().err
