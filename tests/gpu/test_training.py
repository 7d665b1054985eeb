"""Training with device = "cuda": the same losses as on the CPU, through the same loop and lanes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.launch import mpiexec
from weft.kernels.device import choose_device
from weft.runtime.train import oracle
from weft.runtime.train.data import load_data
from weft.runtime.train.job import load_job
from weft.runtime.train.model import build
from weft.runtime.train.replica import Replica

STEPS = 20
JOBS = {
    "digits": [],
    "digits-mlp": ["train.schedule.warmup=2"],
    "stdlib-gpt": ["model.gpt.layers=1", "train.schedule.warmup=2", "data.files=json/*.py"],
}


@pytest.mark.parametrize("name", JOBS)
def test_losses_on_a_gpu_are_those_of_the_cpu(name):
    job = load_job(name, [*JOBS[name], f"train.steps={STEPS}"])
    data = load_data(job.data, job.seed, job.model.loss.name)
    graph = build(job.model, data)
    losses = []
    for device in (choose_device("cpu", 0), choose_device("cuda", 0)):
        device.activate()
        replica = Replica(graph, job.train.optimizer.build(), device, job.train.micro_batch, job.seed)
        losses.append(oracle.train(job, data, replica, STEPS, lambda array: None))
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_weft_train_runs_on_a_gpu(ranks: int, tmp_path: Path):
    def train(device: str) -> subprocess.CompletedProcess[str]:
        return mpiexec(ranks, ["-m", "weft.runtime.cli", "train", "digits", "--device", device], cwd=tmp_path)

    on_gpu = train("cuda")
    assert on_gpu.returncode == 0, on_gpu.stderr
    assert "(cuda:" in on_gpu.stdout
    accuracy = re.search(r"test accuracy ([0-9.]+)", on_gpu.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.97


def test_a_run_resumed_on_a_gpu_goes_on_where_it_was(tmp_path: Path):
    """With no step left its test score is that of the run before: the weights are those of the checkpoint."""
    words = ["-m", "weft.runtime.cli", "train"]
    first = mpiexec(1, [*words, "digits", "--device", "cuda"], cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = re.search(r"stored in (\S+)", first.stdout)
    assert folder is not None
    again = mpiexec(1, [*words, "--resume", folder[1]], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    scores = [re.search(r"test loss ([0-9.]+)", run.stdout) for run in (first, again)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0][1] == scores[1][1]


def test_auto_takes_the_gpu():
    assert choose_device("auto", 0).name.startswith("cuda:")
