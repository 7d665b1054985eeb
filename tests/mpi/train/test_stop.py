"""How a run ends early: by a stop, before its first step or in one that never ends, or by an odd loss."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from tests.mpi.train.fleets import RANK, changed, dense, fleet
from tests.mpi.training import Bench
from weft.runtime.message import World, run
from weft.runtime.train import checkpoint, examine, loop
from weft.runtime.train.fleet import Fleet, train
from weft.runtime.train.job import load_job
from weft.runtime.train.log import Log
from weft.runtime.train.prepare import prepare
from weft.runtime.train.trainer import StepError


@pytest.mark.mpi
@pytest.mark.parametrize("reading", ["compare", "_read"])
def test_a_stop_ends_all_ranks_while_data_are_read(reading, folder, monkeypatch):
    """It was obeyed behind the first step, however long that took to come."""
    over, ended = threading.Event(), []
    # Of who compares, rank 0 is one on any nodes; all read, and the last tells the others by way of rank 0.
    who = 0 if reading == "compare" else MPI.COMM_WORLD.Get_size() - 1

    def endless(*given: object, **resumed: object) -> None:
        if who == RANK:
            os.kill(os.getpid(), signal.SIGUSR1)
        ended.append(over.wait(30))

    async def main(world: World) -> str:
        world.stop_status = 0  # rank 0 need not wait for the other processes to end
        await train(world, [dense(folder)])
        return "trained"

    monkeypatch.setattr(examine, reading, endless)
    assert run(main) is None
    assert not ended
    assert not (folder / "runs").exists()
    over.set()


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


@pytest.mark.mpi
def test_the_last_step_of_a_run_that_is_stopped_is_told_as_such(folder, monkeypatch):
    """Its line told of the time that was left."""
    step, ends = Log.step, dict[int, bool]()

    def told(log: Log, number: int, *given: object, ending: bool) -> None:
        ends[number] = ending
        step(log, number, *given, ending=ending)  # type: ignore[arg-type]

    monkeypatch.setattr(Log, "step", told)
    monkeypatch.setattr(World, "stopping", property(lambda world: 2 in ends))
    ran = fleet([dense(folder, steps=50)])
    assert ran.results[0].stopped
    assert ends[1] is False
    assert max(ends) == ran.results[0].steps < 50
    assert ends[max(ends)] is True


@pytest.mark.mpi
def test_a_run_that_diverges_ends_behind_the_checkpoint_under_way(folder, monkeypatch):
    """Whoever raised first ended rank 0 while it wrote, and the run had lost all its steps."""
    save, wrong, known = checkpoint.save, loop._wrong, threading.Event()

    def late(path: Path, snapshot: checkpoint.Snapshot, keep: int) -> Path:
        known.wait()
        time.sleep(0.3)  # a slow disk: whoever waits for it does so however long it takes
        return save(path, snapshot, keep)

    def told(name: str, step: loop.InFlight, samples: object) -> str:
        if step.share.step == 4:
            known.set()
            step.tally.array[0] = np.nan
        return wrong(name, step, samples)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(loop, "_wrong", told)
    job = changed(dense(folder), "checkpoint", every=4)

    async def main(world: World) -> None:
        (ready,) = await prepare(world, [job], [None])
        with pytest.raises(StepError, match="the loss of dense became nan in step 5: training diverged"):
            await Fleet(world, [ready]).run()
        assert checkpoint.latest(ready.folder.checkpoints).name == "step-00000004.safetensors"

    run(main)
